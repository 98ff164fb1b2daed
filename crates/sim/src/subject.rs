//! What the simulator needs of a store, so that the same runs judge the real one and small ones
//! made to be wrong.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_arena::Memory;
use bowline_store::{Refused, Ticket};

use crate::device::{Device, SharedDevice};

/// The size of a pool and of what serves it.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Blocks of a slot.
    pub slot_blocks: u64,
    /// Number of slots.
    pub slots: u64,
    /// Blocks of the medium; more than the slots need for subjects without slots.
    pub medium_blocks: u64,
    /// Bytes of the memory that outlives the process.
    pub arena_bytes: u64,
    /// Bytes of log after which a checkpoint begins.
    pub checkpoint_bytes: u64,
    /// Whether who is killed leaves enough for a successor to go on in place.
    pub in_place: bool,
    /// A behaviour broken on purpose, by name.
    pub broken: Option<String>,
    /// Randomness for the subject's own identities.
    pub seed: u64,
}

impl Setup {
    /// Blocks of the slots.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.slot_blocks * self.slots
    }

    /// Whether this behaviour is the broken one.
    #[must_use]
    pub fn is_broken(&self, name: &str) -> bool {
        self.broken.as_deref() == Some(name)
    }
}

/// The machine a subject runs on: what outlives the process, and what outlives even the machine.
#[derive(Clone)]
pub struct Host {
    /// The device. Outlives the host.
    pub device: SharedDevice,
    /// The memory that outlives the process, not the host.
    pub memory: Rc<Memory>,
    /// Whether nobody has used the memory yet.
    pub is_fresh: bool,
    /// Counts the host's boots.
    pub boot: u64,
}

impl Host {
    /// A new machine with an empty device, and a process about to start on it.
    #[must_use]
    pub fn new(setup: &Setup) -> Host {
        let memory = Rc::new(Memory::private(setup.arena_bytes));
        let device = Device::new(setup.medium_blocks, memory.clone(), setup.seed);
        let host = Host { device: Rc::new(RefCell::new(device)), memory, is_fresh: true, boot: 1 };
        host.device.borrow_mut().succeed(host.memory.clone());
        host
    }

    /// A machine of its own, as this one is now.
    #[must_use]
    pub fn copy(&self) -> Host {
        let memory = Rc::new(self.memory.successor());
        let mut device = self.device.borrow_mut().snapshot();
        device.succeed(memory.clone());
        let device = Rc::new(RefCell::new(device));
        Host { device, memory, is_fresh: self.is_fresh, boot: self.boot }
    }

    /// The process dies; its successor is about to start. `fence` waits for the dead's I/O.
    pub fn crash_process(&mut self, fence: bool) {
        let mut device = self.device.borrow_mut();
        device.kill();
        if fence {
            device.settle();
        }
        self.memory = Rc::new(self.memory.successor());
        self.is_fresh = false;
        device.succeed(self.memory.clone());
    }

    /// The host loses its power and boots again.
    pub fn crash(&mut self) {
        let mut device = self.device.borrow_mut();
        device.crash_host();
        self.memory = Rc::new(Memory::private(self.memory.bytes_total()));
        self.is_fresh = true;
        self.boot += 1;
        device.succeed(self.memory.clone());
    }

    /// The process dies and somebody removes its memory, on the same boot.
    pub fn lose_memory(&mut self) {
        self.crash_process(true);
        self.memory = Rc::new(Memory::private(self.memory.bytes_total()));
        self.is_fresh = true;
        self.device.borrow_mut().succeed(self.memory.clone());
    }
}

/// Why a subject could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Acknowledged writes are known to be lost; it wants to be told to go on.
    #[error("acknowledged writes are lost")]
    LostWrites,
    /// The medium failed in a way that may pass.
    #[error("the medium failed: {0}")]
    Medium(String),
    /// The pool is damaged, and says so.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Whether a subject serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// Writing has stopped after a medium error.
    Stopped(String),
    /// The pool is damaged and open for reading only.
    Damaged(String),
}

/// A run of blocks in one state, as a subject tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of blocks.
    pub blocks: u64,
    /// What they hold.
    pub value: crate::Value,
}

/// Something a subject tells.
#[derive(Debug)]
pub enum Told {
    /// A read is done.
    Read {
        /// Which.
        ticket: Ticket,
        /// The bytes, or why not.
        result: Result<Vec<u8>, String>,
    },
    /// A question about block states is answered.
    Status {
        /// Which.
        ticket: Ticket,
        /// The runs from the first block asked for.
        result: Result<Vec<Run>, String>,
    },
    /// A flush is done.
    Flushed {
        /// Which.
        ticket: Ticket,
        /// Whether everything before it is durable.
        result: Result<(), Refused>,
    },
    /// What was refused as busy may be tried again.
    Room,
}

/// A store under simulation. Disks are named by numbers that the simulator chooses and the subject
/// keeps; offsets are blocks.
pub trait Subject: Sized {
    /// What subjects of this kind count, zero of which over many seeds means that the seeds do not
    /// test what they should.
    const COVERED: &'static [&'static str];

    /// Fits a setup to this kind of subject.
    #[must_use]
    fn setup(setup: Setup) -> Setup {
        setup
    }

    /// Makes an empty pool.
    ///
    /// # Errors
    /// In words.
    fn format(host: &Host, setup: &Setup) -> Result<(), String>;

    /// Starts: recovery, and adoption of what a dead process left in the memory.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(host: &Host, setup: &Setup, accept_loss: bool) -> Result<Self, OpenError>;

    /// Makes a disk.
    ///
    /// # Errors
    /// If it is not made.
    fn create_disk(&mut self, disk: u32, blocks: u64) -> Result<(), Refused>;

    /// Changes the size of a disk.
    ///
    /// # Errors
    /// If it is not changed.
    fn resize_disk(&mut self, disk: u32, blocks: u64) -> Result<(), Refused>;

    /// Removes a disk.
    ///
    /// # Errors
    /// If it is not removed.
    fn destroy_disk(&mut self, disk: u32) -> Result<(), Refused>;

    /// The disks and their blocks.
    fn disks(&self) -> Vec<(u32, u64)>;

    /// How many blocks of data it says a disk holds at the most, and whether it holds just as many.
    fn data_blocks(&self, _disk: u32) -> Option<(u64, bool)> {
        None
    }

    /// Writes blocks; `owned` where the bytes already lie in the memory. The number is the store's.
    ///
    /// # Errors
    /// If the write is not admitted.
    fn write(&mut self, disk: u32, lba: u64, bytes: &[u8], owned: bool) -> Result<u64, Refused>;

    /// Makes blocks zeros that keep their reservation.
    ///
    /// # Errors
    /// If that is not admitted.
    fn zero(&mut self, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused>;

    /// Makes blocks holes.
    ///
    /// # Errors
    /// If that is not admitted.
    fn discard(&mut self, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused>;

    /// Reads blocks; [`Told::Read`] follows. False if there is no buffer now.
    fn read(&mut self, ticket: Ticket, disk: u32, lba: u64, blocks: u64) -> bool;

    /// Asks for the states of blocks; [`Told::Status`] follows.
    fn block_status(&mut self, ticket: Ticket, disk: u32, lba: u64, blocks: u64);

    /// Asks for everything admitted to become durable; [`Told::Flushed`] follows.
    fn flush(&mut self, ticket: Ticket);

    /// The store's number through which everything is durable.
    fn durable_through(&self) -> u64;

    /// Does what can be done at this time; true if something was.
    fn poll(&mut self, now: u64) -> bool;

    /// The next thing it tells.
    fn next_told(&mut self) -> Option<Told>;

    /// Whether it serves.
    fn health(&self) -> Health;

    /// Begins to write again after a medium error; [`Subject::resumed`] tells how that ended.
    ///
    /// # Errors
    /// In words, if it cannot begin.
    fn resume(&mut self) -> Result<(), String>;

    /// How the last try to write again ended, once: in words, if it cannot.
    fn resumed(&mut self) -> Option<Result<(), String>>;

    /// What of writing elsewhere, after a medium error, is under way: one of
    /// [`HEALING`](crate::HEALING).
    fn healing(&self) -> Option<&'static str> {
        None
    }

    /// Begins to verify everything on the medium, unless that is being done.
    fn start_scrub(&mut self) {}

    /// Whether a scrub runs, and how much it, or the last one, has found.
    fn scrub_news(&self) -> (bool, u64) {
        (false, 0)
    }

    /// What it has found: whether the medium could not read it, and in words.
    fn scrub_findings(&self) -> Vec<(bool, String)> {
        Vec::new()
    }

    /// Stops cleanly.
    ///
    /// # Errors
    /// In words.
    fn close(self) -> Result<(), String>;

    /// Most blocks of data it says it can hold; near them it may refuse for want of space.
    fn live_blocks_max(&self) -> u64;

    /// The same, where so many of its slots can have space, and no more.
    fn live_blocks_max_of(&self, _slots: u64) -> u64 {
        self.live_blocks_max()
    }

    /// What it says of itself, for the report of a broken promise.
    fn describe(&self) -> String {
        String::new()
    }

    /// What it has counted since it was opened, names from [`Subject::COVERED`] and others.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}
