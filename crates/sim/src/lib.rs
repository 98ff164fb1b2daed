//! Simulator, crash replayer and workloads.
//!
//! A seed is a pool of some MiB on a simulated device, guests that use it, and crashes of every
//! kind; the same seed runs the same way on every machine. Reading order: `device`, `stamp` and
//! `model` (the oracle), `subject` (what is tested), `run` (one seed).

mod act;
mod coverage;
mod device;
mod explorer;
mod faults;
mod healing;
mod journal;
mod judge;
mod lies;
mod media;
mod model;
mod platter;
pub mod pool;
mod recover;
mod rng;
mod run;
mod scrub;
mod seeds;
mod stamp;
mod subject;
mod workload;

pub mod reference;

pub use coverage::Coverage;
pub use device::{Device, DeviceCounters, SharedDevice};
pub use explorer::{Exploration, explore};
pub use faults::{FLUSH, Fate, Faults, READ, WRITE};
pub use journal::Moment;
pub use judge::Judge;
pub use lies::lie;
pub use media::{Killed, SimMedia};
pub use model::{Change, Model, Value, Violation};
pub use platter::{Content, PAGE, Platter, SECTOR};
pub use recover::Crash;
pub use rng::Random;
pub use run::{Options, Outcome, Sink, run_seed};
pub use seeds::{
    COVERED, COVERED_BY_POOLS, COVERED_WITH_FAULTS, COVERED_WITH_FAULTS_BY_POOLS, HEALING, Report,
    find, run_seeds,
};
pub use stamp::{Seen, Stamp, identify};
pub use subject::{Health, Host, OpenError, Run, Setup, Subject, Told};
pub use workload::{HUGE, Op, Target, Workload};

#[cfg(test)]
mod tests;
