//! Every byte the store puts on a medium (drawn in `docs/format.md`).
//!
//! All integers are little-endian. Every structure carries a magic, its version and a checksum
//! seeded with the pool's salt: a guest that writes a perfect image of a header into its disk
//! cannot make it verify, because it does not know the salt.

mod batch;
mod blob;
pub(crate) mod bytes;
mod image;
mod page;
mod pool;
mod record;
mod segment;
mod superblock;

pub(crate) use batch::{
    BATCH_DATA_BLOCKS_MAX, BatchHead, ENTRY_AREA_BYTES, ENTRY_AREA_START, Entries, EntryKind,
    FoundEntry, LogEntry, check_entries, entry_bytes, read_batch, seal_batch,
};
pub(crate) use blob::{Blob, BlobSegment, LineageRecord, encode_catalogue, encode_segment};
pub(crate) use image::{ImageHead, Owner, image_head_blocks, read_image_head, write_image_head};
pub(crate) use page::{FANOUT, PageHead, PageMut, PageRef, span_of_level};
pub use pool::PoolHeader;
pub(crate) use pool::{
    POOL_HEADER_AT, SLOT_BYTES_MAX, SUPERBLOCK_COPIES, SUPERBLOCK_PAIRS, has_pool_magic,
    other_copy, superblock_at,
};
pub(crate) use record::{ImageMove, MOVES_MAX, Record};
pub(crate) use segment::{SegmentHeader, SegmentKind};
pub(crate) use superblock::EXTENTS_MAX as BLOB_EXTENTS_MAX;
pub(crate) use superblock::{BLOB_COPIES, BlobExtent, CUTS_MAX, Cut, Position, Superblock};

use twox_hash::XxHash3_64;

/// The version of the pool format this code writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The checksum of a block of data, as batches, images and the map keep it.
pub(crate) fn block_checksum(salt: u64, block: &[u8]) -> u32 {
    XxHash3_64::oneshot_with_seed(salt, block) as u32
}

/// The checksum of a metadata structure.
pub(crate) fn checksum(salt: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(salt, bytes)
}

/// Reads a prefix of `bytes` as `T`; none if there are too few.
pub(crate) fn prefix<T>(bytes: &[u8]) -> Option<&T>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    T::ref_from_prefix(bytes).ok().map(|(value, _)| value)
}
