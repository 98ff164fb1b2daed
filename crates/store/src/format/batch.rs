//! A batch: one head block, then the data blocks its entries name.
//!
//! ```text
//! 0    head, 128 bytes
//! 128  entries: 32 bytes, then 4 bytes of checksum for each data block, padded to 8
//! 4096 data blocks, in the order of the entries
//! ```
//!
//! Entries only ever grow at the end and the head comes last, so the block can be built in memory
//! that outlives the process: what a successor finds is a prefix of the entries.

use std::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FORMAT_VERSION, checksum, prefix};
use crate::{BLOCK_BYTES, BatchNumber, Epoch, Lba, LineageId, SegmentId, Seq};

const MAGIC: [u8; 8] = *b"BOWLBTCH";
/// Where entries begin in the head block.
pub(crate) const ENTRY_AREA_START: usize = 128;
/// Bytes for entries in the head block.
pub(crate) const ENTRY_AREA_BYTES: usize = BLOCK_BYTES as usize - ENTRY_AREA_START;
/// Most data blocks in a batch.
pub(crate) const BATCH_DATA_BLOCKS_MAX: u32 = 256;
const ENTRY_BYTES: usize = 32;
const CONTINUES: u8 = 1;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// Data blocks for a range of a lineage.
    Write,
    /// A range reads as zeros and keeps its reservation.
    Zero,
    /// A range reads as zeros.
    Discard,
    /// Data blocks hold a record of the catalogue or of compaction.
    Record,
}

impl EntryKind {
    fn code(self) -> u8 {
        match self {
            EntryKind::Write => 1,
            EntryKind::Zero => 2,
            EntryKind::Discard => 3,
            EntryKind::Record => 4,
        }
    }

    fn from_code(code: u8) -> Option<EntryKind> {
        [EntryKind::Write, EntryKind::Zero, EntryKind::Discard, EntryKind::Record]
            .into_iter()
            .find(|kind| kind.code() == code)
    }

    /// Whether data blocks belong to the entry.
    pub(crate) fn has_data(self) -> bool {
        matches!(self, EntryKind::Write | EntryKind::Record)
    }
}

/// One entry of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub lineage: LineageId,
    pub kind: EntryKind,
    /// The request goes on in a later entry; it counts only if that one is there.
    pub continues: bool,
    pub lba: Lba,
    pub blocks: u64,
    pub seq: Seq,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    lineage: U32,
    kind: u8,
    flags: u8,
    reserved: [u8; 2],
    lba: U64,
    blocks: U64,
    seq: U64,
}

const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);

/// Bytes an entry takes in the head block.
pub(crate) fn entry_bytes(kind: EntryKind, blocks: u64) -> usize {
    let sums = if kind.has_data() { blocks as usize * 4 } else { 0 };
    ENTRY_BYTES + sums.next_multiple_of(8)
}

impl LogEntry {
    /// The bytes of the entry, with the checksums of its data blocks.
    pub(crate) fn encode(&self, checksums: &[u32], out: &mut Vec<u8>) {
        out.clear();
        let raw = RawEntry {
            lineage: self.lineage.0.into(),
            kind: self.kind.code(),
            flags: if self.continues { CONTINUES } else { 0 },
            reserved: [0; 2],
            lba: self.lba.0.into(),
            blocks: self.blocks.into(),
            seq: self.seq.0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        for sum in checksums {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out.resize(entry_bytes(self.kind, self.blocks), 0);
    }
}

/// The head of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub entries: u32,
    pub data_blocks: u32,
    pub instance: u64,
    pub epoch: Epoch,
    pub segment: SegmentId,
    /// The block of its slot where the batch begins.
    pub block: u32,
    pub number: BatchNumber,
    /// The checksum of the batch before.
    pub previous: u64,
    /// The highest batch known to be durable when this one was closed.
    pub durable_upto: BatchNumber,
    /// Its own checksum, over the whole head block.
    pub checksum: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    checksum: U64,
    magic: [u8; 8],
    version: U32,
    entries: U32,
    data_blocks: U32,
    block: U32,
    instance: U64,
    epoch: U64,
    segment: U64,
    number: U64,
    previous: U64,
    durable_upto: U64,
}

const RAW_BYTES: usize = size_of::<Raw>();
const _: () = assert!(RAW_BYTES == 80 && RAW_BYTES <= ENTRY_AREA_START);

/// The first bytes of a closed batch, given the whole head block with its entries. Returns them
/// with the checksum, which is also stored in `head`.
pub(crate) fn seal_batch(salt: u64, head: &mut BatchHead, block: &[u8]) -> [u8; RAW_BYTES] {
    let mut raw = Raw {
        checksum: 0.into(),
        magic: MAGIC,
        version: FORMAT_VERSION.into(),
        entries: head.entries.into(),
        data_blocks: head.data_blocks.into(),
        block: head.block.into(),
        instance: head.instance.into(),
        epoch: head.epoch.0.into(),
        segment: head.segment.0.into(),
        number: head.number.0.into(),
        previous: head.previous.into(),
        durable_upto: head.durable_upto.0.into(),
    };
    let rest = checksum(salt, &block[RAW_BYTES..BLOCK_BYTES as usize]);
    head.checksum = checksum(salt ^ rest, &raw.as_bytes()[8..]);
    raw.checksum = head.checksum.into();
    let mut bytes = [0; RAW_BYTES];
    bytes.copy_from_slice(raw.as_bytes());
    bytes
}

/// Reads the head of a batch; none if the block is no batch head that verifies.
pub(crate) fn read_batch(salt: u64, block: &[u8]) -> Option<BatchHead> {
    let raw = prefix::<Raw>(block)?;
    if raw.magic != MAGIC || raw.version.get() != FORMAT_VERSION {
        return None;
    }
    let rest = checksum(salt, block.get(RAW_BYTES..BLOCK_BYTES as usize)?);
    if raw.checksum.get() != checksum(salt ^ rest, &raw.as_bytes()[8..]) {
        return None;
    }
    Some(BatchHead {
        entries: raw.entries.get(),
        data_blocks: raw.data_blocks.get(),
        instance: raw.instance.get(),
        epoch: Epoch(raw.epoch.get()),
        segment: SegmentId(raw.segment.get()),
        block: raw.block.get(),
        number: BatchNumber(raw.number.get()),
        previous: raw.previous.get(),
        durable_upto: BatchNumber(raw.durable_upto.get()),
        checksum: raw.checksum.get(),
    })
}

/// The entries of a head block, each with the checksums of its data blocks and the index of the
/// first of them among the batch's data blocks. Ends with an error where one makes no sense: what
/// follows it cannot be found.
pub(crate) struct Entries<'a> {
    area: &'a [u8],
    count: u32,
    left: u32,
    data_block: u32,
}

/// Why the entries of a batch cannot be used. If its head verifies, somebody has written it so: a
/// version that knows more than this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadEntry {
    /// Which one.
    at: u32,
    /// Its kind, if that is what is not known.
    kind: Option<u8>,
}

impl fmt::Display for BadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "entry {} is of kind {kind}, which is not known", self.at),
            None => write!(f, "entry {} does not fit its batch", self.at),
        }
    }
}

/// An entry found in a head block.
pub(crate) struct FoundEntry<'a> {
    pub entry: LogEntry,
    /// Index of its first data block in the batch.
    pub data_block: u32,
    /// Its own bytes.
    pub bytes: &'a [u8],
    sums: &'a [u8],
}

impl FoundEntry<'_> {
    /// The checksum of the entry's n-th data block.
    pub(crate) fn checksum(&self, index: u32) -> u32 {
        let at = index as usize * 4;
        self.sums.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

impl<'a> Entries<'a> {
    /// The first `count` entries of a head block.
    pub(crate) fn new(block: &'a [u8], count: u32) -> Entries<'a> {
        let area = block.get(ENTRY_AREA_START..BLOCK_BYTES as usize).unwrap_or_default();
        Entries { area, count, left: count, data_block: 0 }
    }

    fn entry(&mut self) -> Option<FoundEntry<'a>> {
        let raw = prefix::<RawEntry>(self.area)?;
        let kind = EntryKind::from_code(raw.kind)?;
        let blocks = raw.blocks.get();
        if kind.has_data() && blocks > u64::from(BATCH_DATA_BLOCKS_MAX) {
            return None;
        }
        let bytes = entry_bytes(kind, blocks);
        let sums = self.area.get(ENTRY_BYTES..bytes)?;
        let found = FoundEntry {
            entry: LogEntry {
                lineage: LineageId(raw.lineage.get()),
                kind,
                continues: raw.flags & CONTINUES != 0,
                lba: Lba(raw.lba.get()),
                blocks,
                seq: Seq(raw.seq.get()),
            },
            data_block: self.data_block,
            bytes: self.area.get(..bytes)?,
            sums,
        };
        if kind.has_data() {
            self.data_block += blocks as u32;
        }
        self.area = self.area.get(bytes..)?;
        Some(found)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<FoundEntry<'a>, BadEntry>;

    fn next(&mut self) -> Option<Result<FoundEntry<'a>, BadEntry>> {
        let at = self.count - self.left;
        self.left = self.left.checked_sub(1)?;
        Some(self.entry().ok_or_else(|| {
            self.left = 0;
            let kind = prefix::<RawEntry>(self.area).map(|raw| raw.kind);
            BadEntry { at, kind: kind.filter(|kind| EntryKind::from_code(*kind).is_none()) }
        }))
    }
}

/// Whether every entry of a batch is one that is known, and their data is the batch's.
///
/// # Errors
/// The first that is not.
pub(crate) fn check_entries(head: &BatchHead, block: &[u8]) -> Result<(), BadEntry> {
    let mut blocks = 0;
    for found in Entries::new(block, head.entries) {
        let entry = found?.entry;
        blocks += if entry.kind.has_data() { entry.blocks } else { 0 };
    }
    let all = BadEntry { at: head.entries, kind: None };
    if blocks == u64::from(head.data_blocks) { Ok(()) } else { Err(all) }
}
