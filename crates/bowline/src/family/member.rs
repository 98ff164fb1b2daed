//! A server of a family: active from the start, or passive until the active has ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_arena::{Fate, OwnerLock, Roster, Threads, Watched};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::MemfdFlags;

use super::channel::{Channel, DESCRIPTORS_MAX};
use super::message::{Role, Start, ToKeeper, ToServer, Told};
use super::process::Known;
use super::renewal::Renewal;
use crate::control::api::{Kind, Problem, Processes, Takeover};
use crate::control::service;
use crate::server::config::{Listen, ServeConfig};
use crate::server::{Server, command};

/// How long a process whose threads cannot all be told may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that was handed over and has no session here yet.
pub struct Handed {
    /// By which listener it came.
    pub listener: usize,
    /// Its socket.
    pub socket: OwnedFd,
}

/// What a server of a family has, beside what every server has.
pub struct Membership {
    pub(super) channel: Channel,
    pub(super) config: ServeConfig,
    pub(super) pool_lock: OwnedFd,
    pub(super) arena_lock: OwnedFd,
    pub(super) control: UnixListener,
    pub(super) listeners: Vec<(Listen, OwnedFd)>,
    roster: Roster,
    /// Where the roster lies.
    pub(super) roster_file: File,
    /// Connections whose sessions nobody here has begun or taken over, by number.
    pub connections: BTreeMap<u64, Handed>,
    /// The records of sessions are not to be believed.
    pub forgets_sessions: bool,
    /// A passive that takes over: when the end of the active was noticed.
    pub takes_over_since: Option<Instant>,
    /// How the family is, as the keeper says.
    pub processes: Processes,
    /// Whether it could go on without this server.
    pub takeover: Takeover,
    /// Somebody wants the server to end.
    pub is_told_to_stop: bool,
    /// A keeper that wants to be told of connections: who, and from which number.
    pub asked: Option<(u32, u64)>,
    /// The first number that no connection had yet, as far as is known here.
    next: u64,
    /// Who stands by for this active.
    pub(super) passive: Option<Known>,
    /// The passive watches the active from now on.
    is_armed: bool,
    /// How a keeper that has gone is replaced.
    pub(super) renewal: Renewal,
}

impl AsFd for Membership {
    /// Readable when the keeper has something to say.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Membership {
    /// The family's lock on the pool.
    ///
    /// # Errors
    /// If the system has no descriptor left, or somebody else has the lock.
    pub fn pool_lock(&self) -> std::io::Result<OwnerLock> {
        OwnerLock::shared(self.pool_lock.try_clone()?)
    }

    /// The family's lock on the arena.
    ///
    /// # Errors
    /// As [`Membership::pool_lock`].
    pub fn arena_lock(&self) -> std::io::Result<OwnerLock> {
        OwnerLock::shared(self.arena_lock.try_clone()?)
    }

    /// Where clients connect, and the sockets there.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn listeners(&self) -> std::io::Result<Vec<(Listen, OwnedFd)>> {
        let clone =
            |(address, socket): &(Listen, OwnedFd)| Ok((address.clone(), socket.try_clone()?));
        self.listeners.iter().map(clone).collect()
    }

    /// Where threads are begun.
    pub fn threads(&self) -> Threads {
        Threads::on(self.roster.clone())
    }

    /// Tells the keeper something. One that has gone needs to be told nothing.
    pub fn tell(&self, message: &ToKeeper) {
        let _ = self.channel.send(message, &[]);
    }

    /// Takes what the keeper has said.
    pub fn hear(&mut self) {
        loop {
            match self.channel.receive() {
                Ok(Some((message, descriptors))) => self.heard(message, descriptors),
                Ok(None) => return,
                Err(error) => return self.keeper_has_gone(&error),
            }
        }
    }

    /// Waits until the keeper has handed over all connections there are.
    fn hear_all(&mut self) -> std::io::Result<()> {
        while !self.is_armed {
            poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], None)?;
            self.hear();
            if !self.has_keeper() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn heard(&mut self, message: ToServer, mut descriptors: Vec<OwnedFd>) {
        match message {
            ToServer::Connection { number, listener } => {
                if let Some(socket) = descriptors.pop() {
                    self.connections.insert(number, Handed { listener, socket });
                }
                self.next = self.next.max(number + 1);
            }
            ToServer::Gone { number } => drop(self.connections.remove(&number)),
            ToServer::Armed { next } => (self.is_armed, self.next) = (true, self.next.max(next)),
            ToServer::Passive { number } => self.passive = known(number, descriptors),
            ToServer::Tell { asker, from } => self.asked = Some((asker, from)),
            ToServer::Family(processes, takeover) => {
                (self.processes, self.takeover) = (processes, takeover);
                self.renewal.is_done();
            }
            ToServer::Stop => self.is_told_to_stop = true,
            ToServer::Start(_) => {}
        }
    }

    fn keeper_has_gone(&mut self, error: &std::io::Error) {
        if self.renewal.is_needed() {
            return;
        }
        tracing::warn!(%error, "the keeper has gone");
        self.renewal.begin();
        self.processes.keeper = None;
        self.takeover = Takeover { ready: false, reason: "the keeper has gone".into() };
    }

    /// Whether there is a keeper that may say something.
    pub fn has_keeper(&self) -> bool {
        !self.renewal.is_needed()
    }

    /// Answers a keeper that has asked for connections, of which these are all.
    pub fn answer(&self, asked: (u32, u64), all: &BTreeMap<u64, (usize, BorrowedFd<'_>)>) {
        let (asker, from) = asked;
        let mut connections = Vec::new();
        let mut sockets = Vec::new();
        let mut rest = None;
        for (&number, &(listener, socket)) in all.range(from..) {
            if sockets.len() == DESCRIPTORS_MAX {
                rest = Some(number);
                break;
            }
            connections.push((number, listener));
            sockets.push(socket);
        }
        let told = Told { asker, connections, rest, next: self.next, is_armed: self.is_armed };
        if let Err(error) = self.channel.send(&ToKeeper::Told(told), &sockets) {
            tracing::error!(%error, "the keeper cannot be told what there is");
        }
    }

    /// As [`Membership::answer`], while nobody is served here.
    fn answer_as_passive(&mut self) {
        if let Some(asked) = self.asked.take() {
            let all = self.connections.iter();
            let all = all.map(|(&number, one)| (number, (one.listener, one.socket.as_fd())));
            self.answer(asked, &all.collect());
        }
    }
}

/// The passive, by what the keeper handed over.
fn known(number: u32, descriptors: Vec<OwnedFd>) -> Option<Known> {
    let [channel, process, roster] = descriptors.try_into().ok()?;
    Some(Known { number, process, channel: Channel::over(channel), roster })
}

/// Runs as a server of the family whose keeper has given this process a channel as its standard
/// input.
///
/// # Errors
/// What ended it; the keeper has been told.
pub fn serve() -> Result<(), Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(Kind::Failed, "no server of a family").why(error.to_string())
    };
    // It was started by a link, which would be its name.
    let _ = rustix::thread::set_name(c"bowline");
    let channel = Channel::over(std::io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    let file = rustix::fs::memfd_create("bowline-roster", MemfdFlags::CLOEXEC);
    let file = File::from(file.map_err(|error| failed(error.into()))?);
    let roster = Roster::begin(&file).map_err(failed)?;
    // This is the thread that serves.
    let _enrolled = roster.enrol().map_err(failed)?;
    channel.send(&ToKeeper::Roster, &[file.as_fd()]).map_err(failed)?;
    let (start, descriptors) = first(&channel).map_err(failed)?;
    let result = begin(channel, (roster, file), start, descriptors);
    result.map_err(|(problem, membership)| {
        if let Some(membership) = membership {
            membership.tell(&ToKeeper::Ended(Some(problem.clone())));
        }
        problem
    })
}

/// Waits for the first message.
fn first(channel: &Channel) -> std::io::Result<(Box<Start>, Vec<OwnedFd>)> {
    loop {
        poll(&mut [PollFd::new(channel, PollFlags::IN)], None)?;
        match channel.receive()? {
            Some((ToServer::Start(start), descriptors)) => return Ok((start, descriptors)),
            Some(_) => return Err(std::io::Error::other("another message came first")),
            None => {}
        }
    }
}

type Failure = (Problem, Option<Box<Membership>>);

fn begin(
    channel: Channel,
    (roster, roster_file): (Roster, File),
    start: Box<Start>,
    descriptors: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let Start { role, config, listeners, forget_sessions } = *start;
    let mut descriptors = descriptors.into_iter();
    let mut next = || {
        let missing = || (Problem::new(Kind::Failed, "a descriptor is missing"), None);
        descriptors.next().ok_or_else(missing)
    };
    let (pool_lock, arena_lock, control) = (next()?, next()?, UnixListener::from(next()?));
    let mut places = Vec::new();
    for address in listeners {
        places.push((address, next()?));
    }
    let mut membership = Box::new(Membership {
        channel,
        config,
        pool_lock,
        arena_lock,
        control,
        listeners: places,
        roster,
        roster_file,
        connections: BTreeMap::new(),
        forgets_sessions: forget_sessions,
        takes_over_since: None,
        processes: Processes::default(),
        takeover: Takeover { ready: false, reason: "no passive yet".into() },
        is_told_to_stop: false,
        asked: None,
        next: 1,
        passive: None,
        is_armed: false,
        renewal: Renewal::default(),
    });
    if role == Role::Active {
        if let Err(error) = membership.hear_all() {
            let problem = Problem::new(Kind::Failed, "the keeper does not say what there is");
            return Err((problem.why(error.to_string()), Some(membership)));
        }
    } else {
        let watched = next()?;
        match stand_by(&mut membership, File::from(watched)) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(problem) => return Err((problem, Some(membership))),
        }
    }
    lead(membership)
}

/// Serves as the active.
fn lead(membership: Box<Membership>) -> Result<(), Failure> {
    let config = membership.config.clone();
    let control = match membership.control.try_clone() {
        Ok(control) => control,
        Err(error) => {
            let problem = Problem::new(Kind::Failed, "no control plane").why(error.to_string());
            return Err((problem, Some(membership)));
        }
    };
    let server = Server::open_in(config, membership)?;
    let run = |server: Server| -> Result<(), Problem> {
        let (asker, commands) = command::channel()?;
        let service = service::start(control, asker, crate::cli::greet)?;
        server.run(commands)?;
        drop(service);
        Ok(())
    };
    run(server).map_err(|problem| (problem, None))
}

/// Waits until the active has ended. False if there is nothing to take over, or nobody to do it
/// for.
fn stand_by(membership: &mut Membership, roster: File) -> Result<bool, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(Kind::Failed, "the passive cannot watch the active").why(error.to_string())
    };
    let watched = Arc::new(Watched::open(&roster).map_err(failed)?);
    let ended = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let ended = Arc::new(ended);
    let header = crate::server::pool::header(&membership.config.pool)?;
    membership.tell(&ToKeeper::Warm);
    let mut is_watching = false;
    loop {
        let mut asked = vec![PollFd::new(&*ended, PollFlags::IN)];
        if membership.has_keeper() {
            asked.push(PollFd::from_borrowed_fd(membership.as_fd(), PollFlags::IN));
        }
        match poll(&mut asked, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let has_ended = asked.first().is_some_and(|one| !one.revents().is_empty());
        drop(asked);
        membership.hear();
        membership.answer_as_passive();
        if has_ended {
            break;
        }
        if !membership.is_armed && !membership.has_keeper() {
            return Ok(false);
        }
        if membership.is_armed && !is_watching {
            watch(&watched, &ended).map_err(failed)?;
            is_watching = true;
        }
    }
    membership.takes_over_since = Some(Instant::now());
    match watched.wait(Some(PATIENCE)).map_err(failed)? {
        Fate::Gone => {}
        Fate::Runs | Fate::Unsure => {
            return Err(failed(ErrorKind::TimedOut.into()));
        }
    }
    // Nothing runs any more that could remove it, or make it.
    Ok(bowline_arena::owner(&membership.config.arena, header.pool.0).is_some())
}

/// Begins to wait for the end of the active. The thread that waits touches nothing of the pool's,
/// so it is on no roster.
fn watch(watched: &Arc<Watched>, ended: &Arc<OwnedFd>) -> std::io::Result<()> {
    let (watched, ended) = (Arc::clone(watched), Arc::clone(ended));
    let wait = move || {
        if let Err(error) = watched.wait(None) {
            tracing::error!(%error, "the end of the active cannot be waited for");
        }
        let _ = rustix::io::write(&*ended, &1u64.to_ne_bytes());
    };
    std::thread::Builder::new().name("watch".into()).stack_size(64 << 10).spawn(wait)?;
    Ok(())
}
