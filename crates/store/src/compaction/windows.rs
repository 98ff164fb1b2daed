//! What compaction has read of the slot it empties, and reads ahead.
//!
//! Invariants:
//! - A window holds what the slot held when it was read. A slot that is being emptied is not
//!   written to, and with the next victim all windows are forgotten.
//! - A window that is being read is not used again before the read has come back.

use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Part, Span};

use crate::SlotId;

/// Windows at most.
pub(crate) const WINDOWS_MAX: u32 = 4;

/// Blocks read at a time.
pub(crate) const WINDOW_BLOCKS: u32 = 128;

/// The same beside clients that wait for flushes: a flush waits for what the medium was given
/// before it.
const WINDOWS_BESIDE_FLUSHES: usize = 2;
const WINDOW_BLOCKS_BESIDE_FLUSHES: u32 = 32;

/// How much may be read at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As much as there is room for.
    Full,
    /// Little, beside clients that wait for flushes.
    BesideFlushes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Reading,
    /// Being read for a victim that was given up.
    Stale,
    Holds,
    Failed,
}

struct Window {
    span: Span,
    state: State,
    block: u32,
    blocks: u32,
}

impl Window {
    fn covers(&self, block: u32) -> bool {
        let is_of_use = matches!(self.state, State::Reading | State::Holds | State::Failed);
        is_of_use && (self.block..self.block + self.blocks).contains(&block)
    }
}

/// A read to be submitted.
pub(super) struct WindowRead {
    pub window: u32,
    pub block: u32,
    pub into: Part,
}

/// What is known of a block of the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It has to be read, or is being read.
    NotYet,
    /// The window holds it at this byte.
    At(usize, usize),
    /// It could not be read, and then not again.
    Unreadable,
}

/// The windows.
pub(super) struct Windows {
    memory: Rc<Memory>,
    slot: Option<SlotId>,
    windows: Vec<Window>,
    /// The block that is read once more, because of an error or because it is not what was written.
    read_again: Option<u32>,
    /// Blocks below this one are read one by one: a run of them could not be read, and one sector
    /// must not keep its neighbours from being moved.
    one_by_one: u32,
}

impl Windows {
    pub(super) fn new(memory: Rc<Memory>, spans: Vec<Span>) -> Windows {
        let windows = spans
            .into_iter()
            .map(|span| Window { span, state: State::Empty, block: 0, blocks: 0 })
            .collect();
        Windows { memory, slot: None, windows, read_again: None, one_by_one: 0 }
    }

    /// Forgets everything: the next reads are of this slot.
    pub(super) fn begin(&mut self, slot: SlotId) {
        self.slot = Some(slot);
        (self.read_again, self.one_by_one) = (None, 0);
        for window in &mut self.windows {
            window.state = match window.state {
                State::Reading | State::Stale => State::Stale,
                _ => State::Empty,
            };
        }
    }

    /// What is known of `blocks` blocks that lie in one window.
    pub(super) fn known(&self, block: u32, blocks: u32) -> Known {
        let Some(at) = self.windows.iter().position(|window| window.covers(block)) else {
            return Known::NotYet;
        };
        let window = &self.windows[at];
        match window.state {
            State::Holds if block + blocks <= window.block + window.blocks => {
                Known::At(at, ((block - window.block) * PAGE_BYTES) as usize)
            }
            State::Failed if window.blocks == 1 && self.read_again == Some(block) => {
                Known::Unreadable
            }
            _ => Known::NotYet,
        }
    }

    /// Whether a block could not be read with those around it.
    pub(super) fn has_failed(&self, block: u32) -> bool {
        self.windows.iter().any(|window| window.state == State::Failed && window.covers(block))
    }

    /// The block is not what was written: it is to be read once more. False if it was already.
    pub(super) fn read_again(&mut self, block: u32) -> bool {
        if self.read_again == Some(block) {
            return false;
        }
        self.read_again = Some(block);
        self.one_by_one = self.one_by_one.max(block + 1);
        for window in &mut self.windows {
            if window.state == State::Holds && window.covers(block) {
                window.state = State::Empty;
            }
        }
        true
    }

    /// The bytes a window holds from a byte on.
    pub(super) fn bytes(&self, window: usize, at: usize, blocks: u32) -> &[u8] {
        let bytes = self.memory.slice(&self.windows[window].span);
        &bytes[at..at + (blocks * PAGE_BYTES) as usize]
    }

    /// The next read to submit so that `blocks` blocks from `block` on, and what follows up to
    /// `end`, is there in time. Windows before `block` are done with.
    pub(super) fn next_read(
        &mut self,
        block: u32,
        blocks: u32,
        end: u32,
        pace: Pace,
    ) -> Option<WindowRead> {
        for window in &mut self.windows {
            let is_behind = window.block + window.blocks <= block;
            // What is asked for has to lie in one window.
            let is_cut = window.covers(block) && block + blocks > window.block + window.blocks;
            let is_done = match window.state {
                State::Holds => is_behind || is_cut,
                State::Failed => is_behind,
                _ => false,
            };
            if is_done {
                window.state = State::Empty;
            }
        }
        let (windows_max, blocks_max) = match pace {
            Pace::Full => (self.windows.len(), WINDOW_BLOCKS),
            Pace::BesideFlushes => (WINDOWS_BESIDE_FLUSHES, WINDOW_BLOCKS_BESIDE_FLUSHES),
        };
        let reading = self.windows.iter().filter(|window| window.state == State::Reading).count();
        if reading >= windows_max {
            return None;
        }
        let mut next = block;
        while next < end {
            match self.windows.iter_mut().find(|window| window.covers(next)) {
                Some(window) if window.state == State::Failed => {
                    let is_single = window.blocks == 1;
                    if next > block || (is_single && self.read_again == Some(block)) {
                        return None;
                    }
                    window.state = State::Empty;
                    if is_single {
                        self.read_again = Some(block);
                    } else {
                        self.one_by_one = window.block + window.blocks;
                    }
                }
                Some(window) => {
                    next = window.block + window.blocks;
                    continue;
                }
                None => {}
            }
            let run = blocks_max.max(blocks).min(end - next);
            let count = if next < self.one_by_one { blocks.min(run) } else { run };
            return self.read(next, count, next == block);
        }
        None
    }

    /// Reads into an empty window; what is asked for takes the place of what was read ahead.
    fn read(&mut self, block: u32, blocks: u32, is_urgent: bool) -> Option<WindowRead> {
        let in_state = |state| self.windows.iter().position(|window| window.state == state);
        let ahead = || in_state(State::Holds).or_else(|| in_state(State::Failed));
        let at = in_state(State::Empty).or_else(|| if is_urgent { ahead() } else { None })?;
        let window = &mut self.windows[at];
        (window.state, window.block, window.blocks) = (State::Reading, block, blocks);
        let into = window.span.part().sub(0, blocks * PAGE_BYTES);
        Some(WindowRead { window: at as u32, block, into })
    }

    /// A read has come back.
    pub(super) fn done(&mut self, window: u32, is_well: bool) {
        let Some(window) = self.windows.get_mut(window as usize) else { return };
        window.state = match window.state {
            State::Reading if is_well => State::Holds,
            State::Reading => State::Failed,
            _ => State::Empty,
        };
    }
}

#[cfg(test)]
mod tests {
    use bowline_arena::Pages;

    use super::*;

    #[test]
    fn little_is_read_beside_flushes() {
        let memory = Rc::new(Memory::private(2 << 20));
        let mut pages = Pages::whole(memory.clone());
        let spans = (0..4).map(|_| pages.take(WINDOW_BLOCKS).expect("a window")).collect();
        let mut windows = Windows::new(memory, spans);
        windows.begin(SlotId(1));
        let mut read = |pace| {
            windows
                .next_read(1, 1, 2048, pace)
                .map(|read| (read.block, read.into.bytes / PAGE_BYTES))
        };
        assert_eq!(read(Pace::BesideFlushes), Some((1, 32)));
        assert_eq!(read(Pace::BesideFlushes), Some((33, 32)));
        assert_eq!(read(Pace::BesideFlushes), None, "until one has come back");
        assert_eq!(read(Pace::Full), Some((65, 128)));
        assert_eq!(read(Pace::Full), Some((193, 128)));
        assert_eq!(read(Pace::Full), None, "all are in use");
    }
}
