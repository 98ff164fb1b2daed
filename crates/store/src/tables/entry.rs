//! What the map says of one block: where it is, or that there is nothing to find.
//!
//! The address is one word: 4 bits of state, 46 of segment id, 14 of index in the segment. Segment
//! ids are never used again, so an address names the same bytes for ever.

use crate::SegmentId;

/// Entries in a leaf page of the map.
pub const LEAF_ENTRIES: u64 = 340;
/// Blocks a segment can have.
pub const SEGMENT_BLOCKS_MAX: u32 = 1 << INDEX_BITS;
/// The highest segment id an address can hold.
pub const SEGMENT_ID_MAX: u64 = (1 << SEGMENT_BITS) - 1;

const INDEX_BITS: u32 = 14;
const SEGMENT_BITS: u32 = 46;
const STATE_SHIFT: u32 = INDEX_BITS + SEGMENT_BITS;
const _: () = assert!(STATE_SHIFT == 60);

/// The leaf page that holds the entry of a block.
#[inline]
#[must_use]
pub fn leaf_of(lba: crate::Lba) -> u64 {
    lba.0 / LEAF_ENTRIES
}

/// What an address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing was written, or it was discarded. Reads as zeros.
    Hole,
    /// Zeros that keep their reservation.
    Zero,
    /// A block of data.
    Data,
    /// Space set aside, never written. Reads as zeros.
    Reserved,
    /// A page of the map below this one.
    Page,
    /// Given up by a repair: what was there cannot be found. Reads fail, never give zeros.
    Lost,
}

/// One entry of the map.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Entry {
    /// State, segment and index in one word.
    pub address: u64,
    /// Checksum of the block or page the address names; 0 where it names none.
    pub checksum: u32,
}

impl Entry {
    /// Bytes of an entry in a page of the map.
    pub const BYTES: usize = 12;
    /// A block that was never written, or discarded.
    pub const HOLE: Entry = Entry::without_address(State::Hole);
    /// A block of zeros that keeps its reservation.
    pub const ZERO: Entry = Entry::without_address(State::Zero);
    /// A block that is set aside and was never written.
    pub const RESERVED: Entry = Entry::without_address(State::Reserved);
    /// A block that was given up.
    pub const LOST: Entry = Entry::without_address(State::Lost);

    const fn without_address(state: State) -> Entry {
        Entry { address: state_bits(state) << STATE_SHIFT, checksum: 0 }
    }

    /// A block of data.
    ///
    /// # Panics
    /// If the segment id or the index does not fit.
    #[must_use]
    pub fn data(segment: SegmentId, index: u32, checksum: u32) -> Entry {
        Entry { address: address(State::Data, segment, index), checksum }
    }

    /// A page of the map.
    ///
    /// # Panics
    /// If the segment id or the index does not fit.
    #[must_use]
    pub fn page(segment: SegmentId, index: u32, checksum: u32) -> Entry {
        Entry { address: address(State::Page, segment, index), checksum }
    }

    /// The entry for a state that has no address; none for the states that need one.
    #[must_use]
    pub fn of_state(state: State) -> Option<Entry> {
        match state {
            State::Hole | State::Zero | State::Reserved | State::Lost => {
                Some(Entry::without_address(state))
            }
            State::Data | State::Page => None,
        }
    }

    /// What the entry says; none if its bits mean nothing: the page it was read from is damaged.
    #[inline]
    #[must_use]
    pub fn state(self) -> Option<State> {
        let state = match self.address >> STATE_SHIFT {
            0 => State::Hole,
            1 => State::Zero,
            2 => return Some(State::Data),
            3 => State::Reserved,
            4 => return Some(State::Page),
            5 => State::Lost,
            _ => return None,
        };
        (self == Entry::without_address(state)).then_some(state)
    }

    /// Whether the entry names bytes in a segment.
    #[inline]
    #[must_use]
    pub fn has_address(self) -> bool {
        matches!(self.address >> STATE_SHIFT, 2 | 4)
    }

    /// The segment. Means something only if the entry has an address.
    #[inline]
    #[must_use]
    pub fn segment(self) -> SegmentId {
        SegmentId((self.address >> INDEX_BITS) & SEGMENT_ID_MAX)
    }

    /// The index in the segment, below [`SEGMENT_BLOCKS_MAX`].
    #[inline]
    #[must_use]
    pub fn index(self) -> u32 {
        (self.address & u64::from(SEGMENT_BLOCKS_MAX - 1)) as u32
    }

    /// The entry as bytes of a page.
    #[must_use]
    pub fn encode(self) -> [u8; Entry::BYTES] {
        let mut bytes = [0; Entry::BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// The entry that bytes of a page hold, not judged: [`Entry::state`] does that.
    #[inline]
    #[must_use]
    pub fn decode(bytes: &[u8; Entry::BYTES]) -> Entry {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Entry {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            checksum: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

const fn state_bits(state: State) -> u64 {
    match state {
        State::Hole => 0,
        State::Zero => 1,
        State::Data => 2,
        State::Reserved => 3,
        State::Page => 4,
        State::Lost => 5,
    }
}

#[inline]
fn address(state: State, segment: SegmentId, index: u32) -> u64 {
    assert!(segment.0 <= SEGMENT_ID_MAX, "segment id {segment} does not fit an address");
    assert!(index < SEGMENT_BLOCKS_MAX, "index {index} does not fit an address");
    state_bits(state) << STATE_SHIFT | segment.0 << INDEX_BITS | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_address_comes_back() {
        for segment in [0, 1, 77, SEGMENT_ID_MAX - 1, SEGMENT_ID_MAX] {
            for index in [0, 1, 339, SEGMENT_BLOCKS_MAX - 1] {
                let entry = Entry::data(SegmentId(segment), index, 0xdead_beef);
                assert_eq!(entry.state(), Some(State::Data));
                assert_eq!((entry.segment(), entry.index()), (SegmentId(segment), index));
                assert!(entry.has_address());
                assert_eq!(Entry::decode(&entry.encode()), entry);
                let page = Entry::page(SegmentId(segment), index, 0xdead_beef);
                assert_eq!(page.state(), Some(State::Page));
                assert_eq!((page.segment(), page.index()), (SegmentId(segment), index));
                assert_ne!(page.address, entry.address);
            }
        }
    }

    #[test]
    fn states_without_an_address_are_told_apart() {
        for state in [State::Hole, State::Zero, State::Reserved, State::Lost] {
            let entry = Entry::of_state(state).unwrap();
            assert_eq!(entry.state(), Some(state));
            assert!(!entry.has_address());
        }
        assert_eq!(Entry::of_state(State::Data), None);
        assert_eq!(Entry::HOLE.encode(), [0; 12], "a zeroed page is all holes");
    }

    #[test]
    fn bits_that_mean_nothing_have_no_state() {
        assert_eq!(Entry { address: 6 << 60, checksum: 0 }.state(), None);
        assert_eq!(Entry { address: u64::MAX, checksum: 0 }.state(), None);
        assert_eq!(Entry { address: 1, checksum: 0 }.state(), None, "a hole with an index");
        assert_eq!(Entry { address: 0, checksum: 1 }.state(), None, "a hole with a checksum");
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_segment_id_that_does_not_fit_is_refused() {
        let _ = Entry::data(SegmentId(SEGMENT_ID_MAX + 1), 0, 0);
    }
}
