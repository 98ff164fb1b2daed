//! Reading the records of a dead process. Nothing is believed that does not verify; what is
//! damaged is told, and nothing is changed.

use bowline_arena::{Memory, PAGE_BYTES, Pages, Part, Span};
use bowline_wire::values::command;
use bowline_wire::{Negotiation, REQUEST_BYTES as HEADER_BYTES};
use zerocopy::FromBytes;

use super::link::walk;
use super::request::{self, RequestState, progress};
use super::{
    CONNECTED_AT, CONNECTION_BYTES, DONE, EXECUTING_AT, Executing, MAGIC, Owner, RECORD_BYTES,
    REPLIES_MAX, REQUEST_BYTES, Records, ReplyRecord, RequestRecord, SESSION_BYTES, STREAM_BYTES,
    SessionRecord, Shape, Stream, StreamPhase, connection_words, seal,
};
use crate::budget::Lane;
use crate::interface::SessionId;
use crate::session::{BUFFER_BYTES, RECEIVE_RING_BYTES, SEND_RING_BYTES};
use crate::slab::Key;

/// Why the records of a dead process cannot be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// There are none: never made, or the process died while it made them.
    #[error("the arena holds no sessions")]
    None,
    /// Something in them does not verify.
    #[error("the arena's records of sessions are damaged: {0}; their clients have to reconnect")]
    Damaged(String),
}

pub(crate) fn damaged(what: impl Into<String>) -> RecordsError {
    RecordsError::Damaged(what.into())
}

/// Data of a reply that was not sent as a whole.
pub(crate) struct FoundReply {
    pub position: u64,
    pub bytes: u32,
    pub skip: u16,
    pub lane: Lane,
    pub parts: Vec<Part>,
}

/// A session as it was published last.
pub(crate) struct FoundSession {
    pub slot: u32,
    pub stream: Stream,
    pub record: SessionRecord,
    /// The number of its connection.
    pub connection: u64,
    pub negotiation: Negotiation,
    pub replies: Vec<FoundReply>,
}

/// Where a request stands towards its session's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// It has been replied to, or its session is gone.
    Over,
    /// The stream does not count it as taken yet.
    Next,
    /// It was taken and waits for its reply.
    Taken,
}

/// A request as it was published last.
pub(crate) struct FoundRequest {
    pub slot: u32,
    pub generation: u16,
    pub attempts: u8,
    pub state: RequestState,
    pub record: RequestRecord,
    pub words: [u64; 2],
    /// Where its payload lies, if it is its own.
    pub parts: Option<Vec<Part>>,
}

/// The sessions of a dead process, as its records tell.
pub struct FoundSessions {
    pub(crate) shape: Shape,
    pub(crate) numbers: Vec<u32>,
    pub(crate) executing: Executing,
    connected: u64,
    pub(crate) sessions: Vec<FoundSession>,
    pub(crate) requests: Vec<FoundRequest>,
}

impl FoundRequest {
    /// How much of it has been replied to, by what is queued.
    pub fn progress(&self, queued: u64) -> u32 {
        let [first, second] = self.words;
        let first = if self.record.header.kind == command::READ { first } else { 0 };
        let of = |step| progress(step, queued).unwrap_or(0);
        of(first).max(of(second))
    }

    /// Whether the reply that a step speaks of is queued.
    pub fn is_step_queued(&self, cell: usize, queued: u64) -> bool {
        self.words.get(cell).is_some_and(|step| progress(*step, queued).is_some())
    }

    /// Which word holds the last step of a read that counts: the next goes to the other.
    pub fn last_cell(&self, queued: u64) -> u32 {
        let [first, second] = self.words.map(|step| progress(step, queued).unwrap_or(0));
        u32::from(second > first)
    }

    /// Where it stands.
    pub fn stands(&self, session: Option<&FoundSession>) -> Result<Stands, RecordsError> {
        let generation = self.record.session_generation;
        let found = session.filter(|one| one.record.generation as u16 == generation);
        let Some(session) = found else { return Ok(Stands::Over) };
        let stream = &session.stream;
        let arrival = self.record.arrival;
        // A change that was answered at once: the stream that queued the reply took the request.
        let at_once = self.state == RequestState::Started
            && !self.record.is_long()
            && arrival < stream.consumed;
        if stream.phase == StreamPhase::Closing || at_once || self.progress(stream.queued) == DONE {
            return Ok(Stands::Over);
        }
        if arrival > stream.consumed {
            let slot = self.slot;
            return Err(damaged(format!("request {slot} lies ahead of its session's stream")));
        }
        Ok(if arrival == stream.consumed { Stands::Next } else { Stands::Taken })
    }
}

impl FoundSessions {
    /// Reads what a dead process left in the region. Nothing of it runs or lands any more.
    ///
    /// # Errors
    /// [`RecordsError`]; the region is as it was.
    pub fn read(memory: &Memory, region: &Span) -> Result<FoundSessions, RecordsError> {
        let reader = Reader { memory, bytes: memory.slice(region) };
        let head: [u64; 4] = reader.words(0).ok_or(RecordsError::None)?;
        if head[0] != MAGIC {
            return Err(RecordsError::None);
        }
        let shape = Shape::parse(head).ok_or_else(|| damaged("their head"))?;
        let pages = memory.bytes_total() / u64::from(PAGE_BYTES);
        if shape.bytes() > region.bytes() || u64::from(shape.pages) != pages {
            return Err(damaged("their region is too small"));
        }
        let executing = reader.words(EXECUTING_AT).and_then(|[word]| Executing::parse(word));
        let mut found = FoundSessions {
            shape,
            numbers: vec![0; shape.sessions as usize],
            connected: reader.words(CONNECTED_AT).map_or(0, |[word]| word),
            executing: executing.ok_or_else(|| damaged("whose request was being carried out"))?,
            sessions: Vec::new(),
            requests: Vec::new(),
        };
        for slot in 0..shape.sessions {
            found.session(&reader, slot)?;
        }
        for slot in 0..shape.requests {
            found.request(&reader, slot)?;
        }
        Ok(found)
    }

    /// The last connection there was a session for. One with a higher number is new; one up to it
    /// that has no session has been closed.
    #[must_use]
    pub fn connected_through(&self) -> u64 {
        let last = self.sessions.iter().map(|session| session.connection).max();
        self.connected.max(last.unwrap_or(0))
    }

    /// Number of sessions there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there were none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The sessions, and the number of each one's connection.
    pub fn connections(&self) -> impl Iterator<Item = (SessionId, u64)> + '_ {
        self.sessions.iter().map(|session| {
            let key = Key { slot: session.slot, generation: session.record.generation };
            (SessionId(key), session.connection)
        })
    }

    /// Keeps the pages of the sessions, before anybody takes one.
    ///
    /// # Errors
    /// If a record names what are no pages.
    pub fn keep(&self, pages: &mut Pages) -> Result<(), RecordsError> {
        let mut keep = |part: &Part| {
            let kept = pages.keep(*part);
            kept.then_some(()).ok_or_else(|| damaged(format!("no pages: {part:?}")))
        };
        for session in self.sessions.iter().filter(|one| !one.is_closing()) {
            session.buffers().iter().try_for_each(&mut keep)?;
            session.replies.iter().flat_map(|reply| &reply.parts).try_for_each(&mut keep)?;
        }
        for request in &self.requests {
            if request.stands(self.session_at(request.record.session))? != Stands::Over {
                request.parts.iter().flatten().try_for_each(&mut keep)?;
            }
        }
        Ok(())
    }

    pub(crate) fn session_at(&self, slot: u16) -> Option<&FoundSession> {
        let slot = u32::from(slot);
        let at = self.sessions.binary_search_by_key(&slot, |session| session.slot).ok()?;
        self.sessions.get(at)
    }

    fn session(&mut self, reader: &Reader<'_>, slot: u32) -> Result<(), RecordsError> {
        let at = Records::session_at(slot);
        let wrong = |what: &str| damaged(format!("session {slot}: {what}"));
        let copies = [at, at + STREAM_BYTES].map(|at| reader.words::<8>(at));
        let [Some(first), Some(second)] = copies else { return Err(wrong("out of the region")) };
        let read = |words: [u64; 8]| {
            let [mark, words @ ..] = words;
            let is_sound = (mark >> 32) as u32 == seal(u64::from(mark as u32), &words);
            is_sound.then(|| Some((mark as u32, Stream::parse(words)?))).flatten()
        };
        let (first, second, marks) = (read(first), read(second), first[0] | second[0]);
        let newest = match (first, second) {
            (Some(one), Some(other)) => {
                Some(if one.0.wrapping_sub(other.0).cast_signed() > 0 { one } else { other })
            }
            (one, other) => one.or(other),
        };
        let Some((number, stream)) = newest else {
            return if marks == 0 { Ok(()) } else { Err(wrong("neither of its streams verifies")) };
        };
        self.numbers[slot as usize] = number;
        if stream.phase == StreamPhase::Free {
            return Ok(());
        }
        let record_at = at + 2 * STREAM_BYTES + u32::from(stream.copy) * RECORD_BYTES;
        let record = reader.bytes(record_at).as_ref().and_then(SessionRecord::parse);
        let record = record.ok_or_else(|| wrong("its record does not verify"))?;
        let negotiation = Negotiation::from_record(&record.negotiation)
            .map_err(|_| wrong("its negotiation is none"))?;
        let connection_at = at + SESSION_BYTES - CONNECTION_BYTES;
        let [connection, mark] = reader.words(connection_at).unwrap_or_default();
        let is_known = [connection, mark] == connection_words(record.generation, connection);
        if !is_known && stream.phase != StreamPhase::Closing {
            return Err(wrong("its connection does not verify"));
        }
        let replies = Vec::new();
        let mut session = FoundSession { slot, stream, record, connection, negotiation, replies };
        session.check(reader).ok_or_else(|| wrong("it contradicts itself"))?;
        if !session.is_closing() {
            session.replies = reader
                .replies(&session)
                .ok_or_else(|| wrong("what it has to send does not verify"))?;
        }
        self.sessions.push(session);
        Ok(())
    }

    fn request(&mut self, reader: &Reader<'_>, slot: u32) -> Result<(), RecordsError> {
        let at = self.shape.requests_at() + slot * REQUEST_BYTES;
        let words = reader.words(at).ok_or_else(|| damaged("a request out of the region"))?;
        let read = request::read(words);
        let read = read.ok_or_else(|| damaged(format!("request {slot} does not verify")))?;
        if read.state == RequestState::Free {
            return Ok(());
        }
        let owner = Owner::Request(slot, u32::from(read.generation));
        let (first, bytes) = (read.record.payload, read.record.header.bytes);
        let parts = if read.record.is_long() {
            walk(|page| reader.link(self.shape, page), first, owner, bytes)
        } else {
            Some(Vec::new())
        };
        self.requests.push(FoundRequest {
            slot,
            generation: read.generation,
            attempts: read.attempts,
            state: read.state,
            record: read.record,
            words: read.words,
            parts,
        });
        Ok(())
    }
}

impl FoundSession {
    pub fn is_closing(&self) -> bool {
        self.stream.phase == StreamPhase::Closing
    }

    /// Its buffers, if it has any.
    pub fn buffers(&self) -> Option<Part> {
        let page = u64::from(self.record.buffers.checked_sub(1)?);
        Some(Part { offset: page * u64::from(PAGE_BYTES), bytes: BUFFER_BYTES })
    }

    /// Position of the first byte that is not parsed.
    pub fn position(&self) -> u64 {
        self.stream.received - u64::from(self.stream.ring_used)
    }

    fn check(&self, reader: &Reader<'_>) -> Option<()> {
        let stream = &self.stream;
        let used = u64::from(stream.ring_used);
        let position = stream.received.checked_sub(used)?;
        let in_rings = stream.ring_head < RECEIVE_RING_BYTES
            && stream.ring_used <= RECEIVE_RING_BYTES
            && u32::from(stream.send_head) < SEND_RING_BYTES
            && u32::from(stream.send_used) <= SEND_RING_BYTES;
        let in_order = stream.consumed >= position && stream.queued >= stream.sent;
        let in_memory = match self.buffers() {
            Some(part) => part.offset + u64::from(part.bytes) <= reader.memory.bytes_total(),
            None => {
                let is_light = (stream.ring_used as usize) < HEADER_BYTES;
                is_light && stream.queued == stream.sent && !stream.receiving && !stream.sending
            }
        };
        (in_rings && in_order && in_memory).then_some(())
    }
}

/// The region and the memory around it.
struct Reader<'a> {
    memory: &'a Memory,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn words<const N: usize>(&self, at: u32) -> Option<[u64; N]> {
        let bytes = self.bytes.get(at as usize..)?;
        Some(<[u64; N]>::read_from_prefix(bytes).ok()?.0)
    }

    fn bytes(&self, at: u32) -> Option<[u8; 64]> {
        self.bytes.get(at as usize..)?.first_chunk().copied()
    }

    fn link(&self, shape: Shape, page: u32) -> Option<u64> {
        if page >= shape.pages {
            return None;
        }
        let [word] = self.words(shape.links_at() + page * 8)?;
        Some(word)
    }

    /// The data that a session has to send, first to last.
    fn replies(&self, session: &FoundSession) -> Option<Vec<FoundReply>> {
        let stream = &session.stream;
        let Some(buffers) = session.buffers() else { return Some(Vec::new()) };
        let shape = Shape::parse(self.words(0)?)?;
        let mut page = Vec::new();
        let skip = RECEIVE_RING_BYTES + SEND_RING_BYTES;
        self.memory.fetch(buffers.sub(skip, PAGE_BYTES), &mut page);
        let (mut found, mut data_bytes, mut limit) = (Vec::new(), 0, stream.queued);
        for back in 1..=REPLIES_MAX.min(stream.replies) {
            let number = stream.replies.wrapping_sub(back);
            let bytes = page.get((number % REPLIES_MAX * 32) as usize..)?;
            let words = <[u64; 4]>::read_from_prefix(bytes).ok()?.0;
            let record = ReplyRecord::parse(words, session.slot, number)?;
            let end = record.position.checked_add(u64::from(record.bytes))?;
            if end > limit || record.bytes == 0 || u32::from(record.skip) >= PAGE_BYTES {
                return None;
            }
            if end <= stream.sent {
                break;
            }
            limit = record.position;
            data_bytes += end - record.position.max(stream.sent);
            let held = record.bytes.checked_add(u32::from(record.skip))?;
            let owner = Owner::Reply(session.slot, number);
            let parts = walk(|page| self.link(shape, page), record.first, owner, held)?;
            let ReplyRecord { position, bytes, skip, lane, .. } = record;
            found.push(FoundReply { position, bytes, skip, lane, parts });
        }
        found.reverse();
        let rest = stream.queued - stream.sent - data_bytes;
        (rest == u64::from(stream.send_used)).then_some(found)
    }
}
