//! Memory for requests that cannot be admitted at once. All of it is taken when the request is, or
//! none: whoever waits holds what it needs, so requests never wait for each other's memory.

use std::collections::VecDeque;

use bowline_arena::{PAGE_BYTES, Span};
use bowline_store::{BLOCK_BYTES, Change, Lba, Payload, pages_for_admission};

use crate::area::{Area, Edge};
use crate::operation::{Merge, clear_around, put};
use crate::{Disks, Volume};

const _: () = assert!(PAGE_BYTES as u64 == BLOCK_BYTES);

/// So many pages would have been needed at once.
pub(crate) struct Shortage {
    pub pages: u32,
}

/// What an operation has to do: bring old bytes into changes, then have these admitted.
pub(crate) struct Work {
    pub changes: VecDeque<Change>,
    pub merges: Vec<Merge>,
}

/// Memory for the blocks of an area, and for the old blocks at its edges.
pub(crate) struct Staged {
    blocks: Vec<Span>,
    old: Vec<Span>,
}

impl Work {
    /// Blocks of bytes with what is old around them.
    pub fn write(area: &Area, staged: Staged) -> Work {
        let merges = area.edges().zip(staged.old).map(|(edge, old)| {
            let at = (edge.lba.0 - area.first.0) * BLOCK_BYTES;
            Merge { edge, change: 0, at, old: Some(old) }
        });
        let merges = merges.collect();
        let change = Change::Write { lba: area.first, spans: staged.blocks };
        Work { changes: VecDeque::from([change]), merges }
    }

    /// Blocks of zeros with what is old around them.
    pub fn zero(area: &Area, staged: Staged, keep_allocated: bool) -> Work {
        let mut work = Work { changes: VecDeque::new(), merges: Vec::new() };
        for ((edge, old), block) in area.edges().zip(staged.old).zip(staged.blocks) {
            let merge = Merge { edge, change: work.changes.len(), at: 0, old: Some(old) };
            work.merges.push(merge);
            work.changes.push_back(Change::Write { lba: edge.lba, spans: vec![block] });
        }
        if let Some(inner) = area.inner() {
            work.changes.extend(Work::fill(inner.first, inner.blocks, keep_allocated).changes);
        }
        work
    }

    /// Whole blocks of zeros or holes.
    pub fn fill(lba: Lba, blocks: u64, keep_allocated: bool) -> Work {
        let change = match keep_allocated {
            true => Change::Zero { lba, blocks },
            false => Change::Discard { lba, blocks },
        };
        Work { changes: VecDeque::from([change]), merges: Vec::new() }
    }
}

impl<V: Volume> Disks<V> {
    /// Memory for an area with the payload in its place and zeros around it. The spans of an owned
    /// payload are used if they fit as they are, and given back to the pages otherwise.
    pub(crate) fn stage(
        &mut self,
        area: &Area,
        payload: &mut Payload<'_>,
    ) -> Result<Staged, Shortage> {
        if let Payload::Owned(spans) = payload
            && area.is_whole()
        {
            return Ok(Staged { blocks: std::mem::take(spans), old: Vec::new() });
        }
        let mut staged = self.take(area, area.blocks)?;
        let (memory, mut at, mut bytes) = (&self.memory, area.head_bytes, 0);
        let mut store = |slice: &[u8]| {
            put(memory, &mut staged.blocks, at, slice);
            at += slice.len() as u64;
            bytes += slice.len() as u64;
        };
        match payload {
            Payload::Copied(slices) => slices.iter().for_each(|slice| store(slice)),
            Payload::Owned(spans) => spans.iter().for_each(|span| store(memory.slice(span))),
        }
        clear_around(memory, &mut staged.blocks, area.head_bytes, bytes);
        if let Payload::Owned(spans) = payload {
            let mut pages = self.pages.borrow_mut();
            spans.drain(..).for_each(|span| pages.give(span));
        }
        Ok(staged)
    }

    /// Memory for the blocks at the edges of an area, zeroed.
    pub(crate) fn stage_edges(&mut self, area: &Area) -> Result<Staged, Shortage> {
        let mut staged = self.take(area, area.edges().count() as u64)?;
        clear_around(&self.memory, &mut staged.blocks, 0, 0);
        Ok(staged)
    }

    /// The spans of a payload that lies in its place among whole blocks, with zeros around it.
    pub(crate) fn stage_in_place(
        &mut self,
        area: &Area,
        bytes: u64,
        spans: &mut Vec<Span>,
    ) -> Result<Staged, Shortage> {
        let old = self.take(area, 0)?.old;
        let mut blocks = std::mem::take(spans);
        clear_around(&self.memory, &mut blocks, area.head_bytes, bytes);
        Ok(Staged { blocks, old })
    }

    /// So many blocks, and those for the old bytes at the edges of the area, each its own span.
    fn take(&mut self, area: &Area, blocks: u64) -> Result<Staged, Shortage> {
        let edges: Vec<Edge> = area.edges().collect();
        let pages = u32::try_from(blocks + edges.len() as u64).unwrap_or(u32::MAX);
        let run_pages_max = if blocks == edges.len() as u64 { 1 } else { pages };
        let mut free = self.pages.borrow_mut();
        let pages = pages.saturating_add(pages_for_admission(free.count()));
        if pages > free.free() {
            return Err(Shortage { pages });
        }
        let old = free.take_scattered(edges.len() as u32, 1).unwrap_or_default();
        let blocks = free.take_scattered(blocks as u32, run_pages_max).unwrap_or_default();
        Ok(Staged { blocks, old })
    }
}
