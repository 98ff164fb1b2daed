//! How much of the log may be on its way to the medium at a time (rule D11).
//!
//! A flush has to wait for what is in flight and for what waits to be written before it, so both
//! are bounded by time. The bound grows while batches that found it reached come back in less than
//! that time, and shrinks when one takes twice as long. It is found by trying because a rate seen
//! under a low bound is a low rate.
//!
//! While somebody waits for a flush, what is not his stays below a fixed, small bound. Schedulers
//! below us order writes by place: a file system that writes an inode of its own before it flushes
//! was seen to wait 20 ms behind the ever later blocks of a log that kept coming.

use std::collections::VecDeque;

use crate::{BatchNumber, Micros};

/// Bytes in flight: the bound at the least, and beside a flush that somebody waits for.
const BYTES_MIN: u64 = 512 << 10;
/// The bound at first and at the most.
const BYTES_MAX: u64 = 4 << 20;
/// How long a batch should be under way.
const BATCH_MICROS: u64 = 2_000;
/// What may wait to be written beside that, so that the medium never waits for a batch.
const WAITING_BYTES: u64 = 2 << 20;
/// By how much the bound grows with each batch that was quick.
const GROWTH_BYTES: u64 = 256 << 10;

/// The bound, and the batches under way.
#[derive(Debug)]
pub(super) struct Flow {
    bytes_max: u64,
    bytes: u64,
    batches: VecDeque<Flight>,
    shrunk_at: Micros,
}

#[derive(Debug)]
struct Flight {
    number: BatchNumber,
    bytes: u64,
    since: Micros,
    /// Whether the bound was reached with this batch.
    is_last: bool,
}

impl Default for Flow {
    fn default() -> Flow {
        let batches = VecDeque::new();
        Flow { bytes_max: BYTES_MAX, bytes: 0, batches, shrunk_at: Micros(0) }
    }
}

impl Flow {
    /// Whether another batch may be submitted, perhaps one behind a flush that somebody waits for.
    /// One may always be under way.
    pub(super) fn has_room(&self, is_behind_flush: bool) -> bool {
        let bytes_max = if is_behind_flush { BYTES_MIN } else { self.bytes_max };
        self.bytes < bytes_max || self.batches.is_empty()
    }

    /// Whether so much waits to be written that more has to wait before it is admitted: a flush has
    /// to wait for all of it.
    pub(super) fn is_behind(&self, waiting_bytes: u64) -> bool {
        self.bytes + waiting_bytes >= self.bytes_max + WAITING_BYTES
    }

    /// Batches under way.
    pub(super) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Bytes under way.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn submitted(&mut self, number: BatchNumber, bytes: u64, now: Micros) {
        self.bytes += bytes;
        let is_last = self.bytes >= self.bytes_max;
        self.batches.push_back(Flight { number, bytes, since: now, is_last });
    }

    pub(super) fn done(&mut self, number: BatchNumber, now: Micros) {
        let at = self.batches.iter().position(|flight| flight.number == number);
        let Some(flight) = at.and_then(|at| self.batches.remove(at)) else { return };
        self.bytes -= flight.bytes;
        let passed = now.0.saturating_sub(flight.since.0);
        if passed < BATCH_MICROS && flight.is_last {
            self.bytes_max = (self.bytes_max + GROWTH_BYTES).min(BYTES_MAX);
        } else if passed > 2 * BATCH_MICROS && flight.since >= self.shrunk_at {
            // What was submitted before the last cut says nothing about the bound it left.
            self.bytes_max = (self.bytes_max / 4 * 3).max(BYTES_MIN);
            self.shrunk_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(flow: &mut Flow, count: u64, micros: u64) {
        for round in 0..count {
            let start = Micros(round * 100_000);
            let first = round * 1000;
            let mut sent = 0;
            while flow.has_room(false) {
                flow.submitted(BatchNumber(first + sent), 1 << 20, start);
                sent += 1;
            }
            (0..sent).for_each(|at| {
                flow.done(BatchNumber(first + at), Micros(start.0 + micros));
            });
            assert_eq!((flow.bytes(), flow.batches()), (0, 0));
        }
    }

    #[test]
    fn a_quick_medium_gets_more_and_a_slow_one_less() {
        let mut flow = Flow::default();
        rounds(&mut flow, 100, 500);
        assert_eq!(flow.bytes_max, BYTES_MAX);
        rounds(&mut flow, 100, 50_000);
        assert_eq!(flow.bytes_max, BYTES_MIN);
        rounds(&mut flow, 100, 500);
        assert_eq!(flow.bytes_max, BYTES_MAX, "a low bound is left again");
    }

    #[test]
    fn more_is_admitted_until_the_medium_has_enough_to_do() {
        let mut flow = Flow::default();
        assert!(!flow.is_behind(BYTES_MAX));
        assert!(flow.is_behind(BYTES_MAX + WAITING_BYTES));
        rounds(&mut flow, 100, 50_000);
        assert!(!flow.is_behind(BYTES_MIN), "a batch waits while one is under way");
        assert!(flow.is_behind(BYTES_MIN + WAITING_BYTES), "a slow medium is given less");
        flow.submitted(BatchNumber(1 << 20), BYTES_MIN, Micros(0));
        assert!(flow.is_behind(WAITING_BYTES));
    }

    #[test]
    fn little_goes_on_beside_a_flush() {
        let mut flow = Flow::default();
        assert!(flow.has_room(true), "one batch always may");
        flow.submitted(BatchNumber(1), BYTES_MIN, Micros(0));
        assert!(flow.has_room(false) && !flow.has_room(true));
    }

    #[test]
    fn what_does_not_fill_the_bound_does_not_raise_it() {
        let mut flow = Flow::default();
        rounds(&mut flow, 100, 50_000);
        for number in 0..100 {
            flow.submitted(BatchNumber(number), 4096, Micros(0));
            flow.done(BatchNumber(number), Micros(10));
        }
        assert_eq!(flow.bytes_max, BYTES_MIN);
    }
}
