//! The superblock: the root of everything, two copies for each epoch.
//!
//! Of all copies on the medium the one with the highest (epoch, generation) that verifies counts.
//! It names the last checkpoint, the position of the log that checkpoint stands for, and the cuts:
//! where each epoch since then stopped believing its predecessor's log.

use std::collections::BTreeSet;

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT_VERSION, checksum, prefix};
use crate::{BLOCK_BYTES, BatchNumber, Epoch, PoolId, SegmentId, Seq, SlotId};

const MAGIC: [u8; 8] = *b"BOWLSUPR";
/// Most runs of blocks a copy of a checkpoint's blob may lie in.
pub(crate) const EXTENTS_MAX: usize = 32;
/// Copies of a checkpoint's blob.
pub(crate) const BLOB_COPIES: usize = 2;
/// Most epochs that may begin between two checkpoints.
pub(crate) const CUTS_MAX: usize = 32;
const CLEAN: u32 = 1;

/// A place in the log: just behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// The segment.
    pub segment: SegmentId,
    /// Where the segment lies.
    pub slot: SlotId,
    /// The block of the slot where the next batch would begin.
    pub block: u32,
    /// The number of the last batch before this place.
    pub number: BatchNumber,
    /// Its checksum.
    pub checksum: u64,
}

/// Where an epoch began to write, and what it accepted of the log before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The epoch that begins.
    pub epoch: Epoch,
    /// The place behind the last batch accepted; nothing older counts beyond it.
    pub accepted: Position,
    /// The new epoch's first segment.
    pub segment: SegmentId,
    /// Where it lies.
    pub slot: SlotId,
}

/// A run of blocks that holds a part of the checkpoint blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobExtent {
    /// The slot.
    pub slot: SlotId,
    /// The first block in the slot.
    pub block: u32,
    /// Number of blocks.
    pub blocks: u32,
}

/// The root of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub pool: PoolId,
    pub epoch: Epoch,
    pub generation: u64,
    /// The boot of the machine that wrote it.
    pub boot: u128,
    /// Whether the epoch ended in good order, with everything on the medium.
    pub clean: bool,
    pub slot_count: u32,
    /// Segment ids below this may have been used.
    pub segment_limit: SegmentId,
    /// The last write the checkpoint contains.
    pub seq: Seq,
    /// Where the log goes on after the checkpoint.
    pub position: Position,
    /// Where each copy of the blob lies.
    pub blob: [Vec<BlobExtent>; BLOB_COPIES],
    pub blob_bytes: u64,
    pub blob_checksum: u64,
    pub cuts: Vec<Cut>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPosition {
    segment: U64,
    slot: U32,
    block: U32,
    number: U64,
    checksum: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawCut {
    epoch: U64,
    accepted: RawPosition,
    segment: U64,
    slot: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U64,
    magic: [u8; 8],
    version: U32,
    flags: U32,
    pool: U128,
    epoch: U64,
    generation: U64,
    boot: U128,
    slot_count: U32,
    extent_count: U32,
    cut_count: U32,
    other_extent_count: U32,
    segment_limit: U64,
    seq: U64,
    position: RawPosition,
    blob_bytes: U64,
    blob_checksum: U64,
    extents: [[U32; 3]; EXTENTS_MAX],
    cuts: [RawCut; CUTS_MAX],
    other_extents: [[U32; 3]; EXTENTS_MAX],
}

const _: () = assert!(size_of::<Raw>() <= BLOCK_BYTES as usize);

impl Position {
    fn raw(self) -> RawPosition {
        RawPosition {
            segment: self.segment.0.into(),
            slot: self.slot.0.into(),
            block: self.block.into(),
            number: self.number.0.into(),
            checksum: self.checksum.into(),
        }
    }

    fn cooked(raw: &RawPosition) -> Position {
        Position {
            segment: SegmentId(raw.segment.get()),
            slot: SlotId(raw.slot.get()),
            block: raw.block.get(),
            number: BatchNumber(raw.number.get()),
            checksum: raw.checksum.get(),
        }
    }
}

fn encode_extents(from: &[BlobExtent], to: &mut [[U32; 3]; EXTENTS_MAX]) -> u32 {
    assert!(from.len() <= EXTENTS_MAX);
    for (to, from) in to.iter_mut().zip(from) {
        *to = [from.slot.0.into(), from.block.into(), from.blocks.into()];
    }
    from.len() as u32
}

fn decode_extents(from: &[[U32; 3]]) -> Vec<BlobExtent> {
    let extent = |[slot, block, blocks]: &[U32; 3]| BlobExtent {
        slot: SlotId(slot.get()),
        block: block.get(),
        blocks: blocks.get(),
    };
    from.iter().map(extent).collect()
}

impl Superblock {
    /// How much of the log was durable when it was written, for all who read it.
    pub(crate) fn proven(&self) -> BatchNumber {
        let accepted = self.cuts.last().map(|cut| cut.accepted.number);
        self.position.number.max(accepted.unwrap_or_default())
    }

    /// The slots in which copies of the blob lie.
    pub(crate) fn blob_slots(&self) -> BTreeSet<SlotId> {
        self.blob.iter().flatten().map(|extent| extent.slot).collect()
    }

    /// Whether another extent list of this length would fit.
    pub(crate) fn fits(extents: usize) -> bool {
        extents <= EXTENTS_MAX
    }

    /// Writes the superblock into a block.
    pub(crate) fn encode(&self, salt: u64, block: &mut [u8]) {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = FORMAT_VERSION.into();
        raw.flags = if self.clean { CLEAN } else { 0 }.into();
        raw.pool = self.pool.0.into();
        raw.epoch = self.epoch.0.into();
        raw.generation = self.generation.into();
        raw.boot = self.boot.into();
        raw.slot_count = self.slot_count.into();
        raw.segment_limit = self.segment_limit.0.into();
        raw.seq = self.seq.0.into();
        raw.position = self.position.raw();
        raw.blob_bytes = self.blob_bytes.into();
        raw.blob_checksum = self.blob_checksum.into();
        let [first, second] = &self.blob;
        raw.extent_count = encode_extents(first, &mut raw.extents).into();
        raw.other_extent_count = encode_extents(second, &mut raw.other_extents).into();
        raw.cut_count = (self.cuts.len() as u32).into();
        for (to, from) in raw.cuts.iter_mut().zip(&self.cuts) {
            *to = RawCut {
                epoch: from.epoch.0.into(),
                accepted: from.accepted.raw(),
                segment: from.segment.0.into(),
                slot: from.slot.0.into(),
                reserved: 0.into(),
            };
        }
        assert!(self.cuts.len() <= CUTS_MAX);
        block.fill(0);
        block[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        let sum = checksum(salt, &block[8..]);
        block[..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads a superblock; none if it does not verify.
    pub(crate) fn decode(salt: u64, pool: PoolId, block: &[u8]) -> Option<Superblock> {
        let raw = prefix::<Raw>(block)?;
        let body = block.get(8..BLOCK_BYTES as usize)?;
        if raw.magic != MAGIC
            || raw.version.get() != FORMAT_VERSION
            || raw.checksum.get() != checksum(salt, body)
            || raw.pool.get() != pool.0
        {
            return None;
        }
        let extents = raw.extents.get(..raw.extent_count.get() as usize)?;
        let other_extents = raw.other_extents.get(..raw.other_extent_count.get() as usize)?;
        let cuts = raw.cuts.get(..raw.cut_count.get() as usize)?;
        Some(Superblock {
            pool,
            epoch: Epoch(raw.epoch.get()),
            generation: raw.generation.get(),
            boot: raw.boot.get(),
            clean: raw.flags.get() & CLEAN != 0,
            slot_count: raw.slot_count.get(),
            segment_limit: SegmentId(raw.segment_limit.get()),
            seq: Seq(raw.seq.get()),
            position: Position::cooked(&raw.position),
            blob_bytes: raw.blob_bytes.get(),
            blob_checksum: raw.blob_checksum.get(),
            blob: [decode_extents(extents), decode_extents(other_extents)],
            cuts: cuts
                .iter()
                .map(|cut| Cut {
                    epoch: Epoch(cut.epoch.get()),
                    accepted: Position::cooked(&cut.accepted),
                    segment: SegmentId(cut.segment.get()),
                    slot: SlotId(cut.slot.get()),
                })
                .collect(),
        })
    }
}
