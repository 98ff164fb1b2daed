//! Which slot compaction empties next, and whether emptying any is worth it.
//!
//! Invariants:
//! - A slot of the log is chosen only when the durable checkpoint no longer needs it for replay.
//! - Blobs are never moved: a checkpoint makes them anew.
//! - A slot is emptied only if that wins space for sure (`reserve.rs`): so there is an end to it.

use super::{Job, Phase};
use crate::format::SegmentKind;
use crate::reserve::{MARGIN_OF_DATA, gain_blocks_min};
use crate::segments::SlotState;
use crate::store::Store;
use crate::{Media, SegmentId, SlotId, StoreError};

/// A slot that is fuller than this is no victim, unless space is needed urgently.
const VICTIM_LIVE_PERCENT: u64 = 85;
/// Slots emptied together.
const VICTIMS_MAX: usize = 16;
/// Of the slots that are not full of live data, one of so many is kept free for writes to come, and
/// at most so many.
const SLACK_SHARE: usize = 4;
const SLACK_SLOTS_MAX: usize = 64;

impl<M: Media> Store<M> {
    /// Free slots below which compaction works: what a write needs to be let in, and of the slots
    /// that live data leaves a quarter, so that writes find room while the next slots are emptied.
    pub(super) fn slots_wanted(&self) -> usize {
        let needed = self.slots_to_write();
        let full = self.segments.live_blocks() / u64::from(self.segments.slot_blocks());
        let left = (self.segments.usable_slots() as usize).saturating_sub(full as usize);
        needed + (left.saturating_sub(needed) / SLACK_SHARE).min(SLACK_SLOTS_MAX)
    }

    /// Free slots a write has to find, with a segment of the log that begins.
    pub(crate) fn slots_to_write(&self) -> usize {
        self.slots_reserved(0) + MARGIN_OF_DATA + 2
    }

    /// Whether a checkpoint should free what was emptied: before writes have to wait, but not for
    /// each slot anew.
    pub(super) fn is_checkpoint_worth_it(&self) -> bool {
        let pending = self.segments.pending_slots();
        if pending == 0 {
            return false;
        }
        let free = self.segments.free_slots() + self.segments.bare_available();
        let (needed, wanted) = (self.slots_to_write(), self.slots_wanted());
        let slack = wanted - needed;
        free < wanted && (pending * 4 > slack || free * 2 < needed + wanted)
    }

    /// The closed slot with the least alive in it, and how many blocks that takes elsewhere; not
    /// one of `emptied`.
    pub(super) fn choose_victim(&mut self, emptied: &[SlotId]) -> Option<(SlotId, u32)> {
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
            let is_left = emptied.contains(&slot) || self.compaction.unmovable.contains(slot);
            if is_old
                && !is_left
                && is_worth_it(packed)
                && best.is_none_or(|(least, _)| packed < least)
            {
                best = Some((packed, slot));
            }
        }
        for slot in dead {
            self.segments.drop_dead_pieces(slot, begun);
        }
        best.map(|(packed, slot)| (slot, packed))
    }

    /// Moves what lies in a slot elsewhere, and waits for it: for a repair, behind a checkpoint
    /// that needs nothing of the log.
    ///
    /// # Errors
    /// If the medium fails, there is no slot to move it to, or something in it cannot be read.
    pub(crate) fn empty_slot(&mut self, slot: SlotId) -> Result<(), StoreError> {
        while self.compaction.is_running() {
            self.go_on()?;
        }
        let oldest_needed = self.root.position.segment;
        let is_old = self.segments.residents(slot).keys().all(|(id, _)| *id < oldest_needed);
        if !matches!(self.segments.slot(slot), Some(SlotState::Used(_))) || !is_old {
            return Ok(());
        }
        self.compaction.job = Some(self.job_for(slot));
        while self.compaction.is_running() {
            self.go_on()?;
        }
        if self.compaction.unmovable.contains(slot) {
            let what = format!("slot {slot} holds blocks that cannot be read");
            return Err(StoreError::Damaged(what));
        }
        Ok(())
    }

    /// All that lies in a slot, to be moved.
    pub(super) fn job_for(&mut self, victim: SlotId) -> Job {
        let todo = self.begin_victim(victim);
        let (emptied, moves, full) = (Vec::new(), Vec::new(), Vec::new());
        Job { victim, emptied, todo, source: None, moves, full, phase: Phase::Copy }
    }

    /// What there is to do to empty a slot.
    pub(super) fn begin_victim(&mut self, victim: SlotId) -> Vec<(SegmentId, u32)> {
        self.counters.slots_compacted += 1;
        self.compaction.windows.begin(victim);
        let mut todo: Vec<_> = self.segments.residents(victim).keys().copied().collect();
        // In the order in which they lie there, the first one last.
        todo.sort_by_key(|(id, first)| {
            let piece = self.segments.get(*id).and_then(|segment| segment.piece(*first));
            std::cmp::Reverse(piece.map(|piece| piece.block))
        });
        todo
    }

    /// Goes on with another victim, if its images fit the slot that is being filled: they share a
    /// flush, and take no slot more than one victim would.
    pub(super) fn next_victim(&mut self, job: &mut Job) -> bool {
        job.emptied.push(job.victim);
        let slot_blocks = self.segments.slot_blocks();
        let left = self.streams.of(SegmentKind::Images).blocks_left(slot_blocks);
        let next =
            if job.emptied.len() < VICTIMS_MAX { self.choose_victim(&job.emptied) } else { None };
        let next = next.filter(|(_, packed)| packed + 1 < left);
        let Some((victim, _)) = next else {
            job.emptied.pop();
            return false;
        };
        job.todo = self.begin_victim(victim);
        job.victim = victim;
        true
    }
}
