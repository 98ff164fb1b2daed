//! All sessions of an instance, and what goes in and out.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bowline_arena::{SharedPages, Span};
use bowline_disk::{DiskEvent, Disks, Volume};
use bowline_store::{DiskId, Micros, Ticket};

use crate::Counters;
use crate::budget::{Budget, Lane, Loan};
use crate::interface::{
    Action, CloseCause, ExportedDisk, IoStop, Options, Poison, SessionId, SessionStatus,
    TooManySessions,
};
use crate::records::{Executing, Links, Records, Region, Requests, Shape, Witnessed};
use crate::request::{Kind, Request, STATUS_PIECE};
use crate::session::{BUFFER_BYTES, Parked, Phase, Receiving, Session, Want};
use crate::slab::{Key, Slab};

/// How often sessions are looked through for idle and stalled ones.
const SWEEP_US: u64 = 100_000;

/// All NBD sessions of an instance.
pub struct NbdServer {
    pub(crate) options: Options,
    pub(crate) budget: Budget,
    pub(crate) sessions: Slab<Session>,
    pub(crate) requests: Slab<Request>,
    /// What all of this is in the arena.
    pub(crate) records: Records,
    pub(crate) table: Rc<RefCell<Requests>>,
    pub(crate) links: Links,
    pub(crate) exported: Vec<ExportedDisk>,
    pub(crate) actions: VecDeque<Action>,
    /// Sessions whose actions are to be planned.
    pub(crate) dirty: VecDeque<Key>,
    /// Sessions that may be able to go on.
    pub(crate) ready: VecDeque<Key>,
    /// Sessions that wait for room at the disk, in the order they came.
    pub(crate) busy: VecDeque<Key>,
    /// Sessions that wait for a request's record.
    pub(crate) recordless: VecDeque<Key>,
    pub(crate) poison: VecDeque<Poison>,
    /// Memory came back since the lanes were served.
    pub(crate) freed: bool,
    pub(crate) now: Micros,
    pub(crate) swept: Micros,
    /// Since when somebody has been waiting in each lane; now, if nobody is.
    pub(crate) wanted_since: [Micros; 3],
    /// There may be handshakes that take too long.
    pub(crate) greeting: bool,
    pub(crate) counters: Counters,
    /// What sessions did that have left, by disk.
    pub(crate) departed: BTreeMap<DiskId, Counters>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) loans: Vec<Loan>,
}

impl NbdServer {
    /// A server without sessions. The pages should have room for the sum of the options and for
    /// what the store needs beside it; the region for what [`Options::record_bytes`] says. What a
    /// dead process left there is forgotten.
    ///
    /// # Panics
    /// If the longest request cannot be served, or the region is too small.
    #[must_use]
    pub fn new(pages: SharedPages, region: Span, options: Options) -> NbdServer {
        let memory = Rc::clone(pages.borrow().memory());
        let shape = Shape::new(options.sessions_max, options.requests_max, memory.bytes_total());
        NbdServer::over(pages, Region::format(&memory, region, shape), options)
    }

    /// Has the disks tell what they are about to admit, so that a successor can tell whether they
    /// did. To be done before the first request.
    pub fn watch<V: Volume>(&self, disks: &mut Disks<V>) {
        let requests = Rc::clone(&self.table);
        disks.set_witness(Rc::new(Witnessed { requests, class: self.options.ticket_class }));
    }

    pub(crate) fn over(pages: SharedPages, region: Region, options: Options) -> NbdServer {
        let buffers = u64::from(BUFFER_BYTES);
        assert!(options.jumbo_bytes_max >= Options::JUMBO_BYTES_MIN, "no room for a long request");
        assert!(options.buffer_bytes_max >= buffers, "no room for a session's rings");
        assert!(options.small_bytes_max >= 2 << 20, "no room for short requests");
        let Options { buffer_bytes_max, small_bytes_max, jumbo_bytes_max, .. } = options;
        NbdServer {
            options,
            budget: Budget::new(pages, buffer_bytes_max, small_bytes_max, jumbo_bytes_max),
            sessions: Slab::new(),
            requests: Slab::new(),
            records: region.records,
            table: Rc::new(RefCell::new(region.requests)),
            links: region.links,
            exported: Vec::new(),
            actions: VecDeque::new(),
            dirty: VecDeque::new(),
            ready: VecDeque::new(),
            busy: VecDeque::new(),
            recordless: VecDeque::new(),
            poison: VecDeque::new(),
            freed: false,
            now: Micros(0),
            swept: Micros(0),
            wanted_since: [Micros(0); 3],
            greeting: false,
            counters: Counters::default(),
            departed: BTreeMap::new(),
            scratch: Vec::new(),
            loans: Vec::new(),
        }
    }

    /// Sets what is offered. Sessions of a disk that is no more are told so request by request.
    pub fn set_exports(&mut self, mut exported: Vec<ExportedDisk>) {
        exported.sort_by_key(|one| one.disk);
        self.exported = exported;
    }

    /// A connection was made. Its number is the same in every process that has its socket, and
    /// higher than those before.
    ///
    /// # Errors
    /// If there are too many; the loop closes it.
    pub fn accepted(&mut self, connection: u64) -> Result<SessionId, TooManySessions> {
        if self.sessions.len() >= self.options.sessions_max {
            self.records.connected(connection);
            return Err(TooManySessions(self.sessions.len()));
        }
        let id = self.sessions.insert(Session::new(self.now));
        self.records.connect(id.slot, id.generation, connection);
        self.greeting = true;
        self.publish(id);
        self.records.connected(connection);
        self.want_buffers(id);
        self.touch(id);
        Ok(SessionId(id))
    }

    /// There is something to receive where [`Action::AwaitReadable`] asked.
    pub fn readable<V: Volume>(&mut self, disks: &mut Disks<V>, session: SessionId) {
        let Some(found) = self.sessions.get_mut(session.0) else { return };
        found.receiving = Receiving::No;
        found.moved = self.now;
        if !found.is_closing() && !found.ring.is_attached() {
            self.want_buffers(session.0);
        }
        self.touch(session.0);
        self.settle(disks);
    }

    /// A receive came back: with so many bytes, with none at the end of the stream, or not at all.
    pub fn received<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        session: SessionId,
        result: Result<u32, IoStop>,
    ) {
        let id = session.0;
        let Some(found) = self.sessions.get_mut(id) else { return };
        let posted = std::mem::replace(&mut found.receiving, Receiving::No);
        let Receiving::Posted { payload_bytes, .. } = posted else {
            panic!("a receive comes back that was not asked for")
        };
        match result {
            Ok(bytes) if bytes > 0 => {
                found.moved = self.now;
                found.received_total += u64::from(bytes);
                found.counters.received_bytes += u64::from(bytes);
                self.counters.received_bytes += u64::from(bytes);
                let of_payload = bytes.min(payload_bytes);
                if let Some(incoming) = &mut found.incoming {
                    incoming.filled += of_payload;
                }
                found.ring.received(bytes - of_payload);
                found.is_unpublished = true;
            }
            Ok(_) => (found.ended, found.is_unpublished) = (true, true),
            Err(IoStop::Cancelled) => self.give_buffers_up(id),
            Err(IoStop::Failed(code)) => self.abort(id, CloseCause::Socket(code)),
        }
        self.wake(id);
        self.settle(disks);
        // What the kernel said of this operation is read by a successor as long as it is the last.
        self.plan_news(id);
    }

    /// A send came back: with so many bytes, or not at all.
    pub fn sent<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        session: SessionId,
        result: Result<u32, IoStop>,
    ) {
        let id = session.0;
        let Some(found) = self.sessions.get_mut(id) else { return };
        assert!(found.sending, "a send comes back that was not asked for");
        found.sending = false;
        match result {
            Ok(bytes) => {
                found.moved = self.now;
                found.counters.sent_bytes += u64::from(bytes);
                self.counters.sent_bytes += u64::from(bytes);
                let mut done = std::mem::take(&mut self.loans);
                found.send.sent(bytes, &mut done);
                for loan in &done {
                    found.reply_held_bytes -= u64::from(loan.span.bytes());
                }
                found.is_unpublished = true;
                if !done.is_empty() {
                    self.publish(id);
                }
                for loan in done.drain(..) {
                    self.budget.give(loan);
                    self.freed = true;
                }
                self.loans = done;
            }
            Err(IoStop::Cancelled) => {}
            Err(IoStop::Failed(code)) => self.abort(id, CloseCause::Socket(code)),
        }
        self.wake(id);
        self.settle(disks);
        self.plan_news(id);
    }

    /// Whether a ticket is one of a session's requests.
    #[must_use]
    pub fn owns(&self, ticket: Ticket) -> bool {
        (ticket.0 >> 56) as u8 == self.options.ticket_class
    }

    /// A disk has something to tell about a ticket of ours, or has room again.
    ///
    /// # Panics
    /// If it is about a request that was not made.
    pub fn disk_event<V: Volume>(&mut self, disks: &mut Disks<V>, event: DiskEvent) {
        let find = |requests: &Slab<Request>, ticket: Ticket| match requests.find(ticket) {
            Some(found) => found,
            None => panic!("the disk answers {ticket:?}, which was not asked"),
        };
        match event {
            DiskEvent::Done { ticket, result } => {
                let (key, _) = find(&self.requests, ticket);
                self.records.execute(Executing::Request(key.slot));
                self.plain_done(key, result);
            }
            DiskEvent::Read { ticket, span, result } => {
                let (key, piece) = find(&self.requests, ticket);
                self.records.execute(Executing::Request(key.slot));
                self.piece_done(key, piece, span, result);
            }
            DiskEvent::Status { ticket, result } => {
                let (key, piece) = find(&self.requests, ticket);
                assert_eq!(piece, STATUS_PIECE, "a state for a piece");
                self.records.execute(Executing::Request(key.slot));
                self.status_done(key, result);
            }
            DiskEvent::Room => {
                for id in std::mem::take(&mut self.busy) {
                    if let Some(session) = self.sessions.get_mut(id)
                        && session.parked == Parked::Busy
                    {
                        session.parked = Parked::No;
                        self.wake(id);
                    }
                }
            }
        }
        self.settle(disks);
    }

    /// Says what time it is, without doing anything. To be called when a loop has slept: what
    /// happens from then on is not as old as the last round.
    pub fn set_now(&mut self, now: Micros) {
        self.now = self.now.max(now);
    }

    /// Time passes: idle sessions give memory up, waiting ones try again. To be called after each
    /// round of the loop, and at [`NbdServer::due`].
    pub fn poll<V: Volume>(&mut self, disks: &mut Disks<V>, now: Micros) {
        self.now = now;
        if now.0 >= self.swept.0.saturating_add(SWEEP_US) {
            self.swept = now;
            self.sweep();
        }
        // The pages may have come back from the store, which does not say so.
        self.freed |= self.budget.is_wanted();
        self.settle(disks);
    }

    /// When [`NbdServer::poll`] has something to do at the latest; none while all sessions idle.
    #[must_use]
    pub fn due(&self) -> Option<Micros> {
        let restless = self.greeting || self.budget.held_bytes() > 0 || self.budget.is_wanted();
        restless.then(|| Micros(self.swept.0.saturating_add(SWEEP_US)))
    }

    /// Begins to end all sessions: what was received is answered, then they are closed.
    pub fn close_all(&mut self) {
        let ids: Vec<Key> = self.sessions.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            match session.phase {
                Phase::Fresh => self.abort(id, CloseCause::Shutdown),
                Phase::Handshake | Phase::Transmission => {
                    (session.ended, session.is_unpublished) = (true, true);
                    session.cause = CloseCause::Shutdown;
                    self.touch(id);
                }
                Phase::Draining | Phase::Closing | Phase::Closed => {}
            }
        }
    }

    /// Number of sessions, those on their way out counted.
    #[must_use]
    pub fn sessions_open(&self) -> usize {
        self.sessions.len()
    }

    /// The sessions, for status.
    pub fn sessions(&self) -> impl Iterator<Item = SessionStatus> + '_ {
        self.sessions.iter().map(|(id, session)| SessionStatus {
            session: SessionId(id),
            disk: session.agreement.map(|agreement| agreement.disk),
            requests: session.requests,
            unsent_bytes: session.send.bytes(),
            received_total: session.received_total,
            sent_total: session.send.sent_total(),
            moved: session.moved,
            counters: session.counters,
        })
    }

    /// What all sessions have done since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What sessions have done to one disk since the start, those that have left counted.
    #[must_use]
    pub fn disk_counters(&self, disk: DiskId) -> Counters {
        let mut all = self.departed.get(&disk).copied().unwrap_or_default();
        let of_disk = |session: &Session| session.agreement.is_some_and(|a| a.disk == disk);
        for (_, session) in self.sessions.iter().filter(|(_, session)| of_disk(session)) {
            all.add(&session.counters);
        }
        all
    }

    /// Bytes of pages that sessions hold.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.budget.held_bytes()
    }

    /// A session is to be planned anew.
    pub(crate) fn touch(&mut self, id: Key) {
        if let Some(session) = self.sessions.get_mut(id)
            && !session.is_dirty
        {
            session.is_dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// A session may be able to go on.
    pub(crate) fn wake(&mut self, id: Key) {
        if let Some(session) = self.sessions.get_mut(id) {
            if session.parked == Parked::Drain {
                session.parked = Parked::No;
            }
            if !session.is_ready {
                session.is_ready = true;
                self.ready.push_back(id);
            }
        }
        self.touch(id);
    }

    /// Gives memory back that a session held for a read.
    pub(crate) fn give_read(&mut self, id: Key, span: Span, lane: Lane) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.reply_held_bytes -= u64::from(span.bytes());
        }
        self.budget.give(Loan { span, lane });
        self.freed = true;
    }

    /// Ends a session without further words. What is at the kernel is waited for.
    pub(crate) fn abort(&mut self, id: Key, cause: CloseCause) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.is_closing() {
            return;
        }
        session.phase = Phase::Closing;
        session.cause = cause;
        session.parked = Parked::No;
        session.is_unpublished = true;
        let wants = std::mem::take(&mut session.wants);
        if let Some(lane) = session.waiting.take() {
            self.budget.waiters(lane).retain(|waiter| *waiter != id);
        }
        for want in wants {
            match want {
                Want::Read(key) => {
                    let Some(request) = self.requests.get_mut(key) else { continue };
                    if let Kind::Read(read) = &mut request.kind {
                        read.plan.clear();
                    }
                    if request.outstanding == 0 {
                        self.finish(key);
                    }
                }
                Want::Payload { key, .. } => self.finish(key),
                Want::Output { .. } => {}
            }
        }
        self.touch(id);
    }

    /// A request is over.
    pub(crate) fn finish(&mut self, key: Key) {
        self.let_go(key);
        self.release(key);
    }

    /// A request holds nothing any more but its record.
    pub(crate) fn let_go(&mut self, key: Key) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (id, lane) = (request.session, Lane::of(request.bytes));
        let payload = std::mem::take(&mut request.payload);
        if let Some(session) = self.sessions.get_mut(id) {
            session.requests -= u32::from(std::mem::take(&mut request.is_started));
            session.forget_kept(key);
            if !session.is_closing() {
                session.send.unreserve(std::mem::take(&mut request.reserved));
                session.send.unreserve_replies(std::mem::take(&mut request.replies_reserved));
            }
        }
        self.give_payload(lane, payload);
        self.wake(id);
    }

    /// The record of a request that is over is another's.
    pub(crate) fn release(&mut self, key: Key) {
        let Some(request) = self.requests.remove(key) else { return };
        if request.is_known {
            self.table.borrow_mut().free(key.slot);
        }
        // Some of those who waited have left.
        while let Some(next) = self.recordless.pop_front() {
            let waiting = self.sessions.get_mut(next);
            let waiting = waiting.filter(|session| session.parked == Parked::Requests);
            if let Some(session) = waiting {
                session.parked = Parked::No;
                self.wake(next);
                break;
            }
        }
    }

    /// The next request that was answered by an error because processes had died over it.
    pub fn next_poison(&mut self) -> Option<Poison> {
        self.poison.pop_front()
    }
}
