//! Servers.

use serde::{Deserialize, Serialize};

use super::{Condition, DiskStatus, PoolState, PoolStatus};

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
}

/// The processes of a server; `None` where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Serves.
    pub active: Option<Process>,
    /// Stands by.
    pub passive: Option<Process>,
    /// Watches both.
    pub keeper: Option<Process>,
}

/// Whether the death of the active process would be noticed by nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// Whether another process can take over at once.
    pub ready: bool,
    /// Why not; empty when ready.
    pub reason: String,
}

/// Buffers in the arena: data on its way between clients and the medium.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// All there are.
    pub bytes: u64,
    /// Those in use, for whatever.
    pub used_bytes: u64,
    /// Those of them that connections hold.
    pub connections_bytes: u64,
}

/// A place where clients connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// `nbd` or `vhost-user`.
    pub protocol: String,
    /// `tcp:HOST:PORT` or `unix:PATH`.
    pub address: String,
    /// Connections now.
    pub connections: u64,
    /// Connections since the server started.
    pub connections_opened: u64,
}

/// A server as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// The program's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The worst of everything below.
    pub state: PoolState,
    /// What is not well with the server; the pool has its own.
    pub conditions: Vec<Condition>,
    /// Its processes.
    pub processes: Processes,
    /// Whether another could go on.
    pub takeover: Takeover,
    /// How the medium is driven: `io_uring`, or `threads` where that is refused.
    pub medium: String,
    /// How sockets are driven: `io_uring`, or `poll` where that is refused.
    pub sockets: String,
    /// Where clients connect.
    pub exports: Vec<Export>,
    /// Memory of all its processes.
    pub memory_bytes: u64,
    /// The buffers in its arena.
    #[serde(default)]
    pub buffers: Buffers,
    /// The longest time the data thread did not look around, since the start.
    pub stall_max_us: u64,
    /// How often the data thread looked around, since the start; it does not while nothing is to
    /// be done.
    #[serde(default)]
    pub turns: u64,
    /// The pool.
    pub pool: PoolStatus,
    /// The disks, by name.
    pub disks: Vec<DiskStatus>,
}

/// The answer to `stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// That the pool is closed.
    pub stopped: bool,
}
