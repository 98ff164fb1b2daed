//! Which slot compaction empties next, and whether emptying any is worth it.
//!
//! Invariants:
//! - A slot of the log is chosen only when the durable checkpoint no longer needs it for replay.
//! - Blobs are never moved: a checkpoint makes them anew.
//! - A slot is emptied only if that wins space for sure (`reserve.rs`): so there is an end to it.

use super::{Job, Phase};
use crate::format::SegmentKind;
use crate::reserve::gain_blocks_min;
use crate::segments::SlotState;
use crate::store::Store;
use crate::{Media, SlotId};

/// A slot that is fuller than this is no victim, unless space is needed urgently.
const VICTIM_LIVE_PERCENT: u64 = 85;

impl<M: Media> Store<M> {
    /// Free slots below which compaction works.
    pub(super) fn slots_wanted(&self) -> usize {
        (self.segments.slot_count() as usize / 10).clamp(6, 64)
    }

    /// The closed slot with the least alive in it.
    pub(super) fn choose_victim(&mut self) -> Option<Job> {
        self.compaction.unmovable.review(&self.segments);
        let blocks = self.segments.slot_blocks();
        let is_worth_it = |packed: u32| {
            let is_thin = u64::from(packed) * 100 <= u64::from(blocks) * VICTIM_LIVE_PERCENT;
            packed + gain_blocks_min(blocks) < blocks
                && (is_thin || self.compaction.slots_needed > 0)
        };
        let oldest_needed = self.root.position.segment;
        let begun = self.checkpoints_begun;
        let mut best: Option<(u32, SlotId)> = None;
        let mut dead = Vec::new();
        for (slot, state) in self.segments.slots() {
            let SlotState::Used(kind) = state else { continue };
            if kind == SegmentKind::Blob {
                continue;
            }
            let packed = self.segments.packed_in(slot);
            if packed == 0 {
                dead.push(slot);
                continue;
            }
            let is_old = kind != SegmentKind::Log
                || self.segments.residents(slot).keys().all(|(id, _)| *id < oldest_needed);
            let can_move = is_old && !self.compaction.unmovable.contains(slot);
            if can_move && is_worth_it(packed) && best.is_none_or(|(least, _)| packed < least) {
                best = Some((packed, slot));
            }
        }
        for slot in dead {
            self.segments.drop_dead_pieces(slot, begun);
        }
        let (_, victim) = best?;
        let todo = self.segments.residents(victim).keys().rev().copied().collect();
        self.counters.slots_compacted += 1;
        let (moves, full) = (Vec::new(), Vec::new());
        Some(Job { victim, todo, source: None, moves, full, phase: Phase::Copy })
    }
}
