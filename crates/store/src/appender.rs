//! A stream of blocks into slots of one kind: map pages, checkpoint blobs, images.
//!
//! Blocks are gathered in a few buffers and written in runs. A slot's header goes out with its
//! first run. Buffers never cross the end of a slot.

use bowline_arena::{Memory, PAGE_BYTES, Part, Span};

use crate::format::{SegmentHeader, SegmentKind};
use crate::log::Identity;
use crate::{BatchNumber, SegmentId, SlotId};

/// A buffer of the stream.
struct Buffer {
    span: Span,
    /// The slot and block its first block goes to; none if it is not in use.
    to: Option<(SlotId, u32)>,
    filled: u32,
    is_flying: bool,
}

/// A run of blocks ready to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadyRun {
    pub buffer: u32,
    pub slot: SlotId,
    pub block: u32,
    pub from: Part,
}

/// The slot a stream writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub segment: SegmentId,
    pub slot: SlotId,
    /// The block that comes next.
    pub next_block: u32,
    /// Whether its header is known to be durable.
    pub is_flushed: bool,
}

/// A stream of blocks.
pub(crate) struct Appender {
    kind: SegmentKind,
    buffers: Vec<Buffer>,
    current: Option<usize>,
    pub target: Option<Target>,
}

impl Appender {
    pub(crate) fn new(kind: SegmentKind, spans: Vec<Span>) -> Appender {
        let buffers = spans
            .into_iter()
            .map(|span| Buffer { span, to: None, filled: 0, is_flying: false })
            .collect();
        Appender { kind, buffers, current: None, target: None }
    }

    /// Blocks left in the slot; 0 without one.
    pub(crate) fn blocks_left(&self, slot_blocks: u32) -> u32 {
        self.target.map_or(0, |target| slot_blocks - target.next_block)
    }

    /// Whether a block can be put without waiting for a buffer.
    pub(crate) fn has_buffer(&self) -> bool {
        self.current.is_some() || self.buffers.iter().any(|buffer| buffer.to.is_none())
    }

    /// Whether nothing is gathered or being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.buffers.iter().all(|buffer| buffer.to.is_none())
    }

    /// Goes on in a new slot, with its header.
    ///
    /// # Panics
    /// If no buffer is free.
    pub(crate) fn begin(
        &mut self,
        memory: &Memory,
        identity: &Identity,
        segment: SegmentId,
        slot: SlotId,
    ) {
        self.cut();
        self.target = Some(Target { segment, slot, next_block: 0, is_flushed: false });
        let mut block = [0; PAGE_BYTES as usize];
        let header = SegmentHeader {
            pool: identity.pool,
            kind: self.kind,
            segment,
            epoch: identity.epoch,
            instance: identity.instance,
            slot,
            successor: None,
            before: (SegmentId(0), BatchNumber(0), 0),
        };
        header.encode(identity.salt, &mut block);
        self.put(memory, &block);
    }

    /// Adds a block; returns where in the slot it is.
    ///
    /// # Panics
    /// If there is no slot, no room in it, or no buffer.
    pub(crate) fn put(&mut self, memory: &Memory, block: &[u8]) -> u32 {
        let target = self.target.as_mut().unwrap_or_else(|| panic!("a stream without a slot"));
        let at = target.next_block;
        target.next_block += 1;
        let slot = target.slot;
        let current = self.current.or_else(|| {
            let free = self.buffers.iter().position(|buffer| buffer.to.is_none())?;
            self.buffers[free].to = Some((slot, at));
            self.buffers[free].filled = 0;
            Some(free)
        });
        let current = current.unwrap_or_else(|| panic!("a stream without a free buffer"));
        let buffer = &mut self.buffers[current];
        let start = (buffer.filled * PAGE_BYTES) as usize;
        memory.slice_mut(&mut buffer.span)[start..start + PAGE_BYTES as usize]
            .copy_from_slice(block);
        buffer.filled += 1;
        let is_full = buffer.filled * PAGE_BYTES == buffer.span.bytes();
        self.current = (!is_full).then_some(current);
        at
    }

    /// Puts an end to the run being gathered, so that it is written.
    pub(crate) fn cut(&mut self) {
        self.current = None;
    }

    /// The next run to be written.
    pub(crate) fn ready(&mut self) -> Option<ReadyRun> {
        let current = self.current;
        let found = self.buffers.iter_mut().enumerate().find(|(index, buffer)| {
            buffer.to.is_some() && !buffer.is_flying && Some(*index) != current
        });
        let (index, buffer) = found?;
        buffer.is_flying = true;
        let (slot, block) = buffer.to?;
        let from = buffer.span.part().sub(0, buffer.filled * PAGE_BYTES);
        Some(ReadyRun { buffer: index as u32, slot, block, from })
    }

    /// A run has come back, well or not. Returns where it was to go.
    pub(crate) fn done(&mut self, buffer: u32) -> Option<(SlotId, u32)> {
        let buffer = self.buffers.get_mut(buffer as usize)?;
        buffer.is_flying = false;
        buffer.to.take()
    }

    /// All that was written is durable.
    pub(crate) fn flushed(&mut self) {
        if let Some(target) = &mut self.target {
            target.is_flushed = true;
        }
    }

    /// Leaves the slot whose header nobody has flushed, if it writes to one.
    pub(crate) fn leave_unflushed(&mut self) -> Option<SlotId> {
        let target = self.target.take_if(|target| !target.is_flushed)?;
        self.cut();
        Some(target.slot)
    }
}
