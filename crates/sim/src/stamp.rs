//! What the simulated guests write: blocks that say, in every sector, which write they are.
//!
//! A sector that is torn, misplaced, stale or foreign cannot pass for another: each is filled from
//! {run, number of the write, disk, block, sector} to its last word.

use crate::platter::{PAGE, SECTOR};
use crate::rng::mix;

const WORDS: usize = SECTOR / 8;
const FILL: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which write a block comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// The run.
    pub run: u64,
    /// The number of the write in the run, from 1.
    pub number: u64,
    /// The disk.
    pub disk: u32,
    /// The block on the disk.
    pub lba: u64,
}

/// What a block that was read turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Zeros.
    Zeros,
    /// The block of one write, whole.
    Data(Stamp),
    /// Anything else: from this sector on it is not what its first sector says.
    Broken {
        /// What the first sector claims.
        claim: Stamp,
        /// The first sector that does not agree.
        sector: usize,
    },
}

impl Stamp {
    /// Fills a block.
    pub fn fill(self, page: &mut [u8]) {
        for (sector, bytes) in page.chunks_exact_mut(SECTOR).enumerate() {
            let words = self.words(sector);
            for (word, bytes) in words.iter().zip(bytes.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    fn words(self, sector: usize) -> [u64; WORDS] {
        let place = (u64::from(self.disk) << 32) | sector as u64;
        let start = mix(self.run ^ mix(self.number ^ mix(self.lba ^ mix(place))));
        let mut words = [0; WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = start.wrapping_add(FILL.wrapping_mul(index as u64)) | 1;
        }
        words[0] = self.run | 1 << 63;
        words[1] = self.number;
        words[2] = place;
        words[3] = self.lba;
        words
    }
}

/// Reads the stamp of a block and verifies all of it.
///
/// # Panics
/// If `page` is not a block.
#[must_use]
pub fn identify(page: &[u8]) -> Seen {
    assert_eq!(page.len(), PAGE, "a block");
    if page[0] == 0 && page.iter().all(|&byte| byte == 0) {
        return Seen::Zeros;
    }
    let word = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&page[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    let disk = (word(2) >> 32) as u32;
    let claim = Stamp { run: word(0) & !(1 << 63), number: word(1), disk, lba: word(3) };
    let mut right = [0; PAGE];
    claim.fill(&mut right);
    if right == page {
        return Seen::Data(claim);
    }
    let differs = right.iter().zip(page).position(|(right, found)| right != found);
    Seen::Broken { claim, sector: differs.unwrap_or(0) / SECTOR }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { run: 9, number: 77, disk: 2, lba: 1 << 40 };

    #[test]
    fn a_block_tells_which_write_it_is() {
        let mut page = [0; PAGE];
        assert_eq!(identify(&page), Seen::Zeros);
        STAMP.fill(&mut page);
        assert_eq!(identify(&page), Seen::Data(STAMP));
    }

    #[test]
    fn any_wrong_byte_is_seen_and_the_sector_named() {
        let mut page = [0; PAGE];
        STAMP.fill(&mut page);
        for at in [0, 8, 511, 512, 4095] {
            let mut other = page;
            other[at] ^= 4;
            match identify(&other) {
                Seen::Broken { sector, .. } => assert!(at < SECTOR || sector == at / SECTOR),
                seen => panic!("byte {at}: {seen:?}"),
            }
        }
    }

    #[test]
    fn sectors_of_two_writes_are_no_block() {
        let (mut one, mut two) = ([0; PAGE], [0; PAGE]);
        STAMP.fill(&mut one);
        Stamp { number: 78, ..STAMP }.fill(&mut two);
        one[1024..1536].copy_from_slice(&two[1024..1536]);
        assert_eq!(identify(&one), Seen::Broken { claim: STAMP, sector: 2 });
        let mut half = [0; PAGE];
        half[2048..].copy_from_slice(&two[2048..]);
        assert!(matches!(identify(&half), Seen::Broken { .. }));
    }
}
