//! Whether a pool as it was found is the state after one number.
//!
//! Found by counting: each block that was read fits some intervals of numbers, and so does each
//! disk; the pool is right if some number lies in an interval of every one.

use crate::model::{Model, Value, Violation};
use crate::stamp::Seen;

/// Finds the one number that explains everything seen in a pool.
pub struct Judge<'a> {
    model: &'a Model,
    low: u64,
    high: u64,
    /// Changes of the count of fitting blocks, from number to number.
    steps: Vec<i64>,
    bounded: i64,
    floor: Option<(u64, String)>,
    roof: Option<(u64, String)>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(model: &'a Model, low: u64, high: u64) -> Judge<'a> {
        assert!(low <= high, "promised {low}, happened {high}");
        let steps = vec![0; (high - low) as usize + 2];
        Judge { model, low, high, steps, bounded: 0, floor: None, roof: None }
    }

    /// A disk was found with this many blocks, or not at all.
    ///
    /// # Errors
    /// If that was so at no allowed number.
    pub fn disk(&mut self, disk: u32, blocks: Option<u64>) -> Result<(), Violation> {
        let sizes = self.model.sizes(disk);
        let mut found = Vec::new();
        if blocks.is_none() {
            found.push((0, sizes.first().map_or(u64::MAX, |size| size.0 - 1)));
        }
        for (index, size) in sizes.iter().enumerate() {
            if size.1 == blocks {
                found.push((size.0, sizes.get(index + 1).map_or(u64::MAX, |next| next.0 - 1)));
            }
        }
        let name = || format!("disk {disk} with size {blocks:?}");
        self.bound(&found, name).then_some(()).ok_or_else(|| {
            Violation(format!(
                "{} is not allowed in {}..={}; its sizes were {sizes:?}",
                name(),
                self.low,
                self.high
            ))
        })
    }

    /// A block was read.
    ///
    /// # Errors
    /// If it held that at no allowed number.
    pub fn block(&mut self, disk: u32, lba: u64, seen: Seen) -> Result<(), Violation> {
        let (mut count, mut only) = (0, (0, 0));
        let mut more = Vec::new();
        self.model.intervals(disk, lba, seen, |first, last| {
            count += 1;
            only = (first, last);
            if count > 1 || first > self.low || last < self.high {
                more.push(only);
            }
        })?;
        if count == 1 && more.is_empty() {
            return Ok(());
        }
        if count > 1 && more.len() < count {
            return Ok(());
        }
        let name = || format!("disk {disk} block {lba} holds {seen:?}");
        if self.bound(&more, name) {
            return Ok(());
        }
        Err(self.model.misfit(disk, lba, seen, self.low, self.high))
    }

    /// A block was told to be in a state.
    ///
    /// # Errors
    /// If it was so at no allowed number.
    pub fn state(&mut self, disk: u32, lba: u64, value: Value) -> Result<(), Violation> {
        let states = self.model.states(disk, lba);
        let mut found = Vec::new();
        for (index, &(number, other)) in states.iter().enumerate() {
            if other == value {
                found.push((number, states.get(index + 1).map_or(u64::MAX, |next| next.0 - 1)));
            }
        }
        if matches!(found[..], [(first, last)] if first <= self.low && last >= self.high) {
            return Ok(());
        }
        let name = || format!("disk {disk} block {lba} is told to be {value:?}");
        self.bound(&found, name).then_some(()).ok_or_else(|| {
            let (low, high) = (self.low, self.high);
            let text = format!("{} is not allowed in {low}..={high}; it was {states:?}", name());
            Violation(text)
        })
    }

    /// The highest number that explains everything.
    ///
    /// # Errors
    /// If there is none.
    pub fn verdict(self) -> Result<u64, Violation> {
        let (mut count, mut best) = (0, None);
        for (index, step) in self.steps.iter().enumerate().take(self.steps.len() - 1) {
            count += step;
            if count == self.bounded {
                best = Some(self.low + index as u64);
            }
        }
        best.ok_or_else(|| {
            let side = |bound: Option<(u64, String)>| match bound {
                Some((number, name)) => format!("{name} ({number})"),
                None => "nothing".into(),
            };
            Violation(format!(
                "no prefix explains the pool: not before {}, but not after {}",
                side(self.floor),
                side(self.roof)
            ))
        })
    }

    /// Counts an observation that fits these intervals; false if none is allowed.
    fn bound(&mut self, intervals: &[(u64, u64)], name: impl Fn() -> String) -> bool {
        let (mut lowest, mut highest) = (u64::MAX, 0);
        for &(first, last) in intervals {
            let (first, last) = (first.max(self.low), last.min(self.high));
            if first <= last {
                self.steps[(first - self.low) as usize] += 1;
                self.steps[(last - self.low) as usize + 1] -= 1;
                lowest = lowest.min(first);
                highest = highest.max(last);
            }
        }
        if lowest > highest {
            return false;
        }
        self.bounded += 1;
        if lowest > self.floor.as_ref().map_or(self.low, |floor| floor.0) {
            self.floor = Some((lowest, name()));
        }
        if highest < self.roof.as_ref().map_or(self.high, |roof| roof.0) {
            self.roof = Some((highest, name()));
        }
        true
    }
}
