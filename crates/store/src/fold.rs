//! Folding: the frozen changes become new pages of the map.
//!
//! Invariants:
//! - The old tree is only read. New pages go to new places; the pages they replace are noted as
//!   dying, and die when the checkpoint is durable.
//! - A page above a changed one is held in memory until everything below it has its new address.
//! - The live bit of a block goes when the entry that named it is replaced here: whoever recovers
//!   from an older checkpoint replays the write that replaced it.
//! - `data_blocks` of a lineage is how many entries of its leaves name data once the fold is done:
//!   it goes by what each leaf was and is, and by what is walked of freed subtrees. Where a page
//!   of these is damaged, it is not known any more.
//!
//! Large ranges come first: a range replaces whole entries as high in the tree as it covers them,
//! and what hung below is walked and freed. Then each leaf with changes is made anew; ranges that
//! cover a leaf in part are applied there.

mod steps;

use std::collections::{BTreeMap, BTreeSet};

use crate::catalogue::Catalogue;
use crate::checkpoint::{Dying, Roots};
use crate::format::span_of_level;
use crate::format::{FANOUT, LineageRecord, PageHead, PageMut, PageRef};
use crate::map::{Generation, Map};
use crate::segments::Segments;
use crate::tables::{Entry, LeafCursor, Range, State};
use crate::{BLOCK_BYTES, Lba, LineageId};

/// Leaves worked on at a time: their pages are read side by side.
const LEAVES_AT_A_TIME: usize = 32;
/// Leaves, or pages of a freed subtree, dealt with in one step.
const PER_STEP: usize = 16;

type PageBytes = Box<[u8]>;
/// A page above the leaves: level, lineage, index in the level. The lowest level sorts first.
type PageKey = (u8, LineageId, u64);

/// A fold under way.
pub(crate) struct Fold {
    /// Roots as they will be.
    pub lineages: Roots,
    pub dying: Dying,
    /// Nodes whose pages a repair gives up: lineage, level, index.
    give_up: Vec<GivenUp>,
    /// Pages made: garbage, should the checkpoint be given up.
    pub made: Vec<Entry>,
    /// Pages above the leaves that change.
    inner: BTreeMap<PageKey, PageBytes>,
    next_range: usize,
    /// Pages of freed subtrees still to be walked, with their level and whose they are.
    walk: Vec<(Entry, u8, LineageId)>,
    cursor: LeafCursor,
    /// Leaves at the ends of ranges.
    edges: BTreeSet<(LineageId, u64)>,
    /// Leaves being worked on.
    jobs: Vec<(LineageId, u64)>,
    cursor_done: bool,
}

/// A node of the map whose page is damaged, and to be given up: lineage, level, index.
pub(crate) type GivenUp = (LineageId, u8, u64);

/// Something that is not to be had yet.
enum Missing {
    Page(Entry),
    Buffer,
    Damaged(Entry),
}

/// Levels of pages a disk of so many blocks needs.
fn height_for(blocks: u64) -> u8 {
    (1..).find(|level| span_of_level(*level) >= blocks).unwrap_or(7)
}

impl Fold {
    pub(crate) fn new(lineages: Roots, catalogue: &Catalogue, give_up: &[GivenUp]) -> Fold {
        let mut fold = Fold {
            lineages,
            dying: Dying::new(),
            give_up: give_up.to_vec(),
            made: Vec::new(),
            inner: BTreeMap::new(),
            next_range: 0,
            walk: Vec::new(),
            cursor: LeafCursor::default(),
            edges: BTreeSet::new(),
            jobs: Vec::new(),
            cursor_done: false,
        };
        for disk in catalogue.disks.values() {
            fold.raise(disk.lineage, height_for(disk.bytes / BLOCK_BYTES));
        }
        fold
    }

    /// Makes the tree of a lineage at least `height` levels high.
    fn raise(&mut self, lineage: LineageId, height: u8) {
        let Some(record) = self.lineages.get_mut(&lineage) else { return };
        while record.height < height {
            let level = record.height;
            record.height += 1;
            // What the old tree says holds for the old blocks only.
            if record.root != Entry::HOLE
                || level > 0 && self.inner.contains_key(&(level - 1, lineage, 0))
            {
                let mut page = new_page(PageHead { level, lineage, index: 0 }, Entry::HOLE);
                PageMut(&mut page).set(0, record.root);
                self.inner.insert((level, lineage, 0), page);
            }
        }
    }

    /// All is folded. Lineages that no disk of the catalogue has are not written to the blob.
    pub(crate) fn end(&mut self, catalogue: &Catalogue) {
        let alive: BTreeSet<_> = catalogue.disks.values().map(|disk| disk.lineage).collect();
        self.lineages.retain(|id, _| alive.contains(id));
        // Without a page there is no data, whether it was counted before or not.
        for record in self.lineages.values_mut().filter(|record| !record.root.has_address()) {
            record.data_blocks = Some(0);
        }
    }

    /// So many entries of a lineage name data that did not, and the other way round.
    fn count_data(&mut self, lineage: LineageId, more: u64, less: u64) {
        if let Some(record) = self.lineages.get_mut(&lineage) {
            // A count that does not go together with its pages is no count.
            record.data_blocks =
                record.data_blocks.and_then(|count| count.checked_add(more)?.checked_sub(less));
        }
    }

    /// What pages of a lineage named is not known.
    fn lose_count(&mut self, lineage: LineageId) {
        if let Some(record) = self.lineages.get_mut(&lineage) {
            record.data_blocks = None;
        }
    }

    fn dies(&mut self, page: Entry) {
        self.dying.entry(page.segment()).or_default().push(page.index());
    }

    /// The entry above a node: node (level, index) is what the entry covers, a leaf page being
    /// level 1, a root of `height` levels level `height`.
    fn entry_of(
        &mut self,
        map: &mut Map,
        record: &LineageRecord,
        level: u8,
        index: u64,
    ) -> Result<Entry, Missing> {
        let mut at = record.height;
        let mut entry = record.root;
        while at > level {
            // The page that hangs below `entry` has level `at - 1`.
            let page_index = index / FANOUT.pow(u32::from(at - level));
            let slot = index / FANOUT.pow(u32::from(at - 1 - level)) % FANOUT;
            let key = (at - 1, record.lineage, page_index);
            if let Some(page) = self.inner.get(&key) {
                entry = PageRef(page).entry(slot as usize);
            } else if entry.state() == Some(State::Page) {
                let page = fetch(map, entry)?;
                entry = PageRef(page).entry(slot as usize);
            } else {
                return Ok(entry);
            }
            at -= 1;
        }
        Ok(entry)
    }

    /// Makes sure that the page holding the entry of node (level, index), and all above it, can be
    /// changed.
    fn open_path(
        &mut self,
        map: &mut Map,
        record: &LineageRecord,
        level: u8,
        index: u64,
    ) -> Result<(), Missing> {
        let mut at = record.height;
        let mut entry = record.root;
        while at > level {
            let page_index = index / FANOUT.pow(u32::from(at - level));
            let slot = index / FANOUT.pow(u32::from(at - 1 - level)) % FANOUT;
            let key = (at - 1, record.lineage, page_index);
            if !self.inner.contains_key(&key) {
                let page = if entry.state() == Some(State::Page) {
                    let page = fetch(map, entry)?.to_vec().into_boxed_slice();
                    self.dies(entry);
                    page
                } else {
                    let (level, lineage) = (at - 1, record.lineage);
                    new_page(PageHead { level, lineage, index: page_index }, entry)
                };
                self.inner.insert(key, page);
            }
            if let Some(page) = self.inner.get(&key) {
                entry = PageRef(page).entry(slot as usize);
            }
            at -= 1;
        }
        Ok(())
    }

    /// Sets the entry of node (level, index), whose path is open.
    fn set_entry(&mut self, lineage: LineageId, level: u8, index: u64, entry: Entry) {
        let key = (level, lineage, index / FANOUT);
        match self.inner.get_mut(&key) {
            Some(page) => PageMut(page).set((index % FANOUT) as usize, entry),
            None => {
                if let Some(record) = self.lineages.get_mut(&lineage) {
                    assert_eq!(record.height, level, "the path to the node is open");
                    record.root = entry;
                }
            }
        }
    }

    /// Everything a node covers becomes one state; what hung below is to be walked.
    fn replace_node(
        &mut self,
        map: &mut Map,
        record: &LineageRecord,
        level: u8,
        index: u64,
        state: Entry,
    ) -> Result<(), Missing> {
        let old = self.entry_of(map, record, level, index)?;
        self.open_path(map, record, level, index)?;
        self.set_entry(record.lineage, level, index, state);
        // Changed pages below the node are those of other ranges of this fold; their own old
        // versions are dying already, and what they name has to be walked from them.
        let mut below: Vec<PageKey> = Vec::new();
        for at in 0..level {
            // Asked for by level: a large disk has thousands of changed pages, and a range may
            // replace hundreds of nodes in one step.
            let pages = FANOUT.pow(u32::from(level - 1 - at));
            let first = index * pages;
            let keys = (at, record.lineage, first)..(at, record.lineage, first + pages);
            below.extend(self.inner.range(keys).map(|(key, _)| *key));
        }
        let had_changed_pages = !below.is_empty();
        for key in below {
            if let Some(page) = self.inner.remove(&key) {
                let children = (0..FANOUT as usize).map(|slot| (slot, PageRef(&page).entry(slot)));
                for (slot, child) in children {
                    let child_index = key.2 * FANOUT + slot as u64;
                    let is_changed =
                        key.0 > 0 && self.inner.contains_key(&(key.0 - 1, key.1, child_index));
                    if child.state() == Some(State::Page) && !is_changed {
                        self.walk.push((child, key.0, record.lineage));
                    }
                }
            }
        }
        if old.state() == Some(State::Page) && !had_changed_pages {
            self.walk.push((old, level, record.lineage));
        }
        Ok(())
    }

    /// Applies a large range: whole nodes here, its ends later with the leaves.
    fn apply_range(&mut self, map: &mut Map, range: &Range) -> Result<(), Missing> {
        let Some(record) = self.lineages.get(&range.lineage).copied() else { return Ok(()) };
        let Some(state) = Entry::of_state(range.state) else { return Ok(()) };
        let end = range.end.0.min(span_of_level(record.height));
        let mut at = range.start.0;
        while at < end {
            let mut level = 0;
            while level < record.height
                && at.is_multiple_of(span_of_level(level + 1))
                && at + span_of_level(level + 1) <= end
            {
                level += 1;
            }
            if level == 0 {
                self.edges.insert((range.lineage, at / FANOUT));
                at = (at / FANOUT + 1) * FANOUT;
            } else {
                let record = self.lineages.get(&range.lineage).copied().unwrap_or(record);
                self.replace_node(map, &record, level, at / span_of_level(level), state)?;
                at += span_of_level(level);
            }
        }
        Ok(())
    }

    /// What a damaged page named is lost from now on. What lies below leaks: nobody can tell what
    /// it was.
    fn give_up_node(&mut self, map: &mut Map, node: GivenUp) -> Result<(), Missing> {
        let (lineage, level, index) = node;
        let Some(record) = self.lineages.get(&lineage).copied() else { return Ok(()) };
        // A tree that has grown since holds the node where it was before.
        let old = self.entry_of(map, &record, level, index)?;
        self.open_path(map, &record, level, index)?;
        self.set_entry(lineage, level, index, Entry::LOST);
        if old.state() == Some(State::Page) {
            self.dies(old);
            self.lose_count(lineage);
        }
        Ok(())
    }

    /// Walks a page of a freed subtree. Returns how many blocks of data it named.
    fn free_page(
        &mut self,
        map: &mut Map,
        segments: &mut Segments,
        (page, level, lineage): (Entry, u8, LineageId),
    ) -> Result<u64, Missing> {
        let bytes = fetch(map, page)?;
        let mut gone = 0;
        for slot in 0..FANOUT as usize {
            let child = PageRef(bytes).entry(slot);
            match child.state() {
                Some(State::Data) => {
                    segments.clear_live(child);
                    gone += 1;
                }
                Some(State::Page) if level > 1 => self.walk.push((child, level - 1, lineage)),
                _ => {}
            }
        }
        self.dies(page);
        Ok(gone)
    }

    /// The next leaf with changes.
    fn next_leaf(&mut self, frozen: &Generation) -> Option<(LineageId, u64)> {
        if !self.cursor_done {
            if let Some(leaf) = frozen.deltas.next_leaf(&mut self.cursor) {
                self.edges.remove(&leaf);
                return Some(leaf);
            }
            self.cursor_done = true;
        }
        self.edges.pop_first()
    }
}

/// The bytes of a page, if they are in memory.
fn fetch(map: &mut Map, page: Entry) -> Result<&[u8], Missing> {
    if map.is_bad(page) {
        return Err(Missing::Damaged(page));
    }
    map.page(page).ok_or(Missing::Page(page))
}

fn new_page(head: PageHead, fill: Entry) -> PageBytes {
    let mut page = vec![0; BLOCK_BYTES as usize].into_boxed_slice();
    PageMut(&mut page).format(head, fill);
    page
}

/// The one state all entries of a page have, if they have one.
fn uniform(page: &[u8]) -> Option<Entry> {
    let first = PageRef(page).entry(0);
    let same = (1..FANOUT as usize).all(|slot| PageRef(page).entry(slot) == first);
    (same && !first.has_address()).then_some(first)
}

/// Applies the frozen changes of a leaf to its page. Returns how many times an entry came to name
/// data, and how many times one ceased to.
fn change_leaf(
    frozen: &Generation,
    segments: &mut Segments,
    lineage: LineageId,
    leaf: u64,
    page: &mut [u8],
) -> (u64, u64) {
    let first = leaf * FANOUT;
    let (mut more, mut less) = (0, 0);
    let mut set = |page: &mut [u8], lba: Lba, new: Entry| {
        let slot = (lba.0 - first) as usize;
        let old = PageRef(page).entry(slot);
        if old.has_address() && old != new {
            segments.clear_live(old);
        }
        less += u64::from(old.has_address());
        more += u64::from(new.has_address());
        PageMut(page).set(slot, new);
    };
    let ranges = &frozen.ranges;
    for range in ranges.overlapping(lineage, Lba(first), Lba(first + FANOUT)) {
        if let Some(state) = Entry::of_state(range.state) {
            (range.start.0..range.end.0).for_each(|lba| set(page, Lba(lba), state));
        }
    }
    let mut dead = Vec::new();
    for delta in frozen.deltas.leaf(lineage, leaf) {
        let range = ranges.get(lineage, delta.lba);
        if range.is_some_and(|range| range.ordinal > delta.ordinal) {
            dead.push(delta.entry);
        } else {
            set(page, delta.lba, delta.entry);
        }
    }
    for entry in dead.into_iter().filter(|entry| entry.has_address()) {
        segments.clear_live(entry);
    }
    (more, less)
}
