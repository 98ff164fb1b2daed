//! Slots get their space on the medium before they are opened (rule D14).
//!
//! A file may be sparse: a write to a part that has no space yet fails when the file system below
//! is full, and what was acknowledged would have no place to go. So a free slot is *bare* until the
//! medium has taken its space, and counts as free only from then on. A few are taken ahead.
//!
//! Invariants:
//! - Nothing is ever written to a slot that is bare: none is opened. So a file system that is full
//!   shows when space is taken ahead, and a request that would need it is refused before its reply.
//! - Which slots have space is known for the life of the process only: asking again for what is
//!   there costs next to nothing.
//! - A slot that was in use at the start has its space, but is bare when it comes free. So it is
//!   tried at once even while the file system below is full: it counts as available until it has
//!   been refused itself. What is free after a checkpoint would be less than before otherwise, and
//!   what `reserve.rs` keeps would not be there.
//! - The lowest bare slot comes first, and slots that came free are used before bare ones: a sparse
//!   file grows no further than it has to. Space is never given back: it would have to be taken and
//!   zeroed again.

use crate::blocking::Blocking;
use crate::format::{PoolHeader, SegmentKind};
use crate::io::Purpose;
use crate::segments::Segments;
use crate::store::Store;
use crate::{Io, Media, MediumError, Micros, SlotId, StoreError};

/// Slots taken ahead at the least, beyond what must always be free.
const AHEAD_MIN: usize = 2;
/// Slots that are tried before the file system below counts as full: those that were in use before
/// the start have their space, wherever they are. All of a small pool; in a large one the next
/// round goes on with the others.
const REFUSALS_MAX: u32 = 1024;
/// How long it counts as full.
const RETRY_MICROS: u64 = 1_000_000;

/// Where taking space stands.
#[derive(Debug, Default)]
pub(crate) struct Backing {
    /// The slot whose space is being taken.
    slot: Option<SlotId>,
    /// Free slots a request waits for.
    needed: usize,
    /// The next slot to be tried, and refusals in a row.
    next: SlotId,
    refusals: u32,
    /// When the file system below was full for the last time.
    full_at: Micros,
    /// What there was when enough slots had their space: free slots, batches and checkpoints. As
    /// long as that is the same, they still have.
    enough_at: Option<(usize, u64, u64)>,
}

impl<M: Media> Store<M> {
    /// Takes the space of the next bare slot, if there are too few with space.
    pub(crate) fn back_slots(&mut self) -> bool {
        if self.backing.slot.is_some() || !self.segments.has_bare() || !self.is_writing() {
            return false;
        }
        let free = self.segments.free_slots();
        let at = Some((free, self.counters.batches, self.checkpoints_begun));
        if self.backing.enough_at == at {
            return false;
        }
        if free >= self.backed_slots_wanted() {
            (self.backing.needed, self.backing.enough_at) = (0, at);
            return false;
        }
        if self.segments.bare_from(SlotId(0)).is_none() {
            let is_due = self.now.0.saturating_sub(self.backing.full_at.0) >= RETRY_MICROS;
            let may_try = is_due && self.backing.needed > 0;
            if self.segments.is_below_full() && !may_try {
                return false;
            }
            self.segments.set_below_full(false);
        }
        let next = self.segments.bare_from(self.backing.next);
        let Some(slot) = next.or_else(|| self.segments.bare_from(SlotId(0))) else { return false };
        self.backing.slot = Some(slot);
        let (at, bytes) = (self.header.block_at(slot, 0), self.header.slot_bytes);
        let io = Io::Allocate { at, bytes, zeroed: false };
        self.in_flight.submit(&mut self.media, Purpose::Back, io);
        true
    }

    fn backed_slots_wanted(&self) -> usize {
        let ahead = (self.options.ahead_bytes / self.header.slot_bytes) as usize;
        let ahead = self.slots_to_write() + ahead.max(AHEAD_MIN);
        ahead.max(self.backing.needed)
    }

    /// A request is refused until there are so many free slots.
    pub(crate) fn want_backed_slots(&mut self, count: usize) {
        self.backing.needed = self.backing.needed.max(count);
        self.backing.enough_at = None;
    }

    /// The medium has taken a slot's space, or could not.
    pub(crate) fn slot_backed(&mut self, result: Result<(), MediumError>) {
        let Some(slot) = self.backing.slot.take() else { return };
        self.make_room();
        // After another error it is not known whether the slot has its space: it stays bare too.
        if result.is_ok() {
            self.segments.back(slot);
            self.backing.refusals = 0;
            return;
        }
        self.backing.next = SlotId(slot.0 + 1);
        self.backing.refusals += 1;
        self.segments.refuse(slot);
        let is_last = self.segments.bare_from(SlotId(0)).is_none();
        if is_last || self.backing.refusals >= REFUSALS_MAX {
            self.backing.refusals = 0;
            self.segments.set_below_full(true);
            self.backing.full_at = self.now;
        }
    }

    /// Takes the space a pool needs before anybody is served. Waits for the medium.
    pub(crate) fn back_at_start(&mut self) {
        while self.state.is_writing()
            && self.segments.bare_available() > 0
            && self.segments.free_slots() < self.backed_slots_wanted()
        {
            if self.go_on().is_err() {
                return;
            }
        }
    }
}

/// A slot for the log to go on in while the pool is being opened, with its space.
///
/// # Errors
/// If there is none: nothing is lost, what the arena holds stays there.
pub(crate) fn backed_slot<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    segments: &mut Segments,
) -> Result<SlotId, StoreError> {
    let (mut next, mut refused) = (SlotId(0), None);
    loop {
        if let Some(slot) = segments.take_slot(SegmentKind::Log) {
            return Ok(slot);
        }
        let Some(slot) = segments.bare_from(next) else { break };
        next = SlotId(slot.0 + 1);
        match medium.allocate(header.block_at(slot, 0), header.slot_bytes) {
            Err(MediumError::Died) => return Err(MediumError::Died.into()),
            Err(error) => refused = Some(error),
            Ok(()) => segments.back(slot),
        }
    }
    Err(refused.map_or_else(
        || StoreError::Damaged("no free slot to go on in; grow the pool's medium".into()),
        StoreError::from,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SegmentId;

    #[test]
    fn what_comes_free_on_a_full_file_system_is_tried() {
        let (old, new, bare) = (SlotId(0), SlotId(1), [SlotId(2), SlotId(3)]);
        let mut segments = Segments::new(4, 64, SegmentId(1));
        [old, new].into_iter().for_each(|slot| segments.use_slot(slot, SegmentKind::Log));
        segments.refuse(bare[0]);
        assert_eq!((segments.usable_slots(), segments.bare_available()), (4, 2), "may be an error");
        segments.refuse(bare[1]);
        segments.set_below_full(true);
        assert_eq!((segments.usable_slots(), segments.bare_available()), (2, 0));
        // One that has its space from before the start, and one that turns out to have none.
        [old, new].into_iter().for_each(|slot| segments.give_back(slot));
        assert_eq!((segments.usable_slots(), segments.bare_available()), (2, 2));
        assert_eq!(segments.bare_from(SlotId(0)), Some(old));
        segments.back(old);
        segments.refuse(new);
        segments.set_below_full(true);
        assert_eq!((segments.usable_slots(), segments.bare_available()), (1, 0));
        assert_eq!((segments.free_slots(), segments.bare_slots()), (1, 3));
        segments.set_below_full(false);
        assert_eq!((segments.usable_slots(), segments.bare_from(SlotId(0))), (4, Some(new)));
    }
}
