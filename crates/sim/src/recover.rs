//! Crashes, recovery, and the judgement after it.

use crate::model::Violation;
use crate::run::{Simulation, Step, Stop, Waiting, guarded};
use crate::stamp::Seen;
use crate::subject::{Health, OpenError, Subject};
use crate::{Faults, Random};

/// How a process or its host ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed; memory and I/O under way outlive it.
    Process,
    /// The host loses its power.
    Host,
    /// The process is killed, and its memory is removed on the same boot.
    Memory,
    /// A clean stop; memory or power may be lost afterwards and nothing may be missing.
    Clean,
}

/// A crash that is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub kind: Crash,
    /// The process is to die at this call of its medium from now; none: between two calls, now.
    pub calls: Option<u64>,
    /// Whether the recovery is to be crashed too.
    pub inside: bool,
}

/// The crashes of a seed.
#[derive(Debug)]
pub(crate) struct Plan {
    /// When, in order of time reversed.
    steps: Vec<(u64, Due)>,
    armed: Option<(u64, Due)>,
}

/// Operations after which an armed crash that no call has set off happens anyway.
const ARMED_STEPS: u64 = 40;
/// Blocks the judge reads at a time, and reads under way.
const JUDGE_BLOCKS: u64 = 64;
const JUDGE_READS: usize = 6;
/// Larger disks are judged where they were touched, not whole.
const JUDGE_WHOLE: u64 = 16384;

impl Plan {
    /// At least a process crash and a host crash, one of them with its recovery crashed too.
    pub fn draw(operations: u64, random: &mut Random) -> Plan {
        let mut kinds = vec![Crash::Process, Crash::Host];
        let more = if random.one_in(4) { operations / 60 } else { 3 };
        for _ in 0..random.below(more + 1) {
            kinds.push(match random.below(10) {
                0 => Crash::Memory,
                1 => Crash::Clean,
                2..5 => Crash::Process,
                _ => Crash::Host,
            });
        }
        let inside = random.below(2) as usize;
        let mut steps: Vec<(u64, Due)> = Vec::new();
        for (index, kind) in kinds.into_iter().enumerate() {
            let step = random.between(operations / 20, operations - 1);
            let calls = (kind != Crash::Clean && random.one_in(2)).then(|| random.below(60));
            steps.push((step, Due { kind, calls, inside: index == inside || random.one_in(4) }));
        }
        steps.sort_by_key(|step| std::cmp::Reverse(step.0));
        Plan { steps, armed: None }
    }

    /// What is due at a step: to be armed if it counts calls, else to happen now.
    pub fn at(&mut self, step: u64) -> Option<Due> {
        if let Some((since, due)) = self.armed {
            if step < since + ARMED_STEPS {
                return None;
            }
            self.armed = None;
            return Some(Due { calls: None, ..due });
        }
        let (_, due) = self.steps.pop_if(|next| next.0 <= step)?;
        if due.calls.is_some() {
            self.armed = Some((step, due));
        }
        Some(due)
    }

    /// The armed crash has happened.
    pub fn fired(&mut self) -> Due {
        let due = self.armed.take().map(|armed| armed.1);
        due.unwrap_or(Due { kind: Crash::Process, calls: None, inside: false })
    }
}

impl<S: Subject> Simulation<'_, S> {
    /// Ends the process in a way, starts its successor and judges what it found.
    pub fn crash(&mut self, kind: Crash, inside: bool) -> Result<(), Violation> {
        self.host.device.borrow_mut().arm(None);
        self.collect();
        let ends = match kind {
            Crash::Clean => {
                self.settled(|simulation| {
                    simulation.wait("answers before a clean stop", |it| it.waiting.is_empty())
                })?;
                self.judge_counts()?;
                vec![self.close()?]
            }
            kind => vec![kind],
        };
        self.trace("crash", || format!("{kind:?} {ends:?}"));
        self.end(ends[0], kind);
        self.host.device.borrow_mut().faults().left = 0;
        let mut ends = ends;
        if kind == Crash::Clean {
            ends.clear();
        }
        if inside {
            self.crash_recovery(&mut ends)?;
        }
        self.recover(&ends)?;
        if self.random.one_in(4) {
            // What a recovery has shown must be durable, without a flush of anybody's.
            self.coverage.hit("host crashes right after a recovery");
            self.collect();
            self.trace("crash", || "Host right after a recovery".into());
            self.end(Crash::Host, Crash::Host);
            self.recover(&[Crash::Host])?;
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) -> Result<Crash, Violation> {
        let Some(subject) = self.subject.take() else { return Ok(Crash::Process) };
        let is_good = subject.health() == Health::Good;
        match guarded(|| subject.close()) {
            // A pool that had stopped is left as it is.
            Ok(Ok(())) if !is_good => return Ok(Crash::Process),
            Ok(Ok(())) => self.coverage.hit("clean stops"),
            Ok(Err(error)) if self.host.device.borrow().counters().errors == [0; 3] => {
                return Err(Violation(format!("close: {error}")));
            }
            Ok(Err(_)) => return Ok(Crash::Process),
            Err(Stop::Broken(violation)) => return Err(violation),
            Err(Stop::Died) => return Err(Violation("the process died by itself".into())),
        }
        Ok([Crash::Process, Crash::Host, Crash::Memory][self.random.below(3) as usize])
    }

    /// Ends the process and what `end` takes with it.
    pub fn end(&mut self, end: Crash, counted: Crash) {
        let subject = self.subject.take();
        let _ = guarded(|| drop(subject));
        self.waiting.clear();
        self.changed_after = None;
        (self.watch.phase, self.watch.death) = (None, None);
        self.model.end_process();
        match end {
            Crash::Process | Crash::Clean => {
                self.host.crash_process(self.options.broken.as_deref() != Some("skip-fence"));
            }
            Crash::Host => self.host.crash(),
            Crash::Memory => self.host.lose_memory(),
        }
        match counted {
            Crash::Process => self.coverage.hit("process crashes"),
            Crash::Host => self.coverage.hit("host crashes"),
            Crash::Memory => self.coverage.hit("memories lost"),
            Crash::Clean => {}
        }
    }

    /// Lets recoveries begin and die in them.
    fn crash_recovery(&mut self, ends: &mut Vec<Crash>) -> Result<(), Violation> {
        for _ in 0..self.random.between(1, 3) {
            // Most of what can go wrong in a recovery goes wrong at its end.
            let all = self.rehearse();
            let calls = match self.random.below(3) {
                0 => self.random.below(all),
                1 => all - 1 - self.random.below(all.min(40)),
                _ => all - 1 - self.random.below(all.min(8)),
            };
            self.host.device.borrow_mut().arm(Some(calls));
            let opened = guarded(|| S::open(&self.host, &self.setup, true));
            self.host.device.borrow_mut().arm(None);
            match opened {
                Err(Stop::Broken(violation)) => return Err(violation),
                Ok(Err(error)) => {
                    return Err(Violation(format!("recovery to be crashed: {error}")));
                }
                Ok(Ok(_)) => self.coverage.hit("recoveries crashed at their end"),
                Err(Stop::Died) => self.coverage.hit("recoveries crashed inside"),
            }
            let end = if self.random.one_in(2) { Crash::Process } else { Crash::Host };
            self.trace("crash", || format!("{end:?} inside recovery at call {calls}"));
            self.end(end, Crash::Clean);
            ends.push(end);
        }
        Ok(())
    }

    /// How many calls of its medium a recovery makes, tried on a copy of the machine.
    fn rehearse(&mut self) -> u64 {
        let mut copy = self.host.copy();
        let before = copy.device.borrow().calls();
        let opened = guarded(|| S::open(&copy, &self.setup, true).map(drop));
        drop(opened);
        let calls = copy.device.borrow().calls() - before;
        copy.crash_process(false);
        calls.max(1)
    }

    /// Starts the successor after these crashes, and judges.
    pub fn recover(&mut self, ends: &[Crash]) -> Result<(), Violation> {
        if self.options.faults && !ends.contains(&Crash::Memory) && self.random.one_in(5) {
            self.recover_in_vain()?;
        }
        let mut told = false;
        let opened = match guarded(|| S::open(&self.host, &self.setup, false)) {
            Ok(Err(OpenError::LostWrites)) => {
                if !ends.contains(&Crash::Memory) {
                    return Err(Violation("lost writes are told that are not lost".into()));
                }
                told = true;
                self.coverage.hit("lost writes told");
                self.end(Crash::Process, Crash::Clean);
                guarded(|| S::open(&self.host, &self.setup, true))
            }
            other => other,
        };
        match opened {
            Ok(Ok(subject)) => self.subject = Some(subject),
            Ok(Err(error)) => return Err(Violation(format!("recovery: {error}"))),
            Err(Stop::Broken(violation)) => return Err(violation),
            Err(Stop::Died) => return Err(Violation("the process died by itself".into())),
        }
        let lost = ends.contains(&Crash::Host) || ends.contains(&Crash::Memory);
        let low = if lost { self.model.promised() } else { self.model.replied() };
        let high = self.model.top();
        self.trace("opened", || format!("must be as of {low}..={high}"));
        let number = self.judge(low, high)?;
        if ends.last() == Some(&Crash::Memory) && !told && number < self.model.replied() {
            return Err(Violation("acknowledged writes are lost and nobody was told".into()));
        }
        self.coverage.add("changes lost lawfully", self.model.replied().saturating_sub(number));
        self.coverage
            .add("changes kept without a promise", number - self.model.promised().min(number));
        // Who reads the log flushes it; who goes on in place has flushed nothing.
        let is_flushed = self.options.adopted_is_durable && !self.goes_on_in_place();
        let durable = if lost || is_flushed { number } else { self.model.promised() };
        self.model.settle(number, durable);
        self.trace("judged", || format!("the pool is as of {number}"));
        self.judge_counts()
    }

    pub(crate) fn goes_on_in_place(&self) -> bool {
        let counts = self.subject.as_ref().map(S::counters).unwrap_or_default();
        counts.iter().any(|(name, count)| *name == "went on in place" && *count > 0)
    }

    /// What the subject says of how much data each disk holds, against what it does hold.
    fn judge_counts(&mut self) -> Result<(), Violation> {
        let Some(subject) = &self.subject else { return Ok(()) };
        for (disk, _) in self.model.disks() {
            let Some((told, is_exact)) = subject.data_blocks(disk) else { continue };
            let held = self.model.data_blocks(disk);
            if held > told || (is_exact && held != told) {
                let bound = if is_exact { "just" } else { "at most" };
                let text =
                    format!("disk {disk} holds {held} blocks of data, told is {bound} {told}");
                return Err(Violation(text));
            }
            let name = if is_exact { "data counted" } else { "data bounded" };
            self.coverage.hit(name);
        }
        Ok(())
    }

    /// A recovery on a medium that cannot read now must fail, or know everything all the same: an
    /// error is not the end of the log.
    fn recover_in_vain(&mut self) -> Result<(), Violation> {
        let errors = [self.random.between(500, 20_000) as u32, 0, 0];
        *self.host.device.borrow_mut().faults() = Faults { errors, left: 2, ..Faults::default() };
        let before = self.host.device.borrow().counters().errors;
        let opened = guarded(|| S::open(&self.host, &self.setup, true));
        *self.host.device.borrow_mut().faults() = Faults::default();
        let failed = self.host.device.borrow().counters().errors != before;
        match opened {
            Ok(Ok(_)) if failed => self.coverage.hit("recoveries despite read errors"),
            Ok(Ok(_)) => {}
            Ok(Err(OpenError::Medium(_))) if failed => {
                self.coverage.hit("recoveries refused by read errors");
            }
            Ok(Err(error)) => return Err(Violation(format!("recovery: {error}"))),
            Err(Stop::Broken(violation)) => return Err(violation),
            Err(Stop::Died) => return Err(Violation("the process died by itself".into())),
        }
        self.end(Crash::Process, Crash::Clean);
        Ok(())
    }

    /// Reads everything and finds the number it is the state of.
    pub fn judge(&mut self, low: u64, high: u64) -> Result<u64, Violation> {
        // A checkpoint that comes upon damage stops the pool; reads go on.
        if !self.damaged
            && let Some(Health::Stopped(why) | Health::Damaged(why)) =
                self.subject.as_ref().map(Subject::health)
        {
            return Err(Violation(format!("it does not serve after recovery: {why}")));
        }
        let found = self.settled(Self::read_everything)?;
        let mut judge = self.model.judge(low, high);
        for disk in self.model.disks_ever() {
            let size = found.iter().find(|other| other.0 == disk).map(|other| other.1);
            judge.disk(disk, size)?;
        }
        for &(disk, blocks) in &found {
            if self.model.disks_ever().all(|known| known != disk) {
                judge.disk(disk, Some(blocks))?;
            }
        }
        for &(disk, lba, seen) in &self.judged {
            if let Some(seen) = seen {
                judge.block(disk, lba, seen)?;
            }
        }
        for &(disk, lba, run) in &self.judged_states {
            for lba in self.model.corners(disk, lba, run.blocks) {
                judge.state(disk, lba, run.value)?;
            }
        }
        let number = judge.verdict()?;
        self.coverage.add("blocks judged", self.judged.len() as u64);
        Ok(number)
    }

    /// Reads all blocks of all disks, of huge ones those that were ever touched and their
    /// neighbours.
    pub fn read_everything(&mut self) -> Step<Vec<(u32, u64)>> {
        self.judged.clear();
        self.judged_states.clear();
        let disks = self.call(|subject| subject.disks())?;
        for &(disk, size) in &disks {
            if size <= JUDGE_WHOLE {
                self.ask_states(disk, 0, size)?;
                for lba in (0..size).step_by(JUDGE_BLOCKS as usize) {
                    self.judge_read(disk, lba, JUDGE_BLOCKS.min(size - lba))?;
                }
                continue;
            }
            let touched: Vec<u64> = self.model.touched(disk, size).collect();
            let mut end = 0;
            for lba in touched {
                if lba >= end {
                    end = (lba + 8).min(size);
                    self.judge_read(disk, lba, end - lba)?;
                    self.ask_states(disk, lba, end)?;
                }
            }
            for lba in self.model.open_points(disk, size) {
                self.ask_states(disk, lba, lba + 1)?;
            }
            let lba = self.random.below(size);
            self.judge_read(disk, lba, 1)?;
        }
        self.wait("the judge's reads", |simulation| simulation.waiting.is_empty())?;
        Ok(disks)
    }

    fn judge_read(&mut self, disk: u32, lba: u64, blocks: u64) -> Step<()> {
        if self.waiting.len() >= JUDGE_READS {
            self.wait("the judge's reads", |it| it.waiting.len() < JUDGE_READS)?;
        }
        self.start_read(Waiting::Judge { disk, lba, blocks }, disk, lba, blocks)
    }

    /// Damages the medium and sees that no wrong data comes of it: every block is right, or an
    /// error, or the pool says that it is damaged and serves nothing that was never written.
    pub fn damage(&mut self) -> Result<(), Violation> {
        *self.host.device.borrow_mut().faults() = Faults::default();
        // Long enough for an idle pool to say on the medium how much of it is durable.
        self.settled(|simulation| simulation.idle(2_500_000))?;
        self.damaged = true;
        self.collect();
        if self.random.one_in(2) {
            self.end(Crash::Process, Crash::Clean);
        } else {
            self.end(Crash::Host, Crash::Clean);
        }
        self.rot();
        let opened = guarded(|| S::open(&self.host, &self.setup, false));
        match opened {
            Ok(Ok(subject)) => self.subject = Some(subject),
            Ok(Err(error)) => {
                self.trace("damaged", || error.to_string());
                self.coverage.hit("damage refused");
                return Ok(());
            }
            Err(Stop::Broken(violation)) => return Err(violation),
            Err(Stop::Died) => return Err(Violation("the process died by itself".into())),
        }
        let sound = self.subject.as_ref().map(Subject::health) == Some(Health::Good);
        if sound {
            let findings = self.settled(Self::scrub_to_the_end)?;
            self.judge(self.model.promised(), self.model.top())?;
            self.judge_scrub(findings)?;
            self.coverage.hit("damage without a trace, or noticed by reads");
            return Ok(());
        }
        self.coverage.hit("damage told by the pool");
        self.settled(Self::read_everything)?;
        for &(disk, lba, seen) in &self.judged {
            match seen {
                None | Some(Seen::Zeros) => {}
                Some(Seen::Data(stamp))
                    if (stamp.run, stamp.disk, stamp.lba) == (self.model.run(), disk, lba) => {}
                Some(other) => {
                    let text = format!("damaged: disk {disk} block {lba} holds {other:?}");
                    return Err(Violation(text));
                }
            }
        }
        Ok(())
    }

    fn rot(&mut self) {
        let mut device = self.host.device.borrow_mut();
        let blocks = device.platter().blocks();
        let (mut hits, wanted) = (0, self.random.between(1, 12));
        for _ in 0..10_000 {
            let block = self.random.below(blocks);
            if hits == wanted {
                break;
            }
            if device.platter().content(block).is_none() {
                continue;
            }
            hits += 1;
            match self.random.below(4) {
                0 => device.platter().spoil(block, |page| page.fill(0)),
                1 => {
                    let other = device.platter().content(self.random.below(blocks));
                    let other = other.map_or([0; crate::PAGE], |page| *page);
                    device.platter().spoil(block, |page| *page = other);
                }
                _ => {
                    let bit = self.random.below(8 * crate::PAGE as u64) as usize;
                    device.platter().spoil(block, |page| page[bit / 8] ^= 1 << (bit % 8));
                }
            }
        }
        drop(device);
        self.coverage.add("blocks rotten", hits);
    }
}
