//! The map: which block of which segment a block of a lineage is.
//!
//! Invariants:
//! - The answer for a block is the newest of: the active generation, the frozen one, the tree. A
//!   write touches the active generation only; it never reads the tree.
//! - While a checkpoint folds the frozen generation into new pages, the old tree stays whole, and
//!   the frozen generation stays in front of it. Both are let go together when the checkpoint is
//!   durable.
//! - Pages are never changed once written, and their addresses never used again: a cached page is
//!   right for ever.

use std::collections::BTreeMap;

use bowline_arena::{Memory, Part, Span};

use crate::format::{FANOUT, LineageRecord, PageRef, Position, block_checksum, span_of_level};
use crate::index::{Happened, Index, Left};
use crate::tables::{Deltas, Entry, FrameId, Frames, Ranges, State, Words, leaf_of, newest};
use crate::{BLOCK_BYTES, Lba, LineageId, Mapped, MediumError, SegmentId, Seq, SlotId};

/// Runs of at most so many blocks are noted block by block.
pub(crate) const SMALL_RANGE_BLOCKS: u64 = 64;
const RANGES_MAX: usize = 4096;

/// Changes of the map since some moment.
pub(crate) struct Generation {
    pub deltas: Deltas,
    pub ranges: Ranges,
    pub ordinal: u32,
    /// By lineage: how many of the deltas name data.
    data_blocks: BTreeMap<LineageId, u64>,
    /// Which generation of the index it is, if it lies there.
    home: Option<usize>,
}

impl Generation {
    pub(crate) fn new(bytes: usize, seed: u64) -> Generation {
        Generation::of(Deltas::new(bytes, seed), None)
    }

    fn of(deltas: Deltas, home: Option<usize>) -> Generation {
        let ranges = Ranges::new(RANGES_MAX);
        Generation { deltas, ranges, ordinal: 0, data_blocks: BTreeMap::new(), home }
    }

    /// What a dead process left, each entry of which is told.
    fn recount(&mut self, mut each: impl FnMut(Entry)) {
        self.deltas.count_leaves();
        self.data_blocks.clear();
        for (lineage, delta) in self.deltas.all() {
            self.ordinal = self.ordinal.max(delta.ordinal);
            if delta.entry.has_address() {
                *self.data_blocks.entry(lineage).or_default() += 1;
                each(delta.entry);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.ranges.is_empty()
    }

    pub(crate) fn get(&self, lineage: LineageId, lba: Lba) -> Option<Entry> {
        newest(self.deltas.get(lineage, lba), self.ranges.get(lineage, lba))
    }

    fn touches_leaf(&self, lineage: LineageId, leaf: u64) -> bool {
        let (start, end) = (Lba(leaf * FANOUT), Lba((leaf + 1) * FANOUT));
        self.deltas.leaf(lineage, leaf).next().is_some()
            || self.ranges.overlapping(lineage, start, end).next().is_some()
    }

    pub(crate) fn clear(&mut self) {
        self.deltas.clear();
        self.ranges.clear();
        self.ordinal = 0;
        self.data_blocks.clear();
    }

    /// So many deltas of a lineage name data now that did not, and the other way round.
    pub(crate) fn count_data(&mut self, lineage: LineageId, more: u64, less: u64) {
        if (more, less) != (0, 0) {
            let count = self.data_blocks.entry(lineage).or_default();
            *count = (*count + more).saturating_sub(less);
        }
    }

    /// Deltas of a lineage that name data.
    fn data_blocks(&self, lineage: LineageId) -> u64 {
        self.data_blocks.get(&lineage).copied().unwrap_or_default()
    }

    /// Whether so many more changes of blocks, and ranges, fit.
    pub(crate) fn has_room(&self, blocks: usize, ranges: usize) -> bool {
        self.deltas.len() + blocks <= self.deltas.capacity() && self.ranges.has_room(ranges)
    }
}

/// The answer to a question to the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// What it says.
    Found(Entry),
    /// It depends on a page that has to be read first.
    Needs(Entry),
    /// A page it depends on is damaged.
    Damaged(SegmentId),
}

/// A page being read.
struct Load {
    page: Entry,
    /// Where it is read: the slot is not used again meanwhile.
    slot: SlotId,
    block: u32,
    span: Span,
    is_retried: bool,
}

/// What becomes of a page that has been read.
pub(crate) enum Loaded {
    /// It is in memory, or known to be bad; its slot is read no longer.
    Done(SlotId),
    /// It is to be read once more, from the same place.
    Again { slot: SlotId, block: u32, into: Part },
}

/// The seeds of the two generations.
fn seeds(salt: u64) -> [u64; 2] {
    [salt, salt.rotate_left(17)]
}

/// The map of all lineages.
pub(crate) struct Map {
    pub active: Generation,
    pub frozen: Option<Generation>,
    /// Empty ones, those of the index last.
    spares: Vec<Generation>,
    /// What outlives the process, if anything does.
    pub index: Option<Index>,
    pub lineages: BTreeMap<LineageId, LineageRecord>,
    frames: Frames,
    salt: u64,
    loads: Vec<Option<Load>>,
    /// Pages that could not be read, until somebody has been told.
    bad: BTreeMap<u64, Option<MediumError>>,
    free_spans: Vec<Span>,
    /// Pages read from the medium, and how many times one was found in memory.
    pub pages_read: u64,
}

impl Map {
    pub(crate) fn new(salt: u64, delta_bytes: usize, frames: usize, spans: Vec<Span>) -> Map {
        let generations =
            seeds(salt).map(|seed| Generation::of(Deltas::new(delta_bytes / 2, seed), None));
        Map::of(salt, generations, frames, spans)
    }

    /// An empty map whose changes lie in the index.
    pub(crate) fn in_index(
        salt: u64,
        (mut index, words): (Index, [Words; 2]),
        frames: usize,
        spans: Vec<Span>,
    ) -> Map {
        index.format();
        let [first, second] = words;
        let seeds = seeds(salt);
        let mut generations = [(first, 0), (second, 1)]
            .map(|(words, home)| Generation::of(Deltas::over(words, seeds[home]), Some(home)));
        // Whatever was there.
        generations.iter_mut().for_each(Generation::clear);
        let mut map = Map::of(salt, generations, frames, spans);
        map.index = Some(index);
        map
    }

    fn of(salt: u64, [active, spare]: [Generation; 2], frames: usize, spans: Vec<Span>) -> Map {
        Map {
            active,
            frozen: None,
            spares: vec![spare],
            index: None,
            lineages: BTreeMap::new(),
            frames: Frames::new(frames, salt),
            salt,
            loads: (0..spans.len()).map(|_| None).collect(),
            bad: BTreeMap::new(),
            free_spans: spans,
            pages_read: 0,
        }
    }

    /// The map of a process that died, as the index has it. The ledger is to be gone through, and
    /// then everything counted.
    ///
    /// None if the index is damaged.
    pub(crate) fn left(
        salt: u64,
        (mut index, words): (Index, [Words; 2]),
        left: &Left,
        end: Option<u64>,
        (frames, spans): (usize, Vec<Span>),
    ) -> Option<Map> {
        index.adopt(left, end);
        let [first, second] = words;
        let seeds = seeds(salt);
        let generation = |(words, home): (Words, usize)| {
            Some(Generation::of(Deltas::adopt(words, seeds[home])?, Some(home)))
        };
        let mut generations = [generation((first, 0))?, generation((second, 1))?];
        generations.rotate_left(left.active);
        let [active, mut other] = generations;
        if left.frozen.is_none() && index.is_other_soiled() {
            other.clear();
            index.zeroed();
        }
        let mut map = Map::of(salt, [active, other], frames, spans);
        if left.frozen.is_some() {
            map.frozen = map.spares.pop();
        }
        map.index = Some(index);
        Some(map)
    }

    /// Counts what the index had, and tells of each entry with an address.
    pub(crate) fn recount(&mut self, mut each: impl FnMut(Entry)) {
        if let Some(frozen) = &mut self.frozen {
            frozen.recount(&mut each);
        }
        self.active.recount(&mut each);
    }

    /// Everything begins here, at a place of the log: nothing has changed since the checkpoint that
    /// stands there.
    pub(crate) fn begin_index(&mut self, position: Position, seq: Seq) {
        let is_empty = self.active.is_empty() && self.frozen.is_none();
        if let (Some(index), Some(home), true) = (&mut self.index, self.active.home, is_empty) {
            index.begin(home, position, seq);
        }
    }

    /// Notes what happened beside changes of blocks.
    pub(crate) fn note(&mut self, happened: &Happened) {
        if let Some(index) = &mut self.index {
            index.note(happened);
        }
    }

    /// A run of blocks became the same.
    pub(crate) fn insert_range(
        &mut self,
        lineage: LineageId,
        from: Lba,
        blocks: u64,
        state: State,
    ) {
        let active = &mut self.active;
        active.ordinal += 1;
        let ordinal = active.ordinal;
        if let Some(index) = &mut self.index {
            index.note(&Happened::Range { lineage, from, blocks, state, ordinal });
        }
        active.ranges.insert(lineage, from, blocks, state, ordinal);
    }

    /// Moves the active generation to the frozen place: what the map says where the log stands.
    /// False if that is still taken.
    pub(crate) fn freeze(&mut self, position: Position, seq: Seq) -> bool {
        if self.frozen.is_some() {
            return false;
        }
        let Some(fresh) = self.spares.pop() else { return false };
        if let Some(index) = &mut self.index {
            index.froze(self.active.home, fresh.home, position, seq);
        }
        self.frozen = Some(std::mem::replace(&mut self.active, fresh));
        true
    }

    /// Lets the frozen generation go: the tree says the same now.
    pub(crate) fn thaw(&mut self) {
        let Some(mut generation) = self.frozen.take() else { return };
        if let Some(index) = &mut self.index {
            index.thaws(generation.home);
        }
        generation.clear();
        self.add_spare(generation);
    }

    fn add_spare(&mut self, generation: Generation) {
        let home = generation.home;
        self.spares.push(generation);
        self.spares.sort_by_key(|spare| spare.home.is_some());
        if let Some(index) = self.index.as_mut().filter(|_| home.is_some()) {
            index.zeroed();
        }
    }

    /// Replaces the active generation by one of twice the size with the same content: only in
    /// recovery, when the log is longer than the setting foresees.
    pub(crate) fn enlarge(&mut self) {
        let old = &self.active;
        // Of our own: what is longer than foreseen has no place in the index.
        let mut large = Generation::new(old.deltas.bytes() * 2, self.salt.rotate_left(7));
        large.ordinal = old.ordinal;
        large.data_blocks.clone_from(&old.data_blocks);
        let mut cursor = crate::tables::LeafCursor::default();
        while let Some((lineage, leaf)) = old.deltas.next_leaf(&mut cursor) {
            for delta in old.deltas.leaf(lineage, leaf) {
                large.deltas.insert(lineage, delta.lba, delta.entry, delta.ordinal);
            }
        }
        large.ranges = Ranges::new(old.ranges.len() * 2 + RANGES_MAX);
        for range in old.ranges.all() {
            let blocks = range.end.0 - range.start.0;
            large.ranges.insert(range.lineage, range.start, blocks, range.state, range.ordinal);
        }
        let mut old = std::mem::replace(&mut self.active, large);
        if let Some(index) = &mut self.index {
            index.forget();
        }
        old.clear();
        self.add_spare(old);
    }

    /// How much of a lineage holds data.
    pub(crate) fn mapped(&self, lineage: LineageId) -> Mapped {
        let record = self.lineages.get(&lineage);
        let generations = || [Some(&self.active), self.frozen.as_ref()].into_iter().flatten();
        let changed: u64 = generations().map(|one| one.data_blocks(lineage)).sum();
        Mapped {
            bytes: record.map_or(Some(0), |record| record.data_blocks).map(|n| n * BLOCK_BYTES),
            changed_bytes: changed * BLOCK_BYTES,
            is_all: generations().all(Generation::is_empty),
        }
    }

    /// What the map says of a block.
    pub(crate) fn lookup(&mut self, lineage: LineageId, lba: Lba) -> Lookup {
        if let Some(entry) = self.pending(lineage, lba) {
            return Lookup::Found(entry);
        }
        self.in_tree(lineage, lba).0
    }

    pub(crate) fn pending(&self, lineage: LineageId, lba: Lba) -> Option<Entry> {
        let newer = self.active.get(lineage, lba);
        newer.or_else(|| self.frozen.as_ref().and_then(|frozen| frozen.get(lineage, lba)))
    }

    /// What the map says of the blocks from `lba` on, up to `limit` or the end of a leaf. A leaf
    /// without pending changes is looked for once, not once for each block.
    pub(crate) fn leaf_run(
        &mut self,
        lineage: LineageId,
        lba: Lba,
        limit: u64,
        into: &mut Vec<Entry>,
    ) -> Result<u64, Lookup> {
        let leaf = leaf_of(lba);
        let limit = limit.min((leaf + 1) * FANOUT - lba.0);
        if self.touches(lineage, leaf) {
            for done in 0..limit {
                match self.lookup(lineage, Lba(lba.0 + done)) {
                    Lookup::Found(entry) => into.push(entry),
                    other if done == 0 => return Err(other),
                    _ => return Ok(done),
                }
            }
            return Ok(limit);
        }
        let (found, run, frame) = self.in_tree(lineage, lba);
        let Lookup::Found(entry) = found else { return Err(found) };
        let run = run.min(limit);
        into.extend(std::iter::repeat_n(entry, run as usize));
        let Some(frame) = frame else { return Ok(run) };
        let before = into.len();
        let page = PageRef(self.frames.bytes(frame));
        let first = lba.0 % FANOUT;
        let rest = (first + run..first + limit).map(|index| page.entry(index as usize));
        // What is none of a block's states is looked up by itself, and told.
        into.extend(rest.take_while(|entry| entry.state().is_some_and(|is| is != State::Page)));
        Ok(run + (into.len() - before) as u64)
    }

    fn touches(&self, lineage: LineageId, leaf: u64) -> bool {
        self.active.touches_leaf(lineage, leaf)
            || self.frozen.as_ref().is_some_and(|frozen| frozen.touches_leaf(lineage, leaf))
    }

    /// What the tree says of a block, for how many blocks from it on it says so in one entry, and
    /// the leaf that holds the entry, if it is in one.
    fn in_tree(&mut self, lineage: LineageId, lba: Lba) -> (Lookup, u64, Option<FrameId>) {
        let Some(record) = self.lineages.get(&lineage) else {
            return (Lookup::Found(Entry::HOLE), u64::MAX, None);
        };
        let (mut entry, mut level) = (record.root, record.height);
        if lba.0 >= span_of_level(level) {
            return (Lookup::Found(Entry::HOLE), u64::MAX - lba.0, None);
        }
        let mut leaf = None;
        loop {
            let run = span_of_level(level) - lba.0 % span_of_level(level);
            match entry.state() {
                Some(State::Page) if level > 0 => {}
                Some(State::Page) | None => return (Lookup::Damaged(entry.segment()), run, None),
                Some(_) => return (Lookup::Found(entry), run, leaf),
            }
            let Some(frame) = self.frames.get(entry.address) else {
                let missing = if self.bad.contains_key(&entry.address) {
                    Lookup::Damaged(entry.segment())
                } else {
                    Lookup::Needs(entry)
                };
                return (missing, run, None);
            };
            level -= 1;
            leaf = (level == 0).then_some(frame);
            let index = lba.0 / span_of_level(level) % FANOUT;
            entry = PageRef(self.frames.bytes(frame)).entry(index as usize);
        }
    }

    /// The state of a block and for how many blocks, up to `limit`, it is known to be the same
    /// without looking further than a page.
    pub(crate) fn run(&mut self, lineage: LineageId, lba: Lba, limit: u64) -> (Lookup, u64) {
        if self.active.is_empty() && self.frozen.as_ref().is_none_or(Generation::is_empty) {
            let (found, run, _) = self.in_tree(lineage, lba);
            return (found, run.min(limit));
        }
        let leaf = leaf_of(lba);
        let to_leaf_end = (leaf + 1) * FANOUT - lba.0;
        if !self.touches(lineage, leaf) {
            let (found, run, _) = self.in_tree(lineage, lba);
            return (found, run.min(to_leaf_end).min(limit));
        }
        (self.lookup(lineage, lba), 1)
    }

    /// The bytes of a page, if they are in memory.
    pub(crate) fn page(&mut self, page: Entry) -> Option<&[u8]> {
        let frame = self.frames.get(page.address)?;
        Some(self.frames.bytes(frame))
    }

    /// A page that was just written is worth keeping.
    pub(crate) fn remember(&mut self, page: Entry, bytes: &[u8]) {
        if self.frames.get(page.address).is_none()
            && let Some(frame) = self.frames.insert(page.address)
        {
            self.frames.bytes_mut(frame).copy_from_slice(bytes);
        }
    }

    /// Whether a page was found damaged or could not be read.
    pub(crate) fn is_bad(&self, page: Entry) -> bool {
        self.bad.contains_key(&page.address)
    }

    /// Starts to read a page unless it is being read. Returns the load's number and buffer, or none
    /// if nothing is to be done now.
    pub(crate) fn start_load(
        &mut self,
        page: Entry,
        (slot, block): (SlotId, u32),
    ) -> Option<(usize, Part)> {
        let is_loading = self.loads.iter().flatten().any(|load| load.page.address == page.address);
        if is_loading || self.free_spans.is_empty() {
            return None;
        }
        let number = self.loads.iter().position(Option::is_none)?;
        let span = self.free_spans.pop()?;
        let part = span.part();
        self.loads[number] = Some(Load { page, slot, block, span, is_retried: false });
        self.pages_read += 1;
        Some((number, part))
    }

    /// A page has been read, well or not.
    pub(crate) fn finish_load(
        &mut self,
        memory: &Memory,
        number: usize,
        result: Result<(), MediumError>,
    ) -> Option<Loaded> {
        let mut load = self.loads.get_mut(number).and_then(Option::take)?;
        let page = load.page;
        let is_sound =
            result.is_ok() && block_checksum(self.salt, memory.slice(&load.span)) == page.checksum;
        if is_sound {
            self.remember(page, memory.slice(&load.span));
        } else if !load.is_retried {
            load.is_retried = true;
            let again =
                Loaded::Again { slot: load.slot, block: load.block, into: load.span.part() };
            self.loads[number] = Some(load);
            return Some(again);
        } else {
            self.bad.insert(page.address, result.err());
        }
        self.free_spans.push(load.span);
        Some(Loaded::Done(load.slot))
    }

    /// A page that no segment holds: the tree and the segment table disagree.
    pub(crate) fn note_lost(&mut self, page: Entry) {
        self.bad.insert(page.address, None);
    }

    /// Forgets pages that could not be read, so that the next who needs one tries again.
    pub(crate) fn forget_bad(&mut self) {
        self.bad.clear();
    }

    pub(crate) fn frames(&self) -> (usize, usize) {
        (self.frames.used(), self.frames.count())
    }
}
