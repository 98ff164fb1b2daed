//! A keeper that takes the place of one that has died, and finds out what there is.
//!
//! The active has started it, goes on, and answers its questions; so does the passive, to which it
//! has the channel that the dead keeper had.
//!
//! Invariants:
//! - Until it knows all, an heir does nothing that has to be undone: it accepts nobody and starts
//!   nothing. If it dies, the active starts another.
//! - Who has the keeper's end of the passive's channel is its keeper. So an heir whose active dies
//!   before it has told all goes away, and the passive, which has everything, is the next active
//!   and starts a keeper of its own. Only where no passive lives does the heir go on with what it
//!   knows.
//! - What the active has closed is closed; what only the passive was given is given to the active.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use bowline_arena::OwnerLock;
use rustix::event::{PollFd, PollFlags, poll};

use super::channel::Channel;
use super::message::{Inheritance, ToKeeper, ToServer, Told};
use super::process::{Known, ServerProcess, Stage, timespec};
use crate::server::config::{Listen, ServeConfig};
use crate::server::listen::Listener;
use crate::server::open::Locks;

/// How long a server may take to answer. A passive that takes longer is replaced; of an active it
/// cannot be said what is wrong with it, so the heir goes.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_ACTIVE: Duration = Duration::from_secs(30);

/// What a keeper has, found out anew.
pub struct Heir {
    pub config: ServeConfig,
    pub locks: Locks,
    pub control: UnixListener,
    pub listeners: Vec<Listener>,
    pub connections: BTreeMap<u64, (usize, OwnedFd)>,
    pub next_number: u64,
    pub active: ServerProcess,
    pub passive: Option<ServerProcess>,
}

/// Takes what the active gives, and asks for the rest. None if there is nobody to be keeper of, or
/// somebody else will be.
///
/// # Errors
/// If what comes is not what a keeper needs.
pub fn find_out() -> std::io::Result<Option<Heir>> {
    let channel = Channel::over(std::io::stdin().as_fd().try_clone_to_owned()?);
    let Some((ToKeeper::Inherit(inheritance), descriptors)) = next(&channel, PATIENCE)? else {
        return Err(std::io::Error::other("the active has left nothing to this keeper"));
    };
    let mut found = Found::new(channel, *inheritance, descriptors)?;
    match found.ask_active() {
        Ok(()) => {}
        // Its process may be there for a while; it says no more.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            let lives = found.passive.as_ref().is_some_and(|passive| !passive.has_ended());
            tracing::warn!(lives, "the active has died before it told its keeper all");
            if lives {
                return Ok(None);
            }
        }
        Err(error) => return Err(error),
    }
    Ok(Some(found.ask_passive()))
}

/// The next message, within a time.
fn next(channel: &Channel, limit: Duration) -> std::io::Result<Option<(ToKeeper, Vec<OwnedFd>)>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(message) = channel.receive()? {
            return Ok(Some(message));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        match poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is known so far.
struct Found {
    config: ServeConfig,
    locks: Locks,
    control: UnixListener,
    /// No [`Listener`]s yet: with those that a keeper has, the files of their sockets go.
    listeners: Vec<(Listen, OwnedFd)>,
    connections: BTreeMap<u64, (usize, OwnedFd)>,
    active: Known,
    /// The first number the active has not been given.
    active_next: u64,
    is_stopping: bool,
    passive: Option<Known>,
}

impl Found {
    fn new(
        channel: Channel,
        inheritance: Inheritance,
        descriptors: Vec<OwnedFd>,
    ) -> std::io::Result<Found> {
        let mut descriptors = descriptors.into_iter();
        let mut next =
            || descriptors.next().ok_or_else(|| std::io::Error::other("a descriptor is missing"));
        let locks = Locks { pool: OwnerLock::shared(next()?)?, arena: OwnerLock::shared(next()?)? };
        let control = UnixListener::from(next()?);
        let number = inheritance.active;
        let active = Known { number, channel, process: next()?, roster: next()? };
        let passive = match inheritance.passive {
            Some(number) => {
                let channel = Channel::over(next()?);
                Some(Known { number, channel, process: next()?, roster: next()? })
            }
            None => None,
        };
        let mut listeners = Vec::new();
        for address in inheritance.listeners {
            listeners.push((address, next()?));
        }
        Ok(Found {
            config: inheritance.config,
            locks,
            control,
            listeners,
            connections: BTreeMap::new(),
            active,
            active_next: 1,
            is_stopping: false,
            passive,
        })
    }

    /// Asks the active for its connections.
    fn ask_active(&mut self) -> std::io::Result<()> {
        let asker = std::process::id();
        let mut from = Some(0);
        while let Some(begin) = from {
            self.active.channel.send(&ToServer::Tell { asker, from: begin }, &[])?;
            from = loop {
                let message = next(&self.active.channel, PATIENCE_ACTIVE)?;
                let (message, sockets) = message.ok_or(ErrorKind::TimedOut)?;
                match message {
                    ToKeeper::Told(told) => {
                        self.active_next = told.next;
                        let rest = told.rest;
                        self.connections.extend(connections(told, sockets));
                        break rest;
                    }
                    ToKeeper::Closed { number } => drop(self.connections.remove(&number)),
                    ToKeeper::Stopping => self.is_stopping = true,
                    _ => {}
                }
            };
        }
        Ok(())
    }

    /// Asks the passive for its connections, and knows all.
    fn ask_passive(mut self) -> Heir {
        let mut next_number = self.active_next;
        let asked = self.passive.take().and_then(|passive| match ask(&passive) {
            Ok(standing) => Some((passive, standing)),
            Err(error) => {
                tracing::warn!(pid = passive.number, %error, "the passive does not answer");
                passive.kill();
                None
            }
        });
        let passive = asked.map(|(passive, standing)| {
            next_number = next_number.max(standing.next);
            for (number, connection) in standing.connections {
                if number >= self.active_next {
                    // Its first keeper died before the active knew of it.
                    self.connections.insert(number, connection);
                } else if !self.connections.contains_key(&number) {
                    // A channel that is full keeps it; one that is broken shows elsewhere.
                    let _ = passive.channel.send(&ToServer::Gone { number }, &[]);
                }
            }
            ServerProcess::found(passive, standing.stage, standing.next)
        });
        let listeners = self.listeners.into_iter();
        let listeners = listeners.map(|(place, socket)| Listener::inherited(place, socket));
        let stage = if self.is_stopping { Stage::Stopping } else { Stage::Serving };
        Heir {
            config: self.config,
            locks: self.locks,
            control: self.control,
            listeners: listeners.collect(),
            connections: self.connections,
            next_number,
            active: ServerProcess::found(self.active, stage, self.active_next),
            passive,
        }
    }
}

/// What a passive says of itself.
struct Standing {
    connections: BTreeMap<u64, (usize, OwnedFd)>,
    next: u64,
    /// It may have begun to serve meanwhile.
    stage: Stage,
}

fn ask(passive: &Known) -> std::io::Result<Standing> {
    let asker = std::process::id();
    let mut standing = Standing { connections: BTreeMap::new(), next: 1, stage: Stage::Begun };
    let mut serves = false;
    let mut from = Some(0);
    while let Some(begin) = from {
        passive.channel.send(&ToServer::Tell { asker, from: begin }, &[])?;
        from = loop {
            let (message, sockets) =
                next(&passive.channel, PATIENCE)?.ok_or(ErrorKind::TimedOut)?;
            match message {
                ToKeeper::Told(told) if told.asker == asker => {
                    let rest = told.rest;
                    standing.next = told.next;
                    standing.stage = match told.is_armed {
                        _ if serves => Stage::Serving,
                        true => Stage::Armed,
                        false => Stage::Warm,
                    };
                    standing.connections.extend(connections(told, sockets));
                    break rest;
                }
                ToKeeper::Serving => serves = true,
                ToKeeper::Closed { number } => drop(standing.connections.remove(&number)),
                // Also what was said to the keeper before.
                _ => {}
            }
        };
    }
    Ok(standing)
}

/// The connections of an answer.
fn connections(told: Told, sockets: Vec<OwnedFd>) -> impl Iterator<Item = (u64, (usize, OwnedFd))> {
    let of = |((number, listener), socket)| (number, (listener, socket));
    told.connections.into_iter().zip(sockets).map(of)
}
