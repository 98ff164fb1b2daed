//! Media: file and raw device by io_uring or threads, and the filters that stack on them.
//!
//! [`open`] gives a stack with the interface of [`bowline_store::Media`] and, beside it, what the
//! event loop needs: [`MediaEvents`] takes the ring's completions or names a descriptor to poll,
//! and a [`Clock`] says when a filter wants to be asked again.
//!
//! After a submission the medium may have something to give at once (a quick flush, an error), so
//! a loop asks it again before it sleeps.

mod clock;
pub mod conformance;
mod driver;
pub mod filters;
mod flush;
mod open;
mod progress;
mod target;
mod threads;
mod uring;
mod work;
mod writers;

pub use clock::Clock;
pub use flush::{FlushPlace, FlushPolicy};
pub use open::{MediaEvents, OpenOptions, Opened, create_file, open};
pub use target::{OpenError, TargetKind};
pub use threads::{ThreadEvents, ThreadMedia};
pub use uring::{UringEvents, UringMedia};
pub use writers::{Writers, writers, writers_gone};
