//! Requests that were started and not answered.
//!
//! ```text
//! 0   mark: state u8, attempts u8, generation u16, checksum u32 of bytes 8..48
//! 8   arrival u64: where its header began in the stream
//! 16  cookie u64
//! 24  offset u64
//! 32  bytes u32, type u16, flags u16
//! 40  session u16, its generation u16, payload u32: the first page + 1 of a long one, the place in
//!     the receive ring where the header of a short write begins
//! 48  changes: the number the change is to get, 0 before that; reads: a step
//! 56  a step: bit 63 set, 46 bits of where a reply begins, 17 bits of what is done with it
//! ```
//!
//! A step says: once the stream to the client is queued beyond this position, so many sectors of
//! the read have been replied to, or the whole request has ([`DONE`]). A read's steps take turns in
//! the two words, so the one before stays until the new one counts.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_arena::{Memory, Span};
use bowline_disk::Witness;
use bowline_store::{Seq, Ticket};
use bowline_wire::{Cookie, RequestHeader};
use zerocopy::IntoBytes;

use super::{REQUEST_BYTES, seal};
use crate::slab::Key;
use crate::transmission::LONG_PAYLOAD_BYTES;

/// The progress of a request that has been replied to.
pub(crate) const DONE: u32 = (1 << 17) - 1;
/// In the place of a change's number: the request failed and its payload is gone.
pub(crate) const LET_GO: u64 = u64::MAX;

const STEP: u64 = 1 << 63;
const POSITION_BITS: u32 = 46;
const POSITION_MASK: u64 = (1 << POSITION_BITS) - 1;
const WORDS_AT: u32 = 48;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestState {
    Free,
    /// Its payload is being received.
    Receiving,
    /// It is being tried.
    Started,
    /// Its disk has taken it.
    Pending,
}

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestRecord {
    pub arrival: u64,
    pub header: RequestHeader,
    pub session: u16,
    pub session_generation: u16,
    pub payload: u32,
}

impl RequestRecord {
    /// Whether its payload is in pages of its own.
    pub fn is_long(&self) -> bool {
        self.header.payload_bytes() >= LONG_PAYLOAD_BYTES
    }

    fn words(&self) -> [u64; 5] {
        let RequestHeader { flags, kind, cookie, offset, bytes } = self.header;
        [
            self.arrival,
            cookie.0,
            offset,
            u64::from(bytes) | u64::from(kind) << 32 | u64::from(flags) << 48,
            u64::from(self.session)
                | u64::from(self.session_generation) << 16
                | u64::from(self.payload) << 32,
        ]
    }

    fn parse(words: [u64; 5]) -> RequestRecord {
        let [arrival, cookie, offset, what, whose] = words;
        RequestRecord {
            arrival,
            header: RequestHeader {
                flags: (what >> 48) as u16,
                kind: (what >> 32) as u16,
                cookie: Cookie(cookie),
                offset,
                bytes: what as u32,
            },
            session: whose as u16,
            session_generation: (whose >> 16) as u16,
            payload: (whose >> 32) as u32,
        }
    }
}

/// A published request as it is read back.
pub(super) struct Read {
    pub state: RequestState,
    pub attempts: u8,
    pub generation: u16,
    pub record: RequestRecord,
    pub words: [u64; 2],
}

/// Reads a request; none if its bytes are damaged.
pub(super) fn read(words: [u64; 8]) -> Option<Read> {
    let [mark, a, b, c, d, e, first, second] = words;
    let state = match mark as u8 {
        0 => RequestState::Free,
        1 => RequestState::Receiving,
        2 => RequestState::Started,
        3 => RequestState::Pending,
        _ => return None,
    };
    let generation = (mark >> 16) as u16;
    let content = [a, b, c, d, e];
    let is_sound = seal(u64::from(generation), &content) == (mark >> 32) as u32;
    (state == RequestState::Free || is_sound).then_some(Read {
        state,
        attempts: (mark >> 8) as u8,
        generation,
        record: RequestRecord::parse(content),
        words: [first, second],
    })
}

/// How much of a request was replied to by the time so many bytes were queued, by one step.
pub(super) fn progress(step: u64, queued: u64) -> Option<u32> {
    let position = step >> 17 & POSITION_MASK;
    let ahead = queued.wrapping_sub(position) & POSITION_MASK;
    let is_queued = step & STEP != 0 && ahead > 0 && ahead < 1 << (POSITION_BITS - 1);
    is_queued.then_some(step as u32 & DONE)
}

/// The records of requests.
pub(crate) struct Requests {
    memory: Rc<Memory>,
    span: Span,
    pub is_publish_broken: bool,
    pub is_silent: bool,
}

impl Requests {
    pub(super) fn new(memory: Rc<Memory>, span: Span) -> Requests {
        Requests { memory, span, is_publish_broken: false, is_silent: false }
    }

    /// Makes a request known.
    pub fn publish(&mut self, key: Key, record: &RequestRecord, state: RequestState, tries: u8) {
        let words = record.words();
        let at = key.slot * REQUEST_BYTES;
        let generation = key.generation as u16;
        let mark = u64::from(seal(u64::from(generation), &words)) << 32
            | u64::from(generation) << 16
            | u64::from(tries) << 8
            | state as u64;
        if self.is_publish_broken {
            self.memory.publish(&mut self.span, at, mark);
        }
        let [a, b, c, d, e] = words;
        self.memory.write(&mut self.span, at + 8, [a, b, c, d, e, 0, 0].as_bytes());
        self.memory.publish(&mut self.span, at, mark);
    }

    fn mark(&self, slot: u32) -> u64 {
        self.memory.read(&self.span, slot * REQUEST_BYTES)
    }

    /// The request goes on to another state.
    pub fn set_state(&mut self, key: Key, state: RequestState) {
        let mark = self.mark(key.slot) & !0xff | state as u64;
        self.memory.publish(&mut self.span, key.slot * REQUEST_BYTES, mark);
    }

    /// A process has died over it so often.
    pub fn set_attempts(&mut self, key: Key, attempts: u8) {
        let mark = self.mark(key.slot) & !0xff00 | u64::from(attempts) << 8;
        self.memory.publish(&mut self.span, key.slot * REQUEST_BYTES, mark);
    }

    /// The request is over, if it was known.
    pub fn free(&mut self, slot: u32) {
        if self.mark(slot) as u8 != RequestState::Free as u8 {
            self.memory.publish(&mut self.span, slot * REQUEST_BYTES, 0);
        }
    }

    /// The number its change was offered as; 0 if the store has not taken it.
    pub fn intended(&self, slot: u32) -> u64 {
        self.memory.read(&self.span, slot * REQUEST_BYTES + WORDS_AT)
    }

    /// Erases a number or a step, if there is one.
    pub fn forget_word(&mut self, slot: u32, cell: u32) {
        let at = slot * REQUEST_BYTES + WORDS_AT + cell * 8;
        if self.memory.read(&self.span, at) != 0 {
            self.memory.publish(&mut self.span, at, 0);
        }
    }

    /// What is queued at this position replies to so much of the request.
    pub fn step(&mut self, slot: u32, cell: u32, position: u64, progress: u32) {
        let word = STEP | (position & POSITION_MASK) << 17 | u64::from(progress);
        let at = slot * REQUEST_BYTES + WORDS_AT + cell % 2 * 8;
        self.memory.publish(&mut self.span, at, word);
    }
}

/// The requests as the disks' witness.
pub(crate) struct Witnessed {
    pub requests: Rc<RefCell<Requests>>,
    pub class: u8,
}

impl Witnessed {
    fn note(&self, ticket: Ticket, word: u64) {
        let slot = (ticket.0 & 0xff_ffff) as u32;
        let generation = (ticket.0 >> 40) as u16;
        let mut requests = self.requests.borrow_mut();
        if (ticket.0 >> 56) as u8 != self.class || slot * REQUEST_BYTES >= requests.span.bytes() {
            return;
        }
        let mark = requests.mark(slot);
        if mark as u8 != RequestState::Free as u8 && (mark >> 16) as u16 == generation {
            let Requests { memory, span, .. } = &mut *requests;
            memory.publish(span, slot * REQUEST_BYTES + WORDS_AT, word);
        }
    }
}

impl Witness for Witnessed {
    fn intends(&self, ticket: Ticket, seq: Seq) {
        self.note(ticket, seq.0);
    }

    fn refused(&self, ticket: Ticket) {
        self.note(ticket, 0);
    }

    fn lets_go(&self, ticket: Ticket) {
        if !self.requests.borrow().is_silent {
            self.note(ticket, LET_GO);
        }
    }
}
