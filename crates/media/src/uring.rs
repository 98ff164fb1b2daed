//! The medium on io_uring, sharing the data thread's ring.
//!
//! Reads and writes are pushed to the ring and start with its next submission, so that whoever
//! runs the ring can let replies leave first. Flushes run where [`FlushPolicy`] says; discards and
//! allocations on a thread of their own, because they can take long. Results of threads arrive
//! through an event descriptor that the ring polls, so one wait covers everything.
//!
//! What the ring gives back is passed on a few at a time, round by round of the event loop: whoever
//! verifies what was read can send it, and ask for more, before he is given the rest.
//!
//! After the death of the process, reads and writes may still land until the ring's fence has been
//! passed; calls of threads have ended when the process's lock is free.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bowline_arena::{Completed, Operation, Part, Ring, Threads, UserData, fail_point};
use bowline_store::{Completion, Io, IoId, Media, MediumError};

use crate::driver::{Desk, Driver};
use crate::flush::{FlushPlace, FlushPolicy};
use crate::progress::Progress;
use crate::target::{Direction, Target, VECTORS_MAX};
use crate::work::{Work, Workers};

/// The slot of the poll for the threads' results.
const WAKE_SLOT: u32 = (1 << 24) - 1;

/// Most operations that are passed on in one round, and bytes of them after which the rest waits
/// for the next.
const PASSED_MAX: usize = 8;
const PASSED_BYTES_MAX: u64 = 256 << 10;

/// A file or block device by io_uring.
pub struct UringMedia(pub(crate) Rc<RefCell<State>>);

/// The medium's end of the event loop: takes the ring's completions of its class.
#[derive(Clone)]
pub struct UringEvents(Rc<RefCell<State>>);

/// One read or write in flight.
struct Transfer {
    id: IoId,
    direction: Direction,
    progress: Progress,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    transfer: Option<Transfer>,
}

pub(crate) struct State {
    desk: Desk,
    ring: Rc<RefCell<Ring>>,
    class: u8,
    spin: Duration,
    slots: Vec<Slot>,
    free: Vec<u32>,
    reads: usize,
    /// What the ring has given back and nobody was told of, and what has been passed on in this
    /// round: operations, and their bytes.
    returned: VecDeque<Completed>,
    passed: (usize, u64),
    policy: FlushPolicy,
    flusher: Workers,
    /// Reads pushed since the last submission made for them.
    reads_pushed: bool,
    /// Jobs that threads have.
    jobs: usize,
    polling: bool,
}

impl UringMedia {
    pub(crate) fn new(
        target: Target,
        ring: Rc<RefCell<Ring>>,
        class: u8,
        spin: Duration,
        place: FlushPlace,
        threads: &Threads,
    ) -> std::io::Result<UringMedia> {
        let desk = Desk::new(target, threads)?;
        let ends = (&desk.target, &desk.mailbox);
        let flusher = Workers::start("bowline-flush", 1, spin, ends, threads)?;
        let state = State {
            desk,
            ring,
            class,
            spin,
            slots: Vec::new(),
            free: Vec::new(),
            reads: 0,
            returned: VecDeque::new(),
            passed: (0, 0),
            reads_pushed: false,
            policy: FlushPolicy::new(place),
            flusher,
            jobs: 0,
            polling: false,
        };
        Ok(UringMedia(Rc::new(RefCell::new(state))))
    }

    /// The event loop's end.
    #[must_use]
    pub fn events(&self) -> UringEvents {
        UringEvents(Rc::clone(&self.0))
    }
}

impl UringEvents {
    /// Takes a completion of the medium's class that the ring has given. What it completed is
    /// given by the medium's `complete`, in this round or in a later one.
    pub fn on_completion(&self, completed: Completed) {
        self.0.borrow_mut().returned.push_back(completed);
    }

    /// The event loop begins another round: it is told of a few operations more. One in which it is
    /// told of none has left none.
    pub fn begin_round(&self) {
        self.0.borrow_mut().passed = (0, 0);
    }

    /// Hands reads that were pushed to the kernel now, before something that takes time of its own
    /// is pushed: the kernel starts the reads of a submission when it has carried out all of it.
    pub fn start_reads(&self) {
        self.0.borrow_mut().start_reads();
    }
}

impl Media for UringMedia {
    fn bytes_total(&self) -> u64 {
        let desk = &self.0.borrow().desk;
        desk.extent.now(&desk.target)
    }

    fn submit(&mut self, id: IoId, io: Io) {
        Driver::submit(&mut *self.0.borrow_mut(), id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        let mut state = self.0.borrow_mut();
        let (operations, bytes) = state.passed;
        if operations < PASSED_MAX && bytes < PASSED_BYTES_MAX {
            state.pass_on();
        }
        Driver::complete(&mut *state)
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        let mut state = self.0.borrow_mut();
        assert!(state.desk.outstanding > 0, "a wait for nothing");
        loop {
            state.collect();
            state.passed = (0, 0);
            state.pass_on();
            if !state.desk.done.is_empty() {
                return Ok(());
            }
            // The ring may keep what came back to sockets: that must not end the wait.
            let waited = state.ring.borrow_mut().wait_for_more(None, state.spin);
            waited.map_err(|error| ring_error(&error))?;
            let class = state.class;
            loop {
                let Some(completed) = state.ring.borrow_mut().completion_of(class) else { break };
                state.returned.push_back(completed);
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // The kernel must have looked up the descriptor's number before it is closed and used
        // for another file. If it cannot, nothing was handed over.
        let _ = self.ring.borrow_mut().submit();
    }
}

impl Driver for State {
    fn desk(&mut self) -> &mut Desk {
        &mut self.desk
    }

    fn transfer(&mut self, id: IoId, direction: Direction, at: u64, parts: Vec<Part>) {
        self.reads += usize::from(direction == Direction::Read);
        self.reads_pushed |= direction == Direction::Read;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        assert!(slot < WAKE_SLOT, "too many transfers");
        let progress = Progress::new(direction, at, parts);
        self.slots[slot as usize].transfer = Some(Transfer { id, direction, progress });
        self.push(slot);
    }

    fn flush(&mut self, id: IoId) {
        if !self.policy.on_data_thread(self.reads) {
            // SAFETY: a flush names no memory.
            unsafe { self.flusher.push(id, Work::Flush) };
            self.jobs += 1;
            self.poll_for_results();
            return;
        }
        // What was pushed before shall not wait for the flush.
        let submitted = self.ring.borrow_mut().submit();
        let start = Instant::now();
        let result =
            submitted.map_err(|error| ring_error(&error)).and_then(|()| self.desk.target.flush());
        self.policy.record(start.elapsed().as_micros() as u64);
        self.desk.done.push_back(Completion { id, result });
    }

    fn help(&mut self, id: IoId, work: Work) {
        // SAFETY: these calls name no memory of the caller.
        unsafe { self.desk.helper.push(id, work) };
        self.jobs += 1;
        self.poll_for_results();
    }

    fn collect(&mut self) {
        if self.jobs == 0 {
            return;
        }
        for done in self.desk.mailbox.take() {
            self.jobs -= 1;
            if let Some(micros) = done.flush_micros {
                self.policy.record(micros);
            }
            self.desk.done.push_back(Completion { id: done.id, result: done.result });
        }
    }
}

impl State {
    /// Pushes what is left of a slot's transfer.
    fn push(&mut self, slot: u32) {
        let Slot { generation, transfer } = &mut self.slots[slot as usize];
        let Some(transfer) = transfer else { return };
        let descriptor = self.desk.target.descriptor();
        let (at, parts) = transfer.progress.rest();
        let some = || parts[..parts.len().min(VECTORS_MAX)].to_vec();
        let operation = match (transfer.direction, parts) {
            (Direction::Read, [part]) => Operation::Read { descriptor, at, into: *part },
            (Direction::Write, [part]) => Operation::Write { descriptor, at, from: *part },
            (Direction::Read, _) => Operation::ReadVectored { descriptor, at, into: some() },
            (Direction::Write, _) => Operation::WriteVectored { descriptor, at, from: some() },
        };
        let user_data = UserData::new(self.class, slot, *generation);
        self.ring.borrow_mut().push(user_data, operation);
    }

    /// Takes of what was given back until there is something to be told.
    fn pass_on(&mut self) {
        while self.desk.done.is_empty()
            && let Some(completed) = self.returned.pop_front()
        {
            self.passed.0 += 1;
            self.passed.1 += completed.outcome().map_or(0, u64::from);
            self.on_completion(completed);
        }
    }

    fn on_completion(&mut self, completed: Completed) {
        let slot = completed.user_data.slot();
        if slot == WAKE_SLOT {
            self.polling = false;
            self.collect();
            self.poll_for_results();
            return;
        }
        let place = &mut self.slots[slot as usize];
        assert_eq!(place.generation, completed.user_data.generation(), "an old completion");
        let Some(transfer) = &mut place.transfer else { panic!("a completion of nothing") };
        let moved = completed.outcome().map(u64::from);
        fail_point!("media.transfer.completed");
        let Some(result) = transfer.progress.advance(moved) else { return self.push(slot) };
        let id = transfer.id;
        self.reads -= usize::from(transfer.direction == Direction::Read);
        place.transfer = None;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        self.desk.done.push_back(Completion { id, result });
    }

    fn start_reads(&mut self) {
        if std::mem::take(&mut self.reads_pushed) {
            // What cannot be handed over now is handed over by whoever waits, who says why not.
            let _ = self.ring.borrow_mut().submit();
        }
    }

    /// Lets the ring complete when a thread has finished something.
    fn poll_for_results(&mut self) {
        if self.polling || self.jobs == 0 {
            return;
        }
        let descriptor = self.desk.mailbox.wake().as_raw_fd();
        let poll = Operation::Poll { descriptor, events: libc::POLLIN as u16 };
        self.ring.borrow_mut().push(UserData::new(self.class, WAKE_SLOT, 0), poll);
        self.polling = true;
    }
}

fn ring_error(error: &std::io::Error) -> MediumError {
    let code = error.raw_os_error().unwrap_or(libc::EIO);
    MediumError::System { call: "io_uring_enter".to_owned(), code }
}
