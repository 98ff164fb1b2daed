//! A server process as its keeper sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel::Channel;
use super::message::{ToKeeper, ToServer};

/// How far a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has been started.
    Begun,
    /// It has all it needs to stand by, but for connections perhaps.
    Warm,
    /// It has been given all: it opens the pool, or watches the active and takes over when that
    /// has ended.
    Armed,
    /// It serves.
    Serving,
    /// It closes the pool.
    Stopping,
    /// It has ended, and another is to be started.
    Gone,
}

/// A server process. Dropping it kills it and waits for its end.
pub struct ServerProcess {
    child: Child,
    descriptor: OwnedFd,
    pub channel: Channel,
    /// What tells of its threads, once it has said so.
    pub roster: Option<OwnedFd>,
    pub stage: Stage,
    /// The first connection it has not been given.
    pub next: u64,
    /// When it was started.
    pub begun: Instant,
}

impl ServerProcess {
    /// Starts the program that runs as a server of the family. Only the first one dies at the place
    /// that a test has named: those after it would do nothing else.
    ///
    /// # Errors
    /// If the system gives no process.
    pub fn start(is_first: bool) -> std::io::Result<ServerProcess> {
        let (channel, other) = Channel::pair()?;
        let mut command = Command::new("/proc/self/exe");
        // In a group of its own: Ctrl-C is the keeper's.
        command.arg("server").stdin(Stdio::from(other)).process_group(0);
        if !is_first {
            command.env_remove("BOWLINE_KILL_AT");
        }
        let mut child = command.spawn()?;
        // Its number cannot be anybody else's before it has been waited for.
        let opened = Pid::from_raw(child.id().cast_signed())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|number| pidfd_open(number, PidfdFlags::empty()));
        let descriptor = match opened {
            Ok(descriptor) => descriptor,
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error.into());
            }
        };
        Ok(ServerProcess {
            child,
            descriptor,
            channel,
            roster: None,
            stage: Stage::Begun,
            next: 0,
            begun: Instant::now(),
        })
    }

    pub fn number(&self) -> u32 {
        self.child.id()
    }

    /// Readable when the process has ended.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// How it ended, in words.
    pub fn fate(&mut self) -> String {
        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Whether somebody killed it.
    pub fn was_killed(&mut self) -> bool {
        self.child.wait().is_ok_and(|status| status.signal() == Some(Signal::KILL.as_raw()))
    }

    pub fn kill(&mut self) {
        // Fails only if it has ended.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    pub fn send(&self, message: &ToServer, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        self.channel.send(message, descriptors)
    }

    /// What it has said and nobody has heard.
    pub fn next(&self) -> Option<(ToKeeper, Vec<OwnedFd>)> {
        self.channel.receive().ok().flatten()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
