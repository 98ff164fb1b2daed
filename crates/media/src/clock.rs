//! Time for filters: the machine's, or one that a test moves by hand.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bowline_store::Micros;

/// A monotonic clock with one alarm. Clones show the same time and share the alarm.
#[derive(Clone)]
pub struct Clock(Rc<Inner>);

struct Inner {
    /// None: the time only moves when it is advanced.
    start: Option<Instant>,
    moved: Cell<u64>,
    alarm: Cell<Option<Micros>>,
}

impl Clock {
    /// The machine's monotonic clock, from zero.
    #[must_use]
    pub fn system() -> Clock {
        Clock::new(Some(Instant::now()))
    }

    /// A clock that stands still until it is advanced or somebody waits for it.
    #[must_use]
    pub fn manual() -> Clock {
        Clock::new(None)
    }

    fn new(start: Option<Instant>) -> Clock {
        Clock(Rc::new(Inner { start, moved: Cell::new(0), alarm: Cell::new(None) }))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Micros {
        let ran = self.0.start.map_or(0, |start| start.elapsed().as_micros() as u64);
        Micros(ran + self.0.moved.get())
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.0.moved.set(self.0.moved.get() + by.as_micros() as u64);
    }

    /// Waits until `at`; a manual clock jumps there.
    pub fn sleep_until(&self, at: Micros) {
        let left = Duration::from_micros(at.0.saturating_sub(self.now().0));
        match self.0.start {
            Some(_) => std::thread::sleep(left),
            None => self.advance(left),
        }
    }

    /// Asks to be polled again at `at`, or earlier.
    pub fn set_alarm(&self, at: Micros) {
        let earlier = self.0.alarm.get().is_none_or(|alarm| at < alarm);
        if earlier {
            self.0.alarm.set(Some(at));
        }
    }

    /// When somebody wants to be polled again. Whoever still waits then sets the alarm anew.
    pub fn take_alarm(&self) -> Option<Micros> {
        self.0.alarm.take()
    }
}
