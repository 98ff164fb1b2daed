//! Scrubs beside the guests: a sound pool never complains, whatever goes on meanwhile, and a scrub
//! of a damaged one sees whatever reads see.

use crate::model::Violation;
use crate::run::{Simulation, Step};
use crate::subject::Subject;

/// So often, in operations, a scrub begins, unless one runs.
const OPERATIONS_PER_SCRUB: u64 = 60;

impl<S: Subject> Simulation<'_, S> {
    /// Begins a scrub now and then.
    pub fn scrub_now_and_then(&mut self) -> Step<()> {
        self.operations_done += 1;
        if self.operations_done.is_multiple_of(OPERATIONS_PER_SCRUB) {
            self.call(S::start_scrub)?;
        }
        Ok(())
    }

    /// Holds what a scrub says to what is known of the device.
    pub fn hear_scrub(&mut self) -> Step<()> {
        let (is_running, findings) = self.call(|subject| subject.scrub_news())?;
        if self.is_scrub_running && !is_running {
            self.coverage.hit("scrubs ended");
        }
        self.is_scrub_running = is_running;
        if findings == 0 || self.damaged {
            return Ok(());
        }
        let found = self.call(|subject| subject.scrub_findings())?;
        let has_failed = self.host.device.borrow().counters().errors != [0; 3];
        for (is_unreadable, what) in found {
            // A write that failed may have torn the copy of a superblock.
            let is_lawful = is_unreadable || what.contains("of superblock");
            if !(is_lawful && has_failed) {
                return Err(Violation(format!("a scrub of a sound pool found: {what}")).into());
            }
        }
        Ok(())
    }

    /// Scrubs the pool as it is and returns how much was found.
    pub fn scrub_to_the_end(&mut self) -> Step<u64> {
        self.call(S::start_scrub)?;
        self.hear_scrub()?;
        self.wait("a scrub", |simulation| !simulation.is_scrub_running)?;
        Ok(self.call(|subject| subject.scrub_news())?.1)
    }

    /// Everything has been read: a scrub before that must have seen what could not be.
    pub fn judge_scrub(&mut self, findings: u64) -> Result<(), Violation> {
        let lost = self.judged.iter().filter(|(_, _, seen)| seen.is_none()).count();
        if lost > 0 && findings == 0 {
            return Err(Violation(format!("{lost} blocks cannot be read; a scrub found nothing")));
        }
        if lost > 0 {
            self.coverage.hit("damage found by a scrub before reads");
        }
        Ok(())
    }
}
