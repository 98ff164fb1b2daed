//! The head of the log: building, closing and writing batches, and knowing what is durable.
//!
//! Invariants:
//! - Batches have consecutive numbers; each names the checksum of the one before. One batch at a
//!   time is open; everything in it may be acknowledged, because it lies in the arena.
//! - A batch's bytes do not change from its closing to its release, and it is released only when
//!   it and every batch before it are on the medium *and flushed* (rules D5, D12).
//! - `durable` = a flush that was submitted after every batch up to it had completed has completed.

use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Part, SharedPages, Span};

use crate::format::{
    BATCH_DATA_BLOCKS_MAX, BatchHead, ENTRY_AREA_BYTES, ENTRY_AREA_START, Entries, EntryKind,
    LogEntry, Position, SegmentHeader, SegmentKind, block_checksum, entry_bytes, seal_batch,
};
use crate::staging::{Found, Progress, SPANS_MAX, Staging};
use crate::{BLOCK_BYTES, BatchNumber, Epoch, PoolId, SegmentId, Seq, SlotId};

/// Data pages a batch takes at a time for copied payloads.
const CHUNK_PAGES: u32 = 16;

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
    pub completed: BatchNumber,
    pub durable: BatchNumber,
    /// Checksum of the last batch released.
    released_checksum: u64,
    /// Blocks of the closed batches that are not released.
    pub retained_blocks: u64,
    /// Batches taken over from a dead process.
    pub adopted: u64,
    memory: Rc<Memory>,
    scratch: Vec<u8>,
}

/// Data blocks that go into a batch with an entry.
pub(crate) enum Blocks<'b, 'a> {
    /// None.
    Nothing,
    /// Bytes to be copied, taken from the front of the slices.
    Copied(&'b mut Gather<'a>),
    /// Pages that become part of the batch.
    Owned(Vec<Span>),
}

/// Takes bytes from the front of several slices.
#[derive(Debug)]
pub(crate) struct Gather<'a> {
    slices: &'a [&'a [u8]],
    skip: usize,
}

impl<'a> Gather<'a> {
    pub(crate) fn new(slices: &'a [&'a [u8]]) -> Gather<'a> {
        Gather { slices, skip: 0 }
    }

    /// Hands the next `count` bytes over, piece by piece, each with its place among them.
    fn take(&mut self, mut count: usize, mut each: impl FnMut(usize, &[u8])) {
        let mut at = 0;
        while count > 0 {
            let slice = &self.slices[0][self.skip..];
            let piece = &slice[..count.min(slice.len())];
            each(at, piece);
            at += piece.len();
            count -= piece.len();
            self.skip += piece.len();
            if self.skip == self.slices[0].len() {
                self.slices = &self.slices[1..];
                self.skip = 0;
            }
        }
    }
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
            completed: last.number,
            durable: last.number,
            released_checksum: last.checksum,
            retained_blocks: 0,
            adopted: 0,
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
        self.staging.open(&memory, number, head.part());
        let block = self.segment.next_block;
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
        let header = SegmentHeader {
            pool: self.identity.pool,
            kind: SegmentKind::Log,
            segment: self.segment.segment,
            epoch: self.identity.epoch,
            instance: self.identity.instance,
            slot: self.segment.slot,
            successor: Some(self.segment.successor),
            before: self.segment.before,
        };
        header.encode(self.identity.salt, memory.slice_mut(&mut span));
        span
    }

    /// Adds an entry with its data blocks to the open batch. Returns the segment index of its first
    /// data block and their checksums.
    ///
    /// # Panics
    /// If it does not fit ([`Log::fits`]).
    pub(crate) fn append(&mut self, entry: &LogEntry, blocks: Blocks<'_, '_>) -> (u32, Vec<u32>) {
        let memory = self.memory();
        let count = if entry.kind.has_data() { entry.blocks as u32 } else { 0 };
        let mut sums = Vec::with_capacity(count as usize);
        let broken = self.staging.is_publish_broken();
        let batch = self.batches.back().map(|batch| (batch.number, batch.progress, batch.block));
        let (number, before, block) = batch.unwrap_or_else(|| panic!("no batch is open"));
        if broken {
            let progress = Progress { entries: before.entries + 1, ..before };
            self.staging.publish(&memory, number, progress);
        }
        match blocks {
            Blocks::Nothing => assert!(count == 0),
            Blocks::Copied(gather) => self.copy_in(&memory, gather, count, &mut sums),
            Blocks::Owned(spans) => self.take_over(&memory, spans, count, &mut sums),
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        entry.encode(&sums, &mut bytes);
        let batch = self.batches.back_mut().unwrap_or_else(|| panic!("no batch is open"));
        assert!(batch.entry_bytes + bytes.len() <= ENTRY_AREA_BYTES);
        memory.write(&mut batch.head, (ENTRY_AREA_START + batch.entry_bytes) as u32, &bytes);
        batch.entry_bytes += bytes.len();
        batch.progress = Progress {
            entries: before.entries + 1,
            data_blocks: before.data_blocks + count as u16,
            checksum: before.extend(&bytes),
        };
        batch.first_seq.get_or_insert(entry.seq);
        let progress = batch.progress;
        self.staging.publish(&memory, number, progress);
        self.scratch = bytes;
        (block + 1 + u32::from(before.data_blocks), sums)
    }

    fn copy_in(
        &mut self,
        memory: &Memory,
        gather: &mut Gather<'_>,
        count: u32,
        sums: &mut Vec<u32>,
    ) {
        for left in (1..=count).rev() {
            self.make_room(memory, left);
            let salt = self.identity.salt;
            let batch = self.batches.back_mut().unwrap_or_else(|| panic!("no batch is open"));
            let span = batch.data.last_mut().unwrap_or_else(|| panic!("no room was made"));
            let at = span.bytes() - batch.room_blocks * PAGE_BYTES;
            gather.take(PAGE_BYTES as usize, |skip, piece| {
                memory.write(span, at + skip as u32, piece);
            });
            let bytes = &memory.slice(span)[at as usize..(at + PAGE_BYTES) as usize];
            sums.push(block_checksum(salt, bytes));
            batch.room_blocks -= 1;
        }
    }

    /// Makes sure there is a page for one more copied block, of `wanted` to come.
    fn make_room(&mut self, memory: &Memory, wanted: u32) {
        let batch = self.batches.back_mut().unwrap_or_else(|| panic!("no batch is open"));
        if batch.room_blocks > 0 {
            return;
        }
        let mut pages = self.pages.borrow_mut();
        let run = CHUNK_PAGES.max(wanted.min(64));
        let span = pages.take(run).or_else(|| pages.take(1));
        let span = span.unwrap_or_else(|| panic!("no page left for the log"));
        self.staging.span(memory, batch.number, batch.data.len(), span.part());
        batch.room_blocks = span.bytes() / PAGE_BYTES;
        batch.data.push(span);
    }

    fn take_over(&mut self, memory: &Memory, spans: Vec<Span>, count: u32, sums: &mut Vec<u32>) {
        self.trim(memory);
        let salt = self.identity.salt;
        let batch = self.batches.back_mut().unwrap_or_else(|| panic!("no batch is open"));
        let mut blocks = 0;
        for span in spans {
            for block in memory.slice(&span).chunks_exact(BLOCK_BYTES as usize) {
                sums.push(block_checksum(salt, block));
            }
            blocks += span.bytes() / PAGE_BYTES;
            self.staging.span(memory, batch.number, batch.data.len(), span.part());
            batch.data.push(span);
        }
        assert_eq!(blocks, count, "an owned payload is as long as its entry says");
    }

    /// Gives the unused pages behind the last copied block back.
    fn trim(&mut self, memory: &Memory) {
        let batch = self.batches.back_mut().unwrap_or_else(|| panic!("no batch is open"));
        if batch.room_blocks == 0 {
            return;
        }
        let mut last = batch.data.pop().unwrap_or_else(|| panic!("room without a span"));
        let rest = last.split_off(last.bytes() - batch.room_blocks * PAGE_BYTES);
        batch.room_blocks = 0;
        self.pages.borrow_mut().give(rest);
        if last.bytes() > 0 {
            self.staging.span(memory, batch.number, batch.data.len(), last.part());
            batch.data.push(last);
        }
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

    /// A batch that is not released.
    pub(crate) fn find(&self, number: BatchNumber) -> Option<&Batch> {
        let first = self.batches.front()?.number.0;
        self.batches.get(usize::try_from(number.0.checked_sub(first)?).ok()?)
    }

    fn find_mut(&mut self, number: BatchNumber) -> Option<&mut Batch> {
        let first = self.batches.front()?.number.0;
        self.batches.get_mut(usize::try_from(number.0.checked_sub(first)?).ok()?)
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

    /// The bytes of a block that is still in the arena, as a part.
    pub(crate) fn in_memory(&self, segment: SegmentId, index: u32) -> Option<&[u8]> {
        if self.batches.front().is_none_or(|batch| batch.segment > segment) {
            return None;
        }
        let at =
            self.batches.partition_point(|batch| (batch.segment, batch.block) <= (segment, index));
        let batch = self.batches.get(at.checked_sub(1)?)?;
        let block = index.checked_sub(batch.block + 1)?;
        if batch.segment != segment || block >= u32::from(batch.progress.data_blocks) {
            return None;
        }
        self.block_of(batch, block)
    }

    /// A data block of a batch.
    fn block_of<'a>(&'a self, batch: &'a Batch, mut block: u32) -> Option<&'a [u8]> {
        for span in &batch.data {
            let blocks = span.bytes() / PAGE_BYTES;
            if block < blocks {
                let at = (block * PAGE_BYTES) as usize;
                return self.memory.slice(span).get(at..at + PAGE_BYTES as usize);
            }
            block -= blocks;
        }
        None
    }

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
            batch.first_seq.get_or_insert(entry.entry.seq);
            batch.entry_bytes += entry.bytes.len();
            progress.checksum = progress.extend(entry.bytes);
            progress.entries += 1;
            let blocks = if entry.entry.kind.has_data() { entry.entry.blocks as u32 } else { 0 };
            progress.data_blocks += blocks as u16;
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
        self.seal(&memory, at);
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
    pub(crate) fn entries_of(&self, at: usize) -> Entries<'_> {
        let batch = &self.batches[at];
        Entries::new(self.memory.slice(&batch.head), u32::from(batch.progress.entries))
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

    /// Pages a payload of `blocks` blocks may need beyond itself: heads of batches, headers of
    /// segments, and the chunk that is not used up.
    pub(crate) fn overhead_pages(blocks: u32) -> u32 {
        2 * (blocks / 64 + 3) + CHUNK_PAGES
    }
}
