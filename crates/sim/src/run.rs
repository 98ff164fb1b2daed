//! One seed: a pool, guests that use it, crashes of every kind, and the oracle after each.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bowline_store::Ticket;

use crate::coverage::Coverage;
use crate::healing::Watch;
use crate::media::Killed;
use crate::model::{Change, Model, Violation};
use crate::recover::{Crash, Plan};
use crate::stamp::Seen;
use crate::subject::{Host, Run, Setup, Subject};
use crate::workload::Workload;
use crate::{Faults, Random};

/// Slots that have space at the least where not all have.
const SPARSE_SLOTS_MIN: u64 = 32;

/// Blocks before the first slot of a pool.
pub(crate) const POOL_HEAD_BLOCKS: u64 = 256;

/// How a seed is to be run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Operations of a seed.
    pub operations: u64,
    /// A behaviour broken on purpose, by name.
    pub broken: Option<String>,
    /// Slots of the pool, and blocks of a slot; none: drawn from the seed.
    pub slots: Option<u64>,
    /// See `slots`.
    pub slot_blocks: Option<u64>,
    /// Whether the device may fail.
    pub faults: bool,
    /// Whether the pool is damaged at the end, to see that it is noticed.
    pub damage: bool,
    /// Whether the pool lies in a sparse file, on a file system that has not space for all of it.
    pub sparse: bool,
    /// Whether adoption makes durable what it found, before anything is served.
    pub adopted_is_durable: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            operations: 2000,
            broken: None,
            slots: None,
            slot_blocks: None,
            faults: true,
            damage: true,
            sparse: false,
            adopted_is_durable: true,
        }
    }
}

/// What came of a seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was reached.
    pub coverage: Coverage,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
}

/// Why the living process stops here.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It died in a call.
    Died,
    /// It broke a promise.
    Broken(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Stop {
        Stop::Broken(violation)
    }
}

pub(crate) type Step<T> = Result<T, Stop>;

/// What an answer is awaited for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Waiting {
    Read {
        disk: u32,
        lba: u64,
        blocks: u64,
        low: u64,
        errors: u64,
    },
    Judge {
        disk: u32,
        lba: u64,
        blocks: u64,
    },
    Status {
        disk: u32,
        lba: u64,
        blocks: u64,
        low: u64,
    },
    JudgeStatus {
        disk: u32,
        lba: u64,
        end: u64,
    },
    /// Of what was changed up to `number`; the last change came after so many flushes had been
    /// submitted to the medium. None if nothing was changed since the process began.
    Flush {
        number: u64,
        after: Option<u64>,
    },
}

/// Where lines of the trace go.
pub type Sink<'a> = &'a mut dyn FnMut(&str);

pub(crate) struct Simulation<'a, S: Subject> {
    pub options: &'a Options,
    pub setup: Setup,
    pub host: Host,
    pub subject: Option<S>,
    pub model: Model,
    pub workload: Workload,
    pub random: Random,
    pub coverage: Coverage,
    pub faults: Faults,
    pub waiting: BTreeMap<Ticket, Waiting>,
    /// What the judge has read: none where the block could not be.
    pub judged: Vec<(u32, u64, Option<Seen>)>,
    /// The states the judge was told: of these blocks.
    pub judged_states: Vec<(u32, u64, Run)>,
    pub damaged: bool,
    pub room: bool,
    pub disks_made: u32,
    /// Slots of the pool that can have space below.
    pub slots_below: u64,
    /// Flushes submitted to the medium before the last change was admitted by this process.
    pub changed_after: Option<u64>,
    /// The last change of the beginning.
    pub first_replied: u64,
    pub operations_done: u64,
    pub is_scrub_running: bool,
    pub watch: Watch,
    pub buffer: Vec<u8>,
    next_ticket: u64,
    sink: Option<Sink<'a>>,
}

/// Runs a seed.
#[must_use]
pub fn run_seed<'a, S: Subject>(
    seed: u64,
    options: &'a Options,
    sink: Option<Sink<'a>>,
) -> Outcome {
    let mut random = Random::new(seed);
    let slot_blocks = [32, 32, 64, 128][random.below(4) as usize];
    let slots = random.between(40, 110);
    let (slot_blocks, slots) =
        (options.slot_blocks.unwrap_or(slot_blocks), options.slots.unwrap_or(slots));
    let setup = S::setup(Setup {
        slot_blocks,
        slots,
        medium_blocks: slot_blocks * slots + POOL_HEAD_BLOCKS,
        arena_bytes: 4 << 20,
        in_place: seed.is_multiple_of(2),
        checkpoint_bytes: random.between(256 << 10, 2 << 20),
        broken: options.broken.clone(),
        seed,
    });
    let mut simulation = Simulation::<S>::new(seed, options, setup, random, sink);
    let violation = simulation.run().err();
    let device = simulation.host.device.borrow().counters();
    simulation.coverage.add("writes landed late", device.landed_late);
    simulation.coverage.add("blocks lost in host crashes", device.blocks_lost);
    simulation.coverage.add("blocks torn in host crashes", device.blocks_torn);
    simulation.coverage.add("medium read errors", device.errors[crate::READ]);
    simulation.coverage.add("medium write errors", device.errors[crate::WRITE]);
    simulation.coverage.add("medium flush errors", device.errors[crate::FLUSH]);
    simulation.coverage.add("allocations without space below", device.no_space);
    simulation.coverage.add("medium bytes written", device.bytes_written);
    simulation.coverage.add("medium flushes", device.flushes);
    if let Some(violation) = &violation {
        simulation.trace("violation", || violation.0.clone());
    }
    Outcome { coverage: simulation.coverage, violation }
}

impl<'a, S: Subject> Simulation<'a, S> {
    pub fn new(
        seed: u64,
        options: &'a Options,
        setup: Setup,
        mut random: Random,
        sink: Option<Sink<'a>>,
    ) -> Self {
        let workload = Workload::new(random.fork(), setup.blocks());
        let mut faults = if options.faults { draw_faults(&mut random) } else { Faults::default() };
        if options.faults && faults.left == 0 {
            // By a stream of its own: a write that fails, and then its retry, is rare otherwise.
            draw_bursts(&mut faults, &mut Random::new(!seed));
        }
        let slots_below = setup.slots;
        Simulation {
            options,
            host: Host::new(&setup),
            setup,
            subject: None,
            model: Model::new(seed),
            workload,
            random,
            coverage: Coverage::default(),
            faults,
            waiting: BTreeMap::new(),
            judged: Vec::new(),
            judged_states: Vec::new(),
            damaged: false,
            room: false,
            disks_made: 0,
            slots_below,
            changed_after: None,
            first_replied: 0,
            operations_done: 0,
            is_scrub_running: false,
            watch: Watch::default(),
            buffer: Vec::new(),
            next_ticket: 0,
            sink,
        }
    }

    /// Makes the pool and its first disks.
    pub fn begin(&mut self) -> Result<(), Violation> {
        let formatted = guarded(|| S::format(&self.host, &self.setup));
        self.settled(|_| formatted)?.map_err(|error| Violation(format!("format: {error}")))?;
        self.trace("format", String::new);
        if self.options.sparse {
            // Half of the slots at the least, and so many that data can be had beside the map.
            let share = self.random.between(50, 90);
            let slots = (self.setup.slots * share / 100).max(SPARSE_SLOTS_MIN);
            let blocks = slots * self.setup.slot_blocks;
            self.host.device.borrow_mut().limit_space(blocks);
            self.slots_below = slots.min(self.setup.slots);
        }
        self.host.lose_memory();
        self.recover(&[Crash::Process])?;
        self.settled(|simulation| simulation.make_first_disks())?;
        self.first_replied = self.model.replied();
        Ok(())
    }

    fn run(&mut self) -> Result<(), Violation> {
        self.begin()?;
        let mut plan = Plan::draw(self.options.operations, &mut self.random);
        for step in 0..self.options.operations {
            *self.host.device.borrow_mut().faults() = self.faults.clone();
            let crash = plan.at(step);
            if let Some(crash) = crash {
                match crash.calls {
                    Some(calls) => self.host.device.borrow_mut().arm(Some(calls)),
                    None => self.crash(crash.kind, crash.inside)?,
                }
            }
            self.watch.may_die = true;
            let done = self.step();
            self.watch.may_die = false;
            match done {
                Ok(()) => {}
                Err(Stop::Broken(violation)) => return Err(violation),
                Err(Stop::Died) => {
                    self.coverage.hit("crashes inside a call");
                    match self.watch.death.take() {
                        Some(kind) => {
                            let inside = self.random.one_in(3);
                            self.crash(kind, inside)?;
                        }
                        None => {
                            let crash = plan.fired();
                            self.crash(crash.kind, crash.inside)?;
                        }
                    }
                }
            }
            self.faults.left = self.host.device.borrow_mut().faults().left;
            if self.faults.bursts > 0 && self.faults.left == 0 && self.random.one_in(100) {
                self.faults.left = self.random.between(1, 20) as u32;
            }
        }
        self.host.device.borrow_mut().arm(None);
        let last = if self.random.one_in(2) { Crash::Host } else { Crash::Clean };
        self.crash(last, false)?;
        if self.options.damage && self.random.one_in(2) {
            self.damage()?;
        }
        self.collect();
        Ok(())
    }

    /// Does something during which the process is not made to die.
    pub fn settled<T>(&mut self, act: impl FnOnce(&mut Self) -> Step<T>) -> Result<T, Violation> {
        match act(self) {
            Ok(result) => Ok(result),
            Err(Stop::Broken(violation)) => Err(violation),
            Err(Stop::Died) => Err(Violation("the process died by itself".into())),
        }
    }

    fn make_first_disks(&mut self) -> Step<()> {
        for blocks in self.workload.first_disks() {
            self.create(blocks)?;
        }
        Ok(())
    }

    /// Calls the subject, which may die in it.
    pub fn call<T>(&mut self, act: impl FnOnce(&mut S) -> T) -> Step<T> {
        let Some(subject) = self.subject.as_mut() else {
            return Err(Stop::Broken(Violation("there is no process".into())));
        };
        guarded(|| act(subject))
    }

    /// Takes what the subject has counted, before it goes.
    pub fn collect(&mut self) {
        if let Some(subject) = &self.subject {
            let counters = guarded(|| subject.counters());
            for (name, count) in counters.unwrap_or_default() {
                self.coverage.add(name, count);
            }
        }
    }

    /// A name for a request.
    pub fn ticket(&mut self, waiting: Waiting) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.waiting.insert(ticket, waiting);
        ticket
    }

    /// One line of the trace, if anybody looks, after those of the device.
    pub fn trace(&mut self, what: &str, detail: impl FnOnce() -> String) {
        let Some(sink) = &mut self.sink else { return };
        let number = self.model.top();
        let (now, lines) = {
            let mut device = self.host.device.borrow_mut();
            (device.now(), device.take_trace())
        };
        for (at, line) in lines {
            sink(&format!("{at:>12} us {number:>6}  {:<10} {line}", ""));
        }
        sink(&format!("{now:>12} us {number:>6}  {what:<10} {}", detail()));
    }

    /// A change in the words of the trace.
    pub fn describe(change: Change) -> String {
        match change {
            Change::Blocks { disk, lba, blocks, value } => {
                format!("disk {disk} {lba}+{blocks} {value:?}")
            }
            Change::Disk { disk, blocks } => format!("disk {disk} has {blocks:?} blocks"),
        }
    }
}

/// Runs code of a process that may die or panic in it.
pub(crate) fn guarded<T>(act: impl FnOnce() -> T) -> Step<T> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|payload| {
        if payload.is::<Killed>() {
            return Stop::Died;
        }
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("?");
        Stop::Broken(Violation(format!("the store panicked: {text}")))
    })
}

fn draw_bursts(faults: &mut Faults, random: &mut Random) {
    if random.one_in(2) {
        let flushes = [0, 0, 600][random.below(3) as usize];
        faults.errors = [0, random.between(300, 3000) as u32, flushes];
        faults.bursts = 85_000;
        if random.one_in(2) {
            faults.errors = [0, 0, flushes];
            faults.bad_places = random.between(20, 200);
        }
        faults.left = random.between(6, 60) as u32;
    }
}

fn draw_faults(random: &mut Random) -> Faults {
    let mut faults = Faults::default();
    if random.one_in(3) {
        faults.micros[crate::FLUSH] = (1000, 20_000);
    }
    if random.one_in(4) {
        faults.slow = random.between(20, 500) as u32;
    }
    if random.one_in(3) {
        faults.left = random.between(1, 6) as u32;
        match random.below(5) {
            // Scrubs take most of them.
            0 => (faults.errors[crate::READ], faults.left) = (8000, faults.left * 8),
            1 => faults.errors[crate::WRITE] = 800,
            2 => faults.errors[crate::FLUSH] = 20_000,
            3 => faults.short = 800,
            _ => faults.errors = [3000, 300, 1000],
        }
    }
    faults
}
