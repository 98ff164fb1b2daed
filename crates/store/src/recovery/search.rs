//! Behind the end of the log: is there a batch that knew more of it to be durable?
//!
//! A torn end and a lost sector look alike where they are. What tells them apart lies further on:
//! each batch says how much was durable when it was closed. Looked through are the rest of the
//! segment, its successors, and every free slot that may hold a later segment whose predecessor is
//! not there any more: a chain that is broken by one lost header must not hide what follows it.
//!
//! A guest's data may hold perfect copies of old batches. So a head counts only where it says it
//! is, and in a slot whose header verifies only if it is of that segment.

use std::collections::BTreeSet;

use crate::blocking::Blocking;
use crate::format::{BatchHead, SegmentHeader, SegmentKind, read_batch};
use crate::recovery::Known;
use crate::recovery::walk::{Damage, Walk, Why};
use crate::segments::SlotState;
use crate::{BLOCK_BYTES, BatchNumber, Media, SegmentId, SlotId, StoreError};

/// Free slots looked at for later segments of the log: all of a small pool. In a large one the next
/// ones in turn, because slots are taken in turn.
const FREE_SLOTS_MAX: usize = 1024;

impl Walk {
    /// Looks behind the end for a batch that knew more of the log to be durable than there is.
    pub(super) fn search<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &Known,
    ) -> Result<Option<Damage>, StoreError> {
        let end = self.at;
        if end.segment == SegmentId(0) {
            return Ok(None);
        }
        let mut seen = BTreeSet::new();
        let (mut slot, mut segment, mut first) = (end.slot, end.segment, end.block);
        loop {
            seen.insert(slot);
            if let Some(proof) = self.proof_in(medium, slot, segment, first)? {
                return Ok(Some(self.damage(Why::Proof(proof))));
            }
            let next = self.next_header(medium, slot, segment)?;
            let Some(next) = next.filter(|next| self.is_of_epoch(next.epoch)) else { break };
            (slot, segment, first) = (next.slot, next.segment, 1);
        }
        if let Some(own) = self.segment_header(medium, slot)?
            && let Some(successor) = own.successor.filter(|_| own.segment == segment)
            && self.segment_header(medium, successor)?.is_none()
            && let Some(proof) = self.proof_behind_a_lost_header(medium, successor)?
        {
            return Ok(Some(self.damage(Why::Proof(proof))));
        }
        let slots = self.header.slots_on(medium.media().bytes_total());
        for slot in free_slots(known, slots, end.slot) {
            if seen.insert(slot)
                && let Some(proof) = self.proof_in_slot(medium, slot)?
            {
                return Ok(Some(self.damage(Why::Proof(proof))));
            }
        }
        Ok(None)
    }

    /// Whether something is of the last epoch, or of a later one whose superblock was lost.
    fn is_of_epoch(&self, epoch: crate::Epoch) -> bool {
        self.epoch.is_none_or(|own| epoch >= own)
    }

    fn is_proof(&self, head: &BatchHead) -> bool {
        self.is_of_epoch(head.epoch) && head.durable_upto > self.at.number
    }

    /// A batch of a segment, from a block of its slot on, that is proof.
    fn proof_in<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
        segment: SegmentId,
        first: u32,
    ) -> Result<Option<BatchNumber>, StoreError> {
        for block in first..self.header.slot_blocks() {
            let salt = self.header.salt;
            let Some(bytes) = self.block(medium, slot, block)? else { continue };
            let Some(head) = read_batch(salt, bytes) else { continue };
            if head.segment == segment && head.block == block && self.is_proof(&head) {
                return Ok(Some(head.number));
            }
        }
        Ok(None)
    }

    /// Proof in a slot that may hold any segment, or none. Without a header its first batch has to
    /// be there.
    fn proof_in_slot<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
    ) -> Result<Option<BatchNumber>, StoreError> {
        let at = self.header.block_at(slot, 0);
        let Some(bytes) = self.read(medium, at, 2 * BLOCK_BYTES)? else { return Ok(None) };
        let (header, batch) = bytes.split_at(bytes.len().min(BLOCK_BYTES as usize));
        let segment = match SegmentHeader::decode(self.header.salt, self.header.pool, header) {
            Some(found) => (found.kind == SegmentKind::Log && found.slot == slot)
                .then_some((found.segment, found.epoch)),
            None => read_batch(self.header.salt, batch)
                .filter(|head| head.block == 1)
                .map(|head| (head.segment, head.epoch)),
        };
        match segment {
            Some((segment, epoch)) if segment > self.at.segment && self.is_of_epoch(epoch) => {
                self.proof_in(medium, slot, segment, 1)
            }
            _ => Ok(None),
        }
    }

    /// Proof anywhere in a slot whose header is gone.
    fn proof_behind_a_lost_header<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
    ) -> Result<Option<BatchNumber>, StoreError> {
        for block in 1..self.header.slot_blocks() {
            let salt = self.header.salt;
            let Some(bytes) = self.block(medium, slot, block)? else { continue };
            let Some(head) = read_batch(salt, bytes) else { continue };
            let is_later = head.block == block && head.segment > self.at.segment;
            if is_later && self.is_proof(&head) {
                return Ok(Some(head.number));
            }
        }
        Ok(None)
    }
}

/// Slots a later segment of the log may lie in: those nothing is known to be in. Slots are taken in
/// turn, so the ones after the end's come first. The pool may have grown behind the end.
fn free_slots(known: &Known, slots: u32, end: SlotId) -> Vec<SlotId> {
    let free = |(slot, state): (SlotId, SlotState)| {
        matches!(state, SlotState::Free | SlotState::PendingFree(_)).then_some(slot)
    };
    let mut all: Vec<SlotId> = known.segments.slots().filter_map(free).collect();
    all.extend((known.segments.slot_count()..slots).map(SlotId));
    let from = all.partition_point(|slot| *slot <= end);
    let (before, after) = all.split_at(from);
    after.iter().chain(before).copied().take(FREE_SLOTS_MAX).collect()
}
