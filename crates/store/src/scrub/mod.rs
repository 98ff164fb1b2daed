//! Scrub: everything on the medium that holds something is read and verified while the pool is in
//! use.
//!
//! In this order:
//! 1. Both pool headers and all superblocks. Damaged copies are written again.
//! 2. Every slot in use, whatever the map says of it: its header; of a segment of the log every
//!    batch, the chain they form and every block of data, alive or dead; of images the head, which
//!    is their directory, and every block. Later segments of the log come before earlier ones,
//!    because the header of the later one says where the earlier one ends.
//! 3. The map, page by page from the roots, and by it the blocks of which nothing else could say
//!    what they should be.
//! 4. The blob of the last checkpoint.
//!
//! Invariants:
//! - One I/O is under way at a time, of one window at most; what a step looks at is one window.
//! - Nothing is found wrong by one look: it is read again, and must still be needed then.
//! - What was there when the scrub began is verified, or gone, when it ends: data that compaction
//!   moves out of a slot that was not looked through yet is looked at where it goes to.
//! - Nothing the scrub reads changes what the store does, but that copies are written again and a
//!   checkpoint is asked for.

mod blob;
mod copies;
mod images;
mod log;
mod pace;
mod report;
mod slots;
mod tree;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use crate::format::SegmentKind;
use crate::io::Purpose;
use crate::segments::SlotState;
use crate::store::Store;
use crate::tables::LiveBits;
use crate::{BLOCK_BYTES, BatchNumber, Epoch, Io, Media, MediumError, Micros, SegmentId, SlotId};

use pace::Pace;
pub use report::{ScrubFinding, ScrubSeverity, ScrubState, ScrubStatus};
use window::{Run, WINDOW_BLOCKS_MAX, Window};

/// Slots noted in one step.
const SLOTS_PER_STEP: u32 = 512;
/// How long to wait for something that is under way elsewhere.
const LATER_MICROS: u64 = 10_000;
/// Beginnings of log segments kept in mind.
const BEGINNINGS_MAX: usize = 65_536;

/// What comes next.
enum Next {
    Read(Run),
    /// A block is to be written.
    Write(u64, Box<[u8]>),
    Flush,
    /// There is more to do at once.
    Again,
    /// Something else has to happen first.
    Later,
    Done,
}

/// Where a scrub stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Slots in use are noted, from this one on.
    List(SlotId),
    Copies,
    Slots,
    Map,
    Blob,
}

/// A scrub under way.
struct Job {
    phase: Phase,
    is_paused: bool,
    begun_at: Micros,
    pace: Pace,
    /// A read for which it is not time yet.
    pending: Option<Run>,
    /// When to look again for what has to happen first.
    later_until: Micros,
    /// What the window holds was read again, because something in it was wrong.
    is_second: bool,
    copies: copies::Copies,
    /// Slots to be looked through, with the segment of the log in them, and their blocks.
    todo: BTreeMap<SlotId, (SegmentId, u32)>,
    order: BTreeSet<(SegmentId, SlotId)>,
    visit: Option<slots::Visit>,
    /// How far each epoch knew its log to be flushed, by the batches read so far.
    flushed: BTreeMap<Epoch, BatchNumber>,
    /// Blocks that only the map can judge.
    unverified: BTreeMap<SegmentId, LiveBits>,
    tree: tree::Walk,
    blob: blob::Walk,
    /// Blocks still to be read.
    left_blocks: u64,
}

/// The scrub of a pool.
#[derive(Default)]
pub(crate) struct Scrub {
    job: Option<Job>,
    window: Window,
    status: ScrubStatus,
    /// What came before each segment of the log: its last batch, and the segment that is in.
    beginnings: BTreeMap<SegmentId, (SegmentId, BatchNumber)>,
    /// How the last write or flush for a copy went.
    written: Option<bool>,
}

impl Scrub {
    /// A segment of the log begins behind a batch.
    pub(crate) fn segment_begins(&mut self, id: SegmentId, before: (SegmentId, BatchNumber)) {
        self.beginnings.insert(id, before);
        if self.beginnings.len() > BEGINNINGS_MAX {
            self.beginnings.pop_first();
        }
    }

    /// Compaction has moved blocks from one slot to another.
    pub(crate) fn moved(&mut self, from: SlotId, to: SlotId, blocks: u32) {
        let Some(job) = &mut self.job else { return };
        let is_visited = |visit: &mut slots::Visit| visit.slot == from;
        if job.todo.contains_key(&from) || job.visit.as_mut().is_some_and(is_visited) {
            job.add(to, SegmentId(0), blocks);
        }
    }

    /// When it has something to do.
    pub(crate) fn wake_at(&self) -> Option<Micros> {
        let job = self.job.as_ref().filter(|job| !job.is_paused && !self.window.is_busy())?;
        Some(if job.pending.is_some() { job.pace.next_at } else { job.later_until })
    }
}

impl Job {
    fn add(&mut self, slot: SlotId, key: SegmentId, blocks: u32) {
        let old = self.todo.insert(slot, (key, blocks));
        let old = old.map_or(0, |(_, blocks)| blocks);
        self.left_blocks = (self.left_blocks + u64::from(blocks)).saturating_sub(old.into());
        self.order.insert((key, slot));
    }

    /// The next slot, and about how many blocks of it are in use.
    fn next_slot(&mut self) -> Option<(SlotId, u32)> {
        while let Some((key, slot)) = self.order.pop_last() {
            if self.todo.get(&slot).is_some_and(|(wanted, _)| *wanted == key)
                && let Some((_, blocks)) = self.todo.remove(&slot)
            {
                return Some((slot, blocks));
            }
        }
        None
    }

    fn blocks_done(&mut self, blocks: u64) {
        self.left_blocks = self.left_blocks.saturating_sub(blocks);
    }
}

impl<M: Media> Store<M> {
    /// Begins to verify everything on the medium, at most so many bytes a second, or goes on if
    /// that was paused; a scrub that runs gets the new rate.
    pub fn start_scrub(&mut self, bytes_per_second_max: u64) {
        self.scrub.status.bytes_per_second_max = bytes_per_second_max;
        self.scrub.status.state = ScrubState::Running;
        if let Some(job) = &mut self.scrub.job {
            job.is_paused = false;
            job.pace.set_rate(bytes_per_second_max);
            return;
        }
        self.scrub.status = ScrubStatus {
            state: ScrubState::Running,
            bytes_per_second_max,
            ..ScrubStatus::default()
        };
        self.scrub.written = None;
        self.scrub.job = Some(Job {
            phase: Phase::List(SlotId(0)),
            is_paused: false,
            begun_at: self.now,
            pace: Pace::new(bytes_per_second_max, self.now),
            pending: None,
            later_until: self.now,
            is_second: false,
            copies: copies::Copies::default(),
            todo: BTreeMap::new(),
            order: BTreeSet::new(),
            visit: None,
            flushed: BTreeMap::new(),
            unverified: BTreeMap::new(),
            tree: tree::Walk::default(),
            blob: blob::Walk::default(),
            left_blocks: copies::BLOCKS,
        });
    }

    /// Keeps the place of a scrub and reads no more, until it is started again.
    pub fn pause_scrub(&mut self) {
        if let Some(job) = &mut self.scrub.job {
            job.is_paused = true;
            self.scrub.status.state = ScrubState::Paused;
        }
    }

    /// Gives a scrub up.
    pub fn stop_scrub(&mut self) {
        if self.scrub.job.is_some() {
            self.end_scrub(ScrubState::Stopped);
        }
    }

    /// How far the scrub is, or how the last one ended.
    pub fn scrub(&self) -> ScrubStatus {
        let mut status = self.scrub.status.clone();
        if let Some(job) = &self.scrub.job {
            status.left_bytes = job.left_blocks * BLOCK_BYTES;
            status.elapsed_micros = self.now.0.saturating_sub(job.begun_at.0);
            status.bytes_per_second = job.pace.measured(self.now, status.verified_bytes);
        }
        status
    }

    /// State and findings of the scrub so far, to see cheaply whether there is news.
    pub fn scrub_news(&self) -> (ScrubState, u64) {
        (self.scrub.status.state, self.scrub.status.findings_total())
    }

    fn end_scrub(&mut self, state: ScrubState) {
        let last = self.scrub();
        self.scrub.job = None;
        self.scrub.status = ScrubStatus { state, ..last };
        if state == ScrubState::Finished {
            self.scrub.status.left_bytes = 0;
        }
        self.release_window();
    }

    /// Gives the buffer back when nothing is read into it any more.
    fn release_window(&mut self) {
        if self.scrub.window.is_busy() {
            return;
        }
        self.clear_window();
        if let Some(buffer) = self.scrub.window.take_buffer() {
            self.log.pages.borrow_mut().give(buffer);
        }
    }

    fn clear_window(&mut self) {
        if let Some(slot) = self.scrub.window.clear() {
            self.segments.reader(slot, -1);
        }
    }

    /// Makes one small step of a scrub, if one is under way and it is time.
    pub(crate) fn step_scrub(&mut self) -> bool {
        if self.scrub.window.is_busy() {
            return false;
        }
        let is_quiet = self.reads.len() == 0 && !self.is_writing_log();
        let Some(job) = &mut self.scrub.job else { return false };
        if job.is_paused {
            self.release_window();
            return false;
        }
        if self.now < job.later_until || !self.has_scrub_buffer() {
            return false;
        }
        let Some(job) = &mut self.scrub.job else { return false };
        if let Some(run) = job.pending {
            if !job.pace.is_time(self.now, is_quiet) {
                return false;
            }
            job.pending = None;
            self.begin_scrub_read(run);
            return true;
        }
        let Some(mut job) = self.scrub.job.take() else { return false };
        let next = self.next_of_scrub(&mut job);
        self.scrub.job = Some(job);
        self.go_on_with_scrub(next)
    }

    fn has_scrub_buffer(&mut self) -> bool {
        if self.scrub.window.has_buffer() {
            return true;
        }
        let blocks = self.segments.slot_blocks().min(WINDOW_BLOCKS_MAX);
        let buffer = self.log.pages.borrow_mut().take(blocks);
        match (buffer, &mut self.scrub.job) {
            (Some(buffer), _) => self.scrub.window.give_buffer(buffer),
            (None, Some(job)) => job.later_until = Micros(self.now.0 + LATER_MICROS),
            (None, None) => {}
        }
        self.scrub.window.has_buffer()
    }

    fn next_of_scrub(&mut self, job: &mut Job) -> Next {
        match job.phase {
            Phase::List(from) => self.list_slots(job, from),
            Phase::Copies => self.step_copies(job),
            Phase::Slots => self.step_slots(job),
            Phase::Map => self.step_tree(job),
            Phase::Blob => self.step_blob_scrub(job),
        }
    }

    fn go_on_with_scrub(&mut self, next: Next) -> bool {
        match next {
            Next::Again => return true,
            Next::Done => {
                self.end_scrub(ScrubState::Finished);
                return true;
            }
            Next::Later => {
                self.clear_window();
                if let Some(job) = &mut self.scrub.job {
                    job.later_until = Micros(self.now.0 + LATER_MICROS);
                }
                return false;
            }
            // Nothing is held until it is time: the slot may be needed.
            Next::Read(run) => {
                self.clear_window();
                if let Some(job) = &mut self.scrub.job {
                    job.pending = Some(run);
                }
            }
            Next::Write(at, block) => {
                self.clear_window();
                if let Some(part) = self.scrub.window.fill(&self.memory, &block) {
                    let io = Io::Write { at, from: vec![part] };
                    self.in_flight.submit(&mut self.media, Purpose::Scrub(1), io);
                }
            }
            Next::Flush => {
                if !self.submit_flush(Purpose::Scrub(2)) {
                    return self.go_on_with_scrub(Next::Later);
                }
                self.clear_window();
                self.scrub.window.wait_for_flush();
            }
        }
        true
    }

    fn begin_scrub_read(&mut self, run: Run) {
        if let Some(slot) = run.slot {
            self.segments.reader(slot, 1);
        }
        self.scrub.window.submitted_at = self.now;
        self.scrub.window.begin(run);
        self.read_for_scrub();
    }

    fn read_for_scrub(&mut self) {
        if let Some((at, into)) = self.scrub.window.next_read() {
            self.in_flight.submit(&mut self.media, Purpose::Scrub(0), Io::Read { at, into });
        }
    }

    /// An I/O of the scrub has come back: a read (0), a write (1) or a flush (2).
    pub(crate) fn scrub_io_done(&mut self, which: u32, result: Result<(), MediumError>) {
        if which != 0 {
            self.clear_window();
            self.scrub.written = Some(result.is_ok());
            if let Err(error) = result {
                self.stop_writing(&format!("a copy of a superblock failed: {error}"));
            }
        } else if self.scrub.window.read_done(result.is_ok()) {
            return self.read_for_scrub();
        }
        let activity =
            [self.counters.reads, self.counters.written_bytes, self.counters.flush_requests];
        let bytes = self.scrub.window.run().map_or(1, |run| u64::from(run.blocks)) * BLOCK_BYTES;
        let (from, verified) = (self.scrub.window.submitted_at, self.scrub.status.verified_bytes);
        match &mut self.scrub.job {
            Some(job) => job.pace.took(from, self.now, bytes, activity, verified),
            None => self.release_window(),
        }
    }

    /// Notes which slots are in use.
    fn list_slots(&mut self, job: &mut Job, from: SlotId) -> Next {
        let end = self.segments.slot_count().min(from.0 + SLOTS_PER_STEP);
        for slot in (from.0..end).map(SlotId) {
            let Some(state) = self.segments.slot(slot) else { continue };
            let is_used = matches!(state, SlotState::Open(_) | SlotState::Used(_));
            if is_used && let Some((key, blocks)) = self.blocks_in_use(slot) {
                job.add(slot, key, blocks);
                let is_map = matches!(
                    state,
                    SlotState::Open(SegmentKind::Map) | SlotState::Used(SegmentKind::Map)
                );
                job.left_blocks += u64::from(self.segments.live_in(slot)) * u64::from(is_map);
            }
        }
        job.phase = Phase::List(SlotId(end));
        if end == self.segments.slot_count() {
            let extents = self.root.blob.iter().flatten();
            job.left_blocks += extents.map(|one| u64::from(one.blocks)).sum::<u64>();
            job.phase = Phase::Copies;
        }
        Next::Again
    }

    /// A block was verified.
    fn scrub_verified(&mut self, blocks: u64) {
        self.scrub.status.verified_bytes += blocks * BLOCK_BYTES;
    }

    /// Whether the scrub is made not to see: a broken mode.
    fn is_scrub_blind(&self) -> bool {
        self.options.broken.contains(&crate::store::Broken::BlindScrub)
    }

    fn found(&mut self, finding: ScrubFinding) {
        if !self.is_scrub_blind() {
            self.scrub.status.add(finding);
        }
    }
}
