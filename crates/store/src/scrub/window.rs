//! The part of the medium a scrub has in memory.
//!
//! Invariants:
//! - While it is read from or held, its slot is not opened by anybody: what is in memory is what
//!   lies on the medium, or was there when it was read.
//! - A run that the medium cannot read is read again block by block, each twice, so that what is
//!   unreadable is known to the block.

use std::collections::BTreeSet;

use bowline_arena::{Memory, PAGE_BYTES, Part, Span};

use crate::{BLOCK_BYTES, Micros, SlotId};

/// Most blocks read at a time: the head of an image that fills the largest slot fits.
pub(super) const WINDOW_BLOCKS_MAX: u32 = 128;

/// A run of blocks on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Byte offset on the medium.
    pub at: u64,
    pub blocks: u32,
    /// The slot it lies in, if it lies in one.
    pub slot: Option<SlotId>,
}

/// What the window is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Empty,
    /// The whole run, or one block of it: which, and whether for the second time.
    Reading {
        single: Option<(u32, bool)>,
    },
    /// One block, or a flush, on its way to the medium.
    Writing,
    Holds,
}

/// A block of the window.
pub(super) enum Found<'a> {
    Bytes(&'a [u8]),
    Unreadable,
}

/// The window.
#[derive(Default)]
pub(super) struct Window {
    buffer: Option<Span>,
    run: Option<Run>,
    stage: Stage,
    bad: BTreeSet<u32>,
    /// When the I/O under way was submitted.
    pub submitted_at: Micros,
}

impl Window {
    pub(super) fn has_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    pub(super) fn give_buffer(&mut self, buffer: Span) {
        self.buffer = Some(buffer);
    }

    pub(super) fn take_buffer(&mut self) -> Option<Span> {
        self.buffer.take()
    }

    /// Blocks it has room for.
    pub(super) fn room(&self) -> u32 {
        self.buffer.as_ref().map_or(0, |span| span.bytes() / PAGE_BYTES)
    }

    /// Whether the medium has something to do for it.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Reading { .. } | Stage::Writing)
    }

    /// Begins to read a run; it must fit.
    pub(super) fn begin(&mut self, run: Run) {
        self.run = Some(run);
        self.bad.clear();
        self.stage = Stage::Reading { single: None };
    }

    /// The next read of the run that has begun, if one is needed.
    pub(super) fn next_read(&self) -> Option<(u64, Part)> {
        let (run, buffer) = (self.run?, self.buffer.as_ref()?);
        let Stage::Reading { single } = self.stage else { return None };
        let (first, blocks) = single.map_or((0, run.blocks), |(block, _)| (block, 1));
        let part = buffer.part().sub(first * PAGE_BYTES, blocks * PAGE_BYTES);
        Some((run.at + u64::from(first) * BLOCK_BYTES, part))
    }

    /// A read has come back. Whether another one is needed.
    pub(super) fn read_done(&mut self, is_good: bool) -> bool {
        let Some(run) = self.run else { return false };
        let Stage::Reading { single } = self.stage else {
            self.stage = Stage::Empty;
            return false;
        };
        let next = match (single, is_good) {
            (None, true) => None,
            (None, false) => Some((0, false)),
            (Some((block, false)), false) => Some((block, true)),
            (Some((block, is_second)), _) => {
                if is_second && !is_good {
                    self.bad.insert(block);
                }
                (block + 1 < run.blocks).then_some((block + 1, false))
            }
        };
        self.stage = next.map_or(Stage::Holds, |next| Stage::Reading { single: Some(next) });
        next.is_some()
    }

    /// Fills the first block, to be written from there.
    pub(super) fn fill(&mut self, memory: &Memory, block: &[u8]) -> Option<Part> {
        let buffer = self.buffer.as_mut()?;
        memory.slice_mut(buffer).get_mut(..PAGE_BYTES as usize)?.copy_from_slice(block);
        self.stage = Stage::Writing;
        self.run = None;
        Some(buffer.part().sub(0, PAGE_BYTES))
    }

    /// A flush is under way.
    pub(super) fn wait_for_flush(&mut self) {
        self.stage = Stage::Writing;
        self.run = None;
    }

    /// What it reads or holds.
    pub(super) fn run(&self) -> Option<Run> {
        self.run
    }

    /// Forgets what it holds. Returns the slot that is read no longer.
    pub(super) fn clear(&mut self) -> Option<SlotId> {
        self.stage = Stage::Empty;
        self.run.take().and_then(|run| run.slot)
    }

    /// Blocks held from a place on the medium on.
    pub(super) fn blocks_from(&self, at: u64) -> u32 {
        let Some(run) = self.run.filter(|_| self.stage == Stage::Holds) else { return 0 };
        let end = run.at + u64::from(run.blocks) * BLOCK_BYTES;
        if at < run.at { 0 } else { (end.saturating_sub(at) / BLOCK_BYTES) as u32 }
    }

    /// A block that is held.
    pub(super) fn block<'a>(&'a self, memory: &'a Memory, at: u64) -> Found<'a> {
        let run = self.run.filter(|_| self.blocks_from(at) > 0);
        let (Some(run), Some(buffer)) = (run, &self.buffer) else { return Found::Unreadable };
        let index = ((at - run.at) / BLOCK_BYTES) as u32;
        let start = (index * PAGE_BYTES) as usize;
        match memory.slice(buffer).get(start..start + PAGE_BYTES as usize) {
            Some(bytes) if !self.bad.contains(&index) => Found::Bytes(bytes),
            _ => Found::Unreadable,
        }
    }

    /// Blocks that are held, one behind the other; none if one of them cannot be read.
    pub(super) fn blocks<'a>(
        &'a self,
        memory: &'a Memory,
        at: u64,
        blocks: u32,
    ) -> Option<&'a [u8]> {
        let run = self.run.filter(|_| self.blocks_from(at) >= blocks)?;
        let first = ((at - run.at) / BLOCK_BYTES) as u32;
        if self.bad.range(first..first + blocks).next().is_some() {
            return None;
        }
        let start = (first * PAGE_BYTES) as usize;
        memory.slice(self.buffer.as_ref()?).get(start..start + (blocks * PAGE_BYTES) as usize)
    }
}
