//! What the control plane asks of the data thread, and how.
//!
//! The asking side never blocks the data thread: a command is put into a queue and an eventfd is
//! raised, which the data thread has among the things it waits for. The answer goes back through
//! the command's [`Reply`]; it may be kept and answered later, when a flush or a scrub is done. A
//! reply that is dropped tells the asker that the server is going away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::control::api::{
    DiskChange, DiskCreate, DiskStatus, GrowPool, Kind, PoolStatus, Problem, Repair, RepairReport,
    Resume, Scrub, ServerStatus,
};

/// Where the answer to a command goes.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<Result<T, Problem>>);

impl<T> Reply<T> {
    /// For an order whose giver waits for no answer.
    #[must_use]
    pub fn nobody() -> Reply<T> {
        Reply(oneshot::channel().0)
    }

    /// Answers. An asker that has gone away is none of the data thread's business.
    pub fn send(self, answer: Result<T, Problem>) {
        let _ = self.0.send(answer);
    }
}

/// One question or order. Answers that change something come when the change is durable.
#[derive(Debug)]
#[non_exhaustive]
pub enum Command {
    /// How everything is: the source of `status`, `pool status`, `disk list` and the metrics.
    Status(Reply<ServerStatus>),
    /// Starts, pauses or stops a scrub.
    Scrub(Scrub, Reply<PoolStatus>),
    /// Uses the space that the pool's file or device has, or is to have.
    Grow(GrowPool, Reply<PoolStatus>),
    /// Writes again after an error was dealt with.
    Resume(Resume, Reply<PoolStatus>),
    /// Says what a repair would do, or does it.
    Repair(Repair, Reply<RepairReport>),
    /// Makes a disk.
    CreateDisk(DiskCreate, Reply<DiskStatus>),
    /// Changes the disk of this name.
    ChangeDisk(String, DiskChange, Reply<DiskStatus>),
    /// Destroys the disk of this name; the answer is its last state.
    DestroyDisk(String, Reply<DiskStatus>),
    /// Ends the server cleanly; answered when the pool is closed.
    Stop(Reply<()>),
}

/// The data thread's end.
pub struct Commands {
    queue: mpsc::Receiver<Command>,
    own: mpsc::Sender<Command>,
    bell: Arc<OwnedFd>,
}

impl Commands {
    /// The other end, for work that was given to another thread and comes back as a command.
    pub fn asker(&self) -> Asker {
        Asker { queue: self.own.clone(), bell: self.bell.clone() }
    }

    /// The next command, if one waits. After the last one the bell is quiet until the next.
    pub fn next(&self) -> Option<Command> {
        if let Ok(command) = self.queue.try_recv() {
            return Some(command);
        }
        // Silence first, look again after: a command that arrives in between rings once more.
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.bell, &mut count);
        self.queue.try_recv().ok()
    }
}

impl AsFd for Commands {
    /// Readable when a command waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// The control plane's end.
#[derive(Clone)]
pub struct Asker {
    queue: mpsc::Sender<Command>,
    bell: Arc<OwnedFd>,
}

impl Asker {
    /// Hands a command over. False if the data thread has ended: the command is gone then, and
    /// its asker told so.
    pub fn post(&self, command: Command) -> bool {
        self.queue.send(command).is_ok()
            && rustix::io::write(&*self.bell, &1u64.to_ne_bytes()).is_ok()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The data thread's, or that it has ended.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Problem> {
        let gone = || Problem::new(Kind::Failed, "the server is stopping");
        let (sender, receiver) = oneshot::channel();
        if !self.post(command(Reply(sender))) {
            return Err(gone());
        }
        receiver.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// The two ends of a new queue.
///
/// # Errors
/// If the system has no descriptor left.
pub fn channel() -> Result<(Asker, Commands), Problem> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Problem::new(Kind::Failed, "no eventfd").why(error.to_string()))?;
    let bell = Arc::new(bell);
    let (sender, queue) = mpsc::channel();
    let own = sender.clone();
    Ok((Asker { queue: sender, bell: bell.clone() }, Commands { queue, own, bell }))
}
