//! NBD sessions over disks, as one state machine without I/O.
//!
//! [`NbdServer`] owns all sessions of an instance. The event loop pulls [`Action`]s from it,
//! carries them out on its sockets, and tells what came of them; disks are called directly, and
//! their events are handed over. Nothing here blocks, reads a clock or touches a socket.
//!
//! Bytes:
//! - Everything the kernel reads or writes lies in pages of the shared memory. A payload of 64 KiB
//!   or more is received into the spans that become part of the log, and read data is sent from the
//!   spans it was read into: neither is copied. Smaller payloads are copied once, from the receive
//!   ring into the log.
//! - A session that does nothing holds no pages.
//!
//! Whatever outlives an instruction lies in the arena (module `records`), so another process can go
//! on when this one dies between any two of its stores ([`NbdServer::adopt`]). What is held here in
//! memory is derived from that, or can be asked for again.
//!
//! Memory is lent by lanes; module `budget` says why no session can wait for ever.
//!
//! What this crate does not do: accept, TLS, timeouts of its own (they come with
//! [`NbdServer::poll`]), holding the sockets of a dead process.

mod adopt;
mod adopt_requests;
mod budget;
mod counters;
mod failure;
mod handshake;
mod interface;
mod persist;
mod plan;
mod read;
mod receive;
mod records;
mod request;
mod send;
mod server;
mod session;
mod slab;
mod take_up;
#[cfg(test)]
mod tests;
mod transmission;
mod write;

pub use adopt::{Adoption, Results};
pub use bowline_arena::SharedPages;
pub use counters::Counters;
pub use interface::{
    Action, CloseCause, ExportedDisk, IoStop, KernelOperation, Options, Poison, SessionId,
    SessionStatus, TooManySessions,
};
pub use records::{FoundSessions, RecordsError};
pub use server::NbdServer;
