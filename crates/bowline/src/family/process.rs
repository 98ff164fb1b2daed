//! A server process as its keeper sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    /// Its process, if this one has started it.
    child: Option<Child>,
    number: u32,
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
            number: child.id(),
            child: Some(child),
            descriptor,
            channel,
            roster: None,
            stage: Stage::Begun,
            next: 0,
            begun: Instant::now(),
        })
    }

    /// A server that another keeper has started, with its roster.
    pub fn found(known: Known, stage: Stage, next: u64) -> ServerProcess {
        ServerProcess {
            child: None,
            number: known.number,
            descriptor: known.process,
            channel: known.channel,
            roster: Some(known.roster),
            stage,
            next,
            begun: Instant::now(),
        }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    /// Readable when the process has ended.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    pub fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(Some(_))),
            None => has_ended(&self.descriptor, Some(Duration::ZERO)),
        }
    }

    /// Waits for its end. How it ended is told to the process that has started it.
    fn wait(&mut self) -> Option<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().ok(),
            None => {
                has_ended(&self.descriptor, None);
                None
            }
        }
    }

    /// How it ended, in words.
    pub fn fate(&mut self) -> String {
        self.wait().map_or_else(|| "nobody was told how".into(), |status| status.to_string())
    }

    /// Whether somebody killed it, as far as is known.
    pub fn was_killed(&mut self) -> bool {
        self.wait().is_none_or(|status| status.signal() == Some(Signal::KILL.as_raw()))
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
        self.wait();
    }
}

/// A server that another keeper has started, as far as it is known.
pub struct Known {
    pub number: u32,
    /// Readable when it has ended.
    pub process: OwnedFd,
    pub channel: Channel,
    pub roster: OwnedFd,
}

impl Known {
    /// Whether its process has ended.
    pub fn has_ended(&self) -> bool {
        has_ended(&self.process, Some(Duration::ZERO))
    }

    /// Ends its process, and waits until that has happened.
    pub fn kill(&self) {
        // Fails only if it has ended.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        has_ended(&self.process, None);
    }
}

/// Whether a process ends within a time.
fn has_ended(process: &OwnedFd, limit: Option<Duration>) -> bool {
    let limit = limit.map(timespec);
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    loop {
        match poll(&mut asked, limit.as_ref()) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// A time to wait, as the system wants it.
pub fn timespec(limit: Duration) -> Timespec {
    let tv_sec = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: limit.subsec_nanos().into() }
}
