//! Large changes of the map that are not folded yet: runs that were discarded, zeroed or reserved.
//!
//! A run of any length is one record, so discarding a terabyte costs what discarding a block does.
//! [`Deltas`](super::Deltas) holds the small changes; of the two the later one holds ([`newest`]).
//!
//! Invariants: runs are sorted by lineage and first block, none is empty, no two overlap, and no
//! two that touch are equal in state and ordinal.

use super::{Delta, Entry, State};
use crate::{Lba, LineageId};

/// A run of blocks that all became the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Whose blocks.
    pub lineage: LineageId,
    /// The first block.
    pub start: Lba,
    /// The block after the last.
    pub end: Lba,
    /// Hole, zero or reserved.
    pub state: State,
    /// The place of the change in the order of its generation.
    pub ordinal: u32,
}

/// One generation of large changes.
pub struct Ranges {
    ranges: Vec<Range>,
    capacity: usize,
}

/// What a generation says of a block, given both of its halves: the later change holds. None if it
/// says nothing.
#[must_use]
pub fn newest(delta: Option<Delta>, range: Option<Range>) -> Option<Entry> {
    match (delta, range) {
        (Some(delta), Some(range)) if delta.ordinal >= range.ordinal => Some(delta.entry),
        (_, Some(range)) => Entry::of_state(range.state),
        (Some(delta), None) => Some(delta.entry),
        (None, None) => None,
    }
}

impl Ranges {
    /// An empty generation for up to `capacity` runs.
    ///
    /// # Panics
    /// If the capacity is below 3: what the first insertion into the middle of a run makes.
    #[must_use]
    pub fn new(capacity: usize) -> Ranges {
        assert!(capacity >= 3, "ranges need room to split");
        Ranges { ranges: Vec::new(), capacity }
    }

    /// Number of runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are no runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the next insertion might not fit: it can add two runs, itself and half of a run it
    /// splits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.has_room(1)
    }

    /// Whether so many more fit, each of which may cut an older one in two.
    #[must_use]
    pub fn has_room(&self, ranges: usize) -> bool {
        self.ranges.len() + 2 * ranges <= self.capacity
    }

    /// Notes that `blocks` blocks from `lba` became `state`, over whatever was noted before.
    ///
    /// # Panics
    /// If the generation is full, the run is empty or past the end of all blocks, or the state
    /// needs an address.
    pub fn insert(
        &mut self,
        lineage: LineageId,
        lba: Lba,
        blocks: u64,
        state: State,
        ordinal: u32,
    ) {
        assert!(!self.is_full(), "the generation is full");
        assert!(Entry::of_state(state).is_some(), "a run of {state:?} needs an address");
        let end = lba.0.checked_add(blocks).map(Lba);
        let end = end.filter(|_| blocks > 0).unwrap_or_else(|| panic!("{blocks} blocks at {lba}"));
        let mut new = Range { lineage, start: lba, end, state, ordinal };
        let first = self.first_ending_after(lineage, lba);
        let last = self.first_starting_from(lineage, end);
        let before = self.ranges[first..last].first().and_then(|old| old.cut(old.start, lba));
        let after = self.ranges[first..last].last().and_then(|old| old.cut(end, old.end));
        let (mut from, mut to) = (first, last);
        let left = before.or_else(|| self.neighbour(from.checked_sub(1)));
        let right = after.or_else(|| self.neighbour(Some(to)));
        let (mut keep_before, mut keep_after) = (before, after);
        if let Some(left) = left.filter(|left| left.touches(&new)) {
            new.start = left.start;
            from -= usize::from(keep_before.take().is_none());
        }
        if let Some(right) = right.filter(|right| new.touches(right)) {
            new.end = right.end;
            to += usize::from(keep_after.take().is_none());
        }
        let replacement = [keep_before, Some(new), keep_after];
        self.ranges.splice(from..to, replacement.into_iter().flatten());
        debug_assert!(self.ranges.len() <= self.capacity);
    }

    /// The run that holds a block.
    #[must_use]
    pub fn get(&self, lineage: LineageId, lba: Lba) -> Option<Range> {
        let found = self.ranges.get(self.first_ending_after(lineage, lba))?;
        (found.lineage == lineage && found.start <= lba).then_some(*found)
    }

    /// The runs that overlap `start..end`, cut to it, in order.
    pub fn overlapping(
        &self,
        lineage: LineageId,
        start: Lba,
        end: Lba,
    ) -> impl Iterator<Item = Range> + '_ {
        let first = self.first_ending_after(lineage, start);
        self.ranges[first..]
            .iter()
            .take_while(move |range| range.lineage == lineage && range.start < end)
            .filter_map(move |range| range.cut(range.start.max(start), range.end.min(end)))
    }

    /// All runs, by lineage and first block.
    #[must_use]
    pub fn all(&self) -> &[Range] {
        &self.ranges
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    fn first_ending_after(&self, lineage: LineageId, lba: Lba) -> usize {
        self.ranges.partition_point(|range| (range.lineage, range.end) <= (lineage, lba))
    }

    fn first_starting_from(&self, lineage: LineageId, lba: Lba) -> usize {
        self.ranges.partition_point(|range| (range.lineage, range.start) < (lineage, lba))
    }

    fn neighbour(&self, at: Option<usize>) -> Option<Range> {
        self.ranges.get(at?).copied()
    }
}

impl Range {
    /// The part of the run from `start` to `end`; none if that is nothing.
    fn cut(&self, start: Lba, end: Lba) -> Option<Range> {
        (start < end).then_some(Range { start, end, ..*self })
    }

    /// Whether `next` goes on where this run ends, and says the same.
    fn touches(&self, next: &Range) -> bool {
        self.end == next.start
            && (self.lineage, self.state, self.ordinal) == (next.lineage, next.state, next.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::random::Random;
    use super::*;
    use crate::SegmentId;

    const SPAN: u64 = 96;
    const LINEAGES: u64 = 3;

    type Model = BTreeMap<(u32, u64), (State, u32)>;

    fn check(ranges: &Ranges, model: &Model) {
        for (lineage, lba) in (0..LINEAGES as u32 + 1).flat_map(|l| (0..SPAN).map(move |b| (l, b)))
        {
            let found = ranges.get(LineageId(lineage), Lba(lba));
            assert_eq!(found.map(|f| (f.state, f.ordinal)), model.get(&(lineage, lba)).copied());
            assert!(found.is_none_or(|f| f.start.0 <= lba && lba < f.end.0));
        }
        for pair in ranges.all().windows(2) {
            let (one, two) = (pair[0], pair[1]);
            assert!((one.lineage, one.end) <= (two.lineage, two.start), "sorted and apart");
            assert!(!one.touches(&two), "equal neighbours are one");
        }
        assert!(ranges.all().iter().all(|range| range.start < range.end));
    }

    #[test]
    fn agrees_with_a_map_of_single_blocks() {
        for seed in 0..60 {
            let mut random = Random(seed);
            let mut ranges = Ranges::new(40);
            let mut model = Model::new();
            for ordinal in 0..200u32 {
                if ranges.is_full() {
                    ranges.clear();
                    model.clear();
                }
                let lineage = random.below(LINEAGES) as u32;
                let start = random.below(SPAN);
                let blocks = 1 + random.below(SPAN - start);
                let state = [State::Hole, State::Zero, State::Reserved][random.below(3) as usize];
                let ordinal = ordinal / 4;
                ranges.insert(LineageId(lineage), Lba(start), blocks, state, ordinal);
                for lba in start..start + blocks {
                    model.insert((lineage, lba), (state, ordinal));
                }
                check(&ranges, &model);
                assert!(ranges.len() <= 40);
                let (from, to) = (random.below(SPAN), random.below(SPAN));
                let found: Vec<(u64, State, u32)> = ranges
                    .overlapping(LineageId(lineage), Lba(from), Lba(to))
                    .flat_map(|r| (r.start.0..r.end.0).map(move |lba| (lba, r.state, r.ordinal)))
                    .collect();
                let wanted: Vec<(u64, State, u32)> = (from..to.max(from))
                    .filter_map(|lba| model.get(&(lineage, lba)).map(|m| (lba, m.0, m.1)))
                    .collect();
                assert_eq!(found, wanted);
            }
        }
    }

    #[test]
    fn pieces_of_one_change_become_one_run() {
        let mut ranges = Ranges::new(8);
        for piece in [0, 2, 1] {
            ranges.insert(LineageId(0), Lba(piece << 30), 1 << 30, State::Hole, 5);
        }
        assert_eq!(ranges.len(), 1);
        ranges.insert(LineageId(0), Lba(3 << 30), 1 << 30, State::Hole, 6);
        assert_eq!(ranges.len(), 2, "a later change stays apart: writes may lie between the two");
    }

    #[test]
    fn the_later_change_holds() {
        let data = Entry::data(SegmentId(3), 4, 5);
        let delta = |ordinal| Some(Delta { lba: Lba(1), entry: data, ordinal });
        let mut ranges = Ranges::new(8);
        ranges.insert(LineageId(0), Lba(0), 9, State::Zero, 10);
        let range = ranges.get(LineageId(0), Lba(1));
        assert_eq!(newest(delta(9), range), Some(Entry::ZERO));
        assert_eq!(newest(delta(11), range), Some(data));
        assert_eq!(newest(None, range), Some(Entry::ZERO));
        assert_eq!(newest(delta(0), None), Some(data));
        assert_eq!(newest(None, None), None);
    }
}
