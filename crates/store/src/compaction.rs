//! Compaction: what lives of a slot is copied to an image, and the slot becomes free.
//!
//! Order, each step only after the one before (rules D2, D15):
//! 1. The live blocks of each segment in the victim slot are copied behind one another, then their
//!    directory.
//! 2. Flush: the images are durable.
//! 3. A record in the log says where they are now. From here on reads go to the images.
//! 4. The victim is pending free, until a checkpoint that began after step 3 is durable.
//!
//! Nothing that points at a block changes: its address is (segment, index), wherever the segment
//! lies.

use bowline_arena::{PAGE_BYTES, Span};

use crate::checkpoint::Step;
use crate::format::{
    Entries, ImageHead, ImageMove, MOVES_MAX, Owner, PageRef, Record, SegmentKind, block_checksum,
    image_head_blocks, read_batch, read_image_head, write_image_head,
};
use crate::io::Purpose;
use crate::segments::SlotState;
use crate::store::{Broken, Store};
use crate::tables::{Directory, LiveBits};
use crate::{Io, LineageId, Media, MediumError, SegmentId, SlotId};

/// Blocks read at a time.
pub(crate) const WINDOW_BLOCKS: u32 = 128;
/// Blocks copied in one step.
const BLOCKS_PER_STEP: u32 = 64;
/// A slot that is fuller than this is no victim, unless space is needed urgently.
const VICTIM_LIVE_PERCENT: u64 = 85;

/// Where compaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copy,
    Drain,
    Flushing,
    Record,
}

/// A victim being emptied.
struct Job {
    victim: SlotId,
    todo: Vec<SegmentId>,
    image: Option<Image>,
    moves: Vec<(ImageMove, Directory)>,
    /// Image slots that are full, to be closed when the moves are in the log.
    full: Vec<SlotId>,
    phase: Phase,
}

/// An image being made.
struct Image {
    segment: SegmentId,
    kind: SegmentKind,
    bits: LiveBits,
    /// The next index to be looked at.
    next: u32,
    end: u32,
    target: (SlotId, u32),
    owners: Vec<Owner>,
    /// Who owns the blocks that come next: of the batch, or of all if known.
    known: Vec<Owner>,
    /// For a log segment, the index of the next batch head; none once heads end.
    next_head: Option<u32>,
    head_read: bool,
    /// Head blocks still to be written.
    head: Vec<u8>,
    head_at: usize,
}

/// The window of the victim in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    Empty,
    Reading { block: u32, blocks: u32 },
    Holds { block: u32, blocks: u32 },
    Failed,
}

/// Compaction's state.
pub(crate) struct Compaction {
    pub is_urgent: bool,
    /// No slot is worth emptying until a checkpoint finds more dead blocks.
    is_exhausted: bool,
    buffer: Option<Span>,
    window: Window,
    job: Option<Job>,
    flushed: bool,
}

impl Compaction {
    pub(crate) fn new(work: Vec<Span>) -> Compaction {
        let buffer = work.into_iter().next();
        Compaction {
            is_urgent: false,
            is_exhausted: false,
            buffer,
            window: Window::Empty,
            job: None,
            flushed: false,
        }
    }

    /// A checkpoint is durable: it may have found dead blocks.
    pub(crate) fn checkpoint_finished(&mut self) {
        self.is_exhausted = false;
    }

    pub(crate) fn is_running(&self) -> bool {
        self.job.is_some()
    }
}

impl<M: Media> Store<M> {
    /// Free slots below which compaction works.
    fn slots_wanted(&self) -> usize {
        (self.segments.slot_count() as usize / 10).clamp(6, 64)
    }

    /// Makes one small step of compaction, if one is under way or needed.
    pub(crate) fn step_compaction(&mut self) -> bool {
        if self.compaction.job.is_none() {
            let free = self.segments.free_slots() + self.segments.pending_slots();
            if !self.compaction.is_urgent && free >= self.slots_wanted() {
                return false;
            }
            if self.segments.pending_slots() > 0
                && self.segments.free_slots() < self.slots_wanted() / 2
            {
                self.checkpoint_wanted = true;
            }
            if self.compaction.is_exhausted {
                self.checkpoint_wanted |= self.compaction.is_urgent && !self.map.active.is_empty();
                self.compaction.is_urgent = false;
                return false;
            }
            let Some(job) = self.choose_victim() else {
                self.compaction.is_exhausted = true;
                return true;
            };
            self.compaction.job = Some(job);
        }
        let Some(mut job) = self.compaction.job.take() else { return false };
        let step = self.step_job(&mut job);
        if step != Step::Done {
            self.compaction.job = Some(job);
        }
        self.write_runs();
        step != Step::Waits
    }

    /// The closed slot with the least alive in it.
    fn choose_victim(&mut self) -> Option<Job> {
        let blocks = self.segments.slot_blocks();
        let is_worth_it = |live: u32| {
            let is_thin = u64::from(live) * 100 <= u64::from(blocks) * VICTIM_LIVE_PERCENT;
            live + image_head_blocks(live) < blocks - 1 && (is_thin || self.compaction.is_urgent)
        };
        let oldest_needed = self.root.position.segment;
        let begun = self.checkpoints_begun;
        let mut best: Option<(u32, SlotId)> = None;
        let mut dead = Vec::new();
        for (slot, state) in self.segments.slots() {
            let SlotState::Used(kind) = state else { continue };
            if kind == SegmentKind::Blob {
                continue;
            }
            let live = self.segments.live_in(slot);
            if live == 0 {
                dead.push(slot);
                continue;
            }
            let is_old = kind != SegmentKind::Log
                || self.segments.residents(slot).iter().all(|id| *id < oldest_needed);
            if is_old && is_worth_it(live) && best.is_none_or(|(least, _)| live < least) {
                best = Some((live, slot));
            }
        }
        for slot in dead {
            for id in self.segments.residents(slot).clone() {
                self.segments.drop_segment(id, begun);
            }
        }
        let (_, victim) = best?;
        let todo = self.segments.residents(victim).iter().rev().copied().collect();
        self.counters.slots_compacted += 1;
        let (moves, full) = (Vec::new(), Vec::new());
        Some(Job { victim, todo, image: None, moves, full, phase: Phase::Copy })
    }

    fn step_job(&mut self, job: &mut Job) -> Step {
        match job.phase {
            Phase::Copy => self.step_copy(job),
            Phase::Drain => {
                self.streams.of(SegmentKind::Images).cut();
                if !self.streams.of(SegmentKind::Images).is_idle() {
                    return Step::Waits;
                }
                if self.options.broken.contains(&Broken::StaleImage) {
                    job.phase = Phase::Record;
                    return Step::Moved;
                }
                self.compaction.flushed = false;
                self.counters.media_flushes += 1;
                self.in_flight.submit(&mut self.media, Purpose::Compaction(1), Io::Flush);
                job.phase = Phase::Flushing;
                Step::Moved
            }
            Phase::Flushing if self.compaction.flushed => {
                job.phase = Phase::Record;
                Step::Moved
            }
            Phase::Flushing => Step::Waits,
            Phase::Record => self.commit_moves(job),
        }
    }

    fn commit_moves(&mut self, job: &mut Job) -> Step {
        let count = job.moves.len().min(MOVES_MAX);
        let moves = job.moves[..count].iter().map(|(to, _)| *to).collect();
        if count > 0 && self.put_record(&Record::Moved(moves)).is_err() {
            return Step::Waits;
        }
        for (to, held) in job.moves.drain(..count) {
            self.segments.moved(&to, held, self.checkpoints_begun);
        }
        if !job.moves.is_empty() {
            return Step::Moved;
        }
        for slot in job.full.drain(..) {
            self.segments.close_slot(slot, self.checkpoints_begun);
        }
        self.make_room();
        Step::Done
    }

    fn step_copy(&mut self, job: &mut Job) -> Step {
        if job.image.is_none() && !self.next_image(job) {
            job.phase = Phase::Drain;
            return Step::Moved;
        }
        let Some(mut image) = job.image.take() else { return Step::Moved };
        match self.reserve_target(job, &mut image) {
            Ok(()) => {}
            Err(step) => {
                job.image = Some(image);
                return step;
            }
        }
        let step = if image.head.is_empty() {
            self.copy_blocks(job, &mut image)
        } else {
            self.write_head(job, &mut image)
        };
        if step != Step::Done {
            job.image = Some(image);
            return step;
        }
        Step::Moved
    }

    /// Takes the next segment of the victim. False if there is none left.
    fn next_image(&mut self, job: &mut Job) -> bool {
        self.compaction.window = Window::Empty;
        while let Some(id) = job.todo.pop() {
            let Some(segment) = self.segments.get(id) else { continue };
            if segment.live.count() == 0 {
                self.segments.drop_segment(id, self.checkpoints_begun);
                continue;
            }
            // An image never holds block 0, the header, so only a whole segment is that long.
            let is_whole = segment.directory.len() == self.segments.slot_blocks();
            let bits = segment.live.clone();
            let end = bits.runs().last().map_or(0, |run| run.end);
            job.image = Some(Image {
                segment: id,
                kind: segment.kind,
                bits,
                next: 0,
                end,
                target: (SlotId(0), 0),
                owners: Vec::new(),
                known: Vec::new(),
                next_head: (is_whole && segment.kind == SegmentKind::Log).then_some(1),
                head_read: is_whole || segment.kind == SegmentKind::Map,
                head: Vec::new(),
                head_at: 0,
            });
            return true;
        }
        false
    }

    /// Makes sure that the image has a place where it fits whole, and that a block can be put.
    fn reserve_target(&mut self, job: &mut Job, image: &mut Image) -> Result<(), Step> {
        let slot_blocks = self.segments.slot_blocks();
        let stream = self.streams.of(SegmentKind::Images);
        let need = image.bits.count() + image_head_blocks(image.bits.count());
        let begins = image.owners.is_empty() && image.head.is_empty();
        if begins && stream.blocks_left(slot_blocks) < need {
            stream.cut();
            if !stream.has_buffer() {
                return Err(Step::Waits);
            }
            let old = stream.target.map(|target| target.slot);
            let Some(slot) = self.segments.take_slot(SegmentKind::Images) else {
                self.checkpoint_wanted |= self.segments.pending_slots() > 0;
                return Err(Step::Waits);
            };
            job.full.extend(old);
            let segment = self.segments.take_segment_id();
            let identity = self.log.identity;
            let memory = self.memory.clone();
            self.streams.of(SegmentKind::Images).begin(&memory, &identity, segment, slot);
        }
        let stream = self.streams.of(SegmentKind::Images);
        if begins && let Some(target) = stream.target {
            image.target = (target.slot, target.next_block);
        }
        if stream.has_buffer() { Ok(()) } else { Err(Step::Waits) }
    }

    /// Copies live blocks as far as the window and the buffers go.
    fn copy_blocks(&mut self, job: &mut Job, image: &mut Image) -> Step {
        let Some(place) = self.segments.get(image.segment) else { return Step::Done };
        let base = place.block;
        if !image.head_read {
            return self.read_owners(job, image, base);
        }
        for _ in 0..BLOCKS_PER_STEP {
            let Some(index) = self.next_wanted(image) else {
                self.finish_image(image);
                return Step::Moved;
            };
            let position =
                self.segments.get(image.segment).and_then(|s| s.directory.position(index));
            let Some(position) = position else {
                image.next = index + 1;
                continue;
            };
            let Some(bytes) = self.window_block(job.victim, base + position) else {
                return self.fill_window(job.victim, base + position);
            };
            if image.next_head == Some(index) {
                self.parse_head(image, index, &bytes);
                continue;
            }
            if !self.streams.of(SegmentKind::Images).has_buffer() {
                return Step::Waits;
            }
            let owner = self.owner_of(image, index, &bytes);
            image.owners.push(owner);
            image.next = index + 1;
            self.streams.of(SegmentKind::Images).put(&self.memory, &bytes);
        }
        Step::Moved
    }

    /// The index that has to be read next: the next live block, or a batch head before it.
    fn next_wanted(&self, image: &Image) -> Option<u32> {
        let mut index = image.next;
        while index < image.end && !image.bits.get(index) {
            index += 1;
        }
        if index >= image.end {
            return None;
        }
        Some(image.next_head.map_or(index, |head| head.min(index)))
    }

    /// Learns who owns the blocks of a batch.
    fn parse_head(&mut self, image: &mut Image, index: u32, block: &[u8]) {
        let head = read_batch(self.header.salt, block);
        let Some(head) = head.filter(|head| head.segment == image.segment) else {
            image.next_head = None;
            return;
        };
        image.known.clear();
        for found in Entries::new(block, head.entries) {
            if !found.entry.kind.has_data() {
                continue;
            }
            for at in 0..found.entry.blocks as u32 {
                image.known.push(Owner {
                    index: (index + 1 + found.data_block + at) as u16,
                    checksum: found.checksum(at),
                    lineage: found.entry.lineage,
                    level: 0,
                    lba: found.entry.lba.0 + u64::from(at),
                });
            }
        }
        image.next_head = Some(index + 1 + head.data_blocks);
    }

    fn owner_of(&self, image: &Image, index: u32, block: &[u8]) -> Owner {
        let checksum = block_checksum(self.header.salt, block);
        let unknown =
            Owner { index: index as u16, checksum, lineage: LineageId(u32::MAX), level: 0, lba: 0 };
        if image.kind == SegmentKind::Map
            && let Some(head) = PageRef(block).head()
        {
            return Owner {
                lineage: head.lineage,
                level: 1 + head.level,
                lba: head.index,
                ..unknown
            };
        }
        let at = image.known.binary_search_by_key(&(index as u16), |owner| owner.index);
        at.ok().and_then(|at| image.known.get(at)).copied().unwrap_or(unknown)
    }

    /// An image of an image: the owners are in the head behind it.
    fn read_owners(&mut self, job: &Job, image: &mut Image, base: u32) -> Step {
        let Some(segment) = self.segments.get(image.segment) else { return Step::Done };
        let held = segment.directory.len();
        let (block, blocks) = (base + held, image_head_blocks(held));
        match self.compaction.window {
            Window::Holds { block: at, blocks: have } if at == block && have >= blocks => {
                if let Some(buffer) = &self.compaction.buffer {
                    let bytes = &self.memory.slice(buffer)[..(blocks * PAGE_BYTES) as usize];
                    let head = read_image_head(self.header.salt, bytes);
                    image.known = head.map(|head| head.owners).unwrap_or_default();
                }
                image.head_read = true;
                image.next_head = None;
                Step::Moved
            }
            Window::Failed => {
                self.compaction.window = Window::Empty;
                image.head_read = true;
                image.next_head = None;
                Step::Moved
            }
            _ => self.read_window(job.victim, block, blocks),
        }
    }

    /// A block of the window, copied out.
    fn window_block(&self, _slot: SlotId, block: u32) -> Option<Box<[u8]>> {
        let Window::Holds { block: first, blocks } = self.compaction.window else { return None };
        let at = block.checked_sub(first).filter(|at| *at < blocks)?;
        let buffer = self.compaction.buffer.as_ref()?;
        let start = (at * PAGE_BYTES) as usize;
        Some(self.memory.slice(buffer)[start..start + PAGE_BYTES as usize].into())
    }

    fn fill_window(&mut self, slot: SlotId, block: u32) -> Step {
        let blocks = WINDOW_BLOCKS.min(self.segments.slot_blocks() - block);
        match self.compaction.window {
            // What cannot be read cannot be moved: the victim stays, and so does everything in it.
            Window::Failed => {
                self.stop_writing("compaction could not read a slot; run `bowline pool scrub`");
                Step::Done
            }
            _ => self.read_window(slot, block, blocks),
        }
    }

    fn read_window(&mut self, slot: SlotId, block: u32, blocks: u32) -> Step {
        if matches!(self.compaction.window, Window::Reading { .. }) {
            return Step::Waits;
        }
        let Some(buffer) = &self.compaction.buffer else { return Step::Waits };
        let into = buffer.part().sub(0, blocks * PAGE_BYTES);
        self.compaction.window = Window::Reading { block, blocks };
        let at = self.header.block_at(slot, block);
        self.in_flight.submit(&mut self.media, Purpose::Compaction(0), Io::Read { at, into });
        Step::Waits
    }

    fn finish_image(&mut self, image: &mut Image) {
        let head = ImageHead { segment: image.segment, owners: std::mem::take(&mut image.owners) };
        let blocks = image_head_blocks(head.owners.len() as u32);
        image.head = vec![0; (blocks * PAGE_BYTES) as usize];
        write_image_head(self.header.salt, &head, &mut image.head);
        image.owners = head.owners;
    }

    fn write_head(&mut self, job: &mut Job, image: &mut Image) -> Step {
        while image.head_at < image.head.len() {
            if !self.streams.of(SegmentKind::Images).has_buffer() {
                return Step::Waits;
            }
            let block = &image.head[image.head_at..image.head_at + PAGE_BYTES as usize];
            self.streams.of(SegmentKind::Images).put(&self.memory, block);
            image.head_at += PAGE_BYTES as usize;
        }
        let mut held = LiveBits::new(self.segments.slot_blocks());
        image.owners.iter().for_each(|owner| {
            held.set(u32::from(owner.index));
        });
        let (slot, block) = image.target;
        let data_blocks = held.count();
        let to = ImageMove { segment: image.segment, slot, block, data_blocks };
        job.moves.push((to, Directory::of(&held)));
        Step::Done
    }

    pub(crate) fn compaction_io_done(&mut self, which: u32, result: Result<(), MediumError>) {
        if which == 1 {
            match result {
                Ok(()) => self.compaction.flushed = true,
                Err(error) => self.stop_writing(&format!("a flush of images failed: {error}")),
            }
            return;
        }
        self.compaction.window = match (result, self.compaction.window) {
            (Ok(()), Window::Reading { block, blocks }) => Window::Holds { block, blocks },
            _ => Window::Failed,
        };
    }
}
