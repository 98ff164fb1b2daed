//! Replies of the transmission phase, appended to a buffer of the caller's.
//!
//! Read data is not among them: [`simple`] and [`offset_data`] are the bytes that go before it.

use crate::Cookie;
use crate::values::{ALLOCATION_CONTEXT_ID, CHUNK_MAGIC, ErrorCode, SIMPLE_REPLY_MAGIC, chunk};

/// Bytes of a simple reply.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes before the payload of a chunk.
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes before the data of an OFFSET_DATA chunk.
pub const OFFSET_DATA_BYTES: usize = 28;
/// Bytes of an OFFSET_HOLE chunk.
pub const OFFSET_HOLE_BYTES: usize = 32;
/// Longest message of an error chunk that is sent; the protocol's limit is 4096.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 512;
/// Most extents in one BLOCK_STATUS chunk; the protocol's limit is 2^20.
pub const EXTENTS_MAX: usize = 4096;

/// One extent of a BLOCK_STATUS chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length; "unsigned, MUST be nonzero".
    pub bytes: u32,
    /// Its status flags.
    pub flags: u32,
}

/// A simple reply. The data of a successful read follows.
pub fn simple(out: &mut Vec<u8>, cookie: Cookie, error: Option<ErrorCode>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.map_or(0, ErrorCode::value).to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
}

fn header(out: &mut Vec<u8>, cookie: Cookie, kind: u16, done: bool, payload_bytes: u32) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
    out.extend_from_slice(&payload_bytes.to_be_bytes());
}

/// NONE: success without data, and the end: "MUST always be used with the NBD_REPLY_FLAG_DONE bit
/// set".
pub fn none(out: &mut Vec<u8>, cookie: Cookie) {
    header(out, cookie, chunk::NONE, true, 0);
}

/// What goes before `bytes` bytes of data at `offset`.
///
/// # Panics
/// If there are no bytes, or more than a chunk can hold: "each chunk MUST describe at least one
/// byte".
pub fn offset_data(out: &mut Vec<u8>, cookie: Cookie, done: bool, offset: u64, bytes: u32) {
    assert!(bytes > 0 && bytes <= u32::MAX - 8, "a chunk of {bytes} bytes");
    header(out, cookie, chunk::OFFSET_DATA, done, bytes + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// OFFSET_HOLE: `bytes` zeroes at `offset`.
///
/// # Panics
/// If there are none: "MUST be nonzero".
pub fn offset_hole(out: &mut Vec<u8>, cookie: Cookie, done: bool, offset: u64, bytes: u32) {
    assert!(bytes > 0, "an empty hole");
    header(out, cookie, chunk::OFFSET_HOLE, done, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&bytes.to_be_bytes());
}

/// BLOCK_STATUS of the allocation context, the only and last chunk.
///
/// # Panics
/// If there are no extents or one has no length.
pub fn block_status(out: &mut Vec<u8>, cookie: Cookie, extents: &[Extent]) {
    assert!(!extents.is_empty() && extents.len() <= 1 << 20, "{} extents", extents.len());
    header(out, cookie, chunk::BLOCK_STATUS, true, 4 + 8 * extents.len() as u32);
    out.extend_from_slice(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    for extent in extents {
        assert!(extent.bytes > 0, "an empty extent");
        out.extend_from_slice(&extent.bytes.to_be_bytes());
        out.extend_from_slice(&extent.flags.to_be_bytes());
    }
}

/// ERROR, or ERROR_OFFSET if an offset is given, as the last chunk; the message is for people and
/// is cut at [`ERROR_MESSAGE_BYTES_MAX`].
pub fn error(
    out: &mut Vec<u8>,
    cookie: Cookie,
    error: ErrorCode,
    offset: Option<u64>,
    message: &str,
) {
    let mut end = message.len().min(ERROR_MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = &message.as_bytes()[..end];
    let kind = if offset.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
    let bytes = 6 + message.len() as u32 + if offset.is_some() { 8 } else { 0 };
    header(out, cookie, kind, true, bytes);
    out.extend_from_slice(&error.value().to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
    if let Some(offset) = offset {
        out.extend_from_slice(&offset.to_be_bytes());
    }
}
