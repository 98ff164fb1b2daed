//! Where arenas lie, and what the files of a pool are called.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::file::ArenaError;

/// Where arenas lie if nothing else is said: in the user's runtime directory, else in `/dev/shm`.
#[must_use]
pub fn default_directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path.join("bowline"),
        _ => PathBuf::from(format!("/dev/shm/bowline-{}", rustix::process::geteuid().as_raw())),
    }
}

/// The names of a pool's files.
pub(crate) struct Names<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) pool: u128,
}

impl Names<'_> {
    pub(crate) fn named(&self, what: &str) -> PathBuf {
        self.directory.join(format!("{:032x}.{what}", self.pool))
    }

    pub(crate) fn arena(&self) -> PathBuf {
        self.named("arena")
    }

    pub(crate) fn ring(&self, number: u64) -> PathBuf {
        self.named(&format!("ring.{}.{}", number >> 16, number & 0xffff))
    }

    /// The ring files there are, the newest first. A server records a ring in the header before it
    /// makes its file, but an arena may have been removed by hand: the directory knows more.
    pub(crate) fn rings(&self) -> std::io::Result<Vec<PathBuf>> {
        let prefix = format!("{:032x}.ring.", self.pool);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(number) = name.to_string_lossy().strip_prefix(&prefix) {
                let parts = number.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
                found.push((parts.collect::<Vec<_>>(), entry.path()));
            }
        }
        found.sort();
        Ok(found.into_iter().rev().map(|(_, path)| path).collect())
    }
}

/// Wraps an error of the system.
pub(crate) fn system(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(Error) -> ArenaError {
    let path = path.into();
    move |cause| ArenaError::System { what, path, cause }
}

/// Makes the directory if it is not there, and refuses one that others can write to.
pub(crate) fn check_directory(path: &Path, any_file_system: bool) -> Result<(), ArenaError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(system("make the directory", path))?;
    let refused = |reason: &str| {
        Err(ArenaError::Directory { path: path.to_owned(), reason: reason.to_owned() })
    };
    let found = std::fs::symlink_metadata(path).map_err(system("look at", path))?;
    if !found.is_dir() {
        return refused("it is not a directory (links are not followed)");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refused("it belongs to another user");
    }
    if found.mode() & 0o022 != 0 {
        return refused("others can write to it (chmod go-w)");
    }
    let file_system =
        rustix::fs::statfs(path).map_err(|error| system("look at", path)(error.into()))?;
    if file_system.f_type as u64 != TMPFS && !any_file_system {
        return refused("it is not on tmpfs; choose one that is with --arena");
    }
    Ok(())
}

/// What tells a tmpfs.
const TMPFS: u64 = 0x0102_1994;

/// Bytes that new files in a directory can take: what its file system has free and, on tmpfs, not
/// more than the machine has of memory.
pub(crate) fn room(path: &Path) -> std::io::Result<u64> {
    let found = rustix::fs::statfs(path)?;
    let free_bytes = found.f_bavail.saturating_mul(u64::try_from(found.f_bsize).unwrap_or(0));
    if found.f_type as u64 != TMPFS {
        return Ok(free_bytes);
    }
    let memory = std::fs::read_to_string("/proc/meminfo").ok();
    let memory_bytes = memory.and_then(|text| available(&text)).unwrap_or(u64::MAX);
    // A tmpfs without a limit says that it has no blocks at all.
    Ok(if found.f_blocks == 0 { memory_bytes } else { free_bytes.min(memory_bytes) })
}

/// Bytes of memory that can be had without anybody's harm, by the text of `/proc/meminfo`.
fn available(text: &str) -> Option<u64> {
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    // Files on tmpfs can be swapped out.
    Some((kibibytes("MemAvailable:")? + kibibytes("SwapFree:").unwrap_or(0)) << 10)
}

pub(crate) fn fresh_file(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(crate) fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The number of this boot of the machine.
///
/// # Errors
/// If the system does not tell.
pub fn boot_id() -> std::io::Result<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).map_err(Error::other)
}

#[cfg(test)]
mod tests {
    use super::available;

    #[test]
    fn memory_that_can_be_had_is_what_is_available_and_what_can_be_swapped() {
        let text = "MemTotal:       24683520 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(available(text), Some(1 << 20));
        assert_eq!(available(&format!("{text}SwapFree:           1 kB\n")), Some((1 << 20) + 1024));
        assert_eq!(available("MemTotal: 3 kB\nMemAvailable: many"), None);
    }
}
