//! The data thread: one loop that moves sessions, disks and the medium.
//!
//! One turn: what has come back is taken, sessions parse and submit, their replies are pushed, then
//! the disks move (which pushes log writes), and one system call hands everything to the kernel
//! and waits. So replies leave before log writes are submitted, and a turn costs one system call.
//!
//! Invariants:
//! - A turn is bounded: so many completions, so many rounds; a session has one receive under way,
//!   so none can crowd the others out.
//! - Nothing here waits but [`Sockets::wait`], and the end of the server.
//! - A server without work sleeps without a timeout.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bowline_arena::{ArenaFile, OwnerLock, Ring, SharedPages};
use bowline_disk::{DiskEvent, Disks};
use bowline_export::{Action, CloseCause, NbdServer, Options, SessionId};
use bowline_media::Clock;
use bowline_store::{Micros, PoolHeader, Ticket};

use super::adopt::Begun;
use super::answers::Pending;
use super::command::{Commands, Reply};
use super::config::ServeConfig;
use super::listen::Listener;
use super::open::{Opened, ServerStore};
use super::poll_sockets::PollSockets;
use super::ring_sockets::RingSockets;
use super::scrub::ScrubNews;
use super::sockets::{Closed, Happening, Sockets};
use super::spin::Spin;
use super::watch::Watch;
use crate::control::api::{Condition, PoolStatus, Problem};
use crate::family::{Membership, ToKeeper};

/// First byte of the tickets of sessions, and of our own.
const SESSIONS: u8 = 1;
const OURS: u8 = 2;
/// Bytes of pages for the rings of sessions, and for requests up to 1 MiB: as many as keep a medium
/// busy with a deep queue of long reads.
const BUFFER_BYTES: u64 = 3 << 20;
const SMALL_BYTES: u64 = 8 << 20;
/// Most things that came back taken in one turn: as many as a busy medium gives back at once, so
/// that the requests behind them reach it before all of them are verified.
const HAPPENINGS_MAX: usize = 64;
/// Most times the disks are moved in one turn.
const ROUNDS_MAX: usize = 4;
/// Most connections accepted in one turn from one listener.
const ACCEPTS_MAX: usize = 16;
/// How often a busy store is looked after, whatever happens.
const TICK_US: u64 = 50_000;
/// How long clients have to take their last replies.
const PARTING_US: u64 = 5_000_000;

/// What is known of a connection beside its session.
struct Connection {
    session: SessionId,
    listener: usize,
    number: u64,
}

/// Counts of one listener.
#[derive(Default, Clone, Copy)]
pub(super) struct Connections {
    pub now: u64,
    pub opened: u64,
}

/// How the loop does.
#[derive(Default, Clone, Copy)]
pub(super) struct Turns {
    pub count: u64,
    pub longest_us: u64,
}

/// What comes after the loop.
pub enum End {
    /// Nothing: the server was told to stop.
    Stopped,
    /// The pool is to be opened anew, its loss accepted.
    Reopen(Box<ServeConfig>, Reply<PoolStatus>, Option<Box<Membership>>),
}

/// Where the end of the server stands.
pub(super) struct Stopping {
    replies: Vec<Reply<()>>,
    /// Who asked for a new beginning.
    reopen: Option<Reply<PoolStatus>>,
    /// When those who have not left by themselves are left.
    until: Micros,
}

/// What sessions may use.
fn options() -> Options {
    Options {
        ticket_class: SESSIONS,
        buffer_bytes_max: BUFFER_BYTES,
        small_bytes_max: SMALL_BYTES,
        reply_bytes_max: SMALL_BYTES,
        ..Options::default()
    }
}

/// The data thread's state.
pub struct Data {
    pub(super) config: ServeConfig,
    pub(super) header: PoolHeader,
    pub(super) disks: Disks<ServerStore>,
    pub(super) nbd: NbdServer,
    pub(super) sockets: Sockets,
    pub(super) listeners: Vec<Listener>,
    pub(super) connections: Vec<Connections>,
    pub(super) notes: Vec<Condition>,
    pub(super) pending: BTreeMap<Ticket, Pending>,
    /// Who waits for a stopped pool to write again.
    pub(super) resuming: Vec<Reply<PoolStatus>>,
    pub(super) tickets: u64,
    pub(super) turns: Turns,
    pub(super) scrub: ScrubNews,
    pub(super) watch: Watch,
    pub(super) medium_name: &'static str,
    pub(super) started: Instant,
    /// By the slots of sessions.
    open: Vec<Option<Connection>>,
    pub(super) pages: SharedPages,
    clock: Clock,
    now: Micros,
    spin: Spin,
    pub(super) stopping: Option<Stopping>,
    /// The last connection's number, where no keeper numbers them.
    connected: u64,
    /// The family this server belongs to, if it does.
    pub(super) membership: Option<Box<Membership>>,
    ring: Option<Rc<RefCell<Ring>>>,
    pub(super) arena: ArenaFile,
    _lock: OwnerLock,
}

impl Data {
    /// The state at the start: nobody is connected, or whoever was is still.
    ///
    /// # Errors
    /// If the system has no descriptor left, or what a dead server's sessions left is damaged.
    pub fn new(
        config: ServeConfig,
        opened: Opened,
        membership: Option<Box<Membership>>,
    ) -> Result<Data, (Problem, Option<Box<Membership>>)> {
        let Opened { store, header, pages, sessions, memory, ring, events, .. } = opened;
        let medium_name = events.name();
        let sockets = match &ring {
            Some(ring) => Ok(Sockets::Ring(RingSockets::new(Rc::clone(ring), events))),
            None => PollSockets::new(memory, &events).map(Sockets::Poll),
        };
        let sockets = match sockets {
            Ok(sockets) => sockets,
            Err(error) => {
                return Err((super::pool::failed(&config.pool, "serve", error), membership));
            }
        };
        let mut disks = Disks::new(store, pages.clone());
        let now = opened.clock.now();
        disks.set_now(now);
        let begun = match opened.found {
            Some(found) => {
                let rest = (sessions, options(), now);
                super::adopt::adopt(found, &opened.results, &pages, rest, &mut disks)
            }
            None => Ok(Begun::anew(&pages, sessions, options(), &mut disks)),
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(problem) => {
                if let Some(membership) = &membership {
                    membership.tell(&ToKeeper::Damaged(problem.clone()));
                }
                return Err((problem, membership));
            }
        };
        let mut data = Data {
            config,
            header,
            disks,
            nbd: begun.nbd,
            sockets,
            connections: vec![Connections::default(); opened.listeners.len()],
            listeners: opened.listeners,
            notes: opened.notes,
            pending: BTreeMap::new(),
            resuming: Vec::new(),
            tickets: 0,
            turns: Turns::default(),
            scrub: ScrubNews::default(),
            watch: Watch::default(),
            medium_name,
            started: Instant::now(),
            open: Vec::new(),
            pages,
            now,
            clock: opened.clock,
            spin: Spin::new(opened.tuning.spin),
            stopping: None,
            connected: 0,
            membership,
            ring,
            arena: opened.arena,
            _lock: opened.lock,
        };
        data.offer_disks();
        data.begin_watch();
        data.join(begun.sessions, begun.connected);
        Ok(data)
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If the kernel fails in a way that no state can express, or the pool cannot be closed.
    pub fn run(mut self, commands: &Commands) -> Result<End, Problem> {
        match &self.membership {
            // Its keeper's messages come as connections do.
            Some(_) => self.listen_to_keeper(),
            None => {
                for (index, listener) in self.listeners.iter().enumerate() {
                    self.sockets.watch_listener(index, listener.as_fd());
                }
            }
        }
        self.sockets.watch_bell(commands.as_fd());
        self.forget_former();
        loop {
            let start = Instant::now();
            let (was_active, is_moving) = self.turn(commands);
            if self.is_over() {
                break;
            }
            let longest_us = start.elapsed().as_micros() as u64;
            self.turns.count += 1;
            self.turns.longest_us = self.turns.longest_us.max(longest_us);
            let timeout = if is_moving { Some(Duration::ZERO) } else { self.timeout() };
            let spin = if was_active { self.spin.now(self.now) } else { Duration::ZERO };
            if let Err(error) = self.sockets.wait(timeout, spin) {
                return Err(super::pool::failed(&self.config.pool, "go on with", error));
            }
        }
        self.close()
    }

    /// One turn. Returns whether there was anything to do, and whether there is more.
    fn turn(&mut self, commands: &Commands) -> (bool, bool) {
        self.now = self.clock.now();
        self.nbd.set_now(self.now);
        self.disks.set_now(self.now);
        let mut was_active = false;
        for _ in 0..HAPPENINGS_MAX {
            let Some(happening) = self.sockets.next() else { break };
            was_active = true;
            self.happened(happening, commands);
        }
        self.act();
        bowline_arena::fail_point!("server.replies.pushed");
        let mut is_moving = false;
        for _ in 0..ROUNDS_MAX {
            // One in which nothing moves has left nothing at the medium.
            self.sockets.begin_round();
            is_moving = self.disks.poll(self.now);
            let told = self.tell();
            self.act();
            is_moving |= told;
            was_active |= is_moving;
            // Replies leave while what comes after them is still to be verified: the client goes
            // on beside us, and the medium gets its next work.
            if told || !is_moving {
                break;
            }
        }
        self.nbd.poll(&mut self.disks, self.now);
        self.act();
        self.watch_scrub();
        self.answer_resuming();
        self.renew_keeper();
        self.watch_conditions(was_active, self.now);
        (was_active, is_moving)
    }

    fn happened(&mut self, happening: Happening, commands: &Commands) {
        match happening {
            Happening::Received(session, result) => {
                self.nbd.received(&mut self.disks, session, result);
            }
            Happening::Sent(session, result) => self.nbd.sent(&mut self.disks, session, result),
            Happening::Readable(session) => self.nbd.readable(&mut self.disks, session),
            Happening::Waiting { listener } if listener == self.listeners.len() => {
                self.hear_keeper();
            }
            Happening::Waiting { listener } => self.accept(listener),
            Happening::Bell => {
                while let Some(command) = commands.next() {
                    self.answer(command, commands);
                }
                self.sockets.watch_bell(commands.as_fd());
            }
            Happening::Medium => {}
        }
    }

    fn accept(&mut self, listener: usize) {
        if self.stopping.is_some() {
            return;
        }
        for _ in 0..ACCEPTS_MAX {
            let socket = match self.listeners[listener].accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => break,
                Err(error) => {
                    let address = self.listeners[listener].address.to_string();
                    tracing::warn!(address, %error, "no connection can be accepted now");
                    let descriptor = self.listeners[listener].as_fd();
                    self.sockets.watch_listener_later(listener, descriptor);
                    return;
                }
            };
            self.connected += 1;
            self.begin_session(self.connected, listener, socket);
        }
        self.sockets.watch_listener(listener, self.listeners[listener].as_fd());
    }

    /// Begins the session of a new connection.
    pub(super) fn begin_session(&mut self, number: u64, listener: usize, socket: OwnedFd) {
        match self.nbd.accepted(number) {
            Ok(session) => self.open_session(session, (number, listener), socket),
            Err(error) => {
                tracing::warn!(%error, "a connection is refused");
                self.leave_connection(number, &socket);
            }
        }
    }

    /// Takes the socket of a session.
    pub(super) fn open_session(
        &mut self,
        session: SessionId,
        (number, listener): (u64, usize),
        socket: OwnedFd,
    ) {
        self.sockets.open(session, socket);
        let slot = session.slot() as usize;
        if self.open.len() <= slot {
            self.open.resize_with(slot + 1, || None);
        }
        self.open[slot] = Some(Connection { session, listener, number });
        self.connections[listener].now += 1;
        self.connections[listener].opened += 1;
    }

    /// Carries out what sessions want.
    fn act(&mut self) {
        while let Some(action) = self.nbd.next_action() {
            if let Action::Send { .. } = action {
                bowline_arena::fail_point!("server.reply.ready");
            }
            if let Some(closed) = self.sockets.carry_out(action) {
                self.closed(closed);
            }
        }
    }

    fn closed(&mut self, Closed { session, cause }: Closed) {
        let place = self.open.get_mut(session.slot() as usize).and_then(Option::take);
        if let Some(Connection { session: known, listener, number }) = place {
            debug_assert_eq!(known, session, "a session that is not known is closed");
            self.connections[listener].now -= 1;
            self.tell_keeper(&ToKeeper::Closed { number });
        }
        match cause {
            CloseCause::Client | CloseCause::Shutdown => tracing::debug!(%cause, "disconnected"),
            cause => tracing::info!(%cause, "disconnected"),
        }
    }

    /// Hands over what the disks have to tell. Returns whether there was something.
    fn tell(&mut self) -> bool {
        let mut told = false;
        while let Some(event) = self.disks.next_event() {
            told = true;
            match event {
                DiskEvent::Done { ticket, result } if !self.nbd.owns(ticket) => {
                    self.made_durable(ticket, result);
                }
                event => self.nbd.disk_event(&mut self.disks, event),
            }
        }
        told
    }

    /// Offers the disks there are.
    pub(super) fn offer_disks(&mut self) {
        self.nbd.set_exports(super::adopt::exported(&self.disks));
    }

    /// A ticket of our own.
    pub(super) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(u64::from(OURS) << 56 | self.tickets)
    }

    /// How long to sleep if nothing happens; for ever if nothing is to be done.
    fn timeout(&self) -> Option<Duration> {
        let store = self.disks.store();
        let deadlines = [
            self.disks.wake_at(),
            self.nbd.due(),
            store.wake_at(),
            store.is_busy().then(|| Micros(self.now.0 + TICK_US)),
            self.stopping.as_ref().map(|stopping| stopping.until),
            self.clock.take_alarm(),
            self.watch.due,
        ];
        let first = deadlines.into_iter().flatten().min();
        let first = first.map(|at| Duration::from_micros(at.0.saturating_sub(self.clock.now().0)));
        let renewal = self.membership.as_ref().and_then(|one| one.renewal_in());
        first.into_iter().chain(renewal).min()
    }

    /// The sessions that are open, with the number of each one's connection and its listener.
    pub(super) fn open_sessions(&self) -> impl Iterator<Item = (SessionId, u64, usize)> {
        self.open.iter().flatten().map(|one| (one.session, one.number, one.listener))
    }

    /// Begins to stop: replies leave, then connections are closed, then the pool.
    pub(super) fn stop(&mut self, reply: Reply<()>) {
        if let Some(stopping) = &mut self.stopping {
            return stopping.replies.push(reply);
        }
        self.part(vec![reply], None);
    }

    /// Begins to stop, to open the pool anew. The other way to accept a loss would be to change the
    /// store under its sessions.
    pub(super) fn reopen(&mut self, reply: Reply<PoolStatus>) {
        if self.stopping.is_none() {
            self.part(Vec::new(), Some(reply));
        }
    }

    fn part(&mut self, replies: Vec<Reply<()>>, reopen: Option<Reply<PoolStatus>>) {
        if reopen.is_none() {
            self.tell_keeper(&ToKeeper::Stopping);
        }
        let until = Micros(self.now.0 + PARTING_US);
        self.stopping = Some(Stopping { replies, reopen, until });
        self.nbd.close_all();
    }

    fn is_over(&self) -> bool {
        let Some(stopping) = &self.stopping else { return false };
        let has_waited = self.now >= stopping.until;
        let is_answered = self.pending.is_empty() && self.resuming.is_empty();
        (self.nbd.sessions_open() == 0 && is_answered) || has_waited
    }

    /// Closes the pool and takes away what only a living server needs.
    fn close(mut self) -> Result<End, Problem> {
        let was_writing = self.disks.store().status().state.is_writing();
        let closed = self.disks.store_mut().close();
        bowline_arena::fail_point!("server.store.closed");
        let (replies, reopen) =
            self.stopping.map_or((Vec::new(), None), |one| (one.replies, one.reopen));
        // In this order: the ring goes when nobody uses it, the arena when no ring needs it.
        drop((self.disks, self.nbd, self.sockets, self.listeners, self.ring));
        let membership = self.membership;
        let result = closed.map_err(|error| super::pool::failed(&self.config.pool, "close", error));
        if was_writing
            && result.is_ok()
            && let Err(error) = self.arena.remove()
        {
            tracing::warn!(%error, "the arena cannot be removed");
        }
        drop(self._lock);
        // Whoever asked to stop meanwhile is obeyed: his wish is the later one.
        if let Some(reply) = reopen.filter(|_| replies.is_empty()) {
            result?;
            return Ok(End::Reopen(Box::new(self.config), reply, membership));
        }
        for reply in replies {
            reply.send(result.clone());
        }
        if let Some(membership) = membership {
            membership.tell(&ToKeeper::Ended(result.clone().err()));
        }
        result.map(|()| End::Stopped)
    }
}
