//! Applying batches to map, segments and catalogue.
//!
//! A request that spans batches counts only whole: its entries are held until the last is there,
//! and dropped when something else follows.

use crate::blocking::Blocking;
use crate::format::{
    BatchHead, Entries, EntryKind, FoundEntry, ImageMove, LogEntry, Record, SegmentKind,
    block_checksum, image_head_blocks, read_image_head,
};
use crate::index::Happened;
use crate::log::Log;
use crate::recovery::Known;
use crate::store::{apply, apply_record};
use crate::tables::{Directory, LiveBits};
use crate::{BLOCK_BYTES, Media, SegmentId, Seq, SlotId, StoreError};

/// An entry whose request is not complete yet.
struct Held {
    entry: LogEntry,
    segment: SegmentId,
    slot: SlotId,
    index: u32,
    sums: Vec<u32>,
    /// The block of a record, if it is at hand.
    content: Option<Vec<u8>>,
}

/// The state of a replay.
pub(crate) struct Replay {
    pub seq: Seq,
    pub batches: u64,
    pub bytes: u64,
    /// Records of requests up to this one have been applied.
    pub recorded_through: Seq,
    /// Checkpoints begun before: what comes free is needed by them.
    pub begun: u64,
    held: Vec<Held>,
}

impl Replay {
    pub(crate) fn new(seq: Seq) -> Replay {
        Replay { seq, batches: 0, bytes: 0, recorded_through: Seq(0), begun: 0, held: Vec::new() }
    }

    /// Applies a batch of the log.
    pub(crate) fn batch<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        head: &BatchHead,
        block: &[u8],
        slot: SlotId,
    ) -> Result<(), StoreError> {
        self.batches += 1;
        self.bytes += u64::from(1 + head.data_blocks) * BLOCK_BYTES;
        for found in Entries::new(block, head.entries) {
            let found = found.map_err(|bad| StoreError::Version(bad.to_string()))?;
            let sums = sums_of(&found);
            let index = head.block + 1 + found.data_block;
            let (entry, segment) = (found.entry, head.segment);
            let held = Held { entry, segment, slot, index, sums, content: None };
            self.entry(medium, known, held)?;
        }
        Ok(())
    }

    /// Applies a batch of the arena that has its place.
    pub(crate) fn adopted<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        log: &Log,
        at: usize,
        known: &mut Known,
    ) -> Result<(), StoreError> {
        let batch = &log.batches[at];
        let (segment, slot, first) = (batch.segment, batch.slot, batch.block + 1);
        self.bytes += u64::from(batch.blocks()) * BLOCK_BYTES;
        for found in log.entries_of(at) {
            let sums = sums_of(&found);
            let (entry, index) = (found.entry, first + found.data_block);
            let is_record = entry.kind == EntryKind::Record;
            let content = is_record.then(|| log.data_block(at, found.data_block)).flatten();
            self.entry(medium, known, Held { entry, segment, slot, index, sums, content })?;
        }
        Ok(())
    }

    fn entry<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        held: Held,
    ) -> Result<(), StoreError> {
        self.seq = self.seq.max(held.entry.seq);
        if self.held.first().is_some_and(|first| first.entry.seq != held.entry.seq) {
            self.held.clear();
        }
        let is_last = !held.entry.continues;
        self.held.push(held);
        if !is_last {
            return Ok(());
        }
        for one in std::mem::take(&mut self.held) {
            // Records change the map too: a disk that goes leaves a hole behind.
            if !known.map.active.has_room(one.entry.blocks.min(512) as usize, 1) {
                known.map.enlarge();
            }
            if one.entry.kind == EntryKind::Record {
                self.record(medium, known, &one)?;
                continue;
            }
            let sum = |at: u32| one.sums.get(at as usize).copied().unwrap_or_default();
            apply(&mut known.map, &mut known.segments, &one.entry, one.segment, one.index, sum);
        }
        Ok(())
    }

    fn record<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        one: &Held,
    ) -> Result<(), StoreError> {
        if one.entry.seq <= self.recorded_through {
            return Ok(());
        }
        let damaged =
            || StoreError::Damaged(format!("a record in segment {} does not verify", one.segment));
        let at = known.header.block_at(one.slot, one.index);
        let block = match &one.content {
            Some(content) => content,
            None => medium.read(at, BLOCK_BYTES)?,
        };
        if Some(block_checksum(known.header.salt, block)) != one.sums.first().copied() {
            return Err(damaged());
        }
        let record = Record::decode(block).ok_or_else(|| {
            let kind = block.first().copied().unwrap_or_default();
            StoreError::Version(format!("a record of kind {kind} cannot be understood"))
        })?;
        let mut directories = Vec::new();
        if let Record::Moved(moves) = &record {
            for to in moves {
                moved(medium, known, to, self.begun, &mut directories)?;
            }
        }
        if let Record::Grown { slot_count } = record {
            known.segments.grow(slot_count);
        }
        apply_record(&mut known.catalogue, &mut known.map, &record);
        let (seq, record) = (one.entry.seq, record.encode());
        known.map.note(&Happened::Recorded { seq, record, directories });
        Ok(())
    }
}

/// A segment lies in an image now: learns from its head what the image holds.
fn moved<M: Media>(
    medium: &mut Blocking<'_, M>,
    known: &mut Known,
    to: &ImageMove,
    checkpoints_begun: u64,
    directories: &mut Vec<u8>,
) -> Result<(), StoreError> {
    if known.segments.get(to.segment).is_none() || to.slot.0 >= known.segments.slot_count() {
        Directory::of(&LiveBits::new(known.segments.slot_blocks())).encode(directories);
        return Ok(());
    }
    let blocks = image_head_blocks(to.data_blocks);
    let at = known.header.block_at(to.slot, to.block + to.data_blocks);
    let bytes = medium.read_whole(at, u64::from(blocks) * BLOCK_BYTES)?;
    let head = read_image_head(known.header.salt, &bytes).filter(|head| head.segment == to.segment);
    let head = head.ok_or_else(|| {
        StoreError::Damaged(format!("the image of segment {} does not verify", to.segment))
    })?;
    let mut held = LiveBits::new(known.segments.slot_blocks());
    for owner in &head.owners {
        if u32::from(owner.index) < held.blocks() {
            held.set(u32::from(owner.index));
        }
    }
    known.segments.use_slot(to.slot, SegmentKind::Images);
    let held = Directory::of(&held);
    held.encode(directories);
    known.segments.moved(to, held, checkpoints_begun);
    Ok(())
}

fn sums_of(found: &FoundEntry<'_>) -> Vec<u32> {
    let count = if found.entry.kind.has_data() { found.entry.blocks as u32 } else { 0 };
    (0..count).map(|at| found.checksum(at)).collect()
}
