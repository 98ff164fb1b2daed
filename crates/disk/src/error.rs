//! Why a request on a disk failed, in words for people and a kind for protocols.

use bowline_store::{ReadError, Refused};

/// What a protocol tells its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoErrorKind {
    /// The request itself makes no sense: no bytes, parts of sectors, no such disk.
    Invalid,
    /// The request reaches past the end of the disk.
    OutOfRange,
    /// Live data is at the limit of the pool.
    NoSpace,
    /// The disk is not to be written.
    ReadOnly,
    /// The medium could not read or write.
    Medium,
    /// The bytes on the medium are not the ones that were written.
    Corrupt,
    /// The pool has stopped writing.
    Stopped,
}

/// A request on a disk that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct IoError {
    /// What a protocol tells its client.
    pub kind: IoErrorKind,
    /// What happened, why, and what to do.
    pub text: String,
}

impl IoError {
    pub(crate) fn new(kind: IoErrorKind, text: impl Into<String>) -> IoError {
        IoError { kind, text: text.into() }
    }
}

impl From<Refused> for IoError {
    fn from(refused: Refused) -> IoError {
        let kind = match refused {
            Refused::NoSpace => IoErrorKind::NoSpace,
            Refused::Stopped(_) => IoErrorKind::Stopped,
            _ => IoErrorKind::Medium,
        };
        IoError::new(kind, refused.to_string())
    }
}

impl From<ReadError> for IoError {
    fn from(error: ReadError) -> IoError {
        let kind = match error {
            ReadError::Checksum { .. } | ReadError::Map { .. } => IoErrorKind::Corrupt,
            _ => IoErrorKind::Medium,
        };
        IoError::new(kind, error.to_string())
    }
}
