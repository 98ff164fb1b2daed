//! Requests that cannot be admitted at once: they wait for others, for old bytes, or for room.

use std::collections::VecDeque;

use bowline_arena::{Memory, Span};
use bowline_store::{BLOCK_BYTES, Change, Lba, Seq, Ticket};

use crate::IoError;
use crate::area::{Area, Edge};

/// Names an operation; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(pub u64);

/// Old bytes of one block that go into a change.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The block, and what is kept of it.
    pub edge: Edge,
    /// Which change, and where in it the block starts.
    pub change: usize,
    /// Bytes of the change before the block.
    pub at: u64,
    /// Where the old block is read to; away while it is read.
    pub old: Option<Span>,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// For so many earlier operations that overlap it.
    Blocked(u32),
    /// For so many old blocks.
    Reading(u32),
    /// For room in the store.
    Ready,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Operation {
    pub id: OperationId,
    pub ticket: Ticket,
    /// First block, and the block after the last.
    pub blocks: (Lba, Lba),
    /// What counts towards the loss limit.
    pub loss_bytes: u64,
    pub fua: bool,
    pub phase: Phase,
    /// What is admitted as one.
    pub changes: VecDeque<Change>,
    pub merges: Vec<Merge>,
    /// The number of the last change admitted.
    pub seq: Seq,
    pub failure: Option<IoError>,
}

impl Operation {
    /// Brings the bytes of an old block into the change that replaces it.
    pub fn merge(&mut self, memory: &Memory, index: usize, old: &Span) {
        let Merge { edge, change, at, .. } = &self.merges[index];
        let Some(Change::Write { spans, .. }) = self.changes.get_mut(*change) else {
            unreachable!("old bytes are merged into writes only")
        };
        let old = memory.slice(old);
        let kept_from = (BLOCK_BYTES - edge.after_bytes) as usize;
        put(memory, spans, *at, &old[..edge.before_bytes as usize]);
        put(memory, spans, *at + kept_from as u64, &old[kept_from..BLOCK_BYTES as usize]);
    }

    /// All the memory the operation holds.
    pub fn into_spans(self) -> impl Iterator<Item = Span> {
        let of_changes = self.changes.into_iter().flat_map(|change| match change {
            Change::Write { spans, .. } => spans,
            Change::Zero { .. } | Change::Discard { .. } => Vec::new(),
        });
        of_changes.chain(self.merges.into_iter().filter_map(|merge| merge.old))
    }
}

/// The operations of one disk, in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    operations: VecDeque<Operation>,
}

impl Queue {
    /// Whether an operation overlaps these blocks.
    pub fn overlaps(&self, blocks: (Lba, Lba)) -> bool {
        self.blockers(blocks) > 0
    }

    /// How many operations overlap these blocks.
    pub fn blockers(&self, blocks: (Lba, Lba)) -> u32 {
        let overlapping = self.operations.iter().filter(|o| Area::overlaps(o.blocks, blocks));
        overlapping.count() as u32
    }

    /// Puts an operation at the end.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push_back(operation);
    }

    /// An operation.
    pub fn get_mut(&mut self, id: OperationId) -> Option<&mut Operation> {
        let at = self.operations.binary_search_by_key(&id, |operation| operation.id).ok()?;
        self.operations.get_mut(at)
    }

    /// The oldest operation that waits for room.
    pub fn first_ready(&self) -> Option<OperationId> {
        self.operations.iter().find(|o| o.phase == Phase::Ready).map(|o| o.id)
    }

    /// Takes an operation out. Adds those that now wait for nobody to `runnable`.
    pub fn remove(
        &mut self,
        id: OperationId,
        mut runnable: impl FnMut(OperationId),
    ) -> Option<Operation> {
        let at = self.operations.binary_search_by_key(&id, |operation| operation.id).ok()?;
        let removed = self.operations.remove(at)?;
        for later in self.operations.range_mut(at..) {
            if let Phase::Blocked(blockers) = &mut later.phase
                && *blockers > 0
                && Area::overlaps(removed.blocks, later.blocks)
            {
                *blockers -= 1;
                if *blockers == 0 {
                    runnable(later.id);
                }
            }
        }
        Some(removed)
    }
}

/// Stores bytes at `at` into spans that lie one after the other.
pub(crate) fn put(memory: &Memory, spans: &mut [Span], mut at: u64, mut bytes: &[u8]) {
    for span in spans {
        let span_bytes = u64::from(span.bytes());
        if at >= span_bytes {
            at -= span_bytes;
            continue;
        }
        if bytes.is_empty() {
            return;
        }
        let count = bytes.len().min((span_bytes - at) as usize);
        let (now, rest) = bytes.split_at(count);
        memory.slice_mut(span)[at as usize..at as usize + count].copy_from_slice(now);
        (at, bytes) = (0, rest);
    }
    assert!(bytes.is_empty(), "the spans of a change hold its blocks");
}

/// Zeroes the spans' bytes outside `at..at + bytes`.
pub(crate) fn clear_around(memory: &Memory, spans: &mut [Span], at: u64, bytes: u64) {
    let mut start = 0;
    for span in spans {
        let end = start + u64::from(span.bytes());
        let slice = memory.slice_mut(span);
        let before = at.clamp(start, end) - start;
        let after = (at + bytes).clamp(start, end) - start;
        slice[..before as usize].fill(0);
        slice[after as usize..].fill(0);
        start = end;
    }
}
