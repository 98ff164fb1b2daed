//! The oracle: what each simulated guest was promised, and whether what it sees keeps it.
//!
//! Every admitted change of a pool, on whichever disk, has a number; numbers rise in the order of
//! admission and are never used twice in a run. The promise:
//! - A read sees a version that was current at some point between its call and its completion.
//! - After a process crash everything that was replied to is there.
//! - After a host crash the pool is what it was after *one* number n, for all blocks of all disks
//!   and for the catalogue alike, and n is at least what a flush (or the store's own word) has
//!   promised.
//!
//! A change of many blocks has one number, so atomicity of requests needs no rule of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::judge::Judge;
use crate::stamp::Seen;

/// A promise that was broken, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// One change of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Blocks of a disk get a value.
    Blocks {
        /// The disk.
        disk: u32,
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
        /// Their value.
        value: Value,
    },
    /// A disk has this many blocks from now on, or is no more.
    Disk {
        /// The disk.
        disk: u32,
        /// Its blocks; none if it is destroyed.
        blocks: Option<u64>,
    },
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Nothing: reads as zeros.
    Hole,
    /// Zeros that keep their reservation.
    Zero,
    /// The data of the write with the number of the change.
    Data,
}

#[derive(Debug, Clone, Copy)]
struct Version {
    number: u64,
    value: Value,
}

#[derive(Debug, Clone, Copy)]
struct Range {
    version: Version,
    lba: u64,
    blocks: u64,
}

#[derive(Debug, Clone, Default)]
struct DiskModel {
    sizes: Vec<(u64, Option<u64>)>,
    /// Blocks that ever held data; all others read as zeros.
    blocks: BTreeMap<u64, Vec<Version>>,
    /// Changes without data, for the state of blocks that never held any.
    ranges: Vec<Range>,
}

/// What a pool may hold.
#[derive(Debug, Clone)]
pub struct Model {
    run: u64,
    disks: BTreeMap<u32, DiskModel>,
    last: u64,
    replied: u64,
    top: u64,
    promised: u64,
    sequence: Vec<(u64, u64)>,
    live: u64,
}

impl Model {
    /// An empty pool.
    #[must_use]
    pub fn new(run: u64) -> Model {
        Model {
            run,
            disks: BTreeMap::new(),
            last: 0,
            replied: 0,
            top: 0,
            promised: 0,
            sequence: Vec::new(),
            live: 0,
        }
    }

    /// The number for a change about to be tried.
    pub fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The number given last.
    #[must_use]
    pub fn last_number(&self) -> u64 {
        self.last
    }

    /// The change with the last number was admitted, and its reply may be on its way.
    pub fn admit(&mut self, change: Change) {
        self.apply(change);
        self.replied = self.last;
    }

    /// The process died during the change with the last number: it happened or did not.
    pub fn admit_perhaps(&mut self, change: Change) {
        self.apply(change);
    }

    /// The store's own number for the change admitted last.
    ///
    /// # Errors
    /// If it does not rise.
    pub fn numbered(&mut self, sequence: u64) -> Result<(), Violation> {
        if let Some(&(before, _)) = self.sequence.last()
            && sequence <= before
        {
            return Err(Violation(format!(
                "sequence number {sequence} was given after {before}; they must rise"
            )));
        }
        self.sequence.push((sequence, self.replied));
        Ok(())
    }

    /// Everything through a number is durable.
    pub fn promise(&mut self, number: u64) {
        self.promised = self.promised.max(number);
    }

    /// The store says that everything through its own number is durable.
    pub fn promise_sequence(&mut self, sequence: u64) {
        let count = self.sequence.partition_point(|&(given, _)| given <= sequence);
        if let Some(&(_, number)) = count.checked_sub(1).and_then(|at| self.sequence.get(at)) {
            self.promise(number);
        }
    }

    /// The process is gone, and with it the meaning of the store's own numbers.
    pub fn end_process(&mut self) {
        self.sequence.clear();
    }

    /// The number of the last change that was replied to.
    #[must_use]
    pub fn replied(&self) -> u64 {
        self.replied
    }

    /// The number of the last change that may have happened.
    #[must_use]
    pub fn top(&self) -> u64 {
        self.top
    }

    /// The last number whose durability was promised.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.promised
    }

    /// The run this is the model of.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Number of blocks that hold data.
    #[must_use]
    pub fn live_blocks(&self) -> u64 {
        self.live
    }

    /// Number of blocks of a disk that hold data.
    #[must_use]
    pub fn data_blocks(&self, disk: u32) -> u64 {
        self.disks.get(&disk).map_or(0, DiskModel::live)
    }

    /// The disks there are, with their blocks.
    pub fn disks(&self) -> impl Iterator<Item = (u32, u64)> {
        self.disks.iter().filter_map(|(&disk, model)| Some((disk, model.sizes.last()?.1?)))
    }

    /// Every disk that is or may be.
    pub fn disks_ever(&self) -> impl Iterator<Item = u32> {
        self.disks.keys().copied()
    }

    /// The blocks of a disk below a limit that hold or held data.
    pub fn touched(&self, disk: u32, limit: u64) -> impl Iterator<Item = u64> {
        let blocks = self.disks.get(&disk).map(|model| model.blocks.range(..limit));
        blocks.into_iter().flatten().map(|(&lba, _)| lba)
    }

    /// Of a run of blocks, those where its state could differ from its first block's.
    #[must_use]
    pub fn corners(&self, disk: u32, lba: u64, blocks: u64) -> Vec<u64> {
        let end = lba + blocks;
        let mut corners = vec![lba, end - 1];
        if let Some(model) = self.disks.get(&disk) {
            corners.extend(model.blocks.range(lba..end).map(|(&lba, _)| lba));
            for range in &model.ranges {
                let edges = [range.lba, range.lba.saturating_add(range.blocks)];
                corners.extend(edges.into_iter().filter(|edge| (lba..end).contains(edge)));
            }
        }
        corners
    }

    /// Blocks whose state tells whether the ranges happened whose durability was not promised: what
    /// reads as zeros before and after is seen in no other way.
    #[must_use]
    pub fn open_points(&self, disk: u32, limit: u64) -> Vec<u64> {
        let Some(model) = self.disks.get(&disk) else { return Vec::new() };
        let is_open = |range: &&Range| range.version.number > self.promised;
        let corners = model.ranges.iter().filter(is_open).flat_map(|range| {
            let corners = self.corners(disk, range.lba, range.blocks);
            let end = range.lba.saturating_add(range.blocks);
            corners.into_iter().flat_map(|lba| [lba, lba + 1]).filter(move |lba| *lba < end)
        });
        let mut points: Vec<u64> = corners.filter(|lba| *lba < limit).collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// The sizes of a disk, each from its number on; none where it is not there.
    pub(crate) fn sizes(&self, disk: u32) -> &[(u64, Option<u64>)] {
        self.disks.get(&disk).map_or(&[], |model| &model.sizes)
    }

    /// What a block held, each value from its number on.
    #[must_use]
    pub fn states(&self, disk: u32, lba: u64) -> Vec<(u64, Value)> {
        let mut states = vec![(0, Value::Hole)];
        let Some(model) = self.disks.get(&disk) else { return states };
        let exact = model.blocks.get(&lba).map_or(&[][..], Vec::as_slice);
        let first = exact.first().map_or(u64::MAX, |version| version.number);
        let ranged = model.ranges.iter().filter(|range| range.covers(lba));
        let before = ranged.map(|range| range.version).filter(|version| version.number < first);
        states.extend(before.chain(exact.iter().copied()).map(|v| (v.number, v.value)));
        states
    }

    /// What a block holds now.
    #[must_use]
    pub fn value(&self, disk: u32, lba: u64) -> Value {
        self.states(disk, lba).last().map_or(Value::Hole, |state| state.1)
    }

    /// Whether what a read saw was current at some number from `low` through `high`.
    ///
    /// # Errors
    /// If it was not.
    pub fn fits(
        &self,
        disk: u32,
        lba: u64,
        seen: Seen,
        low: u64,
        high: u64,
    ) -> Result<(), Violation> {
        let mut fits = false;
        self.intervals(disk, lba, seen, |first, last| fits |= first <= high && last >= low)?;
        if fits { Ok(()) } else { Err(self.misfit(disk, lba, seen, low, high)) }
    }

    /// Begins a judgement: the pool must be as it was after some number from `low` through `high`.
    #[must_use]
    pub fn judge(&self, low: u64, high: u64) -> Judge<'_> {
        Judge::new(self, low, high)
    }

    /// The pool is as it was after `number`: what came later never happened. What came before is
    /// durable through `durable`.
    pub fn settle(&mut self, number: u64, durable: u64) {
        for model in self.disks.values_mut() {
            keep(&mut model.sizes, number, durable, |size| size.0);
            for versions in model.blocks.values_mut() {
                keep(versions, number, durable, |version| version.number);
            }
            model.blocks.retain(|_, versions| !versions.is_empty());
            model.ranges.retain(|range| range.version.number <= number);
        }
        let gone = |size: &(u64, Option<u64>)| size.0 <= durable && size.1.is_none();
        self.disks.retain(|_, model| model.sizes.last().is_some_and(|size| !gone(size)));
        self.live = self.disks.values().map(DiskModel::live).sum();
        self.replied = number;
        self.top = number;
        self.promised = self.promised.max(durable);
    }

    fn apply(&mut self, change: Change) {
        let number = self.last;
        self.top = number;
        match change {
            Change::Blocks { disk, lba, blocks, value } => {
                let version = Version { number, value };
                if let Some(model) = self.disks.get_mut(&disk) {
                    self.live = model.set(version, lba, blocks, self.live);
                }
            }
            Change::Disk { disk, blocks } => {
                let model = self.disks.entry(disk).or_default();
                let cut = blocks.unwrap_or(0);
                if model.sizes.last().and_then(|size| size.1).is_some_and(|size| size > cut) {
                    let hole = Version { number, value: Value::Hole };
                    self.live = model.set(hole, cut, u64::MAX - cut, self.live);
                }
                model.sizes.push((number, blocks));
            }
        }
    }

    /// Calls `each` with the first and last number of every interval in which the block was as
    /// seen.
    pub(crate) fn intervals(
        &self,
        disk: u32,
        lba: u64,
        seen: Seen,
        mut each: impl FnMut(u64, u64),
    ) -> Result<(), Violation> {
        let versions = self.disks.get(&disk).and_then(|model| model.blocks.get(&lba));
        let versions = versions.map_or(&[][..], Vec::as_slice);
        let stamp = match seen {
            Seen::Zeros => None,
            Seen::Data(stamp) => Some(stamp),
            Seen::Broken { claim, sector } => {
                return Err(Violation(format!(
                    "disk {disk} block {lba} holds no write: sector {sector} does not belong to \
                     {claim:?}"
                )));
            }
        };
        if let Some(stamp) = stamp
            && (stamp.run, stamp.disk, stamp.lba) != (self.run, disk, lba)
        {
            return Err(Violation(format!("disk {disk} block {lba} holds {stamp:?}")));
        }
        let first = versions.first().map_or(u64::MAX, |version| version.number);
        if stamp.is_none() && first > 0 {
            each(0, first - 1);
        }
        for (index, version) in versions.iter().enumerate() {
            let last = versions.get(index + 1).map_or(u64::MAX, |next| next.number - 1);
            let same = match stamp {
                None => version.value != Value::Data,
                Some(stamp) => version.value == Value::Data && version.number == stamp.number,
            };
            if same {
                each(version.number, last);
            }
        }
        Ok(())
    }

    pub(crate) fn misfit(&self, disk: u32, lba: u64, seen: Seen, low: u64, high: u64) -> Violation {
        let what = match seen {
            Seen::Data(stamp) => format!("write {}", stamp.number),
            _ => "zeros".into(),
        };
        let mut text = format!(
            "disk {disk} block {lba} holds {what}, allowed is {low}..={high}; its history:"
        );
        let versions = self.disks.get(&disk).and_then(|model| model.blocks.get(&lba));
        for version in versions.into_iter().flatten() {
            let _ = write!(text, " {} {:?}", version.number, version.value);
        }
        Violation(text)
    }
}

impl DiskModel {
    fn live(&self) -> u64 {
        let data = |versions: &&Vec<Version>| {
            versions.last().is_some_and(|version| version.value == Value::Data)
        };
        self.blocks.values().filter(data).count() as u64
    }

    /// Gives blocks a version; returns the new number of live blocks.
    fn set(&mut self, version: Version, lba: u64, blocks: u64, mut live: u64) -> u64 {
        let end = lba.saturating_add(blocks);
        if version.value == Value::Data {
            for lba in lba..end {
                let versions = self.blocks.entry(lba).or_default();
                let was = versions.last().is_some_and(|last| last.value == Value::Data);
                live += u64::from(!was);
                versions.push(version);
            }
            return live;
        }
        for versions in self.blocks.range_mut(lba..end).map(|(_, versions)| versions) {
            let was = versions.last().is_some_and(|last| last.value == Value::Data);
            live -= u64::from(was);
            versions.push(version);
        }
        self.ranges.push(Range { version, lba, blocks });
        live
    }
}

impl Range {
    fn covers(&self, lba: u64) -> bool {
        lba >= self.lba && lba - self.lba < self.blocks
    }
}

/// Drops the entries after `number`, and those overwritten by one that is durable.
fn keep<T>(entries: &mut Vec<T>, number: u64, durable: u64, of: impl Fn(&T) -> u64) {
    entries.truncate(entries.partition_point(|entry| of(entry) <= number));
    let settled = entries.partition_point(|entry| of(entry) <= durable);
    entries.drain(..settled.saturating_sub(1));
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
