//! What a process that goes on in place says of the one that died.

use super::{Segments, SlotState};
use crate::format::SegmentKind;
use crate::{SegmentId, SlotId};

impl Segments {
    /// Numbers below `id` may have been given out, and none from it on.
    ///
    /// # Panics
    /// If a segment is known that has such a number.
    pub(crate) fn set_next_segment(&mut self, id: SegmentId) {
        let last = self.segments.last_key_value().map(|(last, _)| *last);
        assert!(last.is_none_or(|last| last < id), "segment {last:?} is not below {id}");
        self.next_segment = id;
    }

    /// A slot that was open when a process died: it has its space.
    pub(crate) fn reopen_slot(&mut self, slot: SlotId, kind: SegmentKind) {
        self.backed[slot.0 as usize] = true;
        self.set_state(slot, SlotState::Open(kind));
    }
}
