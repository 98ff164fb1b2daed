//! A medium in memory that does one thing at a time, when it is told to, and fails when it is told
//! to.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use bowline_arena::Memory;
use bowline_store::{Completion, Io, IoId, Media, MediumError};

const SECTOR: usize = 512;

/// A write that no flush has made durable.
#[derive(Clone)]
struct Pending {
    at: usize,
    bytes: Vec<u8>,
    /// A flush that failed has dropped it: a later one says nothing about it.
    is_doomed: bool,
}

/// What the medium holds, and what it has been asked.
#[derive(Clone, Default)]
pub struct Platter {
    pub bytes: Vec<u8>,
    stable: Vec<u8>,
    pending: Vec<Pending>,
    queue: VecDeque<(IoId, Io)>,
    done: VecDeque<(IoId, bool)>,
    /// Writes and flushes carried out.
    pub changes: u64,
    /// Those that fail.
    pub fails: BTreeSet<u64>,
    /// How many more writes of data to the log fail, and flushes.
    pub writes_failing: u32,
    pub flushes_failing: u32,
}

/// How the host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Everything,
    Nothing,
    Odd,
    Even,
    /// Of each block that was written, only the first sectors.
    Torn,
}

impl Loss {
    pub const ALL: [Loss; 5] = [Loss::Everything, Loss::Nothing, Loss::Odd, Loss::Even, Loss::Torn];
}

impl Platter {
    pub fn new(bytes: Vec<u8>) -> Platter {
        Platter { stable: bytes.clone(), bytes, ..Platter::default() }
    }

    /// What the next thing to be done is, if there is one: a flush?
    pub fn next_is_flush(&self) -> Option<bool> {
        self.queue.front().map(|(_, io)| matches!(io, Io::Flush))
    }

    /// Does the oldest thing it was asked.
    pub fn carry_out(&mut self, memory: &Memory) -> bool {
        let Some((id, io)) = self.queue.pop_front() else { return false };
        let is_change = matches!(io, Io::Write { .. } | Io::Flush);
        let mut is_failing = is_change && self.fails.contains(&self.changes);
        self.changes += u64::from(is_change);
        let (left, is_meant) = match &io {
            Io::Write { from, .. } => {
                // A test's data is one byte over and over, and it comes last.
                let (mut last, data) = (Vec::new(), from.last().copied());
                data.into_iter().for_each(|part| memory.fetch(part, &mut last));
                let is_data = last.iter().rev().take(4096).all(|byte| Some(byte) == last.last());
                (&mut self.writes_failing, is_data)
            }
            io => (&mut self.flushes_failing, matches!(io, Io::Flush)),
        };
        if is_meant && *left > 0 {
            (*left, is_failing) = (*left - 1, true);
        }
        self.land(memory, &io, is_failing);
        self.done.push_back((id, is_failing));
        true
    }

    fn land(&mut self, memory: &Memory, io: &Io, is_failing: bool) {
        match io {
            Io::Read { at, into } => {
                let at = *at as usize;
                memory.land(*into, &self.bytes[at..at + into.bytes as usize]);
            }
            Io::Write { at, from } => {
                let mut bytes = Vec::new();
                from.iter().for_each(|part| memory.fetch(*part, &mut bytes));
                if is_failing {
                    bytes.truncate(bytes.len() / 2 / SECTOR * SECTOR);
                }
                let at = *at as usize;
                self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
                self.pending.push(Pending { at, bytes, is_doomed: false });
            }
            Io::Flush if is_failing => {
                self.pending.iter_mut().for_each(|write| write.is_doomed = true);
            }
            Io::Flush => self.flush(),
            _ => {}
        }
    }

    fn flush(&mut self) {
        let writes = std::mem::take(&mut self.pending);
        for write in writes {
            let end = write.at + write.bytes.len();
            if write.is_doomed {
                self.pending.push(write);
                continue;
            }
            self.stable[write.at..end].copy_from_slice(&write.bytes);
            self.pending.retain(|old| old.at >= end || old.at + old.bytes.len() <= write.at);
        }
    }

    /// What is there when the host comes up again.
    pub fn after(&self, loss: Loss) -> Vec<u8> {
        let mut bytes = self.stable.clone();
        for (number, write) in self.pending.iter().enumerate() {
            let is_kept = match loss {
                Loss::Everything => false,
                Loss::Nothing | Loss::Torn => true,
                Loss::Odd => number % 2 == 1,
                Loss::Even => number % 2 == 0,
            };
            for (block, chunk) in write.bytes.chunks(4096).enumerate().filter(|_| is_kept) {
                let length = if loss == Loss::Torn { chunk.len().min(SECTOR) } else { chunk.len() };
                let at = write.at + block * 4096;
                bytes[at..at + length].copy_from_slice(&chunk[..length]);
            }
        }
        bytes
    }
}

/// The store's end of it.
pub struct Slow {
    pub platter: Rc<RefCell<Platter>>,
    pub memory: Rc<Memory>,
}

impl Media for Slow {
    fn bytes_total(&self) -> u64 {
        self.platter.borrow().bytes.len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        self.platter.borrow_mut().queue.push_back((id, io));
    }

    fn complete(&mut self) -> Option<Completion> {
        let (id, is_failing) = self.platter.borrow_mut().done.pop_front()?;
        let error = MediumError::System { call: "scripted".into(), code: 5 };
        Some(Completion { id, result: if is_failing { Err(error) } else { Ok(()) } })
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        let mut platter = self.platter.borrow_mut();
        if !platter.done.is_empty() || platter.carry_out(&self.memory) {
            return Ok(());
        }
        Err(MediumError::Died)
    }
}
