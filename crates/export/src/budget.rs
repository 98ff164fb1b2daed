//! Who may hold how many pages, and who is next.
//!
//! There are three lanes, each a bounded number of bytes with a queue of sessions that wait:
//!
//! - `Buffers`: the receive and send rings of sessions that are not idle.
//! - `Small`: payloads and read data of requests up to [`SMALL_BYTES_MAX`].
//! - `Jumbo`: the same of longer requests; the lane holds one of the longest.
//!
//! Why nothing can wait for ever:
//! - A request's memory is taken all at once, so no two requests each hold half of what both need.
//! - Waiting goes one way. Who holds `Small` or `Jumbo` waits for nothing here: a payload waits for
//!   its client's bytes and then for the disk, read data waits for the disk and then for its client
//!   to take it. Who holds `Buffers` may wait for `Small` or `Jumbo`, never the other way round: a
//!   session gets its buffers before its first byte is read. The room for a reply's header is
//!   reserved in the session's own send ring before the request is started, so a reply never waits.
//!   Reads therefore cannot block writes nor writes reads but for a bounded time.
//! - A streamed read holds pieces only while they are read and sent; it never keeps one to wait for
//!   the next.
//! - Each queue is served strictly in order, one request at a time: small requests cannot starve a
//!   long one, since nobody behind it is served before it, and long ones never stand before small
//!   ones, since they queue in another lane.
//! - The disk never waits for exports: they leave it all pages beyond the sum of the lanes, and a
//!   payload it has taken counts no more. The last pages are left to the store: with them it admits
//!   any write whose bytes lie in pages already, so a payload is not copied to be written.
//! - What is left is a client that stops sending or reading. When others wait, such a session is
//!   closed after [`Options::stall_us`](crate::Options::stall_us).

use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Span};
use bowline_store::pages_for_admission;

use crate::SharedPages;
use crate::slab::Key;

/// Longest request that is served from the small lane.
pub(crate) const SMALL_BYTES_MAX: u32 = 1 << 20;

/// Pages that lie side by side at most: a piece of a read is at most so long.
pub(crate) const RUN_PAGES_MAX: u32 = 64;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Buffers,
    Small,
    Jumbo,
}

impl Lane {
    /// The lane for a request of so many bytes.
    pub fn of(bytes: u32) -> Lane {
        if bytes > SMALL_BYTES_MAX { Lane::Jumbo } else { Lane::Small }
    }
}

/// Bytes of pages, and the lane they count in.
#[derive(Debug)]
pub(crate) struct Loan {
    pub span: Span,
    pub lane: Lane,
}

#[derive(Default)]
struct State {
    bytes_max: u64,
    held_bytes: u64,
    waiters: VecDeque<Key>,
}

pub(crate) struct Budget {
    pages: SharedPages,
    memory: Rc<Memory>,
    lanes: [State; 3],
}

impl Budget {
    pub fn new(pages: SharedPages, buffers: u64, small: u64, jumbo: u64) -> Budget {
        let memory = pages.borrow().memory().clone();
        let lane = |bytes_max| State { bytes_max, ..State::default() };
        Budget { pages, memory, lanes: [lane(buffers), lane(small), lane(jumbo)] }
    }

    pub fn memory(&self) -> &Rc<Memory> {
        &self.memory
    }

    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Bytes that are out, in all lanes.
    pub fn held_bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.held_bytes).sum()
    }

    /// Spans that hold `bytes`, or none if the lane or the pages are used up.
    pub fn take(&mut self, lane: Lane, bytes: u32) -> Option<Vec<Span>> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        self.admits(lane, pages)?;
        let spans = self.pages.borrow_mut().take_scattered(pages, RUN_PAGES_MAX)?;
        self.lanes[lane as usize].held_bytes += u64::from(pages) * u64::from(PAGE_BYTES);
        Some(spans)
    }

    /// One span of whole pages side by side.
    pub fn take_run(&mut self, lane: Lane, bytes: u32) -> Option<Span> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        self.admits(lane, pages)?;
        let span = self.pages.borrow_mut().take(pages)?;
        self.lanes[lane as usize].held_bytes += u64::from(pages) * u64::from(PAGE_BYTES);
        Some(span)
    }

    fn admits(&self, lane: Lane, pages: u32) -> Option<()> {
        let state = &self.lanes[lane as usize];
        let bytes = u64::from(pages) * u64::from(PAGE_BYTES);
        let free = self.pages.borrow();
        let leaves_enough = free.free() >= pages + pages_for_admission(free.count());
        (leaves_enough && state.held_bytes + bytes <= state.bytes_max).then_some(())
    }

    /// Pages that a dead process held for a session count as lent again.
    pub fn adopted(&mut self, lane: Lane, bytes: u32) {
        self.lanes[lane as usize].held_bytes += u64::from(bytes);
    }

    /// Gives pages back.
    pub fn give(&mut self, loan: Loan) {
        self.taken(loan.lane, loan.span.bytes());
        self.pages.borrow_mut().give(loan.span);
    }

    /// Pages that were lent belong to the disk now.
    pub fn taken(&mut self, lane: Lane, bytes: u32) {
        let held = &mut self.lanes[lane as usize].held_bytes;
        assert!(*held >= u64::from(bytes), "more comes back than was lent");
        *held -= u64::from(bytes);
    }

    pub fn waiters(&mut self, lane: Lane) -> &mut VecDeque<Key> {
        &mut self.lanes[lane as usize].waiters
    }

    /// Whether anybody waits for memory.
    pub fn is_wanted(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.waiters.is_empty())
    }
}
