//! Pages of the map: a radix tree, each page 340 entries of 12 bytes.
//!
//! ```text
//! 0    level (0 = leaf), version, lineage, index of the page in its level
//! 16   340 entries: address u64, checksum u32
//! ```
//!
//! The checksum of a page is in its parent's entry, that of a root in the catalogue.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::prefix;
use crate::LineageId;
use crate::tables::{Entry, LEAF_ENTRIES};

/// Entries in a page, at every level.
pub(crate) const FANOUT: u64 = LEAF_ENTRIES;
const HEAD_BYTES: usize = 16;
const MAGIC: u8 = 0xB7;
const VERSION: u8 = 1;

const _: () = assert!(HEAD_BYTES + FANOUT as usize * Entry::BYTES == 4096);

/// Blocks under one entry of a page at `level`.
pub(crate) fn span_of_level(level: u8) -> u64 {
    FANOUT.pow(u32::from(level))
}

/// What a page says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageHead {
    pub level: u8,
    pub lineage: LineageId,
    /// Which page of its level it is.
    pub index: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: u8,
    version: u8,
    level: u8,
    reserved: u8,
    lineage: U32,
    index: U64,
}

const _: () = assert!(size_of::<Raw>() == HEAD_BYTES);

/// A page to read.
#[derive(Clone, Copy)]
pub(crate) struct PageRef<'a>(pub &'a [u8]);

impl PageRef<'_> {
    /// What the page says of itself; none if it is no map page.
    pub(crate) fn head(&self) -> Option<PageHead> {
        let raw = prefix::<Raw>(self.0)?;
        (raw.magic == MAGIC && raw.version == VERSION).then(|| PageHead {
            level: raw.level,
            lineage: LineageId(raw.lineage.get()),
            index: raw.index.get(),
        })
    }

    /// Entry `index`, below [`FANOUT`].
    pub(crate) fn entry(&self, index: usize) -> Entry {
        let at = HEAD_BYTES + index * Entry::BYTES;
        let mut bytes = [0; Entry::BYTES];
        bytes.copy_from_slice(&self.0[at..at + Entry::BYTES]);
        Entry::decode(&bytes)
    }
}

/// A page to change.
pub(crate) struct PageMut<'a>(pub &'a mut [u8]);

impl PageMut<'_> {
    /// Makes the page one in which all entries are `fill`.
    pub(crate) fn format(&mut self, head: PageHead, fill: Entry) {
        let raw = Raw {
            magic: MAGIC,
            version: VERSION,
            level: head.level,
            reserved: 0,
            lineage: head.lineage.0.into(),
            index: head.index.into(),
        };
        self.0[..HEAD_BYTES].copy_from_slice(raw.as_bytes());
        for index in 0..FANOUT as usize {
            self.set(index, fill);
        }
    }

    /// Sets entry `index`, below [`FANOUT`].
    pub(crate) fn set(&mut self, index: usize, entry: Entry) {
        let at = HEAD_BYTES + index * Entry::BYTES;
        self.0[at..at + Entry::BYTES].copy_from_slice(&entry.encode());
    }
}
