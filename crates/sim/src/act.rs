//! The guests at work: each operation carried out on the subject and in the model, each answer
//! verified.

use bowline_store::{Refused, Ticket};

use crate::journal::Moment;
use crate::model::{Change, Value, Violation};
use crate::platter::PAGE;
use crate::run::{Simulation, Step, Stop, Waiting};
use crate::stamp::{Seen, Stamp, identify};
use crate::subject::{Run, Subject, Told};
use crate::workload::{Op, Target};

/// Virtual time after which a store that has not answered hangs.
const PATIENCE_MICROS: u64 = 120_000_000;
/// Below this share of its limit, in 1,000, live data may not be too much. The map and the heads of
/// batches take the rest in pools as small as these.
const FULL_PERMILLE: u64 = 700;

impl<S: Subject> Simulation<'_, S> {
    /// One operation.
    pub fn step(&mut self) -> Step<()> {
        self.scrub_now_and_then()?;
        let op = self.workload.next_op(&self.model);
        match op {
            Op::Write { disk, lba, blocks, owned } => self.write(disk, lba, blocks, owned)?,
            Op::Zero(to) => self.clear(to, Value::Zero)?,
            Op::Discard(to) => self.clear(to, Value::Hole)?,
            Op::Read(to) => self.read(to)?,
            Op::Status(to) => self.status(to)?,
            Op::Flush(wait) => self.flush(wait)?,
            Op::Create { blocks } => self.create(blocks)?,
            Op::Resize { disk, blocks } => self.resize(disk, blocks)?,
            Op::Destroy { disk } => {
                self.wait("answers before a disk goes", |simulation| {
                    simulation.waiting.is_empty()
                })?;
                let change = Change::Disk { disk, blocks: None };
                self.change(change, |subject| subject.destroy_disk(disk).map(|()| None))?;
            }
            Op::Pass => self.pass()?,
            Op::Idle(micros) => self.idle(micros)?,
        }
        if self.random.one_in(2) { self.pump().map(|_| ()) } else { Ok(()) }
    }

    /// Makes a disk.
    pub fn create(&mut self, blocks: u64) -> Step<()> {
        self.disks_made += 1;
        let disk = self.disks_made;
        let change = Change::Disk { disk, blocks: Some(blocks) };
        self.change(change, |subject| subject.create_disk(disk, blocks).map(|()| None))
    }

    fn resize(&mut self, disk: u32, blocks: u64) -> Step<()> {
        let change = Change::Disk { disk, blocks: Some(blocks) };
        self.change(change, |subject| subject.resize_disk(disk, blocks).map(|()| None))
    }

    fn write(&mut self, disk: u32, lba: u64, blocks: u64, owned: bool) -> Step<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(blocks as usize * PAGE, 0);
        let number = self.model.last_number() + 1;
        for (index, page) in buffer.chunks_exact_mut(PAGE).enumerate() {
            Stamp { run: self.model.run(), number, disk, lba: lba + index as u64 }.fill(page);
        }
        let change = Change::Blocks { disk, lba, blocks, value: Value::Data };
        let result =
            self.change(change, |subject| subject.write(disk, lba, &buffer, owned).map(Some));
        self.buffer = buffer;
        result
    }

    fn clear(&mut self, to: Target, value: Value) -> Step<()> {
        let Target { disk, lba, blocks } = to;
        let change = Change::Blocks { disk, lba, blocks, value };
        self.change(change, |subject| {
            let cleared = match value {
                Value::Zero => subject.zero(disk, lba, blocks),
                _ => subject.discard(disk, lba, blocks),
            };
            cleared.map(Some)
        })
    }

    /// Tries a change until it is admitted or refused for good.
    fn change(
        &mut self,
        change: Change,
        mut act: impl FnMut(&mut S) -> Result<Option<u64>, Refused>,
    ) -> Step<()> {
        let number = self.model.next_number();
        self.host.device.borrow_mut().note(Moment::Asked(number));
        for _ in 0..10_000 {
            self.room = false;
            match self.call(&mut act) {
                Ok(Ok(sequence)) => {
                    self.model.admit(change);
                    let submitted = self.host.device.borrow().counters().flushes_submitted;
                    self.changed_after = Some(submitted);
                    self.host.device.borrow_mut().note(Moment::Replied(number));
                    self.trace("admitted", || Self::describe(change));
                    self.coverage.hit("changes");
                    if let Some(sequence) = sequence {
                        self.model.numbered(sequence)?;
                    }
                    return Ok(());
                }
                Ok(Err(Refused::Busy)) => {
                    self.coverage.hit("busy");
                    if self.watch.phase.is_some() {
                        self.coverage.hit("refused while healing");
                    }
                    self.wait("room", |simulation| simulation.room)?;
                }
                Ok(Err(Refused::NoSpace)) => return self.full(change),
                Ok(Err(other)) => {
                    self.trace("refused", || format!("{}: {other}", Self::describe(change)));
                    return self.stopped(&other.to_string());
                }
                Err(Stop::Died) => {
                    self.model.admit_perhaps(change);
                    self.trace("died in", || Self::describe(change));
                    return Err(Stop::Died);
                }
                Err(broken) => return Err(broken),
            }
        }
        let says = self.call(|subject| subject.describe())?;
        Err(Violation(format!("{change:?} is refused as busy for ever: {says}")).into())
    }

    fn full(&mut self, change: Change) -> Step<()> {
        self.coverage.hit("no space");
        self.trace("no space", || Self::describe(change));
        let (live, all) = (self.model.live_blocks(), self.setup.blocks());
        let wanted = match change {
            Change::Blocks { value: Value::Data, blocks, .. } => blocks,
            Change::Blocks { .. } => {
                return Err(Violation(format!("no space for {change:?}")).into());
            }
            Change::Disk { .. } => 0,
        };
        let limit = self.limit()?;
        if (live + wanted) * 1000 < limit * FULL_PERMILLE {
            let says = self.call(|subject| subject.describe())?;
            let text =
                format!("no space with {live} of {all} blocks live and {wanted} wanted: {says}");
            return Err(Violation(text).into());
        }
        self.workload.relieve();
        Ok(())
    }

    /// The subject's limit for live data, which may not leave out slots that have space below, or
    /// can get it: how many these are the simulator knows. One less for each time that the device
    /// failed to give a slot its space.
    fn limit(&mut self) -> Step<u64> {
        let failed = self.host.device.borrow().counters().allocations_failed;
        let slots = self.slots_below.saturating_sub(failed);
        let limit = self.call(|subject| subject.live_blocks_max())?;
        let least = self.call(|subject| subject.live_blocks_max_of(slots))?;
        if limit < least {
            let says = self.call(|subject| subject.describe())?;
            let text = format!(
                "no space with a limit of {limit} blocks, and {least} fit the {slots} slots that \
                 can have space: {says}"
            );
            return Err(Violation(text).into());
        }
        Ok(limit)
    }

    pub fn read(&mut self, to: Target) -> Step<()> {
        if self.watch.phase.is_some() {
            self.coverage.hit("reads while healing");
        }
        let Target { disk, lba, blocks } = to;
        let (low, errors) = (self.model.replied(), self.errors());
        self.start_read(Waiting::Read { disk, lba, blocks, low, errors }, disk, lba, blocks)
    }

    /// Starts a read, waiting for a buffer if there is none.
    pub fn start_read(&mut self, waiting: Waiting, disk: u32, lba: u64, blocks: u64) -> Step<()> {
        let ticket = self.ticket(waiting);
        for _ in 0..10_000 {
            if self.call(|subject| subject.read(ticket, disk, lba, blocks))? {
                return Ok(());
            }
            self.coverage.hit("reads without buffer");
            self.pass()?;
        }
        Err(Violation("there is never a buffer to read into".into()).into())
    }

    fn status(&mut self, to: Target) -> Step<()> {
        let Target { disk, lba, blocks } = to;
        let low = self.model.replied();
        let ticket = self.ticket(Waiting::Status { disk, lba, blocks, low });
        self.call(|subject| subject.block_status(ticket, disk, lba, blocks))
    }

    fn flush(&mut self, wait: bool) -> Step<()> {
        let number = self.model.replied();
        let ticket = self.ticket(Waiting::Flush { number, after: self.changed_after });
        self.trace("flush", || format!("of everything through {number}"));
        self.call(|subject| subject.flush(ticket))?;
        if wait {
            self.wait("a flush", |simulation| !simulation.waiting.contains_key(&ticket))?;
        }
        Ok(())
    }

    pub fn errors(&self) -> u64 {
        self.host.device.borrow().counters().errors.iter().sum()
    }

    /// Lets a little time pass, to the next completion if nothing else happens.
    pub fn pass(&mut self) -> Step<()> {
        let micros = self.random.below(300);
        self.host.device.borrow_mut().advance(micros);
        if !self.pump()? {
            let mut device = self.host.device.borrow_mut();
            let pass = device.next_due().map_or(2000, |due| due.saturating_sub(device.now()));
            device.advance(pass);
            drop(device);
            self.pump()?;
        }
        Ok(())
    }

    pub fn idle(&mut self, micros: u64) -> Step<()> {
        let end = self.host.device.borrow().now() + micros;
        while self.host.device.borrow().now() < end {
            self.pass()?;
            let mut device = self.host.device.borrow_mut();
            if device.next_due().is_none() {
                device.advance(20_000);
            }
        }
        Ok(())
    }

    /// Passes time until something holds.
    pub fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Step<()> {
        let start = self.host.device.borrow().now();
        let mut rounds = 0;
        while !done(self) {
            self.pass()?;
            rounds += 1;
            let waited = self.host.device.borrow().now() - start;
            if waited > PATIENCE_MICROS || rounds > 500_000 {
                let says = self.call(|subject| subject.describe())?;
                let waiting = &self.waiting;
                let text = format!("waited {waited} us in vain for {what}: {waiting:?}: {says}");
                return Err(Violation(text).into());
            }
        }
        Ok(())
    }

    /// Lets the subject work and verifies what it tells; whether anything happened.
    pub fn pump(&mut self) -> Step<bool> {
        let now = self.host.device.borrow().now();
        let mut worked = self.call(|subject| subject.poll(now))?;
        while let Some(told) = self.call(S::next_told)? {
            worked = true;
            self.hear(told)?;
        }
        if let Some(rule) = self.host.device.borrow_mut().take_broken_rules().pop() {
            return Err(Violation(rule).into());
        }
        self.hear_scrub()?;
        self.watch_healing()?;
        let durable = self.call(|subject| subject.durable_through())?;
        self.model.promise_sequence(durable);
        Ok(worked)
    }

    fn hear(&mut self, told: Told) -> Step<()> {
        match told {
            Told::Room => self.room = true,
            Told::Read { ticket, result } => {
                let waiting = self.answered(ticket)?;
                self.hear_read(waiting, result)?;
            }
            Told::Status { ticket, result } => match (self.answered(ticket)?, result) {
                (Waiting::Status { disk, lba, blocks, low }, Ok(runs)) => {
                    self.hear_status(disk, lba, blocks, low, &runs)?;
                }
                (Waiting::JudgeStatus { disk, lba, end }, Ok(runs)) => {
                    self.hear_judge_status(disk, lba, end, &runs)?;
                }
                (Waiting::JudgeStatus { .. }, Err(error)) if self.damaged => {
                    self.trace("status", || error);
                }
                (Waiting::Status { .. }, Err(error)) if self.errors() > 0 => {
                    self.trace("status", || error);
                }
                other => return Err(Violation(format!("a wrong answer: {other:?}")).into()),
            },
            Told::Flushed { ticket, result } => {
                let Waiting::Flush { number, after } = self.answered(ticket)? else {
                    return Err(Violation("an answer of the wrong kind".into()).into());
                };
                self.trace("flushed", || format!("through {number}: {result:?}"));
                match result {
                    Ok(()) => {
                        self.paid_for(number, after)?;
                        self.coverage.hit("flushes answered");
                        self.model.promise(number);
                    }
                    Err(error) if self.errors() == 0 => {
                        let text = format!("a flush failed without an error: {error}");
                        return Err(Violation(text).into());
                    }
                    Err(_) => self.coverage.hit("flushes failed"),
                }
            }
        }
        Ok(())
    }

    /// A flush of something that was changed costs the medium a flush that was submitted after the
    /// change.
    fn paid_for(&mut self, number: u64, after: Option<u64>) -> Step<()> {
        let Some(after) = after else { return Ok(()) };
        let last = self.host.device.borrow().counters().flushed_last;
        if last <= after {
            let text = format!(
                "a flush through {number} is answered, but the medium was not flushed since: \
                 flush {last} was its last, and the change came after {after}"
            );
            return Err(Violation(text).into());
        }
        self.coverage.hit("flushes paid for");
        Ok(())
    }

    fn answered(&mut self, ticket: Ticket) -> Step<Waiting> {
        let waiting = self.waiting.remove(&ticket);
        waiting.ok_or_else(|| Violation(format!("{ticket:?} is answered twice")).into())
    }

    fn hear_read(&mut self, waiting: Waiting, result: Result<Vec<u8>, String>) -> Step<()> {
        let (disk, lba, blocks) = match waiting {
            Waiting::Read { disk, lba, blocks, .. } | Waiting::Judge { disk, lba, blocks } => {
                (disk, lba, blocks)
            }
            other => return Err(Violation(format!("a read answers {other:?}")).into()),
        };
        let bytes = match (result, waiting) {
            (Ok(bytes), _) if bytes.len() as u64 == blocks * PAGE as u64 => bytes,
            (Ok(bytes), _) => {
                return Err(Violation(format!("{} bytes for {blocks}", bytes.len())).into());
            }
            (Err(error), Waiting::Read { errors, .. }) if self.errors() > errors => {
                self.coverage.hit("reads failed with the medium");
                self.trace("read", || error);
                return Ok(());
            }
            (Err(error), Waiting::Judge { .. }) if self.damaged => {
                self.coverage.hit("damage noticed by reads");
                self.trace("read", || error);
                self.judged.extend((lba..lba + blocks).map(|lba| (disk, lba, None)));
                return Ok(());
            }
            (Err(error), _) => {
                let text = format!("disk {disk} {lba}+{blocks} cannot be read: {error}");
                return Err(Violation(text).into());
            }
        };
        for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
            let (lba, seen) = (lba + index as u64, identify(page));
            match waiting {
                Waiting::Read { low, .. } => {
                    self.model.fits(disk, lba, seen, low, self.model.replied())?;
                    let data = matches!(seen, Seen::Data(_));
                    self.coverage.hit(if data { "blocks read" } else { "zero blocks read" });
                }
                _ => self.judged.push((disk, lba, Some(seen))),
            }
        }
        Ok(())
    }

    /// Keeps states for the judge and asks for the rest.
    fn hear_judge_status(&mut self, disk: u32, lba: u64, end: u64, runs: &[Run]) -> Step<()> {
        let mut at = lba;
        self.trace("states", || format!("disk {disk} {lba}..{end} {runs:?}"));
        for run in runs {
            self.judged_states.push((disk, at, *run));
            at += run.blocks;
        }
        if at == lba || at > end {
            let text = format!("disk {disk} {lba}..{end}: states of another range: {runs:?}");
            return Err(Violation(text).into());
        }
        self.ask_states(disk, at, end)
    }

    /// Asks for the states of blocks, for the judge.
    pub fn ask_states(&mut self, disk: u32, lba: u64, end: u64) -> Step<()> {
        if lba == end {
            return Ok(());
        }
        let ticket = self.ticket(Waiting::JudgeStatus { disk, lba, end });
        self.call(|subject| subject.block_status(ticket, disk, lba, end - lba))
    }

    /// States are verified where nothing was changed since the question.
    fn hear_status(
        &mut self,
        disk: u32,
        lba: u64,
        blocks: u64,
        low: u64,
        runs: &[Run],
    ) -> Step<()> {
        let told: u64 = runs.iter().map(|run| run.blocks).sum();
        if told == 0 || told > blocks || runs.iter().any(|run| run.blocks == 0) {
            let text = format!("disk {disk} {lba}+{blocks}: states of {told} blocks: {runs:?}");
            return Err(Violation(text).into());
        }
        if low != self.model.replied() {
            return Ok(());
        }
        let mut from = lba;
        for run in runs {
            for lba in self.model.corners(disk, from, run.blocks) {
                let value = self.model.value(disk, lba);
                if value != run.value {
                    let text = format!("disk {disk} block {lba} is {value:?}, told {run:?}");
                    return Err(Violation(text).into());
                }
            }
            from += run.blocks;
        }
        self.coverage.hit("states verified");
        Ok(())
    }
}
