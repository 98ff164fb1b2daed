//! How fast a scrub may go: a rate at most, and less while clients are at work.
//!
//! A medium that is slow is left alone for as long as it took to read; while clients are at work
//! four times as long, reads are short, and a read waits a little for a moment in which nothing of
//! theirs is under way. So clients notice a scrub little, and it comes to an end whatever they do.

use std::collections::VecDeque;

use super::window::WINDOW_BLOCKS_MAX;
use crate::Micros;

/// Blocks of a read while clients are at work.
const BLOCKS_BESIDE_CLIENTS: u32 = 16;
/// How much slower it goes then.
const SLOWER_BESIDE_CLIENTS: u64 = 4;
/// How often, and how many times, a read waits for a quiet moment.
const QUIET_WAIT_MICROS: u64 = 1_000;
const QUIET_WAITS_MAX: u32 = 20;
/// The longest time that is taken to be the medium's.
const TOOK_MICROS_MAX: u64 = 200_000;
/// The rate is measured over this time.
const MEASURED_MICROS: u64 = 60_000_000;
const SAMPLE_MICROS: u64 = 1_000_000;

/// The pace of a scrub.
pub(super) struct Pace {
    bytes_per_second_max: u64,
    pub next_at: Micros,
    waits: u32,
    /// What clients had asked for when the last read came back.
    activity: [u64; 3],
    is_alone: bool,
    /// Bytes verified at times, oldest first.
    samples: VecDeque<(Micros, u64)>,
}

impl Pace {
    pub(super) fn new(bytes_per_second_max: u64, now: Micros) -> Pace {
        Pace {
            bytes_per_second_max: bytes_per_second_max.max(1),
            next_at: now,
            waits: 0,
            activity: [0; 3],
            is_alone: false,
            samples: VecDeque::from([(now, 0)]),
        }
    }

    pub(super) fn set_rate(&mut self, bytes_per_second_max: u64) {
        self.bytes_per_second_max = bytes_per_second_max.max(1);
    }

    /// Whether the next step may be made now.
    pub(super) fn is_time(&mut self, now: Micros, is_quiet: bool) -> bool {
        if now < self.next_at {
            return false;
        }
        if !is_quiet && self.waits < QUIET_WAITS_MAX {
            self.waits += 1;
            self.next_at = Micros(now.0 + QUIET_WAIT_MICROS);
            return false;
        }
        true
    }

    /// Blocks the next read should have.
    pub(super) fn blocks(&self) -> u32 {
        if self.is_alone { WINDOW_BLOCKS_MAX } else { BLOCKS_BESIDE_CLIENTS }
    }

    /// A read has come back.
    pub(super) fn took(
        &mut self,
        from: Micros,
        now: Micros,
        bytes: u64,
        activity: [u64; 3],
        verified: u64,
    ) {
        self.is_alone = activity == self.activity;
        self.activity = activity;
        self.waits = 0;
        let slower = if self.is_alone { 1 } else { SLOWER_BESIDE_CLIENTS };
        let took = now.0.saturating_sub(from.0).min(TOOK_MICROS_MAX);
        let at_rate = bytes.saturating_mul(1_000_000 * slower) / self.bytes_per_second_max;
        let rest = took.saturating_mul(slower);
        self.next_at = Micros((from.0.saturating_add(at_rate)).max(now.0 + rest));
        if self.samples.back().is_none_or(|(at, _)| at.0 + SAMPLE_MICROS <= now.0) {
            self.samples.push_back((now, verified));
        }
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, _)| at.0 + MEASURED_MICROS < now.0)
        {
            self.samples.pop_front();
        }
    }

    /// Bytes a second over the last minute.
    pub(super) fn measured(&self, now: Micros, verified: u64) -> u64 {
        let Some((at, before)) = self.samples.front() else { return 0 };
        let passed = now.0.saturating_sub(at.0).max(1);
        let bytes = u128::from(verified.saturating_sub(*before));
        u64::try_from(bytes * 1_000_000 / u128::from(passed)).unwrap_or(u64::MAX)
    }
}
