//! Filters: media on top of a medium, for tests, measurement and demonstration.
//!
//! Each has the interface of a medium and they stack in any order. On the command line they are
//! named by specifications (`--media-filter`), and everywhere the first one is the outermost: the
//! store's requests pass the filters in the order in which they are named.
//!
//! ```text
//! delay=[KIND:]TIME         completions of a kind (read, write, flush, discard, allocate; all if
//!                           none is named) come later: delay=read:1ms
//! flush-delay=TIME          the same as delay=flush:TIME
//! error=[KIND:]PART[@SEED]  this part of the I/Os fails with EIO, undone: error=write:0.01
//! error=[KIND:]#N           the N-th fails, from 1: error=flush:#3
//! rate=BYTES                reads and writes together move this many bytes a second: rate=100M
//! log=FILE                  every I/O with its data is appended to a file (see `log`)
//! statistics                counts (see `statistics`); one is always at the medium
//! volatile                  writes stay in memory until a flush, and are lost at the exit
//! data-less=FILE            regular blocks take 16 bytes of a file instead of their space (see
//!                           [`DataLess`])
//! ```

mod data_less;
mod delay;
mod error;
pub mod log;
mod rate;
mod spec;
mod statistics;
mod volatile;

pub use data_less::DataLess;
pub use delay::delay;
pub use error::{Errors, Which};
pub use log::Log;
pub use rate::rate;
pub use spec::{FilterSpec, SpecError};
pub use statistics::{KindStatistics, Statistics, StatisticsFilter};
pub use volatile::Volatile;

use std::collections::BTreeMap;

use bowline_store::{Completion, Io, IoId, Media, MediumError, Micros};

use crate::Clock;

/// The kind of an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// An allocation.
    Allocate,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kind; 5] =
        [Kind::Read, Kind::Write, Kind::Flush, Kind::Discard, Kind::Allocate];

    /// The kind of an I/O.
    #[must_use]
    pub fn of(io: &Io) -> Kind {
        match io {
            Io::Read { .. } => Kind::Read,
            Io::Write { .. } => Kind::Write,
            Io::Flush => Kind::Flush,
            Io::Discard { .. } => Kind::Discard,
            Io::Allocate { .. } => Kind::Allocate,
        }
    }

    /// Its name in specifications and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Discard => "discard",
            Kind::Allocate => "allocate",
        }
    }
}

/// Bytes an I/O moves through memory.
fn moved_bytes(io: &Io) -> u64 {
    match io {
        Io::Read { into, .. } => u64::from(into.bytes),
        Io::Write { from, .. } => from.iter().map(|part| u64::from(part.bytes)).sum(),
        _ => 0,
    }
}

/// When completions are to be given, beside the medium that has them too early.
trait Schedule {
    /// An I/O begins.
    fn submitted(&mut self, now: Micros, id: IoId, io: &Io);

    /// The medium is done with it: when the store is to learn of it.
    fn due(&mut self, now: Micros, id: IoId) -> Micros;
}

/// A medium whose completions are held back until their time.
struct Late<S> {
    inner: Box<dyn Media>,
    schedule: S,
    clock: Clock,
    /// By time and order of arrival.
    held: BTreeMap<(Micros, u64), Completion>,
    arrivals: u64,
}

impl<S: Schedule> Late<S> {
    fn new(inner: Box<dyn Media>, schedule: S, clock: Clock) -> Late<S> {
        Late { inner, schedule, clock, held: BTreeMap::new(), arrivals: 0 }
    }

    /// Takes what the medium has done.
    fn collect(&mut self) {
        while let Some(completion) = self.inner.complete() {
            let until = self.schedule.due(self.clock.now(), completion.id);
            self.arrivals += 1;
            self.held.insert((until, self.arrivals), completion);
        }
    }

    /// A completion whose time has come. Sets the alarm for the next one if it has not.
    fn take_due(&mut self) -> Option<Completion> {
        let entry = self.held.first_entry()?;
        let (until, _) = *entry.key();
        if until > self.clock.now() {
            self.clock.set_alarm(until);
            return None;
        }
        Some(entry.remove())
    }
}

impl<S: Schedule> Media for Late<S> {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        self.schedule.submitted(self.clock.now(), id, &io);
        self.inner.submit(id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        self.collect();
        self.take_due()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        loop {
            self.collect();
            if let Some(((until, _), _)) = self.held.first_key_value() {
                self.clock.sleep_until(*until);
                return Ok(());
            }
            self.inner.wait()?;
        }
    }
}
