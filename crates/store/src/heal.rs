//! After the medium has failed: what the arena holds is written again, elsewhere (rule D12).
//!
//! A write of the log that failed twice sets it off; a pool that has stopped is told to by
//! [`Store::resume`]. It goes on with `poll`, each step only after the one before:
//! 1. Drain: what was submitted and may change the medium comes back, well or not. Nothing new is
//!    submitted but reads.
//! 2. Flush: the medium shows that it can, and what it may hold of superblocks is no longer
//!    volatile.
//! 3. Place: everything behind the last safe batch gets a new place in new segments, some batches
//!    in each step, in the arena and in the map only. A checkpoint under way is given up: its
//!    superblock would not know of the cut, or be mistaken for the one that does.
//! 4. Root: the superblock says where the log goes on, a cut as at the beginning of an epoch;
//!    RootFlush: that is flushed. Both for one copy, then for the other.
//!    Segments that held nothing but batches which are elsewhere now are free at once, as no
//!    superblock leads to them. Failures one after the other would use the free slots up otherwise.
//! 5. The log goes on: the batches are written to their new places, and flushed, as any others.
//!
//! Invariants:
//! - Acknowledged data stays in the arena, and readable, until it is on the medium and flushed.
//!   Reads are served all the time; in step 3 some batches have their new place and others not.
//! - A failed flush makes everything since the last good one unsafe, and is never just tried again:
//!   what is safe is what was durable when the pool stopped writing. A flush that comes back in
//!   step 1 makes nothing durable, nor does that of step 2.
//! - Nothing of the log is written between the failure and step 5, so whatever step the process or
//!   its host dies in, the last superblock that was flushed leads to the last safe batch, with or
//!   without the cut behind it; the rest is in the arena, or was promised to nobody.
//! - The copy of the superblock that is in doubt, because it may not be whole or durable, is
//!   written first: the other one is sound meanwhile. Each superblock has a generation of its own,
//!   also one that was given up or failed.
//!
//! What may go wrong, and what becomes of it:
//! - Of what is drained, writes of the log may fail: their batches get new places anyway. If
//!   anything else fails, a pool that heals by itself stops, as it would have otherwise; one that
//!   was resumed goes on, because nothing that failed is trusted.
//! - A flush or a write of step 2 or 4 fails, or there is no slot or page or cut left: the pool is
//!   stopped, and whoever waits for a flush is told so. What has been placed keeps its place, and
//!   the next `resume` goes on behind it: nothing was written there or added since, and new places
//!   each time would use the free slots up.
//! - A write of the log fails again before anything was flushed: once more would be one too many,
//!   and the pool stops.
//! - Writes are refused as busy meanwhile, or as stopped if the pool was; flushes wait. Closing the
//!   pool waits for the end of it.

use crate::checkpoint::{Frozen, Step};
use crate::format::{
    CUTS_MAX, Cut, EntryKind, LogEntry, Position, SUPERBLOCK_COPIES, SegmentKind, Superblock,
    other_copy, superblock_at,
};
use crate::io::Purpose;
use crate::recovery::check_slot_count;
use crate::store::{Broken, Store};
use crate::tables::Entry;
use crate::{BatchNumber, Io, Lba, Media, MediumError, PoolState, SegmentId, StoreError};

/// Blocks that get a new place in one step, unless a single batch has more.
const BLOCKS_PER_STEP: u32 = 512;

/// Where it stands. The I/O of a phase is in flight unless it is yet to be submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Drain,
    Flush,
    Place,
    /// How many copies of the superblock are done.
    Root(u64),
    RootFlush(u64),
}

/// Writing elsewhere, under way.
struct Job {
    phase: Phase,
    /// Somebody has asked for it, and the pool is stopped until it is done.
    is_asked: bool,
    /// What has failed.
    cause: String,
    is_submitted: bool,
    /// How the I/O of the phase went.
    io: Option<Result<(), MediumError>>,
    /// The superblock with the cut.
    root: Option<Superblock>,
}

/// Which batches have their new place.
#[derive(Clone, Copy)]
struct Placing {
    /// Behind which batch the log goes on, and where.
    cut: Cut,
    /// The batch that is next.
    next: usize,
}

/// Writing elsewhere, and what it has to know.
#[derive(Default)]
pub(crate) struct Healing {
    job: Option<Job>,
    /// How often, since the last good flush of the log, it was set off by a failed write.
    since_flush: u32,
    /// The highest generation a superblock was written with, or was to be.
    generation: u64,
    /// What has been placed, until the superblock says so: it outlives a try that failed.
    placing: Option<Placing>,
    /// Segments that hold nothing else than what is being placed again.
    left: Vec<SegmentId>,
    /// How the last one ended that was asked for, until somebody has been told.
    resumed: Option<Result<(), StoreError>>,
}

impl Healing {
    /// The phase, in a word.
    pub(crate) fn word(&self) -> Option<&'static str> {
        Some(match self.job.as_ref()?.phase {
            Phase::Drain => "drain",
            Phase::Flush => "flush",
            Phase::Place => "place",
            Phase::Root(_) => "root",
            Phase::RootFlush(_) => "root-flush",
        })
    }

    /// The log was flushed.
    pub(crate) fn flushed(&mut self) {
        self.since_flush = 0;
    }

    /// A generation no superblock was written with, higher than that of the last one.
    pub(crate) fn next_generation(&mut self, last: u64) -> u64 {
        self.generation = self.generation.max(last) + 1;
        self.generation
    }

    /// The pool stops: it does not heal by itself any more. Says why. What was asked for goes on.
    pub(crate) fn stop(&mut self, cause: &str) -> String {
        match self.job.take_if(|job| !job.is_asked) {
            Some(job) => format!("{}; before all was written elsewhere: {cause}", job.cause),
            None => cause.to_owned(),
        }
    }
}

impl Job {
    fn new(is_asked: bool, cause: String) -> Job {
        let phase = Phase::Drain;
        Job { phase, is_asked, cause, is_submitted: false, io: None, root: None }
    }

    fn enter(&mut self, phase: Phase) -> Step {
        (self.phase, self.is_submitted, self.io) = (phase, false, None);
        Step::Moved
    }
}

impl<M: Media> Store<M> {
    /// Whether what the arena holds is being given other places.
    pub(crate) fn is_healing(&self) -> bool {
        self.healing.job.is_some()
    }

    /// Begins to write again after the medium has failed: everything since the last good flush goes
    /// to fresh segments. [`Store::poll`] goes on with it; [`Store::resumed`] tells how it ended.
    ///
    /// # Errors
    /// If the pool has not stopped.
    pub fn resume(&mut self) -> Result<(), StoreError> {
        let PoolState::Stopped(cause) = &self.state else {
            return Err(StoreError::Invalid(format!(
                "the pool is {}: only a stopped pool can be resumed",
                self.state.word()
            )));
        };
        if !self.is_healing() {
            self.healing.resumed = None;
            self.healing.job = Some(Job::new(true, cause.clone()));
        }
        Ok(())
    }

    /// How what [`Store::resume`] began has ended, once; none while it is under way. If it failed,
    /// the pool stays stopped.
    pub fn resumed(&mut self) -> Option<Result<(), StoreError>> {
        self.healing.resumed.take()
    }

    /// A write of the log failed twice: nothing is written until what the arena holds has been
    /// given other places. A second time without a good flush in between is one too many.
    pub(crate) fn write_failed(&mut self, cause: &str) {
        // What is not safe gets another place as it is, or when somebody resumes.
        if !self.is_writing() {
            return;
        }
        if self.healing.since_flush > 0 {
            return self.stop_writing(cause);
        }
        self.healing.since_flush += 1;
        self.forget_index();
        self.healing.job = Some(Job::new(false, cause.to_owned()));
    }

    /// Goes on with writing elsewhere, if that is under way.
    pub(crate) fn step_heal(&mut self) -> bool {
        let Some(mut job) = self.healing.job.take() else { return false };
        match self.step_job_of_heal(&mut job) {
            Ok(Step::Done) => self.healed(job),
            Ok(step) => {
                self.healing.job = Some(job);
                return step == Step::Moved;
            }
            Err(error) => self.heal_failed(&job, error),
        }
        true
    }

    fn step_job_of_heal(&mut self, job: &mut Job) -> Result<Step, StoreError> {
        match job.phase {
            Phase::Drain if self.in_flight.changes() > 0 => return Ok(Step::Waits),
            Phase::Drain => return Ok(job.enter(Phase::Flush)),
            Phase::Place => return self.step_place(job),
            _ if !job.is_submitted => {
                self.submit_of_heal(job);
                return Ok(Step::Moved);
            }
            Phase::Flush | Phase::Root(_) | Phase::RootFlush(_) => {}
        }
        let Some(result) = job.io.take() else { return Ok(Step::Waits) };
        result?;
        Ok(match job.phase {
            Phase::Flush => {
                self.begin_place()?;
                job.enter(Phase::Place)
            }
            Phase::Root(done) => job.enter(Phase::RootFlush(done)),
            Phase::RootFlush(done) if done + 1 < SUPERBLOCK_COPIES => {
                self.doubtful_copy = other_copy(self.doubtful_copy);
                job.enter(Phase::Root(done + 1))
            }
            _ => {
                self.doubtful_copy = 0;
                Step::Done
            }
        })
    }

    fn submit_of_heal(&mut self, job: &mut Job) {
        (job.is_submitted, job.io) = (true, None);
        let io = match (job.phase, &job.root) {
            (Phase::Root(_), Some(root)) => {
                let page = &mut self.streams.page;
                root.encode(self.header.salt, self.memory.slice_mut(page));
                Io::Write {
                    at: superblock_at(root.epoch.0, self.doubtful_copy),
                    from: vec![page.part()],
                }
            }
            _ => {
                self.counters.media_flushes += 1;
                Io::Flush
            }
        };
        self.in_flight.submit(&mut self.media, Purpose::Heal, io);
    }

    /// An I/O of writing elsewhere has come back. That of one that was broken off means nothing.
    pub(crate) fn heal_io_done(&mut self, result: Result<(), MediumError>) {
        let Some(job) = self.healing.job.as_mut().filter(|job| job.is_submitted) else { return };
        let is_flush = matches!(job.phase, Phase::Flush | Phase::RootFlush(_));
        let has_dropped = is_flush && result.is_err();
        job.io = Some(result);
        if has_dropped {
            self.leave_headless();
        }
    }

    /// Settles behind which batch the log goes on, and where, unless a try before this one has.
    fn begin_place(&mut self) -> Result<(), StoreError> {
        self.map.forget_bad();
        if self.healing.placing.is_some() {
            return Ok(());
        }
        self.log.close_batch();
        self.give_up_checkpoint();
        if self.is_broken(Broken::HealTrustsMedium) {
            self.log_is_durable(self.log.completed);
        }
        let safe = self.log.durable;
        let accepted = self.safe_position(safe);
        if self.cuts_before(safe).count() >= CUTS_MAX {
            return Err(StoreError::Invalid("too many failures without a checkpoint".into()));
        }
        let left = self.segments_to_leave();
        self.log.rewind(safe);
        self.log.drop_headers();
        self.next_segment(safe)?;
        self.healing.left = left;
        let (segment, slot) = (self.log.segment.segment, self.log.segment.slot);
        let cut = Cut { epoch: self.root.epoch, accepted, segment, slot };
        self.healing.placing = Some(Placing { cut, next: 0 });
        Ok(())
    }

    /// Segments of the log with no batch that is safe. Not those where a checkpoint begins, even
    /// behind their last batch: a start looks for them.
    fn segments_to_leave(&self) -> Vec<SegmentId> {
        let Some(first) = self.log.batches.front() else { return Vec::new() };
        // A batch behind the first block of a segment follows a safe one there.
        let mut from = SegmentId(first.segment.0 + u64::from(first.block > 1));
        let mut kept = vec![self.root.position.segment];
        kept.extend(self.given_up.as_ref().map(Frozen::segment));
        if self.is_broken(Broken::HealLeavesSafe) {
            (from, kept) = (SegmentId(self.root.position.segment.0 + 1), Vec::new());
        }
        let later = self.segments.from(from).filter(|(_, one)| one.kind == SegmentKind::Log);
        later.map(|(id, _)| id).filter(|id| !kept.contains(id)).collect()
    }

    fn cuts_before(&self, safe: BatchNumber) -> impl Iterator<Item = Cut> {
        self.root.cuts.iter().copied().filter(move |old| old.accepted.number < safe)
    }

    /// The superblock that leads to what has been placed.
    fn root_with(&mut self, cut: Cut) -> Superblock {
        let generation = self.healing.next_generation(self.root.generation);
        let cuts = self.cuts_before(cut.accepted.number).chain([cut]).collect();
        Superblock { generation, cuts, ..self.root.clone() }
    }

    fn is_broken(&self, how: Broken) -> bool {
        self.options.broken.contains(&how)
    }

    /// Gives some batches that are not safe a new place.
    fn step_place(&mut self, job: &mut Job) -> Result<Step, StoreError> {
        let Some(Placing { cut, next }) = self.healing.placing else { return Ok(Step::Done) };
        let (mut at, mut done) = (next, 0);
        while let Some(batch) = self.log.batches.get(at) {
            let (blocks, before) = (batch.blocks(), BatchNumber(batch.number.0 - 1));
            if done > 0 && done + blocks > BLOCKS_PER_STEP {
                return Ok(Step::Moved);
            }
            if blocks > self.log.blocks_left() {
                self.next_segment(before)?;
            }
            self.place_again(at);
            (at, done) = (at + 1, done + blocks);
            self.healing.placing = Some(Placing { cut, next: at });
        }
        if self.is_broken(Broken::HealWithoutRoot) {
            return Ok(Step::Done);
        }
        if self.is_broken(Broken::SoundCopyFirst) {
            self.doubtful_copy = 0;
        }
        job.root = Some(self.root_with(cut));
        Ok(job.enter(Phase::Root(0)))
    }

    fn next_segment(&mut self, last: BatchNumber) -> Result<(), StoreError> {
        if self.segments.free_slots() == 0 {
            return Err(StoreError::Invalid("no free slot to write to".into()));
        }
        if self.log.pages.borrow().free() == 0 {
            return Err(StoreError::Invalid("no memory for the header of a segment".into()));
        }
        self.segments.keep_for_failures(false);
        self.checkpoint_wanted = true;
        self.roll(last);
        Ok(())
    }

    /// Everything has its new place, and the superblock leads there.
    fn healed(&mut self, job: Job) {
        if let Some(root) = job.root {
            self.root = root;
        }
        self.healing.placing = None;
        for segment in std::mem::take(&mut self.healing.left) {
            self.segments.leave_whole(segment);
        }
        self.free_blob_slots();
        self.counters.heals += 1;
        if job.is_asked {
            self.state = PoolState::Healthy;
            self.healing.resumed = Some(Ok(()));
        }
        if self.is_broken(Broken::HealAnswersEarly) {
            self.answer_all_waiters();
        }
        self.want_flush();
        self.make_room();
    }

    fn heal_failed(&mut self, job: &Job, error: StoreError) {
        if job.is_asked {
            self.healing.resumed = Some(Err(error));
            return;
        }
        self.stop_writing(&format!("{}; writing elsewhere failed too: {error}", job.cause));
    }

    /// The place behind the last safe batch: all up to it are released.
    fn safe_position(&self, safe: BatchNumber) -> Position {
        let (segment, slot) = (self.log.segment.segment, self.log.segment.slot);
        let checksum = self.log.checksum_of(safe);
        Position { segment, slot, block: self.segments.slot_blocks(), number: safe, checksum }
    }

    /// Gives a batch a new place, and brings the map up to it.
    fn place_again(&mut self, at: usize) {
        let (old_segment, old_first) = {
            let batch = &self.log.batches[at];
            (batch.segment, batch.block + 1)
        };
        self.log.place(at);
        let (segment, first) = (self.log.batches[at].segment, self.log.batches[at].block + 1);
        let entries: Vec<(LogEntry, u32, Vec<u32>)> = self
            .log
            .entries_of(at)
            .filter(|found| found.entry.kind == EntryKind::Write)
            .map(|found| {
                let sums = (0..found.entry.blocks as u32).map(|index| found.checksum(index));
                (found.entry, found.data_block, sums.collect())
            })
            .collect();
        for (entry, data_block, sums) in entries {
            for (index, sum) in sums.into_iter().enumerate() {
                let block = data_block + index as u32;
                let old = Entry::data(old_segment, old_first + block, sum);
                let new = Entry::data(segment, first + block, sum);
                self.repoint(&entry, Lba(entry.lba.0 + index as u64), old, new);
            }
        }
    }

    fn repoint(&mut self, entry: &LogEntry, lba: Lba, old: Entry, new: Entry) {
        let generations = [Some(&mut self.map.active), self.map.frozen.as_mut()];
        for generation in generations.into_iter().flatten() {
            let found = generation.deltas.get(entry.lineage, lba);
            if let Some(delta) = found.filter(|delta| delta.entry == old) {
                generation.deltas.insert(entry.lineage, lba, new, delta.ordinal);
                self.segments.clear_live(old);
                self.segments.set_live(new);
                return;
            }
        }
    }

    /// Gives the pool the slots its medium has grown by. Returns how many there are now.
    ///
    /// # Errors
    /// If the medium has not grown or the pool takes no writes.
    pub fn grow(&mut self) -> Result<u32, StoreError> {
        let (have, can) =
            (self.segments.slot_count(), self.header.slots_on(self.media.bytes_total()));
        if can <= have {
            return Err(StoreError::Invalid(format!(
                "the medium has room for {can} slots and the pool has {have}: enlarge the file or \
                 device first"
            )));
        }
        check_slot_count(can, &self.header)?;
        let record = crate::format::Record::Grown { slot_count: can };
        self.put_record(&record).map_err(|why| StoreError::Invalid(why.to_string()))?;
        self.segments.grow(can);
        self.make_room();
        Ok(can)
    }
}
