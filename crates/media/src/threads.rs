//! The medium on plain calls in a few threads, for systems that give no io_uring.
//!
//! The kernel lets no killed thread leave a read or write of a local file or device half done and
//! under way: the thread ends after the call has, or before it began. So once the lock of a dead
//! process is free, nothing of it can land any more; no ring is to be fenced.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bowline_arena::{Memory, Part};
use bowline_store::{Completion, Io, IoId, Media, MediumError};

use crate::target::{Direction, Extent, Target};
use crate::work::{Mailbox, Work, Workers};

/// A file or block device by `preadv` and `pwritev`.
pub struct ThreadMedia(Rc<RefCell<State>>);

/// The medium's end of the event loop: says when to ask the medium for completions.
#[derive(Clone)]
pub struct ThreadEvents(Rc<RefCell<State>>);

struct State {
    // First, so that its calls have ended before the memory can go.
    transfers: Workers,
    helper: Workers,
    memory: Rc<Memory>,
    target: Arc<Target>,
    extent: Extent,
    mailbox: Arc<Mailbox>,
    done: VecDeque<Completion>,
    outstanding: usize,
}

impl ThreadMedia {
    pub(crate) fn new(
        target: Target,
        memory: Rc<Memory>,
        threads: usize,
        spin: Duration,
    ) -> std::io::Result<ThreadMedia> {
        let target = Arc::new(target);
        let mailbox = Mailbox::new()?;
        let state = State {
            transfers: Workers::start("bowline-io", threads.max(2), spin, &target, &mailbox)?,
            helper: Workers::start("bowline-space", 1, Duration::ZERO, &target, &mailbox)?,
            memory,
            extent: Extent::new(&target)?,
            target,
            mailbox,
            done: VecDeque::new(),
            outstanding: 0,
        };
        Ok(ThreadMedia(Rc::new(RefCell::new(state))))
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
        self.0.borrow().mailbox.wake().as_raw_fd()
    }

    /// The same as a descriptor of the caller's own.
    ///
    /// # Errors
    /// If the system has none left.
    pub fn wake_clone(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        self.0.borrow().mailbox.wake().try_clone_to_owned()
    }
}

impl Media for ThreadMedia {
    fn bytes_total(&self) -> u64 {
        let state = self.0.borrow();
        state.extent.now(&state.target)
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let mut state = self.0.borrow_mut();
        state.outstanding += 1;
        match io {
            Io::Read { at, into } => state.transfer(id, Direction::Read, at, vec![into]),
            Io::Write { at, from } => state.transfer(id, Direction::Write, at, from),
            // SAFETY: these calls name no memory of the caller.
            Io::Flush => unsafe { state.transfers.push(id, Work::Flush) },
            // SAFETY: as above.
            Io::Discard { at, bytes } => unsafe {
                state.helper.push(id, Work::Discard { at, bytes });
            },
            // SAFETY: as above.
            Io::Allocate { at, bytes } => unsafe {
                state.helper.push(id, Work::Allocate { at, bytes });
            },
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        let mut state = self.0.borrow_mut();
        state.collect();
        let completion = state.done.pop_front()?;
        state.outstanding -= 1;
        Some(completion)
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        let mut state = self.0.borrow_mut();
        assert!(state.outstanding > 0, "a wait for nothing");
        state.collect();
        if state.done.is_empty() {
            state.mailbox.wait();
        }
        Ok(())
    }
}

impl State {
    fn transfer(&mut self, id: IoId, direction: Direction, at: u64, parts: Vec<Part>) {
        let bytes = parts.iter().map(|part| u64::from(part.bytes)).sum();
        if !self.extent.holds(&self.target, at, bytes) {
            let call = direction.call(bytes, at);
            let result = Err(MediumError::System { call, code: libc::EINVAL });
            self.done.push_back(Completion { id, result });
            return;
        }
        for part in &parts {
            // Panics here, and not in another thread, if the part is none of this memory.
            self.memory.address(*part);
        }
        let base = self.memory.address(Part { offset: 0, bytes: 0 }) as usize;
        // SAFETY: the parts lie in the memory, which outlives the workers (order of fields), and
        // the rule of parts keeps others from them.
        unsafe { self.transfers.push(id, Work::Transfer { direction, at, base, parts }) };
    }

    fn collect(&mut self) {
        for done in self.mailbox.take() {
            self.done.push_back(Completion { id: done.id, result: done.result });
        }
    }
}
