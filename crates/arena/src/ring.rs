//! An io_uring ring whose queues lie in shared memory and outlive the process.
//!
//! Invariants:
//! - Each operation yields exactly one completion, and no more operations are with the kernel or
//!   waiting to be reaped than the completion queue holds; so it never overflows, and for a dead
//!   process `cq.tail == sq.head` means that nothing is in flight any more.
//! - What an operation names by [`Part`](crate::Part) lies in the one memory the ring was made
//!   for, which the ring keeps mapped. The rule of parts holds: the caller keeps the spans until
//!   the completion.
//! - What the kernel reads beside that (vectors, message headers, times) is stored per submission
//!   entry and kept until the entry's place is used again. That is long enough, because the kernel
//!   copies it while it consumes the entry (`SUBMIT_STABLE`, required at set-up). What it writes
//!   back into a message header when a receive completes (flags and control length) is never read,
//!   and sending ignores both, so an early reuse of the place is harmless.
//! - Descriptors are named by number: whoever pushes an operation keeps its descriptor open until
//!   it has been submitted. The kernel holds its own reference from then on.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::abi;
use crate::operation::{Operation, Scratch};
use crate::queues::{self, Queues};
use crate::{Memory, OwnerLock};

/// What a completion is recognised by: who submitted it, and which of its operations it was.
///
/// The kernel stores it beside the result, so a successor can read it in a dead process's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserData(pub u64);

impl UserData {
    /// Packs a class (who), a slot of 24 bits and the generation of the slot's use.
    ///
    /// # Panics
    /// If the slot has more than 24 bits.
    #[must_use]
    pub const fn new(class: u8, slot: u32, generation: u32) -> UserData {
        assert!(slot < 1 << 24, "a slot has 24 bits");
        UserData((class as u64) << 56 | (slot as u64) << 32 | generation as u64)
    }

    /// Who submitted.
    #[must_use]
    pub const fn class(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Which slot of the submitter.
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ffff
    }

    /// Which use of the slot.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

/// One operation that has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// What it was pushed with.
    pub user_data: UserData,
    /// What the system call would have returned; a negative error number if it failed.
    pub result: i32,
}

impl Completed {
    /// The result as a count or an error number.
    ///
    /// # Errors
    /// The error number, positive.
    pub fn outcome(self) -> Result<u32, i32> {
        u32::try_from(self.result).map_err(|_| self.result.wrapping_neg())
    }
}

/// Why there is no ring; a server goes on without.
#[derive(Debug, thiserror::Error)]
#[error("no io_uring: {reason}")]
pub struct RingRefused {
    /// The error number of the system call that refused.
    pub code: i32,
    /// The reason, for people.
    pub reason: String,
}

/// How large a ring is.
#[derive(Debug, Clone, Copy)]
pub struct RingOptions {
    /// Submissions that can be handed over by one system call; a power of two.
    pub sq_entries: u32,
    /// Operations that can be in flight; a power of two, not less than `sq_entries`.
    pub cq_entries: u32,
}

impl Default for RingOptions {
    fn default() -> RingOptions {
        RingOptions { sq_entries: 256, cq_entries: 2048 }
    }
}

/// A ring, used by the one thread that made it.
pub struct Ring {
    descriptor: OwnedFd,
    queues: Queues,
    buffers: Rc<Memory>,
    scratch: Box<[Scratch]>,
    /// Number of entries stored, modulo 2^32; those from the kernel's head on are not submitted.
    tail: u32,
    /// Operations placed and not reaped.
    in_flight: u32,
    backlog: VecDeque<(UserData, Operation)>,
    held: VecDeque<Completed>,
    /// Nobody may take over while this process can still submit.
    lock: Option<Rc<OwnerLock>>,
}

impl Ring {
    /// A ring whose queues lie in `file`: empty, fresh, on tmpfs, used for no other ring ever.
    /// Parts of operations name bytes of `buffers`.
    ///
    /// # Errors
    /// [`RingRefused`] if the kernel gives no such ring to this process.
    ///
    /// # Panics
    /// If the options are not powers of two in order.
    pub fn create(
        file: impl AsFd,
        buffers: Rc<Memory>,
        options: RingOptions,
    ) -> Result<Ring, RingRefused> {
        let RingOptions { sq_entries, cq_entries } = options;
        assert!(sq_entries.is_power_of_two() && cq_entries.is_power_of_two(), "powers of two");
        assert!(sq_entries <= cq_entries && cq_entries <= 1 << 15, "entries of a ring");
        let bytes = queues::file_bytes(sq_entries, cq_entries);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .map_err(|error| refused(error.raw_os_error(), "memory for its queues"))?;
        let mut parameters = abi::Parameters { sq_entries, cq_entries, ..Default::default() };
        let mut queues = Queues::fresh(file, &mut parameters)
            .map_err(|error| refused(error.raw_os_error().unwrap_or(0), "a map of its queues"))?;
        parameters.flags = abi::SETUP_NO_MMAP
            | abi::SETUP_CQSIZE
            | abi::SETUP_SUBMIT_ALL
            | abi::SETUP_SINGLE_ISSUER
            | abi::SETUP_DEFER_TASKRUN
            | abi::SETUP_TASKRUN_FLAG;
        // SAFETY: `fresh` has named shared memory that `queues` keeps mapped as long as the ring.
        let descriptor = unsafe { abi::setup(sq_entries, &mut parameters) }
            .map_err(|error| refused(error.raw_os_error().unwrap_or(0), "a ring"))?;
        let needed = abi::FEATURE_SUBMIT_STABLE | abi::FEATURE_EXTENDED_ARGUMENT;
        if parameters.features & needed != needed {
            return Err(refused(libc::EINVAL, "a ring"));
        }
        queues.arm(&parameters);
        let scratch = (0..sq_entries).map(|_| Scratch::new()).collect();
        Ok(Ring {
            descriptor,
            queues,
            buffers,
            scratch,
            tail: 0,
            in_flight: 0,
            backlog: VecDeque::new(),
            held: VecDeque::new(),
            lock: None,
        })
    }

    /// The ring, holding on to its owner's lock.
    pub(crate) fn keeping(mut self, lock: Rc<OwnerLock>) -> Ring {
        self.lock = Some(lock);
        self
    }

    /// A ring in memory without a name, for programs that nobody will adopt: tests, offline tools.
    ///
    /// # Errors
    /// As [`Ring::create`].
    pub fn anonymous(buffers: Rc<Memory>, options: RingOptions) -> Result<Ring, RingRefused> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("bowline-ring", flags)
            .map_err(|error| refused(error.raw_os_error(), "memory for its queues"))?;
        Ring::create(file, buffers, options)
    }

    /// The memory that parts of operations name bytes of.
    pub fn buffers(&self) -> &Rc<Memory> {
        &self.buffers
    }

    /// Operations pushed and not reaped.
    pub fn in_flight(&self) -> usize {
        self.in_flight as usize + self.backlog.len() + self.held.len()
    }

    /// Takes an operation. The kernel sees it with the next [`submit`](Ring::submit),
    /// [`wait`](Ring::wait) or [`poll`](Ring::poll); where the queues have no room for it now, it
    /// follows when they have.
    ///
    /// # Panics
    /// If a part reaches past the end of the memory.
    pub fn push(&mut self, user_data: UserData, operation: Operation) {
        if self.backlog.is_empty() && self.room() {
            self.place(user_data, &operation);
        } else {
            self.backlog.push_back((user_data, operation));
        }
    }

    /// Hands everything pushed to the kernel, as far as there is room; does not wait.
    ///
    /// # Errors
    /// If the kernel refuses for a reason that waiting does not cure.
    pub fn submit(&mut self) -> std::io::Result<()> {
        loop {
            self.refill();
            if self.unsubmitted() == 0 || !self.enter(0, None)? {
                return Ok(());
            }
        }
    }

    /// As [`submit`](Ring::submit), and lets the kernel post what has completed.
    ///
    /// # Errors
    /// As [`submit`](Ring::submit).
    pub fn poll(&mut self) -> std::io::Result<()> {
        self.poll_until(Ring::ready)
    }

    fn poll_until(&mut self, is_enough: fn(&Ring) -> bool) -> std::io::Result<()> {
        self.submit()?;
        if !is_enough(self) && self.queues.sq_flags() & abi::SQ_TASKRUN != 0 {
            self.enter(0, None)?;
        }
        Ok(())
    }

    /// Submits, then waits until a completion can be reaped: first spinning for `spin`, then
    /// asleep. Returns without one after `timeout`, or when a signal came.
    ///
    /// # Errors
    /// As [`submit`](Ring::submit).
    ///
    /// # Panics
    /// If nothing is in flight and there is no timeout: that would be for ever.
    pub fn wait(&mut self, timeout: Option<Duration>, spin: Duration) -> std::io::Result<()> {
        self.wait_until(timeout, spin, Ring::ready)
    }

    /// As [`wait`](Ring::wait), but for something that
    /// [`completion_of`](Ring::completion_of) has not seen: what it keeps for others would end each
    /// wait at once, and the kernel posts nothing to a thread that never enters it.
    ///
    /// # Errors
    /// As [`submit`](Ring::submit).
    ///
    /// # Panics
    /// As [`wait`](Ring::wait).
    pub fn wait_for_more(
        &mut self,
        timeout: Option<Duration>,
        spin: Duration,
    ) -> std::io::Result<()> {
        self.wait_until(timeout, spin, Ring::has_more)
    }

    fn wait_until(
        &mut self,
        timeout: Option<Duration>,
        spin: Duration,
        is_enough: fn(&Ring) -> bool,
    ) -> std::io::Result<()> {
        assert!(timeout.is_some() || self.in_flight() > 0, "a wait for nothing");
        let spin = timeout.map_or(spin, |timeout| timeout.min(spin));
        if is_enough(self) || !spin.is_zero() || timeout == Some(Duration::ZERO) {
            self.poll_until(is_enough)?;
            let is_over = is_enough(self) || timeout == Some(Duration::ZERO);
            if is_over || self.spin(spin, is_enough)? {
                return Ok(());
            }
        }
        self.refill();
        self.enter(1, timeout.map(|timeout| timeout.saturating_sub(spin)))?;
        Ok(())
    }

    /// Looks for completions without sleeping; true if there are some.
    fn spin(&mut self, spin: Duration, is_enough: fn(&Ring) -> bool) -> std::io::Result<bool> {
        let start = Instant::now();
        while start.elapsed() < spin {
            if self.queues.sq_flags() & abi::SQ_TASKRUN != 0 {
                self.enter(0, None)?;
            }
            if is_enough(self) {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    /// The next operation that has come back, if one has.
    pub fn completion(&mut self) -> Option<Completed> {
        if let Some(completed) = self.held.pop_front() {
            return Some(completed);
        }
        self.fresh_completion()
    }

    /// The next operation of one class that has come back. Those of other classes are kept for
    /// [`completion`](Ring::completion).
    pub fn completion_of(&mut self, class: u8) -> Option<Completed> {
        let kept = self.held.iter().position(|completed| completed.user_data.class() == class);
        if let Some(index) = kept {
            return self.held.remove(index);
        }
        while let Some(completed) = self.fresh_completion() {
            if completed.user_data.class() == class {
                return Some(completed);
            }
            self.held.push_back(completed);
        }
        None
    }

    /// Whether a completion can be reaped without a system call.
    pub fn ready(&self) -> bool {
        !self.held.is_empty() || self.has_more()
    }

    /// Whether the kernel has posted something that nobody has looked at.
    fn has_more(&self) -> bool {
        self.queues.cq_tail() != self.queues.cq_head()
    }

    fn fresh_completion(&mut self) -> Option<Completed> {
        let head = self.queues.cq_head();
        if head == self.queues.cq_tail() {
            return None;
        }
        let entry = self.queues.completion(head);
        self.queues.set_cq_head(head.wrapping_add(1));
        assert!(self.in_flight > 0, "a completion of nothing");
        self.in_flight -= 1;
        Some(Completed { user_data: UserData(entry.user_data), result: entry.result })
    }

    fn room(&self) -> bool {
        // One place is left, so that what was reaped last is not written over: a successor may have
        // to look at it.
        let taken = self.in_flight as usize + self.held.len() + 1;
        taken < self.queues.cq_entries() as usize && self.unsubmitted() < self.queues.sq_entries()
    }

    fn unsubmitted(&self) -> u32 {
        self.tail.wrapping_sub(self.queues.sq_head())
    }

    fn refill(&mut self) {
        while !self.backlog.is_empty() && self.room() {
            if let Some((user_data, operation)) = self.backlog.pop_front() {
                self.place(user_data, &operation);
            }
        }
    }

    fn place(&mut self, user_data: UserData, operation: &Operation) {
        let index = (self.tail & (self.queues.sq_entries() - 1)) as usize;
        let mut entry = self.scratch[index].entry(&self.buffers, operation);
        entry.user_data = user_data.0;
        self.queues.set_entry(self.tail, &entry);
        self.tail = self.tail.wrapping_add(1);
        self.in_flight += 1;
    }

    /// Enters the kernel once. False if it took nothing that was to be submitted.
    fn enter(&mut self, complete_min: u32, timeout: Option<Duration>) -> std::io::Result<bool> {
        let submit = self.unsubmitted();
        self.queues.set_sq_tail(self.tail);
        crate::fail_point!("ring.submit");
        let flags = abi::ENTER_GETEVENTS;
        // SAFETY: entries name scratch, which lives as long as the ring, and parts of `buffers`,
        // which the ring keeps mapped; dropping the ring waits for what is in flight.
        let result =
            unsafe { abi::enter(self.descriptor.as_fd(), submit, complete_min, flags, timeout) };
        assert_eq!(self.queues.cq_overflow(), 0, "the completion queue has overflown");
        debug_assert_eq!(self.queues.sq_flags() & abi::SQ_CQ_OVERFLOW, 0, "overflow pending");
        match result {
            Ok(taken) => Ok(taken > 0),
            Err(error) => match error.raw_os_error() {
                // A timeout, a signal, or no memory for requests just now: the entries stay.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl Drop for Ring {
    /// Waits until the kernel is done with the buffers. What does not end within ten seconds (a
    /// hung medium) keeps its memory for ever.
    fn drop(&mut self) {
        self.backlog.clear();
        // What was placed and never submitted is only our own bookkeeping.
        self.in_flight -= self.unsubmitted().min(self.in_flight);
        self.tail = self.queues.sq_head();
        let start = Instant::now();
        while self.in_flight > 0 && start.elapsed() < Duration::from_secs(10) {
            abi::cancel_all(self.descriptor.as_fd());
            if self.enter(1, Some(Duration::from_millis(20))).is_err() {
                break;
            }
            while self.fresh_completion().is_some() {}
        }
        if self.in_flight > 0 {
            std::mem::forget(Rc::clone(&self.buffers));
            std::mem::forget(std::mem::take(&mut self.scratch));
        }
    }
}

/// Explains a refusal to people.
fn refused(code: i32, what: &str) -> RingRefused {
    let switched_off = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .is_ok_and(|text| text.trim() != "0");
    let reason = match code {
        libc::ENOSYS => "this kernel has none, or a sandbox hides it".to_owned(),
        libc::EPERM if switched_off => {
            "it is switched off for this user (sysctl kernel.io_uring_disabled)".to_owned()
        }
        libc::EPERM | libc::EACCES => "a sandbox (seccomp, security module) forbids it".to_owned(),
        libc::EINVAL | libc::EOPNOTSUPP => {
            "this kernel does not take queues in shared memory (Linux 6.10 or newer does)"
                .to_owned()
        }
        libc::ENOMEM => format!(
            "{what} does not fit the limit of locked memory (ulimit -l) or the memory there is"
        ),
        libc::ENOSPC => format!("{what} does not fit the file system of the arena"),
        _ => format!("{what} was refused: {}", std::io::Error::from_raw_os_error(code)),
    };
    RingRefused { code, reason }
}
