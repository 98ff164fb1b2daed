//! Ways to break the promises of this crate on purpose, so that tests can prove that they notice.

use crate::Disks;
#[cfg(test)]
use crate::operation::{Merge, Operation, put};
#[cfg(test)]
use bowline_arena::Memory;
#[cfg(test)]
use bowline_store::{BLOCK_BYTES, Change, Lba};

/// A promise that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "nothing is broken outside of tests"))]
pub(crate) enum Broken {
    /// Whole-block writes do not wait for a merge of the same blocks.
    PassOperations,
    /// Merges do not wait for each other.
    MergeWithoutLock,
    /// A merge is answered before it is admitted.
    ReplyBeforeMerge,
    /// A merge puts zeros where old bytes should follow its own.
    ForgetTail,
    /// An unaligned request of many blocks is admitted block by block.
    SplitAdmission,
    /// FLUSH is answered at once.
    FlushFromMemory,
    /// FUA is answered at once.
    FuaFromMemory,
    /// What a predecessor acknowledged does not count against the limits of loss.
    ForgetPredecessor,
    /// Nobody is told when the oldest write was acknowledged.
    ClockStands,
    /// Replies go on when the limits of loss are reached.
    EndlessLoss,
    /// Nothing is flushed in the background.
    NoBackgroundFlush,
    /// Requests overtake operations that wait for room.
    OvertakeStarving,
}

impl<V> Disks<V> {
    /// Whether this promise is broken now: never, outside of tests.
    #[cfg(not(test))]
    #[inline]
    pub(crate) fn is_broken(&self, _: Broken) -> bool {
        false
    }

    /// Whether this promise is broken now.
    #[cfg(test)]
    pub(crate) fn is_broken(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }
}

/// Does to an operation, before it is admitted, what the broken promise says.
#[cfg(test)]
pub(crate) fn spoil(broken: Option<Broken>, memory: &Memory, operation: &mut Operation) {
    match broken {
        Some(Broken::SplitAdmission) => {
            let changes = std::mem::take(&mut operation.changes);
            operation.changes = changes.into_iter().flat_map(block_by_block).collect();
        }
        Some(Broken::ForgetTail) => {
            for Merge { edge, change, at, .. } in &operation.merges {
                let Some(Change::Write { spans, .. }) = operation.changes.get_mut(*change) else {
                    continue;
                };
                let zeros = vec![0; edge.after_bytes as usize];
                put(memory, spans, at + BLOCK_BYTES - edge.after_bytes, &zeros);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
fn block_by_block(change: Change) -> Vec<Change> {
    let Change::Write { mut lba, spans } = change else { return vec![change] };
    let mut pieces = Vec::new();
    for mut span in spans {
        loop {
            let rest = span.split_off(BLOCK_BYTES as u32);
            pieces.push(Change::Write { lba, spans: vec![span] });
            lba = Lba(lba.0 + 1);
            if rest.bytes() == 0 {
                break;
            }
            span = rest;
        }
    }
    pieces
}
