//! Whether to look for more to do before going to sleep.
//!
//! Looking saves a wake-up, which costs more than most requests. But where threads outnumber
//! processors it spends the time slice that the thread needs when there is something to do, and
//! then it waits for milliseconds. The scheduler tells how long a thread had to wait for a
//! processor, and how often it got one: who has to wait much, and long each time, sleeps at once
//! instead. Long each time, because the time that an idle virtual processor needs to wake up counts
//! as waiting, too; who stopped looking for it would only wake up more often.

use std::time::Duration;

use bowline_store::Micros;

/// How often the scheduler is asked.
const ASK_US: u64 = 50_000;
/// Waiting for a processor for more than one part of so many of the time is much.
const WAITING_PART: u64 = 20;
/// A wait of so long is for another thread's time slice; an idle processor wakes up sooner.
const SLICE_NS: u64 = 300_000;
/// After so long without much waiting the thread looks for more to do again.
const CALM_US: u64 = 500_000;

/// Decides how long to look.
pub struct Spin {
    longest: Duration,
    asked: Micros,
    waits: Waits,
    /// Since when the processors are this thread's to use.
    crowded_until: Micros,
    source: fn() -> Option<Waits>,
}

/// What the scheduler counts.
#[derive(Clone, Copy, Default)]
struct Waits {
    /// Nanoseconds this thread could have run and was not let.
    waited_ns: u64,
    /// How often it was let.
    runs: u64,
}

impl Spin {
    /// Looks for so long at most.
    #[must_use]
    pub fn new(longest: Duration) -> Spin {
        Spin::with(longest, waits)
    }

    fn with(longest: Duration, source: fn() -> Option<Waits>) -> Spin {
        let waits = source().unwrap_or_default();
        Spin { longest, asked: Micros(0), waits, crowded_until: Micros(0), source }
    }

    /// How long to look now.
    pub fn now(&mut self, now: Micros) -> Duration {
        let passed_us = now.0.saturating_sub(self.asked.0);
        if passed_us >= ASK_US && !self.longest.is_zero() {
            self.asked = now;
            let waits = (self.source)().unwrap_or(self.waits);
            let since_ns = waits.waited_ns.saturating_sub(self.waits.waited_ns);
            let runs = waits.runs.saturating_sub(self.waits.runs).max(1);
            self.waits = waits;
            if since_ns / 1000 > passed_us / WAITING_PART && since_ns / runs > SLICE_NS {
                self.crowded_until = Micros(now.0 + CALM_US);
            }
        }
        if now < self.crowded_until { Duration::ZERO } else { self.longest }
    }
}

/// What the scheduler has counted for this thread.
fn waits() -> Option<Waits> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let mut numbers = text.split_whitespace().skip(1).map(str::parse);
    Some(Waits { waited_ns: numbers.next()?.ok()?, runs: numbers.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static WAITS: Cell<Waits> = const { Cell::new(Waits { waited_ns: 0, runs: 0 }) };
    }

    #[test]
    fn a_crowd_ends_looking_and_calm_brings_it_back() {
        let longest = Duration::from_micros(50);
        let mut spin = Spin::with(longest, || Some(WAITS.get()));
        assert_eq!(spin.now(Micros(100_000)), longest);
        WAITS.set(Waits { waited_ns: 10_000_000, runs: 20 });
        assert_eq!(spin.now(Micros(120_000)), longest, "not asked yet");
        assert_eq!(spin.now(Micros(160_000)), Duration::ZERO, "10 of 60 ms");
        assert_eq!(spin.now(Micros(600_000)), Duration::ZERO);
        assert_eq!(spin.now(Micros(700_000)), longest);
        WAITS.set(Waits { waited_ns: 11_000_000, runs: 21 });
        assert_eq!(spin.now(Micros(800_000)), longest, "1 of 100 ms");
    }

    #[test]
    fn processors_that_wake_up_slowly_are_no_crowd() {
        let longest = Duration::from_micros(50);
        let mut spin = Spin::with(longest, || Some(WAITS.get()));
        assert_eq!(spin.now(Micros(100_000)), longest);
        WAITS.set(Waits { waited_ns: 16_000_000, runs: 600 });
        assert_eq!(spin.now(Micros(200_000)), longest, "16 of 100 ms, 27 us each time");
    }

    #[test]
    fn the_scheduler_tells() {
        if std::path::Path::new("/proc/thread-self/schedstat").exists() {
            assert!(waits().is_some());
        }
    }
}
