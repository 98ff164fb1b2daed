//! What is deliberately wrong, for the replayer to catch: an oracle that finds nothing here proves
//! nothing elsewhere.

use super::campaign::Campaign;
use super::dice::Dice;
use super::judge;
use super::platter::{Patch, Platter};
use super::record::Promises;
use crate::Result;

/// A way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The medium answered its last flushes without flushing: any part of what they covered is
    /// there.
    IgnoredFlushes,
    /// The same, and nothing of it is there.
    LostFlushes,
    /// The superblocks are those of an earlier time.
    StaleSuperblock,
    /// More is demanded of a job in the guest than had been made durable.
    ForgottenSync(usize),
    /// More is demanded of our own client's disk.
    ForgottenFlush,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 7] = [
        Fault::IgnoredFlushes,
        Fault::LostFlushes,
        Fault::StaleSuperblock,
        Fault::ForgottenSync(0),
        Fault::ForgottenSync(1),
        Fault::ForgottenSync(2),
        Fault::ForgottenFlush,
    ];

    /// What the judge says of it, if it is caught by the oracle that it is there for.
    fn sign(self) -> &'static str {
        match self {
            // The server proves it by itself, or the judge sees what is missing.
            Fault::IgnoredFlushes => "",
            Fault::StaleSuperblock => "the pool is",
            Fault::LostFlushes | Fault::ForgottenFlush => "is durable",
            Fault::ForgottenSync(0) => "is missing",
            Fault::ForgottenSync(1) => "is lost",
            Fault::ForgottenSync(_) => "were acknowledged",
        }
    }
}

const SUPERBLOCKS: std::ops::Range<usize> = 128 << 10..256 << 10;
/// By how much the jobs get on between the state and what is demanded of it.
const MORE: u64 = 8;
/// The same for our own client; a multiple of how often it flushes.
const MORE_WRITES: u64 = 32;

impl Campaign {
    /// Judges one state for each fault, and gives what was found to be wrong with it.
    ///
    /// # Errors
    /// If a fault is not caught, or a state without any is judged wrong.
    pub fn faults(&self, faults: &[Fault]) -> Result<Vec<(Fault, String)>> {
        let (mut lanes, checker) = judge::open(&self.setup, 1)?;
        let lane = lanes.first_mut().ok_or("there is a lane")?;
        let mut caught = Vec::new();
        for &fault in faults {
            let (platter, patches, promises) = self.faulty(fault)?;
            platter.save(&patches, &lane.pool())?;
            match lane.judge(&checker, &self.recording.file_system, &promises) {
                Ok(()) => return Err(format!("{fault:?} was not caught").into()),
                Err(error) if error.to_string().contains(fault.sign()) => {
                    caught.push((fault, error.to_string()));
                }
                Err(error) => return Err(format!("{fault:?} was not seen, but: {error}").into()),
            }
        }
        // The same guest still finds nothing wrong where nothing is.
        let (early, _) = self.times()?;
        let mut platter = self.platter();
        platter.advance(&self.recording.trace, early, self.recording.trace.durable(early))?;
        platter.save(&[], &lane.pool())?;
        lane.judge(&checker, &self.recording.file_system, &self.promises(early))?;
        Ok(caught)
    }

    /// Two cuts: behind the second one, everybody has been promised more.
    fn times(&self) -> Result<(usize, usize)> {
        let trace = &self.recording.trace;
        let from = trace.cut_at(self.recording.from);
        let early = from + (trace.steps() - from) / 2;
        let length = trace.end(early);
        let mut later: Vec<_> = (0..3).map(|job| self.recording.later(job, length, MORE)).collect();
        later.push(self.recording.later_raw(length, MORE_WRITES));
        let later: Option<Vec<u64>> = later.into_iter().collect();
        let latest = later.and_then(|times| times.into_iter().max());
        let latest =
            latest.ok_or("somebody does not get on in the second half of the recording")?;
        Ok((early, trace.cut_at(latest)))
    }

    fn faulty(&self, fault: Fault) -> Result<(Platter, Vec<Patch>, Promises)> {
        let trace = &self.recording.trace;
        let (early, late) = self.times()?;
        let mut platter = self.platter();
        let stale = trace.cut_at(self.recording.from);
        platter.advance(trace, stale, trace.durable(stale))?;
        let superblocks = platter.bytes()[SUPERBLOCKS].to_vec();
        platter.advance(trace, early, trace.durable(early))?;
        let (mut patches, mut promises) = (Vec::new(), self.promises(early));
        let more = self.promises(late);
        match fault {
            Fault::IgnoredFlushes => {
                platter.advance(trace, late, trace.durable(early))?;
                let mut dice = Dice::new(self.seed);
                while patches.is_empty() {
                    let (drawn, fates) = platter.draw(trace, &mut dice)?;
                    let some = fates.pending / 4..fates.pending;
                    patches = if some.contains(&fates.lost) { drawn } else { patches };
                }
                promises = more;
            }
            Fault::LostFlushes => {
                platter.advance(trace, late, trace.durable(early))?;
                promises = more;
            }
            Fault::StaleSuperblock => patches.push((SUPERBLOCKS.start as u64, superblocks)),
            Fault::ForgottenSync(job) => promises.jobs[job] = more.jobs[job],
            Fault::ForgottenFlush => promises.raw = more.raw,
        }
        Ok((platter, patches, promises))
    }
}
