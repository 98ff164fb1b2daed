//! One mapping of memory and the tokens that give access to its bytes.
//!
//! Invariants:
//! - A [`Span`] is the only key to the bytes it names; it cannot be copied, and the spans of one
//!   memory never overlap. So `&Span` gives `&[u8]` and `&mut Span` gives `&mut [u8]` soundly.
//! - A [`Part`] is a copyable *name* of bytes, for I/O. Who hands a part to a medium or a socket
//!   keeps the span behind it and does not touch its bytes (a read) or change them (a write)
//!   until the I/O has completed. Adoption honours the same rule for a dead process's I/O.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::large;

/// Bytes of a memory, as offset and length. A name only: it gives no access by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// First byte, from the start of the memory.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u32,
}

impl Part {
    /// The part of this part that starts `skip` bytes in and is `bytes` long.
    ///
    /// # Panics
    /// If that reaches past the end of this part.
    #[must_use]
    pub fn sub(self, skip: u32, bytes: u32) -> Part {
        assert!(u64::from(skip) + u64::from(bytes) <= u64::from(self.bytes), "part out of range");
        Part { offset: self.offset + u64::from(skip), bytes }
    }
}

/// Exclusive access to some bytes of one memory.
#[derive(Debug)]
#[must_use = "a span that is dropped is lost; give it back to its pages"]
pub struct Span {
    domain: u32,
    part: Part,
}

impl Span {
    /// Where the bytes lie.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u32 {
        self.part.bytes
    }

    /// Cuts the span in two: `self` keeps the first `bytes`, the rest is returned.
    ///
    /// # Panics
    /// If `bytes` is more than the span has.
    pub fn split_off(&mut self, bytes: u32) -> Span {
        assert!(bytes <= self.part.bytes, "split past the end of the span");
        let rest = self.part.sub(bytes, self.part.bytes - bytes);
        self.part.bytes = bytes;
        Span { domain: self.domain, part: rest }
    }
}

/// How a thread ends whose store was the last that was to be made ([`Memory::cut_after`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut;

/// One store to a memory, as the recorder saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// First byte stored, from the start of the memory.
    pub offset: u64,
    /// The bytes stored.
    pub bytes: Vec<u8>,
}

enum Keep {
    Heap { layout: std::alloc::Layout },
    Mapped,
}

/// One mapping: a file on tmpfs shared with successors, or private memory.
pub struct Memory {
    domain: u32,
    base: NonNull<u8>,
    bytes: u64,
    keep: Keep,
    /// Somebody records stores or counts them.
    is_watched: Cell<bool>,
    recorder: RefCell<Option<Vec<Record>>>,
    stores_left: Cell<u64>,
    given_away: Cell<bool>,
}

impl Memory {
    /// Private zeroed memory, for tests and for servers without a shared arena.
    ///
    /// # Panics
    /// If `bytes` is zero or memory cannot be had.
    #[must_use]
    pub fn private(bytes: u64) -> Memory {
        assert!(bytes > 0 && bytes.is_multiple_of(4096), "memory comes in pages");
        let bytes_usize = usize::try_from(bytes).unwrap_or(usize::MAX);
        if cfg!(miri) {
            let layout = std::alloc::Layout::from_size_align(bytes_usize, 4096)
                .unwrap_or_else(|_| panic!("{bytes} bytes are no layout"));
            // SAFETY: the layout is not empty.
            let base = unsafe { std::alloc::alloc_zeroed(layout) };
            let base = NonNull::new(base).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
            return Memory::new(base, bytes, Keep::Heap { layout });
        }
        // SAFETY: an anonymous private mapping at a place the kernel chooses touches nothing else.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes_usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .unwrap_or_else(|error| panic!("cannot map {bytes} bytes of memory: {error}"));
        let base = NonNull::new(base.cast()).unwrap_or_else(|| panic!("mapped at address zero"));
        Memory::new(base, bytes, Keep::Mapped)
    }

    /// Maps a file, shared, for reading and writing. The file must be at least `bytes` long, and
    /// its pages allocated before they are touched: one that tmpfs cannot provide would be a bus
    /// error.
    ///
    /// # Errors
    /// Whatever `mmap` reports.
    pub fn shared(file: impl std::os::fd::AsFd, bytes: u64) -> std::io::Result<Memory> {
        let length = usize::try_from(bytes).map_err(std::io::Error::other)?;
        let base = large::reserve(length)?;
        // SAFETY: over a reservation that nobody else knows of. That other processes map the same
        // file is the purpose; only one of them, the instance's owner, writes to it.
        let mapped = unsafe {
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            mmap(base.as_ptr().cast(), length, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0)
        };
        if let Err(error) = mapped {
            // SAFETY: the reservation, which nobody uses.
            let _ = unsafe { munmap(base.as_ptr().cast(), length) };
            return Err(error.into());
        }
        Ok(Memory::new(base, bytes, Keep::Mapped))
    }

    /// Gives all bytes of a new file that is mapped here their pages, large ones where there are
    /// any.
    ///
    /// # Errors
    /// If the file system has no room for them, or does not do it.
    pub fn allocate(&self, file: impl std::os::fd::AsFd) -> std::io::Result<()> {
        large::allocate(file.as_fd(), self.base, self.bytes)
    }

    fn new(base: NonNull<u8>, bytes: u64, keep: Keep) -> Memory {
        static DOMAINS: AtomicU32 = AtomicU32::new(1);
        let domain = DOMAINS.fetch_add(1, Ordering::Relaxed);
        Memory {
            domain,
            base,
            bytes,
            keep,
            is_watched: Cell::new(false),
            recorder: RefCell::new(None),
            stores_left: Cell::new(u64::MAX),
            given_away: Cell::new(false),
        }
    }

    /// Number of bytes mapped.
    pub fn bytes_total(&self) -> u64 {
        self.bytes
    }

    /// A span for `part`, made out of nothing: how the owner of a fresh or adopted memory gets its
    /// first spans.
    ///
    /// # Safety
    /// No other span of this memory may overlap `part`, now or for as long as this one lives.
    ///
    /// # Panics
    /// If the part reaches past the end of the memory.
    pub unsafe fn claim(&self, part: Part) -> Span {
        assert!(part.offset + u64::from(part.bytes) <= self.bytes, "span out of range");
        Span { domain: self.domain, part }
    }

    /// The address of a part, for the kernel.
    ///
    /// # Panics
    /// If the part reaches past the end of the memory.
    pub fn address(&self, part: Part) -> *mut u8 {
        assert!(part.offset + u64::from(part.bytes) <= self.bytes, "part out of range");
        // SAFETY: the assertion keeps the address inside the mapping.
        unsafe { self.base.as_ptr().add(part.offset as usize) }
    }

    /// Stores bytes as a device does, without a span: how a simulated medium completes a read.
    /// Whoever handed out the part keeps the rule of parts.
    ///
    /// # Panics
    /// If `bytes` is not as long as the part, or the part reaches past the end of the memory.
    pub fn land(&self, part: Part, bytes: &[u8]) {
        assert_eq!(bytes.len(), part.bytes as usize, "as many bytes as the part has");
        // SAFETY: in range (address), and by the rule of parts nobody looks at the bytes between
        // submission and completion, which is where a medium calls this.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.address(part), bytes.len()) }
        self.record(part.offset, bytes);
    }

    /// Appends the bytes of a part as a device sees them, without a span: how a simulated medium
    /// carries out a write. Whoever handed out the part keeps the rule of parts.
    ///
    /// # Panics
    /// If the part reaches past the end of the memory.
    pub fn fetch(&self, part: Part, into: &mut Vec<u8>) {
        // SAFETY: in range (address), and by the rule of parts nobody changes the bytes between
        // submission and completion, which is where a medium calls this.
        let bytes = unsafe { std::slice::from_raw_parts(self.address(part), part.bytes as usize) };
        into.extend_from_slice(bytes);
    }

    /// All bytes as they are now: where the prefixes of recorded stores start from.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes as usize];
        // SAFETY: the whole mapping is readable, and the vector is as long and not part of it.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.as_ptr(), bytes.as_mut_ptr(), bytes.len());
        }
        bytes
    }

    /// A memory of its own with the same bytes now: what a successor finds after a simulated death.
    #[must_use]
    pub fn successor(&self) -> Memory {
        let other = Memory::private(self.bytes);
        // SAFETY: both are whole mappings of the same length and do not overlap; nothing else
        // knows of the new one.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr(),
                other.base.as_ptr(),
                self.bytes as usize,
            );
        }
        other
    }

    /// True once: for whoever makes safe use of the whole memory.
    pub(crate) fn give_away(&self) -> bool {
        !self.given_away.replace(true)
    }

    /// The bytes of a span.
    pub fn slice<'a>(&'a self, span: &'a Span) -> &'a [u8] {
        self.owns(span);
        // SAFETY: in range (address), no other span overlaps (claim), and `&Span` keeps every
        // `&mut Span` to the same bytes away.
        unsafe { std::slice::from_raw_parts(self.address(span.part), span.part.bytes as usize) }
    }

    /// The bytes of a span, to be changed. For buffers whose content need not outlive the process;
    /// what a successor relies on is stored by [`Memory::write`].
    pub fn slice_mut<'a>(&'a self, span: &'a mut Span) -> &'a mut [u8] {
        self.owns(span);
        // SAFETY: as in `slice`, and `&mut Span` excludes all other access to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.address(span.part), span.part.bytes as usize) }
    }

    /// Stores bytes at `skip` in the span, seen by the recorder.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&self, span: &mut Span, skip: u32, bytes: &[u8]) {
        let start = skip as usize;
        // The last store before a cut is cut itself: half of its words.
        let is_last = self.is_watched.get() && self.stores_left.get() == 1;
        let bytes = if is_last { &bytes[..bytes.len() / 16 * 8] } else { bytes };
        self.slice_mut(span)[start..start + bytes.len()].copy_from_slice(bytes);
        self.stored(span.part.offset + u64::from(skip), bytes);
    }

    /// Publishes one word: everything stored before is visible to whoever reads it by
    /// [`Memory::read`].
    ///
    /// # Panics
    /// If the word is not aligned or out of range.
    pub fn publish(&self, span: &mut Span, skip: u32, value: u64) {
        self.word(span, skip).store(value, Ordering::Release);
        self.stored(span.part.offset + u64::from(skip), &value.to_ne_bytes());
    }

    /// Reads a published word.
    ///
    /// # Panics
    /// If the word is not aligned or out of range.
    pub fn read(&self, span: &Span, skip: u32) -> u64 {
        self.word(span, skip).load(Ordering::Acquire)
    }

    /// Starts recording stores; returns what was recorded so far, if anything was.
    pub fn record_stores(&self, on: bool) -> Vec<Record> {
        let before = self.recorder.replace(on.then(Vec::new)).unwrap_or_default();
        self.is_watched.set(on || self.stores_left.get() != u64::MAX);
        before
    }

    /// Ends the thread, by unwinding with [`Cut`], at one of the next stores by [`Memory::write`]
    /// and [`Memory::publish`]: so a test finds what a kill between two stores leaves, with all
    /// else as it was at that moment. Of the last store of many words only half are made.
    pub fn cut_after(&self, stores: Option<u64>) {
        self.stores_left.set(stores.map_or(u64::MAX, |stores| stores.max(1)));
        self.is_watched.set(stores.is_some() || self.recorder.borrow().is_some());
    }

    fn stored(&self, offset: u64, bytes: &[u8]) {
        if self.is_watched.get() {
            self.record(offset, bytes);
            let left = self.stores_left.get();
            if left != u64::MAX {
                self.stores_left.set(left - 1);
                if left == 1 {
                    std::panic::resume_unwind(Box::new(Cut));
                }
            }
        }
    }

    fn record(&self, offset: u64, bytes: &[u8]) {
        if let Some(records) = self.recorder.borrow_mut().as_mut() {
            records.push(Record { offset, bytes: bytes.to_vec() });
        }
    }

    fn word(&self, span: &Span, skip: u32) -> &AtomicU64 {
        self.owns(span);
        let part = span.part.sub(skip, 8);
        assert!(part.offset.is_multiple_of(8), "a published word is aligned to 8 bytes");
        // SAFETY: in range and aligned; the word is only ever accessed as an atomic or, by the
        // holder of the span, as bytes in the same thread.
        unsafe { AtomicU64::from_ptr(self.address(part).cast()) }
    }

    fn owns(&self, span: &Span) {
        assert_eq!(self.domain, span.domain, "a span of another memory");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self.keep {
            // SAFETY: the same pointer and layout as at allocation, and no span can be used
            // without this memory.
            Keep::Heap { layout } => unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) },
            // SAFETY: the mapping made in `private` or `shared`, unmapped once.
            Keep::Mapped => unsafe {
                let _ = munmap(self.base.as_ptr().cast(), self.bytes as usize);
            },
        }
    }
}
