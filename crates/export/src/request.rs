//! Requests that were started and not answered, and the tickets that find them again.

use std::collections::VecDeque;

use bowline_arena::Span;
use bowline_disk::IoError;
use bowline_store::{DiskId, Ticket};
use bowline_wire::Cookie;

use crate::budget::{Lane, Loan};
use crate::slab::{Key, Slab};

/// Room kept in the send ring for the reply of a request: a simple reply, the header of a read, or
/// an error with a short message.
pub(crate) const REPLY_BYTES: u32 = 128;

/// Room kept for the chunk of one piece of a streamed read, or of one hole.
pub(crate) const CHUNK_BYTES: u32 = 32;

/// Most extents in a reply to BLOCK_STATUS.
pub(crate) const EXTENTS_MAX: usize = 128;

/// Room kept for such a reply.
pub(crate) const STATUS_BYTES: u32 = 24 + 8 * EXTENTS_MAX as u32;

/// The ticket's piece number of a question about states.
pub(crate) const STATUS_PIECE: u16 = u16::MAX;

/// A request that was started.
pub(crate) struct Request {
    pub session: Key,
    pub disk: DiskId,
    pub cookie: Cookie,
    pub offset: u64,
    pub bytes: u32,
    pub kind: Kind,
    /// Room kept in the send ring.
    pub reserved: u32,
    /// Reply records kept for data.
    pub replies_reserved: u32,
    /// Answers of the disk that are still to come.
    pub outstanding: u32,
    /// It counts among the requests of its session that are being carried out.
    pub is_started: bool,
    /// It has a record, and the stream is beyond it.
    pub is_known: bool,
    pub is_taken: bool,
    /// Steps published, and the number of the session's stream when the last of them was.
    pub steps: u32,
    pub step_stream: Option<u32>,
    /// How often a process has died over it.
    pub attempts: u8,
    /// A long payload that may be needed again.
    pub payload: Vec<Span>,
}

pub(crate) enum Kind {
    /// Answered by success or an error.
    Plain { writes: bool },
    /// BLOCK_STATUS.
    Status { one: bool },
    /// READ.
    Read(Read),
}

pub(crate) struct Read {
    /// Answered at once, when everything was read: a simple reply, or one that must not be cut.
    pub whole: bool,
    /// What is still to be read or sent as a hole.
    pub plan: VecDeque<Run>,
    /// What was asked for, in order; of a streamed read what is before `next` was sent.
    pub pieces: Vec<Piece>,
    pub next: usize,
    pub lane: Lane,
    pub failure: Option<(IoError, u64)>,
    /// Bytes sent as holes.
    pub hole_bytes: u64,
}

impl Read {
    /// A read of which nothing was asked for yet. `whole`: it is answered at once.
    pub fn new(whole: bool, (offset, bytes): (u64, u32)) -> Read {
        Read {
            whole,
            plan: VecDeque::from([Run { offset, bytes, hole: false }]),
            pieces: Vec::new(),
            next: 0,
            lane: if whole { Lane::of(bytes) } else { Lane::Small },
            failure: None,
            hole_bytes: 0,
        }
    }
}

/// Bytes next to each other that are read, or known to be zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub offset: u64,
    pub bytes: u32,
    pub hole: bool,
}

/// Bytes of a read that are sent together.
pub(crate) struct Piece {
    pub offset: u64,
    pub bytes: u32,
    pub state: PieceState,
}

/// Where a piece stands.
pub(crate) enum PieceState {
    /// It is being read.
    Asked,
    /// It was read.
    Here(Loan),
    /// It is known to be zeroes.
    Hole,
    /// It was sent, or could not be read.
    Gone,
}

impl Slab<Request> {
    /// The ticket for a piece of a request: class, generation, piece, slot.
    pub fn ticket(class: u8, key: Key, piece: u16) -> Ticket {
        assert!(key.slot < 1 << 24, "too many requests");
        let generation = u64::from(key.generation & 0xffff);
        let high = u64::from(class) << 56 | generation << 40;
        Ticket(high | u64::from(piece) << 24 | u64::from(key.slot))
    }

    /// The request and the piece that a ticket names.
    pub fn find(&self, ticket: Ticket) -> Option<(Key, u16)> {
        let slot = (ticket.0 & 0xff_ffff) as u32;
        let piece = (ticket.0 >> 24) as u16;
        let key = self.key_at(slot)?;
        let generation = (ticket.0 >> 40) as u16;
        (key.generation as u16 == generation).then_some((key, piece))
    }
}
