//! A medium that moves only so many bytes a second.

use std::collections::HashMap;

use bowline_store::{Io, IoId, Media, Micros};

use super::{Late, Schedule, moved_bytes};
use crate::Clock;

struct Rate {
    bytes_per_second: u64,
    /// When everything submitted so far would have been moved.
    free_at: Micros,
    until: HashMap<IoId, Micros>,
}

/// Limits reads and writes of `inner` together to a rate.
///
/// # Panics
/// If it is zero.
#[must_use]
pub fn rate(inner: Box<dyn Media>, bytes_per_second: u64, clock: Clock) -> Box<dyn Media> {
    assert!(bytes_per_second > 0, "a rate of nothing");
    let rate = Rate { bytes_per_second, free_at: Micros(0), until: HashMap::new() };
    Box::new(Late::new(inner, rate, clock))
}

impl Schedule for Rate {
    fn submitted(&mut self, now: Micros, id: IoId, io: &Io) {
        let bytes = moved_bytes(io);
        if bytes > 0 {
            let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second);
            let start = self.free_at.max(now);
            self.free_at = Micros(start.0 + u64::try_from(micros).unwrap_or(u64::MAX / 2));
            self.until.insert(id, self.free_at);
        }
    }

    fn due(&mut self, _: Micros, id: IoId) -> Micros {
        self.until.remove(&id).unwrap_or_default()
    }
}
