//! Batches that get another place: those a dead process left in the arena, and those the medium
//! failed to take.
//!
//! Invariants:
//! - A batch keeps its number, its entries and its data; only its place, and with it its head,
//!   are made anew.
//! - Places follow one another as the numbers do, so that the chain holds.

use bowline_arena::Span;

use super::{Batch, Log, OpenSegment, Stage};
use crate::format::{Entries, FoundEntry, Position, block_checksum};
use crate::index::Continued;
use crate::staging::{Found, Place, Placed, Progress};
use crate::{BatchNumber, SegmentId, SlotId};

impl Log {
    /// A batch a dead process left in the arena joins the log; it has no place on the medium yet.
    ///
    /// # Errors
    /// If its bytes are not what its record says: the arena is damaged.
    pub(crate) fn adopt(
        &mut self,
        found: &Found,
        head: Span,
        data: Vec<Span>,
    ) -> Result<(), String> {
        assert_eq!(found.number, self.next_number, "adopted batches follow one another");
        let mut batch = Batch {
            number: found.number,
            stage: Stage::Completed,
            segment: SegmentId(0),
            slot: SlotId(0),
            block: 0,
            checksum: 0,
            first_seq: None,
            progress: found.progress,
            head,
            entry_bytes: 0,
            data,
            room_blocks: 0,
            header: None,
            is_retried: false,
        };
        let mut progress = Progress::default();
        let mut is_sound = true;
        let head = self.memory.slice(&batch.head);
        for entry in Entries::new(head, u32::from(found.progress.entries)) {
            let entry = entry.map_err(|bad| {
                format!("batch {} in the arena cannot be used: {bad}", found.number)
            })?;
            batch.first_seq.get_or_insert(entry.entry.seq);
            batch.entry_bytes += entry.bytes.len();
            progress.checksum = progress.extend(entry.bytes);
            progress.entries += 1;
            let blocks = if entry.entry.kind.has_data() { entry.entry.blocks as u32 } else { 0 };
            progress.data_blocks = progress.data_blocks.saturating_add(blocks as u16);
            is_sound &= (0..blocks).all(|at| {
                self.block_of(&batch, entry.data_block + at).is_some_and(|bytes| {
                    block_checksum(self.identity.salt, bytes) == entry.checksum(at)
                })
            });
        }
        if !is_sound || progress != found.progress {
            let what = if is_sound { "its entries" } else { "its data" };
            return Err(format!("batch {} in the arena does not verify: {what}", found.number));
        }
        self.next_number = BatchNumber(found.number.0 + 1);
        self.adopted += 1;
        self.batches.push_back(batch);
        Ok(())
    }

    /// The batch adopted last lies where it lay, and is open or closed as it was. If it is the
    /// first of its segment, the header is written with it.
    pub(crate) fn resume(&mut self, placed: &Placed, is_open: bool, first_of: Option<&Continued>) {
        let memory = self.memory();
        let header = first_of.map(|one| {
            let mut span = self.take_page();
            self.encode_header_of(*one, memory.slice_mut(&mut span));
            span
        });
        let batch = self.batches.back_mut().unwrap_or_else(|| panic!("none was adopted"));
        batch.segment = placed.place.segment;
        batch.slot = placed.place.slot;
        batch.block = placed.place.block;
        batch.header = header;
        if let Some(checksum) = placed.checksum.filter(|_| !is_open) {
            (batch.stage, batch.checksum) = (Stage::Closed, checksum);
            self.previous = checksum;
            self.retained_blocks += u64::from(batch.blocks());
            return;
        }
        batch.stage = Stage::Open;
        // What was half admitted is left out, and so are the pages nothing was put into.
        let (number, progress) = (batch.number, batch.progress);
        let last = batch.data.len().checked_sub(1).map(|at| (at, batch.data[at].part()));
        self.staging.reopen(&memory, number);
        self.staging.publish(&memory, number, progress);
        if let Some((at, part)) = last {
            self.staging.span(&memory, number, at, part);
        }
    }

    /// Everything adopted is on the medium and flushed.
    pub(crate) fn settled(&mut self) {
        self.batches.iter_mut().for_each(|batch| batch.stage = Stage::Completed);
        self.completed = self.last();
        self.flushed(self.last());
        let memory = self.memory();
        self.staging.release(&memory, self.durable);
    }

    /// Gives batch `at` a place behind the last one placed, in the current segment, and closes it
    /// anew. Its entries and data stay as they are.
    ///
    /// # Panics
    /// If the segment has no room for it.
    pub(crate) fn place(&mut self, at: usize) {
        assert!(self.batches[at].blocks() <= self.blocks_left());
        let memory = self.memory();
        let header = self.segment.is_fresh.then(|| self.segment_header(&memory));
        self.segment.is_fresh = false;
        let batch = &mut self.batches[at];
        batch.segment = self.segment.segment;
        batch.slot = self.segment.slot;
        batch.block = self.segment.next_block;
        batch.is_retried = false;
        if let Some(old) = std::mem::replace(&mut batch.header, header) {
            self.pages.borrow_mut().give(old);
        }
        let Batch { number, segment, slot, block, .. } = *batch;
        let place = Place { segment, slot, block, previous: self.previous };
        self.staging.place(&memory, number, &place);
        self.seal(&memory, at);
        self.note_placed(at + 1);
    }

    /// The headers of segments that are not gone on with give their pages back: there may be no
    /// other for those of new ones. Nothing is in flight.
    pub(crate) fn drop_headers(&mut self) {
        let mut pages = self.pages.borrow_mut();
        let headers = self.batches.iter_mut().filter_map(|batch| batch.header.take());
        headers.for_each(|header| pages.give(header));
    }

    /// Where the batch with a number ends, if it is not released.
    pub(crate) fn position_behind(&self, number: BatchNumber) -> Option<Position> {
        let batch = self.find(number)?;
        Some(Position {
            segment: batch.segment,
            slot: batch.slot,
            block: batch.block + batch.blocks(),
            number,
            checksum: batch.checksum,
        })
    }

    /// The checksum of a batch that is not released, or of the last one that is.
    pub(crate) fn checksum_of(&self, number: BatchNumber) -> u64 {
        self.find(number).map_or(self.released_checksum, |batch| batch.checksum)
    }

    /// The chain goes on behind a batch that is on the medium: everything later gets a new place.
    pub(crate) fn rewind(&mut self, last: BatchNumber) {
        self.previous = self.checksum_of(last);
        self.completed = self.completed.min(last);
    }

    /// The entries of batch `at`.
    ///
    /// # Panics
    /// If one makes no sense: they were put there by [`Log::append`], or verified on adoption.
    pub(crate) fn entries_of(&self, at: usize) -> impl Iterator<Item = FoundEntry<'_>> {
        let batch = &self.batches[at];
        Entries::new(self.memory.slice(&batch.head), u32::from(batch.progress.entries))
            .map(|found| found.unwrap_or_else(|bad| panic!("the log's own {bad}")))
    }

    /// Goes on in a new segment. The caller has opened its slot and that of its successor, and says
    /// which batch comes before it.
    pub(crate) fn begin_segment(
        &mut self,
        segment: SegmentId,
        slot: SlotId,
        successor: SlotId,
        last: BatchNumber,
    ) {
        assert!(self.open().is_none());
        self.segment = OpenSegment {
            segment,
            slot,
            successor,
            next_block: 1,
            is_fresh: true,
            before: (self.segment.segment, last, self.previous),
        };
    }
}
