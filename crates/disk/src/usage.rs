//! What clients did to each disk, and how long it took: for status and metrics.
//!
//! Time is that of the loop's turn: nobody asks the clock for these numbers. So what is answered in
//! the turn in which it came took no time here. A request that was told busy counts from when it
//! came first.

use std::collections::BTreeMap;

use bowline_store::{DiskId, Micros, Ticket};

use crate::event::Submitted;

/// Requests under way that are remembered; clients that go away leave some behind.
const BEGUN_MAX: usize = 1 << 16;

/// How long requests took, in classes that double.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// How many took less than 1, 2, 4, 8, ... microseconds, and not less than the class before.
    pub below_power_of_two: [u64; 32],
    /// All of them together, in microseconds.
    pub sum_micros: u64,
}

/// What was done to a disk since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How long reads took.
    pub reads: Latencies,
    /// How long writes took.
    pub writes: Latencies,
    /// How long flushes took.
    pub flushes: Latencies,
    /// Bytes that clients discarded.
    pub discarded_bytes: u64,
    /// Bytes that clients zeroed without sending zeros.
    pub zeroed_bytes: u64,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Zero { bytes: u64 },
    Discard { bytes: u64 },
}

/// What all disks were used for.
#[derive(Default)]
pub(crate) struct Uses {
    disks: BTreeMap<DiskId, Usage>,
    /// Changes and flushes that are not answered yet, and when they came.
    begun: BTreeMap<Ticket, (DiskId, Kind, Micros)>,
}

impl Latencies {
    fn note(&mut self, micros: u64) {
        let class = (u64::BITS - micros.leading_zeros()).min(31) as usize;
        self.below_power_of_two[class] += 1;
        self.sum_micros += micros;
    }

    /// How many requests there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.below_power_of_two.iter().sum()
    }
}

impl Uses {
    pub(crate) fn of(&self, disk: DiskId) -> Usage {
        self.disks.get(&disk).copied().unwrap_or_default()
    }

    /// A request has been done well.
    pub(crate) fn note(&mut self, disk: DiskId, kind: Kind, since: Micros, now: Micros) {
        let usage = self.disks.entry(disk).or_default();
        let micros = now.0.saturating_sub(since.0);
        match kind {
            Kind::Read => usage.reads.note(micros),
            Kind::Write => usage.writes.note(micros),
            Kind::Flush => usage.flushes.note(micros),
            Kind::Zero { bytes } => usage.zeroed_bytes += bytes,
            Kind::Discard { bytes } => usage.discarded_bytes += bytes,
        }
    }

    /// What became of a request at once.
    pub(crate) fn submitted(
        &mut self,
        ticket: Ticket,
        (disk, kind): (DiskId, Kind),
        now: Micros,
        submitted: &Submitted,
    ) {
        match submitted {
            Submitted::Done(result) => {
                let begun = if self.begun.is_empty() { None } else { self.begun.remove(&ticket) };
                if result.is_ok() {
                    self.note(disk, kind, begun.map_or(now, |(_, _, since)| since), now);
                }
            }
            Submitted::Pending | Submitted::Busy => {
                if self.begun.len() >= BEGUN_MAX {
                    self.begun.clear();
                }
                self.begun.entry(ticket).or_insert((disk, kind, now));
            }
        }
    }

    /// A request that was pending is done.
    pub(crate) fn done(&mut self, ticket: Ticket, now: Micros, is_good: bool) {
        if let Some((disk, kind, since)) = self.begun.remove(&ticket)
            && is_good
        {
            self.note(disk, kind, since, now);
        }
    }
}
