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

/// What the active gives a keeper that it has started in place of one that died. Beside it: the
/// locks of pool and arena, the listener of the control plane, the active's process and roster, the
/// channel to the passive with its process and roster, and the listeners of clients in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inheritance {
    /// What servers are started with.
    pub config: ServeConfig,
    /// Where clients connect.
    pub listeners: Vec<Listen>,
    /// The number of the active's process.
    pub active: u32,
    /// That of the passive's, if there is one.
    pub passive: Option<u32>,
}

/// Some of the connections a server has. Beside it: their sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told {
    /// Who has asked.
    pub asker: u32,
    /// Their numbers, ascending, and by which listener they came.
    pub connections: Vec<(u64, usize)>,
    /// There are more from this number.
    pub rest: Option<u64>,
    /// The first number that this server has not been given.
    pub next: u64,
    /// It is the active, or has been told to watch it.
    pub is_armed: bool,
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
    Armed {
        /// The number of the next.
        next: u64,
    },
    /// Who stands by, for the active. Beside it: another copy of the keeper's end of its channel,
    /// its process, and its roster.
    Passive {
        /// The number of its process.
        number: u32,
    },
    /// A new keeper asks for connections.
    Tell {
        /// Its process.
        asker: u32,
        /// From which number.
        from: u64,
    },
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
    /// What a new keeper needs.
    Inherit(Box<Inheritance>),
    /// The answer to a new keeper's question.
    Told(Told),
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
