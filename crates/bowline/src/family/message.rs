//! What the processes of a family tell each other.

use serde::{Deserialize, Serialize};

use crate::control::api::{Problem, Processes, Takeover};
use crate::server::config::{Listen, ServeConfig};

/// What a server is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It opens the pool.
    Active,
    /// It waits for the end of the active.
    Passive,
}

/// The first message to a server. Beside it: the locks of pool and arena, the listener of the
/// control plane, those of clients in order, and for a passive the roster of the active.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// As what.
    pub role: Role,
    /// With what.
    pub config: ServeConfig,
    /// Where clients connect: the addresses as they came to be.
    pub listeners: Vec<Listen>,
    /// The records of sessions turned out to be damaged: all connections are closed.
    pub forget_sessions: bool,
}

/// From the keeper to a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToServer {
    /// What it is to be.
    Start(Box<Start>),
    /// A connection; its socket is beside the message.
    Connection {
        /// Its number.
        number: u64,
        /// By which listener it came.
        listener: usize,
    },
    /// A connection was closed by the active.
    Gone {
        /// Its number.
        number: u64,
    },
    /// It has been given all connections there are: an active begins, a passive watches the active
    /// from now on.
    Armed,
    /// How the family is, for status.
    Family(Processes, Takeover),
    /// The server is to end cleanly.
    Stop,
}

/// From a server to its keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToKeeper {
    /// It has begun; its roster is beside the message.
    Roster,
    /// The passive has all it needs.
    Warm,
    /// It is the active, and serves.
    Serving,
    /// It has closed a connection.
    Closed {
        /// Its number.
        number: u64,
    },
    /// It is about to close the pool: nobody shall take over.
    Stopping,
    /// It ends, well or not.
    Ended(Option<Problem>),
    /// As the last, and the records of sessions are to be forgotten.
    Damaged(Problem),
}
