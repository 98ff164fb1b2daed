//! Checkpoints: the changes of the map are folded into pages, then a superblock makes pages,
//! segment table and catalogue the place recovery starts from.
//!
//! Order, each step only after the one before is on the medium (rule D9):
//! 1. Freeze: the open batch closes; everything up to it is what the checkpoint stands for.
//! 2. Fold: large ranges first, then leaf by leaf, then inner pages from the bottom up.
//! 3. Blob: catalogue, segments and live bits, in two copies that share no slot.
//! 4. Flush; by then every batch up to the frozen one has completed.
//! 5. Superblock, flush; its second copy, flush. A copy that may not be whole comes first.
//!
//! A crash before step 5 leaves the last checkpoint whole: nothing it names was overwritten.

use std::collections::BTreeMap;

use crate::appender::Appender;
use crate::catalogue::Catalogue;
use crate::fold::Fold;
use crate::format::{
    BLOB_COPIES, BlobExtent, BlobSegment, LineageRecord, Position, SUPERBLOCK_COPIES, SegmentKind,
    Superblock, checksum, encode_catalogue, encode_segment, other_copy, superblock_at,
};
use crate::io::Purpose;
use crate::segments::{Piece, SlotState};
use crate::store::{Broken, Store};
use crate::streams::Stream;
use crate::{BLOCK_BYTES, Io, LineageId, Media, MediumError, SegmentId, Seq};

/// Segments written to the blob in one step.
const SEGMENTS_PER_STEP: usize = 64;
/// Pages made in vain that are counted as dead in one step.
const FORSAKEN_PER_STEP: usize = 4096;
/// Segment ids set aside by each superblock: what an epoch used and lost is never used again.
const SEGMENT_IDS_AHEAD: u64 = 1 << 20;

/// Where a checkpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fold,
    /// Pages are on their way; the blob is being made from this segment on.
    Blob(SegmentId),
    /// The blob is whole and on its way.
    BlobEnd,
    /// Everything it names is to be flushed.
    Flush,
    Flushing,
    /// The copy of the superblock that is in doubt is to be written: the first one, or the second.
    Superblock(u64),
    SuperblockWriting(u64),
    /// The copy is to be flushed.
    SuperblockWritten(u64),
    SuperblockFlushing(u64),
}

/// What a frozen generation stands for.
pub(crate) struct Frozen {
    /// Its number. A checkpoint that is taken up again keeps it: what came free after the freeze is
    /// needed for replay until the next one.
    pub begun: u64,
    pub position: Position,
    pub seq: Seq,
    pub catalogue: Catalogue,
}

impl Frozen {
    /// The segment of the log where its place is.
    pub(crate) fn segment(&self) -> SegmentId {
        self.position.segment
    }
}

/// A checkpoint under way.
pub(crate) struct Checkpoint {
    begun: u64,
    position: Position,
    seq: Seq,
    catalogue: Catalogue,
    fold: Fold,
    phase: Phase,
    blob: Vec<u8>,
    blob_bytes: u64,
    blob_checksum: u64,
    /// Where each copy of the blob lies.
    extents: [Vec<BlobExtent>; BLOB_COPIES],
    /// Segments of which nothing is alive: not in the blob, and gone once it is durable.
    reaped: Vec<SegmentId>,
    root: Option<Superblock>,
}

impl<M: Media> Store<M> {
    /// Bytes of log after which a checkpoint begins.
    fn checkpoint_log_bytes(&self) -> u64 {
        let pool = u64::from(self.segments.slot_count()) * self.header.slot_bytes;
        self.options.checkpoint_log_bytes.unwrap_or((pool / 10).clamp(1 << 20, 2 << 30))
    }

    /// Asks for a checkpoint as soon as one can begin.
    pub fn want_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    fn is_checkpoint_due(&self) -> bool {
        let deltas = &self.map.active.deltas;
        self.checkpoint_wanted
            || self.bytes_since_checkpoint > self.checkpoint_log_bytes()
            || deltas.len() * 10 > deltas.capacity() * 8
            || self.map.active.ranges.len() > 2048
    }

    /// Makes one small step of a checkpoint, if one is under way or due.
    pub(crate) fn step_checkpoint(&mut self) -> bool {
        if self.checkpoint.is_none() && !(self.is_checkpoint_due() && self.begin_checkpoint()) {
            return false;
        }
        let Some(mut checkpoint) = self.checkpoint.take() else { return false };
        let step = self.step_phase(&mut checkpoint);
        if step != Ok(Step::Done) {
            self.checkpoint = Some(checkpoint);
        }
        self.write_runs();
        match step {
            Ok(step) => step != Step::Waits,
            Err(cause) => {
                self.stop_writing(&cause);
                true
            }
        }
    }

    fn begin_checkpoint(&mut self) -> bool {
        let frozen = match self.given_up.take() {
            Some(frozen) => self.take_up_again(frozen),
            None if self.map.frozen.is_some() => return false,
            None => {
                self.log.close_batch();
                let pages = self.pages_max(0);
                let position = self.log.position();
                if !self.map.freeze(position, self.seq) {
                    return false;
                }
                self.note_segment();
                self.frozen_pages = pages;
                self.shape.resized = 0;
                self.bytes_since_checkpoint = 0;
                self.checkpoints_begun += 1;
                let begun = self.checkpoints_begun;
                Frozen { begun, position, seq: self.seq, catalogue: self.catalogue.clone() }
            }
        };
        self.checkpoint_wanted = false;
        let lineages = self.map.lineages.clone();
        let fold = Fold::new(lineages, &frozen.catalogue, &self.options.give_up);
        self.checkpoint = Some(Checkpoint {
            begun: frozen.begun,
            position: frozen.position,
            seq: frozen.seq,
            catalogue: frozen.catalogue,
            fold,
            phase: Phase::Fold,
            blob: Vec::new(),
            blob_bytes: 0,
            blob_checksum: self.header.salt,
            extents: Default::default(),
            reaped: Vec::new(),
            root: None,
        });
        true
    }

    /// What a checkpoint that was given up stands for; its last batch may have moved.
    fn take_up_again(&mut self, frozen: Frozen) -> Frozen {
        let moved = self.log.position_behind(frozen.position.number);
        let mut begun = frozen.begun;
        if self.options.broken.contains(&Broken::RenumberCheckpoint) {
            self.checkpoints_begun += 1;
            begun = self.checkpoints_begun;
        }
        Frozen { begun, position: moved.unwrap_or(frozen.position), ..frozen }
    }

    /// Gives the checkpoint under way up: its pages are garbage, its generation stays frozen.
    pub(crate) fn give_up_checkpoint(&mut self) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        let Checkpoint { begun, position, seq, catalogue, fold, .. } = checkpoint;
        // There may be many: they are counted as dead in small steps.
        self.forsaken.extend(fold.made);
        self.given_up = Some(Frozen { begun, position, seq, catalogue });
        self.checkpoint_wanted = true;
        self.streams.io_finished = false;
    }

    /// Counts some of the pages as dead that checkpoints made in vain. Whether there were any.
    pub(crate) fn forget_forsaken(&mut self) -> bool {
        let from = self.forsaken.len().saturating_sub(FORSAKEN_PER_STEP);
        let pages = self.forsaken.split_off(from);
        pages.iter().for_each(|page| self.segments.clear_live(*page));
        !pages.is_empty()
    }

    fn step_phase(&mut self, checkpoint: &mut Checkpoint) -> Result<Step, String> {
        Ok(match checkpoint.phase {
            Phase::Fold => return self.step_fold_phase(checkpoint),
            Phase::Blob(from) => self.step_blob(checkpoint, from),
            Phase::BlobEnd => return self.end_blob(checkpoint),
            Phase::Flush => self.flush_pages(checkpoint),
            Phase::Superblock(nth) => self.write_superblock(checkpoint, nth),
            Phase::SuperblockWritten(nth) => {
                if !self.submit_flush(Purpose::Checkpoint) {
                    return Ok(Step::Waits);
                }
                self.streams.io_finished = false;
                checkpoint.phase = Phase::SuperblockFlushing(nth);
                Step::Moved
            }
            Phase::Flushing | Phase::SuperblockWriting(_) | Phase::SuperblockFlushing(_) => {
                if !self.streams.io_finished {
                    return Ok(Step::Waits);
                }
                self.streams.io_finished = false;
                self.after_io(checkpoint)
            }
        })
    }

    fn step_fold_phase(&mut self, checkpoint: &mut Checkpoint) -> Result<Step, String> {
        let step = self.step_fold(&mut checkpoint.fold)?;
        if step != Step::Done {
            return Ok(step);
        }
        self.streams.map.cut();
        let next = (checkpoint.catalogue.next_disk, checkpoint.catalogue.next_lineage);
        let disks: Vec<_> = checkpoint.catalogue.disks.values().cloned().collect();
        checkpoint.fold.end(&checkpoint.catalogue);
        let lineages: Vec<_> = checkpoint.fold.lineages.values().copied().collect();
        checkpoint.blob = encode_catalogue(&disks, next, &lineages);
        checkpoint.phase = Phase::Blob(SegmentId(0));
        Ok(Step::Moved)
    }

    fn step_blob(&mut self, checkpoint: &mut Checkpoint, from: SegmentId) -> Step {
        if let Some(waits) = self.write_blob(checkpoint, false) {
            return waits;
        }
        let mut next = None;
        let mut out = std::mem::take(&mut checkpoint.blob);
        for (count, (id, segment)) in self.segments.from(from).enumerate() {
            if count == SEGMENTS_PER_STEP {
                next = Some(id);
                break;
            }
            if segment.kind == SegmentKind::Log && id > checkpoint.position.segment {
                continue;
            }
            let mut live = segment.live.clone();
            if id == checkpoint.position.segment {
                for index in checkpoint.position.block..live.blocks() {
                    live.clear(index);
                }
            }
            for index in checkpoint.fold.dying.get(&id).into_iter().flatten() {
                live.clear(*index);
            }
            let is_closed = segment
                .pieces
                .iter()
                .all(|piece| matches!(self.segments.slot(piece.slot), Some(SlotState::Used(_))));
            if live.count() == 0 && is_closed && id != checkpoint.position.segment {
                checkpoint.reaped.push(id);
                continue;
            }
            let (kind, pieces) = (segment.kind, segment.pieces.clone());
            let one = BlobSegment { segment: id, kind, pieces, live };
            encode_segment(&one, &mut out);
        }
        checkpoint.blob = out;
        checkpoint.phase = next.map_or(Phase::BlobEnd, Phase::Blob);
        Step::Moved
    }

    /// Writes what of the blob fills blocks, or all of it. Says so if that has to wait.
    fn write_blob(&mut self, checkpoint: &mut Checkpoint, all: bool) -> Option<Step> {
        let block_bytes = BLOCK_BYTES as usize;
        let mut at = 0;
        let mut result = None;
        while checkpoint.blob.len() - at >= block_bytes || (all && checkpoint.blob.len() > at) {
            if let Err(step) =
                (0..BLOB_COPIES).try_for_each(|at| self.ready_stream(Stream::Blob(at)))
            {
                result = Some(step);
                break;
            }
            let bytes = &checkpoint.blob[at..checkpoint.blob.len().min(at + block_bytes)];
            let mut block = [0; BLOCK_BYTES as usize];
            block[..bytes.len()].copy_from_slice(bytes);
            checkpoint.blob_checksum = checksum(checkpoint.blob_checksum, &block);
            checkpoint.blob_bytes += bytes.len() as u64;
            at += bytes.len();
            for (stream, extents) in self.streams.blobs.iter_mut().zip(&mut checkpoint.extents) {
                let index = stream.put(&self.memory, &block);
                let slot = stream.target.map(|target| target.slot).unwrap_or_default();
                match extents.last_mut() {
                    Some(last) if last.slot == slot && last.block + last.blocks == index => {
                        last.blocks += 1;
                    }
                    _ => extents.push(BlobExtent { slot, block: index, blocks: 1 }),
                }
            }
        }
        checkpoint.blob.drain(..at);
        result
    }

    fn end_blob(&mut self, checkpoint: &mut Checkpoint) -> Result<Step, String> {
        if let Some(waits) = self.write_blob(checkpoint, true) {
            return Ok(waits);
        }
        if !self.streams.checkpoint_is_written() {
            return Ok(Step::Waits);
        }
        // Not before: compaction may read a slot that is closed.
        for slot in std::mem::take(&mut self.streams.full) {
            self.segments.close_slot(slot, self.checkpoints_begun);
        }
        if !checkpoint.extents.iter().all(|copy| Superblock::fits(copy.len())) {
            return Err("the checkpoint has too many pieces: the pool's slots are too small".into());
        }
        checkpoint.phase = Phase::Flush;
        Ok(Step::Moved)
    }

    fn flush_pages(&mut self, checkpoint: &mut Checkpoint) -> Step {
        if self.options.broken.contains(&Broken::CheckpointAheadOfLog) {
            checkpoint.phase = Phase::Superblock(0);
            return Step::Moved;
        }
        if self.log.completed < checkpoint.position.number {
            return Step::Waits;
        }
        if !self.submit_flush(Purpose::Checkpoint) {
            return Step::Waits;
        }
        self.streams.io_finished = false;
        checkpoint.phase = Phase::Flushing;
        Step::Moved
    }

    fn write_superblock(&mut self, checkpoint: &mut Checkpoint, nth: u64) -> Step {
        let root = checkpoint.root.get_or_insert_with(|| Superblock {
            generation: self.healing.next_generation(self.root.generation),
            clean: false,
            slot_count: self.segments.slot_count(),
            segment_limit: SegmentId(self.segments.next_segment().0 + SEGMENT_IDS_AHEAD),
            seq: checkpoint.seq,
            position: checkpoint.position,
            blob: checkpoint.extents.clone(),
            blob_bytes: checkpoint.blob_bytes,
            blob_checksum: checkpoint.blob_checksum,
            cuts: self
                .root
                .cuts
                .iter()
                .filter(|cut| cut.accepted.number >= checkpoint.position.number)
                .copied()
                .collect(),
            ..self.root.clone()
        });
        let page = &mut self.streams.page;
        root.encode(self.header.salt, self.memory.slice_mut(page));
        let at = superblock_at(root.epoch.0, self.doubtful_copy);
        let from = vec![page.part()];
        checkpoint.phase = Phase::SuperblockWriting(nth);
        self.streams.io_finished = false;
        self.in_flight.submit(&mut self.media, Purpose::Superblock, Io::Write { at, from });
        Step::Moved
    }

    /// An I/O of the checkpoint has come back well.
    fn after_io(&mut self, checkpoint: &mut Checkpoint) -> Step {
        checkpoint.phase = match checkpoint.phase {
            Phase::Flushing => {
                self.streams.map.flushed();
                self.streams.blobs.iter_mut().for_each(Appender::flushed);
                Phase::Superblock(0)
            }
            Phase::SuperblockWriting(nth) => Phase::SuperblockWritten(nth),
            Phase::SuperblockFlushing(nth) if nth + 1 < SUPERBLOCK_COPIES => {
                bowline_arena::fail_point!("checkpoint.superblock.first");
                self.doubtful_copy = other_copy(self.doubtful_copy);
                Phase::Superblock(nth + 1)
            }
            Phase::SuperblockFlushing(_) => {
                bowline_arena::fail_point!("checkpoint.superblock.second");
                self.doubtful_copy = 0;
                self.finish_checkpoint(checkpoint);
                return Step::Done;
            }
            other => other,
        };
        Step::Moved
    }

    pub(crate) fn checkpoint_io_done(&mut self, result: Result<(), MediumError>) {
        match result {
            // What comes back for a checkpoint that was given up means nothing.
            _ if self.checkpoint.is_none() => {}
            Ok(()) => self.streams.io_finished = true,
            Err(error) => self.stop_writing(&format!("a checkpoint failed: {error}")),
        }
    }

    fn finish_checkpoint(&mut self, checkpoint: &mut Checkpoint) {
        if let Some(root) = checkpoint.root.take() {
            self.proven_through(root.position.number);
            self.root = root;
            self.free_blob_slots();
        }
        let folded = std::mem::take(&mut checkpoint.fold.lineages);
        self.map
            .lineages
            .retain(|id, _| folded.contains_key(id) || id.0 >= checkpoint.catalogue.next_lineage);
        self.map.lineages.extend(folded);
        self.options.give_up.clear();
        self.map.thaw();
        if let Some(index) = &mut self.map.index {
            index.confirm(self.root.epoch.0);
        }
        for (segment, indices) in std::mem::take(&mut checkpoint.fold.dying) {
            for index in indices {
                self.segments.clear_live(crate::tables::Entry::page(segment, index, 0));
            }
        }
        for id in checkpoint.reaped.drain(..) {
            // A log that is replayed from this checkpoint may still name an image made since; the
            // slot of a segment that was never moved is needed by nobody.
            let is_whole = |piece: &Piece| piece.directory.len() == self.segments.slot_blocks();
            let was_moved =
                self.segments.get(id).is_some_and(|segment| !segment.pieces.iter().all(is_whole));
            self.segments.drop_segment(id, checkpoint.begun - u64::from(!was_moved));
        }
        let freed = self.segments.checkpoint_durable(checkpoint.begun);
        self.counters.slots_freed += freed as u64;
        self.counters.checkpoints += 1;
        self.segments.keep_for_failures(true);
        self.compaction.checkpoint_finished();
        self.make_room();
    }

    /// Slots of blobs that hold nothing of the new one are free: the last checkpoint's, and those
    /// of checkpoints that were given up.
    pub(crate) fn free_blob_slots(&mut self) {
        let mut kept = self.root.blob_slots();
        kept.extend(self.streams.blob_slots());
        let dead: Vec<_> = self.segments.blob_slots().filter(|slot| !kept.contains(slot)).collect();
        for slot in dead {
            self.segments.free_blob_slot(slot);
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is more to do at once.
    Moved,
    /// Something has to come back first.
    Waits,
    /// It is over.
    Done,
}

/// Pages of the old tree that die with a checkpoint, by segment.
pub(crate) type Dying = BTreeMap<SegmentId, Vec<u32>>;
/// Roots as a checkpoint will have them.
pub(crate) type Roots = BTreeMap<LineageId, LineageRecord>;
