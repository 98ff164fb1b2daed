//! Applying batches to map, segments and catalogue.
//!
//! A request that spans batches counts only whole: its entries are held until the last is there,
//! and dropped when something else follows.

use crate::blocking::Blocking;
use crate::format::{
    BatchHead, Entries, EntryKind, FoundEntry, ImageMove, LogEntry, Record, SegmentKind,
    block_checksum, image_head_blocks, read_image_head,
};
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
}

/// The state of a replay.
pub(crate) struct Replay {
    pub seq: Seq,
    pub batches: u64,
    pub bytes: u64,
    held: Vec<Held>,
}

impl Replay {
    pub(crate) fn new(seq: Seq) -> Replay {
        Replay { seq, batches: 0, bytes: 0, held: Vec::new() }
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
            self.entry(medium, known, Held { entry, segment, slot, index, sums })?;
        }
        Ok(())
    }

    /// Applies a batch of the arena that was just placed.
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
            self.entry(medium, known, Held { entry, segment, slot, index, sums })?;
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
        let damaged =
            || StoreError::Damaged(format!("a record in segment {} does not verify", one.segment));
        let at = known.header.block_at(one.slot, one.index);
        let block = medium.read(at, BLOCK_BYTES)?;
        if Some(block_checksum(known.header.salt, block)) != one.sums.first().copied() {
            return Err(damaged());
        }
        let record = Record::decode(block).ok_or_else(|| {
            let kind = block.first().copied().unwrap_or_default();
            StoreError::Version(format!("a record of kind {kind} cannot be understood"))
        })?;
        if let Record::Moved(moves) = &record {
            for to in moves {
                moved(medium, known, to)?;
            }
        }
        if let Record::Grown { slot_count } = record {
            known.segments.grow(slot_count);
        }
        apply_record(&mut known.catalogue, &mut known.map, &record);
        Ok(())
    }
}

/// A segment lies in an image now: learns from its head what the image holds.
fn moved<M: Media>(
    medium: &mut Blocking<'_, M>,
    known: &mut Known,
    to: &ImageMove,
) -> Result<(), StoreError> {
    if known.segments.get(to.segment).is_none() || to.slot.0 >= known.segments.slot_count() {
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
    known.segments.moved(to, Directory::of(&held), 0);
    Ok(())
}

fn sums_of(found: &FoundEntry<'_>) -> Vec<u32> {
    let count = if found.entry.kind.has_data() { found.entry.blocks as u32 } else { 0 };
    (0..count).map(|at| found.checksum(at)).collect()
}
