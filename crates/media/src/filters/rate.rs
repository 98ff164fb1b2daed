//! A medium that moves only so many bytes a second.

use std::collections::HashMap;

use bowline_store::{Completion, Io, IoId, Media, MediumError, Micros};

use super::{Late, moved_bytes};
use crate::Clock;

/// Limits reads and writes together to a rate.
pub struct Rate {
    inner: Box<dyn Media>,
    bytes_per_second: u64,
    /// When everything submitted so far would have been moved.
    free_at: Micros,
    until: HashMap<IoId, Micros>,
    late: Late,
}

impl Rate {
    /// Limits `inner` to a rate, which must not be zero.
    ///
    /// # Panics
    /// If it is zero.
    #[must_use]
    pub fn new(inner: Box<dyn Media>, bytes_per_second: u64, clock: Clock) -> Rate {
        assert!(bytes_per_second > 0, "a rate of nothing");
        let (until, late) = (HashMap::new(), Late::new(clock));
        Rate { inner, bytes_per_second, free_at: Micros(0), until, late }
    }

    fn collect(&mut self) {
        while let Some(completion) = self.inner.complete() {
            let until = self.until.remove(&completion.id).unwrap_or_default();
            self.late.hold(until, completion);
        }
    }
}

impl Media for Rate {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let bytes = moved_bytes(&io);
        if bytes > 0 {
            let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second);
            let start = self.free_at.max(self.late.clock.now());
            self.free_at = Micros(start.0 + u64::try_from(micros).unwrap_or(u64::MAX / 2));
            self.until.insert(id, self.free_at);
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
