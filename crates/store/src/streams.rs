//! The streams of blocks that checkpoints and compaction write: map pages, two copies of the blob,
//! images.
//!
//! Invariant: the two copies of a blob never share a slot, because each stream takes its own.

use crate::appender::Appender;
use crate::checkpoint::Step;
use crate::format::{BLOB_COPIES, SegmentKind};
use crate::io::Purpose;
use crate::store::Store;
use crate::{Io, Media, MediumError, SlotId};

/// Names a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Pages of the map.
    Map,
    /// A copy of the blob.
    Blob(usize),
    /// Images.
    Images,
}

impl Stream {
    const ALL: [Stream; 4] = [Stream::Map, Stream::Blob(0), Stream::Blob(1), Stream::Images];

    /// What the slots of the stream hold.
    pub(crate) fn kind(self) -> SegmentKind {
        match self {
            Stream::Map => SegmentKind::Map,
            Stream::Blob(_) => SegmentKind::Blob,
            Stream::Images => SegmentKind::Images,
        }
    }
}

impl From<SegmentKind> for Stream {
    fn from(kind: SegmentKind) -> Stream {
        match kind {
            SegmentKind::Map => Stream::Map,
            SegmentKind::Blob => Stream::Blob(0),
            SegmentKind::Images | SegmentKind::Log => Stream::Images,
        }
    }
}

/// All streams, and what else a checkpoint writes with.
pub(crate) struct Streams {
    pub map: Appender,
    pub blobs: [Appender; BLOB_COPIES],
    pub images: Appender,
    /// For superblocks.
    pub page: bowline_arena::Span,
    /// Map slots that are full, some of whose pages may still be on their way.
    pub full: Vec<SlotId>,
    pub io_finished: bool,
}

impl Streams {
    pub(crate) fn new(
        map: Appender,
        blobs: [Appender; BLOB_COPIES],
        images: Appender,
        page: bowline_arena::Span,
    ) -> Self {
        Streams { map, blobs, images, page, full: Vec::new(), io_finished: false }
    }

    pub(crate) fn of(&mut self, which: impl Into<Stream>) -> &mut Appender {
        match which.into() {
            Stream::Map => &mut self.map,
            Stream::Blob(copy) => &mut self.blobs[copy],
            Stream::Images => &mut self.images,
        }
    }

    /// The slots that blobs are written to, if any are open.
    pub(crate) fn blob_slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.blobs.iter().filter_map(|stream| stream.target.map(|target| target.slot))
    }

    /// Ends the runs of a checkpoint; says whether all it has written is on the medium.
    pub(crate) fn checkpoint_is_written(&mut self) -> bool {
        let streams = [&mut self.map].into_iter().chain(&mut self.blobs);
        streams.fold(true, |is_written, stream| {
            stream.cut();
            is_written && stream.is_idle()
        })
    }
}

impl<M: Media> Store<M> {
    /// Makes sure that a stream takes a block now.
    pub(crate) fn ready_stream(&mut self, which: impl Into<Stream>) -> Result<(), Step> {
        let which = which.into();
        let kind = which.kind();
        let slot_blocks = self.segments.slot_blocks();
        let stream = self.streams.of(which);
        if !stream.has_buffer() {
            self.write_runs();
            return Err(Step::Waits);
        }
        if stream.blocks_left(slot_blocks) > 0 {
            return Ok(());
        }
        stream.cut();
        let old = stream.target.map(|target| target.slot);
        if !stream.has_buffer() {
            self.write_runs();
            return Err(Step::Waits);
        }
        let Some(slot) = self.segments.take_slot(kind) else { return Err(Step::Waits) };
        let segment = self.segments.take_segment_id();
        if kind == SegmentKind::Map {
            self.streams.full.extend(old);
            self.segments.add_whole(segment, kind, slot);
        }
        let identity = self.log.identity;
        let memory = self.memory.clone();
        self.streams.of(which).begin(&memory, &identity, segment, slot);
        if self.streams.of(which).has_buffer() { Ok(()) } else { Err(Step::Waits) }
    }

    /// Submits the runs that are ready, of all streams.
    pub(crate) fn write_runs(&mut self) {
        for which in Stream::ALL {
            while let Some(run) = self.streams.of(which).ready() {
                let at = self.header.block_at(run.slot, run.block);
                match which {
                    Stream::Images => self.counters.image_bytes += u64::from(run.from.bytes),
                    _ => self.counters.map_bytes += u64::from(run.from.bytes),
                }
                let io = Io::Write { at, from: vec![run.from] };
                self.in_flight.submit(&mut self.media, Purpose::Run(which, run.buffer), io);
            }
        }
    }

    pub(crate) fn run_done(&mut self, which: Stream, buffer: u32, result: Result<(), MediumError>) {
        let to = self.streams.of(which).done(buffer);
        let Err(error) = result else { return };
        self.stop_writing(&format!("a write of {:?} failed: {error}", which.kind()));
        if matches!(to, Some((_, 0))) {
            self.leave_headless();
        }
    }

    /// Leaves the slots whose headers may not have gone out, or were dropped by a flush that
    /// failed: nothing in them is alive. Not whenever something fails: each takes a slot until the
    /// next checkpoint, and to go on after a failure takes one too.
    pub(crate) fn leave_headless(&mut self) {
        for blob in &mut self.streams.blobs {
            // The next checkpoint frees the slots of blobs that no superblock names.
            blob.leave_unflushed();
        }
        self.streams.full.extend(self.streams.map.leave_unflushed());
        if let Some(slot) = self.streams.images.leave_unflushed() {
            self.segments.close_slot(slot, self.checkpoints_begun);
        }
    }
}
