//! The way of a write into the pool: what lets it in, and how it gets its place in the log.
//!
//! Invariants:
//! - A write is admitted whole or refused; once admitted, nothing can keep it from its place in
//!   the order: pages, descriptors, changes of the map and slots were made sure of before.
//! - Data leaves free slots to ranges, and both leave some to compaction and checkpoints: what
//!   gives space back is refused last (`reserve.rs`).

use std::collections::VecDeque;

use bowline_arena::{PAGE_BYTES, Span};

use super::{Store, apply, apply_record};
use crate::api::{Change, Disk, Payload, Refused};
use crate::format::{EntryKind, FANOUT, LogEntry, Record, SegmentKind};
use crate::index::{Continued, Happened};
use crate::log::{Blocks, Gather, Log, OpenSegment};
use crate::map::SMALL_RANGE_BLOCKS;
use crate::reserve::{MARGIN_OF_DATA, MARGIN_OF_RANGES};
use crate::{BLOCK_BYTES, BatchNumber, DiskId, Lba, LineageId, Media, SegmentId, Seq};

impl<M: Media> Store<M> {
    /// Writes whole blocks. `Ok` means admitted: the bytes lie in the arena, have their place in
    /// the order, and the write may be acknowledged. An owned payload is taken only then.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist or the payload is not made of whole blocks.
    pub fn write(
        &mut self,
        disk: DiskId,
        lba: Lba,
        payload: &mut Payload<'_>,
    ) -> Result<Seq, Refused> {
        let lineage = self.lineage_of(disk);
        let bytes: usize = match payload {
            Payload::Copied(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Payload::Owned(spans) => spans.iter().map(|span| span.bytes() as usize).sum(),
        };
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE_BYTES as usize), "whole blocks");
        let blocks = (bytes as u64 / BLOCK_BYTES) as u32;
        let copied = if matches!(payload, Payload::Copied(_)) { blocks } else { 0 };
        let leaves = leaves_of_run(u64::from(blocks));
        let need = Need { blocks, copied, changes: blocks as usize, ranges: 0, leaves };
        self.admit(Class::Data, &need)?;
        let mut source = match payload {
            Payload::Copied(slices) => Source::Copied(Gather::new(slices)),
            Payload::Owned(spans) => Source::Owned(std::mem::take(spans).into()),
        };
        let seq = self.next_seq();
        let blocks = u64::from(blocks);
        let kind = EntryKind::Write;
        let request = Request { kind, lineage, lba, blocks, seq, goes_on: false };
        self.put_whole(request, &mut source);
        self.counters.written_bytes += bytes as u64;
        Ok(seq)
    }

    /// Makes a range read as zeros and keep its reservation.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist or the range is empty.
    pub fn zero(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.put_range(EntryKind::Zero, disk, lba, blocks)
    }

    /// Makes a range read as zeros and gives its space back.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist or the range is empty.
    pub fn discard(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.put_range(EntryKind::Discard, disk, lba, blocks)
    }

    /// Makes several changes of a disk as one: all of them are found later, or none. Their ranges
    /// do not overlap. The spans are taken unless this is refused.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist, there is no change, or a range is empty.
    pub fn change(&mut self, disk: DiskId, changes: &mut [Change]) -> Result<Seq, Refused> {
        let lineage = self.lineage_of(disk);
        let (mut data, mut need) = (0, Need::default());
        for change in changes.iter() {
            match change {
                Change::Write { spans, .. } => {
                    let blocks = blocks_of(spans);
                    assert!(blocks > 0, "an empty range");
                    data += blocks;
                    need.changes += blocks as usize;
                    need.leaves += leaves_of_run(blocks);
                }
                Change::Zero { blocks, .. } | Change::Discard { blocks, .. } => {
                    need.add_range(*blocks);
                }
            }
        }
        // Each may begin a batch of its own.
        need.blocks = data as u32 + 2 * changes.len() as u32;
        self.admit(Class::Data, &need)?;
        let seq = self.next_seq();
        let last = changes.len() - 1;
        let mut placed = Vec::new();
        for (at, change) in changes.iter_mut().enumerate() {
            let (kind, lba, blocks, mut source) = match change {
                Change::Write { lba, spans } => {
                    let blocks = blocks_of(spans);
                    let source = Source::Owned(std::mem::take(spans).into());
                    (EntryKind::Write, *lba, blocks, source)
                }
                Change::Zero { lba, blocks } => (EntryKind::Zero, *lba, *blocks, Source::Nothing),
                Change::Discard { lba, blocks } => {
                    (EntryKind::Discard, *lba, *blocks, Source::Nothing)
                }
            };
            let request = Request { kind, lineage, lba, blocks, seq, goes_on: at < last };
            self.put(request, &mut source, &mut placed);
        }
        self.apply_all(&placed);
        self.counters.written_bytes += data * BLOCK_BYTES;
        Ok(seq)
    }

    fn put_range(
        &mut self,
        kind: EntryKind,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
    ) -> Result<Seq, Refused> {
        let lineage = self.lineage_of(disk);
        let mut need = Need::default();
        need.add_range(blocks);
        self.admit(Class::Range, &need)?;
        let seq = self.next_seq();
        let request = Request { kind, lineage, lba, blocks, seq, goes_on: false };
        self.put_whole(request, &mut Source::Nothing);
        Ok(seq)
    }

    /// Puts a record into the log and applies it.
    pub(crate) fn put_record(&mut self, record: &Record) -> Result<Seq, Refused> {
        let class = match record {
            Record::Moved(_) | Record::Grown { .. } => Class::Relief,
            _ => Class::Range,
        };
        // A disk that shrinks or goes makes a range of its blocks.
        let need =
            Need { blocks: 1, copied: 1, changes: 0, ranges: 1, leaves: LEAVES_OF_RANGE_MAX };
        self.admit(class, &need)?;
        let has_grown = |disk: &Disk| {
            self.catalogue.disks.get(&disk.id).is_some_and(|old| old.bytes < disk.bytes)
        };
        let grows = matches!(record, Record::Disk(disk) if has_grown(disk));
        let mut block = record.encode();
        assert!(block.len() <= BLOCK_BYTES as usize, "a record fits a block");
        block.resize(BLOCK_BYTES as usize, 0);
        let seq = self.next_seq();
        let slices = [&block[..]];
        let mut source = Source::Copied(Gather::new(&slices));
        let (kind, lineage) = (EntryKind::Record, LineageId(0));
        let request = Request { kind, lineage, lba: Lba(0), blocks: 1, seq, goes_on: false };
        self.put_whole(request, &mut source);
        apply_record(&mut self.catalogue, &mut self.map, record);
        if !matches!(record, Record::Moved(_)) {
            self.note_record(seq, record, Vec::new());
        }
        if class == Class::Range {
            self.shape_changed(self.shape.resized + u64::from(grows));
        }
        Ok(seq)
    }

    fn next_seq(&mut self) -> Seq {
        self.seq = Seq(self.seq.0 + 1);
        self.seq
    }

    pub(crate) fn lineage_of(&self, disk: DiskId) -> LineageId {
        let known = self.catalogue.disks.get(&disk);
        known
            .unwrap_or_else(|| panic!("disk {disk} does not exist: the caller looked it up"))
            .lineage
    }

    /// Makes sure that nothing can stop a request half-way.
    fn admit(&mut self, class: Class, need: &Need) -> Result<(), Refused> {
        let Need { blocks, copied, changes, ranges, leaves } = *need;
        if let Some(cause) = self.state.refuses_writes() {
            return Err(Refused::Stopped(cause));
        }
        if self.is_healing() {
            return self.busy();
        }
        if class == Class::Data && self.is_behind() {
            self.drain_wanted = true;
            self.counters.busy += 1;
            return Err(Refused::Busy);
        }
        if !self.map.active.has_room(changes, ranges) {
            self.checkpoint_wanted = true;
            return self.busy();
        }
        let batches = u64::from(blocks / 32 + 2);
        let overhead = Log::overhead_pages(blocks);
        let (free, count) = {
            let pages = self.log.pages.borrow();
            (pages.free(), pages.count())
        };
        // Some pages stay for reads: they go on whatever stops the log. But a payload that lies in
        // pages already is let in by a log that holds none: those that are missing may be in the
        // hands of others who wait behind it.
        let for_reads = (count / 8).min(READ_PAGES_MAX);
        let is_last_way = copied == 0 && self.log.batches.is_empty();
        let pages = copied + overhead + if is_last_way { 0 } else { for_reads };
        if free < pages {
            self.pages_wanted = pages;
            return self.busy();
        }
        if !self.log.has_descriptors(batches) {
            return self.busy();
        }
        self.admit_space(class, blocks, leaves)
    }

    fn admit_space(&mut self, class: Class, blocks: u32, leaves: u64) -> Result<(), Refused> {
        let room = u64::from(self.segments.slot_blocks() - 2);
        // Data, a head for each batch of it, and what is lost at the end of segments.
        let need = u64::from(blocks) + u64::from(blocks) / 16 + 2;
        let left = u64::from(self.log.blocks_unused());
        let lost = u64::from(class == Class::Data);
        let slots = if need <= left { 0 } else { (need.div_ceil(room) + lost) as usize };
        let needed = match class {
            Class::Relief if slots == 0 => 0,
            Class::Relief => slots + 1,
            Class::Range => self.slots_reserved(leaves) + MARGIN_OF_RANGES + slots,
            Class::Data => self.slots_reserved(leaves) + MARGIN_OF_DATA + slots,
        };
        let free = self.segments.free_slots();
        // After a failure of the medium, what is not flushed is written again elsewhere.
        let again = self.log.retained_blocks.div_ceil(room * 3 / 4) as usize;
        if free < needed + again {
            self.want_backed_slots(needed + again);
        }
        if class == Class::Data && free < needed + again {
            self.flush_wanted = true;
            if free >= needed {
                return self.busy();
            }
        }
        if free < needed {
            self.compaction.slots_needed = self.compaction.slots_needed.max(needed);
            if class == Class::Data && again == 0 && !self.can_make_space() {
                return self.no_space();
            }
            return self.busy();
        }
        let taken = self.segments.live_blocks() + self.pages_to_come() + leaves;
        if class == Class::Data && taken + need > self.live_limit_blocks() {
            if self.segments.is_below_full() {
                // The limit is lower than the pool's: there may be space below again.
                self.want_backed_slots(free + 1);
            }
            if self.map.active.is_empty() && self.map.frozen.is_none() {
                return self.no_space();
            }
            self.checkpoint_wanted = true;
            return self.busy();
        }
        Ok(())
    }

    fn no_space(&mut self) -> Result<(), Refused> {
        self.compaction.slots_needed = 0;
        Err(Refused::NoSpace)
    }

    fn busy(&mut self) -> Result<(), Refused> {
        self.room_wanted = true;
        self.counters.busy += 1;
        Err(Refused::Busy)
    }

    pub(crate) fn live_blocks(&self) -> u64 {
        self.segments.live_blocks()
    }

    /// Whether compaction and checkpoints can still win slots.
    pub(crate) fn can_make_space(&self) -> bool {
        self.segments.pending_slots() > 0
            || self.segments.bare_available() > 0
            || self.map.frozen.is_some()
            || self.compaction.is_running()
            || !self.compaction.is_exhausted()
            || self.would_checkpoint_help()
    }

    /// Whether a checkpoint would show compaction dead blocks, or slots old enough to be emptied.
    pub(crate) fn would_checkpoint_help(&self) -> bool {
        !self.map.active.is_empty()
            || (self.compaction.is_exhausted() && self.bytes_since_checkpoint > 0)
    }

    /// Puts a request that is one entry into log and map.
    fn put_whole(&mut self, request: Request, source: &mut Source<'_>) {
        let mut placed = Vec::new();
        self.put(request, source, &mut placed);
        self.apply_all(&placed);
    }

    /// Puts an entry, and its data, into the log; cut into several if need be. The map changes only
    /// when all of a request is in the log: of one that is cut off there, a successor must not
    /// find anything in the map.
    fn put(&mut self, request: Request, source: &mut Source<'_>, placed: &mut Vec<Placed>) {
        let Request { kind, lineage, lba, blocks, seq, goes_on } = request;
        self.last_write_at = self.now;
        let mut done = 0;
        while done < blocks {
            let left = blocks - done;
            let wanted = if kind.has_data() { left.min(1 << 20) as u32 } else { 0 };
            let count = self.room_in_batch(wanted, source);
            let piece = if kind.has_data() { u64::from(count) } else { left };
            let entry = LogEntry {
                lineage,
                kind,
                continues: piece < left || goes_on,
                lba: Lba(lba.0 + done),
                blocks: piece,
                seq,
            };
            let data = match source {
                Source::Nothing => Blocks::Nothing,
                Source::Copied(gather) => Blocks::Copied(gather),
                Source::Owned(spans) => Blocks::Owned(take_blocks(spans, count)),
            };
            let (index, sums) = self.log.append(&entry, data);
            placed.push(Placed { entry, segment: self.log.segment.segment, index, sums });
            done += piece;
        }
    }

    /// How many blocks the open batch takes; opens another, and a segment for it, as needed.
    fn room_in_batch(&mut self, wanted: u32, source: &Source<'_>) -> u32 {
        let spans = if let Source::Owned(spans) = source { Some(spans) } else { None };
        loop {
            if let Some(count) = self.log.fits(wanted, spans) {
                // A small request is not cut in two for the sake of a full batch.
                if count == wanted || count >= 32 || self.log.open_is_empty() {
                    return count;
                }
            }
            self.log.close_batch();
            if !self.log.has_room() {
                self.roll(self.log.last());
            }
            self.log.open_batch();
        }
    }

    /// Goes on in the successor's slot, as a new segment.
    pub(crate) fn roll(&mut self, last: BatchNumber) {
        let (old, slot) = (self.log.segment.slot, self.log.segment.successor);
        self.keep_ids();
        let segment = self.segments.take_segment_id();
        let prepared = self.take_prepared();
        let successor = prepared.or_else(|| self.segments.take_slot(SegmentKind::Log));
        let successor = successor.unwrap_or_else(|| panic!("no slot left for the log"));
        self.segments.close_slot(old, self.checkpoints_begun);
        self.segments.add_whole(segment, SegmentKind::Log, slot);
        self.log.begin_segment(segment, slot, successor, last);
        let (before, number, _) = self.log.segment.before;
        self.scrub.segment_begins(segment, (before, number));
        self.count_flushes_anew();
        self.counters.segments += 1;
        self.note_segment();
    }

    /// A successor that goes on in place has to know where the log went on.
    pub(crate) fn note_segment(&mut self) {
        let OpenSegment { segment, slot, successor, before, .. } = self.log.segment;
        self.map.note(&Happened::Continued(Continued { segment, slot, successor, before }));
    }

    /// The same of a record that has been applied.
    pub(crate) fn note_record(&mut self, seq: Seq, record: &Record, directories: Vec<u8>) {
        let record = record.encode();
        self.map.note(&Happened::Recorded { seq, record, directories });
    }

    /// Brings the map up to entries of the log.
    fn apply_all(&mut self, placed: &[Placed]) {
        for Placed { entry, segment, index, sums } in placed {
            let sum = |at: u32| sums.get(at as usize).copied().unwrap_or_default();
            apply(&mut self.map, &mut self.segments, entry, *segment, *index, sum);
        }
    }
}

/// An entry in the log.
struct Placed {
    entry: LogEntry,
    segment: SegmentId,
    index: u32,
    sums: Vec<u32>,
}

/// Whose margin of free slots a request must leave (`reserve.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Data,
    /// Discards, zeroes, changes of disks.
    Range,
    /// What brings slots: records of compaction, and of a pool that has grown.
    Relief,
}

/// What a request takes, at most.
#[derive(Debug, Clone, Copy, Default)]
struct Need {
    /// Data blocks in the log.
    blocks: u32,
    /// Of these, pages that the log has to take for them.
    copied: u32,
    /// Blocks noted one by one, and ranges.
    changes: usize,
    ranges: usize,
    /// Leaves of the map that a fold will make anew because of it.
    leaves: u64,
}

/// Pages that stay for reads, of many; an eighth of few.
const READ_PAGES_MAX: u32 = 512;

/// A range changes the leaves at its ends, and those of an older one it cuts in two.
const LEAVES_OF_RANGE_MAX: u64 = 4;

impl Need {
    /// A run of zeros or holes is noted block by block, or as a range.
    fn add_range(&mut self, blocks: u64) {
        assert!(blocks > 0, "an empty range");
        if blocks > SMALL_RANGE_BLOCKS {
            self.ranges += 1;
            self.leaves += LEAVES_OF_RANGE_MAX;
        } else {
            self.changes += blocks as usize;
            self.leaves += leaves_of_run(blocks);
        }
    }
}

/// Leaves that so many blocks side by side touch, at most.
fn leaves_of_run(blocks: u64) -> u64 {
    blocks / FANOUT + 2
}

/// What goes into the log as one entry, or as several where one does not do.
struct Request {
    kind: EntryKind,
    lineage: LineageId,
    lba: Lba,
    blocks: u64,
    seq: Seq,
    /// Whether more of the same number follows.
    goes_on: bool,
}

/// Blocks that spans hold.
fn blocks_of(spans: &[Span]) -> u64 {
    let bytes: u64 = spans.iter().map(|span| u64::from(span.bytes())).sum();
    assert!(bytes.is_multiple_of(BLOCK_BYTES), "whole blocks");
    bytes / BLOCK_BYTES
}

/// Where the data of an entry comes from.
enum Source<'a> {
    Nothing,
    Copied(Gather<'a>),
    Owned(VecDeque<Span>),
}

/// The first `blocks` blocks of spans.
fn take_blocks(spans: &mut VecDeque<Span>, blocks: u32) -> Vec<Span> {
    let (mut taken, mut left) = (Vec::new(), blocks * PAGE_BYTES);
    while left > 0 {
        let Some(mut span) = spans.pop_front() else { break };
        if span.bytes() > left {
            spans.push_front(span.split_off(left));
        }
        left -= span.bytes();
        taken.push(span);
    }
    taken
}
