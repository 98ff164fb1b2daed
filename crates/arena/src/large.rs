//! Memory in large pages.
//!
//! A device is told of a buffer piece by piece as it lies in physical memory. In pages of 4 KiB,
//! which lie anywhere, a read of 1 MiB is 256 pieces: as many as the whole queue of a usual virtio
//! disk holds, which then has one such read at a time. In pages of 2 MiB it is one piece. The pages
//! of a file on tmpfs are small unless it was mounted otherwise, but can be made large (Linux 6.1).
//!
//! Rules of this file: a reservation is aligned to large pages, as the offsets of a file are that
//! is mapped there from its start; all else is advice to the kernel, refused without harm.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::PAGE_BYTES;

/// Bytes of a large page, where a small one has 4 KiB.
const LARGE_BYTES: usize = 2 << 20;

/// Address space for a mapping, aligned to large pages; nothing can be accessed in it yet.
///
/// # Errors
/// If there is none left.
pub(crate) fn reserve(bytes: usize) -> std::io::Result<NonNull<u8>> {
    let total = bytes.checked_add(LARGE_BYTES).ok_or(std::io::ErrorKind::OutOfMemory)?;
    // SAFETY: an anonymous mapping at a place the kernel chooses touches nothing else.
    let start = unsafe {
        mmap_anonymous(std::ptr::null_mut(), total, ProtFlags::empty(), MapFlags::PRIVATE)
    }?;
    let before = start.addr().wrapping_neg() % LARGE_BYTES;
    // SAFETY: `before` is less than what was reserved beyond `bytes`. Both ends belong to the
    // reservation just made, which nobody knows of; what is not given back is only address space.
    unsafe {
        let base = start.cast::<u8>().add(before);
        if before > 0 {
            let _ = munmap(start, before);
        }
        let used = bytes.next_multiple_of(PAGE_BYTES as usize);
        let _ = munmap(base.add(used).cast(), total - before - used);
        Ok(NonNull::new(base).ok_or(std::io::ErrorKind::InvalidData)?)
    }
}

/// Gives all bytes of a new file that is mapped there their pages.
///
/// # Errors
/// Those of `fallocate`.
pub(crate) fn allocate(file: BorrowedFd<'_>, base: NonNull<u8>, bytes: u64) -> std::io::Result<()> {
    let large = LARGE_BYTES as u64;
    for at in (0..bytes).step_by(LARGE_BYTES).filter(|at| at + large <= bytes) {
        // The kernel makes a large page of small ones, at least one, and fills it up with zeros.
        fallocate(file, FallocateFlags::empty(), at, u64::from(PAGE_BYTES))?;
        // SAFETY: a whole large page inside the mapping. What is in its small pages moves to other
        // physical memory without a change that anybody could see.
        let _ = unsafe {
            libc::madvise(base.as_ptr().add(at as usize).cast(), LARGE_BYTES, libc::MADV_COLLAPSE)
        };
    }
    Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use crate::{Memory, Part};

    #[test]
    fn all_pages_are_there_and_hold_what_was_written_or_zeros() {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file on tmpfs");
        // The end is at no border of large pages.
        let bytes = (5 << 20) + 4096;
        file.set_len(bytes).expect("a size");
        let memory = Memory::shared(&file, bytes).expect("mapped");
        assert_eq!(memory.address(Part { offset: 0, bytes: 1 }).addr() % (2 << 20), 0);
        let places = [(2 << 20) - 2, bytes - 5];
        for offset in places {
            memory.land(Part { offset, bytes: 5 }, b"there");
        }
        memory.allocate(&file).expect("allocated");
        assert_eq!(file.metadata().expect("metadata").blocks() * 512, bytes);
        let mut found = memory.snapshot();
        for place in places.map(|place| place as usize..place as usize + 5) {
            assert_eq!(&found[place.clone()], b"there");
            found[place].fill(0);
        }
        assert!(found.iter().all(|byte| *byte == 0));
    }
}
