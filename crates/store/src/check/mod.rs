//! Reading a pool that nobody serves through to its last block, and giving a verdict.
//!
//! Looked at are both pool headers, every superblock, the last checkpoint, the log from there to
//! its end, and then the map of every disk: each page, each block it names, where that lies, whose
//! it is by the log or the image it lies in, and whether its live bit is set. Nothing is written.
//!
//! What is judged is what a recovery would see without the arena: the map of the last checkpoint
//! with the log replayed over it.

mod report;
mod roots;
mod slots;
mod tree;

use std::collections::BTreeMap;

use bowline_arena::SharedPages;

use crate::blocking::Blocking;
use crate::format::{
    Entries, PoolHeader, SegmentHeader, SegmentKind, Superblock, image_head_blocks, read_batch,
};
use crate::map::Map;
use crate::recovery::{Damage, Known, Replay, Walk, Why, cut_short, load_blob};
use crate::tables::LiveBits;
use crate::{BLOCK_BYTES, DiskId, LineageId, Media, MediumError, SegmentId, SlotId, StoreError};

pub use report::{
    CheckOptions, CheckProgress, CheckReport, CheckVerdict, CheckedDisk, Finding, Loss, Place,
    PlaceKind, RepairStep, Severity,
};

/// Bytes for the changes the log makes to the map; more is taken if the log is long.
const DELTA_BYTES: usize = 8 << 20;
const MAP_FRAMES: usize = 16;

/// Checks a pool. Only reads.
///
/// # Errors
/// If there is no memory for a buffer, or the process dies. Whatever is wrong with the pool is in
/// the report.
pub fn check<M: Media>(
    media: &mut M,
    pages: &SharedPages,
    options: CheckOptions<'_>,
) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport::default();
    let mut medium = Blocking::new(media, pages)?;
    let header = roots::check_headers(&mut medium, &mut report, options.places)?;
    let Some(header) = header else { return Ok(report.judged()) };
    let root = roots::check_roots(&mut medium, &header, &mut report, options.places)?;
    let Some(root) = root else { return Ok(report.judged()) };
    report.epoch = root.epoch.0;
    report.generation = root.generation;
    report.slots = root.slot_count;
    report.is_clean = root.clean;
    let seen = BTreeMap::new();
    let mut checker = Checker { medium, header, report, options, seen, done_bytes: 0 };
    checker.run(root)?;
    Ok(checker.report.judged())
}

/// A check under way.
struct Checker<'a, 'o, M> {
    medium: Blocking<'a, M>,
    header: PoolHeader,
    report: CheckReport,
    options: CheckOptions<'o>,
    /// Blocks something leads to, by segment.
    seen: BTreeMap<SegmentId, LiveBits>,
    done_bytes: u64,
}

impl<M: Media> Checker<'_, '_, M> {
    fn run(&mut self, root: Superblock) -> Result<(), StoreError> {
        let map = Map::new(self.header.salt, DELTA_BYTES, MAP_FRAMES, Vec::new());
        for extent in root.blob.iter().flatten() {
            let (slot, block) = (extent.slot, extent.block);
            self.place(PlaceKind::Blob, slot, block, extent.blocks);
        }
        let mut known = match load_blob(&mut self.medium, self.header, root, map) {
            Ok(known) => known,
            Err(StoreError::Medium(MediumError::Died)) => return Err(MediumError::Died.into()),
            Err(error) => {
                self.report.lose_everything(&error.to_string());
                return Ok(());
            }
        };
        for (copy, what) in std::mem::take(&mut known.bad_blobs) {
            let place = format!("copy {copy} of the last checkpoint");
            self.report.find(Severity::Repairable, place, what, roots::AGAIN);
            self.report.repair(RepairStep::Copies);
        }
        let damage = self.follow_log(&mut known)?;
        let slots = known.segments.slot_count();
        self.report.slots = slots;
        if let Some(what) = cut_short(self.medium.media(), &self.header, &known) {
            let remedy = "give the file or device its size back";
            self.report.find(Severity::Loss, format!("{slots} slots"), what, remedy);
        }
        self.report.segments = known.segments.from(SegmentId(0)).count() as u64;
        for disk in known.catalogue.disks.values() {
            let (id, name, bytes) = (disk.id, disk.name.clone(), disk.bytes);
            self.report.disks.push(CheckedDisk { id, name, bytes, mapped_blocks: 0 });
        }
        if let Some(damage) = damage {
            self.list_cut_off(&known, &damage)?;
        }
        self.check_places(&known);
        self.check_map(&known)?;
        self.count_dead(&known);
        Ok(())
    }

    /// Follows the log as recovery does.
    fn follow_log(&mut self, known: &mut Known) -> Result<Option<Damage>, StoreError> {
        let mut walk = Walk::new(known, None);
        let mut replay = Replay::new(known.root.seq);
        let result = walk.run(&mut self.medium, known, &mut replay);
        self.report.batches_replayed = replay.batches;
        self.report.sequence_last = replay.seq;
        let end = walk.position();
        if self.options.places {
            self.place_log(known, end.number.0)?;
        }
        let damage = match result {
            Ok(None) => return Ok(None),
            Ok(Some(damage)) => damage,
            Err(StoreError::Medium(MediumError::Died)) => return Err(MediumError::Died.into()),
            Err(error) => {
                let place = format!("log, segment {}, slot {}", end.segment, end.slot);
                let remedy = "repair the medium, then check again";
                self.report.find(Severity::Loss, place, error.to_string(), remedy);
                return Ok(None);
            }
        };
        let place = format!("log, segment {}, slot {}", damage.segment, damage.slot);
        if let Why::Version(_) = damage.why {
            let remedy = "serve the pool with the version of bowline that wrote it";
            self.report.find(Severity::Loss, place, damage.to_string(), remedy);
            return Ok(Some(damage));
        }
        let remedy = "`bowline pool repair` cuts the log off there: what is listed as lost behind \
                      it is gone then, and what the missing batch held, which nobody can tell";
        self.report.find(Severity::Loss, place, damage.to_string(), remedy);
        self.report.repairs.push(RepairStep::CutLog { after: end.number });
        Ok(Some(damage))
    }

    /// Writes that lie behind the damage in the log: in the pool, but no part of it any more.
    fn list_cut_off(&mut self, known: &Known, damage: &Damage) -> Result<(), StoreError> {
        let why = format!("written in batches behind the damage at batch {}", damage.missing);
        let epoch = known.root.epoch;
        // The pool may have grown behind the damage.
        let slots = self.header.slots_on(self.medium.media().bytes_total());
        for slot in (0..slots).map(SlotId) {
            let Some(header) = self.header_of(slot)? else { continue };
            let is_later = header.kind == SegmentKind::Log
                && header.segment >= damage.segment
                && header.epoch == epoch;
            if !is_later {
                continue;
            }
            for index in 1..self.header.slot_blocks() {
                let at = self.header.block_at(slot, index);
                let Ok(block) = self.medium.read(at, BLOCK_BYTES) else { continue };
                let head = read_batch(self.header.salt, block).filter(|head| {
                    head.segment == header.segment
                        && head.block == index
                        && head.number >= damage.missing
                });
                let Some(head) = head else { continue };
                let entries: Vec<_> = Entries::new(block, head.entries)
                    .map_while(|found| found.ok().map(|found| found.entry))
                    .collect();
                for entry in entries {
                    if entry.lineage != LineageId(0) {
                        let (lineage, lba, blocks) = (entry.lineage, entry.lba.0, entry.blocks);
                        self.lose(known, lineage, lba, blocks, header.segment, slot, &why);
                    }
                }
            }
        }
        Ok(())
    }

    /// The header of a slot; none if it cannot be read or does not verify.
    fn header_of(&mut self, slot: SlotId) -> Result<Option<SegmentHeader>, StoreError> {
        match self.medium.read(self.header.block_at(slot, 0), BLOCK_BYTES) {
            Ok(block) => {
                let found = SegmentHeader::decode(self.header.salt, self.header.pool, block);
                Ok(found.filter(|header| header.slot == slot))
            }
            Err(MediumError::Died) => Err(MediumError::Died.into()),
            Err(_) => Ok(None),
        }
    }

    /// A range of a lineage cannot be read; what of it lies on a disk is noted.
    #[expect(clippy::too_many_arguments, reason = "what a loss is made of")]
    fn lose(
        &mut self,
        known: &Known,
        lineage: LineageId,
        lba: u64,
        blocks: u64,
        segment: SegmentId,
        slot: SlotId,
        why: &str,
    ) {
        let Some((disk, blocks)) = on_disk(known, lineage, lba, blocks) else { return };
        let (lba, why) = (crate::Lba(lba), why.into());
        self.report.lose(Loss { disk, lba, blocks, segment, slot, is_given_up: false, why });
    }

    /// As [`Self::lose`], for a block that a repair can give up.
    fn lose_block(
        &mut self,
        known: &Known,
        lineage: LineageId,
        lba: u64,
        (segment, slot): (SegmentId, SlotId),
        why: &str,
    ) {
        self.lose(known, lineage, lba, 1, segment, slot, why);
        if let Some((disk, _)) = on_disk(known, lineage, lba, 1) {
            self.report.give_up_block(lineage, disk, lba);
        }
    }

    /// As [`Self::lose`], for what an earlier repair gave up.
    fn lose_known(&mut self, known: &Known, lineage: LineageId, lba: u64, blocks: u64) {
        let Some((disk, blocks)) = on_disk(known, lineage, lba, blocks) else { return };
        let (lba, why) = (crate::Lba(lba), "given up by an earlier repair".into());
        let (segment, slot) = (SegmentId(0), SlotId(u32::MAX));
        self.report.lose(Loss { disk, lba, blocks, segment, slot, is_given_up: true, why });
    }

    /// Blocks kept alive although nothing leads to them.
    fn count_dead(&mut self, known: &Known) {
        let needed: u64 = self.seen.values().map(|bits| u64::from(bits.count())).sum();
        let live = known.segments.live_blocks();
        self.report.dead_blocks = live.saturating_sub(needed);
        if self.report.dead_blocks > 0 {
            let what = format!(
                "{} blocks are kept although nothing needs them; most go with the next checkpoint",
                self.report.dead_blocks
            );
            self.report.find(Severity::Note, "segments".into(), what, "nothing to do");
        }
    }

    fn place(&mut self, kind: PlaceKind, slot: SlotId, block: u32, blocks: u32) {
        if self.options.places {
            let at = self.header.block_at(slot, block);
            let bytes = u64::from(blocks) * BLOCK_BYTES;
            self.report.places.push(Place { kind, at, bytes });
        }
    }

    /// Where the batches of the log since the checkpoint lie, and the headers of their segments.
    fn place_log(&mut self, known: &Known, last: u64) -> Result<(), StoreError> {
        let slots = self.header.slots_on(self.medium.media().bytes_total());
        for slot in (0..slots).map(SlotId) {
            let Some(header) = self.header_of(slot)? else { continue };
            if header.kind != SegmentKind::Log || header.segment < known.root.position.segment {
                continue;
            }
            let mut any = false;
            for index in 1..self.header.slot_blocks() {
                let at = self.header.block_at(slot, index);
                let Ok(block) = self.medium.read(at, BLOCK_BYTES) else { continue };
                let head = read_batch(self.header.salt, block).filter(|head| {
                    head.segment == header.segment
                        && head.block == index
                        && head.number > known.root.position.number
                        && head.number.0 <= last
                });
                let Some(head) = head else { continue };
                any = true;
                self.place(PlaceKind::LogBatch(head.number.0), slot, index, 1);
                if head.data_blocks > 0 {
                    self.place(PlaceKind::LogData, slot, index + 1, head.data_blocks);
                }
            }
            if any {
                self.place(PlaceKind::LogHeader, slot, 0, 1);
            }
        }
        Ok(())
    }
}

/// The disk of a lineage, and how much of a range lies on it; none if nothing does.
fn on_disk(known: &Known, lineage: LineageId, lba: u64, blocks: u64) -> Option<(DiskId, u64)> {
    let disk = disk_of(known, lineage)?;
    let size = known.catalogue.disks.get(&disk)?.bytes / BLOCK_BYTES;
    let left = lba.saturating_add(blocks).min(size).checked_sub(lba)?;
    (left > 0).then_some((disk, left))
}

/// The disk a lineage belongs to.
fn disk_of(known: &Known, lineage: LineageId) -> Option<DiskId> {
    known.catalogue.disks.values().find(|disk| disk.lineage == lineage).map(|disk| disk.id)
}

/// Blocks a piece takes in its slot, with the head of an image.
fn blocks_of(piece: &crate::segments::Piece, slot_blocks: u32) -> u32 {
    let held = piece.directory.len();
    if held == slot_blocks { held } else { held + image_head_blocks(held) }
}
