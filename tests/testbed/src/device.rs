//! Raw devices for tests: loop devices over files. They need root.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::tool;

/// A loop device, for as long as this lives.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A device over a file, which it makes.
    ///
    /// # Errors
    /// If the system gives none: root and `losetup` are needed.
    pub fn over(file: &Path, bytes: u64) -> Result<LoopDevice> {
        std::fs::File::create(file)?.set_len(bytes)?;
        let said = tool::run("losetup", &["--find", "--show", &file.to_string_lossy()])
            .map_err(|error| format!("no loop device is to be had: {error}"))?;
        Ok(LoopDevice { path: said.trim().into() })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = tool::run("losetup", &["--detach", &self.path.to_string_lossy()]);
        if let Err(error) = detached {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}
