//! Which slot compaction empties next, and whether emptying any is worth it.
//!
//! Invariants:
//! - A slot of the log is chosen only when the durable checkpoint no longer needs it for replay.
//! - Blobs are never moved: a checkpoint makes them anew.

use super::{Job, Phase};
use crate::format::{SegmentKind, image_head_blocks};
use crate::segments::SlotState;
use crate::store::Store;
use crate::{Media, SlotId};

/// A slot that is fuller than this is no victim, unless space is needed urgently.
const VICTIM_LIVE_PERCENT: u64 = 85;
/// Slots emptied in a row for next to nothing after which compaction rests.
const IDLE_JOBS_MAX: usize = 8;

impl<M: Media> Store<M> {
    /// Free slots below which compaction works.
    pub(super) fn slots_wanted(&self) -> usize {
        (self.segments.slot_count() as usize / 10).clamp(6, 64)
    }

    /// The closed slot with the least alive in it.
    pub(super) fn choose_victim(&mut self) -> Option<Job> {
        self.compaction.unmovable.review(&self.segments);
        let blocks = self.segments.slot_blocks();
        let is_worth_it = |live: u32| {
            let is_thin = u64::from(live) * 100 <= u64::from(blocks) * VICTIM_LIVE_PERCENT;
            live + image_head_blocks(live) < blocks - 1
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
            let live = self.segments.live_in(slot);
            if live == 0 {
                dead.push(slot);
                continue;
            }
            let is_old = kind != SegmentKind::Log
                || self.segments.residents(slot).iter().all(|(id, _)| *id < oldest_needed);
            let can_move = is_old && !self.compaction.unmovable.contains(slot);
            if can_move && is_worth_it(live) && best.is_none_or(|(least, _)| live < least) {
                best = Some((live, slot));
            }
        }
        for slot in dead {
            self.segments.drop_dead_pieces(slot, begun);
        }
        let (_, victim) = best?;
        let todo = self.segments.residents(victim).iter().rev().copied().collect();
        self.counters.slots_compacted += 1;
        let (moves, full) = (Vec::new(), Vec::new());
        Some(Job { victim, todo, source: None, moves, full, phase: Phase::Copy })
    }

    /// Notes whether emptying slots still wins space: small images can take more for their heads
    /// than the dead blocks give.
    pub(super) fn judge_gain(&mut self) {
        let slot_blocks = self.segments.slot_blocks();
        let compaction = &mut self.compaction;
        let won = slot_blocks.saturating_sub(compaction.put_blocks);
        compaction.put_blocks = 0;
        // A sixteenth, and a block for the header of the slot the images take.
        let is_gain = won > slot_blocks / 16 + 1;
        compaction.idle_jobs = if is_gain { 0 } else { compaction.idle_jobs + 1 };
        if compaction.idle_jobs > IDLE_JOBS_MAX {
            compaction.idle_jobs = 0;
            compaction.exhausted_at = Some(self.segments.live_blocks());
        }
    }
}
