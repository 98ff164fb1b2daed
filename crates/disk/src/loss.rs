//! What a loss of power would cost now: acknowledged writes that no flush has covered.
//!
//! Kept in a few chunks per disk instead of write by write. A chunk is never part durable because
//! of a flush of ours: a new one begins after each ([`Unflushed::note`]). Where the store flushes
//! on its own account the age and bytes shown are too high by at most one chunk, never too low.

use std::collections::VecDeque;

use bowline_store::{LossLimits, Micros, Seq};

/// Chunks that a limit is divided into.
const GRAINS: u64 = 32;

/// What a predecessor acknowledged and did not make durable: since when, and up to which change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    pub since: Micros,
    pub through: Seq,
}

/// What a loss of power would cost on one disk now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    /// Microseconds since the oldest acknowledgement that could be lost; 0 if there is none.
    pub age_micros: u64,
    /// Bytes that could be lost.
    pub bytes: u64,
    /// Writes whose replies wait because a limit is reached.
    pub replies_held: usize,
}

#[derive(Debug)]
struct Chunk {
    through: Seq,
    since: Micros,
    bytes: u64,
}

/// The acknowledged writes of one disk that are not durable.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    chunks: VecDeque<Chunk>,
    bytes: u64,
}

impl Unflushed {
    /// Notes that the change `seq` is acknowledged now. `flushing_through` is the last change that
    /// a flush was asked for.
    pub fn note(
        &mut self,
        now: Micros,
        seq: Seq,
        bytes: u64,
        flushing_through: Seq,
        limits: &LossLimits,
    ) {
        self.bytes += bytes;
        let last = self.chunks.back_mut().filter(|chunk| {
            chunk.through > flushing_through
                && now.0.saturating_sub(chunk.since.0) < limits.micros_max() / GRAINS
                && chunk.bytes < limits.loss_bytes_max / GRAINS
        });
        match last {
            Some(chunk) => {
                chunk.through = chunk.through.max(seq);
                chunk.bytes += bytes;
            }
            None => self.chunks.push_back(Chunk { through: seq, since: now, bytes }),
        }
    }

    /// Forgets what is durable.
    pub fn forget_through(&mut self, durable: Seq) {
        while let Some(chunk) = self.chunks.front().filter(|chunk| chunk.through <= durable) {
            self.bytes -= chunk.bytes;
            self.chunks.pop_front();
        }
    }

    /// When the oldest of them was acknowledged.
    pub fn since(&self) -> Option<Micros> {
        self.chunks.front().map(|chunk| chunk.since)
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// How long flushes have taken lately.
#[derive(Debug, Default)]
pub(crate) struct FlushTimes {
    micros: VecDeque<u64>,
    longest: u64,
}

impl FlushTimes {
    const COUNT: usize = 100;

    /// Notes how long one took.
    pub fn note(&mut self, micros: u64) {
        if self.micros.len() == FlushTimes::COUNT {
            self.micros.pop_front();
        }
        self.micros.push_back(micros);
        self.longest = self.micros.iter().copied().max().unwrap_or(0);
    }

    /// The longest of the last hundred: their 99th percentile and a little more.
    pub fn p99_micros(&self) -> u64 {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_takes_exactly_what_was_acknowledged_before_it() {
        let limits = LossLimits::default();
        let mut unflushed = Unflushed::default();
        unflushed.note(Micros(10), Seq(1), 4096, Seq(0), &limits);
        unflushed.note(Micros(20), Seq(2), 4096, Seq(0), &limits);
        unflushed.note(Micros(30), Seq(3), 512, Seq(2), &limits);
        assert_eq!((unflushed.since(), unflushed.bytes()), (Some(Micros(10)), 8704));
        unflushed.forget_through(Seq(2));
        assert_eq!((unflushed.since(), unflushed.bytes()), (Some(Micros(30)), 512));
        unflushed.forget_through(Seq(3));
        assert!(unflushed.is_empty());
    }

    #[test]
    fn chunks_stay_few_and_never_understate() {
        let limits = LossLimits::default();
        let mut unflushed = Unflushed::default();
        for write in 0..1_000u64 {
            unflushed.note(Micros(write * 1000), Seq(write + 1), 4096, Seq(0), &limits);
        }
        assert!(unflushed.chunks.len() <= GRAINS as usize + 1);
        unflushed.forget_through(Seq(500));
        assert!(unflushed.since() <= Some(Micros(500_000)));
        assert!(unflushed.since() >= Some(Micros(500_000 - 1_000_000 / GRAINS)));
        assert!(unflushed.bytes() >= 500 * 4096);
    }
}
