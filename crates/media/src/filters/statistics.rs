//! What passes a point of the stack, in numbers.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use bowline_store::{Completion, Io, IoId, Media, MediumError, Micros};

use super::{Kind, moved_bytes};
use crate::Clock;

/// Numbers of one kind of I/O.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindStatistics {
    /// I/Os submitted.
    pub submitted: u64,
    /// I/Os that came back well.
    pub completed: u64,
    /// I/Os that failed.
    pub failed: u64,
    /// Bytes of reads and writes that came back well.
    pub bytes: u64,
    /// Time between submission and completion, all together.
    pub micros: u64,
    /// The longest of these times.
    pub micros_max: u64,
}

/// The numbers of a point of the stack, shared with its filter.
#[derive(Debug, Default)]
pub struct Statistics {
    kinds: [Cell<KindStatistics>; Kind::ALL.len()],
    in_flight_max: Cell<u64>,
}

impl Statistics {
    /// The numbers of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> KindStatistics {
        self.kinds[kind as usize].get()
    }

    /// The most I/Os there were at once.
    #[must_use]
    pub fn in_flight_max(&self) -> u64 {
        self.in_flight_max.get()
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut KindStatistics)) {
        let cell = &self.kinds[kind as usize];
        let mut numbers = cell.get();
        change(&mut numbers);
        cell.set(numbers);
    }
}

/// Counts what passes.
pub struct StatisticsFilter {
    inner: Box<dyn Media>,
    clock: Clock,
    statistics: Rc<Statistics>,
    in_flight: HashMap<IoId, (Kind, u64, Micros)>,
}

impl StatisticsFilter {
    /// Counts what passes to and from `inner`.
    #[must_use]
    pub fn new(inner: Box<dyn Media>, clock: Clock) -> StatisticsFilter {
        let statistics = Rc::default();
        StatisticsFilter { inner, clock, statistics, in_flight: HashMap::new() }
    }

    /// The numbers.
    #[must_use]
    pub fn statistics(&self) -> Rc<Statistics> {
        Rc::clone(&self.statistics)
    }
}

impl Media for StatisticsFilter {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let (kind, bytes) = (Kind::of(&io), moved_bytes(&io));
        self.statistics.change(kind, |numbers| numbers.submitted += 1);
        let in_flight = &mut self.in_flight;
        in_flight.insert(id, (kind, bytes, self.clock.now()));
        let count = in_flight.len() as u64;
        self.statistics.in_flight_max.set(self.statistics.in_flight_max.get().max(count));
        self.inner.submit(id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        let completion = self.inner.complete()?;
        if let Some((kind, bytes, start)) = self.in_flight.remove(&completion.id) {
            let micros = self.clock.now().0 - start.0;
            self.statistics.change(kind, |numbers| {
                if completion.result.is_ok() {
                    numbers.completed += 1;
                    numbers.bytes += bytes;
                } else {
                    numbers.failed += 1;
                }
                numbers.micros += micros;
                numbers.micros_max = numbers.micros_max.max(micros);
            });
        }
        Some(completion)
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        self.inner.wait()
    }
}
