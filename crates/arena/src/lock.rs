//! Who owns an arena or a pool: a lock that goes when the last thread of its holder has gone.
//!
//! The lock is an `flock` on a descriptor of its own that is closed on exec and given to nobody,
//! above all not to io_uring, which keeps files open beyond the death of the process. The kernel
//! drops it after every thread has left user mode and every synchronous call has ended. So holding
//! it is a code fence, though a slow one, and makes a dead ring's submission count final.
//!
//! A family of processes of which one serves at a time *shares* a lock: the descriptors of all are
//! the same open file, and the lock goes when the last of them has gone. Inside the family it says
//! nothing; there the roster is the fence ([`Watched`](crate::Watched)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// A lock held; dropping it gives it up.
#[derive(Debug)]
pub struct OwnerLock {
    descriptor: OwnedFd,
    /// Others of the family hold it, too.
    is_shared: bool,
}

impl Drop for OwnerLock {
    /// Unlocks, though closing would: another thread's child may have the descriptor until it
    /// execs. A shared lock is only closed: unlocking would take it from the whole family.
    fn drop(&mut self) {
        if !self.is_shared {
            // Cannot fail for a lock that is held; closing follows anyway.
            let _ = rustix::fs::flock(&self.descriptor, FlockOperation::Unlock);
        }
    }
}

impl AsFd for OwnerLock {
    /// To be handed to another process of the family, which [`shares`](OwnerLock::shared) it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What is known of a process that holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs, or is stopped; it has to be asked to go.
    Running,
    /// It has been killed or is exiting: its locks will be free soon.
    Dying,
    /// No such process here: it has gone, or lives in another container.
    Unknown,
}

impl OwnerLock {
    /// The lock of the family, by a descriptor that one of its processes handed over.
    ///
    /// # Errors
    /// If it is not the family's, and somebody else has the lock.
    pub fn shared(descriptor: OwnedFd) -> std::io::Result<OwnerLock> {
        // Locking what the same open file has locked changes nothing.
        rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive)?;
        Ok(OwnerLock { descriptor, is_shared: true })
    }

    /// Takes the lock on a lock file, made if there is none. None: another process has it.
    ///
    /// # Errors
    /// If the file cannot be opened or locked.
    pub fn file(path: &Path) -> std::io::Result<Option<OwnerLock>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        lock(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?)
    }

    /// Takes the lock on a pool: its file or device. None: another process has it.
    ///
    /// # Errors
    /// If the pool cannot be opened or locked.
    pub fn pool(path: &Path) -> std::io::Result<Option<OwnerLock>> {
        lock(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Takes a lock by `attempt`, again and again while its holder is on its way out, at most for
    /// `patience`. `holder` says what is known of the holder.
    ///
    /// # Errors
    /// As `attempt`.
    pub fn wait(
        patience: Duration,
        attempt: &mut dyn FnMut() -> std::io::Result<Option<OwnerLock>>,
        holder: &mut dyn FnMut() -> Life,
    ) -> std::io::Result<Option<OwnerLock>> {
        let start = Instant::now();
        loop {
            if let Some(lock) = attempt()? {
                return Ok(Some(lock));
            }
            // A holder that runs will not go by itself. One look more, because it may have died
            // between the attempt and the look.
            if start.elapsed() >= patience || holder() == Life::Running {
                return attempt();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn lock(descriptor: OwnedFd) -> std::io::Result<Option<OwnerLock>> {
    match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(OwnerLock { descriptor, is_shared: false })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is known of the process with this number and start time.
#[must_use]
pub fn life(process: u32, started: u64) -> Life {
    let Some((state, flags, start)) = stat(&format!("/proc/{process}/stat")) else {
        return Life::Unknown;
    };
    const EXITING: u64 = 0x4;
    if start != started {
        Life::Unknown
    } else if state == "Z" || state == "X" || flags & EXITING != 0 || killed(process) {
        Life::Dying
    } else {
        Life::Running
    }
}

/// When this process started, in clock ticks since boot.
#[must_use]
pub fn own_start() -> u64 {
    stat("/proc/self/stat").map_or(0, |(_, _, start)| start)
}

/// State, kernel flags and start time of a process.
fn stat(path: &str) -> Option<(String, u64, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    // The second field is the name in parentheses, which may hold anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some(((*fields.first()?).to_owned(), number(6)?, number(19)?))
}

/// Whether a SIGKILL waits for the process.
fn killed(process: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/status")) else { return false };
    text.lines()
        .filter_map(|line| line.strip_prefix("ShdPnd:").or_else(|| line.strip_prefix("SigPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & 1 << (libc::SIGKILL - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_running_and_a_reused_number_is_not_it() {
        assert_eq!(life(std::process::id(), own_start()), Life::Running);
        assert_eq!(life(std::process::id(), own_start() + 1), Life::Unknown);
    }

    #[test]
    fn a_lock_is_held_once_and_free_when_dropped() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("lock");
        let held = OwnerLock::file(&path).expect("opened");
        assert!(held.is_some());
        assert!(OwnerLock::file(&path).expect("opened").is_none());
        assert!(OwnerLock::pool(&path).expect("opened").is_none());
        drop(held);
        assert!(OwnerLock::pool(&path).expect("opened").is_some());
    }

    #[test]
    fn a_shared_lock_goes_when_the_last_of_the_family_has_gone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("lock");
        let first = OwnerLock::file(&path).expect("opened").expect("free");
        let handed = || first.as_fd().try_clone_to_owned().expect("a descriptor");
        let [second, third] = [handed(), handed()].map(|one| OwnerLock::shared(one).expect("ours"));
        drop(second);
        assert!(OwnerLock::file(&path).expect("opened").is_none(), "two still have it");
        // The first one dies: nothing is unlocked, only closed.
        let stranger = std::fs::File::open(&path).expect("opened");
        assert!(
            OwnerLock::shared(stranger.into()).is_err(),
            "another open file is not the family's"
        );
        std::mem::forget(first);
        drop(third);
        assert!(OwnerLock::file(&path).expect("opened").is_none(), "one still has it");
    }

    #[test]
    fn a_zombie_is_dying() {
        let mut child = std::process::Command::new("/bin/true").spawn().expect("spawned");
        let process = child.id();
        let path = format!("/proc/{process}/stat");
        let mut states = std::iter::repeat_with(|| stat(&path)).take(1_000_000);
        let zombie = states.find_map(|s| s.filter(|(state, _, _)| state == "Z")).expect("zombie");
        assert_eq!(life(process, zombie.2), Life::Dying);
        child.wait().expect("reaped");
        assert_eq!(life(process, zombie.2), Life::Unknown);
    }
}
