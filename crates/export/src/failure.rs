//! Why requests fail, in the words of the protocol.

use bowline_disk::{IoError, IoErrorKind};
use bowline_wire::ErrorCode;

/// Why a request failed, as its client is told.
pub(crate) struct Failure {
    pub code: ErrorCode,
    /// The byte it is about.
    pub offset: Option<u64>,
    pub text: String,
}

impl Failure {
    pub fn of(error: IoError, writes: bool, offset: Option<u64>) -> Failure {
        let code = match error.kind {
            IoErrorKind::OutOfRange if writes => ErrorCode::NoSpace,
            IoErrorKind::Invalid | IoErrorKind::OutOfRange => ErrorCode::Invalid,
            IoErrorKind::NoSpace => ErrorCode::NoSpace,
            IoErrorKind::ReadOnly => ErrorCode::NotPermitted,
            _ => ErrorCode::Io,
        };
        Failure { code, offset, text: error.text }
    }

    pub fn new(code: ErrorCode, text: &str) -> Failure {
        Failure { code, offset: None, text: text.to_string() }
    }
}

pub(crate) fn refusal_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NotPermitted => "the export is read-only",
        ErrorCode::NoSpace => "the request reaches past the end of the disk",
        ErrorCode::Overflow => "a read of more than 32 MiB",
        ErrorCode::Shutdown => "the disk is no longer offered",
        ErrorCode::Io => "servers have died over this request: it is not tried again",
        _ => "the request is malformed, unaligned or out of bounds",
    }
}

/// A chunk of type ERROR_OFFSET is no reply to a flush, which is about no range.
pub(crate) fn failure_of(
    result: Result<(), IoError>,
    writes: bool,
    offset: u64,
    bytes: u32,
) -> Option<Failure> {
    let at = (bytes > 0).then_some(offset);
    result.err().map(|error| Failure::of(error, writes, at))
}
