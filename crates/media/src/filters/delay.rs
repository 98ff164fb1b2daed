//! Completions that come later than the medium gives them.

use std::collections::HashSet;
use std::time::Duration;

use bowline_store::{Completion, Io, IoId, Media, MediumError, Micros};

use super::{Kind, Late};
use crate::Clock;

/// Delays I/Os of one kind, or of all.
pub struct Delay {
    inner: Box<dyn Media>,
    kind: Option<Kind>,
    delay: Duration,
    delayed: HashSet<IoId>,
    late: Late,
}

impl Delay {
    /// Delays what `kind` names by `delay`.
    #[must_use]
    pub fn new(inner: Box<dyn Media>, kind: Option<Kind>, delay: Duration, clock: Clock) -> Delay {
        Delay { inner, kind, delay, delayed: HashSet::new(), late: Late::new(clock) }
    }

    fn collect(&mut self) {
        while let Some(completion) = self.inner.complete() {
            let delayed = self.delayed.remove(&completion.id);
            let delay = if delayed { self.delay.as_micros() as u64 } else { 0 };
            let until = Micros(self.late.clock.now().0 + delay);
            self.late.hold(until, completion);
        }
    }
}

impl Media for Delay {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        if self.kind.is_none_or(|kind| kind == Kind::of(&io)) {
            self.delayed.insert(id);
        }
        self.inner.submit(id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        self.collect();
        self.late.due()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        loop {
            self.collect();
            if self.late.held.is_empty() {
                self.inner.wait()?;
                continue;
            }
            return self.late.wait(self.inner.as_mut());
        }
    }
}
