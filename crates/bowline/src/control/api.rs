//! The vocabulary of the control plane: what is asked, answered and complained about.
//!
//! It is versioned as a whole by [`OUTPUT_VERSION`]: fields are added, never renamed, and numbers
//! are integers with their unit in the name. States are words that scripts may compare.

mod disk;
mod pool;
mod problem;
mod server;

pub use disk::{
    DiskChange, DiskCounters, DiskCreate, DiskList, DiskStatus, Durability, Latency, Loss,
    Provision,
};
pub use pool::{
    Allocation, CheckReport, Finding, GrowPool, PoolCounters, PoolCreated, PoolState, PoolStatus,
    Repair, RepairReport, Resume, Scrub, ScrubAction, ScrubFinding, ScrubSeverity, ScrubState,
    ScrubStatus, Space, Verdict,
};
pub use problem::{Condition, Kind, Problem};
pub use server::{Buffers, Export, Process, Processes, ServerStatus, Stopped, Takeover};

use serde::{Deserialize, Serialize};

/// The version of every JSON document the program writes.
pub const OUTPUT_VERSION: u32 = 1;

/// A document: its version, then its fields.
#[derive(Debug, Serialize, Deserialize)]
pub struct Document<T> {
    /// Always [`OUTPUT_VERSION`].
    pub output_version: u32,
    /// The rest.
    #[serde(flatten)]
    pub body: T,
}

impl<T> Document<T> {
    /// A document of this version.
    pub fn new(body: T) -> Document<T> {
        Document { output_version: OUTPUT_VERSION, body }
    }
}

/// A document that says what is wrong.
#[derive(Debug, Serialize, Deserialize)]
pub struct Complaint {
    /// What is wrong.
    pub error: Problem,
}
