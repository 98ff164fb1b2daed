//! Whether anybody can still write to a file or device.
//!
//! A server that was killed has I/O under way that lands later. Its rings tell when none is left,
//! if they are found: they lie beside its arena, and a successor may have been given another
//! directory, or somebody has removed them. The kernel knows all the same. Whatever is to be
//! written, by a process that lives or for one that is dead, holds an open file that was opened
//! for writing.
//!
//! - A file: the kernel grants a read lease only if nobody has it open for writing. The lease is
//!   given back at once.
//! - A device: media open it exclusively, and the claim lasts until the last I/O through that open
//!   file has ended. So who can claim it knows that there is none.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Chooses the signal that breaks a lease; the same number on every Linux, and not in `libc`.
const F_SETSIG: libc::c_int = 10;

/// Who can write to a file or device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Nobody: no open file, and no I/O under way.
    None,
    /// Somebody: a process, a mounted file system, or the I/O of a process that is dead.
    Some,
    /// This file system cannot tell, or not to this user.
    Unknown,
}

/// Looks whether anybody can write to a file or device.
///
/// # Errors
/// If it cannot be opened for reading.
pub fn writers(path: &Path) -> std::io::Result<Writers> {
    let found = rustix::fs::stat(path)?;
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice;
    let exclusive = if is_device { OFlags::EXCL } else { OFlags::empty() };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | exclusive;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(_) if is_device => Ok(Writers::None),
        Ok(file) => Ok(lease(&file)),
        Err(Errno::BUSY) if is_device => Ok(Writers::Some),
        Err(error) => Err(error.into()),
    }
}

/// Looks again and again for at most `patience` while somebody can write.
///
/// # Errors
/// As [`writers`].
pub fn writers_gone(path: &Path, patience: Duration) -> std::io::Result<Writers> {
    let start = Instant::now();
    loop {
        let found = writers(path)?;
        if found != Writers::Some || start.elapsed() >= patience {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes a read lease on a file that is open for reading only, and gives it back.
fn lease(file: &OwnedFd) -> Writers {
    let file = file.as_raw_fd();
    // SAFETY: these calls take numbers and touch no memory. Who opens the file for writing just
    // now makes the kernel signal us: by a signal that is ignored, instead of one that kills.
    let taken = unsafe {
        libc::fcntl(file, F_SETSIG, libc::SIGURG);
        libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK)
    };
    if taken == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(file, libc::F_SETLEASE, libc::F_UNLCK) };
        return Writers::None;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Writers::Some,
        _ => Writers::Unknown,
    }
}
