//! One generation of changes of the map that are not folded into leaf pages yet.
//!
//! Records lie in the order of their first insertion; two open-addressed tables of record numbers
//! find them, one by block, one by leaf. Nothing is ever deleted: a generation fills, is folded
//! leaf by leaf while it still answers reads, and is cleared as a whole.
//!
//! ```text
//! word 0            records
//! 8 + 4 n           record n: lineage u32, next u32; block; address; checksum u32, ordinal u32
//! 8 + 4 c           table by block: 2 c slots u32, for a capacity of c records
//! 8 + 5 c           table by leaf: 2 c slots
//! ```
//!
//! Invariants:
//! - A block has at most one record; a later insertion overwrites it in place.
//! - The slot of a leaf holds the newest record of that leaf, and each record names the next older
//!   one. A slot, once taken, keeps its leaf until `clear`: cursors stay valid while others insert.
//! - Neither table is ever more than half full.
//! - In the arena, a record counts once the number of records says so, and only the last one may
//!   be missing in the tables ([`Deltas::adopt`]). The words of a record that is overwritten change
//!   one by one: who adopts repeats the insertions that may have been under way.

use super::{Entry, Words, leaf_of, mix, slot_of};
use crate::{Lba, LineageId};

/// A slot of a table: 0 if free, else 8 bits of the hash and the record's number plus one. The bits
/// of the hash save a look at most records that are not the wanted one.
type Slot = u32;

const NUMBER_BITS: u32 = 24;
const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;
const SLOTS_PER_RECORD: usize = 2;
const HEADER_WORDS: usize = 8;
const RECORD_WORDS: usize = 4;
/// Words of a record and of its share in both tables.
const WORDS_PER_RECORD: usize = RECORD_WORDS + SLOTS_PER_RECORD;
const BYTES_PER_RECORD: usize = WORDS_PER_RECORD * 8;

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
    len: usize,
    words: Words,
    leaves: usize,
}

/// One of the two tables.
#[derive(Clone, Copy)]
enum Table {
    Block,
    Leaf,
}

impl Deltas {
    /// An empty generation that takes no more than `bytes` of memory, and a header. The seed
    /// should differ from pool to pool.
    ///
    /// # Panics
    /// If not one record fits.
    #[must_use]
    pub fn new(bytes: usize, seed: u64) -> Deltas {
        let capacity = Deltas::capacity_of(bytes);
        Deltas::over(Words::own(HEADER_WORDS + capacity * WORDS_PER_RECORD), seed)
    }

    /// An empty generation in words that are zero.
    ///
    /// # Panics
    /// If not one record fits.
    #[must_use]
    pub fn over(words: Words, seed: u64) -> Deltas {
        let room = words.count().saturating_sub(HEADER_WORDS);
        let capacity = (room / WORDS_PER_RECORD).min(NUMBER_MASK as usize);
        assert!(capacity > 0, "{} words hold no record", words.count());
        Deltas { seed, capacity, len: 0, words, leaves: 0 }
    }

    /// Bytes that a generation of so many bytes takes with its header.
    #[must_use]
    pub fn bytes_with_header(bytes: usize) -> usize {
        (HEADER_WORDS + Deltas::capacity_of(bytes) * WORDS_PER_RECORD) * 8
    }

    /// Whether words may be a generation's.
    #[must_use]
    pub fn are(words: &Words) -> bool {
        let capacity = words.count().saturating_sub(HEADER_WORDS) / WORDS_PER_RECORD;
        capacity > 0 && words.get(0) <= capacity.min(NUMBER_MASK as usize) as u64
    }

    /// A generation that a process left which may have died anywhere. The number of leaves is
    /// counted by [`Deltas::count_leaves`].
    ///
    /// None if the words are nothing of the kind.
    #[must_use]
    pub fn adopt(words: Words, seed: u64) -> Option<Deltas> {
        if !Deltas::are(&words) {
            return None;
        }
        let mut deltas = Deltas::over(words, seed);
        deltas.len = deltas.words.get(0) as usize;
        if let Some(last) = deltas.len.checked_sub(1) {
            let (lineage, lba) = deltas.key(last);
            let hash = deltas.hash_of_block(lineage, lba);
            let number = deltas.len as u32;
            if let Err(slot) = deltas.find(lineage, lba, hash) {
                deltas.set_slot(Table::Block, slot, tag(hash) | number);
            }
            let hash = deltas.hash_of_leaf(lineage, leaf_of(lba));
            let found = deltas.find_leaf(lineage, leaf_of(lba), hash);
            let is_linked =
                found.is_ok_and(|slot| deltas.slot(Table::Leaf, slot) & NUMBER_MASK == number);
            if !is_linked {
                deltas.link(lineage, lba, number);
            }
        }
        Some(deltas)
    }

    /// Counts the leaves of a generation that was adopted: each has one record at the end of its
    /// chain.
    pub fn count_leaves(&mut self) {
        self.leaves = (0..self.len).filter(|at| self.next(*at) == 0).count();
    }

    /// All changes, in the order of their first insertion, with their lineages.
    pub fn all(&self) -> impl Iterator<Item = (LineageId, Delta)> + '_ {
        (0..self.len).map(|at| (self.key(at).0, self.delta(at)))
    }

    /// How many blocks a generation of so many bytes takes.
    #[must_use]
    pub fn capacity_of(bytes: usize) -> usize {
        (bytes / BYTES_PER_RECORD).min(NUMBER_MASK as usize)
    }

    /// Blocks that have changed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no further block fits. Blocks that are in can still be changed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == self.capacity
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
        let hash = self.hash_of_block(lineage, lba);
        let slot = match self.find(lineage, lba, hash) {
            Ok(at) => {
                let previous = self.delta(at);
                self.set_entry(at, entry, ordinal);
                return Some(previous);
            }
            Err(slot) => slot,
        };
        assert!(!self.is_full(), "the generation is full");
        let at = self.len;
        self.words.set(record(at), lineage.0.into());
        self.words.set(record(at) + 1, lba.0);
        self.set_entry(at, entry, ordinal);
        self.len += 1;
        self.words.set(0, self.len as u64);
        let number = self.len as u32;
        self.set_slot(Table::Block, slot, tag(hash) | number);
        self.link(lineage, lba, number);
        None
    }

    /// What this generation says of a block.
    #[inline]
    #[must_use]
    pub fn get(&self, lineage: LineageId, lba: Lba) -> Option<Delta> {
        let hash = self.hash_of_block(lineage, lba);
        self.find(lineage, lba, hash).ok().map(|at| self.delta(at))
    }

    /// The next leaf with changes, in no particular order; none at the end. Leaves that are added
    /// meanwhile may or may not be met; no leaf is met twice.
    pub fn next_leaf(&self, cursor: &mut LeafCursor) -> Option<(LineageId, u64)> {
        while cursor.0 < self.slots() {
            let slot = self.slot(Table::Leaf, cursor.0);
            cursor.0 += 1;
            if slot != 0 {
                let (lineage, lba) = self.key(number_of(slot));
                return Some((lineage, leaf_of(lba)));
            }
        }
        None
    }

    /// The changes in one leaf, the newest block first.
    pub fn leaf(&self, lineage: LineageId, leaf: u64) -> impl Iterator<Item = Delta> + '_ {
        let mut next = match self.find_leaf(lineage, leaf, self.hash_of_leaf(lineage, leaf)) {
            Ok(slot) => self.slot(Table::Leaf, slot) & NUMBER_MASK,
            Err(_) => 0,
        };
        std::iter::from_fn(move || {
            let at = next.checked_sub(1)? as usize;
            next = self.next(at);
            Some(self.delta(at))
        })
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.len, self.leaves) = (0, 0);
        self.words.set(0, 0);
        let tables = record(self.capacity);
        self.words.zero(tables..tables + self.capacity * SLOTS_PER_RECORD);
    }

    /// The block's record, or the slot where it belongs.
    #[inline]
    fn find(&self, lineage: LineageId, lba: Lba, hash: u64) -> Result<usize, usize> {
        let is_wanted = |at| self.words.get(record(at) + 1) == lba.0 && self.key(at).0 == lineage;
        let found = self.probe(Table::Block, hash, is_wanted);
        found.map(|slot| number_of(self.slot(Table::Block, slot)))
    }

    /// The slot of the leaf, or the slot where it belongs.
    fn find_leaf(&self, lineage: LineageId, leaf: u64, hash: u64) -> Result<usize, usize> {
        self.probe(Table::Leaf, hash, |at| {
            let (found, lba) = self.key(at);
            leaf_of(lba) == leaf && found == lineage
        })
    }

    #[inline]
    fn probe(
        &self,
        table: Table,
        hash: u64,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<usize, usize> {
        let mut slot = slot_of(hash, self.slots());
        loop {
            let content = self.slot(table, slot);
            if content == 0 {
                return Err(slot);
            }
            if content & !NUMBER_MASK == tag(hash) && is_wanted(number_of(content)) {
                return Ok(slot);
            }
            slot = if slot + 1 == self.slots() { 0 } else { slot + 1 };
        }
    }

    /// Puts a new record at the head of its leaf's chain.
    fn link(&mut self, lineage: LineageId, lba: Lba, number: u32) {
        let leaf = leaf_of(lba);
        let hash = self.hash_of_leaf(lineage, leaf);
        let slot = match self.find_leaf(lineage, leaf, hash) {
            Ok(slot) => {
                let next = self.slot(Table::Leaf, slot) & NUMBER_MASK;
                let word = u64::from(lineage.0) | u64::from(next) << 32;
                self.words.set(record(number as usize - 1), word);
                slot
            }
            Err(slot) => {
                self.leaves += 1;
                slot
            }
        };
        self.set_slot(Table::Leaf, slot, tag(hash) | number);
    }

    fn hash_of_block(&self, lineage: LineageId, lba: Lba) -> u64 {
        mix(self.seed, lba.0, u64::from(lineage.0))
    }

    fn hash_of_leaf(&self, lineage: LineageId, leaf: u64) -> u64 {
        mix(!self.seed, leaf, u64::from(lineage.0))
    }

    /// Slots of each table.
    fn slots(&self) -> usize {
        self.capacity * SLOTS_PER_RECORD
    }

    /// The word and the bit where a slot begins.
    fn place_of(&self, table: Table, slot: usize) -> (usize, usize) {
        let table = match table {
            Table::Block => record(self.capacity),
            Table::Leaf => record(self.capacity) + self.capacity,
        };
        (table + slot / 2, slot % 2 * 32)
    }

    #[inline]
    fn slot(&self, table: Table, slot: usize) -> Slot {
        let (word, bit) = self.place_of(table, slot);
        (self.words.get(word) >> bit) as Slot
    }

    fn set_slot(&mut self, table: Table, slot: usize, content: Slot) {
        let (word, bit) = self.place_of(table, slot);
        let other = self.words.get(word) & !(u64::from(u32::MAX) << bit);
        self.words.set(word, other | u64::from(content) << bit);
    }

    #[inline]
    fn key(&self, at: usize) -> (LineageId, Lba) {
        let lineage = LineageId(self.words.get(record(at)) as u32);
        (lineage, Lba(self.words.get(record(at) + 1)))
    }

    /// The next record of the same leaf, plus one; 0 at the end.
    fn next(&self, at: usize) -> u32 {
        (self.words.get(record(at)) >> 32) as u32
    }

    #[inline]
    fn delta(&self, at: usize) -> Delta {
        let rest = self.words.get(record(at) + 3);
        let entry = Entry { address: self.words.get(record(at) + 2), checksum: rest as u32 };
        Delta { lba: self.key(at).1, entry, ordinal: (rest >> 32) as u32 }
    }

    fn set_entry(&mut self, at: usize, entry: Entry, ordinal: u32) {
        self.words.set(record(at) + 2, entry.address);
        let rest = u64::from(entry.checksum) | u64::from(ordinal) << 32;
        self.words.set(record(at) + 3, rest);
    }
}

/// The first word of a record.
#[inline]
const fn record(at: usize) -> usize {
    HEADER_WORDS + at * RECORD_WORDS
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
