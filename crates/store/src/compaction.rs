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
//!
//! A live block that cannot be read, or is not what was written, stays where it is: its slot is
//! left alone until that block is dead, and other slots are emptied meanwhile. Copied as it is now,
//! it might be lost for good although the next read would have been right.

mod unmovable;
mod victim;
mod windows;

use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Span};

use crate::checkpoint::Step;
use crate::format::{
    Entries, ImageHead, ImageMove, MOVES_MAX, Owner, PageRef, Record, SegmentKind, block_checksum,
    image_head_blocks, read_batch, read_image_head, write_image_head,
};
use crate::io::Purpose;
use crate::reserve::MARGIN_OF_IMAGES;
use crate::segments::Piece;
use crate::store::{Broken, Store};
use crate::tables::{Directory, LiveBits};
use crate::{Io, LineageId, Media, MediumError, SegmentId, SlotId};

use unmovable::Unmovable;
use windows::{Known, Pace, Windows};
pub(crate) use windows::{WINDOW_BLOCKS, WINDOWS_MAX};

/// Blocks copied in one step.
const BLOCKS_PER_STEP: u32 = 64;

/// Where compaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copy,
    Drain,
    Flushing,
    Record,
}

/// Victims being emptied: as many as fill a slot with images, so that they share its flush.
struct Job {
    victim: SlotId,
    /// Those before it, whose moves are not in the log yet.
    emptied: Vec<SlotId>,
    todo: Vec<(SegmentId, u32)>,
    source: Option<Source>,
    moves: Vec<(ImageMove, Directory)>,
    /// Image slots that are full, to be closed when the moves are in the log.
    full: Vec<SlotId>,
    phase: Phase,
}

/// A piece being copied.
struct Source {
    segment: SegmentId,
    kind: SegmentKind,
    piece: Piece,
    /// What was alive when copying began.
    bits: LiveBits,
    /// The next index to be looked at.
    next: u32,
    /// Who owns the blocks that come next: of a batch, or of all.
    known: Vec<Owner>,
    /// For a segment of the log that is whole, the index of the next batch head.
    next_head: Option<u32>,
    /// Whether the owners have yet to be read from the head of the image it is.
    is_unread: bool,
    image: Option<Image>,
}

impl Source {
    /// The block of the slot behind the last block of the piece.
    fn data_end(&self) -> u32 {
        self.piece.block + self.piece.directory.len()
    }

    /// What cannot be read is the head of a batch: who owns its blocks stays unknown. False if it
    /// is a block that lives.
    fn forget_head(&mut self, index: u32) -> bool {
        let is_head = self.next_head == Some(index);
        if is_head {
            self.next_head = None;
            self.known.clear();
        }
        is_head
    }

    /// Learns who owns the blocks of a batch.
    fn parse_head(&mut self, salt: u64, index: u32, block: &[u8]) {
        let head = read_batch(salt, block);
        let Some(head) = head.filter(|head| head.segment == self.segment) else {
            self.next_head = None;
            return;
        };
        self.known.clear();
        // Behind an entry that is not known the owners are not known either.
        for found in Entries::new(block, head.entries).map_while(Result::ok) {
            if !found.entry.kind.has_data() {
                continue;
            }
            for at in 0..found.entry.blocks as u32 {
                self.known.push(Owner {
                    index: (index + 1 + found.data_block + at) as u16,
                    checksum: found.checksum(at),
                    lineage: found.entry.lineage,
                    level: 0,
                    lba: found.entry.lba.0 + u64::from(at),
                });
            }
        }
        self.next_head = Some(index + 1 + head.data_blocks);
    }

    fn owner_of(&self, salt: u64, index: u32, block: &[u8]) -> Owner {
        let checksum = block_checksum(salt, block);
        let lineage = LineageId(u32::MAX);
        let unknown = Owner { index: index as u16, checksum, lineage, level: 0, lba: 0 };
        if self.kind == SegmentKind::Map
            && let Some(head) = PageRef(block).head()
        {
            let (lineage, level, lba) = (head.lineage, 1 + head.level, head.index);
            return Owner { lineage, level, lba, ..unknown };
        }
        let at = self.known.binary_search_by_key(&(index as u16), |owner| owner.index);
        at.ok().and_then(|at| self.known.get(at)).copied().unwrap_or(unknown)
    }
}

/// An image being made.
struct Image {
    target: (SlotId, u32),
    first: u32,
    end: u32,
    owners: Vec<Owner>,
    /// Head blocks, once all data is there, and how much of them is written.
    head: Vec<u8>,
    head_at: usize,
}

/// Compaction's state.
pub(crate) struct Compaction {
    /// Free slots a refused write waits for; 0 if none does.
    pub slots_needed: usize,
    /// Nothing is to be won before the next checkpoint.
    is_exhausted: bool,
    /// Slots that are left alone.
    unmovable: Unmovable,
    /// The index that cannot be moved.
    bad: Option<u32>,
    windows: Windows,
    job: Option<Job>,
    flushed: bool,
}

impl Compaction {
    pub(crate) fn new(memory: Rc<Memory>, work: Vec<Span>) -> Compaction {
        Compaction {
            slots_needed: 0,
            is_exhausted: false,
            unmovable: Unmovable::default(),
            bad: None,
            windows: Windows::new(memory, work),
            job: None,
            flushed: false,
        }
    }

    /// A checkpoint is durable: more blocks are known to be dead, and more slots old enough.
    pub(crate) fn checkpoint_finished(&mut self) {
        self.is_exhausted = false;
    }

    /// Whether compaction has nothing to win as things are.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// Forgets the victim under way: its images were never named anywhere. Returns the slots that
    /// only they had filled.
    pub(crate) fn give_up(&mut self) -> Vec<SlotId> {
        self.job.take().map(|job| job.full).unwrap_or_default()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.job.is_some()
    }
}

impl<M: Media> Store<M> {
    /// Makes one small step of compaction, if one is under way or needed.
    pub(crate) fn step_compaction(&mut self) -> bool {
        // Those that only lack their space come sooner than any that have to be emptied.
        let free = self.segments.free_slots() + self.segments.bare_available();
        let pending = self.segments.pending_slots();
        if free >= self.compaction.slots_needed {
            self.compaction.slots_needed = 0;
        }
        let needed = self.compaction.slots_needed;
        self.checkpoint_wanted |= self.is_checkpoint_worth_it() || (pending > 0 && free < needed);
        if self.compaction.job.is_none() {
            if free + pending >= needed.max(self.slots_wanted()) {
                return false;
            }
            if self.compaction.is_exhausted() {
                self.checkpoint_wanted |= needed > 0 && self.would_checkpoint_help();
                return false;
            }
            let Some((victim, _)) = self.choose_victim(&[]) else {
                // The next checkpoint makes more slots old enough, whatever dies. Who waits for
                // room learns now if there is none to come.
                self.compaction.is_exhausted = true;
                self.make_room();
                return true;
            };
            self.compaction.job = Some(self.job_for(victim));
        }
        let Some(mut job) = self.compaction.job.take() else { return false };
        let step = self.step_job(&mut job);
        if step != Step::Done {
            self.compaction.job = Some(job);
        }
        self.write_runs();
        step != Step::Waits
    }

    fn step_job(&mut self, job: &mut Job) -> Step {
        match job.phase {
            Phase::Copy => self.step_copy(job),
            Phase::Drain => {
                self.streams.of(SegmentKind::Images).cut();
                if self.options.broken.contains(&Broken::StaleImage) {
                    job.phase = Phase::Record;
                    return Step::Moved;
                }
                if !self.streams.of(SegmentKind::Images).is_idle() {
                    return Step::Waits;
                }
                if !self.submit_flush(Purpose::Compaction) {
                    return Step::Waits;
                }
                self.compaction.flushed = false;
                job.phase = Phase::Flushing;
                Step::Moved
            }
            Phase::Flushing if self.compaction.flushed => {
                self.streams.images.flushed();
                job.phase = Phase::Record;
                Step::Moved
            }
            Phase::Flushing => Step::Waits,
            Phase::Record => self.commit_moves(job),
        }
    }

    fn commit_moves(&mut self, job: &mut Job) -> Step {
        let count = job.moves.len().min(MOVES_MAX);
        let moves = Record::Moved(job.moves[..count].iter().map(|(to, _)| *to).collect());
        if count > 0 {
            let Ok(seq) = self.put_record(&moves) else { return Step::Waits };
            let mut directories = Vec::new();
            job.moves[..count].iter().for_each(|(_, held)| held.encode(&mut directories));
            self.note_record(seq, &moves, directories);
        }
        for (to, held) in job.moves.drain(..count) {
            self.scrub.moved(job.victim, to.slot, held.len());
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
        if job.source.is_none() && !self.next_source(job) {
            if !self.next_victim(job) {
                job.phase = Phase::Drain;
            }
            return Step::Moved;
        }
        let Some(mut source) = job.source.take() else { return Step::Moved };
        let step = self.step_source(job, &mut source);
        if step == Step::Done {
            return Step::Moved;
        }
        job.source = Some(source);
        step
    }

    fn step_source(&mut self, job: &mut Job, source: &mut Source) -> Step {
        if source.is_unread {
            return self.read_owners(job.victim, source);
        }
        let Some(image) = source.image.take() else {
            return match self.begin_image(job, source) {
                Ok(None) => Step::Done,
                Ok(image) => {
                    source.image = image;
                    Step::Moved
                }
                Err(step) => step,
            };
        };
        let mut image = image;
        let step = if image.head.is_empty() {
            self.copy_blocks(job.victim, source, &mut image)
        } else {
            self.write_head(job, source, &mut image)
        };
        if let Some(index) = self.compaction.bad.take() {
            return self.leave_alone(job, source.segment, index);
        }
        if step == Step::Done {
            return Step::Moved;
        }
        source.image = Some(image);
        step
    }

    /// Takes the next piece of the victim. False if there is none left.
    fn next_source(&mut self, job: &mut Job) -> bool {
        while let Some((id, first)) = job.todo.pop() {
            let Some(segment) = self.segments.get(id) else { continue };
            let Some(piece) = segment.piece(first).filter(|piece| piece.slot == job.victim) else {
                continue;
            };
            // An image never holds block 0, the header, so only a whole segment is that long.
            let is_whole = piece.directory.len() == self.segments.slot_blocks();
            let is_log = segment.kind == SegmentKind::Log;
            job.source = Some(Source {
                segment: id,
                kind: segment.kind,
                piece: piece.clone(),
                bits: segment.live.clone(),
                next: piece.first,
                known: Vec::new(),
                next_head: (is_whole && is_log).then_some(1),
                is_unread: is_log && !is_whole,
                image: None,
            });
            return true;
        }
        self.segments.drop_dead_pieces(job.victim, self.checkpoints_begun);
        false
    }

    /// Begins an image of as much of the piece as fits the slot images go to. None if nothing of
    /// the piece is left.
    fn begin_image(&mut self, job: &mut Job, source: &Source) -> Result<Option<Image>, Step> {
        let mut left = (source.next..source.piece.end).filter(|index| source.bits.get(*index));
        if left.next().is_none() {
            return Ok(None);
        }
        let slot_blocks = self.segments.slot_blocks();
        let stream = self.streams.of(SegmentKind::Images);
        if stream.blocks_left(slot_blocks) < 2 {
            self.next_image_slot(job)?;
        }
        let stream = self.streams.of(SegmentKind::Images);
        let Some(target) = stream.target else { return Err(Step::Waits) };
        let room = slot_blocks - target.next_block;
        let (mut count, mut end) = (1, source.piece.end);
        for index in left {
            if count + 1 + image_head_blocks(count + 1) > room {
                end = index;
                break;
            }
            count += 1;
        }
        Ok(Some(Image {
            target: (target.slot, target.next_block),
            first: source.next,
            end,
            owners: Vec::new(),
            head: Vec::new(),
            head_at: 0,
        }))
    }

    fn next_image_slot(&mut self, job: &mut Job) -> Result<(), Step> {
        let stream = self.streams.of(SegmentKind::Images);
        stream.cut();
        if !stream.has_buffer() {
            return Err(Step::Waits);
        }
        let old = stream.target.map(|target| target.slot);
        let Some(slot) = self.take_image_slot() else { return Err(Step::Waits) };
        job.full.extend(old);
        let segment = self.segments.take_segment_id();
        let identity = self.log.identity;
        let memory = self.memory.clone();
        self.streams.of(SegmentKind::Images).begin(&memory, &identity, segment, slot);
        Ok(())
    }

    /// A slot for images, if the margin allows it. If not, a checkpoint may bring slots back.
    fn take_image_slot(&mut self) -> Option<SlotId> {
        let may_help = self.segments.pending_slots() > 0 || self.would_checkpoint_help();
        // Should nothing else be left to do, the job comes first: it wins more than it takes.
        let is_last_hope = !may_help && self.checkpoint.is_none();
        if is_last_hope || self.has_margin(1 + MARGIN_OF_IMAGES) {
            return self.segments.take_slot(SegmentKind::Images);
        }
        self.checkpoint_wanted |= may_help;
        None
    }

    /// Copies live blocks as far as the window and the buffers go.
    fn copy_blocks(&mut self, victim: SlotId, source: &mut Source, image: &mut Image) -> Step {
        for _ in 0..BLOCKS_PER_STEP {
            let live = (source.next..image.end).find(|index| source.bits.get(*index));
            let Some(live) = live else {
                source.next = image.end;
                self.finish_image(source, image);
                return Step::Moved;
            };
            let index = source.next_head.map_or(live, |head| head.min(live));
            let Some(position) = source.piece.directory.position(index) else {
                source.next = index + 1;
                continue;
            };
            let block = source.piece.block + position;
            let (window, at) = match self.compaction.windows.known(block, 1) {
                Known::At(window, at) => (window, at),
                Known::NotYet => return self.read_windows(victim, block, 1, source.data_end()),
                Known::Unreadable if source.forget_head(index) => continue,
                Known::Unreadable => {
                    self.compaction.bad = Some(index);
                    return Step::Moved;
                }
            };
            let bytes = self.compaction.windows.bytes(window, at, 1);
            if source.next_head == Some(index) {
                source.parse_head(self.header.salt, index, bytes);
                continue;
            }
            let stream = self.streams.of(SegmentKind::Images);
            if !stream.has_buffer() {
                return Step::Waits;
            }
            let owner = source.owner_of(self.header.salt, index, bytes);
            if block_checksum(self.header.salt, bytes) != owner.checksum {
                if self.compaction.windows.read_again(block) {
                    return self.read_windows(victim, block, 1, source.data_end());
                }
                self.compaction.bad = Some(index);
                return Step::Moved;
            }
            image.owners.push(owner);
            source.next = index + 1;
            stream.put(&self.memory, bytes);
        }
        Step::Moved
    }

    /// An image of an image: the owners are in the head behind it.
    fn read_owners(&mut self, victim: SlotId, source: &mut Source) -> Step {
        let held = source.piece.directory.len();
        let (block, blocks) = (source.piece.block + held, image_head_blocks(held));
        let windows = &self.compaction.windows;
        match windows.known(block, blocks) {
            Known::At(window, at) => {
                let head = read_image_head(self.header.salt, windows.bytes(window, at, blocks));
                source.known = head.map(|head| head.owners).unwrap_or_default();
            }
            // Without owners the blocks are copied all the same: the map knows their checksums.
            _ if windows.has_failed(block) => {}
            _ => return self.read_windows(victim, block, blocks, block + blocks),
        }
        source.is_unread = false;
        Step::Moved
    }

    /// Has blocks of the victim read, and what follows them read ahead.
    fn read_windows(&mut self, victim: SlotId, block: u32, blocks: u32, end: u32) -> Step {
        let is_urgent = self.compaction.slots_needed > 0;
        let pace =
            if self.is_beside_flushes() && !is_urgent { Pace::BesideFlushes } else { Pace::Full };
        while let Some(read) = self.compaction.windows.next_read(block, blocks, end, pace) {
            let (at, into) = (self.header.block_at(victim, read.block), read.into);
            let purpose = Purpose::CompactionRead(read.window);
            self.in_flight.submit(&mut self.media, purpose, Io::Read { at, into });
        }
        Step::Waits
    }

    fn finish_image(&mut self, source: &Source, image: &mut Image) {
        let owners = std::mem::take(&mut image.owners);
        let head = ImageHead { segment: source.segment, owners };
        let blocks = image_head_blocks(head.owners.len() as u32);
        image.head = vec![0; (blocks * PAGE_BYTES) as usize];
        write_image_head(self.header.salt, &head, &mut image.head);
        image.owners = head.owners;
    }

    fn write_head(&mut self, job: &mut Job, source: &Source, image: &mut Image) -> Step {
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
        let (first, end, data_blocks) = (image.first, image.end, held.count());
        let to = ImageMove { segment: source.segment, first, end, slot, block, data_blocks };
        job.moves.push((to, Directory::of(&held)));
        Step::Done
    }

    /// The images are flushed, or not.
    pub(crate) fn images_flushed(&mut self, result: Result<(), MediumError>) {
        match result {
            Ok(()) => self.compaction.flushed = true,
            Err(error) => self.stop_writing(&format!("a flush of images failed: {error}")),
        }
    }

    /// A read of a victim has come back.
    pub(crate) fn victim_read(&mut self, window: u32, result: Result<(), MediumError>) {
        self.compaction.windows.done(window, result.is_ok());
    }
}
