//! Which segment lies where, what of it is alive, and which slots are free.
//!
//! Invariants:
//! - A slot is in exactly one state. It becomes writable again only when a durable checkpoint that
//!   began after it was emptied no longer needs it (rule D2): until then it is `PendingFree`.
//! - A segment's directory says which of its blocks exist; its live bits are a subset.
//! - A live bit may be set for a dead block (its death is known at the next fold), never clear for
//!   a live one.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::{ImageMove, SegmentKind};
use crate::tables::{Directory, Entry, LiveBits};
use crate::{SegmentId, SlotId};

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// May be opened.
    Free,
    /// Being appended to.
    Open(SegmentKind),
    /// Holds segments, or images of some.
    Used(SegmentKind),
    /// Holds nothing any more, but a checkpoint still says otherwise. The number is the count of
    /// checkpoints begun when it was emptied.
    PendingFree(u64),
}

/// A segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub kind: SegmentKind,
    pub slot: SlotId,
    /// Where in the slot the block at position 0 of the directory lies.
    pub block: u32,
    pub directory: Directory,
    pub live: LiveBits,
}

/// All segments and slots of a pool.
pub(crate) struct Segments {
    slot_blocks: u32,
    segments: BTreeMap<SegmentId, Segment>,
    slots: Vec<SlotState>,
    /// Segments that lie in a slot.
    residents: Vec<BTreeSet<SegmentId>>,
    /// Live blocks of a slot's segments.
    live: Vec<u32>,
    free: BTreeSet<SlotId>,
    pending: usize,
    live_total: u64,
    next_segment: SegmentId,
    /// Where the search for a free slot goes on: slots are used in turn.
    hand: SlotId,
    /// Reads under way in each slot that has any.
    readers: BTreeMap<SlotId, u32>,
}

impl Segments {
    pub(crate) fn new(slot_count: u32, slot_blocks: u32, next_segment: SegmentId) -> Segments {
        let mut segments = Segments {
            slot_blocks,
            segments: BTreeMap::new(),
            slots: Vec::new(),
            residents: Vec::new(),
            live: Vec::new(),
            free: BTreeSet::new(),
            pending: 0,
            live_total: 0,
            next_segment,
            hand: SlotId(0),
            readers: BTreeMap::new(),
        };
        segments.grow(slot_count);
        segments
    }

    /// Adds slots until there are `slot_count`.
    pub(crate) fn grow(&mut self, slot_count: u32) {
        for index in self.slots.len() as u32..slot_count {
            self.slots.push(SlotState::Free);
            self.residents.push(BTreeSet::new());
            self.live.push(0);
            self.free.insert(SlotId(index));
        }
    }

    pub(crate) fn slot_count(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn slot_blocks(&self) -> u32 {
        self.slot_blocks
    }

    pub(crate) fn free_slots(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn pending_slots(&self) -> usize {
        self.pending
    }

    pub(crate) fn live_blocks(&self) -> u64 {
        self.live_total
    }

    pub(crate) fn live_in(&self, slot: SlotId) -> u32 {
        self.live[slot.0 as usize]
    }

    pub(crate) fn slot(&self, slot: SlotId) -> Option<SlotState> {
        self.slots.get(slot.0 as usize).copied()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = (SlotId, SlotState)> + '_ {
        self.slots.iter().enumerate().map(|(index, state)| (SlotId(index as u32), *state))
    }

    pub(crate) fn residents(&self, slot: SlotId) -> &BTreeSet<SegmentId> {
        &self.residents[slot.0 as usize]
    }

    pub(crate) fn get(&self, segment: SegmentId) -> Option<&Segment> {
        self.segments.get(&segment)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.segments.iter().map(|(id, segment)| (*id, segment))
    }

    /// Segments from an id on.
    pub(crate) fn from(&self, id: SegmentId) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.segments.range(id..).map(|(id, segment)| (*id, segment))
    }

    pub(crate) fn next_segment(&self) -> SegmentId {
        self.next_segment
    }

    pub(crate) fn take_segment_id(&mut self) -> SegmentId {
        let id = self.next_segment;
        self.next_segment = SegmentId(id.0 + 1);
        id
    }

    /// Makes sure that ids up to and with `id` are not given out again.
    pub(crate) fn seen_segment_id(&mut self, id: SegmentId) {
        self.next_segment = self.next_segment.max(SegmentId(id.0 + 1));
    }

    /// A free slot, which is `Open` from now on.
    pub(crate) fn take_slot(&mut self, kind: SegmentKind) -> Option<SlotId> {
        let is_quiet = |slot: &&SlotId| !self.readers.contains_key(slot);
        let mut in_turn = self.free.range(self.hand..).chain(self.free.range(..self.hand));
        let slot = *in_turn.find(is_quiet)?;
        self.hand = SlotId(slot.0 + 1);
        self.set_state(slot, SlotState::Open(kind));
        Some(slot)
    }

    /// A slot that was written to before the pool was opened.
    pub(crate) fn use_slot(&mut self, slot: SlotId, kind: SegmentKind) {
        self.set_state(slot, SlotState::Used(kind));
    }

    fn set_state(&mut self, slot: SlotId, state: SlotState) {
        let at = slot.0 as usize;
        self.free.remove(&slot);
        self.pending -= usize::from(matches!(self.slots[at], SlotState::PendingFree(_)));
        self.pending += usize::from(matches!(state, SlotState::PendingFree(_)));
        if state == SlotState::Free {
            self.free.insert(slot);
        }
        self.slots[at] = state;
    }

    /// A segment that fills a slot from its first block on, nothing of it alive yet.
    pub(crate) fn add_whole(&mut self, id: SegmentId, kind: SegmentKind, slot: SlotId) {
        let directory = Directory::identity(self.slot_blocks);
        let live = LiveBits::new(self.slot_blocks);
        self.add(id, Segment { kind, slot, block: 0, directory, live });
    }

    pub(crate) fn add(&mut self, id: SegmentId, segment: Segment) {
        self.seen_segment_id(id);
        let at = segment.slot.0 as usize;
        self.residents[at].insert(id);
        self.live[at] += segment.live.count();
        self.live_total += u64::from(segment.live.count());
        let old = self.segments.insert(id, segment);
        assert!(old.is_none(), "segment {id} exists twice");
    }

    /// The slot is appended to no longer. It is empty if nothing in it is alive.
    pub(crate) fn close_slot(&mut self, slot: SlotId, checkpoints_begun: u64) {
        if let SlotState::Open(kind) = self.slots[slot.0 as usize] {
            self.set_state(slot, SlotState::Used(kind));
            self.settle(slot, checkpoints_begun);
        }
    }

    /// A slot that held a checkpoint blob nobody needs any more.
    pub(crate) fn free_blob_slot(&mut self, slot: SlotId) {
        if self.residents.get(slot.0 as usize).is_some_and(BTreeSet::is_empty) {
            self.set_state(slot, SlotState::Free);
        }
    }

    /// A read of a slot begins (1) or ends (-1): a slot that is read from is not opened.
    pub(crate) fn reader(&mut self, slot: SlotId, change: i32) {
        let count = self.readers.entry(slot).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            self.readers.remove(&slot);
        }
    }

    /// A slot that is closed and has no segment left becomes pending free.
    fn settle(&mut self, slot: SlotId, checkpoints_begun: u64) {
        let at = slot.0 as usize;
        let closed = matches!(self.slots[at], SlotState::Used(_));
        if closed && self.residents[at].is_empty() {
            self.set_state(slot, SlotState::PendingFree(checkpoints_begun));
        }
    }

    /// Forgets a segment of which nothing is alive.
    pub(crate) fn drop_segment(&mut self, id: SegmentId, checkpoints_begun: u64) {
        let Some(segment) = self.segments.remove(&id) else { return };
        let slot = segment.slot;
        self.residents[slot.0 as usize].remove(&id);
        self.live[slot.0 as usize] -= segment.live.count();
        self.live_total -= u64::from(segment.live.count());
        self.settle(slot, checkpoints_begun);
    }

    /// A checkpoint that was the `begun`-th to begin is durable: what was emptied before it began
    /// is free. Returns how many slots that frees.
    pub(crate) fn checkpoint_durable(&mut self, begun: u64) -> usize {
        let freed: Vec<SlotId> = self
            .slots()
            .filter(|(_, state)| matches!(state, SlotState::PendingFree(at) if *at < begun))
            .map(|(slot, _)| slot)
            .collect();
        for slot in &freed {
            self.set_state(*slot, SlotState::Free);
        }
        freed.len()
    }

    /// The block an entry names is alive.
    pub(crate) fn set_live(&mut self, entry: Entry) {
        if let Some(segment) = self.segments.get_mut(&entry.segment())
            && entry.index() < self.slot_blocks
            && segment.live.set(entry.index())
        {
            self.live[segment.slot.0 as usize] += 1;
            self.live_total += 1;
        }
    }

    /// The block an entry names is dead. Entries of segments that are gone, or of blocks a replayed
    /// move left behind, are no surprise.
    pub(crate) fn clear_live(&mut self, entry: Entry) {
        if let Some(segment) = self.segments.get_mut(&entry.segment())
            && entry.index() < self.slot_blocks
            && segment.live.clear(entry.index())
        {
            self.live[segment.slot.0 as usize] -= 1;
            self.live_total -= 1;
        }
    }

    /// Byte offset in the pool's slots, as (slot, block), of the block an entry names.
    pub(crate) fn locate(&self, entry: Entry) -> Option<(SlotId, u32)> {
        let segment = self.segments.get(&entry.segment())?;
        let position = segment.directory.position(entry.index())?;
        Some((segment.slot, segment.block + position))
    }

    /// An image took the place of a segment's blocks; `held` are the ones the image holds.
    pub(crate) fn moved(&mut self, to: &ImageMove, held: Directory, checkpoints_begun: u64) {
        let Some(segment) = self.segments.get_mut(&to.segment) else { return };
        let from = segment.slot;
        let before = segment.live.count();
        for index in 0..self.slot_blocks {
            if segment.live.get(index) && held.position(index).is_none() {
                segment.live.clear(index);
            }
        }
        let after = segment.live.count();
        segment.slot = to.slot;
        segment.block = to.block;
        segment.directory = held;
        self.residents[from.0 as usize].remove(&to.segment);
        self.live[from.0 as usize] -= before;
        self.residents[to.slot.0 as usize].insert(to.segment);
        self.live[to.slot.0 as usize] += after;
        self.live_total -= u64::from(before - after);
        self.settle(from, checkpoints_begun);
    }
}
