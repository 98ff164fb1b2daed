//! What is done to a pool that nobody serves: making it, checking it, and seeing first what is
//! there.

mod check;
mod create;
mod repair;
mod signature;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_media::{Writers, writers_gone};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::control::api::{CheckReport, Kind, PoolCreated, Problem, RepairReport};

pub use repair::Repair;

/// How long the I/O of a dead server may take.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(path, "open", error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(busy("a server has it open")),
        Err(error) => return Err(failed(path, "lock", error)),
    }
    drop(file);
    if is_device(path) { nobody_writes(path, PATIENCE).map(drop) } else { Ok(()) }
}

/// Waits until nobody can write to a file or device: no process, and no I/O of a dead one. The
/// caller holds its lock. False if that cannot be told here.
///
/// # Errors
/// If somebody still can.
pub fn nobody_writes(path: &Path, patience: Duration) -> Result<bool, Problem> {
    match writers_gone(path, patience).map_err(|error| failed(path, "open", error))? {
        Writers::None => Ok(true),
        Writers::Unknown => Ok(false),
        Writers::Some => {
            let why = if is_device(path) {
                "it is mounted, part of another device, or I/O of a dead server is still under way"
            } else {
                "another process has it open for writing, or a dead server's I/O is still under way"
            };
            let what = format!("{} is in use", path.display());
            Err(Problem::new(Kind::Busy, what).why(why).next("wait for it, or stop who uses it"))
        }
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
