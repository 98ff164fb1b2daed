//! The store-prefix explorer: a process is cut off between any two of its stores to the memory, and
//! its successor must find everything that was replied to before the cut.
//!
//! The crashes of a seed fall between calls of the medium. This finds what lies between: a record
//! that is published before its content, a word that is torn, an adoption that cannot be cut. Each
//! prefix is adopted on the device as it was at that moment; the dead's I/O then lands as the seed
//! has it. Some adoptions are recorded in their turn, and cut between any two of *their* stores.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_arena::{Memory, Part};

use crate::device::Device;
use crate::journal::Moment;
use crate::model::{Model, Violation};
use crate::recover::Crash;
use crate::run::{Options, POOL_HEAD_BLOCKS, Simulation, Stop, guarded};
use crate::subject::{Host, Setup, Subject};
use crate::{Coverage, Random};

/// What is explored.
#[derive(Debug, Clone)]
pub struct Exploration {
    /// Operations of the load that is cut.
    pub operations: u64,
    /// Every how many-th prefix is adopted.
    pub stride: usize,
    /// Every how many-th adoption is cut in its turn; 0: none.
    pub nested_stride: usize,
    /// A behaviour broken on purpose, by name.
    pub broken: Option<String>,
}

impl Default for Exploration {
    fn default() -> Exploration {
        Exploration { operations: 120, stride: 1, nested_stride: 200, broken: None }
    }
}

/// What a journal starts from.
struct Start {
    image: Vec<u8>,
    device: Device,
    boot: u64,
}

/// What is known to every adoption.
struct Ground<'a> {
    options: &'a Options,
    setup: &'a Setup,
    model: &'a Model,
    coverage: Coverage,
    random: Random,
}

/// Records a load and adopts its prefixes.
///
/// # Errors
/// The first promise that a prefix breaks.
pub fn explore<S: Subject>(seed: u64, what: &Exploration) -> Result<Coverage, Violation> {
    let options = Options {
        operations: what.operations,
        broken: what.broken.clone(),
        faults: false,
        damage: false,
        ..Options::default()
    };
    let mut random = Random::new(seed);
    let setup = S::setup(Setup {
        slot_blocks: 32,
        slots: 60,
        medium_blocks: 32 * 60 + POOL_HEAD_BLOCKS,
        arena_bytes: 4 << 20,
        in_place: seed.is_multiple_of(2),
        checkpoint_bytes: 256 << 10,
        broken: what.broken.clone(),
        seed,
    });
    let mut load = Simulation::<S>::new(seed, &options, setup.clone(), random.fork(), None);
    load.begin()?;
    let start = Start::of(&load.host);
    load.host.device.borrow_mut().start_journal();
    load.settled(|load| (0..what.operations).try_for_each(|_| load.step()))?;
    let journal = load.host.device.borrow_mut().take_journal();
    let mut ground = Ground {
        options: &options,
        setup: &setup,
        model: &load.model,
        coverage: Coverage::default(),
        random,
    };
    let replied = load.first_replied;
    ground.cut::<S>(start, &journal, (replied, replied), what.stride, what.nested_stride)?;
    Ok(ground.coverage)
}

impl Start {
    fn of(host: &Host) -> Start {
        let device = host.device.borrow_mut().snapshot();
        Start { image: host.memory.snapshot(), device, boot: host.boot }
    }

    /// The machine after the process was cut off here.
    fn cut(&self, seed: u64) -> Host {
        let memory = Rc::new(Memory::private(self.image.len() as u64));
        for (index, page) in self.image.chunks(4096).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                memory.land(Part { offset: index as u64 * 4096, bytes: 4096 }, page);
            }
        }
        let mut device = self.device.clone();
        device.reseed(seed);
        device.succeed(memory.clone());
        let device = Rc::new(RefCell::new(device));
        let mut host = Host { device, memory, is_fresh: false, boot: self.boot };
        host.crash_process(true);
        host
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        self.image[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

impl Ground<'_> {
    /// Adopts the prefixes of a journal. `allowed` is what was replied to, and asked for, before
    /// it.
    fn cut<S: Subject>(
        &mut self,
        mut start: Start,
        journal: &[Moment],
        mut allowed: (u64, u64),
        stride: usize,
        nested_stride: usize,
    ) -> Result<(), Violation> {
        let (mut stores, mut adopted) = (0, 0);
        for moment in journal {
            let is_due = (stores + 1) % stride == 0;
            match moment {
                Moment::Stored(record) if record.bytes.len() > 8 && is_due => {
                    // A store of many words is cut inside, too.
                    let words = self.random.between(1, (record.bytes.len() as u64 / 8).max(2) - 1);
                    start.store(record.offset, &record.bytes[..words as usize * 8]);
                    self.adopt::<S>(&start, allowed, false).map_err(|violation| {
                        Violation(format!("cut inside store {}: {}", stores + 1, violation.0))
                    })?;
                    self.coverage.hit("stores cut inside");
                    start.store(record.offset, &record.bytes);
                }
                Moment::Moved(device) => start.device = (**device).clone(),
                Moment::Asked(number) => allowed.1 = *number,
                Moment::Replied(number) => allowed.0 = *number,
                Moment::Stored(record) | Moment::Sent(record) => {
                    start.store(record.offset, &record.bytes);
                }
            }
            if matches!(moment, Moment::Moved(_) | Moment::Asked(_) | Moment::Sent(_)) {
                continue;
            }
            stores += 1;
            if !is_due {
                continue;
            }
            adopted += 1;
            let is_nested = nested_stride > 0 && adopted % nested_stride == 0;
            let at = |violation: Violation| {
                Violation(format!("cut after store {stores}: {}", violation.0))
            };
            self.adopt::<S>(&start, allowed, is_nested).map_err(at)?;
        }
        Ok(())
    }

    fn adopt<S: Subject>(
        &mut self,
        start: &Start,
        allowed: (u64, u64),
        is_nested: bool,
    ) -> Result<(), Violation> {
        let host = start.cut(self.random.number());
        let before = Start::of(&host);
        if is_nested {
            host.device.borrow_mut().start_journal();
        }
        let opened = guarded(|| S::open(&host, self.setup, false));
        let journal = host.device.borrow_mut().take_journal();
        let subject = match opened {
            Ok(Ok(subject)) => subject,
            Ok(Err(error)) => return Err(Violation(format!("adoption: {error}"))),
            Err(Stop::Broken(violation)) => return Err(violation),
            Err(Stop::Died) => return Err(Violation("the process died by itself".into())),
        };
        let random = self.random.fork();
        let setup = self.setup.clone();
        let mut successor = Simulation::<S>::new(0, self.options, setup, random, None);
        successor.model = self.model.clone();
        successor.host = host;
        successor.subject = Some(subject);
        let number = successor.judge(allowed.0, allowed.1)?;
        self.coverage.hit("prefixes adopted");
        if number > allowed.0 {
            self.coverage.hit("prefixes with an unreplied change");
        }
        if self.random.one_in(16) {
            if successor.goes_on_in_place() {
                // It has flushed nothing yet.
                successor.close()?;
            }
            successor.end(Crash::Host, Crash::Clean);
            let opened = guarded(|| S::open(&successor.host, self.setup, false));
            let Ok(Ok(subject)) = opened else {
                return Err(Violation("recovery after an adoption failed".into()));
            };
            successor.subject = Some(subject);
            successor.judge(number, number)?;
            self.coverage.hit("prefixes with a host crash after");
        }
        if is_nested {
            self.coverage.hit("adoptions cut");
            self.cut::<S>(before, &journal, allowed, 1, 0)?;
        }
        Ok(())
    }
}
