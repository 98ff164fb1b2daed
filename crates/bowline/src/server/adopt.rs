//! A server that goes on with the sessions of one that died, and what its keeper tells it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use bowline_arena::{SharedPages, Span};
use bowline_disk::Disks;
use bowline_export::{
    Adoption, ExportedDisk, FoundSessions, KernelOperation, NbdServer, Options, SessionId,
};
use bowline_store::Micros;
use rustix::net::Shutdown;

use super::command::Reply;
use super::data::Data;
use super::open::{Results, ServerStore};
use crate::control::api::{Kind, Problem};
use crate::family::{Handed, ToKeeper};

/// The sessions a server begins with.
pub struct Begun {
    pub nbd: NbdServer,
    /// Those taken over, with the numbers of their connections.
    pub sessions: Vec<(SessionId, u64)>,
    /// Connections up to this one have had a session.
    pub connected: u64,
}

impl Begun {
    /// Nobody is connected.
    pub fn anew(
        pages: &SharedPages,
        region: Span,
        options: Options,
        disks: &mut Disks<ServerStore>,
    ) -> Begun {
        let nbd = NbdServer::new(pages.clone(), region, options);
        nbd.watch(disks);
        Begun { nbd, sessions: Vec::new(), connected: 0 }
    }
}

/// The disks there are, as they are offered.
pub fn exported(disks: &Disks<ServerStore>) -> Vec<ExportedDisk> {
    let one = |disk: &bowline_store::Disk| ExportedDisk {
        disk: disk.id,
        name: disk.name.clone(),
        description: String::new(),
        read_only: false,
    };
    disks.store().disks().map(one).collect()
}

/// Goes on with the sessions that were found.
///
/// # Errors
/// If their records contradict each other.
pub fn adopt(
    found: FoundSessions,
    results: &Results,
    pages: &SharedPages,
    (region, options, now): (Span, Options, Micros),
    disks: &mut Disks<ServerStore>,
) -> Result<Begun, Problem> {
    let (sessions, connected) = (found.connections().collect(), found.connected_through());
    let exported = exported(disks);
    let mut ask = |operation: KernelOperation| results.of(operation);
    let pages = pages.clone();
    let results = &mut ask;
    let adoption = Adoption { pages, region, found, options, exported, now, results };
    let nbd = NbdServer::adopt(adoption, disks).map_err(|error| {
        Problem::new(Kind::Failed, "the sessions cannot be taken over").why(error.to_string())
    })?;
    Ok(Begun { nbd, sessions, connected })
}

impl Data {
    /// Gives the sessions that were taken over their sockets, closes connections whose sessions
    /// have ended, and begins the others.
    pub(super) fn join(&mut self, sessions: Vec<(SessionId, u64)>, connected: u64) {
        for (session, number) in sessions {
            let handed = self.membership.as_mut().and_then(|one| one.connections.remove(&number));
            match handed {
                Some(Handed { listener, socket }) => {
                    self.open_session(session, (number, listener), socket);
                }
                // Its client has gone, and the keeper let go of it.
                None => self.open_lost(session, number),
            }
        }
        let forgets = self.membership.as_ref().is_some_and(|one| one.forgets_sessions);
        let rest = self.membership.as_mut().map(|one| std::mem::take(&mut one.connections));
        for (number, Handed { listener, socket }) in rest.into_iter().flatten() {
            if number <= connected || forgets {
                self.leave_connection(number, &socket);
            } else {
                self.begin_session(number, listener, socket);
            }
        }
        if let Some(membership) = &mut self.membership {
            membership.forgets_sessions = false;
            if let Some(since) = membership.takes_over_since {
                let micros = since.elapsed().as_micros() as u64;
                tracing::warn!(micros, "taken over");
            }
        }
        self.tell_keeper(&ToKeeper::Serving);
    }

    /// What became of the operations of former servers is in the records now.
    pub(super) fn forget_former(&mut self) {
        self.nbd.publish_all();
        bowline_arena::fail_point!("server.sessions.adopted");
        if let Err(error) = self.arena.forget_dead_rings() {
            tracing::warn!(%error, "the rings of a dead server stay");
        }
    }

    /// A session whose socket nobody has finds that its client has gone.
    fn open_lost(&mut self, session: SessionId, number: u64) {
        if let Ok((socket, _)) = std::os::unix::net::UnixStream::pair() {
            self.open_session(session, (number, 0), socket.into());
        }
    }

    /// A connection is not served: every copy of its socket is to be closed.
    pub(super) fn leave_connection(&mut self, number: u64, socket: &OwnedFd) {
        // One that has lost its peer is as good as shut down.
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
        self.tell_keeper(&ToKeeper::Closed { number });
    }

    pub(super) fn tell_keeper(&self, message: &ToKeeper) {
        if let Some(membership) = &self.membership {
            membership.tell(message);
        }
    }

    /// Takes what the keeper has said, and goes on listening.
    pub(super) fn hear_keeper(&mut self) {
        let Some(membership) = &mut self.membership else { return };
        membership.hear();
        let connections = std::mem::take(&mut membership.connections);
        let stops = std::mem::take(&mut membership.is_told_to_stop);
        let asked = membership.asked.take();
        for (number, Handed { listener, socket }) in connections {
            self.begin_session(number, listener, socket);
        }
        if let Some(asked) = asked {
            self.tell_connections(asked);
        }
        if stops {
            self.stop(Reply::nobody());
        }
        self.listen_to_keeper();
    }

    /// Listens to the keeper, if there is one.
    pub(super) fn listen_to_keeper(&mut self) {
        let Some(membership) = &self.membership else { return };
        if membership.has_keeper() {
            self.sockets.watch_listener(self.listeners.len(), membership.as_fd());
        }
    }

    /// A keeper that has died is replaced when it is time.
    pub(super) fn renew_keeper(&mut self) {
        // One that is about to close the pool needs none.
        let is_stopping = self.stopping.is_some();
        let Some(membership) = self.membership.as_mut().filter(|_| !is_stopping) else { return };
        if membership.renew_keeper() {
            self.listen_to_keeper();
        }
    }

    /// Tells a new keeper of connections.
    fn tell_connections(&self, asked: (u32, u64)) {
        let mut all = BTreeMap::new();
        for (session, number, listener) in self.open_sessions() {
            if let Some(socket) = self.sockets.socket(session) {
                all.insert(number, (listener, socket));
            }
        }
        if let Some(membership) = &self.membership {
            membership.answer(asked, &all);
        }
    }
}
