//! Slots that cannot be emptied, because something alive in them cannot be read or is not what was
//! written.
//!
//! Invariant: a slot is left alone exactly as long as the block that kept it is alive. When the
//! block has been overwritten, discarded or given up, the slot is a victim like any other.

use std::collections::BTreeMap;

use super::Job;
use crate::checkpoint::Step;
use crate::segments::Segments;
use crate::store::Store;
use crate::{Media, SegmentId, SlotId};

/// For each slot that is left alone, the block that keeps it.
#[derive(Default)]
pub(super) struct Unmovable(BTreeMap<SlotId, (SegmentId, u32)>);

impl Unmovable {
    /// Forgets slots whose bad block is dead by now.
    pub(super) fn review(&mut self, segments: &Segments) {
        self.0.retain(|_, (segment, index)| {
            segments.get(*segment).is_some_and(|segment| segment.live.get(*index))
        });
    }

    pub(super) fn contains(&self, slot: SlotId) -> bool {
        self.0.contains_key(&slot)
    }
}

impl<M: Media> Store<M> {
    /// The victim cannot be emptied. What of it has been copied whole is moved; the rest stays.
    pub(super) fn leave_alone(&mut self, job: &mut Job, segment: SegmentId, index: u32) -> Step {
        self.compaction.unmovable.0.insert(job.victim, (segment, index));
        job.todo.clear();
        Step::Done
    }

    /// Slots that cannot be emptied because of blocks that cannot be read.
    pub(crate) fn unmovable_slots(&self) -> usize {
        let is_alive = |(segment, index): &(SegmentId, u32)| {
            self.segments.get(*segment).is_some_and(|segment| segment.live.get(*index))
        };
        self.compaction.unmovable.0.values().filter(|bad| is_alive(bad)).count()
    }
}
