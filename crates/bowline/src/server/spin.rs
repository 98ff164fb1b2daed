//! Whether to look for more to do before going to sleep.
//!
//! Looking saves a wake-up, which costs more than most requests. But where threads outnumber
//! processors it spends the time slice that the thread needs when there is something to do, and
//! then it waits for milliseconds. The scheduler tells how long a thread had to wait for a
//! processor: who has to wait much sleeps at once instead.

use std::time::Duration;

use bowline_store::Micros;

/// How often the scheduler is asked.
const ASK_US: u64 = 50_000;
/// Waiting for a processor for more than one part of so many of the time is much.
const WAITING_PART: u64 = 20;
/// After so long without much waiting the thread looks for more to do again.
const CALM_US: u64 = 500_000;

/// Decides how long to look.
pub struct Spin {
    longest: Duration,
    asked: Micros,
    waited_ns: u64,
    /// Since when the processors are this thread's to use.
    crowded_until: Micros,
    source: fn() -> Option<u64>,
}

impl Spin {
    /// Looks for so long at most.
    #[must_use]
    pub fn new(longest: Duration) -> Spin {
        Spin::with(longest, waited_ns)
    }

    fn with(longest: Duration, source: fn() -> Option<u64>) -> Spin {
        let waited_ns = source().unwrap_or(0);
        Spin { longest, asked: Micros(0), waited_ns, crowded_until: Micros(0), source }
    }

    /// How long to look now.
    pub fn now(&mut self, now: Micros) -> Duration {
        let passed_us = now.0.saturating_sub(self.asked.0);
        if passed_us >= ASK_US && !self.longest.is_zero() {
            self.asked = now;
            let waited_ns = (self.source)().unwrap_or(self.waited_ns);
            let since_ns = waited_ns.saturating_sub(self.waited_ns);
            self.waited_ns = waited_ns;
            if since_ns / 1000 > passed_us / WAITING_PART {
                self.crowded_until = Micros(now.0 + CALM_US);
            }
        }
        if now < self.crowded_until { Duration::ZERO } else { self.longest }
    }
}

/// Nanoseconds this thread could have run and was not let.
fn waited_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static WAITED: Cell<u64> = const { Cell::new(0) };
    }

    #[test]
    fn a_crowd_ends_looking_and_calm_brings_it_back() {
        let longest = Duration::from_micros(50);
        let mut spin = Spin::with(longest, || Some(WAITED.get()));
        assert_eq!(spin.now(Micros(100_000)), longest);
        WAITED.set(10_000_000);
        assert_eq!(spin.now(Micros(120_000)), longest, "not asked yet");
        assert_eq!(spin.now(Micros(160_000)), Duration::ZERO, "10 of 60 ms");
        assert_eq!(spin.now(Micros(600_000)), Duration::ZERO);
        assert_eq!(spin.now(Micros(700_000)), longest);
        WAITED.set(11_000_000);
        assert_eq!(spin.now(Micros(800_000)), longest, "1 of 100 ms");
    }

    #[test]
    fn the_scheduler_tells() {
        if std::path::Path::new("/proc/thread-self/schedstat").exists() {
            assert!(waited_ns().is_some());
        }
    }
}
