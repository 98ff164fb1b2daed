//! A keeper that has died gets a successor, which the active starts and tells what there is.
//!
//! Nothing waits meanwhile: clients are served, and the passive watches the active as before. The
//! active has a copy of the keeper's end of the passive's channel, so the passive does not even
//! notice; it finds its channel at an end only if active and keeper have both gone, and is then the
//! one to start a keeper, when it has taken over.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::channel::Channel;
use super::member::Membership;
use super::message::{Inheritance, ToKeeper};

/// The second attempt waits for so long, each one after it twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const DOUBLINGS_MAX: u32 = 6;

/// Where the replacement of a keeper stands.
#[derive(Default)]
pub struct Renewal {
    /// There is no keeper: the next one is started then.
    due: Option<Instant>,
    /// Attempts since there was a keeper that knew all.
    attempts: u32,
    /// Keepers this process has started, until somebody has asked how they ended.
    started: Vec<Child>,
}

impl Renewal {
    /// Whether there is no keeper.
    pub fn is_needed(&self) -> bool {
        self.due.is_some()
    }

    /// The keeper has gone.
    pub fn begin(&mut self) {
        let again = self.attempts.checked_sub(1);
        let pause =
            again.map_or(Duration::ZERO, |many| FIRST_PAUSE * (1 << many.min(DOUBLINGS_MAX)));
        self.due = Some(Instant::now() + pause);
    }

    /// There is a keeper that knows all.
    pub fn is_done(&mut self) {
        self.attempts = 0;
    }

    /// How long it is until a keeper is to be started; none if there is one.
    pub fn due_in(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl Membership {
    /// How long it is until [`Membership::renew_keeper`] has something to do.
    pub fn renewal_in(&self) -> Option<Duration> {
        self.renewal.due_in()
    }

    /// Starts a keeper if there is none and it is time. Whether there is a new one, and with it a
    /// new descriptor to listen to.
    pub fn renew_keeper(&mut self) -> bool {
        if self.renewal.due_in() != Some(Duration::ZERO) {
            return false;
        }
        self.renewal.attempts += 1;
        self.renewal.started.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        match self.start_keeper() {
            Ok(()) => {
                self.renewal.due = None;
                true
            }
            Err(error) => {
                tracing::error!(%error, "no keeper can be started");
                self.takeover.reason = format!("the keeper has gone, and no other starts: {error}");
                self.renewal.begin();
                false
            }
        }
    }

    fn start_keeper(&mut self) -> std::io::Result<()> {
        let (channel, other) = Channel::pair()?;
        let mut command = Command::new("/proc/self/exe");
        // In a group of its own, as servers are; it dies at no place that a test has named.
        command.arg("keeper").stdin(Stdio::from(other)).process_group(0);
        command.env_remove("BOWLINE_KILL_AT");
        // What it needs is in the channel before it begins.
        self.bequeath(&channel)?;
        let child = command.spawn()?;
        tracing::info!(pid = child.id(), "a new keeper has been started");
        self.renewal.started.push(child);
        self.channel = channel;
        Ok(())
    }

    /// Tells a new keeper all but the connections, for which it asks.
    fn bequeath(&self, channel: &Channel) -> std::io::Result<()> {
        let itself: OwnedFd = pidfd_open(getpid(), PidfdFlags::empty())?;
        let control: &dyn AsFd = &self.control;
        let roster: &File = &self.roster_file;
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![
            self.pool_lock.as_fd(),
            self.arena_lock.as_fd(),
            control.as_fd(),
            itself.as_fd(),
            roster.as_fd(),
        ];
        if let Some(passive) = &self.passive {
            let both = [passive.channel.as_fd(), passive.process.as_fd(), passive.roster.as_fd()];
            descriptors.extend(both);
        }
        descriptors.extend(self.listeners.iter().map(|(_, socket)| socket.as_fd()));
        let inheritance = Inheritance {
            config: self.config.clone(),
            listeners: self.listeners.iter().map(|(address, _)| address.clone()).collect(),
            active: std::process::id(),
            passive: self.passive.as_ref().map(|passive| passive.number),
        };
        channel.send(&ToKeeper::Inherit(Box::new(inheritance)), &descriptors)
    }
}
