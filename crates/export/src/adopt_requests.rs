//! What becomes of the requests of a dead process: the table in module `adopt`, line by line.

use bowline_arena::Span;
use bowline_store::Seq;
use bowline_wire::REQUEST_BYTES;
use bowline_wire::values::{command, command_flag};

use crate::budget::Lane;
use crate::records::{
    Broken, Executing, FoundRequest, FoundSession, LET_GO, RecordsError, RequestState, damaged,
};
use crate::request::{Kind, REPLY_BYTES, Read, Request, STATUS_BYTES};
use crate::server::NbdServer;
use crate::session::{Incoming, RECEIVE_RING_BYTES, TakeUp, Verdict};
use crate::slab::Key;

/// What a predecessor's records are judged by.
pub(crate) struct Judge {
    pub admitted: Seq,
    pub executing: Executing,
    pub broken: Option<Broken>,
}

impl Judge {
    /// The number of a request's change, if the store has given it.
    fn number(&self, found: &FoundRequest) -> Option<Seq> {
        let word = found.words[0];
        let is_given = word != 0 && word <= self.admitted.0;
        (is_change(found) && is_given && self.broken != Some(Broken::ExecuteAgain))
            .then_some(Seq(word))
    }

    /// Whether the process died carrying it out, or while the store was asked to admit it.
    fn suspects(&self, found: &FoundRequest) -> bool {
        let is_offered = is_change(found) && found.words[0] != 0 && found.words[0] != LET_GO;
        self.executing == Executing::Request(found.slot)
            || (is_offered && found.words[0] > self.admitted.0)
    }

    fn verdict(&self, found: &FoundRequest) -> Verdict {
        match self.number(found) {
            Some(seq) => Verdict::Admitted(seq),
            None if found.words[0] == LET_GO => Verdict::Failed,
            None => Verdict::Open,
        }
    }
}

impl NbdServer {
    /// Registers a request where it was, with room for its reply if it is started.
    fn adopt_request(
        &mut self,
        found: &FoundRequest,
        session: &FoundSession,
        reserved: u32,
        kind: Kind,
        judge: &Judge,
    ) -> Result<(Key, Key), RecordsError> {
        let wrong = |what: &str| damaged(format!("request {}: {what}", found.slot));
        let id = Key { slot: session.slot, generation: session.record.generation };
        let Some(owner) = self.sessions.get_mut(id) else { return Err(wrong("nobody's")) };
        let Some(agreement) = owner.agreement else { return Err(wrong("before any agreement")) };
        let is_started = reserved > 0;
        if !owner.send.reserve(reserved) {
            return Err(wrong("no room for its reply"));
        }
        owner.requests += u32::from(is_started);
        let key = Key { slot: found.slot, generation: u32::from(found.generation) };
        let is_suspect = judge.suspects(found);
        let attempts = found.attempts.saturating_add(u8::from(is_suspect));
        if is_suspect {
            self.table.borrow_mut().set_attempts(key, attempts);
        }
        let header = found.record.header;
        let request = Request {
            session: id,
            disk: agreement.disk,
            cookie: header.cookie,
            offset: header.offset,
            bytes: header.bytes,
            kind,
            reserved,
            replies_reserved: 0,
            outstanding: 0,
            is_started,
            is_known: true,
            is_taken: true,
            steps: found.last_cell(session.stream.queued),
            step_stream: None,
            attempts,
            payload: Vec::new(),
        };
        if !self.requests.insert_at(key, request) {
            return Err(wrong("there are two of it"));
        }
        Ok((id, key))
    }

    /// A request that the stream does not count as taken.
    pub(crate) fn adopt_next(
        &mut self,
        found: &FoundRequest,
        session: &FoundSession,
        judge: &Judge,
    ) -> Result<(), RecordsError> {
        let Some(seq) = judge.number(found) else {
            self.table.borrow_mut().free(found.slot);
            return Ok(());
        };
        let writes = found.record.header.kind != command::TRIM;
        let kind = Kind::Plain { writes };
        let (id, key) = self.adopt_request(found, session, REPLY_BYTES, kind, judge)?;
        if let Some(request) = self.requests.get_mut(key) {
            request.is_taken = false;
        }
        // Whatever it was before: when the stream takes it, it is replied to.
        self.table.borrow_mut().set_state(key, RequestState::Started);
        let doubt = self.sessions.get_mut(id).and_then(|one| one.in_doubt.replace((key, seq)));
        match doubt {
            None => Ok(()),
            Some(_) => Err(damaged(format!("session {} has two requests next", id.slot))),
        }
    }

    /// A request that the stream has left behind and not replied to.
    pub(crate) fn adopt_taken(
        &mut self,
        found: &FoundRequest,
        session: &FoundSession,
        judge: &Judge,
    ) -> Result<Option<(Key, TakeUp)>, RecordsError> {
        let header = found.record.header;
        let arrival = found.record.arrival;
        let verdict = judge.verdict(found);
        self.erase_untrue(found, session, verdict);
        let is_write = header.kind == command::WRITE;
        let is_long = found.record.is_long();
        let wrong = |what: &str| damaged(format!("request {}: {what}", found.slot));
        if is_long && verdict == Verdict::Open && found.state != RequestState::Pending {
            self.adopt_incoming(found, session, judge)?;
            return Ok(None);
        }
        if found.state != RequestState::Pending && !is_long {
            return Err(wrong("taken, and nobody has it"));
        }
        let reserved =
            if header.kind == command::BLOCK_STATUS { STATUS_BYTES } else { REPLY_BYTES };
        let kind = adopted_kind(found, session).ok_or_else(|| wrong("its progress is none"))?;
        let (id, key) = self.adopt_request(found, session, reserved, kind, judge)?;
        if is_write && verdict == Verdict::Open {
            let payload = self.claim_payload(found)?;
            if let Some(request) = self.requests.get_mut(key) {
                request.payload = payload;
            }
            let session = self.sessions.get_mut(id).filter(|_| !is_long);
            if let Some(session) = session {
                let begins = found.record.payload;
                let in_ring = session.ring.is_attached() && begins < RECEIVE_RING_BYTES;
                let bytes = REQUEST_BYTES as u32 + header.bytes;
                if !in_ring || session.ring.behind(begins) < bytes {
                    return Err(wrong("its payload is not in the ring"));
                }
                session.kept.push_back((Some(key), begins));
            }
        }
        let begins = found.record.payload;
        Ok(Some((id, TakeUp { key, header, arrival, begins, verdict })))
    }

    /// What would become true of somebody else is erased.
    fn erase_untrue(&mut self, found: &FoundRequest, session: &FoundSession, verdict: Verdict) {
        let mut table = self.table.borrow_mut();
        let is_read = found.record.header.kind == command::READ;
        if !is_read && verdict == Verdict::Open {
            table.forget_word(found.slot, 0);
        }
        for cell in [0, 1].into_iter().filter(|cell| *cell == 1 || is_read) {
            if !found.is_step_queued(cell, session.stream.queued) {
                table.forget_word(found.slot, cell as u32);
            }
        }
    }

    fn claim_payload(&mut self, found: &FoundRequest) -> Result<Vec<Span>, RecordsError> {
        let lane = Lane::of(found.record.header.bytes);
        let parts = found.parts.as_ref();
        let parts = parts.ok_or_else(|| damaged(format!("request {}: no payload", found.slot)))?;
        parts.iter().map(|part| self.claim(*part, lane)).collect()
    }

    /// A payload that is being received, or is here and was not taken.
    fn adopt_incoming(
        &mut self,
        found: &FoundRequest,
        session: &FoundSession,
        judge: &Judge,
    ) -> Result<(), RecordsError> {
        let wrong = |what: &str| damaged(format!("request {}: {what}", found.slot));
        let (header, arrival) = (found.record.header, found.record.arrival);
        let begins = arrival.saturating_add(REQUEST_BYTES as u64);
        let filled = session.position().checked_sub(begins).and_then(|it| u32::try_from(it).ok());
        let ends = begins.saturating_add(u64::from(header.bytes));
        let filled = filled.filter(|filled| *filled <= header.bytes);
        let filled = filled.filter(|_| ends == session.stream.consumed);
        let filled = filled.ok_or_else(|| wrong("its payload is elsewhere in the stream"))?;
        let kind = Kind::Plain { writes: true };
        let (id, key) = self.adopt_request(found, session, 0, kind, judge)?;
        let spans = self.claim_payload(found)?;
        self.table.borrow_mut().set_state(key, RequestState::Receiving);
        let fua = header.flags & command_flag::FUA != 0;
        let lane = Lane::of(header.bytes);
        let Some(session) = self.sessions.get_mut(id) else { return Ok(()) };
        session.skip_bytes = 0;
        let incoming = Incoming { key, arrival, header, fua, spans, lane, filled };
        match session.incoming.replace(incoming) {
            None => Ok(()),
            Some(_) => Err(wrong("two payloads at once")),
        }
    }
}

fn is_change(found: &FoundRequest) -> bool {
    [command::WRITE, command::TRIM, command::WRITE_ZEROES].contains(&found.record.header.kind)
}

/// What kind of request a record is, and how far it has come. None if that is impossible.
fn adopted_kind(found: &FoundRequest, session: &FoundSession) -> Option<Kind> {
    let header = found.record.header;
    let flag = |flag: u16| header.flags & flag != 0;
    Some(match header.kind {
        command::READ => {
            let structured = session.record.agreement.is_some_and(|(_, structured, _)| structured);
            let whole = !structured || flag(command_flag::DF);
            let done = found.progress(session.stream.queued).checked_mul(512)?;
            if done >= header.bytes || (whole && done > 0) {
                return None;
            }
            // One that is whole has got nowhere, so what is left is all of it.
            let offset = header.offset.checked_add(u64::from(done))?;
            Kind::Read(Read::new(whole, (offset, header.bytes - done)))
        }
        command::BLOCK_STATUS => Kind::Status { one: flag(command_flag::REQ_ONE) },
        kind => Kind::Plain { writes: kind == command::WRITE || kind == command::WRITE_ZEROES },
    })
}
