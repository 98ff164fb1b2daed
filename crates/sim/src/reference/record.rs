//! What the log of the reference store is made of.

use twox_hash::XxHash3_64;

use crate::platter::PAGE;

pub const MAGIC: u64 = u64::from_le_bytes(*b"simplest");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub number: u64,
    pub chain: u64,
    pub kind: u64,
    pub disk: u64,
    pub lba: u64,
    pub blocks: u64,
    pub data_sum: u64,
}

pub const NOTHING: u64 = 0;
pub const WRITE: u64 = 1;
pub const ZERO: u64 = 2;
pub const HOLE: u64 = 3;
pub const DISK: u64 = 4;
pub const GONE: u64 = 5;

impl Header {
    pub fn encode(self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let words =
            [self.number, self.chain, self.kind, self.disk, self.lba, self.blocks, self.data_sum];
        for (index, word) in words.into_iter().enumerate() {
            page[16 + index * 8..24 + index * 8].copy_from_slice(&word.to_le_bytes());
        }
        page[..8].copy_from_slice(&MAGIC.to_le_bytes());
        let sum = XxHash3_64::oneshot(&page[16..]);
        page[8..16].copy_from_slice(&sum.to_le_bytes());
        page
    }

    pub fn decode(page: &[u8]) -> Option<Header> {
        let word =
            |index: usize| page[index * 8..index * 8 + 8].try_into().map(u64::from_le_bytes).ok();
        if word(0)? != MAGIC || word(1)? != XxHash3_64::oneshot(&page[16..PAGE]) {
            return None;
        }
        Some(Header {
            number: word(2)?,
            chain: word(3)?,
            kind: word(4)?,
            disk: word(5)?,
            lba: word(6)?,
            blocks: word(7)?,
            data_sum: word(8)?,
        })
    }

    pub fn sum(self) -> u64 {
        XxHash3_64::oneshot(&self.encode())
    }

    pub fn data_blocks(self) -> u64 {
        if self.kind == WRITE { self.blocks } else { 0 }
    }
}
