//! What is known of one connection.

use std::collections::VecDeque;

use bowline_arena::Span;
use bowline_store::{DiskId, Micros};
use bowline_wire::{Negotiation, RequestHeader};

use crate::Counters;
use crate::budget::Lane;
use crate::interface::CloseCause;
use crate::receive::ReceiveRing;
use crate::send::SendQueue;
use crate::slab::Key;

/// Bytes of the receive ring: the longest payload that is received into it, its header, and room
/// to receive on.
pub(crate) const RECEIVE_RING_BYTES: u32 = 17 * 4096;
/// Bytes of the send ring.
pub(crate) const SEND_RING_BYTES: u32 = 4 * 4096;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accepted; waits for buffers, then is greeted.
    Fresh,
    Handshake,
    Transmission,
    /// Takes no more requests; replies to those it has, then closes.
    Draining,
    /// Closes as soon as the kernel has nothing of it.
    Closing,
    /// Closed; requests at the disk are still to come back.
    Closed,
}

/// What the transmission phase is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub disk: DiskId,
    pub structured: bool,
    pub allocation: bool,
}

/// The receive of a session: one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiving {
    No,
    /// The loop watches for the first byte.
    Awaiting,
    /// Bytes are received: first so many of a payload, then into the ring.
    Posted {
        payload_bytes: u32,
        cancelling: bool,
    },
}

/// Why a session parses no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    No,
    /// Until the disk has room.
    Busy,
    /// Until the first of its wants is granted.
    Memory,
    /// Until replies have been sent.
    Drain,
}

/// A long write that is being received into the spans it stays in.
pub(crate) struct Incoming {
    pub header: RequestHeader,
    pub fua: bool,
    pub spans: Vec<Span>,
    pub lane: Lane,
    pub filled: u32,
}

/// What a session needs memory for, in the order of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// To receive a payload.
    Payload { header: RequestHeader, fua: bool },
    /// To read.
    Read(Key),
    /// To send the answer to an option that is longer than the send ring.
    Output,
}

pub(crate) struct Session {
    pub phase: Phase,
    pub negotiation: Negotiation,
    pub agreement: Option<Agreement>,
    pub ring: ReceiveRing,
    pub send: SendQueue,
    pub receiving: Receiving,
    /// A send is at the kernel.
    pub sending: bool,
    pub parked: Parked,
    pub wants: VecDeque<Want>,
    /// The lane it stands in, for the first of its wants or for buffers.
    pub waiting: Option<Lane>,
    pub incoming: Option<Incoming>,
    /// Payload bytes of a refused write that are still to be skipped.
    pub skip_bytes: u32,
    /// The last request was a long write: the next header is received by itself.
    pub after_long: bool,
    /// An answer to an option, waiting for memory.
    pub output: Vec<u8>,
    /// The client sends nothing more.
    pub ended: bool,
    /// Requests started and not finished.
    pub requests: u32,
    /// Bytes of read data that are held, from the read until they are sent.
    pub reply_held_bytes: u64,
    pub received_total: u64,
    pub sent_total: u64,
    pub accepted: Micros,
    /// When bytes last moved.
    pub moved: Micros,
    pub counters: Counters,
    pub cause: CloseCause,
    /// The loop was asked to shut the socket down.
    pub shut: bool,
    /// In the list of those whose actions are to be planned; of those that may go on.
    pub is_dirty: bool,
    pub is_ready: bool,
}

impl Session {
    pub fn new(now: Micros) -> Session {
        Session {
            phase: Phase::Fresh,
            negotiation: Negotiation::new(),
            agreement: None,
            ring: ReceiveRing::default(),
            send: SendQueue::default(),
            receiving: Receiving::No,
            sending: false,
            parked: Parked::No,
            wants: VecDeque::new(),
            waiting: None,
            incoming: None,
            skip_bytes: 0,
            after_long: false,
            output: Vec::new(),
            ended: false,
            requests: 0,
            reply_held_bytes: 0,
            received_total: 0,
            sent_total: 0,
            accepted: now,
            moved: now,
            counters: Counters::default(),
            cause: CloseCause::Client,
            shut: false,
            is_dirty: false,
            is_ready: false,
        }
    }

    /// Whether it is on its way out.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Closed)
    }

    /// Whether the kernel has something of it.
    pub fn is_at_kernel(&self) -> bool {
        self.sending || self.receiving != Receiving::No
    }

    /// Whether it holds nothing but rings that can be given up.
    pub fn is_light(&self) -> bool {
        matches!(self.phase, Phase::Handshake | Phase::Transmission)
            && self.ring.is_attached()
            && self.ring.is_light()
            && self.send.is_idle()
            && !self.sending
            && self.parked == Parked::No
            && self.wants.is_empty()
            && self.incoming.is_none()
            && self.requests == 0
            && !self.ended
    }

    /// Whether it may hold memory of a lane.
    pub fn holds(&self, lane: Lane) -> bool {
        match lane {
            Lane::Buffers => self.ring.is_attached(),
            _ => {
                let receives = self.incoming.as_ref().is_some_and(|one| one.lane == lane);
                receives || self.reply_held_bytes > 0
            }
        }
    }

    /// Whether it is the client's turn.
    pub fn is_stalling(&self) -> bool {
        let owes_bytes = self.incoming.is_some() || self.ring.used() > 0;
        let can_receive = self.parked == Parked::No && self.receiving != Receiving::No;
        self.sending || (owes_bytes && can_receive)
    }
}
