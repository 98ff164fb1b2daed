//! All sessions of an instance, and what goes in and out.

use std::collections::VecDeque;

use bowline_arena::{Part, SharedPages, Span};
use bowline_disk::{DiskEvent, Disks, Volume};
use bowline_store::{DiskId, Micros, Ticket};
use bowline_wire::{BadMagic, CloseReason, PAYLOAD_BYTES_MAX};

use crate::Counters;
use crate::budget::{Budget, Lane, Loan};
use crate::request::{Kind, Request, STATUS_PIECE};
use crate::session::{
    Parked, Phase, RECEIVE_RING_BYTES, Receiving, SEND_RING_BYTES, Session, Want,
};
use crate::slab::{Key, Slab};

/// Names a session; never names another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(crate) Key);

impl SessionId {
    /// The id with these numbers, as the loop got them back from the kernel.
    #[must_use]
    pub fn new(slot: u32, generation: u32) -> SessionId {
        SessionId(Key { slot, generation })
    }

    /// Its place.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.0.slot
    }

    /// Which of those that had the place.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.0.generation
    }
}

/// What sessions may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Most sessions at once.
    pub sessions_max: usize,
    /// Bytes for the rings of sessions that are not idle (84 KiB each).
    pub buffer_bytes_max: u64,
    /// Bytes for requests up to 1 MiB.
    pub small_bytes_max: u64,
    /// Bytes for longer requests; at least [`Options::JUMBO_BYTES_MIN`].
    pub jumbo_bytes_max: u64,
    /// Bytes of read data one session may hold, beyond its first read.
    pub reply_bytes_max: u64,
    /// After so long without a byte a session gives its rings up.
    pub idle_us: u64,
    /// After so long without a byte a session is closed that holds what others wait for all the
    /// while.
    pub stall_us: u64,
    /// Longest handshake.
    pub handshake_us_max: u64,
    /// First byte of the tickets of all requests: tells them from those of other users of the
    /// disks.
    pub ticket_class: u8,
}

impl Options {
    /// What the longest request takes, with a part of a block at either end.
    pub const JUMBO_BYTES_MIN: u64 = PAYLOAD_BYTES_MAX as u64 + 8192;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sessions_max: 4096,
            buffer_bytes_max: 4 << 20,
            small_bytes_max: 4 << 20,
            jumbo_bytes_max: Options::JUMBO_BYTES_MIN,
            reply_bytes_max: 2 << 20,
            idle_us: 1_000_000,
            stall_us: 10_000_000,
            handshake_us_max: 10_000_000,
            ticket_class: 1,
        }
    }
}

/// A disk as it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedDisk {
    /// Which one.
    pub disk: DiskId,
    /// By what name.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
    /// Whether writes are refused, whatever the disk says.
    pub read_only: bool,
}

/// What the event loop has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say [`NbdServer::readable`] when there is a byte to receive, or the stream has ended.
    AwaitReadable {
        /// On which session.
        session: SessionId,
    },
    /// Receive into these parts; then say [`NbdServer::received`].
    Receive {
        /// On which session.
        session: SessionId,
        /// Where the bytes go, in order.
        parts: Vec<Part>,
    },
    /// Give the receive that is under way back: with what it got, or as cancelled.
    CancelReceive {
        /// On which session.
        session: SessionId,
    },
    /// Send these parts, or the first of their bytes; then say [`NbdServer::sent`].
    Send {
        /// On which session.
        session: SessionId,
        /// Where the bytes are, in order.
        parts: Vec<Part>,
    },
    /// Shut the socket down both ways, so that what is under way comes back.
    Shutdown {
        /// Which session.
        session: SessionId,
    },
    /// Shut down and close the socket. Nothing of the session is under way; it is not heard of again.
    Close {
        /// Which session.
        session: SessionId,
        /// Why.
        cause: CloseCause,
    },
}

/// Why a receive or a send moved no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStop {
    /// As asked for by [`Action::CancelReceive`].
    Cancelled,
    /// By this error number.
    Failed(i32),
}

/// Why a session was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseCause {
    /// The client said good-bye or ended its stream.
    #[error("the client left")]
    Client,
    /// The handshake failed.
    #[error("handshake: {0}")]
    Handshake(CloseReason),
    /// The handshake took too long.
    #[error("the handshake took too long")]
    HandshakeTime,
    /// The stream is out of step.
    #[error("{0}")]
    Magic(#[from] BadMagic),
    /// The socket failed.
    #[error("the connection failed: {}", std::io::Error::from_raw_os_error(*.0))]
    Socket(i32),
    /// The client neither sent nor received while others waited for the memory it held.
    #[error("the client stopped while others waited for memory")]
    Stalled,
    /// An answer is longer than all the memory there may be.
    #[error("an answer is too long")]
    Memory,
    /// The server is being shut down.
    #[error("the server is being shut down")]
    Shutdown,
}

/// There are as many sessions as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {0} sessions already")]
pub struct TooManySessions(pub usize);

/// A session, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Which session.
    pub session: SessionId,
    /// The disk it is about, once agreed on.
    pub disk: Option<DiskId>,
    /// Requests started and not answered.
    pub requests: u32,
    /// Bytes queued to be sent.
    pub unsent_bytes: u64,
    /// Position in the stream from the client.
    pub received_total: u64,
    /// Position in the stream to the client.
    pub sent_total: u64,
    /// When bytes last moved.
    pub moved: Micros,
    /// What it has done.
    pub counters: Counters,
}

/// How often sessions are looked through for idle and stalled ones.
const SWEEP_US: u64 = 100_000;

/// All NBD sessions of an instance.
pub struct NbdServer {
    pub(crate) options: Options,
    pub(crate) budget: Budget,
    pub(crate) sessions: Slab<Session>,
    pub(crate) requests: Slab<Request>,
    pub(crate) exported: Vec<ExportedDisk>,
    pub(crate) actions: VecDeque<Action>,
    /// Sessions whose actions are to be planned.
    pub(crate) dirty: VecDeque<Key>,
    /// Sessions that may be able to go on.
    pub(crate) ready: VecDeque<Key>,
    /// Sessions that wait for room at the disk, in the order they came.
    pub(crate) busy: VecDeque<Key>,
    /// Memory came back since the lanes were served.
    pub(crate) freed: bool,
    pub(crate) now: Micros,
    pub(crate) swept: Micros,
    /// Since when somebody has been waiting in each lane; now, if nobody is.
    pub(crate) wanted_since: [Micros; 3],
    /// There may be handshakes that take too long.
    pub(crate) greeting: bool,
    pub(crate) counters: Counters,
    pub(crate) scratch: Vec<u8>,
    pub(crate) loans: Vec<Loan>,
}

impl NbdServer {
    /// A server without sessions. The pages should have room for the sum of the options and for
    /// what the store needs beside it.
    ///
    /// # Panics
    /// If the longest request cannot be served.
    #[must_use]
    pub fn new(pages: SharedPages, options: Options) -> NbdServer {
        let buffers = u64::from(RECEIVE_RING_BYTES + SEND_RING_BYTES);
        assert!(options.jumbo_bytes_max >= Options::JUMBO_BYTES_MIN, "no room for a long request");
        assert!(options.buffer_bytes_max >= buffers, "no room for a session's rings");
        assert!(options.small_bytes_max >= 2 << 20, "no room for short requests");
        let Options { buffer_bytes_max, small_bytes_max, jumbo_bytes_max, .. } = options;
        NbdServer {
            options,
            budget: Budget::new(pages, buffer_bytes_max, small_bytes_max, jumbo_bytes_max),
            sessions: Slab::new(),
            requests: Slab::new(),
            exported: Vec::new(),
            actions: VecDeque::new(),
            dirty: VecDeque::new(),
            ready: VecDeque::new(),
            busy: VecDeque::new(),
            freed: false,
            now: Micros(0),
            swept: Micros(0),
            wanted_since: [Micros(0); 3],
            greeting: false,
            counters: Counters::default(),
            scratch: Vec::new(),
            loans: Vec::new(),
        }
    }

    /// Sets what is offered. Sessions of a disk that is no more are told so request by request.
    pub fn set_exports(&mut self, mut exported: Vec<ExportedDisk>) {
        exported.sort_by_key(|one| one.disk);
        self.exported = exported;
    }

    /// A connection was made.
    ///
    /// # Errors
    /// If there are too many; the loop closes it.
    pub fn accepted(&mut self) -> Result<SessionId, TooManySessions> {
        if self.sessions.len() >= self.options.sessions_max {
            return Err(TooManySessions(self.sessions.len()));
        }
        let id = self.sessions.insert(Session::new(self.now));
        self.greeting = true;
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
            }
            Ok(_) => found.ended = true,
            Err(IoStop::Cancelled) => self.give_buffers_up(id),
            Err(IoStop::Failed(code)) => self.abort(id, CloseCause::Socket(code)),
        }
        self.wake(id);
        self.settle(disks);
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
                found.sent_total += u64::from(bytes);
                found.counters.sent_bytes += u64::from(bytes);
                self.counters.sent_bytes += u64::from(bytes);
                let mut done = std::mem::take(&mut self.loans);
                found.send.sent(bytes, &mut done);
                for loan in done.drain(..) {
                    found.reply_held_bytes -= u64::from(loan.span.bytes());
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
                self.plain_done(key, result);
            }
            DiskEvent::Read { ticket, span, result } => {
                let (key, piece) = find(&self.requests, ticket);
                self.piece_done(key, piece, span, result);
            }
            DiskEvent::Status { ticket, result } => {
                let (key, piece) = find(&self.requests, ticket);
                assert_eq!(piece, STATUS_PIECE, "a state for a piece");
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
                    session.ended = true;
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
            sent_total: session.sent_total,
            moved: session.moved,
            counters: session.counters,
        })
    }

    /// What all sessions have done since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
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
        let wants = std::mem::take(&mut session.wants);
        if let Some(lane) = session.waiting.take() {
            self.budget.waiters(lane).retain(|waiter| *waiter != id);
        }
        for want in wants {
            let Want::Read(key) = want else { continue };
            let Some(request) = self.requests.get_mut(key) else { continue };
            if let Kind::Read(read) = &mut request.kind {
                read.plan.clear();
            }
            if request.outstanding == 0 {
                self.finish(key);
            }
        }
        self.touch(id);
    }

    /// A request is over.
    pub(crate) fn finish(&mut self, key: Key) {
        let Some(request) = self.requests.remove(key) else { return };
        if let Some(session) = self.sessions.get_mut(request.session) {
            session.requests -= 1;
            if !session.is_closing() {
                session.send.unreserve(request.reserved);
            }
        }
        self.wake(request.session);
    }
}
