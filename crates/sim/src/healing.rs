//! A medium that fails while the guests work: writing elsewhere and its phases are watched, the
//! process and its host die in them, and what stopped is resumed.

use crate::Faults;
use crate::model::Violation;
use crate::recover::Crash;
use crate::run::{Simulation, Step, Stop};
use crate::seeds::HEALING;
use crate::subject::{Health, Subject};
use crate::workload::Target;

/// Polls after which a pool that was told to resume hangs.
const ROUNDS_MAX: u32 = 200_000;
/// In one of so many phases the process or the host dies.
const DEATHS: u64 = 12;

/// What is known of writing elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The phase it was last seen in.
    pub phase: Option<&'static str>,
    /// Errors of the medium by then.
    errors: u64,
    /// It was asked for.
    is_asked: bool,
    /// How the process ends if it dies now; none: as planned.
    pub death: Option<Crash>,
    /// Whether the process may be made to die.
    pub may_die: bool,
}

impl<S: Subject> Simulation<'_, S> {
    /// Looks what phase writing elsewhere is in. In a new one the process may die, or the host.
    pub fn watch_healing(&mut self) -> Step<()> {
        let phase = self.call(|subject| subject.healing())?;
        let errors = self.errors();
        if phase.is_some() && self.watch.phase.is_some() && errors > self.watch.errors {
            self.coverage.hit("errors while healing");
        }
        self.watch.errors = errors;
        if phase == self.watch.phase {
            return Ok(());
        }
        self.trace("healing", || format!("{phase:?}"));
        self.watch.phase = phase;
        let Some(phase) = phase else {
            let is_good = self.subject.as_ref().map(Subject::health) == Some(Health::Good);
            if is_good && !self.watch.is_asked {
                self.coverage.hit("heals without a stop");
            }
            return Ok(());
        };
        let Some((_, [reached, killed, lost])) = HEALING.iter().find(|one| one.0 == phase) else {
            return Err(Violation(format!("there is no phase {phase}")).into());
        };
        self.coverage.hit(reached);
        if !self.watch.may_die || !self.random.one_in(DEATHS) {
            return Ok(());
        }
        let is_host = self.random.one_in(2);
        self.watch.death = Some(if is_host { Crash::Host } else { Crash::Process });
        if self.random.one_in(3) {
            // Inside one of the next calls of the medium.
            self.coverage.hit("heal: killed in a call");
            let calls = self.random.below(4);
            self.host.device.borrow_mut().arm(Some(calls));
            return Ok(());
        }
        self.coverage.hit(if is_host { lost } else { killed });
        self.host.device.borrow_mut().kill();
        Err(Stop::Died)
    }

    /// Writing has stopped: that needs a reason, reads go on, and resuming helps.
    pub fn stopped(&mut self, why: &str) -> Step<()> {
        let errors = self.host.device.borrow().counters().errors;
        if errors == [0; 3] {
            return Err(Violation(format!("writing stopped without an error: {why}")).into());
        }
        self.coverage.hit("writing stopped");
        self.host.device.borrow_mut().faults().left = 0;
        self.host.device.borrow_mut().arm(None);
        for (disk, size) in self.model.disks().collect::<Vec<_>>() {
            self.read(Target { disk, lba: 0, blocks: size.min(16) })?;
        }
        self.wait("reads while writing is stopped", |simulation| simulation.waiting.is_empty())?;
        if self.random.one_in(3) {
            // What was acknowledged must outlive a process that could not write it, too.
            self.coverage.hit("killed while writing is stopped");
            self.host.device.borrow_mut().kill();
            return Err(Stop::Died);
        }
        self.watch.is_asked = true;
        let result = self.resume_in_the_end();
        self.watch.is_asked = false;
        result
    }

    /// Resumes, on a medium that still fails at first, perhaps.
    fn resume_in_the_end(&mut self) -> Step<()> {
        for left in (0..self.random.below(3) as u32).rev() {
            let errors = [2000, 10_000, 20_000];
            let faults = Faults { errors, bursts: 40_000, left: 1 + left, ..Faults::default() };
            *self.host.device.borrow_mut().faults() = faults;
            let resumed = self.resume()?;
            self.host.device.borrow_mut().faults().left = 0;
            if resumed.is_ok() {
                return Ok(());
            }
            self.coverage.hit("resumes failed");
        }
        self.resume()?.map_err(|error| {
            Stop::from(Violation(format!("resume failed on a good medium: {error}")))
        })
    }

    fn resume(&mut self) -> Step<Result<(), String>> {
        if let Err(error) = self.call(S::resume)? {
            return Err(Violation(format!("resume cannot begin: {error}")).into());
        }
        for _ in 0..ROUNDS_MAX {
            if let Some(result) = self.call(S::resumed)? {
                self.trace("resumed", || format!("{result:?}"));
                if result.is_ok() {
                    self.coverage.hit("resumed");
                }
                return Ok(result);
            }
            let disk = self.model.disks().next();
            if let Some((disk, size)) = disk.filter(|_| self.random.one_in(4)) {
                let lba = self.random.below(size);
                self.read(Target { disk, lba, blocks: (size - lba).min(16) })?;
            }
            self.pass()?;
        }
        let says = self.call(|subject| subject.describe())?;
        Err(Violation(format!("resume never ends: {says}")).into())
    }
}
