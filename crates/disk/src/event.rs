//! What comes back from a disk.

use bowline_arena::Span;
use bowline_store::{BlockState, Ticket};

use crate::IoError;

/// What became of a request at once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// It is done: this is the reply.
    Done(Result<(), IoError>),
    /// It was taken; [`DiskEvent::Done`] follows.
    Pending,
    /// It was not taken: try again after [`DiskEvent::Room`].
    Busy,
}

/// A run of bytes in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteExtent {
    /// Number of bytes.
    pub bytes: u64,
    /// Their state.
    pub state: BlockState,
}

/// Something a disk has to tell.
#[derive(Debug)]
pub enum DiskEvent {
    /// A request that was pending is done.
    Done {
        /// Which request.
        ticket: Ticket,
        /// The reply.
        result: Result<(), IoError>,
    },
    /// A read is done; the span comes back whatever the result.
    Read {
        /// Which read.
        ticket: Ticket,
        /// The buffer it was given.
        span: Span,
        /// How it went.
        result: Result<(), IoError>,
    },
    /// A question about states is answered.
    Status {
        /// Which question.
        ticket: Ticket,
        /// The runs from the first byte asked for, perhaps not to the last.
        result: Result<Vec<ByteExtent>, IoError>,
    },
    /// A request that was refused as busy may be tried again.
    Room,
}
