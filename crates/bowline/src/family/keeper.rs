//! The keeper: accepts, hands over, starts servers, and does nothing that could go wrong.
//!
//! It never waits for a server: what one does not take is kept, and a passive that takes nothing is
//! replaced.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::heir::Heir;
use super::message::{Role, Start, ToKeeper, ToServer};
use super::process::{ServerProcess, Stage, timespec};
use crate::control::api::{Kind, Problem, Process, Processes, Takeover};
use crate::control::service;
use crate::server::config::ServeConfig;
use crate::server::listen::Listener;
use crate::server::open::Locks;

/// Most connections accepted at once from one listener.
const ACCEPTS_MAX: usize = 64;
/// How long a listener is left alone when there is no room for connections.
const LATER_AFTER: Duration = Duration::from_millis(100);
/// A server that lived for less, and was not killed from outside, has died of something that its
/// successor may die of, too.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// So many of these in a row are borne; after that each start waits, twice as long as the last.
const SHORT_LIVES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const DOUBLINGS_MAX: u32 = 6;

/// Serves a pool by a family of processes until one is told to stop.
///
/// # Errors
/// What is in the way of the first server, or what ended the last one.
pub fn keep(config: ServeConfig) -> Result<(), Problem> {
    let locks = crate::server::open::lock(&config)?;
    let control = service::listen(&config.control)?;
    let socket = Removed(config.control.clone());
    let listeners = config.nbd.iter().map(Listener::bind).collect::<Result<_, _>>()?;
    let signals = service::signals()?;
    let active = ServerProcess::start(true).map_err(|error| no_process(&error))?;
    let known = Heir {
        config,
        locks,
        control,
        listeners,
        connections: BTreeMap::new(),
        next_number: 1,
        active,
        passive: None,
    };
    let mut keeper = Keeper::new(known, signals);
    keeper.hand(Role::Active).map_err(|error| no_process(&error))?;
    let result = keeper.run();
    drop((keeper, socket));
    result
}

/// Takes the place of a keeper that has died, as the active wants it that started this process.
///
/// # Errors
/// What is in the way, or what ended the last server.
pub fn succeed() -> Result<(), Problem> {
    // It was started by a link, which would be its name.
    let _ = rustix::thread::set_name(c"bowline");
    let found = super::heir::find_out().map_err(|error| {
        Problem::new(Kind::Failed, "no keeper of a family").why(error.to_string())
    })?;
    let Some(known) = found else { return Ok(()) };
    let socket = Removed(known.config.control.clone());
    let mut keeper = Keeper::new(known, service::signals()?);
    keeper.has_served = true;
    keeper.is_passive_shared = keeper.passive.is_some();
    if keeper.passive.as_ref().is_some_and(|passive| passive.stage == Stage::Serving) {
        keeper.promote();
    }
    let result = keeper.run();
    drop((keeper, socket));
    result
}

/// A file that goes when this does.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn no_process(error: &std::io::Error) -> Problem {
    Problem::new(Kind::Failed, "no server process can be started").why(error.to_string())
}

struct Keeper {
    config: ServeConfig,
    control: UnixListener,
    listeners: Vec<Listener>,
    /// Readable when the keeper is asked to stop.
    signals: OwnedFd,
    /// By number: by which listener it came, and its socket.
    connections: BTreeMap<u64, (usize, OwnedFd)>,
    next_number: u64,
    active: ServerProcess,
    passive: Option<ServerProcess>,
    /// Processes whose end nobody waits for.
    leaving: Vec<ServerProcess>,
    /// The active has what a new keeper would need of the passive.
    is_passive_shared: bool,
    /// Servers in a row that ended soon, unasked.
    short_lives: u32,
    /// A server that is missing is not started before.
    begin_at: Instant,
    is_told_to_stop: bool,
    /// When connections are accepted again.
    accept_at: Option<Instant>,
    forget_sessions: bool,
    has_served: bool,
    told: Option<(Processes, Takeover)>,
    /// What the active said of its end.
    ended: Option<Option<Problem>>,
    /// Last: they go when all processes have gone.
    locks: Locks,
}

impl Keeper {
    fn new(known: Heir, signals: OwnedFd) -> Keeper {
        Keeper {
            config: known.config,
            locks: known.locks,
            control: known.control,
            listeners: known.listeners,
            signals,
            connections: known.connections,
            next_number: known.next_number,
            active: known.active,
            passive: known.passive,
            leaving: Vec::new(),
            is_passive_shared: false,
            short_lives: 0,
            begin_at: Instant::now(),
            is_told_to_stop: false,
            accept_at: None,
            forget_sessions: false,
            has_served: false,
            told: None,
            ended: None,
        }
    }

    fn run(&mut self) -> Result<(), Problem> {
        self.give();
        // Whoever succeeds another finds servers that have nothing more to say.
        self.begin_passive();
        self.tell();
        loop {
            self.wait().map_err(|error| {
                Problem::new(Kind::Failed, "the keeper cannot go on").why(error.to_string())
            })?;
            self.accept();
            self.hear_active();
            self.hear_passive();
            if self.active.stage != Stage::Gone
                && self.active.has_ended()
                && let Some(result) = self.active_ended()
            {
                return result;
            }
            if self.passive.as_mut().is_some_and(ServerProcess::has_ended) {
                self.passive_ended();
            }
            self.bury();
            if let Some(result) = self.begin_active() {
                return result;
            }
            self.begin_passive();
            self.give();
            self.tell();
        }
    }

    /// Lets go of those who have left.
    fn bury(&mut self) {
        for mut process in std::mem::take(&mut self.leaving) {
            if process.has_ended() {
                self.short_lives = lives(self.short_lives, &mut process);
            } else {
                self.leaving.push(process);
            }
        }
    }

    /// Sleeps until something happens.
    fn wait(&mut self) -> std::io::Result<()> {
        let to_share = self.passive.as_ref().is_some_and(|one| one.stage == Stage::Warm);
        let behind = |process: &ServerProcess| {
            let is_behind = process.next < self.next_number || to_share;
            if is_behind { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
        };
        let mut asked = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.accept_at.is_none() {
            asked.extend(self.listeners.iter().map(|one| PollFd::new(one, PollFlags::IN)));
        }
        let active = Some(&self.active).filter(|active| active.stage != Stage::Gone);
        for process in active.into_iter().chain(&self.passive) {
            asked.push(PollFd::from_borrowed_fd(process.channel.as_fd(), behind(process)));
            asked.push(PollFd::from_borrowed_fd(process.end(), PollFlags::IN));
        }
        for process in &self.leaving {
            asked.push(PollFd::from_borrowed_fd(process.end(), PollFlags::IN));
        }
        let is_missing = match self.active.stage {
            Stage::Gone => true,
            Stage::Serving => self.passive.is_none(),
            _ => false,
        };
        let begin_at = is_missing.then_some(self.begin_at);
        let next = begin_at.into_iter().chain(self.accept_at).min();
        let timeout = next.map(|at| {
            timespec(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
        });
        match poll(&mut asked, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_signalled = !asked.first().is_none_or(|first| first.revents().is_empty());
        drop(asked);
        if is_signalled {
            // Read, so that it is quiet until the next.
            let _ = rustix::io::read(&self.signals, &mut [0u8; 8]);
            self.is_told_to_stop = true;
            // One that is gone is not started again.
            let _ = self.active.send(&ToServer::Stop, &[]);
        }
        Ok(())
    }

    fn accept(&mut self) {
        if self.accept_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.accept_at = None;
        for (index, listener) in self.listeners.iter().enumerate() {
            for _ in 0..ACCEPTS_MAX {
                match listener.accept() {
                    Ok(Some(socket)) => {
                        self.connections.insert(self.next_number, (index, socket));
                        self.next_number += 1;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let address = listener.address.to_string();
                        tracing::warn!(address, %error, "no connection can be accepted now");
                        self.accept_at = Some(Instant::now() + LATER_AFTER);
                        break;
                    }
                }
            }
        }
    }

    /// Gives servers the connections they do not have: the active after an armed passive.
    fn give(&mut self) {
        let all = self.next_number;
        if let Some(passive) = &mut self.passive {
            give(passive, &self.connections, all);
            if passive.next == all && passive.stage == Stage::Warm {
                // If its keeper dies, another finds it by the active.
                self.is_passive_shared = self.is_passive_shared || share(passive, &self.active);
                // What follows reaches it first.
                let armed = ToServer::Armed { next: all };
                if self.is_passive_shared && passive.send(&armed, &[]).is_ok() {
                    passive.stage = Stage::Armed;
                }
            } else if passive.next < all && passive.stage == Stage::Armed {
                // It does not take its messages: it is stopped, or dead.
                tracing::warn!(pid = passive.number(), "the passive does not answer");
                passive.kill();
                self.passive_ended();
            }
        }
        let active = &mut self.active;
        give(active, &self.connections, all);
        let has_all = active.next == all && active.stage == Stage::Begun;
        if has_all && active.send(&ToServer::Armed { next: all }, &[]).is_ok() {
            active.stage = Stage::Armed;
        }
    }

    fn hear_active(&mut self) {
        while let Some((message, mut descriptors)) = self.active.next() {
            match message {
                ToKeeper::Roster => self.active.roster = descriptors.pop(),
                ToKeeper::Serving => {
                    self.active.stage = Stage::Serving;
                    (self.has_served, self.forget_sessions) = (true, false);
                }
                ToKeeper::Closed { number } => {
                    self.connections.remove(&number);
                    if let Some(passive) = &self.passive {
                        // That it has ended shows elsewhere.
                        let _ = passive.send(&ToServer::Gone { number }, &[]);
                    }
                }
                ToKeeper::Stopping => {
                    self.active.stage = Stage::Stopping;
                    self.leaving.extend(self.passive.take().map(|mut passive| {
                        passive.kill();
                        passive
                    }));
                }
                ToKeeper::Ended(problem) => self.ended = Some(problem),
                ToKeeper::Damaged(problem) => {
                    self.forget_sessions = true;
                    tracing::error!(%problem, "clients have to connect anew");
                }
                ToKeeper::Warm | ToKeeper::Inherit(_) | ToKeeper::Told(_) => {}
            }
        }
    }

    fn hear_passive(&mut self) {
        while let Some(passive) = &mut self.passive {
            let Some((message, mut descriptors)) = passive.next() else { return };
            match message {
                ToKeeper::Roster => passive.roster = descriptors.pop(),
                ToKeeper::Warm => passive.stage = Stage::Warm,
                // The active has ended, and this says so sooner than its process does.
                ToKeeper::Serving => {
                    self.promote();
                    self.active.stage = Stage::Serving;
                    return;
                }
                ToKeeper::Ended(Some(problem)) | ToKeeper::Damaged(problem) => {
                    tracing::error!(%problem, "the passive cannot stand by");
                }
                ToKeeper::Ended(None)
                | ToKeeper::Stopping
                | ToKeeper::Closed { .. }
                | ToKeeper::Inherit(_)
                | ToKeeper::Told(_) => {}
            }
        }
    }

    /// The passive is the active from now on.
    fn promote(&mut self) {
        let Some(passive) = self.passive.take() else { return };
        let mut before = std::mem::replace(&mut self.active, passive);
        before.kill();
        self.leaving.push(before);
    }

    /// The active's process has ended. Returns the end of the family, if it is that.
    fn active_ended(&mut self) -> Option<Result<(), Problem>> {
        self.hear_active();
        let fate = self.active.fate();
        let said = self.ended.take();
        if self.active.stage == Stage::Stopping || matches!(said, Some(None)) {
            let died = || {
                let what = "the server died while it stopped";
                Some(Problem::new(Kind::Failed, what).why(fate).next("start it again"))
            };
            return Some(said.unwrap_or_else(died).map_or(Ok(()), Err));
        }
        if !self.has_served {
            let what = "the server died before it served";
            let died = || Problem::new(Kind::Failed, what).why(fate);
            return Some(Err(said.flatten().unwrap_or_else(died)));
        }
        if let Some(problem) = said.flatten() {
            tracing::error!(%problem, "the active has ended");
        }
        tracing::warn!(pid = self.active.number(), fate, "the active has ended");
        self.hear_passive();
        if self.passive.as_ref().is_some_and(|passive| passive.stage == Stage::Armed) {
            self.promote();
            return None;
        }
        // One that was about to stand by might think that it is armed.
        drop(self.passive.take());
        self.short_lives = lives(self.short_lives, &mut self.active);
        self.active.stage = Stage::Gone;
        self.begin_at = Instant::now() + self.pause();
        None
    }

    /// Starts an active where none is, if it is time. Returns the end of the family, if it is that.
    fn begin_active(&mut self) -> Option<Result<(), Problem>> {
        if self.active.stage != Stage::Gone {
            return None;
        }
        if self.is_told_to_stop {
            let what = "there is no server that could stop cleanly";
            return Some(Err(Problem::new(Kind::Failed, what).next("start it again, and stop it")));
        }
        if Instant::now() < self.begin_at {
            return None;
        }
        match ServerProcess::start(false) {
            Ok(process) => self.active = process,
            Err(error) => return Some(Err(no_process(&error))),
        }
        if let Err(error) = self.hand(Role::Active) {
            tracing::error!(%error, "the server does not take what it needs");
        }
        None
    }

    fn passive_ended(&mut self) {
        self.hear_passive();
        if let Some(mut passive) = self.passive.take() {
            passive.kill();
            tracing::warn!(pid = passive.number(), fate = passive.fate(), "the passive has ended");
            self.short_lives = lives(self.short_lives, &mut passive);
            self.begin_at = Instant::now() + self.pause();
        }
    }

    /// How long the next start waits.
    fn pause(&self) -> Duration {
        let many = self.short_lives.checked_sub(SHORT_LIVES);
        many.map_or(Duration::ZERO, |more| FIRST_PAUSE * (1 << more.min(DOUBLINGS_MAX)))
    }

    /// Starts a passive where none is, if it is time.
    fn begin_passive(&mut self) {
        let is_time = self.begin_at <= Instant::now();
        if self.passive.is_some() || self.active.stage != Stage::Serving || !is_time {
            return;
        }
        self.begin_at = Instant::now() + FIRST_PAUSE;
        self.is_passive_shared = false;
        let started = ServerProcess::start(false);
        self.passive = started.map_err(|error| tracing::error!(%error, "no passive")).ok();
        let handed = self.passive.is_none().then_some(Ok(()));
        if let Err(error) = handed.unwrap_or_else(|| self.hand(Role::Passive)) {
            tracing::error!(%error, "the passive does not take what it needs");
            self.passive_ended();
        }
    }

    /// Hands a server that has begun what it needs.
    fn hand(&mut self, role: Role) -> std::io::Result<()> {
        let start = Start {
            role,
            config: self.config.clone(),
            listeners: self.listeners.iter().map(|one| one.address.clone()).collect(),
            forget_sessions: self.forget_sessions,
        };
        let mut descriptors: Vec<BorrowedFd<'_>> =
            vec![self.locks.pool.as_fd(), self.locks.arena.as_fd(), self.control.as_fd()];
        descriptors.extend(self.listeners.iter().map(Listener::as_fd));
        let process = match role {
            Role::Active => &self.active,
            Role::Passive => {
                let missing = || std::io::Error::other("the active has no roster");
                let roster = self.active.roster.as_ref().ok_or_else(missing)?;
                descriptors.push(roster.as_fd());
                self.passive.as_ref().unwrap_or(&self.active)
            }
        };
        process.send(&ToServer::Start(Box::new(start)), &descriptors)
    }

    /// Tells the active how the family is, if that has changed.
    fn tell(&mut self) {
        let process = |process: &ServerProcess| Process { pid: process.number() };
        let processes = Processes {
            active: Some(process(&self.active)),
            passive: self.passive.as_ref().map(process),
            keeper: Some(Process { pid: std::process::id() }),
        };
        let ready = self.passive.as_ref().is_some_and(|one| one.stage == Stage::Armed);
        let reason = match &self.passive {
            _ if ready => String::new(),
            Some(_) => "the passive is not ready yet".into(),
            None if self.short_lives >= SHORT_LIVES => {
                format!("crash loop: {} servers in a row ended at once", self.short_lives)
            }
            None => "the passive is being started".into(),
        };
        let now = (processes, Takeover { ready, reason });
        if self.told.as_ref() == Some(&now) || self.active.stage != Stage::Serving {
            return;
        }
        let message = ToServer::Family(now.0, now.1.clone());
        if self.active.send(&message, &[]).is_ok() {
            self.told = Some(now);
        }
    }
}

/// How many short lives in a row there were with that of a server that has ended.
fn lives(before: u32, process: &mut ServerProcess) -> u32 {
    if process.was_killed() {
        return before;
    }
    if process.begun.elapsed() < SHORT_LIFE { before + 1 } else { 0 }
}

/// Gives the active what a new keeper would need of the passive. Whether it has taken it.
fn share(passive: &ServerProcess, active: &ServerProcess) -> bool {
    let Some(roster) = &passive.roster else { return false };
    let descriptors = [passive.channel.as_fd(), passive.end(), roster.as_fd()];
    active.send(&ToServer::Passive { number: passive.number() }, &descriptors).is_ok()
}

/// Gives a server the connections it does not have, as far as it takes them.
fn give(to: &mut ServerProcess, connections: &BTreeMap<u64, (usize, OwnedFd)>, all: u64) {
    for (&number, (listener, socket)) in connections.range(to.next..) {
        let message = ToServer::Connection { number, listener: *listener };
        if to.send(&message, &[socket.as_fd()]).is_err() {
            return;
        }
        to.next = number + 1;
    }
    to.next = all;
}
