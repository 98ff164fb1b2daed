//! What sessions say in the arena, and when: see module `records` for the order.

use bowline_arena::Part;
use bowline_store::Ticket;
use bowline_wire::RequestHeader;

use crate::records::{DONE, Executing, RequestRecord, RequestState};
use crate::request::{Kind, Request};
use crate::server::NbdServer;
use crate::session::Parked;
use crate::slab::{Key, Slab};

impl NbdServer {
    /// Makes what has happened to a session its state.
    pub(crate) fn publish(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if std::mem::take(&mut session.is_record_old) {
            session.copy = !session.copy;
            self.records.store(id.slot, session.copy, &session.record(id.generation));
        }
        (session.is_unpublished, session.owes_stream) = (false, false);
        self.records.publish(id.slot, &session.stream());
        if !session.concluded.is_empty() {
            bowline_arena::fail_point!("export.reply.published");
            let mut concluded = std::mem::take(&mut session.concluded);
            concluded.drain(..).for_each(|key| self.release(key));
            if let Some(session) = self.sessions.get_mut(id) {
                session.concluded = concluded;
            }
        }
    }

    /// The same, if anything has.
    pub(crate) fn publish_news(&mut self, id: Key) {
        if self.sessions.get(id).is_some_and(|session| session.is_unpublished) {
            self.publish(id);
        }
    }

    /// Makes what has happened to all sessions their state: what the kernel told of operations that
    /// have come back is not needed any more.
    pub fn publish_all(&mut self) {
        let ids: Vec<Key> = self.sessions.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.publish_news(id));
    }

    /// Whether there is a record for another request; if not, the session waits for one.
    pub(crate) fn has_record(&mut self, id: Key) -> bool {
        if self.requests.len() < self.options.requests_max {
            return true;
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.parked = Parked::Requests;
            self.recordless.push_back(id);
        }
        false
    }

    /// Makes a request known, and where its payload is: the first page + 1 of a long one, the place
    /// in the receive ring where the header of a short one begins.
    pub(crate) fn publish_request(
        &mut self,
        key: Key,
        header: RequestHeader,
        arrival: u64,
        payload: u32,
        state: RequestState,
    ) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.is_known = true;
        let session = request.session;
        let attempts = self.sessions.get(session).map_or(0, |session| session.attempts);
        let record = RequestRecord {
            arrival,
            header,
            session: session.slot as u16,
            session_generation: session.generation as u16,
            payload,
        };
        self.table.borrow_mut().publish(key, &record, state, attempts);
    }

    /// A known request goes on to another state.
    pub(crate) fn set_state(&mut self, key: Key, state: RequestState) {
        self.table.borrow_mut().set_state(key, state);
    }

    /// Says that what is queued next replies to so many sectors of a request, or is the end of it.
    pub(crate) fn step(&mut self, key: Key, sectors: u32) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let id = request.session;
        let stream = Some(self.records.number(id.slot));
        let is_second = std::mem::replace(&mut request.step_stream, stream) == stream;
        if is_second {
            // The word this one goes to holds what counts now.
            self.publish(id);
        }
        let stream = Some(self.records.number(id.slot));
        let Some(request) = self.requests.get_mut(key) else { return };
        let Some(session) = self.sessions.get(id) else { return };
        request.step_stream = stream;
        request.steps += 1;
        // The first word of a change is its number.
        let cell = if let Kind::Read(_) = request.kind { request.steps } else { 1 };
        self.table.borrow_mut().step(key.slot, cell, session.send.queued(), sectors);
    }

    /// Replies to a request for good: what `reply` queues, the request's end and what of the stream
    /// it used up become true together, now.
    pub(crate) fn conclude(&mut self, key: Key, reply: impl FnOnce(&mut NbdServer, Key)) {
        let Some(id) = self.requests.get(key).map(|request| request.session) else { return };
        self.conclude_soon(key, reply);
        self.publish_news(id);
    }

    /// The same, with the next stream of the session. Only for a request whose record names no
    /// pages.
    pub(crate) fn conclude_soon(&mut self, key: Key, reply: impl FnOnce(&mut NbdServer, Key)) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (id, is_taken) = (request.session, request.is_taken);
        let session = self.sessions.get_mut(id).filter(|one| !one.is_closing());
        let Some(session) = session else { return self.finish(key) };
        session.send.unreserve(std::mem::take(&mut request.reserved));
        session.send.unreserve_replies(std::mem::take(&mut request.replies_reserved));
        if is_taken {
            self.step(key, DONE);
        }
        reply(self, id);
        self.end_soon(key);
    }

    /// A request is over with the next stream of its session.
    pub(crate) fn end_soon(&mut self, key: Key) {
        let Some(id) = self.requests.get(key).map(|request| request.session) else { return };
        self.let_go(key);
        if let Some(session) = self.sessions.get_mut(id) {
            (session.is_unpublished, session.owes_stream) = (true, true);
            session.concluded.push(key);
        }
        self.touch(id);
    }

    /// The change of a request was offered to the store, which has not refused it.
    pub(crate) fn is_admitted(&self, key: Key) -> bool {
        self.table.borrow().intended(key.slot) != 0
    }

    /// Notes who is to be suspected if the process dies now.
    pub(crate) fn execute(&mut self, who: Executing) {
        self.records.execute(who);
    }

    pub(crate) fn ticket(&self, key: Key, piece: u16) -> Ticket {
        Slab::<Request>::ticket(self.options.ticket_class, key, piece)
    }

    /// How a part is named in a record.
    pub(crate) fn page_of(part: Part) -> u32 {
        (part.offset / u64::from(bowline_arena::PAGE_BYTES)) as u32 + 1
    }
}
