//! The pool header: what never changes in a pool's life, twice on the medium.

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT_VERSION, checksum, prefix};
use crate::{BLOCK_BYTES, PoolId, SlotId, StoreError};

const MAGIC: [u8; 8] = *b"BOWLPOOL";

/// Where the two copies of the pool header lie, in bytes.
pub(crate) const POOL_HEADER_AT: [u64; 2] = [0, 64 << 10];
/// Superblocks of one epoch: two copies.
pub(crate) const SUPERBLOCK_COPIES: u64 = 2;
/// Epochs take turns among so many pairs of superblocks.
pub(crate) const SUPERBLOCK_PAIRS: u64 = 4;
const SUPERBLOCKS_AT: u64 = 128 << 10;
const SUPERBLOCK_STRIDE: u64 = 16 << 10;
/// Where the first slot begins, in bytes.
pub(crate) const FIRST_SLOT_AT: u64 = 1 << 20;
/// The smallest slot, in bytes.
pub(crate) const SLOT_BYTES_MIN: u64 = 64 << 10;
/// The largest slot, in bytes: an address has 14 bits for the block in its segment.
pub(crate) const SLOT_BYTES_MAX: u64 = BLOCK_BYTES << 14;

/// Where a copy of an epoch's superblock lies, in bytes. A late write of a dead epoch can only hit
/// its own pair.
pub(crate) fn superblock_at(epoch: u64, copy: u64) -> u64 {
    assert!(copy < SUPERBLOCK_COPIES);
    SUPERBLOCKS_AT + (epoch % SUPERBLOCK_PAIRS * SUPERBLOCK_COPIES + copy) * SUPERBLOCK_STRIDE
}

/// The other of the two copies.
pub(crate) fn other_copy(copy: u64) -> u64 {
    SUPERBLOCK_COPIES - 1 - copy
}

const _: () = assert!(
    SUPERBLOCKS_AT + SUPERBLOCK_PAIRS * SUPERBLOCK_COPIES * SUPERBLOCK_STRIDE <= FIRST_SLOT_AT
);

/// What never changes in a pool's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolHeader {
    /// The pool's identity.
    pub pool: PoolId,
    /// The secret seed of every checksum in the pool.
    pub salt: u64,
    /// Bytes in a slot.
    pub slot_bytes: u64,
    /// When the pool was made, in seconds since 1970.
    pub created_at_seconds: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    pool: U128,
    salt: U64,
    slot_bytes: U64,
    created_at_seconds: U64,
    checksum: U64,
}

const _: () = assert!(size_of::<Raw>() == 64);

/// Whether a block was, or pretends to be, a pool header.
pub(crate) fn has_pool_magic(block: &[u8]) -> bool {
    block.starts_with(&MAGIC)
}

impl PoolHeader {
    /// Writes the header into a zeroed block.
    pub(crate) fn encode(&self, block: &mut [u8]) {
        let mut raw = Raw {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            block_bytes: (BLOCK_BYTES as u32).into(),
            pool: self.pool.0.into(),
            salt: self.salt.into(),
            slot_bytes: self.slot_bytes.into(),
            created_at_seconds: self.created_at_seconds.into(),
            checksum: 0.into(),
        };
        raw.checksum = checksum(0, &raw.as_bytes()[..56]).into();
        block[..64].copy_from_slice(raw.as_bytes());
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`StoreError::NotAPool`] with what is wrong.
    pub(crate) fn decode(block: &[u8]) -> Result<PoolHeader, StoreError> {
        let not = |text: &str| Err(StoreError::NotAPool(text.into()));
        let Some(raw) = prefix::<Raw>(block) else { return not("too short to be a Bowline pool") };
        if raw.magic != MAGIC {
            return not("not a Bowline pool: no pool header at its beginning");
        }
        if raw.checksum.get() != checksum(0, &raw.as_bytes()[..56]) {
            return not("the pool header is damaged");
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(StoreError::NotAPool(format!(
                "pool format {} is not known to this version, which knows {FORMAT_VERSION}",
                raw.version
            )));
        }
        let slot_bytes = raw.slot_bytes.get();
        if u64::from(raw.block_bytes.get()) != BLOCK_BYTES
            || !(SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&slot_bytes)
            || !slot_bytes.is_multiple_of(BLOCK_BYTES)
        {
            return not("the pool header names impossible sizes");
        }
        Ok(PoolHeader {
            pool: PoolId(raw.pool.get()),
            salt: raw.salt.get(),
            slot_bytes,
            created_at_seconds: raw.created_at_seconds.get(),
        })
    }

    /// Where a block of a slot lies on the medium, in bytes.
    pub(crate) fn block_at(&self, slot: SlotId, block: u32) -> u64 {
        FIRST_SLOT_AT + u64::from(slot.0) * self.slot_bytes + u64::from(block) * BLOCK_BYTES
    }

    /// Slots on a medium of so many bytes.
    pub(crate) fn slots_on(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.saturating_sub(FIRST_SLOT_AT) / self.slot_bytes).unwrap_or(u32::MAX - 1)
    }

    /// Blocks in a slot.
    pub(crate) fn slot_blocks(&self) -> u32 {
        (self.slot_bytes / BLOCK_BYTES) as u32
    }
}
