//! Completions that come later than the medium gives them.

use std::collections::HashSet;
use std::time::Duration;

use bowline_store::{Io, IoId, Media, Micros};

use super::{Kind, Late, Schedule};
use crate::Clock;

struct Delay {
    kind: Option<Kind>,
    delay: Duration,
    delayed: HashSet<IoId>,
}

/// Delays I/Os of one kind, or of all, by `delay`.
#[must_use]
pub fn delay(
    inner: Box<dyn Media>,
    kind: Option<Kind>,
    delay: Duration,
    clock: Clock,
) -> Box<dyn Media> {
    Box::new(Late::new(inner, Delay { kind, delay, delayed: HashSet::new() }, clock))
}

impl Schedule for Delay {
    fn submitted(&mut self, _: Micros, id: IoId, io: &Io) {
        if self.kind.is_none_or(|kind| kind == Kind::of(io)) {
            self.delayed.insert(id);
        }
    }

    fn due(&mut self, now: Micros, id: IoId) -> Micros {
        let is_delayed = self.delayed.remove(&id);
        Micros(now.0 + if is_delayed { self.delay.as_micros() as u64 } else { 0 })
    }
}
