//! A history as it is made: requests, checkpoints, kills and power cuts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bowline_arena::{Arena, Memory};
use bowline_store::{
    Broken, Change, Disk, DiskId, Durability, Event, Io, Lba, Payload, Provision, Refused, Store,
    Ticket,
};

use crate::world::{
    BLOCK, Before, Content, Fails, HOLE, Step, Tape, Taped, Timeline, Walk, World, ZERO,
    after_power_cut, arena, block_of, fresh,
};

/// Of so many writes, one is met by a kill of the process.
pub const KILLS_STRIDE: u64 = 4;

/// The history as it is made.
pub struct History {
    pub world: Option<World>,
    pub bytes: Rc<RefCell<Vec<u8>>>,
    pub tape: Rc<RefCell<Tape>>,
    pub kills: Rc<Cell<u64>>,
    /// Whether processes are killed.
    pub is_armed: Rc<Cell<bool>>,
    pub tags: u64,
    pub boot: u128,
    pub random: u64,
    pub compacted: u64,
    pub broken: Option<Broken>,
    /// What is done with a process that is killed before a write or a flush.
    pub killed: Killed,
    /// Says what fails.
    pub fails: Option<Fails>,
}

pub type Killed = Rc<dyn Fn(&Death)>;

/// What a process that is killed leaves, and what was promised by then.
pub struct Death<'a> {
    /// The write or flush that never happens.
    pub before: &'a Io,
    pub bytes: &'a RefCell<Vec<u8>>,
    pub memory: &'a Memory,
    pub tape: &'a Tape,
    pub boot: u128,
    pub broken: Option<Broken>,
}

impl Death<'_> {
    /// Starts its successor, which must find all that was admitted. Returns how much of its tape
    /// the start took.
    pub fn start(
        &self,
        tape: Option<Rc<RefCell<Tape>>>,
        kill: impl FnOnce(&Taped) -> Option<Before>,
    ) -> usize {
        let arena = Arena::adopt_private(self.memory.successor()).unwrap();
        let bytes = Rc::new(RefCell::new(self.bytes.borrow().clone()));
        let mut media = Taped { tape: tape.clone(), ..Taped::new(bytes, arena.memory.clone()) };
        media.kill = kill(&media);
        let steps = self.tape.steps.len();
        let mut world = World::open(arena, false, media, self.boot, self.broken)
            .unwrap_or_else(|error| panic!("killed at {steps}: {error}"));
        let length = tape.map_or(0, |tape| tape.borrow().steps.len());
        let found = world.contents();
        assert!(found == self.tape.now, "killed at {steps}: not as it was");
        length
    }
}

impl History {
    pub fn new(seed: u64, broken: Option<Broken>) -> History {
        let bytes = Rc::new(RefCell::new(fresh()));
        let tape = Rc::new(RefCell::new(Tape::default()));
        let first = Timeline { states: vec![(0, Content::new())], ..Timeline::default() };
        tape.borrow_mut().timelines.push(first);
        let kills = Rc::new(Cell::new(0));
        let counted = kills.clone();
        let killed = move |death: &Death| {
            counted.set(counted.get() + u64::from(matches!(death.before, Io::Write { .. })));
            if matches!(death.before, Io::Write { .. })
                && counted.get().is_multiple_of(KILLS_STRIDE)
            {
                death.start(None, |_| None);
            }
        };
        let mut history = History {
            world: None,
            bytes,
            tape,
            kills,
            is_armed: Rc::default(),
            tags: ZERO,
            boot: 1,
            random: 88172645463325252 ^ seed,
            compacted: 0,
            broken,
            killed: Rc::new(killed),
            fails: None,
        };
        history.open();
        history
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    pub fn media(&self, arena: &Arena) -> Taped {
        let (bytes, memory) = (self.bytes.clone(), arena.memory.clone());
        let (tape, is_armed, killed) =
            (self.tape.clone(), self.is_armed.clone(), self.killed.clone());
        let (boot, broken) = (self.boot, self.broken);
        let kill = move |before: &Io| {
            if is_armed.get() {
                let (tape, bytes, memory) = (&tape.borrow(), &bytes, &memory);
                killed(&Death { before, bytes, memory, tape, boot, broken });
            }
        };
        let (tape, kill) = (Some(self.tape.clone()), Some(Rc::new(kill) as Before));
        let fails = self.fails.clone();
        Taped { tape, kill, fails, ..Taped::new(self.bytes.clone(), arena.memory.clone()) }
    }

    pub fn open(&mut self) {
        let arena = arena();
        let media = self.media(&arena);
        // Nothing is in the arena before the first epoch of the boot has begun.
        self.is_armed.set(false);
        let world = World::open(arena, true, media, self.boot, self.broken);
        self.world = Some(world.unwrap_or_else(|error| panic!("boot {}: {error}", self.boot)));
        self.is_armed.set(true);
    }

    pub fn world(&mut self) -> &mut World {
        self.world.as_mut().unwrap()
    }

    /// Makes a request, whatever it takes, and notes what it made of the disks.
    pub fn request(
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

    pub fn write(&mut self, disk: DiskId, lba: u64, blocks: u64) {
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

    pub fn fill(&mut self, disk: DiskId, lba: u64, blocks: u64, tag: u64) {
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
    pub fn edges(&mut self, disk: DiskId, lba: u64, blocks: u64, tag: u64) {
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

    pub fn create(&mut self, name: &str, blocks: u64) -> DiskId {
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

    pub fn resize(&mut self, disk: DiskId, blocks: u64) {
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

    pub fn destroy(&mut self, disk: DiskId) {
        self.request(
            |store| store.destroy_disk(disk).map_err(refused),
            |content| {
                content.remove(&disk);
            },
        );
    }

    pub fn flush(&mut self) {
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
    pub fn checkpoint(&mut self, steps: usize) {
        self.world().store.want_checkpoint();
        self.world().poll(steps);
    }

    /// The process dies between two polls; its successor finds the arena. What that finds is
    /// durable when it is open.
    pub fn kill(&mut self) {
        self.compacted += self.world().store.status().counters.slots_compacted;
        let memory = self.world.take().map(|world| world.memory.clone()).unwrap();
        let arena = Arena::adopt_private(memory.successor()).unwrap();
        let media = self.media(&arena);
        let world = World::open(arena, false, media, self.boot, self.broken);
        self.world = Some(world.unwrap_or_else(|error| panic!("killed: {error}")));
        self.is_open();
    }

    /// All that was found is durable. A request cut off half-way has used up its number.
    pub fn is_open(&mut self) {
        let seq = self.world().store.admitted_through().0;
        let mut tape = self.tape.borrow_mut();
        let (length, now) = (tape.steps.len(), tape.now.clone());
        let timeline = tape.timelines.last_mut().unwrap();
        timeline.states.push((seq, now));
        timeline.promised.push((length, seq));
        timeline.admitted.push((length, seq));
    }

    /// The host goes down, and the pool is opened again.
    pub fn power_cut(&mut self, is_kept: bool) {
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

pub fn refused(error: bowline_store::StoreError) -> Refused {
    match error {
        bowline_store::StoreError::Refused(refused) => refused,
        other => Refused::Stopped(other.to_string()),
    }
}
