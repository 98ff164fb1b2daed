//! The head of the log: building, closing and writing batches, and knowing what is durable.
//!
//! Invariants:
//! - Batches have consecutive numbers; each names the checksum of the one before. One batch at a
//!   time is open; everything in it may be acknowledged, because it lies in the arena.
//! - A batch's bytes do not change from its closing to its release, and it is released only when
//!   it and every batch before it are on the medium *and flushed* (rules D5, D12).
//! - `durable` = a flush that was submitted after every batch up to it had completed has completed.

mod fill;
mod find;
mod place;

use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Part, SharedPages, Span};

use crate::api::ADMISSION_PAGES_MAX;
use crate::format::{
    BATCH_DATA_BLOCKS_MAX, BatchHead, ENTRY_AREA_BYTES, EntryKind, Position, SegmentHeader,
    SegmentKind, entry_bytes, seal_batch,
};
use crate::index::Continued;
use crate::staging::{Place, Progress, SPANS_MAX, Staging};
use crate::{BatchNumber, Epoch, PoolId, SegmentId, Seq, SlotId};

use fill::CHUNK_PAGES;
pub(crate) use fill::{Blocks, Gather};

/// Where a batch is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Takes entries.
    Open,
    /// Takes nothing more and waits to be written.
    Closed,
    /// Being written.
    Submitted,
    /// On the medium, perhaps in a volatile cache.
    Completed,
}

/// A batch in the arena.
#[derive(Debug)]
pub(crate) struct Batch {
    pub number: BatchNumber,
    pub stage: Stage,
    pub segment: SegmentId,
    pub slot: SlotId,
    /// The block of the slot where its head lies.
    pub block: u32,
    /// Its checksum, once closed.
    pub checksum: u64,
    /// The first write that has an entry in it.
    pub first_seq: Option<Seq>,
    pub progress: Progress,
    head: Span,
    /// Bytes of entries in the head block.
    entry_bytes: usize,
    data: Vec<Span>,
    /// Data blocks there is room for in `data`.
    room_blocks: u32,
    /// The header of the segment, if this is the first batch in it.
    header: Option<Span>,
    is_retried: bool,
}

/// The log's own place on the medium.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenSegment {
    pub segment: SegmentId,
    pub slot: SlotId,
    pub successor: SlotId,
    /// The block where the next batch begins.
    pub next_block: u32,
    /// Whether the header still has to be written, with the next batch.
    pub is_fresh: bool,
    /// The batch before the segment.
    pub before: (SegmentId, BatchNumber, u64),
}

impl OpenSegment {
    /// No segment: the log of a pool that is not written to.
    pub(crate) fn nowhere(last: Position) -> OpenSegment {
        OpenSegment {
            segment: last.segment,
            slot: last.slot,
            successor: last.slot,
            next_block: last.block,
            is_fresh: false,
            before: (last.segment, last.number, last.checksum),
        }
    }
}

/// What identifies the pool and the writer in everything written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub pool: PoolId,
    pub salt: u64,
    pub epoch: Epoch,
    pub instance: u64,
    pub slot_blocks: u32,
}

/// The head of the log.
pub(crate) struct Log {
    pub identity: Identity,
    pub pages: SharedPages,
    pub staging: Staging,
    pub segment: OpenSegment,
    /// Batches that are not released, oldest first.
    pub batches: VecDeque<Batch>,
    pub next_number: BatchNumber,
    /// Checksum of the last closed batch.
    pub previous: u64,
    /// The last request in it.
    pub seq: Seq,
    pub completed: BatchNumber,
    pub durable: BatchNumber,
    /// Checksum of the last batch released.
    released_checksum: u64,
    /// Blocks of the closed batches that are not released.
    pub retained_blocks: u64,
    /// Batches taken over from a dead process.
    pub adopted: u64,
    /// Where runs of batches end whose places follow one another; none if those of all do.
    stretches: Vec<usize>,
    memory: Rc<Memory>,
    scratch: Vec<u8>,
}

impl Batch {
    /// Blocks it takes on the medium.
    pub(crate) fn blocks(&self) -> u32 {
        1 + u32::from(self.progress.data_blocks)
    }
}

impl Log {
    pub(crate) fn new(
        identity: Identity,
        pages: SharedPages,
        staging: Staging,
        segment: OpenSegment,
        last: Position,
    ) -> Log {
        let memory = pages.borrow().memory().clone();
        Log {
            identity,
            memory,
            pages,
            staging,
            segment,
            batches: VecDeque::new(),
            next_number: BatchNumber(last.number.0 + 1),
            previous: last.checksum,
            seq: Seq(0),
            completed: last.number,
            durable: last.number,
            released_checksum: last.checksum,
            retained_blocks: 0,
            adopted: 0,
            stretches: Vec::new(),
            scratch: Vec::new(),
        }
    }

    fn memory(&self) -> Rc<Memory> {
        self.memory.clone()
    }

    /// Whether nothing has been put into a batch that is still open.
    pub(crate) fn open_is_empty(&self) -> bool {
        self.open().is_none_or(|batch| batch.progress.entries == 0)
    }

    /// The batch that takes entries, if one is open.
    pub(crate) fn open(&self) -> Option<&Batch> {
        self.batches.back().filter(|batch| batch.stage == Stage::Open)
    }

    /// The number of the last batch that has entries.
    pub(crate) fn last(&self) -> BatchNumber {
        BatchNumber(self.next_number.0 - 1)
    }

    /// Blocks left in the segment for the open batch, or for the next one with its head.
    pub(crate) fn blocks_left(&self) -> u32 {
        self.identity.slot_blocks - self.segment.next_block
    }

    /// Whether the segment has room for another batch of at least one block of data.
    pub(crate) fn has_room(&self) -> bool {
        self.blocks_left() >= 2
    }

    /// Blocks of the segment that nothing has been put into.
    pub(crate) fn blocks_unused(&self) -> u32 {
        let open = self.open().map_or(0, Batch::blocks);
        self.blocks_left().saturating_sub(open)
    }

    /// Whether so many more batches may be opened before one is released.
    pub(crate) fn has_descriptors(&self, count: u64) -> bool {
        self.batches.len() as u64 + count < self.staging.capacity()
    }

    /// How many of `blocks` data blocks an entry in the open batch can have now; none if no entry
    /// fits or none is open. Of an owned payload, `spans` are the pages of each span.
    pub(crate) fn fits(&self, blocks: u32, spans: Option<&VecDeque<Span>>) -> Option<u32> {
        let batch = self.open()?;
        let area =
            ENTRY_AREA_BYTES.checked_sub(batch.entry_bytes + entry_bytes(EntryKind::Zero, 0))?;
        if blocks == 0 {
            return Some(0);
        }
        // Trimming may cut the last span in two, and so take one place more.
        let places = SPANS_MAX.checked_sub(batch.data.len() + 2)?;
        let by_spans = match spans {
            None => batch.room_blocks + places as u32,
            Some(spans) => spans.iter().take(places).map(|span| span.bytes() / PAGE_BYTES).sum(),
        };
        let used = u32::from(batch.progress.data_blocks);
        let by_data = BATCH_DATA_BLOCKS_MAX - used;
        let by_segment = self.identity.slot_blocks - (batch.block + 1 + used);
        let by_area = (area / 8 * 8 / 4) as u32;
        let count = blocks.min(by_spans).min(by_data).min(by_segment).min(by_area);
        Some(count).filter(|count| *count > 0)
    }

    /// Opens a batch.
    ///
    /// # Panics
    /// If one is open, the segment is full, or no page is free: the caller has made sure.
    pub(crate) fn open_batch(&mut self) {
        assert!(self.open().is_none() && self.has_room());
        let memory = self.memory();
        let header = self.segment.is_fresh.then(|| self.segment_header(&memory));
        let mut head = self.take_page();
        memory.write(&mut head, 0, &[0; PAGE_BYTES as usize]);
        let number = self.next_number;
        self.next_number = BatchNumber(number.0 + 1);
        let block = self.segment.next_block;
        let OpenSegment { segment, slot, .. } = self.segment;
        let place = Place { segment, slot, block, previous: self.previous };
        self.staging.open(&memory, number, head.part(), &place);
        self.segment.is_fresh = false;
        self.batches.push_back(Batch {
            number,
            stage: Stage::Open,
            segment: self.segment.segment,
            slot: self.segment.slot,
            block,
            checksum: 0,
            first_seq: None,
            progress: Progress::default(),
            head,
            entry_bytes: 0,
            data: Vec::new(),
            room_blocks: 0,
            header,
            is_retried: false,
        });
    }

    fn take_page(&mut self) -> Span {
        let page = self.pages.borrow_mut().take(1);
        page.unwrap_or_else(|| panic!("no page left for the log: admission let too much in"))
    }

    fn segment_header(&mut self, memory: &Memory) -> Span {
        let mut span = self.take_page();
        self.encode_header(memory.slice_mut(&mut span));
        span
    }

    /// Writes the header of the segment into a block.
    pub(crate) fn encode_header(&self, block: &mut [u8]) {
        let OpenSegment { segment, slot, successor, before, .. } = self.segment;
        self.encode_header_of(Continued { segment, slot, successor, before }, block);
    }

    fn encode_header_of(&self, one: Continued, block: &mut [u8]) {
        let header = SegmentHeader {
            pool: self.identity.pool,
            kind: SegmentKind::Log,
            segment: one.segment,
            epoch: self.identity.epoch,
            instance: self.identity.instance,
            slot: one.slot,
            successor: Some(one.successor),
            before: one.before,
        };
        header.encode(self.identity.salt, block);
    }

    /// Closes the open batch, if there is one: it takes its place in the chain.
    pub(crate) fn close_batch(&mut self) {
        if self.open().is_none() {
            return;
        }
        let memory = self.memory();
        self.trim(&memory);
        let at = self.batches.len() - 1;
        self.retained_blocks += u64::from(self.batches[at].blocks());
        self.seal(&memory, at);
        bowline_arena::fail_point!("log.batch.closed");
    }

    /// Writes the head of batch `at` for its place in the chain.
    fn seal(&mut self, memory: &Memory, at: usize) {
        let batch = &mut self.batches[at];
        let mut head = BatchHead {
            entries: u32::from(batch.progress.entries),
            data_blocks: u32::from(batch.progress.data_blocks),
            instance: self.identity.instance,
            epoch: self.identity.epoch,
            segment: batch.segment,
            block: batch.block,
            number: batch.number,
            previous: self.previous,
            durable_upto: self.durable,
            checksum: 0,
        };
        let bytes = seal_batch(self.identity.salt, &mut head, memory.slice(&batch.head));
        memory.write(&mut batch.head, 0, &bytes);
        batch.checksum = head.checksum;
        batch.stage = Stage::Closed;
        self.staging.close(memory, head.number, head.checksum, self.seq);
        self.previous = head.checksum;
        self.segment.next_block = batch.block + 1 + head.data_blocks;
    }

    /// The position just behind the last closed batch.
    ///
    /// # Panics
    /// If a batch is open.
    pub(crate) fn position(&self) -> Position {
        assert!(self.open().is_none());
        Position {
            segment: self.segment.segment,
            slot: self.segment.slot,
            block: self.segment.next_block,
            number: self.last(),
            checksum: self.previous,
        }
    }

    /// The next closed batch to be written: where in its slot, the parts, and its bytes.
    pub(crate) fn submit_next(&mut self) -> Option<(BatchNumber, SlotId, u32, Vec<Part>)> {
        let batch = self.batches.iter_mut().find(|batch| batch.stage == Stage::Closed)?;
        batch.stage = Stage::Submitted;
        let mut parts = Vec::with_capacity(batch.data.len() + 2);
        parts.extend(batch.header.as_ref().map(Span::part));
        parts.push(batch.head.part());
        parts.extend(batch.data.iter().map(Span::part));
        let block = batch.block - u32::from(batch.header.is_some());
        Some((batch.number, batch.slot, block, parts))
    }

    /// The last batch before the first that waits to be written.
    pub(crate) fn submitted_through(&self) -> BatchNumber {
        let waits = |batch: &&Batch| matches!(batch.stage, Stage::Open | Stage::Closed);
        let first = self.batches.iter().find(waits);
        first.map_or(self.last(), |batch| BatchNumber(batch.number.0 - 1))
    }

    /// Blocks of the batches that wait to be written, the open one with them.
    pub(crate) fn waiting_blocks(&self) -> u64 {
        let waits = |batch: &&Batch| matches!(batch.stage, Stage::Open | Stage::Closed);
        self.batches.iter().rev().take_while(waits).map(|batch| u64::from(batch.blocks())).sum()
    }

    /// A batch is on the medium.
    pub(crate) fn complete(&mut self, number: BatchNumber) {
        if let Some(batch) = self.find_mut(number) {
            batch.stage = Stage::Completed;
        }
        let first = self.batches.front().map_or(self.next_number.0, |batch| batch.number.0);
        let from = (self.completed.0 + 1).max(first) - first;
        for batch in self.batches.iter().skip(from as usize) {
            if batch.stage != Stage::Completed {
                break;
            }
            self.completed = batch.number;
        }
    }

    /// A write of a batch failed: it may be tried once more. False if it has been.
    pub(crate) fn retry(&mut self, number: BatchNumber) -> bool {
        let Some(batch) = self.find_mut(number).filter(|batch| !batch.is_retried) else {
            return false;
        };
        batch.is_retried = true;
        batch.stage = Stage::Closed;
        true
    }

    /// A flush that was submitted when everything up to `covered` had completed is done.
    pub(crate) fn flushed(&mut self, covered: BatchNumber) {
        self.durable = self.durable.max(covered);
        if self.batches.front().is_none_or(|batch| batch.number > self.durable) {
            return;
        }
        let memory = self.memory();
        self.staging.release(&memory, self.durable);
        while self.batches.front().is_some_and(|batch| batch.number <= self.durable) {
            let Some(batch) = self.batches.pop_front() else { break };
            self.released_checksum = batch.checksum;
            self.retained_blocks = self.retained_blocks.saturating_sub(batch.blocks().into());
            let mut pages = self.pages.borrow_mut();
            pages.give(batch.head);
            batch.header.into_iter().chain(batch.data).for_each(|span| pages.give(span));
        }
    }

    /// Pages a payload of `blocks` blocks may need beyond itself: heads of batches, headers of
    /// segments, and the chunk that is not used up.
    pub(crate) const fn overhead_pages(blocks: u32) -> u32 {
        2 * (blocks / 64 + 3) + CHUNK_PAGES
    }
}

const _: () = assert!(Log::overhead_pages((32 << 20) / PAGE_BYTES + 2) <= ADMISSION_PAGES_MAX);
