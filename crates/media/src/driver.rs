//! What the two ways to drive a file or device have in common: requests are taken apart by kind,
//! what is slow goes to a thread, and results wait in one queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bowline_arena::{Part, Threads};
use bowline_store::{Completion, Io, IoId, MediumError};

use crate::target::{Direction, Extent, Target};
use crate::work::{Mailbox, Work, Workers};

/// The state of either driver.
pub(crate) struct Desk {
    /// For discards and allocations, which can take long.
    pub helper: Workers,
    pub target: Arc<Target>,
    pub extent: Extent,
    pub mailbox: Arc<Mailbox>,
    pub done: VecDeque<Completion>,
    /// Submitted and not given back by `complete`.
    pub outstanding: usize,
}

impl Desk {
    pub(crate) fn new(target: Target, threads: &Threads) -> std::io::Result<Desk> {
        let (target, mailbox) = (Arc::new(target), Mailbox::new()?);
        Ok(Desk {
            helper: Workers::start(
                "bowline-space",
                1,
                Duration::ZERO,
                (&target, &mailbox),
                threads,
            )?,
            extent: Extent::new(&target)?,
            target,
            mailbox,
            done: VecDeque::new(),
            outstanding: 0,
        })
    }
}

/// A driver: how the kinds of work are done.
pub(crate) trait Driver {
    fn desk(&mut self) -> &mut Desk;

    /// Starts to move bytes of a range that lies on the medium.
    fn transfer(&mut self, id: IoId, direction: Direction, at: u64, parts: Vec<Part>);

    /// Starts a flush.
    fn flush(&mut self, id: IoId);

    /// Hands a job that names no memory to the helper.
    fn help(&mut self, id: IoId, work: Work);

    /// Takes what threads have finished.
    fn collect(&mut self);

    fn submit(&mut self, id: IoId, io: Io) {
        self.desk().outstanding += 1;
        match io {
            Io::Read { at, into } => self.check_and_transfer(id, Direction::Read, at, vec![into]),
            Io::Write { at, from } => self.check_and_transfer(id, Direction::Write, at, from),
            Io::Flush => self.flush(id),
            Io::Discard { at, bytes } => self.help(id, Work::Discard { at, bytes }),
            Io::Allocate { at, bytes, zeroed } => {
                self.help(id, Work::Allocate { at, bytes, zeroed });
            }
        }
    }

    fn check_and_transfer(&mut self, id: IoId, direction: Direction, at: u64, parts: Vec<Part>) {
        let bytes = parts.iter().map(|part| u64::from(part.bytes)).sum();
        let desk = self.desk();
        if desk.extent.holds(&desk.target, at, bytes) {
            return self.transfer(id, direction, at, parts);
        }
        let call = direction.call(bytes, at);
        let result = Err(MediumError::System { call, code: libc::EINVAL });
        desk.done.push_back(Completion { id, result });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.collect();
        let desk = self.desk();
        let completion = desk.done.pop_front()?;
        desk.outstanding -= 1;
        Some(completion)
    }
}
