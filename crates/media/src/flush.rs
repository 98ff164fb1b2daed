//! Where a flush runs: on the data thread while flushes are quick, else on a thread of its own.
//!
//! Going through another thread costs a flush of 0.1 ms a third of its rate; a flush of 2 ms on the
//! data thread freezes every read. So the place follows the measured cost.

/// A setting for where flushes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushPlace {
    /// As measured.
    #[default]
    Auto,
    /// Always on the data thread.
    DataThread,
    /// Always on a thread of their own.
    Flusher,
}

/// Flushes slower than this are slow.
const SLOW_MICROS: u64 = 200;
/// How many of the latest flushes count.
const WINDOW: u32 = 128;
/// How many must be known before the data thread risks one.
const KNOWN_MIN: u32 = 16;

/// Remembers the latest flushes and decides where the next one runs.
#[derive(Debug, Clone)]
pub struct FlushPolicy {
    place: FlushPlace,
    /// One bit for each of the latest flushes, the newest lowest: set if it was slow.
    slow: u128,
    known: u32,
}

const _: () = assert!(WINDOW == u128::BITS);

impl FlushPolicy {
    /// A policy that knows nothing yet.
    #[must_use]
    pub fn new(place: FlushPlace) -> FlushPolicy {
        FlushPolicy { place, slow: 0, known: 0 }
    }

    /// Takes note of how long a flush took.
    pub fn record(&mut self, micros: u64) {
        self.slow = self.slow << 1 | u128::from(micros >= SLOW_MICROS);
        self.known = (self.known + 1).min(WINDOW);
    }

    /// Whether the next flush runs on the data thread: 99 of 100 were quick, and nobody waits for
    /// a read meanwhile.
    #[must_use]
    pub fn on_data_thread(&self, reads_outstanding: usize) -> bool {
        match self.place {
            FlushPlace::DataThread => true,
            FlushPlace::Flusher => false,
            FlushPlace::Auto => {
                let quick = self.slow.count_ones() * 100 <= self.known;
                self.known >= KNOWN_MIN && quick && reads_outstanding == 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_thread_flushes_while_that_is_quick() {
        let mut policy = FlushPolicy::new(FlushPlace::Auto);
        assert!(!policy.on_data_thread(0), "nothing is known");
        (0..15).for_each(|_| policy.record(100));
        assert!(!policy.on_data_thread(0), "too little is known");
        policy.record(100);
        assert!(policy.on_data_thread(0));
        assert!(!policy.on_data_thread(1), "a read is outstanding");
        policy.record(200);
        assert!(!policy.on_data_thread(0), "one of 17 was slow");
        (0..100).for_each(|_| policy.record(199));
        assert!(policy.on_data_thread(0), "one of 117 was slow");
        policy.record(5000);
        assert!(!policy.on_data_thread(0), "two of 118");
        (0..128).for_each(|_| policy.record(1));
        assert!(policy.on_data_thread(0), "forgotten");
    }

    #[test]
    fn a_setting_decides_alone() {
        let mut here = FlushPolicy::new(FlushPlace::DataThread);
        here.record(1_000_000);
        assert!(here.on_data_thread(9));
        let mut there = FlushPolicy::new(FlushPlace::Flusher);
        (0..200).for_each(|_| there.record(1));
        assert!(!there.on_data_thread(0));
    }
}
