//! Entries and their data going into the open batch.
//!
//! Invariants:
//! - An entry is published in the arena only after its bytes and its data lie there: what a dead
//!   process published is whole.
//! - Unused pages lie only behind the last copied block; they are given back before a payload's own
//!   pages follow, and when the batch is closed.

use bowline_arena::{Memory, PAGE_BYTES, Span};

use super::Log;
use crate::BLOCK_BYTES;
use crate::format::{ENTRY_AREA_BYTES, ENTRY_AREA_START, LogEntry, block_checksum};
use crate::staging::Progress;

/// Data pages a batch takes at a time for copied payloads.
pub(super) const CHUNK_PAGES: u32 = 16;

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

impl Log {
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
        self.seq = self.seq.max(entry.seq);
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
    pub(super) fn trim(&mut self, memory: &Memory) {
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
}
