//! Sockets by plain calls: for systems that give no ring.
//!
//! What a session wants is tried at once; what would wait is tried again when `poll` says so.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bowline_arena::{Memory, Part, receive_parts, send_parts};
use bowline_export::{Action, IoStop, SessionId};
use bowline_media::MediaEvents;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::sockets::{Closed, Happening, outcome};

/// How long a listener is left alone when there is no room for connections.
const LATER_AFTER: Duration = Duration::from_millis(100);

/// The socket of a session, and what waits for it.
struct Line {
    session: SessionId,
    socket: OwnedFd,
    awaits_readable: bool,
    receive: Option<Vec<Part>>,
    send: Option<Vec<Part>>,
}

/// Something else that is watched, by a descriptor of our own.
#[derive(Default)]
struct Watch {
    descriptor: Option<OwnedFd>,
    /// Not before this time.
    from: Option<Instant>,
    on: bool,
}

impl Watch {
    fn start(&mut self, descriptor: BorrowedFd<'_>, from: Option<Instant>) {
        // It may be another than before.
        self.descriptor = descriptor.try_clone_to_owned().ok();
        (self.from, self.on) = (from, self.descriptor.is_some());
    }
}

/// What a descriptor is watched for.
#[derive(Clone, Copy)]
enum Target {
    Bell,
    Medium,
    Listener(usize),
    Line(SessionId),
}

/// All sockets of a server without a ring.
pub struct PollSockets {
    memory: Rc<Memory>,
    /// Readable while the medium has something to give.
    medium: Option<OwnedFd>,
    /// By the slots of sessions.
    lines: Vec<Option<Line>>,
    listeners: Vec<Watch>,
    bell: Watch,
    happened: VecDeque<Happening>,
}

impl PollSockets {
    /// No sockets yet.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn new(memory: Rc<Memory>, medium: &MediaEvents) -> io::Result<PollSockets> {
        Ok(PollSockets {
            memory,
            medium: medium.wake_clone()?,
            lines: Vec::new(),
            listeners: Vec::new(),
            bell: Watch::default(),
            happened: VecDeque::new(),
        })
    }

    pub(super) fn watch_listener(&mut self, listener: usize, descriptor: BorrowedFd<'_>) {
        if self.listeners.len() <= listener {
            self.listeners.resize_with(listener + 1, Watch::default);
        }
        self.listeners[listener].start(descriptor, None);
    }

    pub(super) fn watch_listener_later(&mut self, listener: usize, descriptor: BorrowedFd<'_>) {
        self.listeners[listener].start(descriptor, Some(Instant::now() + LATER_AFTER));
    }

    pub(super) fn watch_bell(&mut self, descriptor: BorrowedFd<'_>) {
        self.bell.start(descriptor, None);
    }

    pub(super) fn open(&mut self, session: SessionId, socket: OwnedFd) {
        let slot = session.slot() as usize;
        if self.lines.len() <= slot {
            self.lines.resize_with(slot + 1, || None);
        }
        let line = Line { session, socket, awaits_readable: false, receive: None, send: None };
        self.lines[slot] = Some(line);
    }

    fn line(&mut self, session: SessionId) -> Option<&mut Line> {
        self.lines.get_mut(session.slot() as usize)?.as_mut()
    }

    pub(super) fn socket_of(&self, session: SessionId) -> Option<BorrowedFd<'_>> {
        let line = self.lines.get(session.slot() as usize)?.as_ref()?;
        Some(line.socket.as_fd())
    }

    pub(super) fn carry_out(&mut self, action: Action) -> Option<Closed> {
        match action {
            Action::Send { session, parts, .. } => {
                self.line(session)?.send = Some(parts);
                self.try_send(session);
            }
            Action::Receive { session, parts, .. } => {
                self.line(session)?.receive = Some(parts);
                self.try_receive(session);
            }
            Action::AwaitReadable { session } => self.line(session)?.awaits_readable = true,
            Action::CancelReceive { session, .. } => {
                if self.line(session)?.receive.take().is_some() {
                    let cancelled = Happening::Received(session, Err(IoStop::Cancelled));
                    self.happened.push_back(cancelled);
                }
            }
            Action::Shutdown { session } => {
                // One that has lost its peer is as good as shut down.
                let _ = rustix::net::shutdown(&self.line(session)?.socket, Shutdown::Both);
            }
            Action::Close { session, cause } => {
                if let Some(line) = self.line(session) {
                    // Other processes may have copies, which must not keep it open.
                    let _ = rustix::net::shutdown(&line.socket, Shutdown::Both);
                    self.lines[session.slot() as usize] = None;
                }
                return Some(Closed { session, cause });
            }
        }
        None
    }

    fn try_send(&mut self, session: SessionId) {
        let memory = Rc::clone(&self.memory);
        let Some(line) = self.line(session) else { return };
        let Some(parts) = line.send.take() else { return };
        match send_parts(&memory, &line.socket, &parts).map_err(code) {
            Err(WOULD_BLOCK) => line.send = Some(parts),
            result => self.happened.push_back(Happening::Sent(session, outcome(result))),
        }
    }

    fn try_receive(&mut self, session: SessionId) {
        let memory = Rc::clone(&self.memory);
        let Some(line) = self.line(session) else { return };
        let Some(parts) = line.receive.take() else { return };
        match receive_parts(&memory, &line.socket, &parts).map_err(code) {
            Err(WOULD_BLOCK) => line.receive = Some(parts),
            result => self.happened.push_back(Happening::Received(session, outcome(result))),
        }
    }

    pub(super) fn next(&mut self) -> Option<Happening> {
        self.happened.pop_front()
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> io::Result<()> {
        if !self.happened.is_empty() {
            return self.look(Some(Duration::ZERO));
        }
        let spin = timeout.map_or(spin, |timeout| timeout.min(spin));
        let start = Instant::now();
        while start.elapsed() < spin {
            self.look(Some(Duration::ZERO))?;
            if !self.happened.is_empty() {
                return Ok(());
            }
        }
        self.look(timeout.map(|timeout| timeout.saturating_sub(spin)))
    }

    /// Asks the kernel once, and does what can be done.
    fn look(&mut self, mut timeout: Option<Duration>) -> io::Result<()> {
        let now = Instant::now();
        for watch in self.listeners.iter().filter(|watch| watch.on) {
            let left = watch.from.map(|from| from.saturating_duration_since(now));
            if let Some(left) = left.filter(|left| !left.is_zero()) {
                timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
            }
        }
        let time = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let (targets, mut asked) = self.asked(now);
        match poll(&mut asked, time.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let found: Vec<PollFlags> = asked.iter().map(PollFd::revents).collect();
        drop(asked);
        for (target, events) in targets.into_iter().zip(found) {
            if !events.is_empty() {
                self.ready(target, events);
            }
        }
        Ok(())
    }

    /// What is to be watched now.
    fn asked(&self, now: Instant) -> (Vec<Target>, Vec<PollFd<'_>>) {
        let mut all = Vec::with_capacity(self.lines.len() + self.listeners.len() + 2);
        if let Some(descriptor) = self.bell.descriptor.as_ref().filter(|_| self.bell.on) {
            all.push((Target::Bell, PollFd::new(descriptor, PollFlags::IN)));
        }
        if let Some(descriptor) = &self.medium {
            all.push((Target::Medium, PollFd::new(descriptor, PollFlags::IN)));
        }
        for (index, watch) in self.listeners.iter().enumerate() {
            let is_due = watch.on && watch.from.is_none_or(|from| from <= now);
            if let Some(descriptor) = watch.descriptor.as_ref().filter(|_| is_due) {
                all.push((Target::Listener(index), PollFd::new(descriptor, PollFlags::IN)));
            }
        }
        for line in self.lines.iter().flatten() {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, line.awaits_readable || line.receive.is_some());
            events.set(PollFlags::OUT, line.send.is_some());
            if !events.is_empty() {
                all.push((Target::Line(line.session), PollFd::new(&line.socket, events)));
            }
        }
        all.into_iter().unzip()
    }

    fn ready(&mut self, target: Target, events: PollFlags) {
        match target {
            Target::Bell => {
                self.bell.on = false;
                self.happened.push_back(Happening::Bell);
            }
            Target::Medium => self.happened.push_back(Happening::Medium),
            Target::Listener(listener) => {
                self.listeners[listener].on = false;
                self.happened.push_back(Happening::Waiting { listener });
            }
            Target::Line(session) => {
                let has_ended = events.intersects(PollFlags::HUP | PollFlags::ERR);
                if events.contains(PollFlags::OUT) || has_ended {
                    self.try_send(session);
                }
                if !events.contains(PollFlags::IN) && !has_ended {
                    return;
                }
                self.try_receive(session);
                let Some(line) = self.line(session) else { return };
                if std::mem::take(&mut line.awaits_readable) {
                    self.happened.push_back(Happening::Readable(session));
                }
            }
        }
    }
}

const WOULD_BLOCK: i32 = Errno::AGAIN.raw_os_error();

fn code(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())
}
