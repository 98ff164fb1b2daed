//! A crash at every write to the medium, over a history that holds what recoveries once got wrong:
//! disks destroyed, made anew, shrunk and grown; discards and zeroes in both generations of a
//! checkpoint; segments moved by compaction between a checkpoint and the crash; records that share
//! batches with data and begin or end slots; requests that go on in other segments; epochs that cut
//! each other off, some in the midst of a recovery.
//!
//! The medium keeps a tape of all writes and flushes. After each write the host goes down: what was
//! not flushed is lost, kept, kept in part, or torn. And the process is killed: what is in the arena
//! is there. What is found then, every block and every state of every disk, must be what the model
//! held after some request, no earlier one than was flushed, and the very last one after a kill.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bowline_arena::{Arena, Memory, SharedPages};
use bowline_store::{
    ArenaRegion, BlockState, Broken, Change, Completion, CreateOptions, Disk, DiskId, Durability,
    Event, Io, IoId, Lba, Media, MediumError, Micros, Payload, PoolId, PoolState, Provision,
    Refused, Store, StoreOptions, Ticket, create,
};

const BLOCK: usize = 4096;
const SLOT_BYTES: u64 = 64 << 10;
const SLOTS: u64 = 40;
const FIRST_SLOT_AT: u64 = 1 << 20;
/// Of so many writes, one is met by a kill of the process.
const KILLS_STRIDE: u64 = 4;
/// What a block holds beside data: tags of writes are higher.
const HOLE: u64 = 0;
const ZERO: u64 = 1;

/// What happened to the medium.
#[derive(Clone)]
enum Step {
    Write {
        at: usize,
        bytes: Rc<Vec<u8>>,
    },
    Flush,
    /// The host went down; unflushed writes were kept or lost.
    Cut {
        is_kept: bool,
    },
}

/// Every block of every disk.
type Content = BTreeMap<DiskId, Rc<Vec<u64>>>;

/// What was asked and promised since the pool was last opened.
#[derive(Clone, Default)]
struct Timeline {
    /// The length of the tape when it began.
    from: usize,
    /// By the number of the request that made it.
    states: Vec<(u64, Content)>,
    /// Length of the tape, and the last request that was flushed by then.
    promised: Vec<(usize, u64)>,
    /// Length of the tape, and the last request admitted by then.
    admitted: Vec<(usize, u64)>,
}

impl Timeline {
    fn state(&self, seq: u64) -> &Content {
        let at = self.states.partition_point(|(number, _)| *number <= seq);
        &self.states[at - 1].1
    }

    /// The first and the last request whose state may be found after a crash at this length.
    fn bounds(&self, length: usize) -> (u64, u64) {
        let low = self.promised.iter().rev().find(|(at, _)| *at <= length).map_or(0, |p| p.1);
        let high = self.admitted.iter().rev().find(|(at, _)| *at < length).map_or(low, |p| p.1);
        (low, high.max(low))
    }
}

#[derive(Default)]
struct Tape {
    steps: Vec<Step>,
    timelines: Vec<Timeline>,
    /// What the disks should hold now.
    now: Content,
}

/// A medium in memory that completes at once and keeps a tape, if it has one.
struct Taped {
    bytes: Rc<RefCell<Vec<u8>>>,
    memory: Rc<Memory>,
    done: VecDeque<Completion>,
    tape: Option<Rc<RefCell<Tape>>>,
    /// Called before each write lands.
    kill: Option<Rc<dyn Fn()>>,
}

impl Media for Taped {
    fn bytes_total(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        match &io {
            Io::Read { at, into } => {
                let bytes = self.bytes.borrow();
                let from = *at as usize;
                self.memory.land(*into, &bytes[from..from + into.bytes as usize]);
            }
            Io::Write { at, from } => {
                if let Some(kill) = &self.kill {
                    kill();
                }
                let mut taken = Vec::new();
                from.iter().for_each(|part| self.memory.fetch(*part, &mut taken));
                let at = *at as usize;
                self.bytes.borrow_mut()[at..at + taken.len()].copy_from_slice(&taken);
                if let Some(tape) = &self.tape {
                    let bytes = Rc::new(taken);
                    tape.borrow_mut().steps.push(Step::Write { at, bytes });
                }
            }
            Io::Flush => {
                if let Some(tape) = &self.tape {
                    tape.borrow_mut().steps.push(Step::Flush);
                }
            }
            _ => {}
        }
        self.done.push_back(Completion { id, result: Ok(()) });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        if self.done.is_empty() { Err(MediumError::Died) } else { Ok(()) }
    }
}

fn block_of(tag: u64) -> [u8; BLOCK] {
    let mut block = [tag as u8; BLOCK];
    block[..8].copy_from_slice(&tag.to_le_bytes());
    block
}

/// A pool that is open.
struct World {
    store: Store<Taped>,
    memory: Rc<Memory>,
    pages: SharedPages,
    now: u64,
}

impl World {
    fn open(
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
            ..StoreOptions::default()
        };
        let region = ArenaRegion { control, pages: pages.clone(), is_fresh };
        let store = Store::open(media, region, options).map_err(|error| error.to_string())?;
        match store.status().state {
            PoolState::Healthy => Ok(World { store, memory, pages, now: 0 }),
            other => Err(format!("{other:?}")),
        }
    }

    fn poll(&mut self, most: usize) {
        for _ in 0..most {
            self.now += 100;
            if !self.store.poll(Micros(self.now)) {
                return;
            }
        }
    }

    fn wait<T>(&mut self, mut what: impl FnMut(Event) -> Option<T>) -> T {
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

    fn read(&mut self, disk: DiskId, lba: u64, blocks: u32) -> Vec<u8> {
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
    fn content(&mut self, disk: DiskId, blocks: u64) -> Vec<u64> {
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

    fn contents(&mut self) -> Content {
        let disks: Vec<(DiskId, u64)> =
            self.store.disks().map(|disk| (disk.id, disk.bytes / BLOCK as u64)).collect();
        disks.into_iter().map(|(id, blocks)| (id, Rc::new(self.content(id, blocks)))).collect()
    }
}

fn arena() -> Arena {
    Arena::private(64 << 10, 6 << 20)
}

/// The request whose state a pool holds; none if it is not that of any that may be found.
fn found_in(
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
fn after_power_cut(
    bytes: Vec<u8>,
    timeline: &Timeline,
    bounds: (u64, u64),
    boot: u128,
    broken: Option<Broken>,
) -> Result<u64, String> {
    let arena = arena();
    let memory = arena.memory.clone();
    let bytes = Rc::new(RefCell::new(bytes));
    let media = Taped { bytes, memory, done: VecDeque::new(), tape: None, kill: None };
    let mut world = World::open(arena, true, media, boot, broken)?;
    found_in(&mut world, timeline, bounds)
}

/// The history as it is made.
struct History {
    world: Option<World>,
    bytes: Rc<RefCell<Vec<u8>>>,
    tape: Rc<RefCell<Tape>>,
    kills: Rc<Cell<u64>>,
    /// Whether processes are killed.
    is_armed: Rc<Cell<bool>>,
    tags: u64,
    boot: u128,
    random: u64,
    compacted: u64,
    broken: Option<Broken>,
}

impl History {
    fn new(seed: u64, broken: Option<Broken>) -> History {
        let bytes = Rc::new(RefCell::new(fresh()));
        let tape = Rc::new(RefCell::new(Tape::default()));
        let first = Timeline { states: vec![(0, Content::new())], ..Timeline::default() };
        tape.borrow_mut().timelines.push(first);
        let mut history = History {
            world: None,
            bytes,
            tape,
            kills: Rc::default(),
            is_armed: Rc::default(),
            tags: ZERO,
            boot: 1,
            random: 88172645463325252 ^ seed,
            compacted: 0,
            broken,
        };
        history.open();
        history
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn media(&self, arena: &Arena) -> Taped {
        let (bytes, memory) = (self.bytes.clone(), arena.memory.clone());
        let (tape, kills, is_armed) =
            (self.tape.clone(), self.kills.clone(), self.is_armed.clone());
        let (copied, left, boot) = (bytes.clone(), memory.clone(), self.boot);
        let broken = self.broken;
        let kill = move || {
            kills.set(kills.get() + 1);
            if !is_armed.get() || !kills.get().is_multiple_of(KILLS_STRIDE) {
                return;
            }
            let bytes = Rc::new(RefCell::new(copied.borrow().clone()));
            let arena = Arena::adopt_private(left.successor()).unwrap();
            let (memory, done) = (arena.memory.clone(), VecDeque::new());
            let media = Taped { bytes, memory, done, tape: None, kill: None };
            let tape = tape.borrow();
            let mut world = World::open(arena, false, media, boot, broken)
                .unwrap_or_else(|error| panic!("killed at {}: {error}", tape.steps.len()));
            let found = world.contents();
            assert!(found == tape.now, "killed at {}: not as it was", tape.steps.len());
        };
        let (tape, kill) = (Some(self.tape.clone()), Some(Rc::new(kill) as Rc<dyn Fn()>));
        Taped { bytes, memory, done: VecDeque::new(), tape, kill }
    }

    fn open(&mut self) {
        let arena = arena();
        let media = self.media(&arena);
        // Nothing is in the arena before the first epoch of the boot has begun.
        self.is_armed.set(false);
        let world = World::open(arena, true, media, self.boot, self.broken);
        self.world = Some(world.unwrap_or_else(|error| panic!("boot {}: {error}", self.boot)));
        self.is_armed.set(true);
    }

    fn world(&mut self) -> &mut World {
        self.world.as_mut().unwrap()
    }

    /// Makes a request, whatever it takes, and notes what it made of the disks.
    fn request(
        &mut self,
        mut ask: impl FnMut(&mut Store<Taped>) -> Result<(), Refused>,
        model: impl FnOnce(&mut Content),
    ) {
        for attempt in 0.. {
            match ask(&mut self.world().store) {
                Ok(()) => break,
                Err(Refused::Busy) if attempt < 200 => self.world().poll(50),
                Err(other) => panic!("{other}: {:?}", self.world().store.status()),
            }
        }
        let seq = self.world().store.admitted_through().0;
        let mut tape = self.tape.borrow_mut();
        model(&mut tape.now);
        let (length, now) = (tape.steps.len(), tape.now.clone());
        let timeline = tape.timelines.last_mut().unwrap();
        timeline.states.push((seq, now));
        timeline.admitted.push((length, seq));
    }

    fn write(&mut self, disk: DiskId, lba: u64, blocks: u64) {
        let tags = self.tags + 1..self.tags + 1 + blocks;
        self.tags += blocks;
        let bytes: Vec<u8> = tags.clone().flat_map(block_of).collect();
        self.request(
            |store| store.write(disk, Lba(lba), &mut Payload::Copied(&[&bytes])).map(drop),
            |content| {
                let content = Rc::make_mut(content.get_mut(&disk).unwrap());
                tags.zip(lba..).for_each(|(tag, lba)| content[lba as usize] = tag);
            },
        );
    }

    fn fill(&mut self, disk: DiskId, lba: u64, blocks: u64, tag: u64) {
        self.request(
            |store| match tag {
                ZERO => store.zero(disk, Lba(lba), blocks).map(drop),
                _ => store.discard(disk, Lba(lba), blocks).map(drop),
            },
            |content| {
                let content = Rc::make_mut(content.get_mut(&disk).unwrap());
                content[lba as usize..(lba + blocks) as usize].fill(tag);
            },
        );
    }

    /// A block at each end, and zeros or holes between, as one request.
    fn edges(&mut self, disk: DiskId, lba: u64, blocks: u64, tag: u64) {
        let (one, two, last) = (self.tags + 1, self.tags + 2, lba + blocks - 1);
        self.tags += 2;
        let pages = self.world().pages.clone();
        let memory = self.world().memory.clone();
        let span = |tag: u64| {
            let mut span = pages.borrow_mut().take(1).unwrap();
            memory.slice_mut(&mut span).copy_from_slice(&block_of(tag));
            vec![span]
        };
        let (middle, blocks) = (Lba(lba + 1), blocks - 2);
        let mut changes = [
            Change::Write { lba: Lba(lba), spans: span(one) },
            Change::Write { lba: Lba(last), spans: span(two) },
            match tag {
                ZERO => Change::Zero { lba: middle, blocks },
                _ => Change::Discard { lba: middle, blocks },
            },
        ];
        self.request(
            |store| store.change(disk, &mut changes).map(drop),
            |content| {
                let content = Rc::make_mut(content.get_mut(&disk).unwrap());
                content[lba as usize..last as usize].fill(tag);
                (content[lba as usize], content[last as usize]) = (one, two);
            },
        );
    }

    fn create(&mut self, name: &str, blocks: u64) -> DiskId {
        let mut made = DiskId::default();
        let bytes = blocks * BLOCK as u64;
        self.request(
            |store| {
                let disk = store.create_disk(name, bytes, Durability::Strict, Provision::Thin);
                made = disk.map_err(refused)?;
                Ok(())
            },
            |_| {},
        );
        let mut tape = self.tape.borrow_mut();
        tape.now.insert(made, Rc::new(vec![HOLE; blocks as usize]));
        let now = tape.now.clone();
        tape.timelines.last_mut().unwrap().states.last_mut().unwrap().1 = now;
        made
    }

    fn resize(&mut self, disk: DiskId, blocks: u64) {
        self.request(
            |store| {
                let old = store.disk(disk).cloned().unwrap();
                store.change_disk(Disk { bytes: blocks * BLOCK as u64, ..old }).map_err(refused)
            },
            |content| {
                Rc::make_mut(content.get_mut(&disk).unwrap()).resize(blocks as usize, HOLE);
            },
        );
    }

    fn destroy(&mut self, disk: DiskId) {
        self.request(
            |store| store.destroy_disk(disk).map_err(refused),
            |content| {
                content.remove(&disk);
            },
        );
    }

    fn flush(&mut self) {
        let seq = self.world().store.admitted_through().0;
        self.world().store.flush(Ticket(3));
        let result = self.world().wait(|event| match event {
            Event::Flushed { result, .. } => Some(result),
            _ => None,
        });
        result.unwrap();
        let mut tape = self.tape.borrow_mut();
        let length = tape.steps.len();
        tape.timelines.last_mut().unwrap().promised.push((length, seq));
    }

    /// A checkpoint begins, and gets as far as `steps` take it.
    fn checkpoint(&mut self, steps: usize) {
        self.world().store.want_checkpoint();
        self.world().poll(steps);
    }

    /// The process dies between two polls; its successor finds the arena. What that finds is durable
    /// when it is open.
    fn kill(&mut self) {
        self.compacted += self.world().store.status().counters.slots_compacted;
        let memory = self.world.take().map(|world| world.memory.clone()).unwrap();
        let arena = Arena::adopt_private(memory.successor()).unwrap();
        let media = self.media(&arena);
        let world = World::open(arena, false, media, self.boot, self.broken);
        self.world = Some(world.unwrap_or_else(|error| panic!("killed: {error}")));
        self.is_open();
    }

    /// All that was found is durable. A request cut off half-way has used up its number.
    fn is_open(&mut self) {
        let seq = self.world().store.admitted_through().0;
        let mut tape = self.tape.borrow_mut();
        let (length, now) = (tape.steps.len(), tape.now.clone());
        let timeline = tape.timelines.last_mut().unwrap();
        timeline.states.push((seq, now));
        timeline.promised.push((length, seq));
        timeline.admitted.push((length, seq));
    }

    /// The host goes down, and the pool is opened again.
    fn power_cut(&mut self, is_kept: bool) {
        self.compacted += self.world().store.status().counters.slots_compacted;
        self.world = None;
        let length = self.tape.borrow().steps.len();
        self.tape.borrow_mut().steps.push(Step::Cut { is_kept });
        let walk = Walk::over(&self.tape.borrow().steps[..length]);
        *self.bytes.borrow_mut() = if is_kept { walk.with(|_| true) } else { walk.stable };
        self.boot += 1;
        let timeline = self.tape.borrow().timelines.last().cloned().unwrap();
        let (low, _) = timeline.bounds(length);
        let high = timeline.admitted.last().map_or(low, |last| last.1).max(low);
        let bytes = self.bytes.borrow().clone();
        let found = after_power_cut(bytes, &timeline, (low, high), self.boot, self.broken).unwrap();
        let mut states = timeline.states.clone();
        states.retain(|(seq, _)| *seq <= found);
        let now = timeline.state(found).clone();
        let from = length + 1;
        let (promised, admitted) = (vec![(from, found)], vec![(from, found)]);
        let next = Timeline { from, states, promised, admitted };
        self.tape.borrow_mut().timelines.push(next);
        self.tape.borrow_mut().now = now;
        self.open();
        self.is_open();
    }
}

fn refused(error: bowline_store::StoreError) -> Refused {
    match error {
        bowline_store::StoreError::Refused(refused) => refused,
        other => Refused::Stopped(other.to_string()),
    }
}

const SIZE: usize = (FIRST_SLOT_AT + SLOTS * SLOT_BYTES) as usize;

/// What is flushed, and what came after, as a tape is walked along.
struct Walk {
    stable: Vec<u8>,
    pending: Vec<(usize, Rc<Vec<u8>>)>,
}

impl Walk {
    fn over(steps: &[Step]) -> Walk {
        let mut walk = Walk { stable: fresh(), pending: Vec::new() };
        steps.iter().for_each(|step| walk.step(step));
        walk
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write { at, bytes } => self.pending.push((*at, bytes.clone())),
            Step::Flush => {
                self.stable = self.with(|_| true);
                self.pending.clear();
            }
            Step::Cut { is_kept } => {
                self.stable = self.with(|_| *is_kept);
                self.pending.clear();
            }
        }
    }

    /// The medium with some of the unflushed writes.
    fn with(&self, keep: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut bytes = self.stable.clone();
        for (number, (at, write)) in self.pending.iter().enumerate() {
            if keep(number) {
                bytes[*at..*at + write.len()].copy_from_slice(write);
            }
        }
        bytes
    }
}

/// The medium of a pool that was just made.
fn fresh() -> Vec<u8> {
    let bytes = Rc::new(RefCell::new(vec![0; SIZE]));
    let arena = arena();
    let (memory, done) = (arena.memory.clone(), VecDeque::new());
    let mut media = Taped { bytes: bytes.clone(), memory, done, tape: None, kill: None };
    let options =
        CreateOptions { pool: PoolId(5), salt: 31, slot_bytes: SLOT_BYTES, now_seconds: 0 };
    create(&mut media, &arena.pages, &options).unwrap();
    drop(media);
    bytes.take()
}

impl History {
    /// Some requests on two disks, now and then with a flush.
    fn some(&mut self, count: u64, (small, large): (DiskId, DiskId)) {
        let blocks = |history: &History, disk| history.tape.borrow().now[&disk].len() as u64;
        for _ in 0..count {
            let (most, wide) = (blocks(self, small), blocks(self, large));
            match self.below(16) {
                0..9 => {
                    let count = 1 + self.below(7);
                    let lba = self.below(most - count);
                    self.write(small, lba, count);
                }
                9 => {
                    let lba = self.below(6) * 400 + self.below(3);
                    self.write(large, lba, 2);
                }
                10 => {
                    let (lba, tag) = (self.below(most - 9), self.below(2));
                    let count = 1 + self.below(8);
                    self.fill(small, lba, count, tag);
                }
                // Large enough to be kept as ranges, and to cover whole pages of the map.
                11 => {
                    let (lba, tag) = (self.below(wide / 2), self.below(2));
                    let count = 70 + self.below(wide / 2 - 70);
                    self.fill(large, lba, count, tag);
                }
                12 => {
                    let (lba, tag) = (self.below(wide / 2), self.below(2));
                    let count = 66 + self.below(wide / 2 - 66);
                    self.edges(large, lba, count, tag);
                }
                // More than a segment holds, or two.
                13 => {
                    let count = 14 + self.below(30);
                    let lba = self.below(most.saturating_sub(count).max(1));
                    self.write(small, lba, count.min(most));
                }
                14 => self.flush(),
                _ => {
                    let steps = self.below(40) as usize;
                    self.world().poll(steps);
                }
            }
        }
    }

    /// All that recoveries once got wrong, in small rounds.
    fn play(&mut self) {
        let mut small = self.create("small", 120);
        let mut large = self.create("large", 3000);
        self.flush();
        for round in 0..12 {
            self.some(14, (small, large));
            // A record begins wherever the writes before it end: in each place of a slot in time.
            match round % 6 {
                0 => {
                    self.resize(small, 60 + round);
                    self.some(4, (small, large));
                    self.resize(small, 150);
                }
                1 => {
                    self.checkpoint(3 + round as usize);
                    self.fill(large, 0, 3000, HOLE);
                    self.write(large, 1000, 3);
                    self.fill(large, 990, 100, ZERO);
                    self.world().poll(10_000);
                }
                2 => {
                    self.destroy(large);
                    self.checkpoint(round as usize);
                    large = self.create("large", 3000);
                    self.write(large, 1, 2);
                }
                3 => {
                    self.checkpoint(10_000);
                    self.destroy(small);
                    small = self.create("small", 90);
                    self.write(small, 0, 20);
                    self.flush();
                }
                4 => {
                    self.resize(large, 700);
                    self.checkpoint(6);
                    self.resize(large, 3000);
                }
                _ => {
                    self.flush();
                    self.some(2, (small, large));
                }
            }
            self.some(10, (small, large));
            // Compaction moves what the last checkpoint has left where it was.
            if round % 3 == 1 {
                self.checkpoint(10_000);
                for _ in 0..12 {
                    let lba = self.below(60);
                    self.write(small, lba, 15);
                }
                self.world().poll(300);
            }
            match round {
                2 | 8 => self.power_cut(false),
                1 | 6 => self.kill(),
                7 => {
                    self.kill();
                    self.some(2, (small, large));
                    self.world().poll(1);
                    self.kill();
                    self.power_cut(false);
                }
                // Epochs that begin where the one before had hardly begun.
                4 | 10 => {
                    self.power_cut(true);
                    self.write(small_or(&self.tape, small, large), 3, 2);
                    self.world().poll(2);
                    self.power_cut(round == 4);
                    self.power_cut(false);
                }
                _ => {}
            }
            let now = self.tape.borrow().now.clone();
            let by_name = |name: &str| {
                self.world.as_ref().unwrap().store.disk_by_name(name).map(|disk| disk.id)
            };
            let (old_small, old_large) = (by_name("small"), by_name("large"));
            assert_eq!(
                now.len(),
                usize::from(old_small.is_some()) + usize::from(old_large.is_some())
            );
            small = old_small.unwrap_or_else(|| self.create("small", 120));
            large = old_large.unwrap_or_else(|| self.create("large", 3000));
        }
        self.flush();
        self.world().poll(10_000);
        self.compacted += self.world().store.status().counters.slots_compacted;
    }
}

/// One of two disks that is there after a crash.
fn small_or(tape: &Rc<RefCell<Tape>>, small: DiskId, large: DiskId) -> DiskId {
    if tape.borrow().now.contains_key(&small) { small } else { large }
}

/// Crashes the host after every write of the tape, in several ways each. Returns how often.
fn crash_everywhere(tape: &Tape, broken: Option<Broken>) -> u64 {
    let (mut walk, mut crashes) = (Walk::over(&[]), 0);
    for (at, step) in tape.steps.iter().enumerate() {
        walk.step(step);
        let length = at + 1;
        let timeline = tape.timelines.iter().rev().find(|timeline| timeline.from < length);
        let timeline = timeline.unwrap_or(&tape.timelines[0]);
        let Step::Write { at: last_at, bytes: last } = step else { continue };
        let pending = walk.pending.len();
        let mut media = vec![("kept", walk.with(|_| true))];
        if pending == 1 {
            media.push(("lost", walk.stable.clone()));
        } else {
            media.push(("odd", walk.with(|number| number % 2 == 1)));
            media.push(("even", walk.with(|number| number % 2 == 0)));
        }
        if pending > 2 {
            media.push(("last", walk.with(|number| number + 1 == pending)));
        }
        let mut torn = walk.with(|number| number + 1 < pending);
        let sectors = (last.len() / 512 - 1).min(1 + length * 7 % (last.len() / 512));
        torn[*last_at..*last_at + sectors * 512].copy_from_slice(&last[..sectors * 512]);
        media.push(("torn", torn));
        for (how, bytes) in media {
            crashes += 1;
            let bounds = timeline.bounds(length);
            if let Err(error) = after_power_cut(bytes, timeline, bounds, 1000, broken) {
                panic!("the host goes down after {length} steps, {how}: {error}");
            }
        }
    }
    crashes
}

fn survives(seed: u64, broken: Option<Broken>) {
    let mut history = History::new(seed, broken);
    history.play();
    let kills = history.kills.get() / KILLS_STRIDE;
    assert!(history.compacted > 10, "only {} slots were compacted", history.compacted);
    let tape = history.tape.borrow();
    let crashes = crash_everywhere(&tape, broken);
    println!("{} steps, {crashes} power cuts, {kills} kills", tape.steps.len());
    assert!(crashes > 800 && kills > 50, "{crashes} power cuts, {kills} kills");
}

#[test]
fn every_crash_of_one_history_is_survived() {
    survives(1, None);
}

#[test]
fn every_crash_of_another_history_is_survived() {
    survives(2, None);
}

#[test]
fn every_broken_store_is_noticed() {
    let all = [
        Broken::NoEpochRecord,
        Broken::ReuseBeforeCheckpoint,
        Broken::NoFlushAtRecovery,
        Broken::FlushLies,
        Broken::CheckpointAheadOfLog,
        Broken::StaleImage,
        Broken::IgnoreArena,
    ];
    let is_missed = |broken: &Broken| {
        (1..3).all(|seed| std::panic::catch_unwind(|| survives(seed, Some(*broken))).is_ok())
    };
    let missed: Vec<Broken> = all.into_iter().filter(is_missed).collect();
    assert_eq!(missed, []);
}
