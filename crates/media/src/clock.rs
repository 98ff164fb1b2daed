//! Time for filters: the machine's, or one that a test moves by hand.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bowline_store::Micros;

/// A monotonic clock with one alarm. Clones show the same time and share the alarm.
#[derive(Clone)]
pub struct Clock(Rc<Inner>);

struct Inner {
    /// Otherwise the time only moves when it is advanced.
    is_system: bool,
    moved: Cell<u64>,
    alarm: Cell<Option<Micros>>,
}

impl Clock {
    /// The machine's monotonic clock: the same in all processes of a boot.
    #[must_use]
    pub fn system() -> Clock {
        Clock::new(true)
    }

    /// A clock that stands still until it is advanced or somebody waits for it.
    #[must_use]
    pub fn manual() -> Clock {
        Clock::new(false)
    }

    fn new(is_system: bool) -> Clock {
        Clock(Rc::new(Inner { is_system, moved: Cell::new(0), alarm: Cell::new(None) }))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Micros {
        if !self.0.is_system {
            return Micros(self.0.moved.get());
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Micros(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000)
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.0.moved.set(self.0.moved.get() + by.as_micros() as u64);
    }

    /// Waits until `at`; a manual clock jumps there.
    pub fn sleep_until(&self, at: Micros) {
        let left = Duration::from_micros(at.0.saturating_sub(self.now().0));
        if self.0.is_system { std::thread::sleep(left) } else { self.advance(left) }
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
