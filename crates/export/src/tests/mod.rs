//! Sessions over disks over a store that is a map of blocks, driven by a loop that is a test.

mod adoption;
mod client;
mod disconnect;
mod dropping;
mod fragments;
mod memory;
mod requests;
mod rig;
mod rings;
mod room;
mod store;
mod volume;

/// Numbers that are the same for the same seed, for ever (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Bytes none of which is zero.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&(self.next() | 0x0101_0101_0101_0101).to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}
