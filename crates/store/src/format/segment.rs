//! The segment header: block 0 of every slot in use.

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT_VERSION, checksum, prefix};
use crate::{BatchNumber, Epoch, PoolId, SegmentId, SlotId};

const MAGIC: [u8; 8] = *b"BOWLSEGM";

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SegmentKind {
    /// Batches of the log.
    Log,
    /// Images of other segments, made by compaction.
    Images,
    /// Pages of the map.
    Map,
    /// Checkpoint blobs.
    Blob,
}

impl SegmentKind {
    /// The byte that stands for the kind.
    pub(crate) fn code(self) -> u8 {
        match self {
            SegmentKind::Log => 1,
            SegmentKind::Images => 2,
            SegmentKind::Map => 3,
            SegmentKind::Blob => 4,
        }
    }

    /// The kind a byte stands for.
    pub(crate) fn from_code(code: u8) -> Option<SegmentKind> {
        [SegmentKind::Log, SegmentKind::Images, SegmentKind::Map, SegmentKind::Blob]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub pool: PoolId,
    pub kind: SegmentKind,
    pub segment: SegmentId,
    pub epoch: Epoch,
    /// The instance that writes it: shared pools give whole slots to instances.
    pub instance: u64,
    pub slot: SlotId,
    /// Where the next segment of the log will lie.
    pub successor: Option<SlotId>,
    /// The last good batch before this segment: its segment, number and checksum.
    pub before: (SegmentId, BatchNumber, u64),
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U64,
    magic: [u8; 8],
    version: U32,
    kind: u8,
    reserved: [u8; 3],
    pool: U128,
    segment: U64,
    epoch: U64,
    instance: U64,
    slot: U32,
    successor: U32,
    before_segment: U64,
    before_number: U64,
    before_checksum: U64,
}

const BYTES: usize = size_of::<Raw>();
const _: () = assert!(BYTES == 96);

impl SegmentHeader {
    /// Writes the header into a block.
    pub(crate) fn encode(&self, salt: u64, block: &mut [u8]) {
        let mut raw = Raw {
            checksum: 0.into(),
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            kind: self.kind.code(),
            reserved: [0; 3],
            pool: self.pool.0.into(),
            segment: self.segment.0.into(),
            epoch: self.epoch.0.into(),
            instance: self.instance.into(),
            slot: self.slot.0.into(),
            successor: self.successor.map_or(u32::MAX, |slot| slot.0).into(),
            before_segment: self.before.0.0.into(),
            before_number: self.before.1.0.into(),
            before_checksum: self.before.2.into(),
        };
        raw.checksum = checksum(salt, &raw.as_bytes()[8..]).into();
        block.fill(0);
        block[..BYTES].copy_from_slice(raw.as_bytes());
    }

    /// Reads a header; none if it does not verify.
    pub(crate) fn decode(salt: u64, pool: PoolId, block: &[u8]) -> Option<SegmentHeader> {
        let raw = prefix::<Raw>(block)?;
        if raw.magic != MAGIC
            || raw.version.get() != FORMAT_VERSION
            || raw.checksum.get() != checksum(salt, &raw.as_bytes()[8..])
            || raw.pool.get() != pool.0
        {
            return None;
        }
        let successor = raw.successor.get();
        Some(SegmentHeader {
            pool,
            kind: SegmentKind::from_code(raw.kind)?,
            segment: SegmentId(raw.segment.get()),
            epoch: Epoch(raw.epoch.get()),
            instance: raw.instance.get(),
            slot: SlotId(raw.slot.get()),
            successor: (successor != u32::MAX).then_some(SlotId(successor)),
            before: (
                SegmentId(raw.before_segment.get()),
                BatchNumber(raw.before_number.get()),
                raw.before_checksum.get(),
            ),
        })
    }
}
