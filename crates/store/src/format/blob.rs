//! The checkpoint blob: catalogue, segment table and live bits, in one run of bytes.
//!
//! Sections follow one another: disks, lineages, segments, each with a count first. The superblock
//! holds its length and checksum.

use super::bytes::{Reader, Writer};
use super::record::{decode_disk, encode_disk};
use super::segment::SegmentKind;
use crate::segments::Piece;
use crate::tables::{Directory, Entry, LiveBits};
use crate::{Disk, LineageId, SegmentId, SlotId};

/// Levels of pages a map can have: enough for any disk, and no more than a block number has room
/// for.
const HEIGHT_MAX: u8 = 7;
/// More blocks than any disk has.
const DATA_BLOCKS_MAX: u64 = 1 << 48;
/// Flag beside the height: how many blocks hold data follows.
const HAS_COUNT: u8 = 0x80;

/// A lineage: whose map it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineageRecord {
    pub lineage: LineageId,
    /// The lineage it was forked from; itself if from none.
    pub parent: LineageId,
    /// Levels of pages in its map; 0 if the root is a state.
    pub height: u8,
    /// The root page, or the state of all its blocks.
    pub root: Entry,
    /// Entries of its leaves that name data. None if that is not known: the checkpoint was written
    /// before it was counted, or a page was lost, and what it named was given up.
    pub data_blocks: Option<u64>,
}

/// A segment as a checkpoint knows it.
#[derive(Debug, Clone)]
pub(crate) struct BlobSegment {
    pub segment: SegmentId,
    pub kind: SegmentKind,
    pub pieces: Vec<Piece>,
    pub live: LiveBits,
}

/// What a checkpoint holds.
#[derive(Debug, Default)]
pub(crate) struct Blob {
    pub disks: Vec<Disk>,
    /// The next disk and lineage ids.
    pub next_disk: u32,
    pub next_lineage: u32,
    pub lineages: Vec<LineageRecord>,
    pub segments: Vec<BlobSegment>,
}

/// Writes the section of the catalogue.
pub(crate) fn encode_catalogue(
    disks: &[Disk],
    next: (u32, u32),
    lineages: &[LineageRecord],
) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(next.0);
    out.u32(next.1);
    out.u32(disks.len() as u32);
    for disk in disks {
        encode_disk(disk, &mut out);
    }
    out.u32(lineages.len() as u32);
    for one in lineages {
        out.u32(one.lineage.0);
        out.u32(one.parent.0);
        out.u8(one.height | if one.data_blocks.is_some() { HAS_COUNT } else { 0 });
        out.0.extend_from_slice(&one.root.encode());
        if let Some(count) = one.data_blocks {
            out.u64(count);
        }
    }
    out.0
}

/// Appends a segment. The section of segments has no count: it ends with the blob.
pub(crate) fn encode_segment(segment: &BlobSegment, out: &mut Vec<u8>) {
    let mut writer = Writer(std::mem::take(out));
    writer.u64(segment.segment.0);
    writer.u8(segment.kind.code());
    writer.u32(segment.live.blocks());
    writer.u32(segment.pieces.len() as u32);
    for piece in &segment.pieces {
        writer.u32(piece.first);
        writer.u32(piece.end);
        writer.u32(piece.slot.0);
        writer.u32(piece.block);
        piece.directory.encode(&mut writer.0);
    }
    Directory::of(&segment.live).encode(&mut writer.0);
    *out = writer.0;
}

impl Blob {
    /// Reads a blob; none if it makes no sense.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Blob> {
        let mut from = Reader(bytes);
        let mut blob =
            Blob { next_disk: from.u32()?, next_lineage: from.u32()?, ..Blob::default() };
        for _ in 0..from.u32()? {
            blob.disks.push(decode_disk(&mut from)?);
        }
        for _ in 0..from.u32()? {
            blob.lineages.push(decode_lineage(&mut from)?);
        }
        while !from.is_empty() {
            blob.segments.push(decode_segment(&mut from)?);
        }
        Some(blob)
    }
}

fn decode_lineage(from: &mut Reader<'_>) -> Option<LineageRecord> {
    let (lineage, parent) = (LineageId(from.u32()?), LineageId(from.u32()?));
    let flagged = from.u8()?;
    let height = Some(flagged & !HAS_COUNT).filter(|height| *height <= HEIGHT_MAX)?;
    let root = Entry { address: from.u64()?, checksum: from.u32()? };
    let data_blocks = match flagged & HAS_COUNT {
        0 => None,
        _ => Some(from.u64().filter(|count| *count <= DATA_BLOCKS_MAX)?),
    };
    Some(LineageRecord { lineage, parent, height, root, data_blocks })
}

fn decode_segment(from: &mut Reader<'_>) -> Option<BlobSegment> {
    let segment = SegmentId(from.u64()?);
    let kind = SegmentKind::from_code(from.u8()?)?;
    let blocks = from.u32()?;
    if blocks > crate::tables::SEGMENT_BLOCKS_MAX {
        return None;
    }
    let mut pieces: Vec<Piece> = Vec::new();
    for _ in 0..from.u32()? {
        let (first, end) = (from.u32()?, from.u32()?);
        let (slot, block) = (SlotId(from.u32()?), from.u32()?);
        let directory = decode_directory(from)?;
        let is_behind = pieces.last().is_none_or(|last| last.end <= first);
        if !is_behind || first >= end || end > blocks || block >= blocks {
            return None;
        }
        pieces.push(Piece { first, end, slot, block, directory });
    }
    let segment = BlobSegment { segment, kind, pieces, live: LiveBits::new(blocks) };
    let mut live = LiveBits::new(blocks);
    for index in decode_directory(from)?.indices() {
        let holds = |piece: &Piece| {
            (piece.first..piece.end).contains(&index) && piece.directory.position(index).is_some()
        };
        if !segment.pieces.iter().any(holds) {
            return None;
        }
        live.set(index);
    }
    Some(BlobSegment { live, ..segment })
}

fn decode_directory(from: &mut Reader<'_>) -> Option<Directory> {
    let (directory, used) = Directory::decode(from.0).ok()?;
    from.0 = from.0.get(used..)?;
    Some(directory)
}
