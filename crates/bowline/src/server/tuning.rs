//! What experts and tests set by the environment.
//!
//! - `BOWLINE_SPIN_US`: how long the data thread looks for more to do before it sleeps; 50.
//! - `BOWLINE_FLUSH_PLACE`: `data` or `thread`; otherwise where flushes run is measured.
//! - `BOWLINE_WITHOUT_IO_URING=1`: goes on as if the kernel had refused a ring.

use std::time::Duration;

use bowline_media::FlushPlace;

use crate::control::api::{Kind, Problem};

const SPIN_US: u64 = 50;
/// More would only burn a processor.
const SPIN_US_MAX: u64 = 10_000;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// How long the data thread looks for more to do before it sleeps.
    pub spin: Duration,
    /// Where flushes run.
    pub flush: FlushPlace,
    /// Whether to do without a ring.
    pub without_ring: bool,
}

impl Tuning {
    /// What the environment says.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn from_environment() -> Result<Tuning, Problem> {
        Tuning::read(|name| std::env::var(name).ok())
    }

    fn read(setting: impl Fn(&str) -> Option<String>) -> Result<Tuning, Problem> {
        let spin_us = match setting("BOWLINE_SPIN_US") {
            None => SPIN_US,
            Some(text) => text.parse().ok().filter(|&us| us <= SPIN_US_MAX).ok_or_else(|| {
                Problem::new(Kind::Usage, format!("BOWLINE_SPIN_US={text} makes no sense"))
                    .next(format!("use microseconds from 0 to {SPIN_US_MAX}"))
            })?,
        };
        let without_ring = setting("BOWLINE_WITHOUT_IO_URING").is_some_and(|text| text != "0");
        let flush = match setting("BOWLINE_FLUSH_PLACE").as_deref() {
            Some("data") => FlushPlace::DataThread,
            Some("thread") => FlushPlace::Flusher,
            _ => FlushPlace::Auto,
        };
        Ok(Tuning { spin: Duration::from_micros(spin_us), flush, without_ring })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_nonsense_is_refused() {
        let none = Tuning::read(|_| None).unwrap();
        assert_eq!((none.spin, none.without_ring), (Duration::from_micros(50), false));
        let ones = Tuning::read(|_| Some("1".into())).unwrap();
        assert_eq!((ones.spin, ones.without_ring), (Duration::from_micros(1), true));
        assert!(Tuning::read(|_| Some("x".into())).is_err());
        assert!(Tuning::read(|_| Some("10001".into())).is_err());
    }
}
