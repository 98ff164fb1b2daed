//! A cache of pages of the map, by their address.
//!
//! Addresses are never used again, so a cached page never grows stale; a page is dropped only to
//! make room (CLOCK: one that was not looked up since the hand last passed), or because its owner
//! says so.
//!
//! Invariants: an address is in at most one frame; a pinned frame keeps its page; the table names
//! every frame that holds a page, each reachable from the slot of its address without a gap.

use super::{mix, slot_of};

/// Bytes in a frame: one page of the map.
pub const FRAME_BYTES: usize = 4096;

/// One place in the cache. Names the page that was looked up or inserted only until the next
/// insertion, unless it is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(u32);

#[derive(Clone, Copy, Default)]
struct Frame {
    address: u64,
    pins: u32,
    is_used: bool,
    was_looked_up: bool,
}

/// The cache.
pub struct Frames {
    /// Longer than the frames by what aligning the first of them takes.
    bytes: Vec<u8>,
    skip: usize,
    frames: Vec<Frame>,
    /// Frame number plus one, or 0. Twice as many slots as frames.
    table: Vec<u32>,
    hand: usize,
    used: usize,
    seed: u64,
}

impl Frames {
    /// A cache of `count` frames, all empty.
    ///
    /// # Panics
    /// If there is not one frame, or more than can be numbered.
    #[must_use]
    pub fn new(count: usize, seed: u64) -> Frames {
        assert!(count > 0 && count < u32::MAX as usize / 4, "{count} frames");
        let bytes = vec![0; (count + 1) * FRAME_BYTES];
        let skip = bytes.as_ptr().align_offset(FRAME_BYTES);
        assert!(skip < FRAME_BYTES, "memory can be aligned");
        Frames {
            bytes,
            skip,
            frames: vec![Frame::default(); count],
            table: vec![0; count * 2],
            hand: 0,
            used: 0,
            seed,
        }
    }

    /// Number of frames.
    #[must_use]
    pub fn count(&self) -> usize {
        self.frames.len()
    }

    /// Number of frames that hold a page.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// The frame that holds a page.
    pub fn get(&mut self, address: u64) -> Option<FrameId> {
        let slot = self.find(address).ok()?;
        let number = self.table[slot] - 1;
        self.frames[number as usize].was_looked_up = true;
        Some(FrameId(number))
    }

    /// A frame for a page that is not in the cache; its bytes are for the caller to fill. Another
    /// page may go. None if every frame is pinned.
    ///
    /// # Panics
    /// If the page is in the cache.
    pub fn insert(&mut self, address: u64) -> Option<FrameId> {
        assert!(self.find(address).is_err(), "page {address:#x} is in the cache");
        let number = self.victim()?;
        if self.frames[number].is_used {
            self.forget(number);
        }
        // Looked for again: dropping the victim may have moved the free slot.
        let slot = self.find(address).err()?;
        self.table[slot] = number as u32 + 1;
        self.frames[number] = Frame { address, is_used: true, ..Frame::default() };
        self.used += 1;
        Some(FrameId(number as u32))
    }

    /// Drops a page. Returns whether it was there.
    ///
    /// # Panics
    /// If it is pinned.
    pub fn remove(&mut self, address: u64) -> bool {
        let Ok(slot) = self.find(address) else { return false };
        let number = self.table[slot] as usize - 1;
        assert_eq!(self.frames[number].pins, 0, "page {address:#x} is pinned");
        self.forget(number);
        true
    }

    /// Keeps a frame's page until as many calls of [`Frames::unpin`].
    ///
    /// # Panics
    /// If the frame holds no page.
    pub fn pin(&mut self, frame: FrameId) {
        let frame = &mut self.frames[frame.0 as usize];
        assert!(frame.is_used, "an empty frame is pinned");
        frame.pins += 1;
    }

    /// Takes one pin back.
    ///
    /// # Panics
    /// If the frame is not pinned.
    pub fn unpin(&mut self, frame: FrameId) {
        let frame = &mut self.frames[frame.0 as usize];
        assert!(frame.pins > 0, "a frame is unpinned more often than pinned");
        frame.pins -= 1;
    }

    /// The address of the page a frame holds.
    #[must_use]
    pub fn address(&self, frame: FrameId) -> Option<u64> {
        let frame = &self.frames[frame.0 as usize];
        frame.is_used.then_some(frame.address)
    }

    /// The page in a frame.
    #[must_use]
    pub fn bytes(&self, frame: FrameId) -> &[u8] {
        let start = self.skip + frame.0 as usize * FRAME_BYTES;
        &self.bytes[start..start + FRAME_BYTES]
    }

    /// The page in a frame, to be filled or changed.
    pub fn bytes_mut(&mut self, frame: FrameId) -> &mut [u8] {
        let start = self.skip + frame.0 as usize * FRAME_BYTES;
        &mut self.bytes[start..start + FRAME_BYTES]
    }

    /// The next frame that may be taken: empty, or not pinned and not looked up since the hand last
    /// passed. Two rounds find one if there is one.
    fn victim(&mut self) -> Option<usize> {
        for _ in 0..2 * self.frames.len() {
            let number = self.hand;
            self.hand = if number + 1 == self.frames.len() { 0 } else { number + 1 };
            let frame = &mut self.frames[number];
            if !frame.is_used {
                return Some(number);
            }
            if frame.pins == 0 && !std::mem::take(&mut frame.was_looked_up) {
                return Some(number);
            }
        }
        None
    }

    /// The slot that names the address, or the free slot where its search ends.
    fn find(&self, address: u64) -> Result<usize, usize> {
        let mut slot = self.home(address);
        loop {
            match self.table[slot] {
                0 => return Err(slot),
                number if self.frames[number as usize - 1].address == address => return Ok(slot),
                _ => slot = self.after(slot),
            }
        }
    }

    /// Takes a frame out of the table and closes the gap: each later entry of the run moves back
    /// unless that would put it before its home.
    fn forget(&mut self, number: usize) {
        let Ok(mut gap) = self.find(self.frames[number].address) else {
            unreachable!("a used frame is in the table")
        };
        let mut slot = gap;
        loop {
            slot = self.after(slot);
            let content = self.table[slot];
            if content == 0 {
                break;
            }
            let home = self.home(self.frames[content as usize - 1].address);
            if self.distance(home, slot) >= self.distance(gap, slot) {
                self.table[gap] = content;
                gap = slot;
            }
        }
        self.table[gap] = 0;
        self.frames[number] = Frame::default();
        self.used -= 1;
    }

    fn home(&self, address: u64) -> usize {
        slot_of(mix(self.seed, address, 0), self.table.len())
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.table.len() { 0 } else { slot + 1 }
    }

    /// Steps from one slot forward to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.table.len() - from }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::random::Random;
    use super::*;

    fn fill(frames: &mut Frames, frame: FrameId, address: u64) {
        frames.bytes_mut(frame).fill(address as u8);
        frames.bytes_mut(frame)[..8].copy_from_slice(&address.to_le_bytes());
    }

    fn check(frames: &mut Frames, model: &BTreeMap<u64, u32>, span: u64) {
        let mut found = 0;
        for address in 0..span {
            match frames.find(address) {
                Ok(slot) => {
                    let frame = FrameId(frames.table[slot] - 1);
                    assert_eq!(frames.address(frame), Some(address));
                    assert_eq!(frames.bytes(frame)[..8], address.to_le_bytes());
                    assert_eq!(frames.bytes(frame)[FRAME_BYTES - 1], address as u8);
                    found += 1;
                }
                Err(_) => assert!(!model.contains_key(&address), "a pinned page is gone"),
            }
        }
        assert_eq!(found, frames.used());
        assert_eq!(frames.table.iter().filter(|slot| **slot != 0).count(), frames.used());
    }

    #[test]
    fn agrees_with_a_map_and_keeps_what_is_pinned() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let count = 1 + random.below(24) as usize;
            let span = 80;
            let mut frames = Frames::new(count, random.next());
            let mut pinned: BTreeMap<u64, u32> = BTreeMap::new();
            for _ in 0..600 {
                let address = random.below(span);
                match (frames.get(address), random.below(6)) {
                    (Some(frame), 0) => {
                        frames.pin(frame);
                        *pinned.entry(address).or_default() += 1;
                    }
                    (Some(frame), 1 | 2) if pinned.contains_key(&address) => {
                        frames.unpin(frame);
                        pinned.entry(address).and_modify(|pins| *pins -= 1);
                        pinned.retain(|_, pins| *pins > 0);
                    }
                    (Some(_), 3) if !pinned.contains_key(&address) => {
                        assert!(frames.remove(address));
                        assert!(!frames.remove(address));
                    }
                    (Some(frame), _) => assert_eq!(frames.address(frame), Some(address)),
                    (None, _) => match frames.insert(address) {
                        Some(frame) => fill(&mut frames, frame, address),
                        None => assert_eq!(pinned.len(), count, "refused with a free frame"),
                    },
                }
                check(&mut frames, &pinned, span);
            }
        }
    }

    #[test]
    fn the_hand_spares_what_was_looked_up() {
        let mut frames = Frames::new(8, 1);
        for address in 0..8 {
            frames.insert(address).unwrap();
        }
        frames.get(0).unwrap();
        frames.get(3).unwrap();
        for address in 8..14 {
            frames.insert(address).unwrap();
        }
        assert!(frames.find(0).is_ok() && frames.find(3).is_ok());
        assert!((8..14).all(|address| frames.find(address).is_ok()));
        assert!([1, 2, 4, 5, 6, 7].iter().all(|address| frames.find(*address).is_err()));
    }

    #[test]
    fn pages_are_aligned() {
        let mut frames = Frames::new(3, 1);
        for address in 0..3 {
            let frame = frames.insert(address).unwrap();
            assert_eq!(frames.bytes(frame).as_ptr().align_offset(FRAME_BYTES), 0);
        }
    }

    #[test]
    #[should_panic(expected = "is in the cache")]
    fn a_page_is_cached_once() {
        let mut frames = Frames::new(3, 1);
        frames.insert(7).unwrap();
        let _ = frames.insert(7);
    }
}
