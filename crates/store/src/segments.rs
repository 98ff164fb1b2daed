//! Which segment lies where, what of it is alive, and which slots are free.
//!
//! Invariants:
//! - A slot is in exactly one state. It becomes writable again only when a durable checkpoint that
//!   began after it was emptied no longer needs it (rule D2): until then it is `PendingFree`. Those
//!   that no superblock leads to any more are free at once (`leave.rs`).
//! - The pieces of a segment cover its indices without gap or overlap until some are all dead; the
//!   directory of a piece says which blocks are there. Live bits are a subset.
//! - A free slot is bare until the medium has taken its space, and none that is bare is opened
//!   (`backing.rs`).
//! - A live bit may be set for a dead block (its death is known at the next fold), never clear for
//!   a live one.

mod leave;
mod resume;

use std::collections::{BTreeMap, BTreeSet};

use crate::format::{ImageMove, SegmentKind, image_head_blocks};
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

/// A range of a segment's indices that lies in one slot: the segment as it was written, or an image
/// of some of its blocks.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// The first index.
    pub first: u32,
    /// The index after the last.
    pub end: u32,
    pub slot: SlotId,
    /// Where in the slot the block at position 0 of the directory lies.
    pub block: u32,
    pub directory: Directory,
}

/// A segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub kind: SegmentKind,
    /// Where it lies, by first index.
    pub pieces: Vec<Piece>,
    pub live: LiveBits,
}

impl Segment {
    /// The piece that covers an index.
    pub(crate) fn piece(&self, index: u32) -> Option<&Piece> {
        let at = self.pieces.partition_point(|piece| piece.first <= index).checked_sub(1)?;
        self.pieces.get(at).filter(|piece| index < piece.end)
    }
}

/// Bytes of memory for a slot, a segment and a piece beyond live bits and directory, with what the
/// allocator and half-filled nodes of trees add.
const SLOT_MEMORY: usize = 320;
const SEGMENT_MEMORY: usize = 160;
const PIECE_MEMORY: usize = 64;

/// Pieces that lie in a slot, by segment and first index, with how many blocks of each are alive.
pub(crate) type Residents = BTreeMap<(SegmentId, u32), u32>;

/// Counts over all segments, kept up to date so that asking costs nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub segments: usize,
    pub pieces: usize,
    /// Bytes of the pieces' directories, as a checkpoint writes them and in memory.
    pub directory_bytes: usize,
    pub directory_memory: usize,
}

/// All segments and slots of a pool.
pub(crate) struct Segments {
    slot_blocks: u32,
    segments: BTreeMap<SegmentId, Segment>,
    slots: Vec<SlotState>,
    residents: Vec<Residents>,
    /// Live blocks of a slot's segments.
    live: Vec<u32>,
    /// Head blocks that images of a slot's pieces would have.
    heads: Vec<u32>,
    totals: Totals,
    /// Free slots with space below, and those that are bare.
    free: BTreeSet<SlotId>,
    bare: BTreeSet<SlotId>,
    /// Bare ones that did not get it in this round.
    refused: BTreeSet<SlotId>,
    /// Whether a slot is known to have space.
    backed: Vec<bool>,
    /// Whether it is to be had for none of those refused.
    is_below_full: bool,
    /// A broken mode: no slot is ever bare.
    is_backing_skipped: bool,
    /// Slots of checkpoint blobs.
    blobs: BTreeSet<SlotId>,
    pending: usize,
    live_total: u64,
    next_segment: SegmentId,
    /// Where the search for a free slot goes on: slots are used in turn.
    hand: SlotId,
    /// Reads under way in each slot that has any.
    readers: BTreeMap<SlotId, u32>,
    /// Free slots among them.
    free_but_read: usize,
    /// Free slots that only the log may take: to go on in after a failure of the medium.
    kept_for_failures: usize,
    /// A broken mode: what comes free while the file system below is full is not tried.
    pub hides_space: bool,
    /// A broken mode: slots are free as soon as they are empty.
    pub reuses_at_once: bool,
}

impl Segments {
    pub(crate) fn new(slot_count: u32, slot_blocks: u32, next_segment: SegmentId) -> Segments {
        let mut segments = Segments {
            slot_blocks,
            segments: BTreeMap::new(),
            slots: Vec::new(),
            residents: Vec::new(),
            live: Vec::new(),
            heads: Vec::new(),
            totals: Totals::default(),
            free: BTreeSet::new(),
            blobs: BTreeSet::new(),
            bare: BTreeSet::new(),
            refused: BTreeSet::new(),
            backed: Vec::new(),
            is_below_full: false,
            is_backing_skipped: false,
            pending: 0,
            live_total: 0,
            next_segment,
            hand: SlotId(0),
            readers: BTreeMap::new(),
            free_but_read: 0,
            kept_for_failures: 1,
            hides_space: false,
            reuses_at_once: false,
        };
        segments.grow(slot_count);
        segments
    }

    /// Adds slots until there are `slot_count`.
    pub(crate) fn grow(&mut self, slot_count: u32) {
        for index in self.slots.len() as u32..slot_count {
            self.slots.push(SlotState::Free);
            self.residents.push(Residents::new());
            self.live.push(0);
            self.heads.push(0);
            self.backed.push(self.is_backing_skipped);
            let free = if self.is_backing_skipped { &mut self.free } else { &mut self.bare };
            free.insert(SlotId(index));
        }
    }

    /// A broken mode: slots count as having space.
    pub(crate) fn skip_backing(&mut self) {
        self.is_backing_skipped = true;
        self.backed.fill(true);
        self.free.append(&mut self.bare);
        self.free.append(&mut self.refused);
    }

    /// A slot has its space.
    pub(crate) fn back(&mut self, slot: SlotId) {
        self.backed[slot.0 as usize] = true;
        if self.bare.remove(&slot) {
            self.free.insert(slot);
            self.free_but_read += usize::from(self.readers.contains_key(&slot));
        }
    }

    /// The first bare slot from one on that was not refused.
    pub(crate) fn bare_from(&self, slot: SlotId) -> Option<SlotId> {
        self.bare.range(slot..).next().copied()
    }

    pub(crate) fn has_bare(&self) -> bool {
        self.bare_slots() > 0
    }

    /// Free slots without space.
    pub(crate) fn bare_slots(&self) -> usize {
        self.bare.len() + self.refused.len()
    }

    /// Those that may get it, as far as is known: while the file system below is full, those that
    /// came free since it was found to be. They were in use before the start, and have theirs.
    pub(crate) fn bare_available(&self) -> usize {
        if self.is_below_full { self.bare.len() } else { self.bare_slots() }
    }

    /// A slot did not get its space.
    pub(crate) fn refuse(&mut self, slot: SlotId) {
        if self.bare.remove(&slot) {
            self.refused.insert(slot);
        }
    }

    pub(crate) fn is_below_full(&self) -> bool {
        self.is_below_full
    }

    /// No bare slot can get its space, or each may be tried again.
    pub(crate) fn set_below_full(&mut self, is_full: bool) {
        self.is_below_full = is_full;
        let (from, to) = match is_full {
            true => (&mut self.bare, &mut self.refused),
            false => (&mut self.refused, &mut self.bare),
        };
        to.append(from);
    }

    /// Slots that have space, or may get it.
    pub(crate) fn usable_slots(&self) -> u32 {
        self.slot_count() - (self.bare_slots() - self.bare_available()) as u32
    }

    pub(crate) fn slot_count(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn slot_blocks(&self) -> u32 {
        self.slot_blocks
    }

    /// Slots that can be taken now: free, with space, and not being read.
    pub(crate) fn free_slots(&self) -> usize {
        self.free.len() - self.free_but_read
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

    /// Blocks the live ones of a slot take as images: they, and the heads.
    pub(crate) fn packed_in(&self, slot: SlotId) -> u32 {
        self.live[slot.0 as usize] + self.heads[slot.0 as usize]
    }

    /// Bytes of memory that segments and slots take, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        let of_segment = LiveBits::encoded_bytes(self.slot_blocks) + SEGMENT_MEMORY;
        self.slots.len() * SLOT_MEMORY
            + self.totals.segments * of_segment
            + self.totals.pieces * PIECE_MEMORY
            + self.totals.directory_memory
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn slot(&self, slot: SlotId) -> Option<SlotState> {
        self.slots.get(slot.0 as usize).copied()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = (SlotId, SlotState)> + '_ {
        self.slots.iter().enumerate().map(|(index, state)| (SlotId(index as u32), *state))
    }

    pub(crate) fn residents(&self, slot: SlotId) -> &Residents {
        &self.residents[slot.0 as usize]
    }

    pub(crate) fn get(&self, segment: SegmentId) -> Option<&Segment> {
        self.segments.get(&segment)
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
        let kept = match kind {
            SegmentKind::Log => 0,
            _ => self.kept_for_failures,
        };
        if self.free_slots() <= kept {
            return None;
        }
        let is_quiet = |slot: &&SlotId| !self.readers.contains_key(slot);
        let mut in_turn = self.free.range(self.hand..).chain(self.free.range(..self.hand));
        let slot = *in_turn.find(is_quiet)?;
        self.hand = SlotId(slot.0 + 1);
        self.set_state(slot, SlotState::Open(kind));
        Some(slot)
    }

    /// An open slot that nothing was written to for.
    pub(crate) fn give_back(&mut self, slot: SlotId) {
        self.set_state(slot, SlotState::Free);
    }

    /// A slot that was written to before the pool was opened.
    pub(crate) fn use_slot(&mut self, slot: SlotId, kind: SegmentKind) {
        self.set_state(slot, SlotState::Used(kind));
    }

    fn set_state(&mut self, slot: SlotId, state: SlotState) {
        let at = slot.0 as usize;
        let is_read = usize::from(self.readers.contains_key(&slot));
        self.free_but_read -= if self.free.remove(&slot) { is_read } else { 0 };
        self.pending -= usize::from(matches!(self.slots[at], SlotState::PendingFree(_)));
        self.pending += usize::from(matches!(state, SlotState::PendingFree(_)));
        self.bare.remove(&slot);
        self.refused.remove(&slot);
        if state == SlotState::Free && self.backed[at] {
            self.free.insert(slot);
            self.free_but_read += is_read;
        } else if state == SlotState::Free {
            let is_hidden = self.hides_space && self.is_below_full;
            let bare = if is_hidden { &mut self.refused } else { &mut self.bare };
            bare.insert(slot);
        }
        match state {
            SlotState::Open(SegmentKind::Blob) | SlotState::Used(SegmentKind::Blob) => {
                self.blobs.insert(slot);
            }
            _ => {
                self.blobs.remove(&slot);
            }
        }
        self.slots[at] = state;
    }

    /// A segment that fills a slot from its first block on, nothing of it alive yet.
    pub(crate) fn add_whole(&mut self, id: SegmentId, kind: SegmentKind, slot: SlotId) {
        let directory = Directory::identity(self.slot_blocks);
        let live = LiveBits::new(self.slot_blocks);
        let piece = Piece { first: 0, end: self.slot_blocks, slot, block: 0, directory };
        self.add(id, Segment { kind, pieces: vec![piece], live });
    }

    pub(crate) fn add(&mut self, id: SegmentId, segment: Segment) {
        self.seen_segment_id(id);
        segment.pieces.iter().for_each(|piece| self.arrive(id, piece, &segment.live));
        self.live_total += u64::from(segment.live.count());
        self.totals.segments += 1;
        let old = self.segments.insert(id, segment);
        assert!(old.is_none(), "segment {id} exists twice");
    }

    /// A piece lies in its slot from now on.
    fn arrive(&mut self, id: SegmentId, piece: &Piece, live: &LiveBits) {
        let at = piece.slot.0 as usize;
        let count = live_between(live, piece.first, piece.end);
        self.residents[at].insert((id, piece.first), count);
        self.live[at] += count;
        self.heads[at] += heads_of(count);
        self.totals.pieces += 1;
        self.totals.directory_bytes += piece.directory.encoded_bytes();
        self.totals.directory_memory += piece.directory.memory_bytes();
    }

    /// A piece lies in its slot no longer.
    fn leave(&mut self, id: SegmentId, piece: &Piece) {
        let at = piece.slot.0 as usize;
        let Some(count) = self.residents[at].remove(&(id, piece.first)) else { return };
        self.live[at] -= count;
        self.heads[at] -= heads_of(count);
        self.totals.pieces -= 1;
        self.totals.directory_bytes -= piece.directory.encoded_bytes();
        self.totals.directory_memory -= piece.directory.memory_bytes();
    }

    /// A block of a piece came to life (1) or died (-1).
    fn count(&mut self, (id, first, slot): (SegmentId, u32, SlotId), change: i32) {
        let at = slot.0 as usize;
        let Some(count) = self.residents[at].get_mut(&(id, first)) else { return };
        let before = heads_of(*count);
        *count = count.saturating_add_signed(change);
        let after = heads_of(*count);
        self.live[at] = self.live[at].saturating_add_signed(change);
        self.heads[at] = self.heads[at] + after - before;
    }

    /// The slot is appended to no longer. It is empty if nothing in it is alive.
    pub(crate) fn close_slot(&mut self, slot: SlotId, checkpoints_begun: u64) {
        if let SlotState::Open(kind) = self.slots[slot.0 as usize] {
            self.set_state(slot, SlotState::Used(kind));
            self.settle(slot, checkpoints_begun);
        }
    }

    /// Whether a slot is kept free for the log to go on in after a failure. Not between a failure
    /// and the next checkpoint, which may need it.
    pub(crate) fn keep_for_failures(&mut self, keep: bool) {
        self.kept_for_failures = usize::from(keep);
    }

    /// Slots that hold checkpoint blobs, or are open for one.
    pub(crate) fn blob_slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.blobs.iter().copied()
    }

    /// A slot that held a checkpoint blob nobody needs any more.
    pub(crate) fn free_blob_slot(&mut self, slot: SlotId) {
        if self.residents.get(slot.0 as usize).is_some_and(Residents::is_empty) {
            self.set_state(slot, SlotState::Free);
        }
    }

    /// A read of a slot begins (1) or ends (-1): a slot that is read from is not opened.
    pub(crate) fn reader(&mut self, slot: SlotId, change: i32) {
        let was_read = self.readers.contains_key(&slot);
        let count = self.readers.entry(slot).or_default();
        *count = count.saturating_add_signed(change);
        let is_read = *count > 0;
        if !is_read {
            self.readers.remove(&slot);
        }
        if was_read != is_read && self.free.contains(&slot) {
            self.free_but_read =
                if is_read { self.free_but_read + 1 } else { self.free_but_read - 1 };
        }
    }

    /// A slot that is closed and has no segment left becomes pending free.
    fn settle(&mut self, slot: SlotId, checkpoints_begun: u64) {
        let at = slot.0 as usize;
        let closed = matches!(self.slots[at], SlotState::Used(_));
        if closed && self.residents[at].is_empty() {
            let pending = SlotState::PendingFree(checkpoints_begun);
            self.set_state(slot, if self.reuses_at_once { SlotState::Free } else { pending });
        }
    }

    /// Forgets a segment of which nothing is alive.
    pub(crate) fn drop_segment(&mut self, id: SegmentId, checkpoints_begun: u64) {
        let Some(segment) = self.segments.remove(&id) else { return };
        assert_eq!(segment.live.count(), 0, "segment {id} is dropped alive");
        self.totals.segments -= 1;
        for piece in &segment.pieces {
            self.leave(id, piece);
            self.settle(piece.slot, checkpoints_begun);
        }
    }

    /// Forgets the pieces of a slot of which nothing is alive. Returns whether it is empty then.
    pub(crate) fn drop_dead_pieces(&mut self, slot: SlotId, checkpoints_begun: u64) -> bool {
        let residents = self.residents[slot.0 as usize].iter();
        let dead: Vec<_> = residents.filter(|(_, live)| **live == 0).map(|(key, _)| *key).collect();
        for (id, first) in dead {
            let Some(mut segment) = self.segments.remove(&id) else { continue };
            let at = segment.pieces.iter().position(|piece| piece.first == first);
            if let Some(at) = at.filter(|at| segment.pieces[*at].slot == slot) {
                let piece = segment.pieces.remove(at);
                self.leave(id, &piece);
            }
            if segment.pieces.is_empty() {
                self.totals.segments -= 1;
            } else {
                self.segments.insert(id, segment);
            }
        }
        self.settle(slot, checkpoints_begun);
        self.residents[slot.0 as usize].is_empty()
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
            && let Some(piece) = segment.piece(entry.index())
        {
            let key = (entry.segment(), piece.first, piece.slot);
            if segment.live.set(entry.index()) {
                self.live_total += 1;
                self.count(key, 1);
            }
        }
    }

    /// The block an entry names is dead. Entries of segments that are gone, or of blocks a replayed
    /// move left behind, are no surprise.
    pub(crate) fn clear_live(&mut self, entry: Entry) {
        if let Some(segment) = self.segments.get_mut(&entry.segment())
            && entry.index() < self.slot_blocks
            && segment.live.clear(entry.index())
        {
            self.live_total -= 1;
            let piece = segment.piece(entry.index());
            let key = piece.map(|piece| (entry.segment(), piece.first, piece.slot));
            if let Some(key) = key {
                self.count(key, -1);
            }
        }
    }

    /// Slot and block where the block an entry names lies.
    pub(crate) fn locate(&self, entry: Entry) -> Option<(SlotId, u32)> {
        let piece = self.segments.get(&entry.segment())?.piece(entry.index())?;
        let position = piece.directory.position(entry.index())?;
        Some((piece.slot, piece.block + position))
    }

    /// An image took the place of a range of a segment; `held` are the blocks the image holds.
    pub(crate) fn moved(&mut self, to: &ImageMove, held: Directory, checkpoints_begun: u64) {
        let Some(mut segment) = self.segments.remove(&to.segment) else { return };
        let mut left = BTreeSet::new();
        for piece in &segment.pieces {
            self.leave(to.segment, piece);
            left.insert(piece.slot);
        }
        for index in to.first..to.end.min(self.slot_blocks) {
            if held.position(index).is_none() && segment.live.clear(index) {
                self.live_total -= 1;
            }
        }
        let mut pieces = Vec::new();
        for piece in &segment.pieces {
            let before = Piece { end: piece.end.min(to.first), ..piece.clone() };
            let after = Piece { first: piece.first.max(to.end), ..piece.clone() };
            pieces.extend([before, after].into_iter().filter(|piece| piece.first < piece.end));
        }
        let (slot, block) = (to.slot, to.block);
        pieces.push(Piece { first: to.first, end: to.end, slot, block, directory: held });
        pieces.sort_by_key(|piece| piece.first);
        pieces.iter().for_each(|piece| self.arrive(to.segment, piece, &segment.live));
        segment.pieces = pieces;
        self.segments.insert(to.segment, segment);
        for slot in left {
            self.settle(slot, checkpoints_begun);
        }
    }
}

/// Head blocks of an image of so many live blocks: of none there is no image.
fn heads_of(live: u32) -> u32 {
    if live == 0 { 0 } else { image_head_blocks(live) }
}

/// Live blocks with an index in a range.
fn live_between(live: &LiveBits, first: u32, end: u32) -> u32 {
    if first == 0 && end >= live.blocks() {
        return live.count();
    }
    live.runs().map(|run| run.end.min(end).saturating_sub(run.start.max(first))).sum()
}
