//! Slots: what lies in them, by their own account and by the table's.

use std::collections::BTreeSet;

use crate::check::report::{PlaceKind, RepairStep, Severity};
use crate::check::tree::{Item, read_again};
use crate::check::{Checker, blocks_of};
use crate::format::{
    Entries, Owner, SegmentKind, block_checksum, check_entries, image_head_blocks, read_batch,
    read_image_head,
};
use crate::recovery::Known;
use crate::segments::Piece;
use crate::{BLOCK_BYTES, LineageId, Media, SegmentId, SlotId, StoreError};

const EMPTIED: &str = "no read needs it, and it goes when the slot is emptied: by and by in a pool \
                       that is written to, at once by `bowline pool repair`";

/// A slot in memory.
struct Content {
    bytes: Vec<u8>,
    /// Blocks that cannot be read.
    unreadable: BTreeSet<u32>,
}

impl Content {
    fn block(&self, block: u32) -> Option<&[u8]> {
        if self.unreadable.contains(&block) {
            return None;
        }
        self.blocks(block, 1)
    }

    fn blocks(&self, first: u32, count: u32) -> Option<&[u8]> {
        let at = |block: u32| block as usize * BLOCK_BYTES as usize;
        self.bytes.get(at(first)..at(first.checked_add(count)?))
    }
}

impl<M: Media> Checker<'_, '_, M> {
    /// That no two things claim the same blocks of a slot.
    pub(super) fn check_places(&mut self, known: &Known) {
        let slot_blocks = known.segments.slot_blocks();
        let mut claims: Vec<(SlotId, u32, u32, String)> = Vec::new();
        for extent in known.root.blob.iter().flatten() {
            let end = extent.block.saturating_add(extent.blocks);
            claims.push((extent.slot, extent.block, end, "the checkpoint".into()));
        }
        for (id, segment) in known.segments.from(SegmentId(0)) {
            let mut own: Vec<(SlotId, u32, u32, String)> = Vec::new();
            for piece in &segment.pieces {
                let end = piece.block.saturating_add(blocks_of(piece, slot_blocks));
                own.push((piece.slot, piece.block, end, format!("segment {id}")));
            }
            // Ranges of one image, or of the segment as it was written, are one claim.
            own.sort();
            own.dedup();
            claims.append(&mut own);
        }
        claims.sort();
        let remedy = "this should not happen: keep a copy of the pool and report it";
        for pair in claims.windows(2) {
            let [one, two] = pair else { continue };
            if one.0 == two.0 && two.1 < one.2 {
                let what = format!("{} and {} lie in the same blocks", one.3, two.3);
                self.report.find(Severity::Loss, format!("slot {}", one.0), what, remedy);
            }
        }
        for (slot, first, end, whose) in &claims {
            let is_whole = *first == 0 && *end == slot_blocks;
            if *end > slot_blocks || (*first == 0 && !is_whole) {
                let what = format!("{whose} does not lie within it");
                self.report.find(Severity::Loss, format!("slot {slot}"), what, remedy);
            }
        }
    }

    /// Everything in some slots.
    pub(super) fn check_slots(
        &mut self,
        known: &Known,
        slots: impl Iterator<Item = SlotId>,
        items: &[Item],
    ) -> Result<(), StoreError> {
        for slot in slots {
            let from = items.partition_point(|item| item.slot < slot);
            let to = items.partition_point(|item| item.slot <= slot);
            let items = items.get(from..to).unwrap_or_default();
            if !known.segments.residents(slot).is_empty() {
                self.check_slot(known, slot, items)?;
            }
        }
        Ok(())
    }

    fn check_slot(
        &mut self,
        known: &Known,
        slot: SlotId,
        items: &[Item],
    ) -> Result<(), StoreError> {
        let slot_blocks = known.segments.slot_blocks();
        let residents = known.segments.residents(slot);
        let pieces: Vec<(SegmentId, SegmentKind, &Piece)> = residents
            .keys()
            .filter_map(|(id, first)| {
                let segment = known.segments.get(*id)?;
                Some((*id, segment.kind, segment.piece(*first)?))
            })
            .collect();
        let end = pieces.iter().map(|(_, _, piece)| piece.block + blocks_of(piece, slot_blocks));
        let end = end.max().unwrap_or(0).min(slot_blocks);
        let content = self.load(slot, end)?;
        let mut owners: Vec<(SegmentId, Owner)> = Vec::new();
        let mut has_batches = false;
        let mut last = None;
        for (id, kind, piece) in &pieces {
            // A piece may be cut in two; both parts lie in the same image.
            if last.replace((*id, piece.block)) == Some((*id, piece.block)) {
                continue;
            }
            let found = if piece.directory.len() < slot_blocks {
                self.image_owners(&content, *id, piece)
            } else if *kind == SegmentKind::Log {
                let found = self.batch_owners(known, &content, slot, *id, items);
                has_batches |= !found.is_empty();
                found
            } else {
                Vec::new()
            };
            owners.extend(found.into_iter().map(|owner| (*id, owner)));
        }
        self.check_header(&content, slot, &pieces, has_batches || !items.is_empty());
        owners.sort_unstable_by_key(|(id, owner)| (*id, owner.index));
        for item in items {
            self.check_item(known, &content, item, &owners);
        }
        Ok(())
    }

    fn load(&mut self, slot: SlotId, blocks: u32) -> Result<Content, StoreError> {
        let bytes = u64::from(blocks) * BLOCK_BYTES;
        let mut content = Content { bytes: Vec::new(), unreadable: BTreeSet::new() };
        let mut block = Vec::new();
        while (content.bytes.len() as u64) < bytes {
            let done = content.bytes.len() as u64;
            let at = self.header.block_at(slot, 0) + done;
            if let Ok(read) = self.medium.read(at, bytes - done) {
                content.bytes.extend_from_slice(read);
                continue;
            }
            if read_again(&mut self.medium, at, &mut block)?.is_err() {
                content.unreadable.insert((done / BLOCK_BYTES) as u32);
                block = vec![0; BLOCK_BYTES as usize];
            }
            content.bytes.extend_from_slice(&block);
        }
        Ok(content)
    }

    /// The header of the slot against the table.
    fn check_header(
        &mut self,
        content: &Content,
        slot: SlotId,
        pieces: &[(SegmentId, SegmentKind, &Piece)],
        is_used: bool,
    ) {
        let slot_blocks = self.header.slot_blocks();
        let whole = pieces.iter().find(|(_, _, piece)| piece.directory.len() == slot_blocks);
        self.place(PlaceKind::SegmentHeader, slot, 0, 1);
        let found = content.block(0).and_then(|block| {
            crate::format::SegmentHeader::decode(self.header.salt, self.header.pool, block)
        });
        let wanted = match whole {
            Some((id, kind, _)) => format!("segment {id} ({kind:?})"),
            None => "images".into(),
        };
        let what = match found {
            // The log goes on in a slot before its header is there.
            None if !is_used => return,
            None => format!("the header does not verify; the table says {wanted}"),
            Some(found) => {
                let is_right = found.slot == slot
                    && match whole {
                        Some((id, kind, _)) => (found.segment, found.kind) == (*id, *kind),
                        None => found.kind == SegmentKind::Images,
                    };
                if is_right || (whole.is_some() && !is_used) {
                    return;
                }
                let (kind, id) = (found.kind, found.segment);
                format!("the header says segment {id} ({kind:?}), the table {wanted}")
            }
        };
        self.report.find(Severity::Repairable, format!("slot {slot}"), what, EMPTIED);
        self.report.repair(RepairStep::Empty { slot });
    }

    /// Who owns the blocks of an image, by its head.
    fn image_owners(&mut self, content: &Content, id: SegmentId, piece: &Piece) -> Vec<Owner> {
        let held = piece.directory.len();
        let (at, blocks) = (piece.block + held, image_head_blocks(held));
        self.place(PlaceKind::ImageHead, piece.slot, at, blocks);
        let is_readable = (at..at + blocks).all(|block| !content.unreadable.contains(&block));
        let head = content.blocks(at, blocks).filter(|_| is_readable);
        let head = head.and_then(|bytes| read_image_head(self.header.salt, bytes));
        let place = format!("slot {}, block {at}", piece.slot);
        let Some(head) = head else {
            let what = format!("the head of the image of segment {id} does not verify");
            self.report.find(Severity::Repairable, place, what, EMPTIED);
            self.report.repair(RepairStep::Empty { slot: piece.slot });
            return Vec::new();
        };
        let says = head.owners.iter().map(|owner| u32::from(owner.index));
        if head.segment != id || !says.eq(piece.directory.indices()) {
            let what = format!(
                "the image says segment {} with {} blocks, the table segment {id} with {held}",
                head.segment,
                head.owners.len()
            );
            let remedy = "this should not happen: keep a copy of the pool and report it";
            self.report.find(Severity::Loss, place, what, remedy);
            return Vec::new();
        }
        head.owners
    }

    /// Who owns the blocks of a segment of the log that is whole, by its batches.
    fn batch_owners(
        &mut self,
        known: &Known,
        content: &Content,
        slot: SlotId,
        id: SegmentId,
        items: &[Item],
    ) -> Vec<Owner> {
        let mut owners = Vec::new();
        let end = items.iter().map(|item| item.block + 1).max().unwrap_or(0);
        let (mut at, mut gap) = (1, None);
        while at < end {
            let block = content.block(at);
            let head = block.and_then(|block| read_batch(self.header.salt, block));
            let head = head.filter(|head| head.segment == id && head.block == at);
            let (Some(head), Some(block)) = (head, block) else {
                gap = gap.or(Some(at));
                at += 1;
                continue;
            };
            let is_old = head.number <= known.root.position.number;
            if is_old {
                self.place(PlaceKind::BatchHead, slot, at, 1);
            }
            if let Some(first) = gap.take() {
                self.note_gap(slot, id, first, at, items);
            }
            if let Err(bad) = check_entries(&head, block) {
                let (place, what) = (format!("slot {slot}, block {at}"), bad.to_string());
                let remedy = "nothing to do: a newer version of bowline has written it";
                self.report.find(Severity::Note, place, what, remedy);
            }
            let entries = Entries::new(block, head.entries).map_while(Result::ok);
            for found in entries.filter(|found| found.entry.kind.has_data()) {
                owners.extend((0..found.entry.blocks as u32).map(|index| Owner {
                    index: (at + 1 + found.data_block + index) as u16,
                    checksum: found.checksum(index),
                    lineage: found.entry.lineage,
                    level: 0,
                    lba: found.entry.lba.0 + u64::from(index),
                }));
            }
            at += 1 + head.data_blocks;
        }
        if let Some(first) = gap {
            self.note_gap(slot, id, first, end, items);
        }
        owners
    }

    /// Blocks without a batch head before them, some of which live.
    fn note_gap(&mut self, slot: SlotId, id: SegmentId, first: u32, end: u32, items: &[Item]) {
        if items.iter().any(|item| (first..end).contains(&item.block)) {
            let what = format!("a batch of segment {id} has lost its head");
            let place = format!("slot {slot}, blocks {first} to {}", end - 1);
            self.report.find(Severity::Repairable, place, what, EMPTIED);
            self.report.repair(RepairStep::Empty { slot });
        }
    }

    /// A block something leads to: its bytes, and whose it is.
    fn check_item(
        &mut self,
        known: &Known,
        content: &Content,
        item: &Item,
        owners: &[(SegmentId, Owner)],
    ) {
        let Item { slot, block, entry, lineage, level, lba } = *item;
        let segment = entry.segment();
        if level == 0 {
            self.place(PlaceKind::Data, slot, block, 1);
            let why = match content.block(block) {
                None => Some("cannot be read"),
                Some(bytes) if block_checksum(self.header.salt, bytes) != entry.checksum => {
                    Some("is not what was written")
                }
                Some(_) => None,
            };
            match why {
                Some(why) => self.lose_block(known, lineage, lba, (segment, slot), why),
                None => self.verified(known, 1),
            }
        }
        let key = (segment, entry.index() as u16);
        let Ok(at) = owners.binary_search_by_key(&key, |(id, owner)| (*id, owner.index)) else {
            return;
        };
        let Some((_, owner)) = owners.get(at) else { return };
        let is_unknown = owner.lineage == LineageId(u32::MAX);
        let is_right = (owner.lineage, owner.level, owner.lba) == (lineage, level, lba)
            && owner.checksum == entry.checksum;
        if !is_right && !is_unknown {
            let what = format!(
                "the map says block {lba} of lineage {lineage}, where it lies it is block {} of \
                 lineage {}",
                owner.lba, owner.lineage
            );
            let remedy = "this should not happen: keep a copy of the pool and report it";
            self.report.find(Severity::Loss, format!("slot {slot}, block {block}"), what, remedy);
        }
    }
}
