//! What sessions leave to a successor: records of fixed size in the arena.
//!
//! ```text
//! 0      magic u64, sessions u32, requests u32, pages u32, reserved u32, checksum u64
//! 64     executing u64: whose request is being carried out, a word of its own
//! 72     connected u64: the last connection there was a session for, a word of its own
//! 4096   for each session 320 bytes: two streams of 64, two session records of 64, its connection
//! ..     for each request 64 bytes
//! ..     for each page of the arena a link of 8 bytes
//! ```
//!
//! Replies are described in a page of the session's own buffers. Positions are offsets in streams
//! and numbers of pages; nothing is a pointer, and nothing the kernel does is waited for.
//!
//! Invariants:
//! - **One word publishes.** A record's content is stored beside what counts, with a checksum, and
//!   one word makes it count: a *stream* has two copies, the valid one with the higher number is
//!   the session; a session record is the one its stream names; a request counts by the state in
//!   its mark; a reply record counts once the stream counts so many.
//! - **A transition of a session is one stream.** Bytes received, consumed, queued and sent, and
//!   what is at the kernel, change together.
//! - **Whoever holds pages says so before, and lets go after.** Pages are named by a published
//!   record before anything is received into them, and given back only after no record names them.
//!   Links carry the mark of their owner, so those of pages that have gone on to somebody else are
//!   told from one's own.
//! - **The order inside a request**: its record is published before it is tried; the number its
//!   change is to get is published before the store is asked ([`Requests`] is the disks' witness);
//!   where its reply begins is published before the stream that queues the reply; the record is
//!   freed after that. What a successor makes of each state is told in module `adopt`.
//! - **A session has a connection from the first.** Whose socket it is is said before there is a
//!   stream of it, by the number the connection has in every process of a family.
//! - **A stream may be late**: what was taken and answered becomes true with the session's next
//!   stream. That is published before the session's next request has a record, before an operation
//!   of the session goes to the kernel, before the next completion is taken, and before pages are
//!   given back that a record names. So at most one request of a session lies ahead of its stream,
//!   and replies that are queued together cost one stream.

mod found;
mod link;
mod reply;
mod request;
mod session;
mod stream;

use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Span};
use twox_hash::XxHash3_64;
use zerocopy::IntoBytes;

pub(crate) use found::{FoundReply, FoundRequest, FoundSession, Stands, damaged};
pub use found::{FoundSessions, RecordsError};
pub(crate) use link::{Links, Owner};
pub(crate) use reply::{REPLIES_MAX, ReplyRecord, store_reply};
pub(crate) use request::{DONE, LET_GO, RequestRecord, RequestState, Requests, Witnessed};
pub(crate) use session::SessionRecord;
pub(crate) use stream::{Stream, StreamPhase};

const MAGIC: u64 = u64::from_le_bytes(*b"BOWLSES2");
const EXECUTING_AT: u32 = 64;
const CONNECTED_AT: u32 = 72;
const SESSIONS_AT: u32 = PAGE_BYTES;
/// Bytes of all that is kept of one session here.
const SESSION_BYTES: u32 = 320;
const STREAM_BYTES: u32 = 64;
const RECORD_BYTES: u32 = 64;
const CONNECTION_BYTES: u32 = 64;
const REQUEST_BYTES: u32 = 64;
const LINK_BYTES: u32 = 8;

const _: () = {
    assert!(2 * STREAM_BYTES + 2 * RECORD_BYTES + CONNECTION_BYTES == SESSION_BYTES);
    assert!(size_of::<[u64; 8]>() as u32 == STREAM_BYTES);
    assert!(REPLIES_MAX as usize * size_of::<[u64; 4]>() == PAGE_BYTES as usize);
};

/// How many records of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub sessions: u32,
    pub requests: u32,
    pub pages: u32,
}

impl Shape {
    /// What a server with these limits needs in a memory of so many bytes.
    pub fn new(sessions: usize, requests: usize, memory_bytes: u64) -> Shape {
        assert!(sessions < 1 << 16 && requests <= 1 << 16, "sessions and requests have 16 bits");
        let pages = u32::try_from(memory_bytes / u64::from(PAGE_BYTES)).unwrap_or(u32::MAX);
        Shape { sessions: sessions as u32, requests: requests as u32, pages }
    }

    fn requests_at(self) -> u32 {
        SESSIONS_AT + (self.sessions * SESSION_BYTES).next_multiple_of(PAGE_BYTES)
    }

    fn links_at(self) -> u32 {
        self.requests_at() + (self.requests * REQUEST_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// Bytes of the region.
    pub fn bytes(self) -> u32 {
        self.links_at() + (self.pages * LINK_BYTES).next_multiple_of(PAGE_BYTES)
    }

    fn words(self) -> [u64; 3] {
        [MAGIC, u64::from(self.sessions) | u64::from(self.requests) << 32, u64::from(self.pages)]
    }

    /// The shape of a region, from its first bytes.
    fn parse(words: [u64; 4]) -> Option<Shape> {
        let [_, counts, pages, checksum] = words;
        let shape =
            Shape { sessions: counts as u32, requests: (counts >> 32) as u32, pages: pages as u32 };
        let sane = shape.sessions < 1 << 16 && shape.requests <= 1 << 16 && shape.pages < 1 << 28;
        (sane
            && words[..3] == shape.words()
            && checksum == XxHash3_64::oneshot(shape.words().as_bytes()))
        .then_some(shape)
    }
}

/// Ways to break the records that the tests must notice.
#[cfg_attr(not(test), expect(dead_code, reason = "no sound server is broken"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// What counts is published before its content.
    PublishBeforeContent,
    /// The kernel's result of a send is not asked for: the position is what was stored after it.
    ForgetSend,
    /// A change whose number was reached is made again.
    ExecuteAgain,
    /// Nobody says that a payload is gone.
    LetGoInSilence,
}

/// The checksum beside what counts.
fn seal(seed: u64, words: &[u64]) -> u32 {
    (XxHash3_64::oneshot_with_seed(seed, words.as_bytes()) >> 32) as u32
}

/// What is stored of a session's connection.
fn connection_words(generation: u32, connection: u64) -> [u64; 2] {
    let seal = seal(u64::from(generation), &[connection]);
    [connection, u64::from(generation) | u64::from(seal) << 32]
}

/// All records but requests and links.
pub(crate) struct Records {
    memory: Rc<Memory>,
    span: Span,
    /// By session: the number of its last stream.
    numbers: Vec<u32>,
    executing: u64,
    pub broken: Option<Broken>,
}

/// The region, cut into its parts.
pub(crate) struct Region {
    pub records: Records,
    pub requests: Requests,
    pub links: Links,
}

impl Region {
    /// Makes the region that of a server without sessions. What it held before is forgotten.
    ///
    /// # Panics
    /// If it is too small for the shape.
    pub fn format(memory: &Rc<Memory>, mut span: Span, shape: Shape) -> Region {
        assert!(span.bytes() >= shape.bytes(), "the region for sessions is too small");
        memory.publish(&mut span, 0, 0);
        memory.publish(&mut span, EXECUTING_AT, 0);
        memory.publish(&mut span, CONNECTED_AT, 0);
        for at in (SESSIONS_AT..shape.links_at()).step_by(PAGE_BYTES as usize) {
            memory.write(&mut span, at, &[0; PAGE_BYTES as usize]);
        }
        let words = shape.words();
        let checksum = XxHash3_64::oneshot(words.as_bytes());
        memory.write(&mut span, 8, [words[1], words[2], checksum].as_bytes());
        memory.publish(&mut span, 0, MAGIC);
        Region::of(memory, span, shape, vec![0; shape.sessions as usize])
    }

    /// Goes on with a region that was read.
    pub fn adopt(memory: &Rc<Memory>, span: Span, shape: Shape, numbers: Vec<u32>) -> Region {
        Region::of(memory, span, shape, numbers)
    }

    fn of(memory: &Rc<Memory>, mut span: Span, shape: Shape, numbers: Vec<u32>) -> Region {
        let mut requests = span.split_off(shape.requests_at());
        let links = requests.split_off(shape.links_at() - shape.requests_at());
        let memory = Rc::clone(memory);
        let executing = memory.read(&span, EXECUTING_AT);
        Region {
            requests: Requests::new(Rc::clone(&memory), requests),
            links: Links::new(Rc::clone(&memory), links),
            records: Records { memory, span, numbers, executing, broken: None },
        }
    }
}

/// Whose request is being carried out: the one to be suspected if the process dies now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Executing {
    Nobody,
    /// What comes next in the stream of a session.
    Session(u32),
    /// A request that was started before.
    Request(u32),
}

impl Executing {
    fn word(self) -> u64 {
        match self {
            Executing::Nobody => 0,
            Executing::Session(slot) => 1 << 32 | u64::from(slot),
            Executing::Request(slot) => 2 << 32 | u64::from(slot),
        }
    }

    fn parse(word: u64) -> Option<Executing> {
        match (word >> 32, word as u32) {
            (0, 0) => Some(Executing::Nobody),
            (1, slot) => Some(Executing::Session(slot)),
            (2, slot) => Some(Executing::Request(slot)),
            _ => None,
        }
    }
}

impl Records {
    fn session_at(slot: u32) -> u32 {
        SESSIONS_AT + slot * SESSION_BYTES
    }

    /// Makes a stream the state of a session.
    pub fn publish(&mut self, slot: u32, stream: &Stream) {
        let number = &mut self.numbers[slot as usize];
        // Behind the highest, which is odd, an even one follows; 0 says that there was none.
        *number = number.checked_add(1).unwrap_or(2);
        let number = *number;
        let words = stream.words();
        let mark = u64::from(number) | u64::from(seal(u64::from(number), &words)) << 32;
        let at = Records::session_at(slot) + (number & 1) * STREAM_BYTES;
        if self.broken == Some(Broken::PublishBeforeContent) {
            self.memory.publish(&mut self.span, at, mark);
        }
        self.memory.write(&mut self.span, at + 8, words.as_bytes());
        self.memory.publish(&mut self.span, at, mark);
    }

    /// Says whose socket a session has. No stream of it is published yet.
    pub fn connect(&mut self, slot: u32, generation: u32, connection: u64) {
        let at = Records::session_at(slot) + SESSION_BYTES - CONNECTION_BYTES;
        let words = connection_words(generation, connection);
        self.memory.write(&mut self.span, at, words.as_bytes());
    }

    /// Notes that a connection has its session, or is refused one. Those before it had theirs.
    pub fn connected(&mut self, connection: u64) {
        self.memory.publish(&mut self.span, CONNECTED_AT, connection);
    }

    /// The number of a session's last stream.
    pub fn number(&self, slot: u32) -> u32 {
        self.numbers[slot as usize]
    }

    /// Stores what changes seldom of a session. It counts when a stream names this copy.
    pub fn store(&mut self, slot: u32, copy: bool, record: &SessionRecord) {
        let at = Records::session_at(slot) + 2 * STREAM_BYTES + u32::from(copy) * RECORD_BYTES;
        self.memory.write(&mut self.span, at, &record.encode());
    }

    /// Notes whose request is being carried out.
    pub fn execute(&mut self, who: Executing) {
        let word = who.word();
        if self.executing != word {
            self.executing = word;
            self.memory.publish(&mut self.span, EXECUTING_AT, word);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use bowline_arena::Pages;
    use bowline_wire::Negotiation;

    use super::*;
    use crate::interface::CloseCause;

    fn stream(received: u64) -> Stream {
        Stream {
            received,
            consumed: received,
            ring_head: 0,
            ring_used: 0,
            queued: 0,
            sent: 0,
            send_head: 0,
            send_used: 0,
            replies: 0,
            phase: StreamPhase::Handshake,
            cause: CloseCause::Client,
            ended: false,
            after_long: false,
            copy: false,
            receiving: false,
            sending: false,
            receive_number: 0,
            send_number: 0,
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_leaves_the_one_before_when_numbers_begin_anew_too() {
        let memory = Rc::new(Memory::private(64 << 10));
        let mut pages = Pages::whole(Rc::clone(&memory));
        let span = pages.take(8).unwrap();
        let part = span.part();
        let shape = Shape::new(1, 1, memory.bytes_total());
        let mut records = Region::format(&memory, span, shape).records;
        let record = SessionRecord {
            generation: 0,
            buffers: 0,
            negotiation: Negotiation::new().to_record(),
            agreement: None,
            attempts: 0,
            attempts_at: 0,
            carried: [0; 28],
        };
        records.connect(0, record.generation, 1);
        records.store(0, false, &record);
        for first in [0, u32::MAX - 3] {
            records.numbers[0] = first;
            for received in 1..8 {
                records.publish(0, &stream(received));
                for stores in 1..=2 {
                    let number = records.numbers[0];
                    memory.cut_after(Some(stores));
                    let next = || records.publish(0, &stream(received + 1));
                    assert!(catch_unwind(AssertUnwindSafe(next)).is_err());
                    memory.cut_after(None);
                    let later = Rc::new(memory.successor());
                    let region = Pages::whole(Rc::clone(&later)).adopt(part).unwrap();
                    let found = FoundSessions::read(&later, &region).unwrap();
                    let whole = u64::from(stores == 2);
                    assert_eq!(found.sessions[0].stream.received, received + whole);
                    records.numbers[0] = number;
                }
            }
        }
    }
}
