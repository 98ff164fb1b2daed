//! Disks.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What a FLUSH means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Every flush is durable.
    #[default]
    Strict,
    /// As strict, and clients may ask for order alone.
    Hinted,
    /// A flush keeps the order only; the loss at a power cut is bounded in time and bytes.
    Ordered,
    /// Every write is durable before its reply.
    Sync,
}

/// When the space of a disk is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Provision {
    /// As it is written.
    #[default]
    Thin,
    /// Reserved at once, zeroed never.
    Lazy,
    /// Reserved and zeroed at once.
    Eager,
}

/// A disk that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskCreate {
    /// Its name: letters, digits, `.`, `_`, `-`; the name of its exports, too.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What FLUSH means.
    #[serde(default)]
    pub durability: Durability,
    /// When its space is taken.
    #[serde(default)]
    pub provision: Provision,
}

/// What is to change about a disk; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskChange {
    /// The new size.
    pub size_bytes: Option<u64>,
    /// Whether a smaller size, which cuts data off, is meant.
    #[serde(default)]
    pub shrink: bool,
    /// What FLUSH means.
    pub durability: Option<Durability>,
    /// Whether writes are refused.
    pub read_only: Option<bool>,
    /// How long a write may stay unflushed in `ordered`.
    pub max_loss_ms: Option<u64>,
    /// How many bytes may stay unflushed in `ordered`.
    pub max_loss_bytes: Option<u64>,
}

/// What a power cut would cost now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Bytes acknowledged and not durable.
    pub unflushed_bytes: u64,
    /// The age of the oldest of them.
    pub unflushed_age_ms: u64,
    /// The limit of the age; enforced in `ordered`.
    pub max_loss_ms: u64,
    /// The limit of the bytes; enforced in `ordered`.
    pub max_loss_bytes: u64,
}

/// How long requests took, in buckets that grow by powers of two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many took less than 1, 2, 4, 8, ... microseconds and not less than the one before.
    pub below_power_of_two_us: Vec<u64>,
    /// All of them together.
    pub sum_us: u64,
}

/// What clients did to a disk since the server started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Reads answered.
    pub read_operations: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes answered.
    pub write_operations: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Discards answered.
    pub discard_operations: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
    /// Requests answered that zeroed without sending zeros.
    #[serde(default)]
    pub zero_operations: u64,
    /// Bytes zeroed by them.
    #[serde(default)]
    pub zero_bytes: u64,
    /// Flushes answered.
    pub flush_operations: u64,
    /// Requests that ended with an error.
    pub error_operations: u64,
    /// How long reads took.
    pub read_latency: Latency,
    /// How long writes took.
    pub write_latency: Latency,
    /// How long flushes took.
    pub flush_latency: Latency,
}

/// A disk as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: String,
    /// Its number, never used again.
    pub id: u32,
    /// Its size.
    pub size_bytes: u64,
    /// Blocks of data it held at the last checkpoint: all it holds, if nothing was written or
    /// discarded since. Zeros and holes do not count. `None` where that is not known: the pool was
    /// written by a version that did not count, or a page of the map was damaged.
    pub mapped_bytes: Option<u64>,
    /// Blocks written since that checkpoint, new ones and others: how many of them are new is known
    /// with the next one.
    pub changed_bytes: u64,
    /// What FLUSH means.
    pub durability: Durability,
    /// When its space is taken.
    pub provision: Provision,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Clients that are connected.
    pub connections: u64,
    /// How clients reach it.
    pub uris: Vec<String>,
    /// What a power cut would cost now.
    pub loss: Loss,
    /// What clients did.
    pub counters: DiskCounters,
}

/// All disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskList {
    /// By name.
    pub disks: Vec<DiskStatus>,
}
