//! The memory of one ring: a header of ours, the kernel's two queues, the submission entries.
//!
//! It is a file of its own on tmpfs, so that the kernel's completions outlive the process that
//! submitted (see [`fence`](crate::fence)). A ring's file is used by one ring only, ever: a dead
//! ring's late completions in reused memory corrupted streams in an experiment.
//!
//! ```text
//! 0     header: magic, layout, entries, where the kernel put its fields, checksum
//! 4096  the kernel's rings: heads, tails, completion entries, submission array
//! ..    the submission entries
//! ```

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::AsFd;
use twox_hash::XxHash3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{CompletionEntry, Parameters, SubmissionEntry};
use crate::{Memory, PAGE_BYTES, Part};

const MAGIC: u64 = u64::from_le_bytes(*b"BOWLRING");
const LAYOUT: u32 = 1;
/// More entries than the kernel gives (32768), so that sizes computed from a damaged header are
/// refused before they are used.
const ENTRIES_MAX: u32 = 1 << 16;

/// The first bytes of a ring file; all zero until the ring is armed.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    magic: u64,
    layout: u32,
    sq_entries: u32,
    cq_entries: u32,
    sq_head: u32,
    sq_tail: u32,
    sq_flags: u32,
    sq_array: u32,
    cq_head: u32,
    cq_tail: u32,
    cq_overflow: u32,
    cq_first: u32,
    reserved: u32,
    /// The boot the ring belongs to: what an earlier one had in flight is gone.
    boot: [u8; 16],
    checksum: u64,
}

const HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(HEADER_BYTES == 80);

/// The mapped memory of a ring and where its fields lie.
pub(crate) struct Queues {
    memory: Memory,
    header: Header,
}

/// How long the two regions of a ring are: (rings, entries), in bytes.
fn regions(sq_entries: u32, cq_entries: u32) -> (u64, u64) {
    let page = u64::from(PAGE_BYTES);
    // The kernel's own fields are under 512 bytes in every version; it says where they are.
    let rings = 512
        + u64::from(cq_entries) * size_of::<CompletionEntry>() as u64
        + u64::from(sq_entries) * size_of::<u32>() as u64;
    let entries = u64::from(sq_entries) * size_of::<SubmissionEntry>() as u64;
    (rings.next_multiple_of(page), entries.next_multiple_of(page))
}

/// Bytes a ring file must have.
pub(crate) fn file_bytes(sq_entries: u32, cq_entries: u32) -> u64 {
    let (rings, entries) = regions(sq_entries, cq_entries);
    u64::from(PAGE_BYTES) + rings + entries
}

impl Queues {
    /// Maps a fresh ring file for a ring to be set up, and names its places in `parameters`.
    pub(crate) fn fresh(file: impl AsFd, parameters: &mut Parameters) -> std::io::Result<Queues> {
        let (sq_entries, cq_entries) = (parameters.sq_entries, parameters.cq_entries);
        let memory = Memory::shared(file, file_bytes(sq_entries, cq_entries))?;
        let (rings, _) = regions(sq_entries, cq_entries);
        let page = u64::from(PAGE_BYTES);
        parameters.cq_offsets.user_address = memory.address(Part { offset: page, bytes: 0 }) as u64;
        parameters.sq_offsets.user_address =
            memory.address(Part { offset: page + rings, bytes: 0 }) as u64;
        let header = Header {
            magic: MAGIC,
            layout: LAYOUT,
            sq_entries,
            cq_entries,
            sq_head: 0,
            sq_tail: 0,
            sq_flags: 0,
            sq_array: 0,
            cq_head: 0,
            cq_tail: 0,
            cq_overflow: 0,
            cq_first: 0,
            reserved: 0,
            boot: crate::place::boot_id()?.to_le_bytes(),
            checksum: 0,
        };
        Ok(Queues { memory, header })
    }

    /// Records where the kernel has put its fields. Nothing may be submitted before this: a ring
    /// file without a valid header says that nothing was.
    ///
    /// # Panics
    /// If the kernel gave other sizes than it was asked for.
    pub(crate) fn arm(&mut self, parameters: &Parameters) {
        let (sq, cq) = (&parameters.sq_offsets, &parameters.cq_offsets);
        let header = &mut self.header;
        assert_eq!(parameters.sq_entries, header.sq_entries, "submission entries");
        assert_eq!(parameters.cq_entries, header.cq_entries, "completion entries");
        (header.sq_head, header.sq_tail) = (sq.head, sq.tail);
        (header.sq_flags, header.sq_array) = (sq.flags, sq.array);
        (header.cq_head, header.cq_tail) = (cq.head, cq.tail);
        (header.cq_overflow, header.cq_first) = (cq.overflow, cq.entries);
        header.checksum = checksum(header);
        assert!(in_range(header), "the kernel's fields lie in the memory it was given");
        for index in 0..header.sq_entries {
            self.word(self.header.sq_array + index * 4).store(index, Ordering::Relaxed);
        }
        self.memory.land(Part { offset: 0, bytes: HEADER_BYTES as u32 }, self.header.as_bytes());
    }

    /// Maps the ring file of a dead process. None: the ring was never armed, or belongs to an
    /// earlier boot, so nothing can be in flight.
    pub(crate) fn adopt(file: impl AsFd) -> std::io::Result<Option<Queues>> {
        let bytes = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if bytes < u64::from(PAGE_BYTES) {
            return Ok(None);
        }
        let memory = Memory::shared(file, bytes)?;
        let mut found = Vec::new();
        memory.fetch(Part { offset: 0, bytes: HEADER_BYTES as u32 }, &mut found);
        let Ok(header) = Header::read_from_bytes(&found) else { return Ok(None) };
        if header.magic != MAGIC || header.checksum != checksum(&header) {
            return Ok(None);
        }
        let fits = header.layout == LAYOUT
            && in_range(&header)
            && bytes >= file_bytes(header.sq_entries, header.cq_entries);
        if header.boot != crate::place::boot_id()?.to_le_bytes() {
            return Ok(None);
        }
        if !fits {
            return Err(std::io::Error::other(format!(
                "the ring file is of layout {}, this program knows layout {LAYOUT}",
                header.layout
            )));
        }
        Ok(Some(Queues { memory, header }))
    }

    pub(crate) fn sq_entries(&self) -> u32 {
        self.header.sq_entries
    }

    pub(crate) fn cq_entries(&self) -> u32 {
        self.header.cq_entries
    }

    /// How many submissions the kernel has consumed, modulo 2^32.
    pub(crate) fn sq_head(&self) -> u32 {
        self.word(self.header.sq_head).load(Ordering::Acquire)
    }

    pub(crate) fn sq_flags(&self) -> u32 {
        self.word(self.header.sq_flags).load(Ordering::Relaxed)
    }

    pub(crate) fn set_sq_tail(&self, tail: u32) {
        self.word(self.header.sq_tail).store(tail, Ordering::Release);
    }

    pub(crate) fn cq_head(&self) -> u32 {
        self.word(self.header.cq_head).load(Ordering::Relaxed)
    }

    pub(crate) fn set_cq_head(&self, head: u32) {
        self.word(self.header.cq_head).store(head, Ordering::Release);
    }

    /// How many completions the kernel has posted, modulo 2^32.
    pub(crate) fn cq_tail(&self) -> u32 {
        self.word(self.header.cq_tail).load(Ordering::Acquire)
    }

    pub(crate) fn cq_overflow(&self) -> u32 {
        self.word(self.header.cq_overflow).load(Ordering::Relaxed)
    }

    /// Stores a submission entry; the kernel looks at it once the tail has passed it.
    pub(crate) fn set_entry(&self, index: u32, entry: &SubmissionEntry) {
        let (rings, _) = regions(self.header.sq_entries, self.header.cq_entries);
        let slot = u64::from(index & (self.header.sq_entries - 1));
        let offset = u64::from(PAGE_BYTES) + rings + slot * size_of::<SubmissionEntry>() as u64;
        let bytes = size_of::<SubmissionEntry>() as u32;
        let place = self.memory.address(Part { offset, bytes }).cast::<SubmissionEntry>();
        // SAFETY: in range (address) and aligned; the kernel has consumed the entry that was here
        // before, which the ring checks, and reads this one only after the tail is published.
        unsafe { place.write(*entry) }
    }

    /// The completion with this number, which must have been posted.
    pub(crate) fn completion(&self, index: u32) -> CompletionEntry {
        let slot = u64::from(index & (self.header.cq_entries - 1));
        let first = u64::from(PAGE_BYTES) + u64::from(self.header.cq_first);
        let offset = first + slot * size_of::<CompletionEntry>() as u64;
        let bytes = size_of::<CompletionEntry>() as u32;
        let place = self.memory.address(Part { offset, bytes }).cast::<CompletionEntry>();
        // SAFETY: in range (address) and aligned (arm, adopt); posted, and not passed by the head,
        // so the kernel does not write to it.
        unsafe { place.read() }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        let place = Part { offset: u64::from(PAGE_BYTES) + u64::from(offset), bytes: 4 };
        // SAFETY: in range (address) and aligned (arm, adopt); the kernel and we access these
        // words as atomics only.
        unsafe { AtomicU32::from_ptr(self.memory.address(place).cast()) }
    }
}

fn checksum(header: &Header) -> u64 {
    let bytes = header.as_bytes();
    XxHash3_64::oneshot(&bytes[..HEADER_BYTES - size_of::<u64>()])
}

/// Whether every field the header names is aligned and inside the rings' region.
fn in_range(header: &Header) -> bool {
    let (sq, cq) = (header.sq_entries, header.cq_entries);
    let counts = [sq, cq].iter().all(|count| count.is_power_of_two() && *count <= ENTRIES_MAX);
    if !counts {
        return false;
    }
    let (rings, _) = regions(sq, cq);
    let word_fields = [
        (header.sq_head, 1),
        (header.sq_tail, 1),
        (header.sq_flags, 1),
        (header.sq_array, sq),
        (header.cq_head, 1),
        (header.cq_tail, 1),
        (header.cq_overflow, 1),
    ];
    let words = word_fields.iter().all(|(offset, count)| {
        offset.is_multiple_of(4) && u64::from(*offset) + u64::from(*count) * 4 <= rings
    });
    let completions = u64::from(header.cq_first) + u64::from(cq) * 16 <= rings;
    words && completions && header.cq_first.is_multiple_of(8)
}
