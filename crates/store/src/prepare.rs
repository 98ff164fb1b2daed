//! Slots made ready before the log comes to them.
//!
//! A flush that covers a first write to a file's block costs a commit of the file system's journal,
//! several times the flush itself. So one free slot at a time has zeros written ahead, where it was
//! never written before, and becomes the successor of a later segment: while clients flush often,
//! and when a pool that is flushed at all is left alone.
//!
//! Invariants:
//! - The slot belongs to nobody meanwhile: it was free, so no checkpoint needs it, and it is named
//!   by no segment before its preparation has ended.
//! - Preparation needs a free slot only while there are plenty, and gives it back when there are
//!   not.

use crate::format::SegmentKind;
use crate::io::Purpose;
use crate::store::Store;
use crate::{Io, Media, MediumError, Micros, SlotId};

/// So many flushes in a segment are often.
const FLUSHES_OFTEN: u64 = 16;
/// A pool that was left alone for so long has time.
const IDLE_MICROS: u64 = 1_000_000;
/// Slots that must be free before one is set aside, and one of so many of all.
const FREE_MIN: usize = 16;
const FREE_SHARE: usize = 8;

/// The slot that is set aside.
#[derive(Default)]
pub(crate) struct Prepared {
    slot: Option<SlotId>,
    is_ready: bool,
    /// The medium could not: it is not asked again.
    has_failed: bool,
    /// Flushes asked for when the segment was begun.
    flushes: u64,
}

impl<M: Media> Store<M> {
    /// Sets a slot aside and has it made ready, if that is worth it now.
    pub(crate) fn prepare_slot(&mut self) {
        if !self.has_plenty() {
            if let Some(slot) = self.take_prepared() {
                self.segments.give_back(slot);
            }
            return;
        }
        let flushes = self.counters.flush_requests - self.prepared.flushes;
        let is_idle = self.prepare_at().is_some_and(|at| at <= self.now);
        if !self.may_prepare() || (flushes < FLUSHES_OFTEN && !is_idle) {
            return;
        }
        let Some(slot) = self.segments.take_slot(SegmentKind::Log) else { return };
        self.prepared.slot = Some(slot);
        self.prepared.is_ready = false;
        let at = self.header.block_at(slot, 0);
        let io = Io::Allocate { at, bytes: self.header.slot_bytes, zeroed: true };
        self.in_flight.submit(&mut self.media, Purpose::Prepare, io);
    }

    fn has_plenty(&self) -> bool {
        // Those that only lack their space are as good as free.
        let free = self.segments.free_slots() + self.segments.bare_available();
        free >= FREE_MIN.max(self.segments.slot_count() as usize / FREE_SHARE)
    }

    fn may_prepare(&self) -> bool {
        self.prepared.slot.is_none()
            && !self.prepared.has_failed
            && self.is_writing()
            && self.segments.free_slots() > 0
            && self.has_plenty()
    }

    /// When a slot is made ready because nothing else is to be done; never if nobody flushes.
    pub(crate) fn prepare_at(&self) -> Option<Micros> {
        let is_quiet = self.counters.flush_requests > 0 && self.in_flight.len() == 0;
        let is_wanted = is_quiet && self.may_prepare();
        is_wanted.then(|| Micros(self.last_write_at.0 + IDLE_MICROS))
    }

    /// The medium has made the slot ready.
    pub(crate) fn slot_prepared(&mut self, result: Result<(), MediumError>) {
        self.prepared.is_ready = true;
        if result.is_err() {
            // The slot is as good as any other: writes to it will tell.
            self.prepared.has_failed = true;
        }
    }

    /// The slot that is ready, for the log to go on in.
    pub(crate) fn take_prepared(&mut self) -> Option<SlotId> {
        if !self.prepared.is_ready {
            return None;
        }
        self.prepared.is_ready = false;
        self.prepared.slot.take()
    }

    /// A segment begins: flushes are counted anew.
    pub(crate) fn count_flushes_anew(&mut self) {
        self.prepared.flushes = self.counters.flush_requests;
    }
}
