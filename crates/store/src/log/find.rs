//! Looking for batches that are not released, and for blocks in them.
//!
//! Invariant: batches lie in the order of their numbers, and so do their places, but for one case:
//! while they get other places, one after the other, or when that was broken off. Those that have
//! a new one lie behind all others then. `stretches` says where a run of batches ends whose places
//! are in order.

use std::ops::Range;

use bowline_arena::PAGE_BYTES;

use super::{Batch, Log};
use crate::{BatchNumber, SegmentId};

impl Log {
    /// A batch that is not released.
    pub(crate) fn find(&self, number: BatchNumber) -> Option<&Batch> {
        let first = self.batches.front()?.number.0;
        self.batches.get(usize::try_from(number.0.checked_sub(first)?).ok()?)
    }

    pub(super) fn find_mut(&mut self, number: BatchNumber) -> Option<&mut Batch> {
        let first = self.batches.front()?.number.0;
        self.batches.get_mut(usize::try_from(number.0.checked_sub(first)?).ok()?)
    }

    /// The batches up to `placed` have their new places, and those behind it the old ones.
    pub(super) fn note_placed(&mut self, placed: usize) {
        self.stretches.retain(|end| *end > placed);
        self.stretches.insert(0, placed);
        if placed == self.batches.len() {
            self.stretches.clear();
        }
    }

    /// The bytes of a block that is still in the arena.
    pub(crate) fn in_memory(&self, segment: SegmentId, index: u32) -> Option<&[u8]> {
        let all = self.batches.len();
        let mut from = 0;
        for end in self.stretches.iter().copied().chain([all]) {
            let end = end.clamp(from, all);
            if let Some(bytes) = self.in_stretch(from..end, segment, index) {
                return Some(bytes);
            }
            from = end;
        }
        None
    }

    fn in_stretch(&self, of: Range<usize>, segment: SegmentId, index: u32) -> Option<&[u8]> {
        if self.batches.get(of.start).is_none_or(|batch| batch.segment > segment) {
            return None;
        }
        let (mut low, mut high) = (of.start, of.end);
        while low < high {
            let middle = low.midpoint(high);
            let batch = self.batches.get(middle)?;
            if (batch.segment, batch.block) <= (segment, index) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let at = low.checked_sub(1).filter(|at| *at >= of.start)?;
        let batch = self.batches.get(at)?;
        let block = index.checked_sub(batch.block + 1)?;
        if batch.segment != segment || block >= u32::from(batch.progress.data_blocks) {
            return None;
        }
        self.block_of(batch, block)
    }

    /// A data block of batch `at`.
    pub(crate) fn data_block(&self, at: usize, block: u32) -> Option<Vec<u8>> {
        self.block_of(self.batches.get(at)?, block).map(<[u8]>::to_vec)
    }

    /// A data block of a batch.
    pub(super) fn block_of<'a>(&'a self, batch: &'a Batch, mut block: u32) -> Option<&'a [u8]> {
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
}
