//! Simulator, crash replayer and workloads.

mod faults;
mod media;
mod platter;
mod rng;

pub use faults::{FLUSH, Fate, Faults, READ, WRITE};
pub use media::{Device, DeviceCounters, Killed, SharedDevice, SimMedia};
pub use platter::{Content, PAGE, Platter, SECTOR};
pub use rng::Random;
