//! Images: their heads, which are their directories, and every block of data in them.

use std::rc::Rc;

use super::report::wrong;
use super::slots::{Head, Wrong};
use super::window::Found;
use super::{Job, Next};
use crate::format::{Owner, SegmentKind, block_checksum, image_head_blocks, read_image_head};
use crate::store::Store;
use crate::{LineageId, Media, SegmentId, SlotId};

/// An image as the tables know it.
struct Image {
    segment: SegmentId,
    block: u32,
    held: u32,
}

/// The images of a slot being looked through.
pub(super) struct Images {
    is_header_done: bool,
    /// Those still to be looked at, the last first.
    todo: Vec<Image>,
    /// Whose the blocks of the image at hand are, once its head has been read.
    owners: Option<Rc<Vec<Owner>>>,
    /// Blocks of it that have been looked at.
    done: u32,
}

impl<M: Media> Store<M> {
    pub(super) fn visit_images(&self, slot: SlotId) -> Images {
        let pieces = self.image_pieces(slot).into_iter().rev();
        let todo = pieces.map(|(segment, piece)| {
            let (block, held) = (piece.block, piece.directory.len());
            Image { segment, block, held }
        });
        Images { is_header_done: false, todo: todo.collect(), owners: None, done: 0 }
    }

    pub(super) fn step_images(&mut self, job: &mut Job, slot: SlotId, images: &mut Images) -> Next {
        if !images.is_header_done {
            return self.step_images_header(job, slot, images);
        }
        let Some(image) = images.todo.last() else { return Next::Done };
        let is_there = self.image_piece(slot, image.segment, image.block).is_some();
        let is_over =
            images.owners.as_ref().is_some_and(|owners| images.done >= owners.len() as u32);
        if !is_there || is_over {
            images.todo.pop();
            (images.owners, images.done) = (None, 0);
            job.is_second = false;
            return Next::Again;
        }
        let (segment, block, held) = (image.segment, image.block, image.held);
        match images.owners.clone() {
            None => self.step_image_head(job, slot, images, (segment, block, held)),
            Some(owners) => self.step_image_data(job, slot, images, (segment, block), &owners),
        }
    }

    fn step_images_header(&mut self, job: &mut Job, slot: SlotId, images: &mut Images) -> Next {
        let found = match self.header_in_window(slot) {
            Ok(found) => found,
            Err(run) => return Next::Read(run),
        };
        if let Head::Found(head) = &found
            && head.kind == SegmentKind::Images
        {
            self.scrub_verified(1);
        } else if !job.is_second {
            job.is_second = true;
            return Next::Read(self.slot_run(slot, 0, 1));
        } else {
            let is_there = |one: &&Image| self.image_piece(slot, one.segment, one.block).is_some();
            if let Some(segment) = images.todo.iter().find(is_there).map(|one| one.segment) {
                self.bad_header(slot, segment, found.is_unreadable());
            }
        }
        job.is_second = false;
        images.is_header_done = true;
        Next::Again
    }

    fn step_image_head(
        &mut self,
        job: &mut Job,
        slot: SlotId,
        images: &mut Images,
        (segment, block, held): (SegmentId, u32, u32),
    ) -> Next {
        let (first, blocks) = (block + held, image_head_blocks(held));
        if self.held_from(slot, first) < blocks {
            // A small image is read as a whole.
            let all = held + blocks;
            let is_small = all <= self.scrub.window.room().min(job.pace.blocks());
            let (from, count) = if is_small { (block, all) } else { (first, blocks) };
            return Next::Read(self.slot_run(slot, from, count));
        }
        let at = self.header.block_at(slot, first);
        let bytes = self.scrub.window.blocks(&self.memory, at, blocks);
        let is_unreadable = bytes.is_none();
        let head = bytes.and_then(|bytes| read_image_head(self.header.salt, bytes));
        let directory = self.image_piece(slot, segment, block).map(|piece| piece.directory.clone());
        let says = |head: &crate::format::ImageHead| {
            let indices = head.owners.iter().map(|owner| u32::from(owner.index));
            head.segment == segment
                && directory.as_ref().is_some_and(|known| indices.eq(known.indices()))
        };
        match head.filter(says) {
            Some(head) => {
                self.scrub_verified(blocks.into());
                let unknown = head.owners.iter().filter(|o| o.lineage == LineageId(u32::MAX));
                self.leave_to_map(job, slot, segment, unknown.map(|o| u32::from(o.index)));
                images.owners = Some(Rc::new(head.owners));
            }
            None if !job.is_second => {
                job.is_second = true;
                return Next::Read(self.slot_run(slot, first, blocks));
            }
            None => {
                let indices = directory.iter().flat_map(|known| known.indices());
                let live = self.leave_to_map(job, slot, segment, indices);
                let what = format!(
                    "the head of an image {}; the {live} blocks that are needed of it are judged \
                     by the map",
                    wrong(is_unreadable)
                );
                self.harmless(slot, segment, first, is_unreadable, what);
                images.owners = Some(Rc::default());
            }
        }
        job.is_second = false;
        Next::Again
    }

    fn step_image_data(
        &mut self,
        job: &mut Job,
        slot: SlotId,
        images: &mut Images,
        (segment, block): (SegmentId, u32),
        owners: &Rc<Vec<Owner>>,
    ) -> Next {
        let first = block + images.done;
        let left = owners.len() as u32 - images.done;
        let held = self.held_from(slot, first).min(left);
        if held == 0 {
            let blocks = left.min(self.scrub.window.room()).min(job.pace.blocks());
            return Next::Read(self.slot_run(slot, first, blocks));
        }
        let mut wrong = Vec::new();
        let salt = self.header.salt;
        let at_hand = owners.iter().skip(images.done as usize).take(held as usize);
        for (block, owner) in (first..).zip(at_hand) {
            let at = self.header.block_at(slot, block);
            let is_unreadable = match self.scrub.window.block(&self.memory, at) {
                Found::Bytes(bytes) if block_checksum(salt, bytes) == owner.checksum => continue,
                Found::Bytes(_) => false,
                Found::Unreadable => true,
            };
            let is_data = owner.level == 0 && owner.lineage != LineageId(u32::MAX);
            let owner_of = is_data.then_some((owner.lineage, owner.lba));
            let index = u32::from(owner.index);
            wrong.push(Wrong { segment, block, index, is_unreadable, owner: owner_of });
        }
        if !wrong.is_empty() && !job.is_second && !self.is_scrub_blind() {
            job.is_second = true;
            return Next::Read(self.slot_run(slot, first, held));
        }
        job.is_second = false;
        self.scrub_verified(u64::from(held) - wrong.len() as u64);
        images.done += held;
        for wrong in &wrong {
            self.bad_block(slot, wrong);
        }
        Next::Again
    }
}
