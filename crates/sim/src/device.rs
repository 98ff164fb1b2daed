//! A simulated device: it outlives processes and hosts. Rules:
//! - Virtual time only. I/O completes when its time has come, in an order drawn from the seed.
//! - The bytes of a write leave the memory when it lands, not when it is submitted, so a submitter
//!   that changes them in between is found out (and would be by real hardware, now and then).
//! - When a process dies, what it had submitted lands later, whole, in part or never, in any order,
//!   writes into the device and reads into the memory, until after [`Device::settle`].

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use bowline_arena::{Memory, Part};
use bowline_store::{Io, IoId, MediumError};

use crate::Random;
use crate::faults::{Fate, Faults};
use crate::journal::Moment;
use crate::platter::{Content, PAGE, Platter, SECTOR};

const EIO: i32 = 5;
const NO_SPACE: i32 = 28;

#[derive(Debug, Clone)]
struct Flight {
    id: IoId,
    io: Io,
    due: u64,
    fate: Fate,
    /// A flush covers what had completed when it was submitted.
    through: u64,
    /// How many flushes had been submitted, with this one.
    flushes: u64,
    /// A hash of a write's bytes when it was submitted, for some of them.
    sum: Option<u64>,
}

/// What happened at a device, counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceCounters {
    /// Writes that completed.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Reads that completed.
    pub reads: u64,
    /// Flushes that completed well.
    pub flushes: u64,
    /// Flushes that were submitted, and the last of them that completed well.
    pub flushes_submitted: u64,
    /// See `flushes_submitted`.
    pub flushed_last: u64,
    /// Writes of dead processes that landed after the death.
    pub landed_late: u64,
    /// Of these, after the successor had begun.
    pub landed_on_successor: u64,
    /// Blocks that lost volatile content in a host crash.
    pub blocks_lost: u64,
    /// Blocks that came out of a host crash with sectors of several writes.
    pub blocks_torn: u64,
    /// Allocations that found no space below.
    pub no_space: u64,
    /// Allocations that failed by an injected error.
    pub allocations_failed: u64,
    /// Injected errors, by read, write and flush.
    pub errors: [u64; 3],
}

/// A device and all that is under way to it. Survives the process and the host.
#[derive(Clone)]
pub struct Device {
    platter: Platter,
    memory: Rc<Memory>,
    now: u64,
    flights: Vec<Flight>,
    orphans: Vec<Flight>,
    ready: VecDeque<(IoId, Result<(), MediumError>)>,
    random: Random,
    faults: Faults,
    fuse: Option<u64>,
    calls: u64,
    generation: u64,
    alive: bool,
    counters: DeviceCounters,
    broken_rules: Vec<String>,
    scratch: Vec<u8>,
    /// Blocks that have space below, and how many more can get some: all, if it is not said.
    backed: BTreeSet<u64>,
    space_left: Option<u64>,
    pub(crate) journal: Option<Vec<Moment>>,
    trace: Option<Vec<(u64, String)>>,
}

/// A device shared by the simulator and the processes it simulates.
pub type SharedDevice = Rc<RefCell<Device>>;

impl Device {
    /// A device full of zeros, and the memory its I/O moves bytes to and from.
    #[must_use]
    pub fn new(blocks: u64, memory: Rc<Memory>, seed: u64) -> Device {
        Device {
            platter: Platter::new(blocks),
            memory,
            now: 1,
            flights: Vec::new(),
            orphans: Vec::new(),
            ready: VecDeque::new(),
            random: Random::new(seed ^ 0x6d65_6469),
            faults: Faults::default(),
            fuse: None,
            calls: 0,
            generation: 0,
            alive: false,
            counters: DeviceCounters::default(),
            broken_rules: Vec::new(),
            scratch: Vec::new(),
            backed: BTreeSet::new(),
            space_left: None,
            journal: None,
            trace: None,
        }
    }

    /// Virtual time in microseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> DeviceCounters {
        self.counters
    }

    /// The memory its I/O moves bytes to and from.
    #[must_use]
    pub fn memory(&self) -> &Rc<Memory> {
        &self.memory
    }

    /// From here on, what is drawn is another seed's.
    pub fn reseed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    /// What is stored.
    pub fn platter(&mut self) -> &mut Platter {
        &mut self.platter
    }

    /// The errors and delays to come.
    pub fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Begins to keep a line for each event, and takes the lines with their times.
    pub fn take_trace(&mut self) -> Vec<(u64, String)> {
        self.trace.replace(Vec::new()).unwrap_or_default()
    }

    fn trace(&mut self, what: &str, flight: &Flight) {
        let Some(lines) = &mut self.trace else { return };
        let io = match &flight.io {
            Io::Read { at, into } => {
                format!("read {}+{} to {}", at / 4096, into.bytes / 4096, into.offset / 4096)
            }
            Io::Write { at, from } => {
                let parts: Vec<String> = from
                    .iter()
                    .map(|part| format!("{}+{}", part.offset / 4096, part.bytes / 4096))
                    .collect();
                let blocks: u32 = from.iter().map(|part| part.bytes / 4096).sum();
                format!("write {}+{blocks} from {}", at / 4096, parts.join(" "))
            }
            Io::Flush => "flush".into(),
            Io::Discard { at, bytes } => format!("discard {}+{}", at / 4096, bytes / 4096),
            Io::Allocate { at, bytes, .. } => format!("allocate {}+{}", at / 4096, bytes / 4096),
        };
        let fate =
            if flight.fate == Fate::Good { String::new() } else { format!("{:?}", flight.fate) };
        lines.push((self.now, format!("{what} {:x} {io} {fate}", flight.id.0)));
    }

    /// Takes the rules of media that were broken by the submitter.
    pub fn take_broken_rules(&mut self) -> Vec<String> {
        std::mem::take(&mut self.broken_rules)
    }

    /// The file system below has space for so many blocks more than have some by now. A write that
    /// finds none is a rule broken: space is to be taken before.
    pub fn limit_space(&mut self, blocks: u64) {
        self.space_left = Some(blocks);
    }

    /// Gives blocks their space; false if there is too little, and then none gets any.
    fn back(&mut self, at: u64, bytes: u64) -> bool {
        let blocks = at / PAGE as u64..(at + bytes) / PAGE as u64;
        let missing = blocks.clone().filter(|block| !self.backed.contains(block)).count() as u64;
        match &mut self.space_left {
            Some(left) if *left < missing => return false,
            Some(left) => *left -= missing,
            None => {}
        }
        self.backed.extend(blocks);
        true
    }

    /// Lets time pass.
    pub fn advance(&mut self, micros: u64) {
        self.now += micros;
        self.land_orphans_due();
    }

    /// Which process lives now, if one does.
    pub(crate) fn living(&self) -> Option<u64> {
        self.alive.then_some(self.generation)
    }

    /// The process that is about to live, or lives.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Lets time pass until something can be taken; false if nothing ever can.
    pub(crate) fn wait(&mut self) -> bool {
        if self.ready.is_empty() {
            let Some(due) = self.next_due() else { return false };
            self.advance(due.saturating_sub(self.now));
        }
        true
    }

    /// One of two, as the seed has it.
    pub(crate) fn toss(&mut self) -> bool {
        self.random.one_in(2)
    }

    /// When the next I/O of the living process completes.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.flights.iter().map(|flight| flight.due).min()
    }

    /// The process is to die at its n-th call from now; nothing disarms.
    pub fn arm(&mut self, calls: Option<u64>) {
        self.fuse = calls;
    }

    /// Calls at which processes could have died so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The process dies, or is dead already; its I/O lands later.
    pub fn kill(&mut self) {
        self.alive = false;
        self.generation += 1;
        self.fuse = None;
        self.ready.clear();
        for mut flight in std::mem::take(&mut self.flights) {
            let later = if self.random.one_in(3) { 2_000_000 } else { 20_000 };
            flight.due = self.now + self.random.below(later);
            // The end of a process cancels what no driver has begun, and splits what is large.
            match self.random.below(8) {
                0 | 1 => continue,
                2 if !matches!(flight.io, Io::Flush) => flight.fate = Fate::Error(EIO),
                _ => {}
            }
            self.orphans.push(flight);
        }
    }

    /// Number of the dead's I/Os that can still land.
    #[must_use]
    pub fn pending_of_dead(&self) -> usize {
        self.orphans.len()
    }

    /// Waits until no I/O of the dead can land any more: the fence.
    pub fn settle(&mut self) {
        if let Some(last) = self.orphans.iter().map(|flight| flight.due).max() {
            self.now = self.now.max(last);
            self.land_orphans_due();
        }
    }

    /// A successor begins over `memory`, which holds what the dead left there.
    pub fn succeed(&mut self, memory: Rc<Memory>) {
        self.memory = memory;
        self.alive = true;
    }

    /// The host loses its power, and with it every process and the memory.
    pub fn crash_host(&mut self) {
        self.kill();
        let mut random = self.random.fork();
        while !self.orphans.is_empty() {
            let index = random.below(self.orphans.len() as u64) as usize;
            let mut flight = self.orphans.swap_remove(index);
            match random.below(4) {
                0 => {}
                1 => self.land(&flight),
                _ if matches!(flight.io, Io::Flush) => {}
                _ => {
                    flight.fate = Fate::Error(EIO);
                    self.land(&flight);
                }
            }
        }
        let (lost, torn) = self.platter.crash(&mut random);
        self.counters.blocks_lost += lost;
        self.counters.blocks_torn += torn;
    }

    fn land_orphans_due(&mut self) {
        while let Some(index) = earliest(&self.orphans, self.now) {
            let flight = self.orphans.swap_remove(index);
            if matches!(flight.io, Io::Write { .. }) {
                self.counters.landed_late += 1;
                self.counters.landed_on_successor += u64::from(self.alive);
            }
            self.land(&flight);
        }
    }

    pub(crate) fn submit(&mut self, id: IoId, io: Io) {
        let (fate, delay) = self.faults.draw(&io, &mut self.random);
        let sum = match &io {
            Io::Write { from, .. } if self.random.one_in(4) => Some(self.sum(from)),
            _ => None,
        };
        if let Some(rule) = self.broken_rule(id, &io) {
            self.broken_rules.push(rule);
            self.ready.push_back((id, Err(system("io past the end", 22))));
            return;
        }
        let due = self.now + delay;
        self.counters.flushes_submitted += u64::from(matches!(io, Io::Flush));
        let (through, flushes) = (self.platter.stamp(), self.counters.flushes_submitted);
        let flight = Flight { id, io, due, fate, through, flushes, sum };
        self.trace("submit", &flight);
        self.flights.push(flight);
    }

    fn broken_rule(&self, id: IoId, io: &Io) -> Option<String> {
        if self.flights.iter().any(|flight| flight.id == id) {
            return Some(format!("{id:?} is submitted while it is under way"));
        }
        let (at, bytes) = match io {
            Io::Read { at, into } => (*at, u64::from(into.bytes)),
            Io::Write { at, from } => (*at, from.iter().map(|part| u64::from(part.bytes)).sum()),
            Io::Discard { at, bytes } | Io::Allocate { at, bytes, .. } => (*at, *bytes),
            Io::Flush => return None,
        };
        let page = PAGE as u64;
        if !at.is_multiple_of(page) || !bytes.is_multiple_of(page) || bytes == 0 {
            return Some(format!("{io:?} is not made of whole blocks"));
        }
        if at.checked_add(bytes).is_none_or(|end| end > self.platter.blocks() * page) {
            return Some(format!("{io:?} reaches past the end of the medium"));
        }
        None
    }

    pub(crate) fn complete(&mut self) -> Option<(IoId, Result<(), MediumError>)> {
        self.land_orphans_due();
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        let flight = self.flights.swap_remove(earliest(&self.flights, self.now)?);
        if let Io::Allocate { at, bytes, .. } = flight.io {
            if flight.fate != Fate::Good {
                self.counters.allocations_failed += 1;
            } else if !self.back(at, bytes) {
                // Not an injected error: it excuses nothing but a refusal for want of space.
                self.counters.no_space += 1;
                return Some((flight.id, Err(system("simulated I/O", NO_SPACE))));
            }
        }
        self.land(&flight);
        let result = match flight.fate {
            Fate::Good | Fate::Lie => {
                if matches!(flight.io, Io::Flush) {
                    let last = &mut self.counters.flushed_last;
                    *last = flight.flushes.max(*last);
                }
                Ok(())
            }
            Fate::Error(code) => {
                self.counters.errors[Faults::kind(&flight.io)] += 1;
                Err(system("simulated I/O", code))
            }
            Fate::Short(done) => {
                self.counters.errors[Faults::kind(&flight.io)] += 1;
                Err(MediumError::Short { call: "simulated I/O".into(), done })
            }
        };
        Some((flight.id, result))
    }

    /// The effect of an I/O, whole or, if its fate is bad, in part.
    fn land(&mut self, flight: &Flight) {
        self.trace("land", flight);
        match &flight.io {
            Io::Write { at, from } => {
                let bytes = from.iter().map(|part| u64::from(part.bytes)).sum();
                if !self.back(*at, bytes) {
                    self.broken_rules.push(format!("a write at {at} finds no space below"));
                    return;
                }
                if flight.sum.is_some_and(|sum| sum != self.sum(from)) {
                    let rule = format!("the bytes of a write at {at} changed under the medium");
                    self.broken_rules.push(rule);
                }
                self.counters.writes += 1;
                self.write(*at / PAGE as u64, from, flight.fate);
            }
            Io::Read { at, into } => {
                self.counters.reads += 1;
                self.read(*at / PAGE as u64, *into, flight.fate);
            }
            Io::Flush => match flight.fate {
                Fate::Good => {
                    self.counters.flushes += 1;
                    self.platter.flush(flight.through);
                }
                Fate::Lie => {}
                _ => self.platter.fail_flush(flight.through, &mut self.random),
            },
            Io::Discard { at, bytes } => self.discard(*at, *bytes),
            Io::Allocate { .. } => {}
        }
    }

    fn write(&mut self, block: u64, from: &[Part], fate: Fate) {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        for part in from {
            self.memory.fetch(*part, &mut bytes);
        }
        let stamp = self.platter.next_stamp();
        self.counters.bytes_written += bytes.len() as u64;
        let moved = fate.moved(bytes.len());
        let (pages, _) = bytes.as_chunks::<PAGE>();
        for (index, page) in pages.iter().enumerate() {
            let block = block + index as u64;
            let start = index * PAGE;
            let content = if start + PAGE <= moved {
                Some(Rc::new(*page))
            } else if matches!(fate, Fate::Error(_)) || start < moved {
                let old = self.platter.content(block);
                mixed(old, page, moved.saturating_sub(start), fate, &mut self.random)
            } else {
                continue;
            };
            self.platter.store(block, content, stamp);
        }
        self.scratch = bytes;
    }

    fn read(&mut self, block: u64, into: Part, fate: Fate) {
        let moved = fate.moved(into.bytes as usize);
        for index in 0..into.bytes as usize / PAGE {
            if index * PAGE >= moved {
                break;
            }
            let content = self.platter.content(block + index as u64);
            let part = into.sub((index * PAGE) as u32, PAGE as u32);
            self.memory.land(part, content.as_deref().unwrap_or(&[0; PAGE]));
        }
    }

    /// Afterwards the blocks hold zeros, what they held, or anything else.
    fn discard(&mut self, at: u64, bytes: u64) {
        let stamp = self.platter.next_stamp();
        let what = self.random.below(3);
        for block in at / PAGE as u64..(at + bytes) / PAGE as u64 {
            match what {
                0 => self.platter.store(block, None, stamp),
                1 => self.platter.store(block, Some(Rc::new([0xd5; PAGE])), stamp),
                _ => {}
            }
        }
    }

    fn sum(&self, parts: &[Part]) -> u64 {
        let mut bytes = Vec::new();
        for part in parts {
            self.memory.fetch(*part, &mut bytes);
        }
        twox_hash::XxHash3_64::oneshot(&bytes)
    }

    /// Counts a call of the living process; true if it is its last.
    pub(crate) fn burn(&mut self) -> bool {
        self.calls += 1;
        match &mut self.fuse {
            Some(0) => true,
            Some(calls) => {
                *calls -= 1;
                false
            }
            None => false,
        }
    }
}

fn earliest(flights: &[Flight], now: u64) -> Option<usize> {
    let (index, flight) = flights.iter().enumerate().min_by_key(|(_, flight)| flight.due)?;
    (flight.due <= now).then_some(index)
}

/// A block of a write that went wrong: the sectors up to `moved`, or any of them after an error.
fn mixed(old: Content, new: &[u8; PAGE], moved: usize, fate: Fate, random: &mut Random) -> Content {
    let mut page = old.map_or([0; PAGE], |page| *page);
    let landed = random.below(3);
    for sector in 0..PAGE / SECTOR {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        let lands = match fate {
            Fate::Error(_) => landed == 0 || (landed == 1 && random.one_in(2)),
            _ => range.end <= moved,
        };
        if lands {
            page[range.clone()].copy_from_slice(&new[range]);
        }
    }
    Some(Rc::new(page))
}

fn system(call: &str, code: i32) -> MediumError {
    MediumError::System { call: call.into(), code }
}
