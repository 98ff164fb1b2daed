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
    /// From the death of the process to both copies of the superblock of the next epoch being
    /// flushed: the arena is adopted.
    Restart,
    /// Anything, anywhere.
    Random,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 5] =
        [Class::Checkpoint, Class::ImageMove, Class::SlotReuse, Class::Restart, Class::Random];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::Checkpoint => "checkpoint",
            Class::ImageMove => "image-move",
            Class::SlotReuse => "slot-reuse",
            Class::Restart => "restart",
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
    let mut restarts = trace.restarts.iter().copied().peekable();
    for op in trace.ops.iter().filter(|op| op.kind == Kind::Write) {
        if let Some(step) = restarts.next_if(|&step| step < op.submitted) {
            // What went on before is over.
            finder.open = BTreeMap::from([(Class::Restart, step + 1)]);
        }
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
            self.end(Class::Restart, op);
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

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{DONE, FLUSH, WRITE, log};
    use super::*;

    const SLOT: u64 = 64 << 10;

    fn pool() -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..8].copy_from_slice(b"BOWLPOOL");
        header[40..48].copy_from_slice(&SLOT.to_le_bytes());
        header
    }

    fn segment(kind: u8, id: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[8..16].copy_from_slice(b"BOWLSEGM");
        block[20] = kind;
        block[40..48].copy_from_slice(&id.to_le_bytes());
        block
    }

    /// A batch: a write of one block, then a record of this kind.
    fn batch(record: u8) -> Vec<u8> {
        let mut head = vec![0; 3 * BLOCK];
        head[8..16].copy_from_slice(b"BOWLBTCH");
        head[20] = 2;
        for (at, kind) in [(128, 1), (168, 4)] {
            head[at + 4] = kind;
            head[at + 16] = 1;
        }
        head[2 * BLOCK] = record;
        head
    }

    fn find_in(writes: &[(u64, Vec<u8>)]) -> Moments {
        let mut entries: Vec<(u64, u64, u64, &[u8])> = Vec::new();
        for (at, data) in writes {
            entries.extend([(WRITE, 1, *at, &data[..]), (DONE, 1, 0, &[])]);
            entries.extend([(FLUSH, 2, 0, &[][..]), (DONE, 2, 0, &[])]);
        }
        find(&log(&entries), &pool()).unwrap()
    }

    #[test]
    fn delicate_moments_are_found() {
        let slot = |slot: u64| SLOTS_AT + slot * SLOT;
        let moments = find_in(&[
            (slot(0), [segment(1, 7), batch(1)].concat()),
            (slot(1), [segment(2, 8), vec![0; BLOCK]].concat()),
            (slot(1) + 8192, vec![0; BLOCK]),
            (slot(0) + 4 * BLOCK as u64, batch(3)),
            (slot(2), segment(3, 9)),
            (slot(3), segment(4, 10)),
            (SUPERBLOCKS.start, vec![0; BLOCK]),
            (SUPERBLOCKS.start + (16 << 10), vec![0; BLOCK]),
            (slot(0), segment(1, 11)),
        ]);
        let expected = [
            (Class::Checkpoint, 17..32, "from a page to the second superblock"),
            (Class::ImageMove, 5..16, "from the image to the flush of its record"),
            (Class::SlotReuse, 33..36, "from the header to its flush"),
            (Class::Random, 0..37, "everywhere"),
        ];
        for (class, range, what) in expected {
            assert_eq!(moments[&class].as_slice(), std::slice::from_ref(&range), "{what}");
        }
    }

    #[test]
    fn where_nothing_is_nothing_is_found() {
        let moments = find_in(&[(SLOTS_AT, [segment(1, 7), batch(1)].concat())]);
        assert_eq!(moments.keys().collect::<Vec<_>>(), [&Class::Random]);
        assert!(find(&log(&[]), &[0; BLOCK]).is_err(), "no pool");
    }
}
