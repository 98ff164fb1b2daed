//! What the event loop and the rest of the program see of sessions.

use bowline_arena::Part;
use bowline_store::{DiskId, Micros};
use bowline_wire::{BadMagic, CloseReason, PAYLOAD_BYTES_MAX};

use crate::Counters;
#[cfg(doc)]
use crate::NbdServer;
use crate::records::Shape;
use crate::slab::Key;

/// Names a session; never names another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(crate) Key);

impl SessionId {
    /// The id with these numbers, as the loop got them back from the kernel.
    #[must_use]
    pub fn new(slot: u32, generation: u32) -> SessionId {
        SessionId(Key { slot, generation })
    }

    /// Its place.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.0.slot
    }

    /// Which of those that had the place.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.0.generation
    }
}

/// What sessions may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Most sessions at once.
    pub sessions_max: usize,
    /// Most requests started and not answered, of all sessions together.
    pub requests_max: usize,
    /// A request is not tried again once this many processes but one have died over it.
    pub attempts_max: u8,
    /// Bytes for the rings of sessions that are not idle (88 KiB each).
    pub buffer_bytes_max: u64,
    /// Bytes for requests up to 1 MiB.
    pub small_bytes_max: u64,
    /// Bytes for longer requests; at least [`Options::JUMBO_BYTES_MIN`].
    pub jumbo_bytes_max: u64,
    /// Bytes of read data one session may hold, beyond its first read.
    pub reply_bytes_max: u64,
    /// After so long without a byte a session gives its rings up.
    pub idle_us: u64,
    /// After so long without a byte a session is closed that holds what others wait for all the
    /// while.
    pub stall_us: u64,
    /// Longest handshake.
    pub handshake_us_max: u64,
    /// First byte of the tickets of all requests: tells them from those of other users of the
    /// disks.
    pub ticket_class: u8,
}

impl Options {
    /// What the longest request takes, with a part of a block at either end.
    pub const JUMBO_BYTES_MIN: u64 = PAYLOAD_BYTES_MAX as u64 + 8192;

    /// Bytes of the region that a server with these limits needs for its records, whole pages, in a
    /// memory of so many bytes in all, the region counted.
    #[must_use]
    pub fn record_bytes(&self, memory_bytes: u64) -> u32 {
        Shape::new(self.sessions_max, self.requests_max, memory_bytes).bytes()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sessions_max: 4096,
            requests_max: 4096,
            attempts_max: 3,
            buffer_bytes_max: 4 << 20,
            small_bytes_max: 4 << 20,
            jumbo_bytes_max: Options::JUMBO_BYTES_MIN,
            reply_bytes_max: 2 << 20,
            idle_us: 1_000_000,
            stall_us: 10_000_000,
            handshake_us_max: 10_000_000,
            ticket_class: 1,
        }
    }
}

/// A disk as it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedDisk {
    /// Which one.
    pub disk: DiskId,
    /// By what name.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
    /// Whether writes are refused, whatever the disk says.
    pub read_only: bool,
}

/// What the event loop has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say [`NbdServer::readable`] when there is a byte to receive, or the stream has ended.
    AwaitReadable {
        /// On which session.
        session: SessionId,
    },
    /// Receive into these parts; then say [`NbdServer::received`].
    Receive {
        /// On which session.
        session: SessionId,
        /// Which of its receives, modulo 256.
        number: u8,
        /// Where the bytes go, in order.
        parts: Vec<Part>,
    },
    /// Give the receive that is under way back: with what it got, or as cancelled.
    CancelReceive {
        /// On which session.
        session: SessionId,
        /// Which of its receives.
        number: u8,
    },
    /// Send these parts, or the first of their bytes; then say [`NbdServer::sent`].
    Send {
        /// On which session.
        session: SessionId,
        /// Which of its sends, modulo 256.
        number: u8,
        /// Where the bytes are, in order.
        parts: Vec<Part>,
    },
    /// Shut the socket down both ways, so that what is under way comes back.
    Shutdown {
        /// Which session.
        session: SessionId,
    },
    /// Shut down and close the socket. Nothing of the session is under way; it is not heard of
    /// again.
    Close {
        /// Which session.
        session: SessionId,
        /// Why.
        cause: CloseCause,
    },
}

/// Why a receive or a send moved no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStop {
    /// As asked for by [`Action::CancelReceive`].
    Cancelled,
    /// By this error number.
    Failed(i32),
}

/// Why a session was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseCause {
    /// The client said good-bye or ended its stream.
    #[error("the client left")]
    Client,
    /// The handshake failed.
    #[error("handshake: {0}")]
    Handshake(CloseReason),
    /// The handshake took too long.
    #[error("the handshake took too long")]
    HandshakeTime,
    /// The stream is out of step.
    #[error("{0}")]
    Magic(#[from] BadMagic),
    /// The socket failed.
    #[error("the connection failed: {}", std::io::Error::from_raw_os_error(*.0))]
    Socket(i32),
    /// The client neither sent nor received while others waited for the memory it held.
    #[error("the client stopped while others waited for memory")]
    Stalled,
    /// An answer is longer than all the memory there may be.
    #[error("an answer is too long")]
    Memory,
    /// The server is being shut down.
    #[error("the server is being shut down")]
    Shutdown,
    /// Processes have died over what it sent, before it was a request.
    #[error("servers have died over what the client sent")]
    Poisoned,
}

/// An operation that was at the kernel when a process died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelOperation {
    /// Of which session.
    pub session: SessionId,
    /// A send, or else a receive.
    pub is_send: bool,
    /// Its number in the action.
    pub number: u8,
}

/// A request that is not tried again: so many processes have died over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poison {
    /// Whose it is.
    pub session: SessionId,
    /// Its type.
    pub kind: u16,
    /// First byte it is about.
    pub offset: u64,
    /// Number of bytes it is about.
    pub bytes: u32,
}

/// There are as many sessions as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {0} sessions already")]
pub struct TooManySessions(pub usize);

/// A session, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Which session.
    pub session: SessionId,
    /// The disk it is about, once agreed on.
    pub disk: Option<DiskId>,
    /// Requests started and not answered.
    pub requests: u32,
    /// Bytes queued to be sent.
    pub unsent_bytes: u64,
    /// Position in the stream from the client.
    pub received_total: u64,
    /// Position in the stream to the client.
    pub sent_total: u64,
    /// When bytes last moved.
    pub moved: Micros,
    /// What it has done.
    pub counters: Counters,
}
