//! What is known of one connection.

use std::collections::VecDeque;

use bowline_arena::{PAGE_BYTES, Part, Span};
use bowline_store::{DiskId, Micros, Seq};
use bowline_wire::{Negotiation, REQUEST_BYTES, RequestHeader};

use crate::Counters;
use crate::budget::{Lane, Loan};
use crate::interface::CloseCause;
use crate::receive::ReceiveRing;
use crate::records::{SessionRecord, Stream, StreamPhase};
use crate::send::{PARTS_MAX, SendQueue};
use crate::slab::Key;
use crate::write::place_of;

/// Bytes of the receive ring: the longest payload that is received into it, its header, and room
/// to receive on.
pub(crate) const RECEIVE_RING_BYTES: u32 = 17 * PAGE_BYTES;
/// Bytes of the send ring.
pub(crate) const SEND_RING_BYTES: u32 = 4 * PAGE_BYTES;
/// Bytes of the buffers of a session: both rings, then a page of reply records.
pub(crate) const BUFFER_BYTES: u32 = RECEIVE_RING_BYTES + SEND_RING_BYTES + PAGE_BYTES;

const _: () = assert!(SEND_RING_BYTES <= u16::MAX as u32);

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
    /// Until there is a record for another request.
    Requests,
}

/// A long write that is being received into the spans it stays in.
pub(crate) struct Incoming {
    /// Its request.
    pub key: Key,
    /// Where its header began in the stream.
    pub arrival: u64,
    pub header: RequestHeader,
    pub fua: bool,
    pub spans: Vec<Span>,
    pub lane: Lane,
    pub filled: u32,
}

impl Incoming {
    /// Where the next bytes of the payload go, how many those are, and whether they are all.
    pub fn parts(&self) -> (Vec<Part>, u32, bool) {
        let before = place_of(&self.header);
        let (mut parts, mut skip, mut payload_bytes) = (Vec::new(), before + self.filled, 0);
        let mut left = before + self.header.bytes;
        for span in &self.spans {
            let bytes = span.bytes().min(left);
            left -= bytes;
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            if parts.len() == PARTS_MAX - 1 {
                return (parts, payload_bytes, false);
            }
            parts.push(span.part().sub(skip, bytes - skip));
            payload_bytes += bytes - skip;
            skip = 0;
        }
        (parts, payload_bytes, true)
    }
}

/// What a session needs memory for, in the order of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// To receive a payload.
    Payload { header: RequestHeader, fua: bool, key: Key },
    /// To read.
    Read(Key),
    /// To send the answer to an option that is longer than the send ring.
    Output { bytes: u32 },
}

/// What is known of a dead process's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its change has this number; it is not to be made again.
    Admitted(Seq),
    /// It has had no effect, as far as it was not replied to.
    Open,
    /// It failed, or too many processes have died over it.
    Failed,
}

/// A request that is to be taken up where a dead process left it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TakeUp {
    pub key: Key,
    pub header: RequestHeader,
    pub arrival: u64,
    /// Where in the ring a short write begins.
    pub begins: u32,
    pub verdict: Verdict,
}

pub(crate) struct Session {
    pub phase: Phase,
    pub negotiation: Negotiation,
    pub agreement: Option<Agreement>,
    pub ring: ReceiveRing,
    pub send: SendQueue,
    pub receiving: Receiving,
    pub receive_number: u8,
    /// A send is at the kernel.
    pub sending: bool,
    pub send_number: u8,
    pub parked: Parked,
    pub wants: VecDeque<Want>,
    /// The lane it stands in, for the first of its wants or for buffers.
    pub waiting: Option<Lane>,
    pub incoming: Option<Incoming>,
    /// Payload bytes of a refused write that are still to be skipped.
    pub skip_bytes: u32,
    /// The last request was a long write: the next header is received by itself.
    pub after_long: bool,
    /// Memory for the answer to an option.
    pub output: Vec<Loan>,
    /// The client sends nothing more.
    pub ended: bool,
    /// Requests started and not finished.
    pub requests: u32,
    /// Short writes whose payloads are kept in the ring, and where in it their headers begin, in
    /// order; those without a request are over.
    pub kept: VecDeque<(Option<Key>, u32)>,
    /// Requests of a dead process, to be taken up before others.
    pub to_take_up: VecDeque<TakeUp>,
    /// The next request in the stream was admitted by a dead process already.
    pub in_doubt: Option<(Key, Seq)>,
    /// How often a process has died over what comes next in the stream.
    pub attempts: u8,
    /// Bytes of read data that are held, from the read until they are sent.
    pub reply_held_bytes: u64,
    pub received_total: u64,
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
    /// Where the buffers are: their first page plus one.
    pub buffers: u32,
    /// Which copy of its record is the current one; whether another is to be stored.
    pub copy: bool,
    pub is_record_old: bool,
    /// Something has changed that the arena does not say.
    pub is_unpublished: bool,
    /// A request was taken or answered since: the arena is told before the next one is looked at.
    pub owes_stream: bool,
    /// Requests whose replies are queued: their records go when the stream that says so is there.
    pub concluded: Vec<Key>,
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
            receive_number: 0,
            sending: false,
            send_number: 0,
            parked: Parked::No,
            wants: VecDeque::new(),
            waiting: None,
            incoming: None,
            skip_bytes: 0,
            after_long: false,
            output: Vec::new(),
            ended: false,
            requests: 0,
            kept: VecDeque::new(),
            to_take_up: VecDeque::new(),
            in_doubt: None,
            attempts: 0,
            reply_held_bytes: 0,
            received_total: 0,
            accepted: now,
            moved: now,
            counters: Counters::default(),
            cause: CloseCause::Client,
            shut: false,
            is_dirty: false,
            is_ready: false,
            buffers: 0,
            copy: false,
            is_record_old: true,
            is_unpublished: true,
            owes_stream: false,
            concluded: Vec::new(),
        }
    }

    /// Where in the stream the first byte lies that is not parsed.
    pub fn position(&self) -> u64 {
        self.received_total - u64::from(self.ring.used())
    }

    /// Where in the stream the next message begins, or ends that is being received elsewhere.
    pub fn consumed(&self) -> u64 {
        match &self.incoming {
            Some(one) => one.arrival + REQUEST_BYTES as u64 + u64::from(one.header.bytes),
            None => self.position() + u64::from(self.skip_bytes),
        }
    }

    /// Bytes at the front of the ring are used up.
    pub fn consume(&mut self, bytes: u32) {
        self.ring.consume(bytes);
        self.is_unpublished = true;
        self.keep_bytes();
        if self.attempts > 0 {
            (self.attempts, self.is_record_old) = (0, true);
        }
    }

    /// Keeps what the short writes at the disk may need again.
    pub fn keep_bytes(&mut self) {
        while self.kept.front().is_some_and(|(key, _)| key.is_none()) {
            self.kept.pop_front();
        }
        let kept = self.kept.front().map_or(0, |(_, begins)| self.ring.behind(*begins));
        self.ring.keep(kept);
    }

    /// The payload of a request that is over need not be kept.
    pub fn forget_kept(&mut self, key: Key) {
        if let Some(kept) = self.kept.iter_mut().find(|(other, _)| *other == Some(key)) {
            kept.0 = None;
            self.keep_bytes();
        }
    }

    /// What a successor has to know of its streams.
    pub fn stream(&self) -> Stream {
        let (send_head, send_used, replies) = self.send.places();
        Stream {
            received: self.received_total,
            consumed: self.consumed(),
            ring_head: self.ring.head(),
            ring_used: self.ring.used(),
            queued: self.send.queued(),
            sent: self.send.sent_total(),
            send_head: send_head as u16,
            send_used: send_used as u16,
            replies,
            phase: match self.phase {
                Phase::Fresh => StreamPhase::Fresh,
                Phase::Handshake => StreamPhase::Handshake,
                Phase::Transmission => StreamPhase::Transmission,
                Phase::Draining => StreamPhase::Draining,
                Phase::Closing => StreamPhase::Closing,
                Phase::Closed => StreamPhase::Free,
            },
            cause: self.cause,
            ended: self.ended,
            after_long: self.after_long,
            copy: self.copy,
            receiving: matches!(self.receiving, Receiving::Posted { .. }),
            sending: self.sending,
            receive_number: self.receive_number,
            send_number: self.send_number,
        }
    }

    /// The rest of it.
    pub fn record(&self, generation: u32) -> SessionRecord {
        let agreement = self.agreement.map(|one| (one.disk.0, one.structured, one.allocation));
        SessionRecord {
            generation,
            buffers: self.buffers,
            negotiation: self.negotiation.to_record(),
            agreement,
            attempts: self.attempts,
            attempts_at: self.consumed(),
            carried: self.ring.carried(),
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
            && self.output.is_empty()
            && self.requests == 0
            && self.in_doubt.is_none()
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
