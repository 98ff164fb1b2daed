//! Both copies of the blob of the last checkpoint. A checkpoint that ends meanwhile makes others,
//! and these are looked at then.

use super::report::wrong;
use super::slots::Head;
use super::window::Found;
use super::{Job, Next, ScrubFinding, ScrubSeverity};
use crate::format::{SegmentKind, checksum};
use crate::store::Store;
use crate::{Media, SlotId};

/// How far the blob is read.
#[derive(Default)]
pub(super) struct Walk {
    generation: u64,
    /// Which copy is read, and how many before it were damaged.
    copy: usize,
    bad_copies: usize,
    extent: usize,
    /// Blocks of the extent that have been read.
    done: u32,
    sum: u64,
    is_header_done: bool,
    is_unreadable: bool,
}

impl<M: Media> Store<M> {
    pub(super) fn step_blob_scrub(&mut self, job: &mut Job) -> Next {
        if job.blob.generation != self.root.generation {
            job.blob = self.walk_of(0, 0);
            job.is_second = false;
        }
        let extents = self.root.blob.get(job.blob.copy);
        let extent = extents.and_then(|extents| extents.get(job.blob.extent)).copied();
        let Some(extent) = extent else {
            return self.judge_blob(job);
        };
        if !job.blob.is_header_done {
            let found = match self.header_in_window(extent.slot) {
                Ok(found) => found,
                Err(run) => return Next::Read(run),
            };
            job.blob.is_header_done = true;
            match found {
                Head::Found(head) if head.kind == SegmentKind::Blob => self.scrub_verified(1),
                head => self.bad_blob_header(extent.slot, head.is_unreadable()),
            }
        }
        if job.blob.done >= extent.blocks {
            job.blob.extent += 1;
            let extents = self.root.blob.get(job.blob.copy);
            let next = extents.and_then(|extents| extents.get(job.blob.extent));
            job.blob.is_header_done = next.is_some_and(|next| next.slot == extent.slot);
            job.blob.done = 0;
            return Next::Again;
        }
        let (first, left) = (extent.block + job.blob.done, extent.blocks - job.blob.done);
        let held = self.held_from(extent.slot, first).min(left);
        if held == 0 {
            let blocks = left.min(self.scrub.window.room()).min(job.pace.blocks());
            return Next::Read(self.slot_run(extent.slot, first, blocks));
        }
        for block in first..first + held {
            let at = self.header.block_at(extent.slot, block);
            match self.scrub.window.block(&self.memory, at) {
                Found::Bytes(bytes) => job.blob.sum = checksum(job.blob.sum, bytes),
                Found::Unreadable => job.blob.is_unreadable = true,
            }
        }
        job.blob.done += held;
        Next::Again
    }

    fn judge_blob(&mut self, job: &mut Job) -> Next {
        let extents = self.root.blob.get(job.blob.copy).cloned().unwrap_or_default();
        let blocks: u32 = extents.iter().map(|extent| extent.blocks).sum();
        let is_unreadable = job.blob.is_unreadable;
        if !is_unreadable && job.blob.sum == self.root.blob_checksum {
            self.scrub_verified(blocks.into());
            return self.next_blob(job);
        }
        if !job.is_second {
            let (copy, bad_copies) = (job.blob.copy, job.blob.bad_copies);
            job.blob = self.walk_of(copy, bad_copies);
            job.is_second = true;
            self.clear_window();
            return Next::Again;
        }
        job.blob.bad_copies += 1;
        let (severity, remedy) = if self.state.is_writing() {
            self.want_checkpoint();
            (ScrubSeverity::Repaired, "a checkpoint was asked for, which writes it anew elsewhere")
        } else if job.blob.bad_copies < self.root.blob.len() {
            let remedy = "the other copy serves; `bowline pool repair` writes this one again";
            (ScrubSeverity::Harmless, remedy)
        } else {
            let remedy = "the pool will not open again: copy the disks while it is served";
            (ScrubSeverity::Lost, remedy)
        };
        let what = if is_unreadable { "cannot be read" } else { "do not verify" };
        let what = format!("the tables of the last checkpoint, {blocks} blocks, {what}");
        let extent = extents.first().copied();
        let slot = extent.map(|extent| extent.slot);
        let block = extent.map_or(0, |extent| extent.block.into());
        let finding = ScrubFinding::new(severity, what, remedy);
        self.found(ScrubFinding { is_unreadable, slot, block, ..finding });
        self.next_blob(job)
    }

    /// Goes on with the next copy, if there is one.
    fn next_blob(&self, job: &mut Job) -> Next {
        let (copy, bad_copies) = (job.blob.copy + 1, job.blob.bad_copies);
        if copy == self.root.blob.len() {
            return Next::Done;
        }
        job.blob = self.walk_of(copy, bad_copies);
        job.is_second = false;
        Next::Again
    }

    fn walk_of(&self, copy: usize, bad_copies: usize) -> Walk {
        let (generation, sum) = (self.root.generation, self.header.salt);
        Walk { generation, sum, copy, bad_copies, ..Walk::default() }
    }

    fn bad_blob_header(&mut self, slot: SlotId, is_unreadable: bool) {
        let what = format!("the header of the slot of the checkpoint {}", wrong(is_unreadable));
        let remedy = "no read needs it, and it goes with a later checkpoint";
        let finding = ScrubFinding::new(ScrubSeverity::Harmless, what, remedy);
        self.found(ScrubFinding { is_unreadable, slot: Some(slot), ..finding });
    }
}
