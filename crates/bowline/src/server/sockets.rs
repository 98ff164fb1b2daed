//! Carrying out what sessions want of their sockets: by the ring, or by plain calls without one.
//!
//! The loop hands over [`Action`]s and is given [`Happening`]s; it does not know which of the two
//! it is. Nothing here waits but [`Sockets::wait`].

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use bowline_export::{Action, CloseCause, IoStop, SessionId};

use super::poll_sockets::PollSockets;
use super::ring_sockets::RingSockets;

/// Something that came back.
#[derive(Debug)]
pub enum Happening {
    /// Connections wait at a listener.
    Waiting {
        /// Which listener.
        listener: usize,
    },
    /// There is something to receive.
    Readable(SessionId),
    /// A receive came back.
    Received(SessionId, Result<u32, IoStop>),
    /// A send came back.
    Sent(SessionId, Result<u32, IoStop>),
    /// The control plane asks something.
    Bell,
    /// The medium has finished something.
    Medium,
}

/// A session whose socket is closed.
#[derive(Debug, Clone, Copy)]
pub struct Closed {
    /// Which.
    pub session: SessionId,
    /// Why.
    pub cause: CloseCause,
}

/// The sockets of all sessions.
pub enum Sockets {
    /// By the ring.
    Ring(RingSockets),
    /// By plain calls.
    Poll(PollSockets),
}

macro_rules! either {
    ($self:ident, $sockets:ident => $call:expr) => {
        match $self {
            Sockets::Ring($sockets) => $call,
            Sockets::Poll($sockets) => $call,
        }
    };
}

impl Sockets {
    /// How it is done, for status.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Sockets::Ring(_) => "io_uring",
            Sockets::Poll(_) => "poll",
        }
    }

    /// Watches a listener, once: [`Happening::Waiting`] follows. The descriptor stays open until
    /// the sockets are dropped.
    pub fn watch_listener(&mut self, listener: usize, descriptor: BorrowedFd<'_>) {
        either!(self, sockets => sockets.watch_listener(listener, descriptor));
    }

    /// Watches a listener again after a while: there are no descriptors or no memory just now.
    pub fn watch_listener_later(&mut self, listener: usize, descriptor: BorrowedFd<'_>) {
        either!(self, sockets => sockets.watch_listener_later(listener, descriptor));
    }

    /// Watches the control plane's bell, once. The descriptor stays open as that of a listener.
    pub fn watch_bell(&mut self, descriptor: BorrowedFd<'_>) {
        either!(self, sockets => sockets.watch_bell(descriptor));
    }

    /// Takes the socket of a new session.
    pub fn open(&mut self, session: SessionId, socket: OwnedFd) {
        either!(self, sockets => sockets.open(session, socket));
    }

    /// The socket of a session.
    #[must_use]
    pub fn socket(&self, session: SessionId) -> Option<BorrowedFd<'_>> {
        match self {
            Sockets::Ring(sockets) => sockets.socket_of(session),
            Sockets::Poll(sockets) => sockets.socket_of(session),
        }
    }

    /// Does what a session wants, or begins to.
    pub fn carry_out(&mut self, action: Action) -> Option<Closed> {
        either!(self, sockets => sockets.carry_out(action))
    }

    /// The loop begins another round.
    pub fn begin_round(&self) {
        if let Sockets::Ring(sockets) = self {
            sockets.begin_round();
        }
    }

    /// The next thing that came back.
    pub fn next(&mut self) -> Option<Happening> {
        either!(self, sockets => sockets.next())
    }

    /// Hands what was begun to the kernel, in order, and waits until something happens: first
    /// looking for `spin`, then asleep.
    ///
    /// # Errors
    /// If the kernel fails in a way that no state can express.
    pub fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> io::Result<()> {
        either!(self, sockets => sockets.wait(timeout, spin))
    }
}

/// What the result of a receive or send means to a session.
pub(super) fn outcome(result: Result<u32, i32>) -> Result<u32, IoStop> {
    result.map_err(|code| match code {
        // Nothing is wrong with the socket: the session asks again.
        codes::ECANCELED | codes::EINTR | codes::EAGAIN => IoStop::Cancelled,
        code => IoStop::Failed(code),
    })
}

mod codes {
    use rustix::io::Errno;

    pub const ECANCELED: i32 = Errno::CANCELED.raw_os_error();
    pub const EINTR: i32 = Errno::INTR.raw_os_error();
    pub const EAGAIN: i32 = Errno::AGAIN.raw_os_error();
}
