//! What the simulated guests do: drawn from the seed, shaped by a profile of its own for each seed.

use std::collections::BTreeMap;

use crate::{Model, Random};

/// Blocks of the largest write: what a store has to have room for unless its options say more.
const WRITE_BLOCKS_MAX: u64 = 256;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Write blocks; `owned` with the bytes already in the memory.
    Write {
        /// The disk.
        disk: u32,
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
        /// Whether the bytes lie in the memory already.
        owned: bool,
    },
    /// Make blocks zero.
    Zero(Target),
    /// Discard blocks.
    Discard(Target),
    /// Read blocks.
    Read(Target),
    /// Ask for the states of blocks.
    Status(Target),
    /// Flush; whether to wait for it.
    Flush(bool),
    /// Make a disk.
    Create {
        /// Its blocks.
        blocks: u64,
    },
    /// Make a disk larger.
    Resize {
        /// The disk.
        disk: u32,
        /// Its new blocks.
        blocks: u64,
    },
    /// Remove a disk.
    Destroy {
        /// The disk.
        disk: u32,
    },
    /// Let the store work for a little while.
    Pass,
    /// Do nothing for so many microseconds.
    Idle(u64),
}

/// Blocks of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The disk.
    pub disk: u32,
    /// The first block.
    pub lba: u64,
    /// How many.
    pub blocks: u64,
}

/// The character of one seed's load.
#[derive(Debug, Clone)]
struct Profile {
    /// Blocks of the pool.
    capacity: u64,
    /// Live blocks to stay below, where possible.
    live_blocks_max: u64,
    /// Largest ordinary write.
    blocks_max: u64,
    /// Of 1,000 accesses, those to the hot part.
    hot: u32,
    /// Of 1,000 writes, those that follow the last one of the disk.
    sequential: u32,
    /// Of 1,000 writes, those whose bytes lie in the memory already.
    owned: u32,
    /// Of 1,000 operations, those that let time pass.
    pass: u32,
    /// Of 1,000 operations, the flushes.
    flush: u32,
    /// Whether there are disks far larger than the pool.
    huge: bool,
}

/// Draws operations.
#[derive(Debug, Clone)]
pub struct Workload {
    random: Random,
    profile: Profile,
    next: BTreeMap<u32, u64>,
    relief: u32,
}

/// Blocks of a disk of 1 TiB.
pub const HUGE: u64 = 1 << 28;

impl Workload {
    /// The load of a seed on a pool of so many blocks.
    #[must_use]
    pub fn new(mut random: Random, capacity: u64) -> Workload {
        let share = match random.below(4) {
            0 => 2000,
            1 => random.between(550, 700),
            _ => random.between(200, 550),
        };
        let profile = Profile {
            capacity,
            live_blocks_max: capacity * share / 1000,
            blocks_max: [1, 4, 8, 16, 40][random.below(5) as usize],
            hot: random.below(900) as u32,
            sequential: random.below(500) as u32,
            owned: random.below(400) as u32,
            pass: random.between(30, 350) as u32,
            flush: [2, 10, 40, 150][random.below(4) as usize],
            huge: random.one_in(3),
        };
        Workload { random, profile, next: BTreeMap::new(), relief: 0 }
    }

    /// The blocks of the disks to begin with.
    pub fn first_disks(&mut self) -> Vec<u64> {
        let count = self.random.between(2, 4);
        let logical = self.profile.live_blocks_max.min(self.profile.capacity) * 5 / 4;
        let mut disks: Vec<u64> = (0..count).map(|_| (logical / count).max(16)).collect();
        if self.profile.huge {
            disks.push(HUGE);
        }
        disks
    }

    /// The pool was full: the next operations give space back.
    pub fn relieve(&mut self) {
        self.relief = 5;
    }

    /// The next thing to do.
    pub fn next_op(&mut self, model: &Model) -> Op {
        let disks: Vec<(u32, u64)> = model.disks().collect();
        if disks.is_empty() {
            return Op::Create { blocks: (self.profile.capacity / 4).max(16) };
        }
        let (disk, size) = disks[self.random.below(disks.len() as u64) as usize];
        if self.relief > 0 {
            self.relief -= 1;
            return self.give_back(disk, size);
        }
        if self.random.permille(self.profile.pass) {
            return if self.random.one_in(60) {
                Op::Idle(self.random.between(100_000, 3_000_000))
            } else {
                Op::Pass
            };
        }
        if self.random.permille(self.profile.flush) {
            return Op::Flush(self.random.one_in(4));
        }
        let crowded = model.live_blocks() > self.profile.live_blocks_max;
        if crowded && self.random.one_in(3) {
            return self.give_back(disk, size);
        }
        match self.random.below(1000) {
            0..640 => self.write(disk, size),
            640..690 => Op::Zero(self.range(disk, size)),
            690..730 => Op::Discard(self.range(disk, size)),
            730..950 => Op::Read(self.small(disk, size)),
            // A status of all of a huge disk is a long walk: once in a while is enough.
            950..990 if size < HUGE || self.random.one_in(60) => Op::Status(self.range(disk, size)),
            950..990 => Op::Status(self.small(disk, size)),
            990..993 if disks.len() < 6 => Op::Create { blocks: self.new_size() },
            993..995 if disks.len() > 2 => Op::Destroy { disk },
            995..998 if size < HUGE => {
                Op::Resize { disk, blocks: size + self.random.between(1, size / 4 + 1) }
            }
            _ => Op::Pass,
        }
    }

    fn new_size(&mut self) -> u64 {
        let most = (self.profile.capacity / 6).max(16);
        self.random.between(8, most)
    }

    fn write(&mut self, disk: u32, size: u64) -> Op {
        let owned = self.random.permille(self.profile.owned);
        let mut most = self.profile.blocks_max;
        if self.random.one_in(80) {
            most = (self.profile.capacity / 32).min(WRITE_BLOCKS_MAX).max(most);
        }
        let blocks = self.random.between(1, most).min(size);
        let following = self.next.get(&disk).copied().unwrap_or(0);
        let lba = if self.random.permille(self.profile.sequential) && following + blocks <= size {
            following
        } else {
            self.place(size, blocks)
        };
        self.next.insert(disk, lba + blocks);
        Op::Write { disk, lba, blocks, owned }
    }

    fn place(&mut self, size: u64, blocks: u64) -> u64 {
        let places = size - blocks + 1;
        let near = places.min(512);
        if size >= HUGE {
            let region = self.random.below(8) * (size / 8);
            return (region + self.random.skewed(near)).min(places - 1);
        }
        if self.random.permille(self.profile.hot) {
            self.random.skewed(places.div_ceil(8))
        } else {
            self.random.below(places)
        }
    }

    fn small(&mut self, disk: u32, size: u64) -> Target {
        let blocks = self.random.between(1, 16).min(size);
        Target { disk, lba: self.place(size, blocks), blocks }
    }

    /// Small or huge.
    fn range(&mut self, disk: u32, size: u64) -> Target {
        match self.random.below(20) {
            0 => Target { disk, lba: 0, blocks: size },
            1..4 => {
                let blocks = self.random.between(1, size);
                Target { disk, lba: self.random.below(size - blocks + 1), blocks }
            }
            _ => self.small(disk, size),
        }
    }

    fn give_back(&mut self, disk: u32, size: u64) -> Op {
        let blocks = self.random.between(1, (size / 3).max(1));
        Op::Discard(Target { disk, lba: self.random.below(size - blocks + 1), blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Change;

    #[test]
    fn every_kind_of_operation_is_drawn_and_stays_on_its_disk() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let mut workload = Workload::new(Random::new(seed), 2048);
            let mut model = Model::new(seed);
            for (disk, blocks) in workload.first_disks().into_iter().enumerate() {
                model.next_number();
                model.admit(Change::Disk { disk: disk as u32, blocks: Some(blocks) });
            }
            for _ in 0..3000 {
                let op = workload.next_op(&model);
                let name = format!("{op:?}");
                kinds.insert(name.split([' ', '(']).next().unwrap_or_default().to_owned());
                let (disk, lba, blocks) = match op {
                    Op::Write { disk, lba, blocks, .. } => (disk, lba, blocks),
                    Op::Zero(to) | Op::Discard(to) | Op::Read(to) | Op::Status(to) => {
                        (to.disk, to.lba, to.blocks)
                    }
                    _ => continue,
                };
                let size = model.disks().find(|found| found.0 == disk).map(|found| found.1);
                assert!(blocks > 0 && lba + blocks <= size.unwrap_or(0), "{op:?} of {size:?}");
            }
        }
        assert_eq!(kinds.len(), 11, "{kinds:?}");
    }
}
