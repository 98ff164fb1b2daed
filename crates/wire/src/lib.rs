//! NBD codec and negotiation as pure state machines: no I/O, no clock, no memory of its own.
//!
//! The words in double quotes in the comments are clauses of the NBD protocol document
//! (`doc/proto.md` of the NetworkBlockDevice project); the part before them names the section.
//!
//! - [`Negotiation`] is the server's side of the handshake: plain data, so it can be stored after
//!   each option and taken up by another process.
//! - [`RequestHeader`] and [`Limits`] parse and judge the 28 bytes of a request. Payload bytes
//!   never go through this crate.
//! - [`reply`] encodes what the server answers.
//! - [`client`] is the other side, for tests and for clients.
//!
//! Invariant: nothing that a peer sends makes this crate panic or grow memory without bound.

pub mod client;
mod export;
mod negotiate;
mod option;
pub mod reply;
mod request;
#[cfg(test)]
mod tests;
pub mod values;

pub use export::{Export, ExportId, find_export};
pub use negotiate::{
    Agreed, CloseReason, NEGOTIATION_RECORD_BYTES, Negotiation, Progress, RecordError, Step,
    greeting,
};
pub use request::{
    BadMagic, Command, Cookie, Limits, PAYLOAD_BYTES_MAX, REQUEST_BYTES, RequestHeader,
};
pub use values::ErrorCode;

/// Bytes of option data that the handshake reads; longer options are skipped and refused.
///
/// Enough for a name of 4096 bytes (Conventions: "MUST be no longer than 4096 bytes")
/// and everything that real clients put beside it.
pub const OPTION_DATA_BYTES_MAX: usize = 8192;

/// Bytes before the data of an option: magic, option, length.
pub const OPTION_HEADER_BYTES: usize = 16;
