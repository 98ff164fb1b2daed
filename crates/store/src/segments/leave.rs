//! Segments of the log that everything was written elsewhere from.

use super::{Segments, SlotState};
use crate::SegmentId;
use crate::format::SegmentKind;

impl Segments {
    /// Forgets a segment of the log, if it fills its slot, is closed and has nothing alive in it.
    /// The caller knows that neither a checkpoint nor a replay comes across it: its slot is free.
    pub(crate) fn leave_whole(&mut self, id: SegmentId) {
        let Some(segment) = self.segments.get(&id).filter(|one| one.live.count() == 0) else {
            return;
        };
        let [piece] = segment.pieces.as_slice() else { return };
        let slot = piece.slot;
        let is_closed = self.slot(slot) == Some(SlotState::Used(SegmentKind::Log));
        let is_whole = piece.directory.len() == self.slot_blocks;
        if is_closed && is_whole && self.residents(slot).len() == 1 {
            self.drop_segment(id, 0);
            self.set_state(slot, SlotState::Free);
        }
    }
}
