//! Where in a log something delicate goes on. The structures are read as docs/format.md says, and
//! apart from `bowline-store` on purpose.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::trace::{Kind, Op, Trace};
use crate::Result;

/// What goes on at a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// From the first page of the map to both copies of the superblock being flushed.
    Checkpoint,
    /// From the first block of an image to the record of its move being flushed.
    ImageMove,
    /// From the first write to a slot that held another segment to a flush that covers it.
    SlotReuse,
    /// Anything, anywhere.
    Random,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 4] =
        [Class::Checkpoint, Class::ImageMove, Class::SlotReuse, Class::Random];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Checkpoint => "checkpoint",
            Class::ImageMove => "image-move",
            Class::SlotReuse => "slot-reuse",
            Class::Random => "random",
        }
    }
}

/// Cuts at which something goes on, for each class.
pub type Moments = BTreeMap<Class, Vec<Range<usize>>>;

const BLOCK: usize = 4096;
const SLOTS_AT: u64 = 1 << 20;
const SUPERBLOCKS: Range<u64> = 128 << 10..256 << 10;
const SLOT_BYTES_AT: usize = 40;
const BATCH_ENTRIES_AT: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotKind {
    Log,
    Images,
    Checkpoint,
}

/// Finds them all; `header` is the beginning of the pool.
///
/// # Errors
/// If this is no pool, or the log cannot be read.
pub fn find(trace: &Trace, header: &[u8]) -> Result<Moments> {
    if header.get(..8) != Some(b"BOWLPOOL") {
        return Err("the pool has no header".into());
    }
    let slot_bytes = number(header, SLOT_BYTES_AT, 8).filter(|&bytes| bytes > 0);
    let slot_bytes = slot_bytes.ok_or("the pool's header names no size of slots")?;
    let mut finder =
        Finder { trace, slots: HashMap::new(), open: BTreeMap::new(), found: BTreeMap::new() };
    for op in trace.ops.iter().filter(|op| op.kind == Kind::Write) {
        if SUPERBLOCKS.contains(&op.at) {
            finder.superblock(op);
        } else if let Some(at) = op.at.checked_sub(SLOTS_AT) {
            finder.slot(op, at / slot_bytes, at % slot_bytes == 0)?;
        }
    }
    finder.found.entry(Class::Random).or_default().push(0..trace.steps() + 1);
    Ok(finder.found)
}

struct Finder<'a> {
    trace: &'a Trace,
    /// What lies in each slot: its segment, and what it is for.
    slots: HashMap<u64, (u64, SlotKind)>,
    /// Where something has begun that is not over.
    open: BTreeMap<Class, usize>,
    found: Moments,
}

impl Finder<'_> {
    fn begin(&mut self, class: Class, op: &Op) {
        self.open.entry(class).or_insert(op.submitted + 1);
    }

    fn end(&mut self, class: Class, op: &Op) {
        if let Some(from) = self.open.remove(&class) {
            self.found.entry(class).or_default().push(from..self.trace.covered(op));
        }
    }

    fn superblock(&mut self, op: &Op) {
        // Copy 0 of each pair lies at a multiple of 32 KiB, copy 1 behind it.
        if !(op.at - SUPERBLOCKS.start).is_multiple_of(32 << 10) {
            self.end(Class::Checkpoint, op);
        }
    }

    fn slot(&mut self, op: &Op, slot: u64, is_first: bool) -> Result<()> {
        let known = self.slots.get(&slot).copied();
        if !is_first && known.is_none_or(|(_, kind)| kind != SlotKind::Log) {
            self.goes_on(op, known.map(|(_, kind)| kind));
            return Ok(());
        }
        let data = self.trace.data(op)?;
        let mut rest = &data[..];
        let mut kind = known.map(|(_, kind)| kind);
        if is_first && data.get(8..16) == Some(b"BOWLSEGM") {
            let segment = number(&data, 40, 8).unwrap_or(0);
            let now = match data[20] {
                1 => SlotKind::Log,
                2 => SlotKind::Images,
                _ => SlotKind::Checkpoint,
            };
            if known.is_some_and(|(before, _)| before != segment) {
                self.begin(Class::SlotReuse, op);
                self.end(Class::SlotReuse, op);
            }
            self.slots.insert(slot, (segment, now));
            kind = Some(now);
            rest = data.get(BLOCK..).unwrap_or_default();
        }
        self.goes_on(op, kind);
        if kind == Some(SlotKind::Log) && moves_images(rest) {
            self.end(Class::ImageMove, op);
        }
        Ok(())
    }

    fn goes_on(&mut self, op: &Op, kind: Option<SlotKind>) {
        match kind {
            Some(SlotKind::Images) => self.begin(Class::ImageMove, op),
            Some(SlotKind::Checkpoint) => self.begin(Class::Checkpoint, op),
            _ => {}
        }
    }
}

/// Whether a batch holds a record of images that were moved.
fn moves_images(batch: &[u8]) -> bool {
    if batch.get(8..16) != Some(b"BOWLBTCH") {
        return false;
    }
    let (mut at, mut block) = (BATCH_ENTRIES_AT, 1);
    for _ in 0..number(batch, 20, 4).unwrap_or(0) {
        let (Some(kind), Some(blocks)) = (batch.get(at + 4), number(batch, at + 16, 8)) else {
            return false;
        };
        let blocks = if [1, 4].contains(kind) { blocks as usize } else { 0 };
        if *kind == 4 && batch.get(block * BLOCK) == Some(&3) {
            return true;
        }
        block += blocks;
        at += 32 + (blocks * 4).next_multiple_of(8);
    }
    false
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + length)?;
    Some(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}
