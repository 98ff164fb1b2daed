//! The I/O fence: when can nothing that a dead process submitted happen any more?
//!
//! I/O submitted by a process lands after the process is gone: tens of milliseconds on a quick
//! disk, seconds on a throttled one. Its queues are in a file, so the kernel still posts every
//! completion there, one for each submission it consumed; when the completion queue's tail has
//! reached the submission queue's head, nothing is left. That count is only final once no thread
//! of the process runs any more, which holding its lock says ([`lock`](crate::OwnerLock)).

use std::path::{Path, PathBuf};

use crate::queues::Queues;
use crate::ring::{Completed, UserData};

/// Why a fence was not passed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// The ring file cannot be read.
    #[error("cannot read the ring file {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: std::io::Error,
    },
    /// The caller's patience ended first.
    #[error(
        "{in_flight} I/Os of the dead server are still in flight (ring file {path}); the medium \
         may hang: wait for it and start again"
    )]
    StillInFlight {
        /// The ring's file.
        path: PathBuf,
        /// How many have not completed.
        in_flight: u32,
    },
}

/// What passing a fence has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// How many I/Os were in flight when the fence was first looked at.
    pub in_flight: u32,
    /// How many times the caller was asked to wait.
    pub waits: u32,
}

/// The ring of a process that is gone.
pub struct DeadRing {
    path: PathBuf,
    queues: Option<Queues>,
}

impl DeadRing {
    /// Looks at a dead ring's file. The file being absent, or never armed, says that nothing was
    /// submitted.
    ///
    /// # Errors
    /// [`FenceError::Unreadable`].
    pub fn open(path: &Path) -> Result<DeadRing, FenceError> {
        let unreadable = |cause| FenceError::Unreadable { path: path.to_owned(), cause };
        let queues = match std::fs::File::options().read(true).write(true).open(path) {
            Ok(file) => Queues::adopt(&file).map_err(unreadable)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable(error)),
        };
        Ok(DeadRing { path: path.to_owned(), queues })
    }

    /// The ring's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many I/Os have been consumed by the kernel and have not completed.
    pub fn in_flight(&self) -> u32 {
        self.queues.as_ref().map_or(0, |queues| queues.sq_head().wrapping_sub(queues.cq_tail()))
    }

    /// How many completions the kernel has posted in all, modulo 2^32.
    pub fn completed(&self) -> u32 {
        self.queues.as_ref().map_or(0, Queues::cq_tail)
    }

    /// Waits until nothing is in flight. `pause` is called with the number that is, between looks;
    /// it waits a little and says whether to go on.
    ///
    /// # Errors
    /// [`FenceError::StillInFlight`] when `pause` says no.
    pub fn wait(&self, pause: &mut dyn FnMut(u32) -> bool) -> Result<Passed, FenceError> {
        let mut passed = Passed { in_flight: self.in_flight(), waits: 0 };
        loop {
            let in_flight = self.in_flight();
            if in_flight == 0 {
                return Ok(passed);
            }
            passed.waits += 1;
            if !pause(in_flight) {
                return Err(FenceError::StillInFlight { path: self.path.clone(), in_flight });
            }
        }
    }

    /// The last completions that the kernel posted, newest first: as many as the queue holds, those
    /// included that the dead process has reaped. The ring sees to it that the one reaped last is
    /// among them.
    pub fn completions(&self) -> impl Iterator<Item = Completed> + '_ {
        let tail = self.completed();
        let queues = self.queues.as_ref();
        let numbers = (1..=queues.map_or(0, Queues::cq_entries)).map(move |back| {
            let number = tail.wrapping_sub(back);
            queues.map(|queues| queues.completion(number))
        });
        // An entry that was never written is zeros, which is no tag of ours.
        numbers
            .flatten()
            .filter(|entry| entry.user_data != 0)
            .map(|entry| Completed { user_data: UserData(entry.user_data), result: entry.result })
    }
}

/// A pause for [`DeadRing::wait`]: sleeps a millisecond at a time, for at most `patience`.
pub fn patience(patience: std::time::Duration) -> impl FnMut(u32) -> bool {
    let start = std::time::Instant::now();
    move |_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        start.elapsed() < patience
    }
}
