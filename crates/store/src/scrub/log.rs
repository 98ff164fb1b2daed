//! Segments of the log, batch by batch: the chain, and every block of data, whether anything leads
//! to it or not.
//!
//! Where a segment ends is not written in it. After a power cut it may end in batches that were
//! never accepted, torn or whole, and nobody needs those. So something that is wrong counts only
//! where more is known: a live block, a batch that a later one says was durable, or one before the
//! batch a later segment begins behind. And nothing counts behind the batch a later segment begins
//! behind: the log went on there.

use std::rc::Rc;

use super::report::wrong;
use super::slots::Wrong;
use super::window::{Found, Window};
use super::{Job, Next};
use crate::format::{
    BatchHead, Entries, EntryKind, SegmentHeader, SegmentKind, block_checksum, read_batch,
};
use crate::store::Store;
use crate::{BatchNumber, Epoch, LineageId, Media, SegmentId, SlotId};

/// A block of data as the head of its batch has it.
#[derive(Clone, Copy)]
struct Sum {
    checksum: u32,
    /// Whose block it is; none for records.
    owner: Option<(LineageId, u64)>,
}

/// What is wrong, until it is known whether that counts.
#[derive(Clone)]
enum Problem {
    Header {
        is_unreadable: bool,
    },
    /// Blocks where a batch should be, up to the next one that is there.
    Gap {
        first: u32,
        end: u32,
        is_unreadable: bool,
    },
    Data(Wrong),
}

/// A segment of the log being looked through.
#[derive(Clone)]
pub(super) struct LogVisit {
    pub segment: SegmentId,
    slot: SlotId,
    /// The block behind the last one that is surely on the medium.
    end: u32,
    /// The block to be looked at next.
    at: u32,
    epoch: Option<Epoch>,
    /// The last batch: its number and checksum.
    last: Option<(BatchNumber, u64)>,
    /// The block where the next batch should begin.
    next_head: u32,
    /// The first block of data of the batch at hand, and what its blocks should be.
    first_data: u32,
    sums: Rc<Vec<Sum>>,
    /// Where a batch should be and is not, and whether the medium could not read that block.
    gap: Option<(u32, bool)>,
    /// The first batch found.
    first: Option<BatchNumber>,
    /// Batches up to this one had been flushed when one of this segment was written.
    flushed: BatchNumber,
    /// The epoch that wrote its batches.
    written_in: Option<Epoch>,
    /// Whether it is the segment the log is in, or was when the pool was open already.
    is_of_this_run: bool,
    /// Batches up to this one are known to have been durable.
    durable: BatchNumber,
    /// Batches behind this one do not count.
    limit: BatchNumber,
    /// The batch a later segment begins behind, if that is one of this segment.
    follower: Option<BatchNumber>,
    /// What is wrong, each with the batch it belongs to.
    problems: Vec<(BatchNumber, Problem)>,
    header: Option<SegmentHeader>,
    verified: u64,
}

impl<M: Media> Store<M> {
    /// The block of a segment of the log up to which everything is on the medium.
    pub(super) fn stable_end(&self, id: SegmentId) -> u32 {
        let open = &self.log.segment;
        if let Some(batch) = self.log.batches.iter().find(|batch| batch.segment == id) {
            return if batch.block == 1 { 0 } else { batch.block };
        }
        match open.segment == id {
            true if open.is_fresh => 0,
            true => open.next_block,
            false => self.segments.slot_blocks(),
        }
    }

    /// What is known of a segment of the log before it is read; none if nothing in it counts.
    pub(super) fn visit_log(&self, slot: SlotId, segment: SegmentId) -> Option<LogVisit> {
        let later = self.scrub.beginnings.range(SegmentId(segment.0 + 1)..);
        let limit = later.map(|(_, (_, number))| *number);
        // The header of an epoch's first segment goes out with its first batch: until then nothing
        // but the superblock says which batch of the epoch before was the last.
        let cuts = self.root.cuts.iter();
        let cut_at = cuts.clone().filter(|cut| cut.segment > segment);
        let limit = limit.chain(cut_at.map(|cut| cut.accepted.number)).min();
        let limit = limit.unwrap_or(BatchNumber(u64::MAX));
        let is_void = self.scrub.beginnings.get(&segment).is_some_and(|(_, n)| *n >= limit);
        let end = self.stable_end(segment);
        if end == 0 || is_void {
            return None;
        }
        let is_running = end < self.segments.slot_blocks();
        let behind = self.scrub.beginnings.values().filter(|(before, _)| *before == segment);
        let cut_here = cuts.map(|cut| cut.accepted).filter(|last| last.segment == segment);
        let follower = behind.map(|(_, number)| *number);
        let follower = follower.chain(cut_here.map(|last| last.number)).max();
        let mut durable = follower.unwrap_or_default();
        if self.root.position.segment == segment {
            durable = durable.max(self.root.position.number);
        }
        if is_running || self.log.segment.segment == segment {
            durable = BatchNumber(u64::MAX);
        }
        Some(LogVisit {
            segment,
            slot,
            end,
            at: 0,
            epoch: None,
            last: None,
            next_head: 1,
            first_data: 1,
            sums: Rc::default(),
            gap: None,
            first: None,
            flushed: BatchNumber(0),
            written_in: None,
            is_of_this_run: is_running || self.log.segment.segment == segment,
            durable,
            limit,
            follower,
            problems: Vec::new(),
            header: None,
            verified: 0,
        })
    }

    pub(super) fn step_log(&mut self, job: &mut Job, log: &mut LogVisit) -> Next {
        if log.is_over() {
            self.judge_log(job, log);
            return Next::Done;
        }
        let left = log.end - log.at;
        let held = self.held_from(log.slot, log.at).min(left);
        if held == 0 {
            let blocks = left.min(self.scrub.window.room()).min(job.pace.blocks());
            return Next::Read(self.slot_run(log.slot, log.at, blocks));
        }
        let mut seen = log.clone();
        seen.verified = 0;
        for block in log.at..log.at + held {
            let at = self.header.block_at(log.slot, block);
            let bytes = held_block(&self.scrub.window, &self.memory, at);
            seen.look_at(&self.header, block, bytes);
            if seen.at >= seen.end {
                break;
            }
        }
        let is_new = seen.problems.len() > log.problems.len();
        if is_new && !job.is_second && !self.is_scrub_blind() {
            job.is_second = true;
            return Next::Read(self.slot_run(log.slot, log.at, held));
        }
        job.is_second = false;
        self.scrub_verified(seen.verified);
        if let Some(header) = seen.header {
            let before = (header.before.0, header.before.1);
            self.scrub.segment_begins(seen.segment, before);
        }
        if let Some(epoch) = seen.written_in {
            let flushed = job.flushed.entry(epoch).or_default();
            *flushed = (*flushed).max(seen.flushed);
        }
        *log = seen;
        Next::Again
    }

    /// The segment has been read to its end: what of the problems counts?
    fn judge_log(&mut self, job: &mut Job, log: &mut LogVisit) {
        let began = self.scrub.beginnings.get(&log.segment).map(|(_, number)| *number);
        let known = log.last.map(|(number, _)| number).or(began);
        let lacks = known.is_some_and(|last| last < log.durable && last < log.limit);
        if let Some((first, is_unreadable)) = log.gap.take()
            && (lacks || self.is_any_alive(log, first, log.end))
        {
            // Without more to be missing, the rest of a segment that was left early is nothing.
            let problem = Problem::Gap { first, end: log.end, is_unreadable };
            log.problems.push((log.next_number(), problem));
        }
        for (number, problem) in std::mem::take(&mut log.problems) {
            let counts = number <= log.durable && number <= log.limit;
            match problem {
                // It went out with the first batch, and may have been torn off that by a crash.
                Problem::Header { is_unreadable } => {
                    let flushed = log.written_in.and_then(|epoch| job.flushed.get(&epoch));
                    let was_flushed = log.first.is_some_and(|first| Some(&first) <= flushed);
                    if log.is_of_this_run || began.is_some() || was_flushed {
                        self.bad_header(log.slot, log.segment, is_unreadable);
                    }
                }
                Problem::Gap { first, end, is_unreadable } => {
                    let indices = first..end;
                    let live = self.leave_to_map(job, log.slot, log.segment, indices);
                    if counts || lacks || live > 0 {
                        let what = format!(
                            "the head of batch {number}, or of one after it, {}; the {live} blocks \
                             that are needed up to block {end} are judged by the map",
                            wrong(is_unreadable)
                        );
                        self.harmless(log.slot, log.segment, first, is_unreadable, what);
                    }
                }
                Problem::Data(wrong) => {
                    if counts || self.is_needed(log.slot, &wrong) {
                        self.bad_block(log.slot, &wrong);
                        self.relieve_recovery(number);
                    }
                }
            }
        }
    }

    /// A damaged batch that a recovery would read is needed no more after a checkpoint.
    fn relieve_recovery(&mut self, number: BatchNumber) {
        if number > self.root.position.number && self.state.is_writing() {
            self.want_checkpoint();
        }
    }

    fn is_any_alive(&self, log: &LogVisit, first: u32, end: u32) -> bool {
        self.segments.get(log.segment).is_some_and(|segment| {
            let is_here = |index| segment.piece(index).is_some_and(|piece| piece.slot == log.slot);
            let mut runs = segment.live.runs();
            runs.any(|run| (run.start.max(first)..run.end.min(end)).any(is_here))
        })
    }
}

fn held_block<'a>(
    window: &'a Window,
    memory: &'a bowline_arena::Memory,
    at: u64,
) -> Option<&'a [u8]> {
    match window.block(memory, at) {
        Found::Bytes(bytes) => Some(bytes),
        Found::Unreadable => None,
    }
}

impl LogVisit {
    /// Whether nothing that counts can follow.
    fn is_over(&self) -> bool {
        let last = self.last.filter(|_| self.at >= self.next_head).map(|(number, _)| number);
        let is_last = |last| last >= self.limit || self.follower == Some(last);
        self.at >= self.end || last.is_some_and(is_last)
    }

    fn next_number(&self) -> BatchNumber {
        BatchNumber(self.last.map_or(0, |(number, _)| number.0) + 1)
    }

    /// Looks at the next block; none if the medium cannot read it.
    fn look_at(&mut self, pool: &crate::PoolHeader, block: u32, bytes: Option<&[u8]>) {
        self.at = block + 1;
        if block == 0 {
            return self.look_at_header(pool, bytes);
        }
        if block < self.next_head {
            let at = block.checked_sub(self.first_data);
            let sum = at.and_then(|at| self.sums.get(at as usize)).copied();
            let Some(sum) = sum else { return };
            if bytes.is_some_and(|bytes| block_checksum(pool.salt, bytes) == sum.checksum) {
                self.verified += 1;
                return;
            }
            let wrong = Wrong {
                segment: self.segment,
                block,
                index: block,
                is_unreadable: bytes.is_none(),
                owner: sum.owner,
            };
            let number = self.last.map_or(BatchNumber(0), |(number, _)| number);
            return self.problems.push((number, Problem::Data(wrong)));
        }
        let head = bytes.and_then(|bytes| self.head_at(pool, block, bytes));
        let Some(head) = head else {
            self.gap.get_or_insert((block, bytes.is_none()));
            self.next_head = block + 1;
            return;
        };
        if let Some((first, is_unreadable)) = self.gap.take() {
            // Without the header, the last of those that are missing is the one that is known.
            let behind = BatchNumber(head.number.0.saturating_sub(1));
            let number = if self.last.is_some() { self.next_number() } else { behind };
            self.problems.push((number, Problem::Gap { first, end: block, is_unreadable }));
        }
        self.enter(&head, block, bytes.unwrap_or_default());
    }

    fn look_at_header(&mut self, pool: &crate::PoolHeader, bytes: Option<&[u8]>) {
        let found = bytes.and_then(|b| SegmentHeader::decode(pool.salt, pool.pool, b));
        let found = found.filter(|found| {
            (found.slot, found.segment, found.kind) == (self.slot, self.segment, SegmentKind::Log)
        });
        match found {
            Some(found) => {
                self.verified += 1;
                self.epoch = Some(found.epoch);
                self.last = Some((found.before.1, found.before.2));
                self.header = Some(found);
            }
            None => {
                let is_unreadable = bytes.is_none();
                self.problems.push((BatchNumber(0), Problem::Header { is_unreadable }));
            }
        }
    }

    /// The head of the batch that begins at a block, if one does that follows the last.
    fn head_at(&self, pool: &crate::PoolHeader, block: u32, bytes: &[u8]) -> Option<BatchHead> {
        let head = read_batch(pool.salt, bytes)?;
        let is_here = head.segment == self.segment
            && head.block == block
            && self.epoch.is_none_or(|epoch| epoch == head.epoch)
            && block + 1 + head.data_blocks <= pool.slot_blocks();
        let follows = match self.last {
            None => true,
            Some((last, _)) if self.gap.is_some() => head.number > last,
            Some((last, checksum)) => head.number.0 == last.0 + 1 && head.previous == checksum,
        };
        (is_here && follows).then_some(head)
    }

    /// A batch begins.
    fn enter(&mut self, head: &BatchHead, block: u32, bytes: &[u8]) {
        if head.number > self.limit {
            self.at = self.end;
            return;
        }
        self.verified += 1;
        self.first = self.first.or(Some(head.number));
        self.flushed = self.flushed.max(head.durable_upto);
        self.written_in = Some(head.epoch);
        self.last = Some((head.number, head.checksum));
        if self.durable < BatchNumber(u64::MAX) {
            self.durable = self.durable.max(head.durable_upto);
        }
        let mut sums = Vec::with_capacity(head.data_blocks as usize);
        let entries = Entries::new(bytes, head.entries).map_while(Result::ok);
        for found in entries.filter(|found| found.entry.kind.has_data()) {
            let is_write = found.entry.kind == EntryKind::Write;
            sums.extend((0..found.entry.blocks as u32).map(|at| Sum {
                checksum: found.checksum(at),
                owner: is_write.then_some((found.entry.lineage, found.entry.lba.0 + u64::from(at))),
            }));
        }
        self.first_data = block + 1;
        self.next_head = block + 1 + head.data_blocks;
        let known = self.first_data + sums.len() as u32;
        if known < self.next_head {
            // Entries of a kind that is not known: the map judges what they hold.
            let (first, end) = (known, self.next_head);
            let problem = Problem::Gap { first, end, is_unreadable: false };
            self.problems.push((head.number, problem));
        }
        self.sums = Rc::new(sums);
    }
}
