//! The file or block device under a medium, and the system calls on it.
//!
//! Everything here is synchronous. A thread that is killed inside one of these calls does not die
//! before a local file system or a block device is done with it, so a synchronous call of a dead
//! process has ended once the process's lock is free (network file systems may break that).

use std::cell::Cell;
use std::ffi::c_int;
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use bowline_arena::{Part, fail_point};
use bowline_store::{BLOCK_BYTES, MediumError};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};

/// Which way bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    /// What to call an I/O in an error message.
    pub(crate) fn call(self, bytes: u64, at: u64) -> String {
        let verb = if self == Direction::Read { "read" } else { "write" };
        format!("{verb} of {bytes} bytes at {at}")
    }
}

/// Why a medium cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused something.
    #[error("cannot {what} {path}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        cause: Error,
    },
    /// It is neither a file nor a block device.
    #[error("{0} is neither a file nor a block device")]
    Kind(PathBuf),
    /// A filter cannot be set up.
    #[error(transparent)]
    Filter(#[from] crate::filters::SpecError),
}

/// What kind of place a medium is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

/// An open file or block device.
#[derive(Debug)]
pub(crate) struct Target {
    descriptor: OwnedFd,
    pub kind: TargetKind,
    /// Whether the page cache is passed by.
    pub direct: bool,
}

const PIECE_BYTES: u64 = 1 << 20;

#[repr(C, align(4096))]
struct Zeros([u8; PIECE_BYTES as usize]);
static ZEROS: Zeros = Zeros([0; PIECE_BYTES as usize]);

impl Target {
    /// Opens a file or device, by the page cache only where it cannot be done without. A device to
    /// be written to is claimed: [`writers`](crate::writers) tells by that.
    pub(crate) fn open(path: &Path, read_only: bool, direct: bool) -> Result<Target, OpenError> {
        let system = |what, cause: rustix::io::Errno| {
            let (path, cause) = (path.to_owned(), cause.into());
            OpenError::System { what, path, cause }
        };
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let named = rustix::fs::stat(path).map_err(|error| system("look at", error))?;
        let is_device = FileType::from_raw_mode(named.st_mode) == FileType::BlockDevice;
        let claim = if is_device && !read_only { OFlags::EXCL } else { OFlags::empty() };
        let flags = access | OFlags::CLOEXEC | claim;
        let open = |extra| rustix::fs::open(path, flags | extra, Mode::empty());
        let (descriptor, direct) = match direct.then(|| open(OFlags::DIRECT)) {
            Some(Ok(descriptor)) => (descriptor, true),
            Some(Err(error)) if error != rustix::io::Errno::INVAL => {
                return Err(system("open", error));
            }
            _ => (open(OFlags::empty()).map_err(|error| system("open", error))?, false),
        };
        let found = rustix::fs::fstat(&descriptor).map_err(|error| system("look at", error))?;
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => TargetKind::File,
            FileType::BlockDevice => TargetKind::Device,
            _ => return Err(OpenError::Kind(path.to_owned())),
        };
        Ok(Target { descriptor, kind, direct })
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// Whole blocks it holds now.
    pub(crate) fn bytes_total(&self) -> std::io::Result<u64> {
        let bytes = match self.kind {
            TargetKind::File => rustix::fs::fstat(&self.descriptor)?.st_size as u64,
            TargetKind::Device => device_bytes(self.descriptor())?,
        };
        Ok(bytes - bytes % BLOCK_BYTES)
    }

    /// Moves as many bytes as one call does. Parts are counted from the address `base`.
    ///
    /// # Safety
    /// The parts must name memory that is valid for the call and that nobody else changes, or,
    /// when reading, looks at.
    pub(crate) unsafe fn transfer(
        &self,
        direction: Direction,
        at: u64,
        base: usize,
        parts: &[Part],
    ) -> std::io::Result<u64> {
        let count = parts.len().min(VECTORS_MAX);
        let vector = |part: &Part| libc::iovec {
            iov_base: (base + part.offset as usize) as *mut _,
            iov_len: part.bytes as usize,
        };
        let vectors: Vec<libc::iovec> = parts[..count].iter().map(vector).collect();
        let (start, count, at) = (vectors.as_ptr(), count as c_int, at as libc::off_t);
        // SAFETY: the caller vouches for the memory; the vectors live until the call returns.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(self.descriptor(), start, count, at),
                Direction::Write => libc::pwritev(self.descriptor(), start, count, at),
            }
        };
        u64::try_from(moved).map_err(|_| Error::last_os_error())
    }

    /// Makes what has been written durable.
    pub(crate) fn flush(&self) -> Result<(), MediumError> {
        fail_point!("media.flush.called");
        loop {
            match rustix::fs::fdatasync(&self.descriptor) {
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    fail_point!("media.flush.returned");
                    return result.map_err(|error| failed("flush".to_owned(), error));
                }
            }
        }
    }

    /// Gives space back. A place that cannot do that keeps it: no error.
    pub(crate) fn discard(&self, at: u64, bytes: u64) -> Result<(), MediumError> {
        let result = match self.kind {
            TargetKind::File => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.descriptor, mode, at, bytes)
            }
            TargetKind::Device => device_discard(self.descriptor(), at, bytes),
        };
        match result {
            Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) | Ok(()) => Ok(()),
            Err(error) => Err(failed(format!("discard of {bytes} bytes at {at}"), error)),
        }
    }

    /// Takes space for a range. `zeroed`: has zeros written where nothing was yet: written extents
    /// make later flushes cheaper than merely allocated ones. A device has its space.
    pub(crate) fn allocate(&self, at: u64, bytes: u64, zeroed: bool) -> Result<(), MediumError> {
        if self.kind == TargetKind::Device {
            return Ok(());
        }
        let call = || format!("allocation of {bytes} bytes at {at}");
        match rustix::fs::fallocate(&self.descriptor, FallocateFlags::KEEP_SIZE, at, bytes) {
            Ok(()) | Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(failed(call(), error)),
        }
        let (mut from, end) = (at, at + bytes);
        while zeroed && from < end {
            let Some((start, stop)) = self.hole(from, end) else { break };
            self.zero(start, stop).map_err(|error| {
                let code = error.raw_os_error().unwrap_or(libc::EIO);
                MediumError::System { call: call(), code }
            })?;
            from = stop;
        }
        Ok(())
    }

    /// The next range without written blocks. Blocks that are merely allocated are holes in this
    /// sense; where a file system does not know, everything is written.
    fn hole(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        use rustix::fs::{SeekFrom, seek};
        let start = seek(&self.descriptor, SeekFrom::Hole(from)).ok().filter(|at| *at < end)?;
        let stop = seek(&self.descriptor, SeekFrom::Data(start)).map_or(end, |at| at.min(end));
        // A hole may begin in the middle of a block of ours; what is written there stays.
        let start = start.next_multiple_of(BLOCK_BYTES);
        let stop = if stop < end { stop / BLOCK_BYTES * BLOCK_BYTES } else { end };
        if start < stop { Some((start, stop)) } else { self.hole(stop.max(start + 1), end) }
    }

    fn zero(&self, mut at: u64, end: u64) -> std::io::Result<()> {
        while at < end {
            let piece = (end - at).min(PIECE_BYTES);
            let (base, part) = (ZEROS.0.as_ptr() as usize, Part { offset: 0, bytes: piece as u32 });
            // SAFETY: writes from a constant.
            match unsafe { self.transfer(Direction::Write, at, base, &[part]) } {
                Ok(0) => return Err(Error::from_raw_os_error(libc::EIO)),
                Ok(moved) => at += moved,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// More vectors than this are not taken by one call.
pub(crate) const VECTORS_MAX: usize = 1024;

fn failed(call: String, error: rustix::io::Errno) -> MediumError {
    MediumError::System { call, code: error.raw_os_error() }
}

const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKDISCARD: libc::c_ulong = 0x1277;

fn device_bytes(descriptor: RawFd) -> rustix::io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: this request stores one u64 at the address given.
    let result = unsafe { libc::ioctl(descriptor, BLKGETSIZE64 as _, &raw mut bytes) };
    if result < 0 { Err(last_error()) } else { Ok(bytes) }
}

fn device_discard(descriptor: RawFd, at: u64, bytes: u64) -> rustix::io::Result<()> {
    let range = [at, bytes];
    // SAFETY: this request reads two u64 at the address given.
    let result = unsafe { libc::ioctl(descriptor, BLKDISCARD as _, &raw const range) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> rustix::io::Errno {
    let code = Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    rustix::io::Errno::from_raw_os_error(code)
}

/// The file's size, asked again only when something lies past the size known.
pub(crate) struct Extent {
    known: Cell<u64>,
}

impl Extent {
    pub(crate) fn new(target: &Target) -> std::io::Result<Extent> {
        Ok(Extent { known: Cell::new(target.bytes_total()?) })
    }

    /// The bytes there are now. If the system does not say, those there were.
    pub(crate) fn now(&self, target: &Target) -> u64 {
        if let Ok(bytes) = target.bytes_total() {
            self.known.set(bytes);
        }
        self.known.get()
    }

    /// Whether a range of whole blocks lies on the medium; a write past the end of a file would
    /// silently lengthen it.
    pub(crate) fn holds(&self, target: &Target, at: u64, bytes: u64) -> bool {
        let whole = at.is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_BYTES);
        let Some(end) = at.checked_add(bytes) else { return false };
        whole && bytes > 0 && (end <= self.known.get() || end <= self.now(target))
    }
}
