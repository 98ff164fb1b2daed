//! What is done to a pool that nobody serves: making it, checking it, and seeing first what is
//! there.

mod check;
mod create;
mod repair;
mod signature;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::control::api::{CheckReport, Kind, PoolCreated, Problem, RepairReport};

pub use repair::Repair;

/// A pool that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// The file or device.
    pub path: PathBuf,
    /// The size of the file; `None`: what it has, or the device's.
    pub size_bytes: Option<u64>,
    /// Whether the file's space is taken at once.
    pub preallocate: bool,
}

fn failed(path: &Path, what: &str, error: impl std::fmt::Display) -> Problem {
    Problem::new(Kind::Failed, format!("cannot {what} {}", path.display())).why(error.to_string())
}

/// Whether the path is a raw device.
#[must_use]
pub fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|kind| kind.file_type().is_block_device())
}

/// What known thing lies on the file or device, in words; `None` if nothing that is known.
///
/// # Errors
/// If it cannot be read. A file that does not exist holds nothing.
pub fn signature(path: &Path) -> Result<Option<String>, Problem> {
    match File::open(path) {
        Ok(file) => signature::of(&file).map_err(|error| failed(path, "read", error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "read", error)),
    }
}

/// That no server has the pool, and nobody has the device mounted.
///
/// # Errors
/// If somebody has.
pub fn must_not_be_in_use(path: &Path) -> Result<(), Problem> {
    let busy = |why: &str| {
        let what = format!("{} is in use", path.display());
        Problem::new(Kind::Busy, what).why(why).next("stop who uses it first")
    };
    let mut options = OpenOptions::new();
    options.read(true);
    if is_device(path) {
        // The kernel refuses an exclusive open of a device that is mounted or part of another.
        options.custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            return Err(busy("it is mounted, or part of another device"));
        }
        Err(error) => return Err(failed(path, "open", error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(busy("a server has it open")),
        Err(error) => Err(failed(path, "lock", error)),
    }
}

/// Makes a pool, over whatever is there: ask [`signature`] first.
///
/// # Errors
/// If the file or device cannot be used, or is too small.
pub fn create(order: &Create) -> Result<PoolCreated, Problem> {
    create::create(order)
}

/// Reads a pool through and gives a verdict.
///
/// # Errors
/// If it cannot be read, or is not a pool.
pub fn check(path: &Path) -> Result<CheckReport, Problem> {
    check::check(path)
}

/// Says what a repair would do to a pool, or does it.
///
/// # Errors
/// If it cannot be read or written, or is not a pool.
pub fn repair(path: &Path, order: Repair) -> Result<RepairReport, Problem> {
    repair::repair(path, order)
}
