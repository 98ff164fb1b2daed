//! A pool on a medium in memory, the tape of what happened to it, and what it must hold.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bowline_arena::{Arena, Memory, SharedPages};
use bowline_store::{
    ArenaRegion, BlockState, Broken, Completion, CreateOptions, DiskId, Event, Io, IoId, Lba,
    Media, MediumError, Micros, PoolId, PoolState, Store, StoreOptions, Ticket, create,
};

pub const BLOCK: usize = 4096;
pub const SLOT_BYTES: u64 = 128 << 10;
pub const SLOTS: u64 = 34;
pub const FIRST_SLOT_AT: u64 = 1 << 20;
/// What a block holds beside data: tags of writes are higher.
pub const HOLE: u64 = 0;
pub const ZERO: u64 = 1;

/// What happened to the medium.
#[derive(Clone)]
pub enum Step {
    Write {
        at: usize,
        bytes: Rc<Vec<u8>>,
    },
    Flush,
    /// A flush that failed: what it should have covered is in doubt until it is written again.
    FailedFlush,
    /// The host went down; unflushed writes were kept or lost.
    Cut {
        is_kept: bool,
    },
}

/// Every block of every disk.
pub type Content = BTreeMap<DiskId, Rc<Vec<u64>>>;

/// What was asked and promised since the pool was last opened.
#[derive(Clone, Default)]
pub struct Timeline {
    /// The length of the tape when it began.
    pub from: usize,
    /// By the number of the request that made it.
    pub states: Vec<(u64, Content)>,
    /// Length of the tape, and the last request that was flushed by then.
    pub promised: Vec<(usize, u64)>,
    /// Length of the tape, and the last request admitted by then.
    pub admitted: Vec<(usize, u64)>,
}

impl Timeline {
    pub fn state(&self, seq: u64) -> &Content {
        let at = self.states.partition_point(|(number, _)| *number <= seq);
        &self.states[at - 1].1
    }

    /// The first and the last request whose state may be found after a crash at this length.
    pub fn bounds(&self, length: usize) -> (u64, u64) {
        let low = self.promised.iter().rev().find(|(at, _)| *at <= length).map_or(0, |p| p.1);
        let high = self.admitted.iter().rev().find(|(at, _)| *at < length).map_or(low, |p| p.1);
        (low, high.max(low))
    }
}

#[derive(Default)]
pub struct Tape {
    pub steps: Vec<Step>,
    pub timelines: Vec<Timeline>,
    /// What the disks should hold now.
    pub now: Content,
}

/// What is done before a write or a flush.
pub type Before = Rc<dyn Fn(&Io)>;
/// Says what fails.
pub type Fails = Rc<dyn Fn(&Io) -> bool>;

/// A medium in memory that completes at once and keeps a tape, if it has one.
pub struct Taped {
    pub bytes: Rc<RefCell<Vec<u8>>>,
    pub memory: Rc<Memory>,
    pub done: VecDeque<Completion>,
    pub tape: Option<Rc<RefCell<Tape>>>,
    /// Called before each write and flush.
    pub kill: Option<Before>,
    /// Says what fails: of a write some sectors land all the same.
    pub fails: Option<Fails>,
}

impl Taped {
    pub fn new(bytes: Rc<RefCell<Vec<u8>>>, memory: Rc<Memory>) -> Taped {
        Taped { bytes, memory, done: VecDeque::new(), tape: None, kill: None, fails: None }
    }
}

impl Media for Taped {
    fn bytes_total(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let is_change = matches!(io, Io::Write { .. } | Io::Flush);
        if let Some(kill) = self.kill.as_ref().filter(|_| is_change) {
            kill(&io);
        }
        let is_failing = self.fails.as_ref().is_some_and(|fails| is_change && fails(&io));
        match &io {
            Io::Read { at, into } => {
                let bytes = self.bytes.borrow();
                let from = *at as usize;
                self.memory.land(*into, &bytes[from..from + into.bytes as usize]);
            }
            Io::Write { at, from } => {
                let mut taken = Vec::new();
                from.iter().for_each(|part| self.memory.fetch(*part, &mut taken));
                if is_failing {
                    taken.truncate(512);
                }
                let at = *at as usize;
                self.bytes.borrow_mut()[at..at + taken.len()].copy_from_slice(&taken);
                if let Some(tape) = &self.tape {
                    let bytes = Rc::new(taken);
                    tape.borrow_mut().steps.push(Step::Write { at, bytes });
                }
            }
            Io::Flush => {
                if let Some(tape) = &self.tape {
                    let step = if is_failing { Step::FailedFlush } else { Step::Flush };
                    tape.borrow_mut().steps.push(step);
                }
            }
            _ => {}
        }
        let error = || MediumError::System { call: "test".into(), code: 5 };
        let result = if is_failing { Err(error()) } else { Ok(()) };
        self.done.push_back(Completion { id, result });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        if self.done.is_empty() { Err(MediumError::Died) } else { Ok(()) }
    }
}

pub fn block_of(tag: u64) -> [u8; BLOCK] {
    let mut block = [tag as u8; BLOCK];
    block[..8].copy_from_slice(&tag.to_le_bytes());
    block
}

/// A pool that is open.
pub struct World {
    pub store: Store<Taped>,
    pub memory: Rc<Memory>,
    pub pages: SharedPages,
    pub now: u64,
}

impl World {
    pub fn open(
        arena: Arena,
        is_fresh: bool,
        media: Taped,
        boot: u128,
        broken: Option<Broken>,
    ) -> Result<World, String> {
        let Arena { control, pages, memory, .. } = arena;
        let options = StoreOptions {
            delta_bytes: 1 << 20,
            map_frames: 32,
            checkpoint_log_bytes: Some(3 << 20),
            boot,
            broken: broken.into_iter().collect(),
            write_bytes_max: 64 * BLOCK as u64,
            ..StoreOptions::default()
        };
        let region = ArenaRegion { control, index: None, pages: pages.clone(), is_fresh };
        let store = Store::open(media, region, options).map_err(|error| error.to_string())?;
        match store.status().state {
            PoolState::Healthy => Ok(World { store, memory, pages, now: 0 }),
            other => Err(format!("{other:?}")),
        }
    }

    pub fn poll(&mut self, most: usize) {
        for _ in 0..most {
            self.now += 100;
            if !self.store.poll(Micros(self.now)) {
                return;
            }
        }
    }

    pub fn wait<T>(&mut self, mut what: impl FnMut(Event) -> Option<T>) -> T {
        for _ in 0..5000 {
            while let Some(event) = self.store.next_event() {
                if let Some(found) = what(event) {
                    return found;
                }
            }
            self.poll(1);
        }
        panic!("no answer: {:?}", self.store.status());
    }

    pub fn read(&mut self, disk: DiskId, lba: u64, blocks: u32) -> Vec<u8> {
        let span = self.pages.borrow_mut().take(blocks).unwrap();
        self.store.read(Ticket(1), disk, Lba(lba), span);
        let (span, result) = self.wait(|event| match event {
            Event::Read { span, result, .. } => Some((span, result)),
            _ => None,
        });
        let bytes = self.memory.slice(&span).to_vec();
        self.pages.borrow_mut().give(span);
        result.unwrap();
        bytes
    }

    /// Every block of a disk: holes and zeros by their states, data by its bytes; what reads as
    /// zeros is read at both ends of a run.
    pub fn content(&mut self, disk: DiskId, blocks: u64) -> Vec<u64> {
        let mut found = Vec::new();
        while (found.len() as u64) < blocks {
            let from = found.len() as u64;
            self.store.block_status(Ticket(2), disk, Lba(from), blocks - from, 64);
            let extents = self.wait(|event| match event {
                Event::Status { result, .. } => Some(result.unwrap()),
                _ => None,
            });
            for extent in extents {
                let first = found.len() as u64;
                if extent.state != BlockState::Data {
                    for lba in [first, first + extent.blocks - 1] {
                        assert!(self.read(disk, lba, 1).iter().all(|byte| *byte == 0));
                    }
                    let tag = if extent.state == BlockState::Zero { ZERO } else { HOLE };
                    found.resize((first + extent.blocks) as usize, tag);
                    continue;
                }
                for lba in (first..first + extent.blocks).step_by(32) {
                    let count = (first + extent.blocks - lba).min(32);
                    for block in self.read(disk, lba, count as u32).chunks_exact(BLOCK) {
                        let mut word = [0; 8];
                        word.copy_from_slice(&block[..8]);
                        let tag = u64::from_le_bytes(word);
                        assert!(tag > ZERO && block == block_of(tag), "nobody wrote this");
                        found.push(tag);
                    }
                }
            }
        }
        found
    }

    pub fn contents(&mut self) -> Content {
        let disks: Vec<(DiskId, u64)> =
            self.store.disks().map(|disk| (disk.id, disk.bytes / BLOCK as u64)).collect();
        disks.into_iter().map(|(id, blocks)| (id, Rc::new(self.content(id, blocks)))).collect()
    }
}

pub fn arena() -> Arena {
    Arena::private(64 << 10, 6 << 20)
}

/// The request whose state a pool holds; none if it is not that of any that may be found.
pub fn found_in(
    world: &mut World,
    timeline: &Timeline,
    (low, high): (u64, u64),
) -> Result<u64, String> {
    let found = world.contents();
    let fits = |seq: &u64| *timeline.state(*seq) == found;
    (low..=high).rev().find(fits).ok_or_else(|| {
        let wanted = timeline.state(high);
        let mut text = format!("it is as after no request of {low}..={high}");
        for (disk, blocks) in &found {
            let Some(wanted) = wanted.get(disk) else {
                text.push_str(&format!("; disk {disk} is there"));
                continue;
            };
            let differs = |lba: &usize| wanted.get(*lba) != blocks.get(*lba);
            if let Some(lba) = (0..blocks.len().max(wanted.len())).find(differs) {
                let (is, was) = (blocks.get(lba), wanted.get(lba));
                text.push_str(&format!("; disk {disk} block {lba}: {is:?}, last {was:?}"));
            }
        }
        text
    })
}

/// The host goes down with these bytes on the medium, and the pool is opened.
pub fn after_power_cut(
    bytes: Vec<u8>,
    timeline: &Timeline,
    bounds: (u64, u64),
    boot: u128,
    broken: Option<Broken>,
) -> Result<u64, String> {
    let arena = arena();
    let memory = arena.memory.clone();
    let bytes = Rc::new(RefCell::new(bytes));
    let media = Taped::new(bytes, memory);
    let mut world = World::open(arena, true, media, boot, broken)?;
    found_in(&mut world, timeline, bounds)
}
pub const SIZE: usize = (FIRST_SLOT_AT + SLOTS * SLOT_BYTES) as usize;

/// What is flushed, and what came after, as a tape is walked along.
#[derive(Clone)]
pub struct Walk {
    pub stable: Vec<u8>,
    pub pending: Vec<(usize, Rc<Vec<u8>>)>,
    /// Blocks that a failed flush should have covered, by their places: no flush since then says
    /// anything about them.
    pub doubtful: BTreeMap<usize, Vec<u8>>,
}

impl Walk {
    pub fn over(steps: &[Step]) -> Walk {
        let (pending, doubtful) = (Vec::new(), BTreeMap::new());
        let mut walk = Walk { stable: fresh(), pending, doubtful };
        steps.iter().for_each(|step| walk.step(step));
        walk
    }

    pub fn step(&mut self, step: &Step) {
        match step {
            Step::Write { at, bytes } => self.pending.push((*at, bytes.clone())),
            Step::Flush => {
                for (at, bytes) in self.pending.drain(..) {
                    self.stable[at..at + bytes.len()].copy_from_slice(&bytes);
                    for block in (at..at + bytes.len()).step_by(BLOCK) {
                        self.doubtful.remove(&block);
                    }
                }
            }
            Step::FailedFlush => {
                for (at, bytes) in self.pending.drain(..) {
                    for (number, block) in bytes.chunks(BLOCK).enumerate() {
                        self.doubtful.insert(at + number * BLOCK, block.to_vec());
                    }
                }
            }
            Step::Cut { is_kept } => {
                self.stable = self.with(|_| *is_kept);
                self.pending.clear();
                self.doubtful.clear();
            }
        }
    }

    /// The medium with some of the unflushed writes.
    pub fn with(&self, keep: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut bytes = self.stable.clone();
        for (at, block) in &self.doubtful {
            bytes[*at..*at + block.len()].copy_from_slice(block);
        }
        for (number, (at, write)) in self.pending.iter().enumerate() {
            if keep(number) {
                bytes[*at..*at + write.len()].copy_from_slice(write);
            }
        }
        bytes
    }
}

/// The medium of a pool that was just made.
pub fn fresh() -> Vec<u8> {
    let bytes = Rc::new(RefCell::new(vec![0; SIZE]));
    let arena = arena();
    let mut media = Taped::new(bytes.clone(), arena.memory.clone());
    let options =
        CreateOptions { pool: PoolId(5), salt: 31, slot_bytes: SLOT_BYTES, now_seconds: 0 };
    create(&mut media, &arena.pages, &options).unwrap();
    drop(media);
    bytes.take()
}
