//! Pools as files and devices: made, and told apart, before anybody serves them.

use std::path::{Path, PathBuf};

use bowline_arena::Arena;
use bowline_media::OpenOptions;
use bowline_store::{
    ArenaRegion, Durability, Media, PoolHeader, Provision, Store, StoreOptions, pool_header,
};

use super::config::Embedded;
use crate::control::api::{Kind, Problem};
use crate::offline::{self, Create};

/// Memory for offline work: a control area as of a server, and some buffers.
const CONTROL_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = 8 << 20;

/// A problem with the pool at a path.
pub fn failed(path: &Path, what: &str, error: impl ToString) -> Problem {
    Problem::new(Kind::Failed, format!("cannot {what} {}", path.display())).why(error.to_string())
}

/// A medium for offline work, with the memory its parts lie in.
pub struct Offline {
    /// The medium.
    pub media: Box<dyn Media>,
    /// The memory.
    pub arena: Arena,
}

impl Offline {
    /// Opens a pool's file or device without a ring.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, read_only: bool) -> Result<Offline, Problem> {
        let arena = Arena::private(CONTROL_BYTES, PAGE_BYTES);
        let mut options = OpenOptions::new(arena.memory.clone());
        (options.read_only, options.threads) = (read_only, 1);
        let opened = bowline_media::open(path, options);
        let media = opened.map_err(|error| failed(path, "open", error))?.media;
        Ok(Offline { media, arena })
    }
}

/// Which pool lies at a path.
///
/// # Errors
/// If none does, or it cannot be read.
pub fn header(path: &Path) -> Result<PoolHeader, Problem> {
    let Offline { mut media, arena } = Offline::open(path, true)?;
    pool_header(&mut media, &arena.pages).map_err(|error| failed(path, "use", error))
}

/// Makes the pool of a server that was started without arguments, with its disk. It gets its name
/// when it is complete, so a start that was cut off is done again.
///
/// # Errors
/// If that fails.
pub fn embed(path: &Path, embedded: &Embedded) -> Result<(), Problem> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(&beside, "remove", error));
        }
        _ => {}
    }
    let size_bytes = Some(embedded.pool_bytes);
    offline::create(&Create { path: beside.clone(), size_bytes, preallocate: false })?;
    let Offline { media, arena } = Offline::open(&beside, false)?;
    let region =
        ArenaRegion { control: arena.control, index: None, pages: arena.pages, is_fresh: true };
    let options = StoreOptions { delta_bytes: 1 << 20, map_frames: 64, ..StoreOptions::default() };
    let (durability, provision) = (Durability::Strict, Provision::Thin);
    Store::open(media, region, options)
        .and_then(|mut store| {
            store.create_disk(&embedded.disk, embedded.disk_bytes, durability, provision)?;
            store.close()
        })
        .map_err(|error| failed(path, "make", error))?;
    std::fs::rename(&beside, path).map_err(|error| failed(path, "make", error))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = std::fs::File::open(folder.unwrap_or(Path::new(".")));
    folder.and_then(|folder| folder.sync_all()).map_err(|error| failed(path, "make", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_made_with_its_disk_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let embedded = Embedded { pool_bytes: 256 << 20, disk: "d".into(), disk_bytes: 1 << 30 };
        embed(&path, &embedded).unwrap();
        let found = header(&path).unwrap();
        assert_eq!(found.slot_bytes, 2 << 20);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert!(header(&path).unwrap_err().to_string().contains("not a Bowline pool"));
    }
}
