//! Threads that make blocking calls for the data thread, and how their results come back.
//!
//! Jobs of one [`Workers`] start in order; with one thread they also end in order. A worker spins
//! a little before it sleeps, because waking a thread costs up to 250 us in a small virtual
//! machine.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bowline_arena::{Part, Threads};
use bowline_store::{IoId, MediumError};

use crate::progress::Progress;
use crate::target::{Direction, Target};

/// A blocking call.
#[derive(Debug)]
pub(crate) enum Work {
    Transfer { direction: Direction, at: u64, base: usize, parts: Vec<Part> },
    Flush,
    Discard { at: u64, bytes: u64 },
    Allocate { at: u64, bytes: u64, zeroed: bool },
}

/// A call that has returned.
#[derive(Debug)]
pub(crate) struct Done {
    pub id: IoId,
    pub result: Result<(), MediumError>,
    /// How long a flush took.
    pub flush_micros: Option<u64>,
}

/// Where results wait for the data thread.
pub(crate) struct Mailbox {
    results: Mutex<Vec<Done>>,
    count: AtomicUsize,
    wake: OwnedFd,
}

impl Mailbox {
    pub(crate) fn new() -> std::io::Result<Arc<Mailbox>> {
        use rustix::event::{EventfdFlags, eventfd};
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Mailbox { results: Mutex::default(), count: AtomicUsize::new(0), wake }))
    }

    /// Readable while results wait.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes all results that wait; quick if there are none.
    pub(crate) fn take(&self) -> Vec<Done> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut results = held(&self.results);
        self.count.store(0, Ordering::Release);
        // Fails only if nothing was there to be read.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        std::mem::take(&mut *results)
    }

    /// Sleeps until results wait.
    pub(crate) fn wait(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        while self.count.load(Ordering::Acquire) == 0 {
            // An interrupted poll is only one look more.
            let _ = poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], None);
        }
    }

    fn put(&self, done: impl IntoIterator<Item = Done>) {
        let mut results = held(&self.results);
        results.extend(done);
        self.count.store(results.len(), Ordering::Release);
        // Can only fail by being full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

struct Queue {
    jobs: Mutex<VecDeque<(IoId, Work)>>,
    count: AtomicUsize,
    stop: AtomicBool,
    arrived: Condvar,
}

/// Some threads with one queue of jobs.
pub(crate) struct Workers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads. One of them spins for `spin` before it sleeps; more would only take
    /// the processor from each other.
    pub(crate) fn start(
        name: &str,
        count: usize,
        spin: Duration,
        (target, mailbox): (&Arc<Target>, &Arc<Mailbox>),
        threads: &Threads,
    ) -> std::io::Result<Workers> {
        let queue = Arc::new(Queue {
            jobs: Mutex::default(),
            count: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            arrived: Condvar::new(),
        });
        let mut workers = Workers { queue, threads: Vec::new() };
        for index in 0..count {
            let spin = if index == 0 { spin } else { Duration::ZERO };
            let queue = Arc::clone(&workers.queue);
            let (target, mailbox) = (Arc::clone(target), Arc::clone(mailbox));
            let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(128 << 10);
            let thread = threads.spawn(builder, move || run(&queue, spin, &target, &mailbox))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Hands a job over.
    ///
    /// # Safety
    /// Until the result has come back or the workers have been dropped, the parts of a transfer,
    /// counted from its base, must name valid memory that nobody else changes, or, when reading,
    /// looks at.
    pub(crate) unsafe fn push(&self, id: IoId, work: Work) {
        let mut jobs = held(&self.queue.jobs);
        jobs.push_back((id, work));
        self.queue.count.store(jobs.len(), Ordering::Release);
        drop(jobs);
        self.queue.arrived.notify_one();
    }
}

impl Drop for Workers {
    /// Waits for the calls under way; jobs not begun are forgotten.
    fn drop(&mut self) {
        held(&self.queue.jobs).clear();
        self.queue.stop.store(true, Ordering::Release);
        self.queue.arrived.notify_all();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A mutex's content. Nothing here panics while it holds one.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(queue: &Queue, spin: Duration, target: &Target, mailbox: &Mailbox) {
    while let Some((id, work)) = next(queue, spin) {
        if !matches!(work, Work::Flush) {
            let result = perform(target, work);
            mailbox.put([Done { id, result, flush_micros: None }]);
            continue;
        }
        // One flush serves all that wait: what they cover had completed before they came.
        let ids = std::iter::once(id).chain(other_flushes(queue)).collect::<Vec<_>>();
        let start = Instant::now();
        let result = target.flush();
        let flush_micros = Some(start.elapsed().as_micros() as u64);
        let done = |id| Done { id, result: result.clone(), flush_micros };
        mailbox.put(ids.into_iter().map(done));
    }
}

fn next(queue: &Queue, spin: Duration) -> Option<(IoId, Work)> {
    let start = Instant::now();
    while queue.count.load(Ordering::Acquire) == 0
        && !queue.stop.load(Ordering::Acquire)
        && start.elapsed() < spin
    {
        std::hint::spin_loop();
    }
    let mut jobs = held(&queue.jobs);
    loop {
        if queue.stop.load(Ordering::Acquire) {
            return None;
        }
        if let Some(job) = jobs.pop_front() {
            queue.count.store(jobs.len(), Ordering::Release);
            return Some(job);
        }
        jobs = queue.arrived.wait(jobs).unwrap_or_else(PoisonError::into_inner);
    }
}

fn other_flushes(queue: &Queue) -> Vec<IoId> {
    let mut jobs = held(&queue.jobs);
    let flushes = jobs.iter().filter(|(_, work)| matches!(work, Work::Flush)).map(|(id, _)| *id);
    let flushes = flushes.collect();
    jobs.retain(|(_, work)| !matches!(work, Work::Flush));
    queue.count.store(jobs.len(), Ordering::Release);
    flushes
}

fn perform(target: &Target, work: Work) -> Result<(), MediumError> {
    match work {
        Work::Flush => target.flush(),
        Work::Discard { at, bytes } => target.discard(at, bytes),
        Work::Allocate { at, bytes, zeroed } => target.allocate(at, bytes, zeroed),
        Work::Transfer { direction, at, base, parts } => {
            let mut progress = Progress::new(direction, at, parts);
            loop {
                let (at, parts) = progress.rest();
                // SAFETY: who pushed the job vouches for its memory.
                let moved = unsafe { target.transfer(direction, at, base, parts) };
                let result = moved.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
                if let Some(result) = progress.advance(result) {
                    return result;
                }
            }
        }
    }
}
