//! Slots: which are looked through, and as what.

use super::images::Images;
use super::log::LogVisit;
use super::report::wrong;
use super::window::{Found, Run};
use super::{Job, Next, Phase, ScrubFinding, ScrubSeverity};
use crate::format::{SegmentHeader, SegmentKind, image_head_blocks};
use crate::segments::{Piece, SlotState};
use crate::store::Store;
use crate::tables::{Entry, LiveBits};
use crate::{DiskId, Lba, LineageId, Media, SegmentId, SlotId};

/// What lies in a slot.
pub(super) enum Kind {
    Log(Box<LogVisit>),
    Images(Images),
    /// A segment of the map: its pages are looked at from the roots.
    Map(SegmentId),
}

/// A slot being looked through.
pub(super) struct Visit {
    pub slot: SlotId,
    pub kind: Kind,
    /// Blocks of it that count as left.
    pub left: u64,
}

/// Something wrong in a slot.
#[derive(Debug, Clone)]
pub(super) struct Wrong {
    pub segment: SegmentId,
    /// The first block in the slot.
    pub block: u32,
    /// The index in the segment.
    pub index: u32,
    pub is_unreadable: bool,
    /// Whose block it was, if that is known.
    pub owner: Option<(LineageId, u64)>,
}

/// The header of a slot, as it was read.
pub(super) enum Head {
    Found(SegmentHeader),
    Unreadable,
    Wrong,
}

impl Head {
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(self, Head::Unreadable)
    }
}

impl Visit {
    fn done(&mut self, job: &mut Job, blocks: u64) {
        let blocks = blocks.min(self.left);
        self.left -= blocks;
        job.blocks_done(blocks);
    }
}

impl<M: Media> Store<M> {
    /// Whether a segment fills the slot it was written to, or part of it still lies there.
    fn whole_in(&self, slot: SlotId) -> Option<(SegmentId, SegmentKind)> {
        let slot_blocks = self.segments.slot_blocks();
        self.segments.residents(slot).keys().find_map(|(id, first)| {
            let segment = self.segments.get(*id)?;
            let piece = segment.piece(*first)?;
            (piece.directory.len() == slot_blocks).then_some((*id, segment.kind))
        })
    }

    /// About how many blocks of a slot hold something, and the segment of the log in it.
    pub(super) fn blocks_in_use(&self, slot: SlotId) -> Option<(SegmentId, u32)> {
        match self.whole_in(slot) {
            Some((id, SegmentKind::Log)) => Some((id, self.stable_end(id))),
            Some(_) => Some((SegmentId(0), 1)),
            None => {
                let pieces = self.image_pieces(slot);
                let held = pieces.iter().map(|(_, piece)| piece.directory.len());
                let blocks: u32 = held.map(|held| held + image_head_blocks(held)).sum();
                (!pieces.is_empty()).then_some((SegmentId(0), blocks + 1))
            }
        }
    }

    /// The images of a slot, each once: a piece that was cut in two lies in one image.
    pub(super) fn image_pieces(&self, slot: SlotId) -> Vec<(SegmentId, &Piece)> {
        let mut pieces: Vec<(SegmentId, &Piece)> = Vec::new();
        for (id, first) in self.segments.residents(slot).keys() {
            let Some(piece) = self.segments.get(*id).and_then(|segment| segment.piece(*first))
            else {
                continue;
            };
            let is_known =
                pieces.last().is_some_and(|(last, known)| last == id && known.block == piece.block);
            if piece.slot == slot && !is_known {
                pieces.push((*id, piece));
            }
        }
        pieces
    }

    /// The image that begins at a block of a slot, if it is still needed.
    pub(super) fn image_piece(&self, slot: SlotId, id: SegmentId, block: u32) -> Option<&Piece> {
        let segment = self.segments.get(id)?;
        let residents = self.segments.residents(slot).range((id, 0)..=(id, u32::MAX));
        let mut pieces = residents.filter_map(|((_, first), _)| segment.piece(*first));
        pieces.find(|piece| piece.slot == slot && piece.block == block)
    }

    pub(super) fn step_slots(&mut self, job: &mut Job) -> Next {
        let Some(mut visit) = job.visit.take() else {
            return self.next_visit(job);
        };
        let is_there = match &visit.kind {
            Kind::Log(log) => self.is_in(visit.slot, log.segment),
            Kind::Map(id) => self.is_in(visit.slot, *id),
            Kind::Images(_) => true,
        };
        let next = match &mut visit.kind {
            _ if !is_there => Next::Done,
            Kind::Log(log) => self.step_log(job, log),
            Kind::Images(images) => self.step_images(job, visit.slot, images),
            Kind::Map(id) => self.step_map_header(job, visit.slot, *id),
        };
        if matches!(next, Next::Done) {
            self.scrub.status.slots += 1;
            job.is_second = false;
            job.blocks_done(visit.left);
            return Next::Again;
        }
        if let Next::Read(run) = &next
            && !job.is_second
        {
            visit.done(job, run.blocks.into());
        }
        job.visit = Some(visit);
        next
    }

    /// Whether some of a segment still lies in the slot as it was written. An image of it may come
    /// to the same slot once that is free again, and is no segment.
    fn is_in(&self, slot: SlotId, segment: SegmentId) -> bool {
        self.whole_in(slot).is_some_and(|(id, _)| id == segment)
    }

    fn next_visit(&mut self, job: &mut Job) -> Next {
        let Some((slot, blocks)) = job.next_slot() else {
            job.phase = Phase::Map;
            return Next::Again;
        };
        let kind = match self.whole_in(slot) {
            Some((id, SegmentKind::Log)) => match self.visit_log(slot, id) {
                Some(log) => Kind::Log(Box::new(log)),
                None => {
                    job.blocks_done(blocks.into());
                    return Next::Again;
                }
            },
            Some(_) if self.segments.live_in(slot) == 0 => {
                job.blocks_done(blocks.into());
                return Next::Again;
            }
            Some((id, _)) => {
                let is_open = matches!(self.segments.slot(slot), Some(SlotState::Open(_)));
                // Its header may be on its way.
                if is_open && (self.checkpoint.is_some() || self.given_up.is_some()) {
                    job.blocks_done(blocks.into());
                    return Next::Again;
                }
                Kind::Map(id)
            }
            None if self.segments.residents(slot).is_empty() => {
                job.blocks_done(blocks.into());
                return Next::Again;
            }
            None => Kind::Images(self.visit_images(slot)),
        };
        job.visit = Some(Visit { slot, kind, left: blocks.into() });
        Next::Again
    }

    /// The header of a slot. `Err` says what to read first.
    pub(super) fn header_in_window(&self, slot: SlotId) -> Result<Head, Run> {
        let at = self.header.block_at(slot, 0);
        if self.scrub.window.blocks_from(at) == 0 {
            return Err(Run { at, blocks: 1, slot: Some(slot) });
        }
        let Found::Bytes(bytes) = self.scrub.window.block(&self.memory, at) else {
            return Ok(Head::Unreadable);
        };
        let found = SegmentHeader::decode(self.header.salt, self.header.pool, bytes);
        Ok(found.filter(|found| found.slot == slot).map_or(Head::Wrong, Head::Found))
    }

    fn step_map_header(&mut self, job: &mut Job, slot: SlotId, id: SegmentId) -> Next {
        let found = match self.header_in_window(slot) {
            Ok(found) => found,
            Err(run) => return Next::Read(run),
        };
        if let Head::Found(head) = &found
            && (head.segment, head.kind) == (id, SegmentKind::Map)
        {
            self.scrub_verified(1);
            return Next::Done;
        }
        if !job.is_second {
            job.is_second = true;
            return Next::Read(Run {
                at: self.header.block_at(slot, 0),
                blocks: 1,
                slot: Some(slot),
            });
        }
        if self.whole_in(slot) == Some((id, SegmentKind::Map)) {
            self.bad_header(slot, id, found.is_unreadable());
        }
        Next::Done
    }

    pub(super) fn bad_header(&mut self, slot: SlotId, segment: SegmentId, is_unreadable: bool) {
        let what = format!("the header of the slot {}", wrong(is_unreadable));
        self.harmless(slot, segment, 0, is_unreadable, what);
    }

    /// Something no read needs is damaged.
    pub(super) fn harmless(
        &mut self,
        slot: SlotId,
        id: SegmentId,
        block: u32,
        is_unreadable: bool,
        what: String,
    ) {
        let is_needed_by_recovery = id >= self.root.position.segment
            && self.segments.get(id).is_some_and(|segment| segment.kind == SegmentKind::Log);
        let remedy = if is_needed_by_recovery && self.state.is_writing() {
            self.want_checkpoint();
            "no read needs it; a checkpoint was asked for, so that no recovery needs it either"
        } else {
            "no read needs it, and it goes when the slot is next emptied; find out why the medium \
             changed it"
        };
        let finding = ScrubFinding::new(ScrubSeverity::Harmless, what, remedy);
        let (segment, slot, block) = (Some(id), Some(slot), block.into());
        self.found(ScrubFinding { is_unreadable, segment, slot, block, ..finding });
    }

    /// A block of data, or a page of the map, is not what was written.
    pub(super) fn bad_block(&mut self, slot: SlotId, wrong: &Wrong) {
        let is_needed = self.is_needed(slot, wrong);
        let disk = wrong.owner.and_then(|(lineage, _)| self.disk_of(lineage));
        let lba = wrong.owner.filter(|_| disk.is_some()).map(|(_, lba)| Lba(lba));
        let what = if wrong.is_unreadable { "cannot be read" } else { "is not what was written" };
        let (severity, remedy) = if is_needed {
            let remedy = "reads of it fail: restore it from a copy, or write or discard it; find \
                          out why the medium changed it";
            (ScrubSeverity::Lost, remedy)
        } else {
            let remedy = "no disk needs it any more; find out why the medium changed it";
            (ScrubSeverity::Harmless, remedy)
        };
        self.found(ScrubFinding {
            is_unreadable: wrong.is_unreadable,
            disk,
            lba,
            segment: Some(wrong.segment),
            slot: Some(slot),
            block: wrong.block.into(),
            ..ScrubFinding::new(severity, format!("a block {what}"), remedy)
        });
    }

    /// Whether a block is still what a disk or the map consists of.
    pub(super) fn is_needed(&self, slot: SlotId, wrong: &Wrong) -> bool {
        let Some(segment) = self.segments.get(wrong.segment) else { return false };
        let is_here = segment.piece(wrong.index).is_some_and(|piece| piece.slot == slot);
        if !is_here || !segment.live.get(wrong.index) {
            return false;
        }
        // What was written over it since is folded later.
        let newer = wrong.owner.and_then(|(lineage, lba)| self.map.pending(lineage, Lba(lba)));
        let address = Entry::data(wrong.segment, wrong.index, 0).address;
        newer.is_none_or(|newer| newer.address == address)
    }

    pub(super) fn disk_of(&self, lineage: LineageId) -> Option<DiskId> {
        self.catalogue.disks.values().find(|disk| disk.lineage == lineage).map(|disk| disk.id)
    }

    /// Live blocks of a segment, among some indices, that lie in a slot and cannot be judged there.
    pub(super) fn leave_to_map(
        &self,
        job: &mut Job,
        slot: SlotId,
        id: SegmentId,
        indices: impl Iterator<Item = u32>,
    ) -> u32 {
        let Some(segment) = self.segments.get(id).filter(|s| s.kind == SegmentKind::Log) else {
            return 0;
        };
        let mut count = 0;
        for index in indices.filter(|index| *index < segment.live.blocks()) {
            let is_here = segment.piece(index).is_some_and(|piece| piece.slot == slot);
            if is_here && segment.live.get(index) {
                let bits = job
                    .unverified
                    .entry(id)
                    .or_insert_with(|| LiveBits::new(self.segments.slot_blocks()));
                bits.set(index);
                count += 1;
            }
        }
        count
    }

    /// A run of a slot to be read next.
    pub(super) fn slot_run(&self, slot: SlotId, block: u32, blocks: u32) -> Run {
        Run { at: self.header.block_at(slot, block), blocks, slot: Some(slot) }
    }

    /// Blocks of a slot that the window holds from a block on.
    pub(super) fn held_from(&self, slot: SlotId, block: u32) -> u32 {
        let is_of_slot = self.scrub.window.run().is_some_and(|run| run.slot == Some(slot));
        let held = self.scrub.window.blocks_from(self.header.block_at(slot, block));
        if is_of_slot { held } else { 0 }
    }
}
