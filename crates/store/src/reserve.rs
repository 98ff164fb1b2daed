//! How many slots stay free for what must always go on.
//!
//! Everything that gives space back takes some first: a checkpoint writes pages and a blob,
//! compaction fills an image and logs a record of it, a discard is an entry of the log. So slots
//! are kept in the order of need. With F the free slots that have their space (`backing.rs`),
//!
//! - K: one slot for the log to go on in after a failure of the medium, or for a start. It is used
//!   up by one of them, and there again when the next checkpoint is durable.
//! - R: what the checkpoint under way and the one after it may take at most, counted in full until
//!   they are durable. Pages: all leaves with changes, and what lies above them. Blob, for each
//!   copy: two slots if two blobs fit one, else two blobs and a slot they may share; less the slots
//!   that hold those the superblock names.
//! - x = F - K - R: the margin.
//!
//! who takes a slot | may, if the margin stays at
//! ---|---
//! the log after a failure, a start | no matter; K is theirs
//! a checkpoint | no matter; R is its own, K stays
//! the log for a record of compaction | at least 0
//! compaction for an image | 1, so that there is one for the record
//! discards, zeroes, changes of disks | 3
//! data | 4, so that there is one for a discard
//!
//! Invariants:
//! - Checkpoints always end: whoever lets R grow (an entry makes changes) or F shrink has looked at
//!   the table first, with all leaves it may change: a range counts four, its own ends and those of
//!   an older one that it cuts in two. A checkpoint moves slots from F to pages and leaves as much
//!   less in R.
//! - A slot is emptied only if that wins: what lives in it, with the heads of its images, one more
//!   where an image is cut in two, and the record in the log, is less than the slot. So compaction
//!   comes to an end, and then all slots but the open ones are full but for `waste_blocks`.
//! - Where compaction waits for an image's slot, a checkpoint can bring slots back: x >= 3 held
//!   when the last entry of a guest was admitted. Since then compaction has changed F by what it
//!   took for images, each for a slot that is pending free by now, and by the slots of the log that
//!   its records began: one until they are old enough to be emptied, because fifteen jobs at the
//!   least fit a segment of the log, and they win more than a slot.
//! - So F comes back to K + R + 4 and what a write needs, or all slots are full: the limit for live
//!   data is set such that this is above it (`SLOTS_KEPT_MIN`, `HEADS_IN_A_SLOT`).
//!
//! A failure of the medium in the midst of a checkpoint costs the slots it has written to; they are
//! in R until the checkpoint is durable, and it begins anew with them. More than one failure
//! without a checkpoint in between is beyond what is reserved: the log goes on while there are
//! slots at all.

use crate::Media;
use crate::format::{BLOB_EXTENTS_MAX, FANOUT};
use crate::map::Generation;
use crate::store::Store;
use crate::{BLOCK_BYTES, SlotId};

/// Slots no live data may take: two of the log, the open ones of map and images, two for each copy
/// of blobs, one for pages, one for failures, four of margin, and two in transit.
const SLOTS_KEPT_MIN: u64 = 16;
/// One of so many slots at most is kept for the largest write beyond two.
const LARGE_WRITE_SHARE: u64 = 16;
/// Percent of all slots that are kept at least.
const SLOTS_KEPT_PERCENT: u64 = 7;
/// Bytes that a checkpoint writes for a segment or piece beyond live bits and directory.
const SEGMENT_BYTES: usize = 24;
const PIECE_BYTES: usize = 24;
/// Bytes that a checkpoint writes for a disk and its lineage, at most, beyond its name.
const DISK_BYTES: usize = 160;

/// Images in a slot that the limit for live data allows for.
const HEADS_IN_A_SLOT: u32 = 8;

/// Margins: slots that must stay above what checkpoints and a failure need.
pub(crate) const MARGIN_OF_IMAGES: usize = 1;
pub(crate) const MARGIN_OF_RANGES: usize = 3;
pub(crate) const MARGIN_OF_DATA: usize = 4;

/// Blocks of a closed slot that may be lost for good: to its header, because less than that is not
/// worth the copying, and to the heads of images. Each takes a block however few blocks of it live;
/// a slot that was overwritten at random has been seen to hold six.
fn waste_blocks(slot_blocks: u32) -> u32 {
    1 + gain_blocks_min(slot_blocks) + (slot_blocks / 8).min(HEADS_IN_A_SLOT)
}

/// Blocks that emptying a slot must win: one may go to the head of an image that is cut in two, two
/// to the record in the log.
pub(crate) fn gain_blocks_min(slot_blocks: u32) -> u32 {
    (slot_blocks / 64).max(4)
}

/// Most blocks that may be alive in a pool whose largest write has `write_blocks`.
pub(crate) fn limit_blocks(slots: u32, slot_blocks: u32, write_blocks: u64) -> u64 {
    let (slots, blocks) = (u64::from(slots), u64::from(slot_blocks));
    let for_a_write = (write_blocks + write_blocks / 16).div_ceil(blocks - 2) + 1;
    let kept = SLOTS_KEPT_MIN + for_a_write.clamp(2, (slots / LARGE_WRITE_SHARE).max(2));
    let kept = kept.max(slots * SLOTS_KEPT_PERCENT / 100).min(slots);
    (slots - kept) * (blocks - u64::from(waste_blocks(slot_blocks)))
}

/// Most slots a pool may have, so that its checkpoints' blobs can be named by a superblock: live
/// bits and directories of two pieces for each slot are far more than pools have been seen to need.
pub(crate) fn slots_max(slot_blocks: u32) -> u64 {
    let blob_bytes = (BLOB_EXTENTS_MAX as u64 - 2) * u64::from(slot_blocks - 1) * BLOCK_BYTES;
    blob_bytes / (150 + u64::from(slot_blocks) / 2)
}

/// How many pages the maps of all disks have, level by level, if nothing of them is uniform, and
/// how long the catalogue is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shape {
    levels: [u64; 5],
    catalogue_bytes: usize,
    /// Disks that have grown since the last freeze: their trees may become higher.
    pub resized: u64,
}

impl Shape {
    fn of<'a>(disks: impl Iterator<Item = (&'a str, u64)>) -> Shape {
        let mut shape = Shape { catalogue_bytes: DISK_BYTES, ..Shape::default() };
        for (name, blocks) in disks {
            shape.catalogue_bytes += DISK_BYTES + name.len();
            let mut pages = blocks;
            for level in &mut shape.levels {
                pages = pages.div_ceil(FANOUT);
                *level += pages;
            }
        }
        shape
    }

    /// Most pages that a fold of changes in so many leaves makes.
    fn pages(&self, leaves: u64) -> u64 {
        // A tree that is made higher changes at every level.
        let [lowest, upper @ ..] = self.levels;
        let upper = upper.iter().map(|level| (leaves + self.resized).min(*level));
        leaves.min(lowest) + upper.sum::<u64>()
    }
}

/// Leaves that a generation changes, at most.
fn leaves_of(generation: &Generation) -> u64 {
    generation.deltas.leaves() as u64 + 2 * generation.ranges.len() as u64
}

impl<M: Media> Store<M> {
    /// Most pages the fold of the active generation makes, `more` leaves on top.
    pub(crate) fn pages_max(&self, more: u64) -> u64 {
        self.shape.pages(leaves_of(&self.map.active) + more)
    }

    /// The same of the frozen one, of which nothing else is known.
    pub(crate) fn frozen_pages_max(&self) -> u64 {
        self.map.frozen.as_ref().map_or(0, |frozen| self.shape.pages(leaves_of(frozen)))
    }

    /// The disks are others, or other in size.
    pub(crate) fn shape_changed(&mut self, resized: u64) {
        let disks = self.catalogue.disks.values();
        let disks = disks.map(|disk| (disk.name.as_str(), disk.bytes / BLOCK_BYTES));
        self.shape = Shape { resized, ..Shape::of(disks) };
    }

    /// Pages that the generations that are not durable in pages yet will make, at most.
    pub(crate) fn pages_to_come(&self) -> u64 {
        let frozen = self.map.frozen.as_ref().map_or(0, |_| self.frozen_pages);
        let active = if self.map.active.is_empty() { 0 } else { self.pages_max(0) };
        frozen + active
    }

    /// Slots that must stay free for checkpoints and a failure: K + R, once a request has changed
    /// `more` leaves.
    pub(crate) fn slots_reserved(&self, more: u64) -> usize {
        let frozen = self.map.frozen.as_ref().map_or(0, |_| self.frozen_pages);
        let usable = u64::from(self.segments.slot_blocks() - 1);
        let pages = (frozen + self.pages_max(more)).div_ceil(usable) as usize;
        1 + pages + self.blob_slots_to_come(usable)
    }

    /// The margin: free slots beyond what is reserved.
    pub(crate) fn has_margin(&self, slots: usize) -> bool {
        self.segments.free_slots() >= self.slots_reserved(0) + slots
    }

    /// Blocks of the next checkpoint's blob, at most.
    fn blob_blocks_max(&self) -> u64 {
        let totals = self.segments.totals();
        let bitmap = self.segments.slot_blocks() as usize / 8 + 8;
        let bits = (totals.segments * bitmap).min(2 * self.segments.live_blocks() as usize);
        let bytes = totals.segments * SEGMENT_BYTES
            + bits
            + totals.pieces * PIECE_BYTES
            + totals.directory_bytes
            + self.shape.catalogue_bytes;
        (bytes as u64).div_ceil(BLOCK_BYTES)
    }

    /// Slots that the blobs of two checkpoints may take beyond those blobs lie in now.
    fn blob_slots_to_come(&self, usable: u64) -> usize {
        let blob = self.blob_blocks_max();
        let copies = self.root.blob.iter().zip(&self.streams.blobs);
        let to_come = copies.map(|(extents, stream)| {
            let mut last: Option<SlotId> = stream.target.map(|target| target.slot);
            let is_open = last.is_some();
            let mut held = usize::from(is_open);
            for extent in extents.iter().rev() {
                if last != Some(extent.slot) {
                    held += 1;
                    last = Some(extent.slot);
                }
            }
            // Two that fit one slot lie in two at the most, if the second follows the first.
            let most = match 2 * blob <= usable {
                true => 2 + usize::from(!is_open),
                false => 2 * blob.div_ceil(usable) as usize + 1,
            };
            most.saturating_sub(held)
        });
        to_come.sum()
    }

    /// Most blocks that may be alive: the rest is for the pool to work with.
    pub(crate) fn live_limit_blocks(&self) -> u64 {
        self.live_limit_of(self.segments.usable_slots())
    }

    /// Most blocks that may be alive where so many of the pool's slots can have space.
    pub fn live_limit_of(&self, slots: u32) -> u64 {
        let write_blocks = self.options.write_bytes_max / BLOCK_BYTES;
        limit_blocks(slots, self.segments.slot_blocks(), write_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded_by_the_leaves_and_by_the_trees() {
        let shape = Shape::of([("a", 1000), ("b", 1 << 28)].into_iter());
        assert_eq!(shape.pages(0), 0);
        let grown = Shape { resized: 2, ..shape };
        assert_eq!(grown.pages(0), 2 * 4, "trees that grow change at each level");
        assert_eq!(shape.pages(1), 5, "one leaf, and what lies above it");
        let all = 1000u64.div_ceil(340) + (1u64 << 28).div_ceil(340);
        assert!(shape.pages(u64::from(u32::MAX)) > all);
        assert!(shape.pages(u64::from(u32::MAX)) < all + all / 300);
    }

    #[test]
    fn four_fifths_of_a_pool_of_some_size_can_hold_live_data() {
        let share = |slots: u32, slot_mib: u64| {
            let blocks = (slot_mib << 20) / BLOCK_BYTES;
            let limit = limit_blocks(slots, blocks as u32, (32 << 20) / BLOCK_BYTES);
            limit * 100 / (u64::from(slots) * blocks)
        };
        assert_eq!(share(32767, 32), 91);
        assert_eq!(share(319, 32), 91);
        assert!(share(127, 16) >= 80 && share(127, 8) >= 80, "{}", share(127, 8));
        assert!(share(63, 32) >= 68);
        assert!(share(24, 1) > 20);
    }

    #[test]
    fn slots_that_are_small_make_small_pools() {
        let terabytes =
            |slot_bytes: u64| (slots_max((slot_bytes / BLOCK_BYTES) as u32) * slot_bytes) >> 40;
        assert_eq!(terabytes(32 << 20), 7);
        assert_eq!(terabytes(64 << 20), 14);
        assert!(slots_max(32) > 7000);
    }
}
