//! Making a pool.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bowline_arena::{Memory, OwnerLock, Pages};
use bowline_store::{CreateOptions, PoolId};

use super::{Create, PATIENCE, failed, is_device, nobody_writes};
use crate::control::api::{Kind, PoolCreated, Problem};

/// What making a pool needs of memory.
const MEMORY_BYTES: u64 = 8 << 20;

/// What is cleared at both ends of a device, so that nothing takes it for what it was.
const CLEARED_BYTES: u64 = 1 << 20;

const SLOT_BYTES: u64 = 32 << 20;
const SLOT_BYTES_MIN: u64 = 128 << 10;

/// Slots a pool has at least, while they are not smaller than that, and in any case: a small pool
/// has small slots. Some of them hold no live data, whatever their size.
const SLOTS: u64 = 256;
const SLOT_BYTES_SMALL: u64 = 4 << 20;
const SLOTS_MIN: u64 = 128;

/// Makes a pool, over whatever is there.
pub fn create(order: &Create) -> Result<PoolCreated, Problem> {
    let path = &order.path;
    let is_new = !path.exists();
    if is_new {
        let bytes = order.size_bytes.unwrap_or(0);
        bowline_media::create_file(path, bytes, order.preallocate)
            .map_err(|error| failed(path, "make", error))?;
    }
    let made = over(order, is_new);
    if made.is_err() && is_new {
        let _ = std::fs::remove_file(path);
    }
    made
}

fn over(order: &Create, is_new: bool) -> Result<PoolCreated, Problem> {
    let path = &order.path;
    let lock = OwnerLock::pool(path).map_err(|error| failed(path, "lock", error))?;
    let Some(_lock) = lock else {
        let what = format!("{} is in use", path.display());
        return Err(Problem::new(Kind::Busy, what).why("another process has it locked"));
    };
    if !is_new {
        // A pool that was here may have I/O of its dead server under way.
        nobody_writes(path, PATIENCE)?;
        clear(order).map_err(|error| failed(path, "clear", error))?;
    }
    let memory = Rc::new(Memory::private(MEMORY_BYTES));
    let direct = bowline_media::OpenOptions::new(memory.clone());
    let opened = bowline_media::open(path, direct).map_err(|error| failed(path, "open", error))?;
    let mut media = opened.media;
    let size_bytes = media.bytes_total();
    let options = options(size_bytes).map_err(|error| failed(path, "make a pool in", error))?;
    let pages = Rc::new(RefCell::new(Pages::whole(memory)));
    bowline_store::create(&mut media, &pages, &options)
        .map_err(|error| failed(path, "make a pool in", error))?;
    let id = format!("{:032x}", options.pool.0);
    Ok(PoolCreated { path: path.display().to_string(), id, size_bytes })
}

fn options(pool_bytes: u64) -> std::io::Result<CreateOptions> {
    let mut random = [0; 24];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let (pool, salt) = random.split_at(16);
    let number = |bytes: &[u8]| bytes.iter().fold(0u128, |sum, &byte| sum << 8 | u128::from(byte));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(CreateOptions {
        pool: PoolId(number(pool)),
        salt: number(salt) as u64,
        slot_bytes: slot_bytes(pool_bytes),
        now_seconds: now.map_or(0, |since| since.as_secs()),
    })
}

/// Slots are large, so that the medium is written in long runs; but there must be enough of them.
fn slot_bytes(pool_bytes: u64) -> u64 {
    let mut bytes = SLOT_BYTES;
    let are_few = |bytes| {
        let slots = pool_bytes / bytes;
        slots < if bytes > SLOT_BYTES_SMALL { SLOTS } else { SLOTS_MIN }
    };
    while bytes > SLOT_BYTES_MIN && are_few(bytes) {
        bytes /= 2;
    }
    bytes
}

/// Removes what was there before.
fn clear(order: &Create) -> std::io::Result<()> {
    let file = File::options().write(true).read(true).open(&order.path)?;
    if is_device(&order.path) {
        return clear_ends(&file, &order.path);
    }
    let bytes = order.size_bytes.unwrap_or(file.metadata()?.len());
    file.set_len(0)?;
    file.set_len(bytes)?;
    if order.preallocate {
        let none = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, none, 0, bytes)?;
    }
    file.sync_all()
}

fn clear_ends(device: &File, path: &Path) -> std::io::Result<()> {
    let bytes = rustix::fs::seek(device, rustix::fs::SeekFrom::End(0))?;
    let zeros = vec![0; CLEARED_BYTES as usize];
    if bytes < 2 * CLEARED_BYTES {
        let what = format!("{} is too small for a pool", path.display());
        return Err(std::io::Error::other(what));
    }
    device.write_all_at(&zeros, 0)?;
    device.write_all_at(&zeros, bytes - CLEARED_BYTES)?;
    device.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_large_if_the_pool_is() {
        assert_eq!(slot_bytes(10 << 30), 32 << 20);
        assert_eq!(slot_bytes(2 << 30), 8 << 20);
        assert_eq!(slot_bytes(1 << 30), 4 << 20);
        assert_eq!(slot_bytes(512 << 20), 4 << 20);
        assert_eq!(slot_bytes(64 << 20), 512 << 10);
        assert_eq!(slot_bytes(0), SLOT_BYTES_MIN);
    }

    #[test]
    fn a_pool_is_made_and_its_file_is_removed_if_it_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let mut order =
            Create { path: path.clone(), size_bytes: Some(64 << 20), preallocate: false };
        let created = create(&order).unwrap();
        assert_eq!(created.size_bytes, 64 << 20);
        assert!(super::super::signature(&path).unwrap().unwrap().contains("Bowline"));
        order.path = folder.path().join("small");
        order.size_bytes = Some(1 << 20);
        assert!(create(&order).is_err());
        assert!(!order.path.exists());
    }

    #[test]
    fn a_served_pool_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let order = Create { path: path.clone(), size_bytes: Some(64 << 20), preallocate: false };
        let first = create(&order).unwrap();
        let _served = OwnerLock::pool(&path).unwrap().unwrap();
        assert_eq!(create(&order).unwrap_err().kind, Kind::Busy);
        assert!(super::super::must_not_be_in_use(&path).is_err());
        assert_eq!(first.size_bytes, 64 << 20);
    }
}
