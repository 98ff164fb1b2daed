//! What a simulated device does wrong, drawn from the seed.

use bowline_store::Io;

use crate::Random;

/// Index of reads in what is counted by kind.
pub const READ: usize = 0;
/// Index of writes, discards and allocations.
pub const WRITE: usize = 1;
/// Index of flushes.
pub const FLUSH: usize = 2;

/// Bytes of a stretch of the medium that takes no writes.
const STRETCH_BYTES: u64 = 16 << 10;

/// How an I/O will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// As asked.
    Good,
    /// With this error number, after any part of it was done.
    Error(i32),
    /// After this many bytes.
    Short(u64),
    /// A flush that says it is done and does nothing.
    Lie,
}

impl Fate {
    /// Of so many bytes, those that move for sure and from the start.
    #[must_use]
    pub fn moved(self, bytes: usize) -> usize {
        match self {
            Fate::Good | Fate::Lie => bytes,
            Fate::Error(_) => 0,
            Fate::Short(done) => bytes.min(done as usize),
        }
    }
}

/// How often a device fails and how long it takes.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Errors per 100,000 I/Os, by kind.
    pub errors: [u32; 3],
    /// Errors per 100,000 I/Os that follow one of their kind that failed, if that is more.
    pub bursts: u32,
    /// One of so many stretches of the medium takes no writes; none if zero.
    pub bad_places: u64,
    /// Whether the last of each kind failed.
    pub has_failed: [bool; 3],
    /// Short transfers per 100,000 reads and writes.
    pub short: u32,
    /// I/Os per 100,000 that take up to two seconds.
    pub slow: u32,
    /// Flushes that do nothing, per 100,000.
    pub lies: u32,
    /// Errors and short transfers still to come, at most.
    pub left: u32,
    /// Shortest and longest time in microseconds, by kind.
    pub micros: [(u64, u64); 3],
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            errors: [0; 3],
            bursts: 0,
            bad_places: 0,
            has_failed: [false; 3],
            short: 0,
            slow: 0,
            lies: 0,
            left: 0,
            micros: [(30, 200), (40, 400), (100, 1500)],
        }
    }
}

impl Faults {
    /// The kind of an I/O: [`READ`], [`WRITE`] or [`FLUSH`].
    #[must_use]
    pub fn kind(io: &Io) -> usize {
        match io {
            Io::Read { .. } => READ,
            Io::Flush => FLUSH,
            Io::Write { .. } | Io::Discard { .. } | Io::Allocate { .. } => WRITE,
        }
    }

    /// Whether an I/O is a write to a place that takes none.
    fn is_bad_place(&self, io: &Io) -> bool {
        let Io::Write { at, .. } = io else { return false };
        self.bad_places > 0 && crate::rng::mix(at / STRETCH_BYTES).is_multiple_of(self.bad_places)
    }

    /// How an I/O will end, and after how many microseconds.
    pub fn draw(&mut self, io: &Io, random: &mut Random) -> (Fate, u64) {
        let kind = Faults::kind(io);
        let (low, high) = self.micros[kind];
        let mut delay = random.between(low, high);
        if self.slow > 0 && random.below(100_000) < u64::from(self.slow) {
            delay += random.below(2_000_000);
        }
        // A file system that cannot take space says so once, and counts as full for a while.
        let is_burst = self.has_failed[kind] && !matches!(io, Io::Allocate { .. });
        let rate = self.errors[kind].max(if is_burst { self.bursts } else { 0 });
        let fate = if self.left == 0 {
            Fate::Good
        } else if self.is_bad_place(io) || random.below(100_000) < u64::from(rate) {
            Fate::Error(5)
        } else if kind != FLUSH && random.below(100_000) < u64::from(self.short) {
            Fate::Short(random.below(17) * 512)
        } else {
            Fate::Good
        };
        self.has_failed[kind] = fate != Fate::Good;
        if fate != Fate::Good {
            self.left -= 1;
        } else if kind == FLUSH && random.below(100_000) < u64::from(self.lies) {
            return (Fate::Lie, delay);
        }
        (fate, delay)
    }
}
