//! Fail points: labelled places where the shipped program can be made to die, on purpose.
//!
//! Dormant unless the environment arms them; a dormant point costs one relaxed load. Test drivers
//! set one of
//!
//! ```text
//! BOWLINE_KILL_AT=label:n    SIGKILL to the own process when the label is passed the n-th time
//! BOWLINE_PANIC_AT=label:n   a panic
//! BOWLINE_STOP_AT=label:n    SIGSTOP to the own process
//! ```
//!
//! Each may name several points, separated by commas; `:n` defaults to 1. Every point of a program
//! registers itself at link time, so [`labels`] is complete and a misspelt label is an error.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

pub use crate::fail_point as point;

/// One labelled place. Made by [`fail_point!`](crate::fail_point) only.
#[derive(Debug)]
pub struct Point {
    label: &'static str,
    /// How many passings are left until the action happens.
    left: AtomicU32,
    action: AtomicU8,
}

const NOTHING: u8 = 0;
const KILL: u8 = 1;
const PANIC: u8 = 2;
const STOP: u8 = 3;

const VARIABLES: [(&str, u8); 3] =
    [("BOWLINE_KILL_AT", KILL), ("BOWLINE_PANIC_AT", PANIC), ("BOWLINE_STOP_AT", STOP)];

static ARMED: AtomicBool = AtomicBool::new(false);

/// What was wrong with a request to arm fail points.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArmError {
    /// The program has no such point.
    #[error("{variable}: no fail point is called {label}; there are: {known}")]
    Unknown {
        /// The environment variable.
        variable: String,
        /// The label asked for.
        label: String,
        /// All labels.
        known: String,
    },
    /// The count is not a number from 1 on.
    #[error("{variable}: {count} is not a number of passings (1 or more)")]
    Count {
        /// The environment variable.
        variable: String,
        /// What stood there.
        count: String,
    },
}

impl Point {
    /// A dormant point.
    #[doc(hidden)]
    pub const fn new(label: &'static str) -> Point {
        Point { label, left: AtomicU32::new(0), action: AtomicU8::new(NOTHING) }
    }
}

/// Marks a place where the program can be made to die: `fail_point!("store.batch.submitted")`.
#[macro_export]
macro_rules! fail_point {
    ($label:literal) => {{
        static POINT: $crate::fail::Point = $crate::fail::Point::new($label);
        #[cfg(not(miri))]
        #[used]
        #[unsafe(link_section = "bowline_points")]
        static REGISTERED: &$crate::fail::Point = &POINT;
        if $crate::fail::armed() {
            $crate::fail::pass(&POINT);
        }
    }};
}

/// Whether any point is armed.
#[inline]
pub fn armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// Passes a point while some are armed.
#[doc(hidden)]
#[cold]
pub fn pass(point: &Point) {
    let action = point.action.load(Ordering::Relaxed);
    if action == NOTHING || point.left.load(Ordering::Relaxed) == 0 {
        return;
    }
    if point.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    match action {
        KILL => signal_self(libc::SIGKILL),
        STOP => signal_self(libc::SIGSTOP),
        _ => panic!("fail point {}", point.label),
    }
}

/// Arms points as the environment says. Call it once, when the program starts.
///
/// # Errors
/// [`ArmError`] if a request makes no sense.
pub fn arm_from_environment() -> Result<(), ArmError> {
    for (variable, action) in VARIABLES {
        if let Ok(requests) = std::env::var(variable) {
            arm(variable, action, &requests)?;
        }
    }
    Ok(())
}

/// The labels of all fail points of this program, sorted.
pub fn labels() -> Vec<&'static str> {
    let mut labels: Vec<&str> = points().iter().map(|point| point.label).collect();
    labels.sort_unstable();
    labels.dedup();
    labels
}

fn arm(variable: &str, action: u8, requests: &str) -> Result<(), ArmError> {
    for request in requests.split(',').map(str::trim).filter(|request| !request.is_empty()) {
        let (label, count) = request.split_once(':').unwrap_or((request, "1"));
        let passings = count.parse().ok().filter(|count: &u32| *count > 0);
        let Some(passings) = passings else {
            let (variable, count) = (variable.to_owned(), count.to_owned());
            return Err(ArmError::Count { variable, count });
        };
        let mut found = false;
        for point in points().iter().filter(|point| point.label == label) {
            point.action.store(action, Ordering::Relaxed);
            point.left.store(passings, Ordering::Relaxed);
            found = true;
        }
        if !found {
            let (variable, label) = (variable.to_owned(), label.to_owned());
            return Err(ArmError::Unknown { variable, label, known: labels().join(", ") });
        }
        ARMED.store(true, Ordering::Relaxed);
    }
    Ok(())
}

fn signal_self(signal: i32) {
    // SAFETY: sends a signal to the own process; touches no memory.
    unsafe {
        libc::kill(libc::getpid(), signal);
    }
}

/// All points of the program: the linker gathers their addresses in one section.
#[cfg(not(miri))]
fn points() -> &'static [&'static Point] {
    unsafe extern "C" {
        static __start_bowline_points: u8;
        static __stop_bowline_points: u8;
    }
    // At least one point is in every program, or the linker would know no such section.
    fail_point!("fail.list");
    let start = (&raw const __start_bowline_points).cast::<&'static Point>();
    let stop = (&raw const __stop_bowline_points).cast::<&'static Point>();
    // SAFETY: the linker defines both as the bounds of the section that holds nothing but
    // references of this type, which live as long as the program.
    unsafe { std::slice::from_raw_parts(start, stop.offset_from_unsigned(start)) }
}

#[cfg(miri)]
fn points() -> &'static [&'static Point] {
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_and_misspellings_named() {
        fail_point!("fail.test.here");
        assert!(labels().contains(&"fail.test.here"));
        assert!(labels().contains(&"ring.submit"));
        let error = arm("BOWLINE_KILL_AT", KILL, "fail.test.ther:1");
        assert!(matches!(error, Err(ArmError::Unknown { .. })), "{error:?}");
        let error = arm("BOWLINE_KILL_AT", KILL, "fail.test.here:0");
        assert!(matches!(error, Err(ArmError::Count { .. })), "{error:?}");
    }

    #[test]
    fn an_armed_point_acts_at_its_passing_and_only_then() {
        let passings = |count: u32| {
            for _ in 0..count {
                fail_point!("fail.test.counted");
            }
        };
        passings(5);
        arm("BOWLINE_PANIC_AT", PANIC, "fail.test.counted:3").expect("armed");
        passings(2);
        let died = std::panic::catch_unwind(|| passings(1));
        assert!(died.is_err(), "the third passing");
        passings(5);
    }
}
