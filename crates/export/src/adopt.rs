//! Taking over the sessions of a dead process, from their records.
//!
//! The caller has passed both fences: no instruction of the dead process runs, and no I/O of it
//! lands any more. It has kept the sessions' pages ([`FoundSessions::keep`]), adopted the store,
//! and holds the sockets.
//!
//! What becomes of a request, by what its record and its session's streams say:
//!
//! | found | is |
//! |---|---|
//! | the stream has queued the end of its reply, or its session is gone or closing | over |
//! | not taken by the stream, the store has its number | parsed again, answered, not made again |
//! | not taken by the stream, the store has not its number | forgotten: it is parsed again |
//! | its payload is being received, or was and the store has not its number | received on, tried |
//! | taken, the store has its number | answered as its disk's mode wants |
//! | taken, the store has not its number | tried again; a read from where its chunks end |
//! | taken, failed, its payload gone | EIO |
//!
//! Numbers the store has not given to the request they were meant for, and steps whose replies were
//! not queued, are erased before anything is admitted or queued: afterwards they would be true of
//! somebody else. Whoever was being carried out has one more attempt against it.
//!
//! An operation that was at the kernel comes back by the usual way, with the kernel's result or, if
//! it has none, as cancelled. Adoption may be cut anywhere and done again: it publishes only what
//! was true before.

use std::cmp::Reverse;
use std::rc::Rc;

use bowline_arena::{Part, SharedPages, Span};
use bowline_disk::{Disks, Volume};
use bowline_store::{DiskId, Micros};

use crate::adopt_requests::Judge;
use crate::budget::{Lane, Loan};
use crate::interface::{ExportedDisk, IoStop, KernelOperation, Options, SessionId};
use crate::receive::ReceiveRing;
use crate::records::{
    Broken, Executing, FoundReply, FoundRequest, FoundSession, FoundSessions, RecordsError, Region,
    Stands, StreamPhase, damaged,
};
use crate::send::SendQueue;
use crate::server::NbdServer;
use crate::session::{
    Agreement, Incoming, Phase, RECEIVE_RING_BYTES, Receiving, SEND_RING_BYTES, Session, TakeUp,
};
use crate::slab::Key;

/// The kernel's results of the operations that were under way; none if it has none.
pub type Results<'a> = &'a mut dyn FnMut(KernelOperation) -> Option<Result<u32, IoStop>>;

/// What an adoption needs.
pub struct Adoption<'a> {
    /// The pages of the memory; those of the sessions are kept.
    pub pages: SharedPages,
    /// The region of the records.
    pub region: Span,
    /// What was read there.
    pub found: FoundSessions,
    /// What sessions may use. There can be no more of them than there could.
    pub options: Options,
    /// What is offered.
    pub exported: Vec<ExportedDisk>,
    /// What time it is.
    pub now: Micros,
    /// What the kernel made of the last operations.
    pub results: Results<'a>,
}

impl NbdServer {
    /// Goes on where a dead process was cut off.
    ///
    /// # Errors
    /// If the records contradict each other; the sessions' pages are free then.
    ///
    /// # Panics
    /// As [`NbdServer::new`].
    pub fn adopt<V: Volume>(
        adoption: Adoption<'_>,
        disks: &mut Disks<V>,
    ) -> Result<NbdServer, RecordsError> {
        NbdServer::adopt_as(adoption, disks, None)
    }

    pub(crate) fn adopt_as<V: Volume>(
        adoption: Adoption<'_>,
        disks: &mut Disks<V>,
        broken: Option<Broken>,
    ) -> Result<NbdServer, RecordsError> {
        let Adoption { pages, region, found, mut options, exported, now, results } = adoption;
        let FoundSessions { shape, numbers, executing, sessions, requests, .. } = found;
        options.sessions_max = options.sessions_max.min(shape.sessions as usize);
        options.requests_max = options.requests_max.min(shape.requests as usize);
        let memory = Rc::clone(pages.borrow().memory());
        let region = Region::adopt(&memory, region, shape, numbers);
        let mut server = NbdServer::over(Rc::clone(&pages), region, options);
        server.set_exports(exported);
        (server.now, server.greeting, server.freed) = (now, true, true);
        server.break_records(broken);
        let judge = Judge { admitted: disks.store().admitted_through(), executing, broken };
        let taken_over = server.take_over(sessions, requests, &judge);
        pages.borrow_mut().release_kept();
        if let Err(error) = taken_over {
            server.give_everything();
            return Err(error);
        }
        server.watch(disks);
        server.go_on(disks, results, broken);
        Ok(server)
    }

    /// Breaks what the arena is told, for a test to notice.
    pub(crate) fn break_records(&mut self, broken: Option<Broken>) {
        self.records.broken = broken;
        let is_publish_broken = broken == Some(Broken::PublishBeforeContent);
        let mut table = self.table.borrow_mut();
        table.is_publish_broken = is_publish_broken;
        table.is_silent = broken == Some(Broken::LetGoInSilence);
    }

    /// Makes of the records what they stand for. Nothing is admitted, queued or lent meanwhile.
    fn take_over(
        &mut self,
        sessions: Vec<FoundSession>,
        requests: Vec<FoundRequest>,
        judge: &Judge,
    ) -> Result<(), RecordsError> {
        for session in &sessions {
            self.adopt_session(session, judge)?;
        }
        let mut to_take_up = Vec::new();
        for request in requests {
            let whose = u32::from(request.record.session);
            let session = sessions.binary_search_by_key(&whose, |session| session.slot).ok();
            let session = session.and_then(|at| sessions.get(at));
            match (request.stands(session)?, session) {
                (Stands::Next, Some(session)) => self.adopt_next(&request, session, judge)?,
                (Stands::Taken, Some(session)) => {
                    to_take_up.extend(self.adopt_taken(&request, session, judge)?);
                }
                _ => self.table.borrow_mut().free(request.slot),
            }
        }
        // In the order in which they came, stream by stream.
        to_take_up.sort_by_key(|(id, one): &(Key, TakeUp)| (*id, one.arrival));
        for (id, one) in to_take_up {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            session.to_take_up.push_back(one);
        }
        let ids: Vec<Key> = self.sessions.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            // Of two that are kept, the one further behind came first.
            let Session { kept, ring, .. } = session;
            kept.make_contiguous().sort_by_key(|(_, begins)| Reverse(ring.behind(*begins)));
            let most = kept.front().map_or(0, |(_, begins)| ring.behind(*begins));
            if ring.used() + most > RECEIVE_RING_BYTES {
                return Err(damaged(format!("session {} keeps what it has not", id.slot)));
            }
            session.keep_bytes();
            if let Receiving::Posted { payload_bytes, .. } = &mut session.receiving {
                let incoming = session.incoming.as_ref();
                *payload_bytes = incoming.map_or(0, |incoming| incoming.parts().1);
            }
            // Whoever is suspected is so from now on, whatever happens to this process.
            if session.is_record_old {
                self.publish(id);
            }
        }
        self.execute(Executing::Nobody);
        Ok(())
    }

    pub(crate) fn claim(&mut self, part: Part, lane: Lane) -> Result<Span, RecordsError> {
        let span = self.budget.pages().borrow_mut().adopt(part);
        let span = span.ok_or_else(|| damaged(format!("pages with two holders: {part:?}")))?;
        self.budget.adopted(lane, span.bytes());
        Ok(span)
    }

    fn adopt_session(&mut self, found: &FoundSession, judge: &Judge) -> Result<(), RecordsError> {
        let FoundSession { slot, stream, record, .. } = found;
        let wrong = |what: &str| damaged(format!("session {slot}: {what}"));
        let phase = match stream.phase {
            StreamPhase::Fresh => Phase::Fresh,
            StreamPhase::Handshake => Phase::Handshake,
            StreamPhase::Transmission => Phase::Transmission,
            StreamPhase::Draining => Phase::Draining,
            StreamPhase::Closing | StreamPhase::Free => Phase::Closing,
        };
        let agreement = record.agreement.map(|(disk, structured, allocation)| Agreement {
            disk: DiskId(disk),
            structured,
            allocation,
        });
        if phase == Phase::Transmission && agreement.is_none() {
            return Err(wrong("it agreed on nothing"));
        }
        let mut attempts = record.attempts_for(stream.consumed);
        let is_suspect = judge.executing == Executing::Session(*slot);
        attempts = attempts.saturating_add(u8::from(is_suspect));
        let skip_bytes = u32::try_from(stream.consumed - found.position());
        let mut session = Session {
            phase,
            negotiation: found.negotiation,
            agreement,
            skip_bytes: skip_bytes.map_err(|_| wrong("it skips too much"))?,
            ended: stream.ended,
            after_long: stream.after_long,
            cause: stream.cause,
            copy: stream.copy,
            receive_number: stream.receive_number,
            send_number: stream.send_number,
            attempts,
            is_record_old: is_suspect,
            is_unpublished: false,
            received_total: stream.received,
            moved: self.now,
            ..Session::new(self.now)
        };
        if !found.is_closing() {
            self.adopt_memory(&mut session, found)?;
        }
        let key = Key { slot: *slot, generation: record.generation };
        if !self.sessions.insert_at(key, session) {
            return Err(wrong("there are two of it"));
        }
        Ok(())
    }

    /// Buffers, what lies in them, and the data that is still to be sent.
    fn adopt_memory(
        &mut self,
        session: &mut Session,
        found: &FoundSession,
    ) -> Result<(), RecordsError> {
        let (stream, record) = (&found.stream, &found.record);
        let (mut receive, mut send, mut page) = (None, None, None);
        if let Some(part) = found.buffers() {
            let mut span = self.claim(part, Lane::Buffers)?;
            let mut rest = span.split_off(RECEIVE_RING_BYTES);
            page = Some(rest.split_off(SEND_RING_BYTES));
            (receive, send) = (Some(span), Some(rest));
        }
        let mut replies = Vec::new();
        for FoundReply { position, bytes, skip, lane, parts } in &found.replies {
            let (mut skip, mut left, mut pieces) = (u32::from(*skip), *bytes, Vec::new());
            for part in parts {
                let span = self.claim(*part, *lane)?;
                session.reply_held_bytes += u64::from(span.bytes());
                let bytes = left.min(part.bytes - skip);
                pieces.push((Loan { span, lane: *lane }, skip, bytes));
                (skip, left) = (0, left - bytes);
            }
            replies.push((*position, pieces));
        }
        session.buffers = record.buffers;
        session.ring =
            ReceiveRing::adopted(receive, stream.ring_head, stream.ring_used, record.carried);
        session.send = SendQueue::adopted(stream, send, page, replies);
        session.sending = stream.sending;
        if stream.receiving {
            session.receiving = Receiving::Posted { payload_bytes: 0, cancelling: false };
        }
        Ok(())
    }

    /// Brings back what was at the kernel, and lets everybody go on.
    fn go_on<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        results: Results<'_>,
        broken: Option<Broken>,
    ) {
        let ids: Vec<Key> = self.sessions.iter().map(|(id, _)| id).collect();
        for &id in &ids {
            let Some(session) = self.sessions.get(id) else { continue };
            // What is planned when the send is back is nothing that was at the kernel.
            let (receiving, receive_number) = (session.receiving, session.receive_number);
            let (sending, number) = (session.sending, session.send_number);
            let operation = KernelOperation { session: SessionId(id), is_send: true, number };
            if sending {
                let result = match broken {
                    Some(Broken::ForgetSend) => None,
                    _ => results(operation),
                };
                self.sent(disks, SessionId(id), result.unwrap_or(Err(IoStop::Cancelled)));
            }
            let number = receive_number;
            let operation = KernelOperation { session: SessionId(id), is_send: false, number };
            if receiving != Receiving::No {
                let result = results(operation);
                self.received(disks, SessionId(id), result.unwrap_or(Err(IoStop::Cancelled)));
            }
        }
        for id in ids {
            if self.sessions.get(id).is_some_and(|session| session.phase == Phase::Fresh) {
                self.want_buffers(id);
            }
            self.wake(id);
        }
        self.settle(disks);
    }

    /// Gives back what was adopted before something turned out to be damaged.
    fn give_everything(&mut self) {
        let ids: Vec<Key> = self.sessions.iter().map(|(id, _)| id).collect();
        let mut loans = Vec::new();
        for id in ids {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            let (rings, data) = session.send.discard();
            let rings = rings.into_iter().chain([session.ring.discard()]).flatten();
            loans.extend(data);
            loans.extend(rings.map(|span| Loan { span, lane: Lane::Buffers }));
            if let Some(Incoming { lane, spans, .. }) = session.incoming.take() {
                loans.extend(spans.into_iter().map(|span| Loan { span, lane }));
            }
        }
        let keys: Vec<Key> = self.requests.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(request) = self.requests.get_mut(key) else { continue };
            let (lane, spans) = (Lane::of(request.bytes), std::mem::take(&mut request.payload));
            loans.extend(spans.into_iter().map(|span| Loan { span, lane }));
        }
        self.give_loans(loans);
    }
}
