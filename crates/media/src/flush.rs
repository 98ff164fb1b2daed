//! Where a flush runs: on the data thread while flushes are quick, else on a thread of its own.
//!
//! Going through another thread costs a flush of 0.1 ms a third of its rate; a flush of 2 ms on the
//! data thread freezes every read. So the place follows the measured cost: few may be slow, and
//! hardly any long.

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

/// Flushes that take this are slow; one of so many may be.
const SLOW_MICROS: u64 = 200;
const SLOW_PART: u32 = 20;
/// Flushes that take this are long; one of so many may be.
const LONG_MICROS: u64 = 2_000;
const LONG_PART: u32 = 100;
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
    /// The same for long ones.
    long: u128,
    known: u32,
}

const _: () = assert!(WINDOW == u128::BITS);

impl FlushPolicy {
    /// A policy that knows nothing yet.
    #[must_use]
    pub fn new(place: FlushPlace) -> FlushPolicy {
        FlushPolicy { place, slow: 0, long: 0, known: 0 }
    }

    /// Takes note of how long a flush took.
    pub fn record(&mut self, micros: u64) {
        self.slow = self.slow << 1 | u128::from(micros >= SLOW_MICROS);
        self.long = self.long << 1 | u128::from(micros >= LONG_MICROS);
        self.known = (self.known + 1).min(WINDOW);
    }

    /// Whether the next flush runs on the data thread: nearly all were quick, and nobody waits for
    /// a read meanwhile.
    #[must_use]
    pub fn on_data_thread(&self, reads_outstanding: usize) -> bool {
        match self.place {
            FlushPlace::DataThread => true,
            FlushPlace::Flusher => false,
            FlushPlace::Auto => {
                let quick = self.slow.count_ones() * SLOW_PART <= self.known
                    && self.long.count_ones() * LONG_PART <= self.known;
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
        (0..3).for_each(|_| policy.record(199));
        assert!(policy.on_data_thread(0), "one of 20 was slow");
        policy.record(2000);
        assert!(!policy.on_data_thread(0), "one of 21 was long");
        (0..79).for_each(|_| policy.record(199));
        assert!(policy.on_data_thread(0), "one of 100 was long");
        policy.record(5000);
        assert!(!policy.on_data_thread(0), "two of 101");
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
