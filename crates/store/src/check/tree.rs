//! The map: every page, and what each leads to.

use crate::blocking::Blocking;
use crate::check::report::{CheckProgress, PlaceKind, RepairStep, Severity};
use crate::check::{Checker, disk_of};
use crate::format::{FANOUT, LineageRecord, PageHead, PageRef, block_checksum, span_of_level};
use crate::recovery::Known;
use crate::tables::{Entry, LeafCursor, LiveBits, State};
use crate::{BLOCK_BYTES, Lba, LineageId, Media, MediumError, SlotId, StoreError};

/// Blocks whose checksums fit the default memory.
const BLOCKS_AT_A_TIME: u64 = 2 << 20;

/// A block or page that something leads to, where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub slot: SlotId,
    pub block: u32,
    pub entry: Entry,
    pub lineage: LineageId,
    /// 0 for data, else 1 + the level of the page.
    pub level: u8,
    /// The block on the disk, or the index of the page in its level.
    pub lba: u64,
}

/// A page to be walked: what it hangs by, the level of its node (1 for a leaf) and its index.
type Node = (Entry, u8, u64);

/// The slots of a round.
#[derive(Clone, Copy)]
struct Round {
    from: u32,
    to: u32,
    is_first: bool,
}

impl<M: Media> Checker<'_, '_, M> {
    /// The map of every lineage, with what the log says over it, in as many rounds as the memory
    /// asks for.
    pub(super) fn check_map(&mut self, known: &Known) -> Result<(), StoreError> {
        let limit = match self.options.blocks_at_a_time {
            0 => BLOCKS_AT_A_TIME,
            limit => limit,
        };
        let slots = known.segments.slot_count();
        let (mut from, mut is_first) = (0, true);
        while from < slots {
            let (mut to, mut blocks) = (from, 0);
            while to < slots && (to == from || blocks <= limit) {
                blocks += u64::from(known.segments.live_in(SlotId(to)));
                to += 1;
            }
            let mut items = self.collect(known, Round { from, to, is_first })?;
            items.sort_unstable_by_key(|item| (item.slot, item.block));
            self.check_slots(known, (from..to).map(SlotId), &items)?;
            (from, is_first) = (to, false);
        }
        Ok(())
    }

    fn collect(&mut self, known: &Known, round: Round) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::new();
        for record in known.map.lineages.values() {
            self.walk(known, record, round, &mut items)?;
        }
        let (deltas, mut cursor) = (&known.map.active.deltas, LeafCursor::default());
        while let Some((lineage, leaf)) = deltas.next_leaf(&mut cursor) {
            for delta in deltas.leaf(lineage, leaf) {
                let holds = known.map.active.get(lineage, delta.lba) == Some(delta.entry);
                if holds && delta.entry.has_address() && disk_of(known, lineage).is_some() {
                    self.reach(known, delta.entry, (lineage, 0, delta.lba.0), round, &mut items);
                }
            }
        }
        Ok(items)
    }

    /// The tree of a lineage as the last checkpoint has it.
    fn walk(
        &mut self,
        known: &Known,
        record: &LineageRecord,
        round: Round,
        items: &mut Vec<Item>,
    ) -> Result<(), StoreError> {
        let lineage = record.lineage;
        let (mut data, losses) = (0, self.report.findings.len());
        let mut todo: Vec<Node> = Vec::new();
        match record.root.state() {
            Some(State::Page) if record.height > 0 => todo.push((record.root, record.height, 0)),
            Some(State::Lost) => self.given_up(known, lineage, (record.height, 0), round),
            Some(State::Page | State::Data) | None => {
                let node = (record.root, record.height, 0);
                self.lose_page(known, lineage, node, round, "the root of its map makes no sense");
            }
            Some(_) => {}
        }
        let mut page = Vec::new();
        while let Some(node) = todo.pop() {
            let (entry, level, index) = node;
            self.reach(known, entry, (lineage, level, index), round, items);
            if let Err(why) = self.read_page(known, lineage, node, round, &mut page)? {
                self.lose_page(known, lineage, node, round, &why);
                continue;
            }
            for slot in (0..FANOUT).rev() {
                let child = PageRef(&page).entry(slot as usize);
                let at = index * FANOUT + slot;
                match child.state() {
                    Some(State::Page) if level > 1 => todo.push((child, level - 1, at)),
                    Some(State::Data) if level == 1 => {
                        data += 1;
                        self.reach_data(known, child, lineage, at, round, items);
                    }
                    Some(State::Lost) => self.given_up(known, lineage, (level - 1, at), round),
                    Some(State::Page | State::Data) | None => {
                        let node = (child, level - 1, at);
                        self.lose_page(known, lineage, node, round, "its map makes no sense");
                    }
                    Some(_) => {}
                }
            }
        }
        // What is counted of a tree with holes in it says nothing.
        if round.is_first && self.report.findings.len() == losses {
            self.compare_count(record, data);
        }
        Ok(())
    }

    /// The checkpoint says how much data the tree of a lineage names.
    fn compare_count(&mut self, record: &LineageRecord, found: u64) {
        let Some(counted) = record.data_blocks.filter(|counted| *counted != found) else { return };
        let place = format!("lineage {}", record.lineage);
        let what = format!("its map names {found} blocks of data; the checkpoint says {counted}");
        let remedy = "no data is lost, but this should not happen: report it";
        self.report.find(Severity::Repairable, place, what, remedy);
    }

    /// A block of the tree, unless the log has something newer.
    fn reach_data(
        &mut self,
        known: &Known,
        entry: Entry,
        lineage: LineageId,
        lba: u64,
        round: Round,
        items: &mut Vec<Item>,
    ) {
        let is_gone = disk_of(known, lineage).is_none();
        if !is_gone && known.map.active.get(lineage, Lba(lba)).is_none() {
            self.reach(known, entry, (lineage, 0, lba), round, items);
        }
    }

    /// Something leads to a block: once only, to a live one, in a segment's directory.
    fn reach(
        &mut self,
        known: &Known,
        entry: Entry,
        (lineage, level, lba): (LineageId, u8, u64),
        round: Round,
        items: &mut Vec<Item>,
    ) {
        let place = known.segments.locate(entry);
        if let Some((slot, block)) = place
            && (round.from..round.to).contains(&slot.0)
        {
            items.push(Item { slot, block, entry, lineage, level, lba });
        }
        if !round.is_first {
            return;
        }
        let (segment, index) = (entry.segment(), entry.index());
        let what = name_of(lineage, level, lba);
        let at = format!("segment {segment}, block {index}");
        let remedy = "this should not happen: keep a copy of the pool and report it";
        if let Some(disk) = disk_of(known, lineage).filter(|_| level == 0)
            && let Some(disk) = self.report.disks.iter_mut().find(|found| found.id == disk)
        {
            disk.mapped_blocks += 1;
        }
        let (Some(_), Some(found)) = (place, known.segments.get(segment)) else {
            let text = format!("{what} leads to it, but no segment holds it");
            self.report.find(Severity::Loss, at, text, "see what is listed as lost");
            if level == 0 {
                let nowhere = (segment, SlotId(u32::MAX));
                self.lose_block(known, lineage, lba, nowhere, "nowhere to be found");
            }
            return;
        };
        let blocks = known.segments.slot_blocks();
        let seen = self.seen.entry(segment).or_insert_with(|| LiveBits::new(blocks));
        if !seen.set(index) {
            let text = format!("{what} leads to it, and something else does too");
            self.report.find(Severity::Loss, at, text, remedy);
        } else if !found.live.get(index) {
            let text = format!("{what} leads to it, but it counts as dead");
            self.report.find(Severity::Loss, at, text, remedy);
        }
    }

    fn read_page(
        &mut self,
        known: &Known,
        lineage: LineageId,
        (entry, level, index): Node,
        round: Round,
        page: &mut Vec<u8>,
    ) -> Result<Result<(), String>, StoreError> {
        let Some((slot, block)) = known.segments.locate(entry) else {
            return Ok(Err("its map page is nowhere to be found".into()));
        };
        if round.is_first {
            self.place(PlaceKind::Page(level - 1), slot, block, 1);
        }
        let at = self.header.block_at(slot, block);
        if let Err(error) = read_again(&mut self.medium, at, page)? {
            return Ok(Err(format!("its map page cannot be read: {error}")));
        }
        if block_checksum(self.header.salt, page) != entry.checksum {
            return Ok(Err("its map page is damaged".into()));
        }
        let wanted = PageHead { level: level - 1, lineage, index };
        if PageRef(page).head() != Some(wanted) {
            return Ok(Err("its map page is another one's".into()));
        }
        if round.is_first {
            self.verified(known, 1);
        }
        Ok(Ok(()))
    }

    /// A page of the map is lost, and with it what it named unless the log has something newer.
    fn lose_page(
        &mut self,
        known: &Known,
        lineage: LineageId,
        (entry, level, index): Node,
        round: Round,
        why: &str,
    ) {
        if !round.is_first {
            return;
        }
        let place = known.segments.locate(entry);
        let slot = place.map_or(SlotId(u32::MAX), |(slot, _)| slot);
        let span = span_of_level(level);
        let start = index.saturating_mul(span);
        let at = format!("segment {}, slot {slot}, block {}", entry.segment(), entry.index());
        let what = format!("{}: {why}", name_of(lineage, level, index));
        let remedy = "`bowline pool repair` gives up what only this page knew; reads of it fail \
                      until it is written again";
        self.report.find(Severity::Loss, at, what, remedy);
        for (from, to) in not_in_log(known, lineage, start, start.saturating_add(span)) {
            self.lose(known, lineage, from, to - from, entry.segment(), slot, why);
        }
        if let Some(disk) = disk_of(known, lineage).filter(|_| level > 0) {
            let lba = Lba(start);
            let step = RepairStep::GiveUp { disk, lineage, level, index, lba, blocks: span };
            self.report.repairs.push(step);
        }
    }

    /// A range that an earlier repair gave up.
    fn given_up(&mut self, known: &Known, lineage: LineageId, node: (u8, u64), round: Round) {
        if !round.is_first || disk_of(known, lineage).is_none() {
            return;
        }
        let span = span_of_level(node.0);
        let start = node.1.saturating_mul(span);
        for (from, to) in not_in_log(known, lineage, start, start.saturating_add(span)) {
            self.lose_known(known, lineage, from, to - from);
        }
    }

    /// Blocks have been verified.
    pub(super) fn verified(&mut self, known: &Known, blocks: u64) {
        self.done_bytes += blocks * BLOCK_BYTES;
        self.report.verified_bytes = self.done_bytes;
        let total_bytes = (known.segments.live_blocks() * BLOCK_BYTES).max(self.done_bytes);
        if let Some(progress) = &mut self.options.progress {
            progress(CheckProgress { done_bytes: self.done_bytes, total_bytes });
        }
    }
}

/// Reads a block, twice if it must be.
pub(super) fn read_again<M: Media>(
    medium: &mut Blocking<'_, M>,
    at: u64,
    into: &mut Vec<u8>,
) -> Result<Result<(), MediumError>, StoreError> {
    let mut last = MediumError::Died;
    for _ in 0..2 {
        match medium.read(at, BLOCK_BYTES) {
            Ok(block) => {
                into.clear();
                into.extend_from_slice(block);
                return Ok(Ok(()));
            }
            Err(MediumError::Died) => return Err(MediumError::Died.into()),
            Err(error) => last = error,
        }
    }
    Ok(Err(last))
}

/// The parts of a range of which the log says nothing newer.
fn not_in_log(known: &Known, lineage: LineageId, start: u64, end: u64) -> Vec<(u64, u64)> {
    let Some(disk) = disk_of(known, lineage) else { return Vec::new() };
    let size = known.catalogue.disks.get(&disk).map_or(0, |disk| disk.bytes / BLOCK_BYTES);
    let end = end.min(size);
    let active = &known.map.active;
    let mut newer: Vec<(u64, u64)> = active
        .ranges
        .overlapping(lineage, Lba(start), Lba(end.max(start)))
        .map(|range| (range.start.0, range.end.0))
        .collect();
    let mut cursor = LeafCursor::default();
    while let Some((owner, leaf)) = active.deltas.next_leaf(&mut cursor) {
        if owner == lineage && leaf * FANOUT < end && (leaf + 1) * FANOUT > start {
            newer.extend(
                active.deltas.leaf(owner, leaf).map(|delta| (delta.lba.0, delta.lba.0 + 1)),
            );
        }
    }
    newer.sort_unstable();
    let (mut left, mut at) = (Vec::new(), start);
    for (from, to) in newer {
        if from > at && at < end {
            left.push((at, from.min(end)));
        }
        at = at.max(to);
    }
    if at < end {
        left.push((at, end));
    }
    left
}

/// What leads to a block, in words.
fn name_of(lineage: LineageId, level: u8, lba: u64) -> String {
    match level.checked_sub(1) {
        None => format!("block {lba} of lineage {lineage}"),
        Some(level) => format!("page {lba} of level {level} of the map of lineage {lineage}"),
    }
}
