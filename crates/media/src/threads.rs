//! The medium on plain calls in a few threads, for systems that give no io_uring.
//!
//! The kernel lets no killed thread leave a read or write of a local file or device half done and
//! under way: the thread ends after the call has, or before it began. So once the lock of a dead
//! process is free, nothing of it can land any more; no ring is to be fenced.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{Memory, Part, Threads};
use bowline_store::{Completion, Io, IoId, Media, MediumError};

use crate::driver::{Desk, Driver};
use crate::target::{Direction, Target};
use crate::work::{Work, Workers};

/// A file or block device by `preadv` and `pwritev`.
pub struct ThreadMedia(Rc<RefCell<State>>);

/// The medium's end of the event loop: says when to ask the medium for completions.
#[derive(Clone)]
pub struct ThreadEvents(Rc<RefCell<State>>);

struct State {
    // First, so that its calls have ended before the memory can go.
    transfers: Workers,
    desk: Desk,
    memory: Rc<Memory>,
}

impl ThreadMedia {
    pub(crate) fn new(
        target: Target,
        memory: Rc<Memory>,
        count: usize,
        spin: Duration,
        threads: &Threads,
    ) -> std::io::Result<ThreadMedia> {
        let desk = Desk::new(target, threads)?;
        let ends = (&desk.target, &desk.mailbox);
        let transfers = Workers::start("bowline-io", count.max(2), spin, ends, threads)?;
        Ok(ThreadMedia(Rc::new(RefCell::new(State { transfers, desk, memory }))))
    }

    /// The event loop's end.
    #[must_use]
    pub fn events(&self) -> ThreadEvents {
        ThreadEvents(Rc::clone(&self.0))
    }
}

impl ThreadEvents {
    /// A descriptor that is readable while the medium's `complete` has something to give. It stays
    /// open as long as this value lives.
    #[must_use]
    pub fn wake_descriptor(&self) -> RawFd {
        self.0.borrow().desk.mailbox.wake().as_raw_fd()
    }

    /// The same as a descriptor of the caller's own.
    ///
    /// # Errors
    /// If the system has none left.
    pub fn wake_clone(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        self.0.borrow().desk.mailbox.wake().try_clone_to_owned()
    }
}

impl Media for ThreadMedia {
    fn bytes_total(&self) -> u64 {
        let desk = &self.0.borrow().desk;
        desk.extent.now(&desk.target)
    }

    fn submit(&mut self, id: IoId, io: Io) {
        Driver::submit(&mut *self.0.borrow_mut(), id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        Driver::complete(&mut *self.0.borrow_mut())
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        let mut state = self.0.borrow_mut();
        assert!(state.desk.outstanding > 0, "a wait for nothing");
        state.collect();
        if state.desk.done.is_empty() {
            state.desk.mailbox.wait();
        }
        Ok(())
    }
}

impl Driver for State {
    fn desk(&mut self) -> &mut Desk {
        &mut self.desk
    }

    fn transfer(&mut self, id: IoId, direction: Direction, at: u64, parts: Vec<Part>) {
        for part in &parts {
            // Panics here, and not in another thread, if the part is none of this memory.
            self.memory.address(*part);
        }
        let base = self.memory.address(Part { offset: 0, bytes: 0 }) as usize;
        // SAFETY: the parts lie in the memory, which outlives the workers (order of fields), and
        // the rule of parts keeps others from them.
        unsafe { self.transfers.push(id, Work::Transfer { direction, at, base, parts }) };
    }

    fn flush(&mut self, id: IoId) {
        // SAFETY: a flush names no memory.
        unsafe { self.transfers.push(id, Work::Flush) };
    }

    fn help(&mut self, id: IoId, work: Work) {
        // SAFETY: these calls name no memory of the caller.
        unsafe { self.desk.helper.push(id, work) };
    }

    fn collect(&mut self) {
        for done in self.desk.mailbox.take() {
            self.desk.done.push_back(Completion { id: done.id, result: done.result });
        }
    }
}
