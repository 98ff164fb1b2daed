//! One generation of changes of the map that are not folded into leaf pages yet.
//!
//! Records lie in the order of their first insertion; two open-addressed tables of record numbers
//! find them, one by block, one by leaf. Nothing is ever deleted: a generation fills, is folded
//! leaf by leaf while it still answers reads, and is cleared as a whole.
//!
//! Invariants:
//! - A block has at most one record; a later insertion overwrites it in place.
//! - The slot of a leaf holds the newest record of that leaf, and each record names the next older
//!   one. A slot, once taken, keeps its leaf until `clear`: cursors stay valid while others insert.
//! - Neither table is ever more than half full.

use super::{Entry, leaf_of, mix, slot_of};
use crate::{Lba, LineageId};

/// A slot of a table: 0 if free, else 8 bits of the hash and the record's number plus one. The bits
/// of the hash save a look at most records that are not the wanted one.
type Slot = u32;

const NUMBER_BITS: u32 = 24;
const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;
const SLOTS_PER_RECORD: usize = 2;
const BYTES_PER_RECORD: usize = size_of::<Record>() + 2 * SLOTS_PER_RECORD * size_of::<Slot>();

#[derive(Clone, Copy)]
#[repr(C)]
struct Record {
    lineage: u32,
    /// The next record of the same leaf, plus one; 0 at the end.
    next: u32,
    lba: u64,
    address: u64,
    checksum: u32,
    ordinal: u32,
}

const _: () = assert!(size_of::<Record>() == 32);

/// What a generation says of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// The block.
    pub lba: Lba,
    /// Its entry.
    pub entry: Entry,
    /// The place of the change in the order of its generation.
    pub ordinal: u32,
}

/// Where an iteration over the leaves of a generation stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafCursor(usize);

/// One generation of changes, block by block.
pub struct Deltas {
    seed: u64,
    capacity: usize,
    records: Vec<Record>,
    by_block: Vec<Slot>,
    by_leaf: Vec<Slot>,
    leaves: usize,
}

impl Deltas {
    /// An empty generation that takes no more than `bytes` of memory. The seed should differ from
    /// pool to pool.
    ///
    /// # Panics
    /// If not one record fits.
    #[must_use]
    pub fn new(bytes: usize, seed: u64) -> Deltas {
        let capacity = Deltas::capacity_of(bytes);
        assert!(capacity > 0, "{bytes} bytes hold no record");
        Deltas {
            seed,
            capacity,
            records: Vec::with_capacity(capacity),
            by_block: vec![0; capacity * SLOTS_PER_RECORD],
            by_leaf: vec![0; capacity * SLOTS_PER_RECORD],
            leaves: 0,
        }
    }

    /// How many blocks a generation of so many bytes takes.
    #[must_use]
    pub fn capacity_of(bytes: usize) -> usize {
        (bytes / BYTES_PER_RECORD).min(NUMBER_MASK as usize)
    }

    /// Blocks that have changed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether no further block fits. Blocks that are in can still be changed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() == self.capacity
    }

    /// Blocks that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Leaves that have changes.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.leaves
    }

    /// Bytes of memory the generation takes when full.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.capacity * BYTES_PER_RECORD
    }

    /// Notes the new entry of a block. Returns what it replaces within this generation.
    ///
    /// # Panics
    /// If the block is new and the generation is full.
    pub fn insert(
        &mut self,
        lineage: LineageId,
        lba: Lba,
        entry: Entry,
        ordinal: u32,
    ) -> Option<Delta> {
        let hash = mix(self.seed, lba.0, u64::from(lineage.0));
        let slot = match self.find(lineage, lba, hash) {
            Ok(number) => {
                let record = &mut self.records[number];
                let previous = record.delta();
                record.address = entry.address;
                record.checksum = entry.checksum;
                record.ordinal = ordinal;
                return Some(previous);
            }
            Err(slot) => slot,
        };
        assert!(!self.is_full(), "the generation is full");
        self.records.push(Record {
            lineage: lineage.0,
            next: 0,
            lba: lba.0,
            address: entry.address,
            checksum: entry.checksum,
            ordinal,
        });
        let number = self.records.len() as u32;
        self.by_block[slot] = tag(hash) | number;
        self.link(lineage, lba, number);
        None
    }

    /// What this generation says of a block.
    #[inline]
    #[must_use]
    pub fn get(&self, lineage: LineageId, lba: Lba) -> Option<Delta> {
        let hash = mix(self.seed, lba.0, u64::from(lineage.0));
        self.find(lineage, lba, hash).ok().map(|number| self.records[number].delta())
    }

    /// The next leaf with changes, in no particular order; none at the end. Leaves that are added
    /// meanwhile may or may not be met; no leaf is met twice.
    pub fn next_leaf(&self, cursor: &mut LeafCursor) -> Option<(LineageId, u64)> {
        while let Some(&slot) = self.by_leaf.get(cursor.0) {
            cursor.0 += 1;
            if slot != 0 {
                let record = &self.records[number_of(slot)];
                return Some((LineageId(record.lineage), leaf_of(Lba(record.lba))));
            }
        }
        None
    }

    /// The changes in one leaf, the newest block first.
    pub fn leaf(&self, lineage: LineageId, leaf: u64) -> impl Iterator<Item = Delta> + '_ {
        let mut next = match self.find_leaf(lineage, leaf, self.hash_of_leaf(lineage, leaf)) {
            Ok(slot) => self.by_leaf[slot] & NUMBER_MASK,
            Err(_) => 0,
        };
        std::iter::from_fn(move || {
            let number = next.checked_sub(1)?;
            let record = &self.records[number as usize];
            next = record.next;
            Some(record.delta())
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.records.clear();
        self.by_block.fill(0);
        self.by_leaf.fill(0);
        self.leaves = 0;
    }

    /// The number of the block's record, or the slot where it belongs.
    #[inline]
    fn find(&self, lineage: LineageId, lba: Lba, hash: u64) -> Result<usize, usize> {
        self.probe(&self.by_block, hash, |record| {
            record.lba == lba.0 && record.lineage == lineage.0
        })
        .map(|slot| number_of(self.by_block[slot]))
    }

    /// The slot of the leaf, or the slot where it belongs.
    fn find_leaf(&self, lineage: LineageId, leaf: u64, hash: u64) -> Result<usize, usize> {
        self.probe(&self.by_leaf, hash, |record| {
            leaf_of(Lba(record.lba)) == leaf && record.lineage == lineage.0
        })
    }

    #[inline]
    fn probe(
        &self,
        table: &[Slot],
        hash: u64,
        is_wanted: impl Fn(&Record) -> bool,
    ) -> Result<usize, usize> {
        let mut slot = slot_of(hash, table.len());
        loop {
            let content = table[slot];
            if content == 0 {
                return Err(slot);
            }
            if content & !NUMBER_MASK == tag(hash) && is_wanted(&self.records[number_of(content)]) {
                return Ok(slot);
            }
            slot = if slot + 1 == table.len() { 0 } else { slot + 1 };
        }
    }

    /// Puts a new record at the head of its leaf's chain.
    fn link(&mut self, lineage: LineageId, lba: Lba, number: u32) {
        let leaf = leaf_of(lba);
        let hash = self.hash_of_leaf(lineage, leaf);
        let slot = match self.find_leaf(lineage, leaf, hash) {
            Ok(slot) => {
                self.records[number as usize - 1].next = self.by_leaf[slot] & NUMBER_MASK;
                slot
            }
            Err(slot) => {
                self.leaves += 1;
                slot
            }
        };
        self.by_leaf[slot] = tag(hash) | number;
    }

    fn hash_of_leaf(&self, lineage: LineageId, leaf: u64) -> u64 {
        mix(!self.seed, leaf, u64::from(lineage.0))
    }
}

impl Record {
    #[inline]
    fn delta(&self) -> Delta {
        Delta {
            lba: Lba(self.lba),
            entry: Entry { address: self.address, checksum: self.checksum },
            ordinal: self.ordinal,
        }
    }
}

#[inline]
fn tag(hash: u64) -> u32 {
    (hash as u32) & !NUMBER_MASK
}

#[inline]
fn number_of(slot: Slot) -> usize {
    (slot & NUMBER_MASK) as usize - 1
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::random::Random;
    use super::*;
    use crate::SegmentId;

    type Model = BTreeMap<(u32, u64), Delta>;

    fn check(deltas: &Deltas, model: &Model) {
        assert_eq!(deltas.len(), model.len());
        for (&(lineage, lba), delta) in model {
            assert_eq!(deltas.get(LineageId(lineage), Lba(lba)), Some(*delta));
        }
        let wanted: BTreeSet<(u32, u64)> =
            model.keys().map(|&(lineage, lba)| (lineage, lba / LEAF)).collect();
        let (mut cursor, mut met, mut blocks) = (LeafCursor::default(), BTreeSet::new(), 0);
        while let Some((lineage, leaf)) = deltas.next_leaf(&mut cursor) {
            assert!(met.insert((lineage.0, leaf)), "a leaf is met twice");
            for delta in deltas.leaf(lineage, leaf) {
                assert_eq!(delta.lba.0 / LEAF, leaf);
                assert_eq!(model.get(&(lineage.0, delta.lba.0)), Some(&delta));
                blocks += 1;
            }
        }
        assert_eq!(met, wanted);
        assert_eq!(met.len(), deltas.leaves());
        assert_eq!(blocks, model.len(), "every change is in the chain of its leaf, once");
    }

    const LEAF: u64 = super::super::LEAF_ENTRIES;

    #[test]
    fn agrees_with_an_ordered_map() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let mut deltas = Deltas::new(48 * (50 + random.below(800) as usize), random.next());
            let mut model = Model::new();
            let span = [3, 400, 5_000, 1 << 40][seed as usize % 4];
            for ordinal in 0..2_000 {
                if deltas.is_full() {
                    check(&deltas, &model);
                    deltas.clear();
                    model.clear();
                    assert_eq!(deltas.next_leaf(&mut LeafCursor::default()), None);
                }
                let (lineage, lba) = (random.below(3) as u32, random.below(span));
                let entry = Entry::data(SegmentId(random.below(1000)), 7, random.next() as u32);
                let delta = Delta { lba: Lba(lba), entry, ordinal };
                let previous = deltas.insert(LineageId(lineage), Lba(lba), entry, ordinal);
                assert_eq!(previous, model.insert((lineage, lba), delta));
                let other = (random.below(4) as u32, random.below(span));
                let found = deltas.get(LineageId(other.0), Lba(other.1));
                assert_eq!(found, model.get(&other).copied());
            }
            check(&deltas, &model);
        }
    }

    #[test]
    fn fills_to_its_capacity_within_its_bytes() {
        let mut deltas = Deltas::new(1 << 20, 9);
        assert!(deltas.bytes() <= 1 << 20);
        for lba in 0..deltas.capacity() as u64 {
            assert!(!deltas.is_full());
            deltas.insert(LineageId(1), Lba(lba * LEAF), Entry::HOLE, 0);
        }
        assert!(deltas.is_full());
        assert_eq!(deltas.leaves(), deltas.capacity());
        let replaced = deltas.insert(LineageId(1), Lba(0), Entry::ZERO, 1);
        assert_eq!(replaced.map(|delta| delta.entry), Some(Entry::HOLE));
        assert_eq!(deltas.get(LineageId(1), Lba(1)), None, "a full table still ends its search");
    }

    #[test]
    #[should_panic(expected = "full")]
    fn a_full_generation_takes_no_new_block() {
        let mut deltas = Deltas::new(BYTES_PER_RECORD, 0);
        deltas.insert(LineageId(0), Lba(0), Entry::HOLE, 0);
        deltas.insert(LineageId(0), Lba(1), Entry::HOLE, 0);
    }

    #[test]
    fn regular_patterns_spread_over_the_table() {
        for (seed, stride) in [(0, 1), (1, 2), (2, 340), (3, 4096), (4, 1 << 20), (5, 1 << 32)] {
            let slots = 4096;
            let mut counts = vec![0u32; slots];
            for step in 0..slots as u64 / 2 {
                counts[slot_of(mix(seed, step * stride, 1), slots)] += 1;
            }
            let worst = counts.iter().max().copied();
            assert!(worst < Some(10), "stride {stride} puts {worst:?} blocks into one slot");
        }
    }
}
