//! The code fence: when does no instruction of a dead process run any more?
//!
//! A process that is killed dies thread by thread, and its pidfd becomes readable, and its locks
//! go, only when its memory has been taken down: 10 ms for 128 MiB, 78 ms for a GiB in small
//! pages. But
//! the kernel marks a *robust futex* of each thread as soon as that thread can run nothing any more
//! and its last call has ended. A roster is a page of such words, one for each thread that matters,
//! in a file of its own on tmpfs. When all of them are marked, nothing of the dead process runs.
//! (What its rings still have in flight is another fence's: [`DeadRing`](crate::DeadRing).)
//!
//! ```text
//! word 0       marker: magic, so that an empty file is no roster
//! word 16 * n  thread n: 0 nobody, 1 about to begin, else the kernel's futex word
//! ```
//!
//! Invariants:
//! - A roster belongs to one process, from before its first thread to its end, and is never used
//!   again: a word that says "nobody" or "dead" stays so, except for threads begun by the living.
//! - A word says "about to begin" before its thread exists. So a process that dies between a
//!   thread's beginning and its enrolment leaves a word that never ends: the fence says
//!   [`Fate::Unsure`], and whoever waits uses the slow one, the process's lock.
//! - Who watches needs no right to write: the owner says from the start that somebody waits.
//!
//! Rules of this file: the mapping is shared, and touched by atomic words only; the kernel's list
//! of a thread points to a node in the thread's own [`Enrolled`], which outlives its registration.

use std::fs::File;
use std::marker::PhantomPinned;
use std::ops::Range;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::{Timespec, futex};

/// Bytes of a roster's file.
pub const ROSTER_BYTES: u64 = 4096;

const MAGIC: u32 = u32::from_le_bytes(*b"BLRO");
/// Words from one thread to the next: each has a cache line.
const STRIDE: usize = 16;
const THREADS: Range<usize> = 1..ROSTER_BYTES as usize / 4 / STRIDE;

const NOBODY: u32 = 0;
/// A number no thread has: it is that of the first process of a machine, which is never ours.
const BEGINNING: u32 = 1;
/// What the kernel knows of a futex word (`linux/futex.h`).
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;

/// What became of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it runs any more.
    Gone,
    /// It ran when the time was up.
    Runs,
    /// It was about to begin a thread: its lock has to tell.
    Unsure,
}

/// The words, mapped.
struct Page(NonNull<AtomicU32>);

// SAFETY: the mapping lives as long as the page, and is only touched by atomic operations.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn map(file: &File, protection: ProtFlags) -> std::io::Result<Page> {
        if file.metadata()?.len() < ROSTER_BYTES {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        let bytes = ROSTER_BYTES as usize;
        // SAFETY: a new mapping at a place the kernel chooses touches nothing else. That another
        // process maps the same file is the purpose.
        let base =
            unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, 0) }?;
        NonNull::new(base.cast()).map(Page).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < ROSTER_BYTES as usize / 4, "a word of the page");
        // SAFETY: inside the mapping, aligned, and only ever used as an atomic.
        unsafe { self.0.add(index).as_ref() }
    }

    fn thread(&self, slot: usize) -> &AtomicU32 {
        self.word(slot * STRIDE)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, unmapped once; nothing refers to it any more.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), ROSTER_BYTES as usize) };
    }
}

/// The threads of this process, for others to see.
#[derive(Clone)]
pub struct Roster {
    page: Arc<Page>,
}

impl Roster {
    /// Begins a roster in a new, empty file, for this process.
    ///
    /// # Errors
    /// If the file cannot be made as long as it has to be, or mapped.
    pub fn begin(file: &File) -> std::io::Result<Roster> {
        file.set_len(ROSTER_BYTES)?;
        let page = Arc::new(Page::map(file, ProtFlags::READ | ProtFlags::WRITE)?);
        page.word(0).store(MAGIC, Ordering::Release);
        Ok(Roster { page })
    }

    /// Enrols the calling thread: for the first one of a process, which nobody has begun.
    ///
    /// # Errors
    /// If there is no place left, or the kernel keeps no list of futexes.
    pub fn enrol(&self) -> std::io::Result<Pin<Box<Enrolled>>> {
        Enrolled::new(&self.page, self.take_place()?)
    }

    /// Begins a thread that is on the roster from before its first instruction to its end.
    ///
    /// # Errors
    /// If there is no place left, or no thread can be had.
    pub fn spawn<T: Send + 'static>(
        &self,
        builder: std::thread::Builder,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<JoinHandle<T>> {
        let slot = self.take_place()?;
        let page = Arc::clone(&self.page);
        let begun = builder.spawn(move || {
            // Without a list the word goes on saying that a thread is about to begin, and whoever
            // waits for the end of this process uses its lock.
            let _enrolled = Enrolled::new(&page, slot);
            work()
        });
        begun.inspect_err(|_| self.page.thread(slot).store(NOBODY, Ordering::Release))
    }

    fn take_place(&self) -> std::io::Result<usize> {
        let take = |slot: &usize| {
            let word = self.page.thread(*slot);
            word.compare_exchange(NOBODY, BEGINNING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = THREADS.clone().find(take);
        slot.ok_or_else(|| std::io::Error::other("more threads than a roster has places for"))
    }
}

/// Where a process begins its threads: on its roster, if it has one.
#[derive(Clone, Default)]
pub struct Threads {
    roster: Option<Roster>,
}

impl Threads {
    /// Threads on a roster.
    #[must_use]
    pub fn on(roster: Roster) -> Threads {
        Threads { roster: Some(roster) }
    }

    /// Begins a thread.
    ///
    /// # Errors
    /// As [`Roster::spawn`].
    pub fn spawn<T: Send + 'static>(
        &self,
        builder: std::thread::Builder,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<JoinHandle<T>> {
        match &self.roster {
            Some(roster) => roster.spawn(builder, work),
            None => builder.spawn(work),
        }
    }
}

/// What the kernel walks through when a thread dies (`struct robust_list_head`): a ring of nodes,
/// each followed by its futex at the same distance.
#[repr(C)]
struct ListHead {
    first: *const Node,
    futex_distance: isize,
    pending: *const Node,
}

#[repr(C)]
struct Node {
    next: *const ListHead,
}

/// A thread on a roster, until it ends or this is dropped.
pub struct Enrolled {
    page: Arc<Page>,
    slot: usize,
    head: ListHead,
    node: Node,
    /// The list the thread had before: the C library's.
    before: (*const ListHead, usize),
    _pinned: PhantomPinned,
}

impl Enrolled {
    fn new(page: &Arc<Page>, slot: usize) -> std::io::Result<Pin<Box<Enrolled>>> {
        let before = registered_list()?;
        let nowhere = std::ptr::null();
        let mut enrolled = Box::new(Enrolled {
            page: Arc::clone(page),
            slot,
            head: ListHead { first: nowhere, futex_distance: 0, pending: nowhere },
            node: Node { next: std::ptr::null() },
            before,
            _pinned: PhantomPinned,
        });
        let futex = page.thread(slot).as_ptr();
        let head = &raw const enrolled.head;
        enrolled.node.next = head;
        enrolled.head.first = &raw const enrolled.node;
        enrolled.head.futex_distance =
            futex.addr().wrapping_sub((&raw const enrolled.node).addr()).cast_signed();
        let enrolled = Box::into_pin(enrolled);
        // The list first: the kernel passes over a word that does not name the thread.
        register_list((&raw const enrolled.head, size_of::<ListHead>()))?;
        let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        enrolled.page.thread(slot).store(thread | WAITERS, Ordering::Release);
        Ok(enrolled)
    }
}

impl Drop for Enrolled {
    /// The thread goes on, or ends in good order: it is nobody's concern any more.
    fn drop(&mut self) {
        let word = self.page.thread(self.slot);
        word.store(NOBODY, Ordering::Release);
        // The kernel must not walk through a node that is gone. It had the list before.
        let restored = register_list(self.before);
        assert!(restored.is_ok(), "a list that was registered is registered again");
        // Nobody may wait, and then that is all.
        let _ = futex::wake(word, futex::Flags::empty(), u32::MAX);
    }
}

fn registered_list() -> std::io::Result<(*const ListHead, usize)> {
    let (mut head, mut bytes) = (std::ptr::null(), 0usize);
    // SAFETY: asks for the calling thread's own list; both places are valid for the answer.
    let result =
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut bytes) };
    if result == 0 { Ok((head, bytes)) } else { Err(std::io::Error::last_os_error()) }
}

/// The list is the kernel's until another is registered or the thread ends.
fn register_list((head, bytes): (*const ListHead, usize)) -> std::io::Result<()> {
    // SAFETY: `head` is the list the thread had before, or that of a pinned `Enrolled`, which
    // registers the former one again before it goes.
    let result = unsafe { libc::syscall(libc::SYS_set_robust_list, head, bytes) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The threads of another process.
pub struct Watched {
    page: Page,
}

impl Watched {
    /// Looks at the roster of another process; a descriptor that can only be read is enough.
    ///
    /// # Errors
    /// If the file is no roster, or cannot be mapped.
    pub fn open(file: &File) -> std::io::Result<Watched> {
        let page = Page::map(file, ProtFlags::READ)?;
        if page.word(0).load(Ordering::Acquire) != MAGIC {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        Ok(Watched { page })
    }

    /// Waits until no thread of the process runs, at most for `limit`; for ever without one.
    ///
    /// # Errors
    /// If the kernel cannot wait for such a word.
    pub fn wait(&self, limit: Option<Duration>) -> std::io::Result<Fate> {
        let end = limit.map(|limit| Instant::now() + limit);
        let mut is_unsure = false;
        for slot in THREADS {
            let word = self.page.thread(slot);
            loop {
                let now = word.load(Ordering::Acquire);
                if now & OWNER_DIED != 0 {
                    // The kernel wakes one who waits, and he the next.
                    let _ = futex::wake(word, futex::Flags::empty(), 1);
                    break;
                }
                if now == NOBODY {
                    break;
                }
                if now == BEGINNING {
                    // It has until all others are gone, and may never get there.
                    is_unsure = true;
                    break;
                }
                if !sleep(word, now, end)? {
                    return Ok(Fate::Runs);
                }
            }
        }
        let is_beginning = |slot| self.page.thread(slot).load(Ordering::Acquire) == BEGINNING;
        Ok(match is_unsure && THREADS.clone().any(is_beginning) {
            true => Fate::Unsure,
            false if is_unsure => return self.wait(limit),
            false => Fate::Gone,
        })
    }
}

/// Sleeps until a word is not what it was. False if the time was up.
fn sleep(word: &AtomicU32, was: u32, end: Option<Instant>) -> std::io::Result<bool> {
    let left = end.map(|end| end.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) {
        return Ok(false);
    }
    let left = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    match futex::wait(word, futex::Flags::empty(), was, left.as_ref()) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
