//! Sockets by the ring that the medium uses, too.
//!
//! The kernel writes what became of a receive or a send into a completion, in memory that outlives
//! the process, beside a tag that says which of the session's operations it was: the position in
//! the stream is the operation's base, which the session's record has, and this result.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{Completed, Operation, Ring, UserData};
use bowline_export::{Action, SessionId};
use bowline_media::MediaEvents;
use rustix::event::PollFlags;
use rustix::net::Shutdown;

use super::sockets::{Closed, Happening, outcome};

/// Classes of the ring's operations.
const LISTENER: u8 = 1;
const BELL: u8 = 2;
const READABLE: u8 = 3;
const RECEIVE: u8 = 4;
const SEND: u8 = 5;
const CANCEL: u8 = 6;
const LATER: u8 = 7;
/// The medium's.
pub const MEDIUM: u8 = 8;

/// How long a listener is left alone when there is no room for connections.
const LATER_AFTER: Duration = Duration::from_millis(100);

/// Which session's operation a tag is of: whether it is a send, the session with 24 bits of its
/// generation, and the operation's number. None if it is no receive and no send.
#[must_use]
pub fn socket_operation(tag: UserData) -> Option<(bool, SessionId, u8)> {
    let is_send = match tag.class() {
        SEND => true,
        RECEIVE => false,
        _ => return None,
    };
    let session = SessionId::new(tag.slot(), tag.generation() >> 8);
    Some((is_send, session, tag.generation() as u8))
}

/// All sockets of a server with a ring.
pub struct RingSockets {
    ring: Rc<RefCell<Ring>>,
    medium: MediaEvents,
    /// By the slots of sessions.
    sockets: Vec<Option<OwnedFd>>,
    /// By listener.
    listeners: Vec<RawFd>,
}

impl RingSockets {
    /// No sockets yet.
    #[must_use]
    pub fn new(ring: Rc<RefCell<Ring>>, medium: MediaEvents) -> RingSockets {
        RingSockets { ring, medium, sockets: Vec::new(), listeners: Vec::new() }
    }

    fn push(&mut self, user_data: UserData, operation: Operation) {
        self.ring.borrow_mut().push(user_data, operation);
    }

    fn watch(&mut self, user_data: UserData, descriptor: RawFd) {
        let events = PollFlags::IN.bits();
        self.push(user_data, Operation::Poll { descriptor, events });
    }

    pub(super) fn watch_listener(&mut self, listener: usize, descriptor: BorrowedFd<'_>) {
        if self.listeners.len() <= listener {
            self.listeners.resize(listener + 1, -1);
        }
        self.listeners[listener] = descriptor.as_raw_fd();
        self.watch(UserData::new(LISTENER, listener as u32, 0), descriptor.as_raw_fd());
    }

    pub(super) fn watch_listener_later(&mut self, listener: usize, descriptor: BorrowedFd<'_>) {
        self.listeners[listener] = descriptor.as_raw_fd();
        let user_data = UserData::new(LATER, listener as u32, 0);
        self.push(user_data, Operation::Timeout { after: LATER_AFTER });
    }

    pub(super) fn watch_bell(&mut self, descriptor: BorrowedFd<'_>) {
        self.watch(UserData::new(BELL, 0, 0), descriptor.as_raw_fd());
    }

    pub(super) fn open(&mut self, session: SessionId, socket: OwnedFd) {
        let slot = session.slot() as usize;
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.sockets[slot] = Some(socket);
    }

    fn socket(&self, session: SessionId) -> RawFd {
        self.socket_of(session).map_or(-1, |socket| socket.as_raw_fd())
    }

    pub(super) fn socket_of(&self, session: SessionId) -> Option<BorrowedFd<'_>> {
        let socket = self.sockets.get(session.slot() as usize).and_then(Option::as_ref);
        socket.map(AsFd::as_fd)
    }

    pub(super) fn carry_out(&mut self, action: Action) -> Option<Closed> {
        let tag = |class, session: SessionId, number: u8| {
            UserData::new(class, session.slot(), session.generation() << 8 | u32::from(number))
        };
        match action {
            Action::Send { session, number, parts } => {
                self.medium.start_reads();
                let descriptor = self.socket(session);
                let operation = match parts[..] {
                    [from] => Operation::Send { descriptor, from, flags: 0 },
                    _ => Operation::SendVectored { descriptor, from: parts, flags: 0 },
                };
                self.push(tag(SEND, session, number), operation);
            }
            Action::Receive { session, number, parts } => {
                self.medium.start_reads();
                let descriptor = self.socket(session);
                let operation = match parts[..] {
                    [into] => Operation::Receive { descriptor, into, flags: 0 },
                    _ => Operation::ReceiveVectored { descriptor, into: parts, flags: 0 },
                };
                self.push(tag(RECEIVE, session, number), operation);
            }
            Action::AwaitReadable { session } => {
                let descriptor = self.socket(session);
                self.watch(tag(READABLE, session, 0), descriptor);
            }
            Action::CancelReceive { session, number } => {
                let target = tag(RECEIVE, session, number);
                self.push(tag(CANCEL, session, number), Operation::Cancel { target });
            }
            Action::Shutdown { session } => {
                let socket = self.sockets.get(session.slot() as usize).and_then(Option::as_ref);
                if let Some(socket) = socket {
                    // One that has lost its peer is as good as shut down.
                    let _ = rustix::net::shutdown(socket, Shutdown::Both);
                }
            }
            Action::Close { session, cause } => {
                let socket = self.sockets.get_mut(session.slot() as usize).and_then(Option::take);
                if let Some(socket) = socket {
                    // Other processes may have copies, which must not keep it open.
                    let _ = rustix::net::shutdown(&socket, Shutdown::Both);
                }
                return Some(Closed { session, cause });
            }
        }
        None
    }

    pub(super) fn begin_round(&self) {
        self.medium.begin_round();
    }

    pub(super) fn next(&mut self) -> Option<Happening> {
        loop {
            let completed = self.ring.borrow_mut().completion()?;
            if let Some(happening) = self.happening(completed) {
                return Some(happening);
            }
        }
    }

    fn happening(&mut self, completed: Completed) -> Option<Happening> {
        let tag = completed.user_data;
        let session = SessionId::new(tag.slot(), tag.generation() >> 8);
        Some(match tag.class() {
            MEDIUM => {
                self.medium.on_completion(completed);
                Happening::Medium
            }
            SEND => Happening::Sent(session, outcome(completed.outcome())),
            RECEIVE => Happening::Received(session, outcome(completed.outcome())),
            READABLE => Happening::Readable(session),
            BELL => Happening::Bell,
            LISTENER => Happening::Waiting { listener: tag.slot() as usize },
            LATER => {
                let descriptor = self.listeners[tag.slot() as usize];
                self.watch(UserData::new(LISTENER, tag.slot(), 0), descriptor);
                return None;
            }
            _ => return None,
        })
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> io::Result<()> {
        self.ring.borrow_mut().wait(timeout, spin)
    }
}
