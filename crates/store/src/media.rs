//! The medium below the store: completion-based, never borrowing.
//!
//! Rules every medium and every user of one keeps:
//! - I/O is submitted with an id of the submitter's choice and comes back exactly once, with that
//!   id, in any order. Between the two the bytes named by its parts belong to the medium: the
//!   submitter keeps their spans alive, changes nothing (write) and looks at nothing (read).
//! - A completed write is *not* durable. Durable is what had completed before a flush was
//!   submitted, once that flush has completed without error. A failed flush promises nothing about
//!   anything before it, now or later.
//! - I/O that was submitted by a process that died may still happen, at any time until the fence
//!   of DESIGN "two fences" has been passed.
//! - Offsets and lengths are multiples of [`BLOCK_BYTES`](crate::BLOCK_BYTES).

use bowline_arena::Part;

/// Names one I/O between submission and completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// One I/O.
#[derive(Debug, Clone)]
pub enum Io {
    /// Reads into one part.
    Read {
        /// Byte offset on the medium.
        at: u64,
        /// Where the bytes go.
        into: Part,
    },
    /// Writes parts one after the other, as one request.
    Write {
        /// Byte offset on the medium.
        at: u64,
        /// Where the bytes come from.
        from: Vec<Part>,
    },
    /// Makes everything that had completed before durable.
    Flush,
    /// Gives the space of a range back; reads of it return zeros or anything else afterwards.
    Discard {
        /// Byte offset on the medium.
        at: u64,
        /// Number of bytes.
        bytes: u64,
    },
    /// Makes sure that writes to a range cannot fail for want of space.
    Allocate {
        /// Byte offset on the medium.
        at: u64,
        /// Number of bytes.
        bytes: u64,
        /// Whether a file has zeros written, too, where it has no written blocks yet: flushes of
        /// later writes are cheaper then. What was there may be lost.
        zeroed: bool,
    },
}

/// What went wrong on the medium.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MediumError {
    /// The system reported an error.
    #[error("{call}: {}", std::io::Error::from_raw_os_error(*code))]
    System {
        /// What was tried, for people: "write of 8192 bytes at 1048576".
        call: String,
        /// The error number.
        code: i32,
    },
    /// Fewer bytes moved than asked for.
    #[error("{call}: only {done} bytes")]
    Short {
        /// What was tried.
        call: String,
        /// Bytes moved.
        done: u64,
    },
    /// The medium stopped existing under us; nothing more will complete. Only simulated media
    /// say so: it is how a simulated process dies.
    #[error("the process died")]
    Died,
}

impl MediumError {
    /// Whether the file system below has no space left, or gives its user no more.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        const NO_SPACE: [i32; 3] = [28, 122, 27];
        matches!(self, MediumError::System { code, .. } if NO_SPACE.contains(code))
    }
}

/// One I/O come back.
#[derive(Debug)]
pub struct Completion {
    /// The id it was submitted with.
    pub id: IoId,
    /// How it went.
    pub result: Result<(), MediumError>,
}

/// A place where blocks live.
pub trait Media {
    /// Bytes the medium holds now.
    fn bytes_total(&self) -> u64;

    /// Starts an I/O. Never blocks for long; errors come with the completion.
    fn submit(&mut self, id: IoId, io: Io);

    /// The next I/O that has come back, if one has.
    fn complete(&mut self) -> Option<Completion>;

    /// Waits until [`complete`](Media::complete) has something to give. Used where nothing else is
    /// to be done: recovery and offline tools.
    ///
    /// # Errors
    /// [`MediumError::Died`] when nothing will ever complete.
    fn wait(&mut self) -> Result<(), MediumError>;
}

impl<M: Media + ?Sized> Media for Box<M> {
    fn bytes_total(&self) -> u64 {
        (**self).bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        (**self).submit(id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        (**self).complete()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        (**self).wait()
    }
}

impl<M: Media + ?Sized> Media for &mut M {
    fn bytes_total(&self) -> u64 {
        (**self).bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        (**self).submit(id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        (**self).complete()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        (**self).wait()
    }
}
