//! What a simulated device stores: durable blocks, and over them a volatile cache that a host crash
//! loses, keeps, reorders or tears.
//!
//! Invariants:
//! - A block's content now is its newest version, or the durable one if there is none.
//! - What a host crash leaves of a block is, sector by sector, the durable content or one of the
//!   versions that completed after it. No other bytes ever appear.
//! - A version becomes durable only through a flush submitted after the version's write completed.

use std::rc::Rc;

use crate::Random;

/// Bytes of a block of the medium.
pub const PAGE: usize = 4096;
/// Bytes that a device writes all or none of.
pub const SECTOR: usize = 512;
const CHUNK: usize = 64;

/// The bytes of a block; none are zeros.
pub type Content = Option<Rc<[u8; PAGE]>>;

#[derive(Debug, Clone)]
struct Version {
    stamp: u64,
    content: Content,
    /// A failed flush has dropped it from the cache without writing it: later flushes say nothing
    /// about it.
    doomed: bool,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    durable: Content,
    newer: Vec<Version>,
}

/// How a host crash treats the volatile cache.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Everything,
    Nothing,
    ByBlock,
    BySector,
    ByWrite(u64),
    After(u64),
    Before(u64),
}

/// The blocks of one device.
#[derive(Debug, Clone)]
pub struct Platter {
    chunks: Vec<Option<Box<[Cell; CHUNK]>>>,
    blocks: u64,
    volatile: Vec<u64>,
    stamp: u64,
}

impl Platter {
    /// A device full of zeros.
    #[must_use]
    pub fn new(blocks: u64) -> Platter {
        Platter { chunks: Vec::new(), blocks, volatile: Vec::new(), stamp: 0 }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Makes the device larger, or cuts it off.
    pub fn resize(&mut self, blocks: u64) {
        self.blocks = blocks;
    }

    /// Everything stored up to now has a stamp of at most this.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// A stamp for one more completed write.
    pub fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Number of blocks whose newest content is not durable.
    #[must_use]
    pub fn volatile_count(&self) -> usize {
        self.volatile.len()
    }

    /// The content of a block now.
    #[must_use]
    pub fn content(&self, block: u64) -> Content {
        let cell = self.cell(block)?;
        cell.newer.last().map_or_else(|| cell.durable.clone(), |version| version.content.clone())
    }

    /// Stores the content of a block, volatile.
    pub fn store(&mut self, block: u64, content: Content, stamp: u64) {
        let cell = self.cell_mut(block);
        let first = cell.newer.is_empty();
        cell.newer.push(Version { stamp, content, doomed: false });
        if first {
            self.volatile.push(block);
        }
    }

    /// Changes a block where it lies, durable and volatile alike: rot, or a test's damage.
    pub fn spoil(&mut self, block: u64, change: impl FnOnce(&mut [u8; PAGE])) {
        let mut page = self.content(block).map_or([0; PAGE], |page| *page);
        change(&mut page);
        let cell = self.cell_mut(block);
        cell.newer.clear();
        cell.durable = Some(Rc::new(page));
        self.volatile.retain(|&other| other != block);
    }

    /// Carries out a flush that was submitted when the newest stamp was `through`.
    pub fn flush(&mut self, through: u64) {
        let mut volatile = std::mem::take(&mut self.volatile);
        volatile.retain(|&block| {
            let cell = self.cell_mut(block);
            let newest = cell.newer.iter().rposition(|v| v.stamp <= through && !v.doomed);
            if let Some(index) = newest {
                let flushed = cell.newer.swap_remove(index);
                cell.durable = flushed.content;
                cell.newer.retain(|version| version.stamp > flushed.stamp);
                cell.newer.sort_by_key(|version| version.stamp);
            }
            !cell.newer.is_empty()
        });
        self.volatile = volatile;
    }

    /// Carries out a flush that fails: some of what it covered will never become durable.
    pub fn fail_flush(&mut self, through: u64, random: &mut Random) {
        let volatile = self.volatile.clone();
        for block in volatile {
            for version in &mut self.cell_mut(block).newer {
                version.doomed |= version.stamp <= through && random.one_in(2);
            }
        }
    }

    /// The host loses its power. Returns the number of blocks that lost something, and of blocks
    /// that hold sectors of several versions now.
    pub fn crash(&mut self, random: &mut Random) -> (u64, u64) {
        let loss = match random.below(10) {
            0 => Loss::Everything,
            1 => Loss::Nothing,
            2 => Loss::ByBlock,
            3 | 4 => Loss::BySector,
            5 | 6 => Loss::ByWrite(random.number()),
            7 | 8 => Loss::After(self.stamp - random.below(self.stamp.min(64) + 1)),
            _ => Loss::Before(self.stamp - random.below(self.stamp.min(64) + 1)),
        };
        let (mut lost, mut torn) = (0, 0);
        for block in std::mem::take(&mut self.volatile) {
            let cell = self.cell_mut(block);
            let newest = cell.newer.len();
            let mut versions = vec![cell.durable.take()];
            let mut kept = vec![true];
            for version in cell.newer.drain(..) {
                kept.push(!version.doomed && loss.keeps(version.stamp, random));
                versions.push(version.content);
            }
            let last = kept.iter().rposition(|&kept| kept).unwrap_or(0);
            let chosen = match loss {
                Loss::BySector => tear(&versions, &kept, random),
                _ => versions.get(last).cloned().flatten(),
            };
            torn += u64::from(!versions.contains(&chosen));
            lost += u64::from(last != newest);
            self.cell_mut(block).durable = chosen;
        }
        (lost, torn)
    }

    fn cell(&self, block: u64) -> Option<&Cell> {
        let chunk = self.chunks.get(block as usize / CHUNK)?.as_ref()?;
        Some(&chunk[block as usize % CHUNK])
    }

    fn cell_mut(&mut self, block: u64) -> &mut Cell {
        assert!(block < self.blocks, "block {block} is past the end of the medium");
        let index = block as usize / CHUNK;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        let chunk = self.chunks[index]
            .get_or_insert_with(|| Box::new(std::array::from_fn(|_| Cell::default())));
        &mut chunk[block as usize % CHUNK]
    }
}

impl Loss {
    fn keeps(self, stamp: u64, random: &mut Random) -> bool {
        match self {
            Loss::Everything => false,
            Loss::Nothing | Loss::BySector => true,
            Loss::ByBlock => random.one_in(2),
            Loss::ByWrite(salt) => crate::rng::mix(stamp ^ salt) & 1 == 0,
            Loss::After(cut) => stamp <= cut,
            Loss::Before(cut) => stamp > cut,
        }
    }
}

/// Each sector from one of the versions.
fn tear(versions: &[Content], kept: &[bool], random: &mut Random) -> Content {
    let mut page = [0; PAGE];
    for sector in 0..PAGE / SECTOR {
        let index = random.below(versions.len() as u64) as usize;
        let index = if kept[index] { index } else { 0 };
        if let Some(content) = &versions[index] {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            page[range.clone()].copy_from_slice(&content[range]);
        }
    }
    (page != [0; PAGE]).then(|| Rc::new(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> Content {
        Some(Rc::new([byte; PAGE]))
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_was_submitted() {
        let mut random = Random::new(1);
        let mut platter = Platter::new(8);
        let stamp = platter.next_stamp();
        platter.store(3, page(1), stamp);
        let through = platter.stamp();
        let stamp = platter.next_stamp();
        platter.store(3, page(2), stamp);
        platter.flush(through);
        assert_eq!(platter.content(3), page(2));
        let mut left = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut copy = platter.clone();
            copy.crash(&mut random);
            let content = copy.content(3).map_or([0; PAGE], |page| *page);
            assert!(content.iter().all(|&byte| byte == 1 || byte == 2));
            for sector in content.chunks(SECTOR) {
                assert!(sector.iter().all(|byte| byte == &sector[0]), "a sector is atomic");
            }
            left.insert(content.iter().map(|&byte| u64::from(byte)).sum::<u64>());
        }
        assert!(left.len() > 3, "kept, lost and torn all happen");
    }

    #[test]
    fn what_a_failed_flush_dropped_no_later_flush_brings_back() {
        let mut random = Random::new(2);
        let mut lost = 0;
        for _ in 0..50 {
            let mut platter = Platter::new(8);
            let stamp = platter.next_stamp();
            platter.store(0, page(9), stamp);
            platter.fail_flush(platter.stamp(), &mut random);
            platter.flush(platter.stamp());
            assert_eq!(platter.content(0), page(9));
            platter.crash(&mut random);
            lost += u64::from(platter.content(0).is_none());
        }
        assert!(lost > 5 && lost < 45, "{lost} of 50");
    }
}
