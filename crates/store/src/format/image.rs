//! An image: the live blocks of one segment, copied by compaction, with their directory.
//!
//! ```text
//! data blocks   in the order of the directory, which is ascending by index
//! head blocks   32 bytes of head, then for each block {index u16, level u8, checksum u32,
//!               lineage u32, lba u64}: 24 bytes with padding
//! ```
//!
//! The head comes last because who owns the blocks is known once they have been read.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT_VERSION, checksum, prefix};
use crate::{BLOCK_BYTES, LineageId, SegmentId};

const MAGIC: [u8; 8] = *b"BOWLIMAG";

/// Who owns a block of an image, where it was in its segment, and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Its index in the segment.
    pub index: u16,
    /// The checksum of its bytes.
    pub checksum: u32,
    /// Whose block it is.
    pub lineage: LineageId,
    /// 0 for data, else 1 + the level of the map page it is.
    pub level: u8,
    /// The block's address on the disk, or the page's index in its level.
    pub lba: u64,
}

/// The head of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageHead {
    /// The segment it is of.
    pub segment: SegmentId,
    /// Its blocks, ascending by index.
    pub owners: Vec<Owner>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U64,
    magic: [u8; 8],
    version: U32,
    blocks: U32,
    segment: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOwner {
    index: U16,
    level: u8,
    reserved: u8,
    checksum: U32,
    lineage: U32,
    reserved_too: U32,
    lba: U64,
}

const HEAD_BYTES: usize = size_of::<Raw>();
const OWNER_BYTES: usize = size_of::<RawOwner>();
const _: () = assert!(HEAD_BYTES == 32 && OWNER_BYTES == 24);

/// Head blocks of an image of so many data blocks.
pub(crate) fn image_head_blocks(data_blocks: u32) -> u32 {
    ((HEAD_BYTES + data_blocks as usize * OWNER_BYTES) as u64).div_ceil(BLOCK_BYTES) as u32
}

/// Writes the head into zeroed whole blocks.
pub(crate) fn write_image_head(salt: u64, head: &ImageHead, out: &mut [u8]) {
    let raw = Raw {
        checksum: 0.into(),
        magic: MAGIC,
        version: FORMAT_VERSION.into(),
        blocks: (head.owners.len() as u32).into(),
        segment: head.segment.0.into(),
    };
    out[..HEAD_BYTES].copy_from_slice(raw.as_bytes());
    for (at, owner) in out[HEAD_BYTES..].chunks_exact_mut(OWNER_BYTES).zip(&head.owners) {
        let raw = RawOwner {
            index: owner.index.into(),
            level: owner.level,
            reserved: 0,
            checksum: owner.checksum.into(),
            lineage: owner.lineage.0.into(),
            reserved_too: 0.into(),
            lba: owner.lba.into(),
        };
        at.copy_from_slice(raw.as_bytes());
    }
    let sum = checksum(salt, &out[8..]);
    out[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Reads a head from its whole blocks; none if it does not verify.
pub(crate) fn read_image_head(salt: u64, bytes: &[u8]) -> Option<ImageHead> {
    let raw = prefix::<Raw>(bytes)?;
    if raw.magic != MAGIC
        || raw.version.get() != FORMAT_VERSION
        || raw.checksum.get() != checksum(salt, bytes.get(8..)?)
    {
        return None;
    }
    let count = raw.blocks.get() as usize;
    let area = bytes.get(HEAD_BYTES..HEAD_BYTES + count.checked_mul(OWNER_BYTES)?)?;
    let owners = area
        .chunks_exact(OWNER_BYTES)
        .filter_map(prefix::<RawOwner>)
        .map(|raw| Owner {
            index: raw.index.get(),
            checksum: raw.checksum.get(),
            lineage: LineageId(raw.lineage.get()),
            level: raw.level,
            lba: raw.lba.get(),
        })
        .collect();
    Some(ImageHead { segment: SegmentId(raw.segment.get()), owners })
}
