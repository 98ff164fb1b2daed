//! What was asked of a medium, and when: the log of the media filter `log`, indexed. The data of
//! writes stays in the file.
//!
//! It is read apart from `bowline-media` on purpose: a mistake there must not be made twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Result;

/// What an operation does to the medium. Reads are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes are written.
    Write,
    /// What had completed becomes durable.
    Flush,
    /// The content of a range becomes zeros, or stays.
    Clear,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// Where.
    pub at: u64,
    /// How much.
    pub bytes: u64,
    /// Where the data of a write lies in the log.
    data_at: u64,
    /// The step of its submission.
    pub submitted: usize,
    /// The step of its completion.
    pub completed: Option<usize>,
}

/// An indexed log. A *step* is one of its entries, in order; a *cut* at `n` keeps the first `n`.
pub struct Trace {
    file: File,
    /// Operations, by submission.
    pub ops: Vec<Op>,
    /// For each step, where the log ends behind it.
    ends: Vec<u64>,
    /// Flushes that completed: steps of completion and submission, ascending by the first, the
    /// second being the latest of all so far.
    flushes: Vec<(usize, usize)>,
    /// Steps of the submissions of writes, and of their completions, ascending.
    writes: [Vec<usize>; 2],
    /// Steps at which the process had died and another one took over.
    pub restarts: Vec<usize>,
    /// Bytes of the log up to the last whole entry.
    pub length: u64,
}

const HEAD_BYTES: u64 = 32;
const READ: u64 = 1;
const WRITE: u64 = 2;
const FLUSH: u64 = 3;
const DISCARD: u64 = 4;
const ALLOCATE: u64 = 5;
const COMPLETED: u64 = 16;

impl Trace {
    /// Reads a log. A last entry that was cut short is left out. Where the log has one of the
    /// lengths `deaths`, its process had died, and whoever went on has first waited until no
    /// operation of it could land any more: by then each had, or never does.
    ///
    /// # Errors
    /// If it cannot be read, is no log, or an operation in it failed.
    pub fn read(path: &Path, deaths: &[u64]) -> Result<Trace> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file.try_clone()?);
        let mut trace = Trace::empty(file);
        let mut in_flight: HashMap<u64, Option<usize>> = HashMap::new();
        let mut at = 0;
        while at + HEAD_BYTES <= bytes {
            if deaths.contains(&at) {
                trace.restart(&mut in_flight, at);
            }
            let [kind, id, place, length] = head(&mut reader)?;
            at += HEAD_BYTES;
            let data_at = at;
            at += if kind == WRITE { length } else { 0 };
            if at > bytes {
                break;
            }
            trace.length = at;
            reader.seek_relative((at - data_at) as i64)?;
            match kind {
                READ => {
                    in_flight.insert(id, None);
                }
                WRITE | FLUSH | DISCARD | ALLOCATE => {
                    in_flight.insert(id, Some(trace.ops.len()));
                    trace.submit(kind, [place, length, data_at], at);
                }
                COMPLETED => trace.complete(&mut in_flight, id, at)?,
                other => return Err(format!("an entry of kind {other} at byte {data_at}").into()),
            }
        }
        Ok(trace)
    }

    fn empty(file: File) -> Trace {
        let (ops, ends, flushes, restarts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let writes = [Vec::new(), Vec::new()];
        Trace { file, ops, ends, flushes, writes, restarts, length: 0 }
    }

    fn submit(&mut self, kind: u64, [at, bytes, data_at]: [u64; 3], end: u64) {
        let kind = match kind {
            WRITE => Kind::Write,
            FLUSH => Kind::Flush,
            _ => Kind::Clear,
        };
        let submitted = self.ends.len();
        if kind == Kind::Write {
            self.writes[0].push(submitted);
        }
        self.ends.push(end);
        self.ops.push(Op { kind, at, bytes, data_at, submitted, completed: None });
    }

    /// A step of its own, in which everything but flushes completes.
    fn restart(&mut self, in_flight: &mut HashMap<u64, Option<usize>>, end: u64) {
        let step = self.ends.len();
        self.ends.push(end);
        self.restarts.push(step);
        for (_, op) in in_flight.drain() {
            let Some(op) = op.and_then(|op| self.ops.get_mut(op)) else { continue };
            if op.kind != Kind::Flush {
                op.completed = Some(step);
            }
            if op.kind == Kind::Write {
                self.writes[1].push(step);
            }
        }
    }

    fn complete(
        &mut self,
        in_flight: &mut HashMap<u64, Option<usize>>,
        id: u64,
        end: u64,
    ) -> Result<()> {
        let Some(known) = in_flight.remove(&id) else {
            return Err(format!("operation {id} completes and was never submitted").into());
        };
        let Some(op) = known else { return Ok(()) };
        let step = self.ends.len();
        self.ends.push(end);
        self.ops[op].completed = Some(step);
        if self.ops[op].kind == Kind::Write {
            self.writes[1].push(step);
        }
        if self.ops[op].kind == Kind::Flush {
            let latest = self.flushes.last().map_or(0, |flush| flush.1);
            self.flushes.push((step, latest.max(self.ops[op].submitted)));
        }
        Ok(())
    }

    /// The number of steps, which is the last cut.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.ends.len()
    }

    /// How long the log was when it had the steps before a cut.
    #[must_use]
    pub fn end(&self, cut: usize) -> u64 {
        cut.checked_sub(1).and_then(|step| self.ends.get(step)).copied().unwrap_or(0)
    }

    /// The first cut that has everything which was there when the log was this long.
    #[must_use]
    pub fn cut_at(&self, length: u64) -> usize {
        self.ends.partition_point(|&end| end < length) + 1
    }

    /// What had completed before this step is durable at a cut.
    #[must_use]
    pub fn durable(&self, cut: usize) -> usize {
        let before = self.flushes.partition_point(|flush| flush.0 < cut);
        before.checked_sub(1).map_or(0, |last| self.flushes[last].1)
    }

    /// How many writes are not certainly there at a cut.
    #[must_use]
    pub fn pending(&self, cut: usize) -> usize {
        let before = |steps: &[usize], limit| steps.partition_point(|&step| step < limit);
        before(&self.writes[0], cut) - before(&self.writes[1], self.durable(cut))
    }

    /// The step behind the completion of the first flush that covers an operation, or the last one.
    #[must_use]
    pub fn covered(&self, op: &Op) -> usize {
        let Some(completed) = op.completed else { return self.steps() };
        let at = self.flushes.partition_point(|flush| flush.1 <= completed);
        self.flushes.get(at).map_or(self.steps(), |flush| flush.0 + 1)
    }

    /// The data of a write; of what clears, zeros.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn data(&self, op: &Op) -> Result<Vec<u8>> {
        let mut data = vec![0; op.bytes as usize];
        if op.kind == Kind::Write {
            self.file.read_exact_at(&mut data, op.data_at)?;
        }
        Ok(data)
    }
}

fn head(from: &mut impl Read) -> Result<[u64; 4]> {
    let mut numbers = [0; 4];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        *number = u64::from_le_bytes(bytes);
    }
    Ok(numbers)
}

/// A log made by hand.
#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Entries of a log: kind, id, place, data.
    pub fn log(entries: &[(u64, u64, u64, &[u8])]) -> Trace {
        let mut bytes = Vec::new();
        for (kind, id, at, data) in entries {
            for number in [*kind, *id, *at, data.len() as u64] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(*data);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Trace::read(file.path(), &[]).unwrap()
    }

    pub const WRITE: u64 = super::WRITE;
    pub const FLUSH: u64 = super::FLUSH;
    pub const DONE: u64 = COMPLETED;

    #[test]
    fn a_flush_covers_what_had_completed_before_it_was_submitted() {
        let trace = log(&[
            (WRITE, 1, 0, &[1; 512]),
            (WRITE, 2, 512, &[2; 512]),
            (DONE, 1, 0, &[]),
            (FLUSH, 3, 0, &[]),
            (DONE, 2, 0, &[]),
            (DONE, 3, 0, &[]),
        ]);
        assert_eq!(trace.steps(), 6);
        assert_eq!([4, 5].map(|cut| trace.durable(cut)), [0, 0]);
        assert_eq!(trace.durable(6), 3, "what completed before step 3: the first write only");
        assert_eq!([2, 5, 6].map(|cut| trace.pending(cut)), [2, 2, 1]);
        assert_eq!([0, 1].map(|op| trace.covered(&trace.ops[op])), [6, 6]);
        assert_eq!(trace.data(&trace.ops[1]).unwrap(), [2; 512]);
        assert_eq!((trace.end(1), trace.cut_at(544), trace.cut_at(545)), (544, 1, 2));
    }

    #[test]
    fn what_a_dead_process_had_in_flight_has_landed_when_the_next_one_begins() {
        let entry = |numbers: [u64; 4]| numbers.into_iter().flat_map(u64::to_le_bytes);
        let mut bytes: Vec<u8> = entry([WRITE, 1, 0, 512]).chain([1; 512]).collect();
        bytes.extend(entry([FLUSH, 2, 0, 0]));
        let death = bytes.len() as u64;
        bytes.extend(entry([FLUSH, 1, 0, 0]).chain(entry([DONE, 1, 0, 0])));
        bytes.extend([9; 31]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let trace = Trace::read(file.path(), &[death]).unwrap();
        assert_eq!((trace.restarts.as_slice(), trace.length), (&[2][..], death + 64));
        assert_eq!(trace.ops[0].completed, Some(2));
        assert_eq!(trace.ops[1].completed, None, "a flush of the dead proves nothing");
        assert_eq!([3, 4, 5].map(|cut| trace.pending(cut)), [1, 1, 0]);
    }

    #[test]
    fn what_is_no_log_or_has_errors_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for kind in [17u64, 99] {
            let head: Vec<u8> = [kind, 1, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
            std::fs::write(file.path(), head).unwrap();
            assert!(Trace::read(file.path(), &[]).is_err(), "{kind}");
        }
    }
}
