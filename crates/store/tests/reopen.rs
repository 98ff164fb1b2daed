//! A pool that is written to, left in every way there is, and opened again.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use bowline_arena::{Arena, Memory, SharedPages};
use bowline_store::{
    ArenaRegion, BlockState, Change, Completion, CreateOptions, DiskId, Durability, Event, Io,
    IoId, Lba, Media, MediumError, Micros, Payload, PoolId, PoolState, Provision, Refused, Store,
    StoreOptions, Ticket, create,
};

const BLOCK: usize = 4096;

/// What a medium shows, and what of that a loss of power leaves.
struct Device {
    shown: RefCell<Vec<u8>>,
    kept: RefCell<Vec<u8>>,
    unflushed: RefCell<Vec<Range<usize>>>,
    /// A flush fails as long as this is set, and drops what it should have kept.
    is_failing: Cell<bool>,
    reads: Cell<u64>,
}

impl Device {
    fn new(bytes: u64) -> Rc<Device> {
        let zeros = || RefCell::new(vec![0; bytes as usize]);
        let (shown, kept) = (zeros(), zeros());
        let (unflushed, is_failing) = (RefCell::default(), Cell::default());
        Rc::new(Device { shown, kept, unflushed, is_failing, reads: Cell::default() })
    }

    fn flush(&self) -> Result<(), MediumError> {
        let unflushed = self.unflushed.take();
        if self.is_failing.get() {
            return Err(MediumError::System { call: "flush".into(), code: 5 });
        }
        let (shown, mut kept) = (self.shown.borrow(), self.kept.borrow_mut());
        for range in unflushed {
            kept[range.clone()].copy_from_slice(&shown[range]);
        }
        Ok(())
    }
}

/// A medium in memory that completes at once.
struct Plain {
    device: Rc<Device>,
    memory: Rc<Memory>,
    done: VecDeque<Completion>,
}

impl Media for Plain {
    fn bytes_total(&self) -> u64 {
        self.device.shown.borrow().len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let mut bytes = self.device.shown.borrow_mut();
        match io {
            Io::Read { at, into } => {
                let at = at as usize;
                let from = &bytes[at..at + into.bytes as usize];
                self.memory.land(into, from);
                self.device.reads.set(self.device.reads.get() + 1);
            }
            Io::Write { at, from } => {
                let mut at = at as usize;
                let first = at;
                for part in from {
                    let mut taken = Vec::new();
                    self.memory.fetch(part, &mut taken);
                    bytes[at..at + taken.len()].copy_from_slice(&taken);
                    at += taken.len();
                }
                self.device.unflushed.borrow_mut().push(first..at);
            }
            Io::Flush => {
                drop(bytes);
                let result = self.device.flush();
                return self.done.push_back(Completion { id, result });
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

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct World {
    device: Rc<Device>,
    store: Store<Plain>,
    memory: Rc<Memory>,
    pages: SharedPages,
    model: BTreeMap<u64, u8>,
    disk: DiskId,
    now: u64,
}

fn options() -> StoreOptions {
    StoreOptions { delta_bytes: 1 << 20, map_frames: 64, ..StoreOptions::default() }
}

fn booted(boot: u128) -> StoreOptions {
    StoreOptions { boot, ..options() }
}

fn plain(device: &Rc<Device>, arena: &Arena) -> Plain {
    Plain { device: device.clone(), memory: arena.memory.clone(), done: VecDeque::new() }
}

fn start(
    device: &Rc<Device>,
    arena: Arena,
    fresh: bool,
    options: StoreOptions,
) -> (Store<Plain>, Rc<Memory>, SharedPages) {
    let media = plain(device, &arena);
    let region = ArenaRegion {
        control: arena.control,
        index: None,
        pages: arena.pages.clone(),
        is_fresh: fresh,
    };
    let store = Store::open(media, region, options).unwrap();
    (store, arena.memory, arena.pages)
}

impl World {
    fn new(slots: u64, slot_bytes: u64) -> World {
        let device = Device::new((1 << 20) + slots * slot_bytes);
        let arena = Arena::private(64 << 10, 4 << 20);
        let mut media = plain(&device, &arena);
        let made = CreateOptions { pool: PoolId(7), salt: 99, slot_bytes, now_seconds: 0 };
        create(&mut media, &arena.pages, &made).unwrap();
        let (mut store, memory, pages) = start(&device, arena, true, booted(1));
        let disk =
            store.create_disk("disk0", 256 << 20, Durability::Strict, Provision::Thin).unwrap();
        World { device, store, memory, pages, model: BTreeMap::new(), disk, now: 0 }
    }

    fn poll(&mut self) {
        for _ in 0..10_000 {
            self.now += 100;
            if !self.store.poll(Micros(self.now)) {
                return;
            }
        }
        panic!("the store never comes to rest");
    }

    fn write(&mut self, lba: u64, blocks: u64, tag: u8) -> bool {
        let data = vec![tag; blocks as usize * BLOCK];
        for _ in 0..20 {
            match self.store.write(self.disk, Lba(lba), &mut Payload::Copied(&[&data])) {
                Ok(_) => {
                    (lba..lba + blocks).for_each(|lba| {
                        self.model.insert(lba, tag);
                    });
                    return true;
                }
                Err(Refused::Busy) => self.poll(),
                Err(Refused::NoSpace) => return false,
                Err(other) => panic!("{other}"),
            }
        }
        panic!("busy for ever: {:?}", self.store.status());
    }

    fn discard(&mut self, lba: u64, blocks: u64) {
        for _ in 0..20 {
            match self.store.discard(self.disk, Lba(lba), blocks) {
                Ok(_) => {
                    (lba..lba + blocks).for_each(|lba| {
                        self.model.remove(&lba);
                    });
                    return;
                }
                Err(Refused::Busy) => self.poll(),
                Err(other) => panic!("{other}"),
            }
        }
        panic!("busy for ever: {:?}", self.store.status());
    }

    fn flush(&mut self) {
        self.store.flush(Ticket(9));
        for _ in 0..100 {
            self.poll();
            while let Some(event) = self.store.next_event() {
                if let Event::Flushed { result, .. } = event {
                    result.unwrap();
                    return;
                }
            }
        }
        panic!("no answer to a flush");
    }

    fn check(&mut self, blocks: u64) {
        (0..blocks).step_by(64).for_each(|first| self.check_run(first, 64));
    }

    fn check_run(&mut self, first: u64, blocks: u32) {
        let span = self.pages.borrow_mut().take(blocks).unwrap();
        self.store.read(Ticket(1), self.disk, Lba(first), span);
        let span = loop {
            match self.store.next_event() {
                Some(Event::Read { span, result, .. }) => {
                    result.unwrap();
                    break span;
                }
                Some(_) => {}
                None => self.poll(),
            }
        };
        for (at, block) in self.memory.slice(&span).chunks(BLOCK).enumerate() {
            let lba = first + at as u64;
            let wanted = self.model.get(&lba).copied().unwrap_or(0);
            assert!(block.iter().all(|b| *b == wanted), "block {lba}: {} not {wanted}", block[0]);
        }
        self.pages.borrow_mut().give(span);
    }

    fn kill(self) -> World {
        let World { device, store, memory, pages, model, disk, now } = self;
        drop((store, pages));
        let arena = Arena::adopt_private(memory.successor()).unwrap();
        let (store, memory, pages) = start(&device, arena, false, booted(1));
        World { device, store, memory, pages, model, disk, now }
    }

    /// The host starts again, and the medium has kept everything.
    fn power_cut(self, boot: u128) -> World {
        self.without_arena(booted(boot))
    }

    /// The host starts again, and the medium has what was flushed.
    fn power_cut_with_cache(self, boot: u128) -> World {
        self.device.shown.borrow_mut().copy_from_slice(&self.device.kept.borrow());
        self.without_arena(booted(boot))
    }

    fn without_arena(self, options: StoreOptions) -> World {
        let World { device, store, memory, pages, model, disk, now } = self;
        drop((store, pages, memory));
        let arena = Arena::private(64 << 10, 4 << 20);
        let (store, memory, pages) = start(&device, arena, true, options);
        World { device, store, memory, pages, model, disk, now }
    }
}

#[test]
fn reads_back_what_was_written() {
    let mut world = World::new(40, 256 << 10);
    world.write(5, 1, 17);
    world.write(100, 40, 18);
    world.write(339, 3, 19);
    world.check(512);
    world.flush();
    world.check(512);
    world.store.want_checkpoint();
    world.poll();
    world.check(512);
}

/// A map of more pages than there are frames for: leaves come and go, and the bytes are right.
#[test]
fn a_map_larger_than_its_memory_is_read_page_by_page() {
    const LEAVES: u64 = 190;
    let lbas = || (0..LEAVES).map(|leaf| leaf * 340 + leaf);
    let mut world = World::new(60, 256 << 10);
    for round in 0..3 {
        lbas().for_each(|lba| assert!(world.write(lba, 1, (lba % 83) as u8 + round + 1)));
        world.flush();
    }
    world.store.checkpoint_now().unwrap();
    for (map_frames, leaves_read) in [(64, LEAVES), (512, 0)] {
        world = world.without_arena(StoreOptions { map_frames, ..booted(2) });
        lbas().for_each(|lba| world.check_run(lba, 1));
        let before = world.device.reads.get();
        lbas().for_each(|lba| world.check_run(lba, 1));
        let read = world.device.reads.get() - before;
        assert_eq!(read, LEAVES + leaves_read, "with {map_frames} frames");
    }
}

#[test]
fn a_kill_loses_nothing_that_was_admitted() {
    let mut world = World::new(60, 256 << 10);
    let mut random = Random(4);
    for round in 0..40 {
        for _ in 0..60 {
            let blocks = 1 + random.below(20);
            let lba = random.below(1024 - blocks);
            world.write(lba, blocks, random.below(255) as u8 + 1);
            match random.below(12) {
                0 => world.flush(),
                1 => world.discard(random.below(500), 1 + random.below(300)),
                2 => world.poll(),
                _ => {}
            }
        }
        world.check(1024);
        if round % 3 == 2 {
            world.flush();
            world = world.power_cut(2 + round);
        } else {
            world = world.kill();
        }
        world.check(1024);
    }
    let counters = world.store.status().counters;
    assert!(counters.checkpoints > 0 || world.store.status().generation > 10);
}

#[test]
fn what_a_failed_flush_dropped_is_written_again_when_the_arena_is_gone() {
    let mut world = World::new(40, 256 << 10);
    world.write(0, 8, 3);
    world.flush();
    world.device.is_failing.set(true);
    world.write(100, 70, 7);
    world.store.flush(Ticket(9));
    world.poll();
    assert!(matches!(world.store.status().state, PoolState::Stopped(_)));
    world.device.is_failing.set(false);
    world = world.without_arena(StoreOptions { accept_loss: true, is_quiet: true, ..booted(1) });
    world.check(512);
    // The new epoch counts these batches as its own past: they have to be there to stay.
    world = world.power_cut_with_cache(2);
    assert!(is_well(&world));
    world.check(512);
}

#[test]
fn a_full_pool_says_so_and_lives_on() {
    let mut world = World::new(40, 128 << 10);
    let mut lba = 0;
    while world.write(lba, 8, (lba % 250) as u8 + 1) {
        lba += 8;
        assert!(lba < 2000, "the pool never fills up");
    }
    world.check(lba);
    assert!(lba > 480, "only {lba} blocks fit into 40 slots of 32");
    let mut random = Random(8);
    for _ in 0..4 {
        world.discard(random.below(lba / 64) * 64, 64);
    }
    for _ in 0..50 {
        world.write(random.below(lba / 8) * 8, 8, 77);
    }
    world.check(lba);
    world.flush();
    world = world.kill();
    world.check(lba);
}

#[test]
fn four_fifths_of_a_pool_hold_live_data() {
    // As many slots as the command line makes for a pool of a gigabyte.
    let mut world = World::new(127, 2 << 20);
    let mut lba = 0;
    while world.write(lba, 128, (lba % 250) as u8 + 1) {
        lba += 128;
    }
    let (held, all) = (lba * BLOCK as u64, world.device.shown.borrow().len() as u64);
    assert!(held * 5 >= all * 4, "{held} of {all} bytes");
    world.discard(0, 1280);
    assert!((0..8).all(|at| world.write(at * 128, 128, 1)), "what was given back is used again");
    world.check(lba);
}

#[test]
fn overwrites_go_on_for_ever() {
    let mut world = World::new(40, 256 << 10);
    let mut random = Random(5);
    for lba in 0..1080 {
        world.write(lba, 1, 1);
    }
    for _ in 0..10_000 {
        let tag = random.below(255) as u8 + 1;
        let lba = random.below(1080);
        assert!(world.write(lba, 1, tag), "no space: {:?}", world.store.status());
    }
    world.check(1080);
    assert!(world.store.status().counters.slots_compacted > 0);
    world.flush();
    world.store.close().unwrap();
    world = world.power_cut(9);
    world.check(1080);
    assert_eq!(world.store.status().counters.batches_replayed, 0);
}

/// The blob of a checkpoint that was given up fills slots that no superblock names: it is longer
/// than two slots here, so that each of its copies has one to itself. The same block is written
/// each time, or each failure would leave a segment of the log with something alive in it.
#[test]
fn slots_of_blobs_that_were_given_up_come_back() {
    let mut world = World::new(60, 128 << 10);
    for number in 0..1500 {
        let name = format!("{number:a>150}");
        let made = world.store.create_disk(&name, 4096, Durability::Strict, Provision::Thin);
        made.unwrap();
        world.poll();
    }
    world.store.checkpoint_now().unwrap();
    let used = |world: &World| world.store.status().space.physical_bytes >> 17;
    let before = used(&world);
    for round in 1..13 {
        world.write(1, 1, round);
        // So that it is not the flush of the log that fails, before there is a blob.
        world.flush();
        world.store.want_checkpoint();
        world.device.is_failing.set(true);
        world.poll();
        assert!(!world.store.status().state.is_writing(), "the flush of the checkpoint fails");
        world.device.is_failing.set(false);
        world.store.resume().unwrap();
        world.poll();
        assert!(world.store.resumed().is_some_and(|result| result.is_ok()));
        world.store.checkpoint_now().unwrap();
        world.store.checkpoint_now().unwrap();
    }
    let after = used(&world);
    assert!(after <= before + 6, "{before} slots were used, and {after} are");
    world.check(64);
}

#[test]
fn a_store_without_memory_for_the_largest_write_is_not_opened() {
    let device = World::new(40, 256 << 10).device;
    let refusal = |delta_bytes: usize, control: u64, pages: u64| {
        let arena = Arena::private(control, pages);
        let media = plain(&device, &arena);
        let region = ArenaRegion {
            control: arena.control,
            index: None,
            pages: arena.pages.clone(),
            is_fresh: true,
        };
        let write_bytes_max = 32 << 20;
        let options = StoreOptions { delta_bytes, write_bytes_max, boot: 9, ..options() };
        Store::open(media, region, options).err().map_or(String::new(), |error| error.to_string())
    };
    assert!(refusal(512 << 10, 256 << 10, 48 << 20).contains("delta_bytes"));
    assert!(refusal(1 << 20, 64 << 10, 48 << 20).contains("control area"));
    assert!(refusal(1 << 20, 256 << 10, 32 << 20).contains("(pages)"));
    assert_eq!(refusal(1 << 20, 256 << 10, 48 << 20), "");
}

#[test]
fn states_of_a_terabyte_are_told_in_bounded_steps() {
    let mut world = World::new(60, 256 << 10);
    let blocks = 1 << 28;
    let made = world.store.create_disk("huge", blocks << 12, Durability::Strict, Provision::Thin);
    let huge = made.unwrap();
    let ask = |world: &mut World, lba: u64| {
        world.store.block_status(Ticket(3), huge, Lba(lba), blocks - lba, 64);
        loop {
            match world.store.next_event() {
                Some(Event::Status { result, .. }) => return result.unwrap(),
                Some(_) => {}
                None => world.poll(),
            }
        }
    };
    world.store.checkpoint_now().unwrap();
    let all = ask(&mut world, 0);
    assert_eq!(all.iter().map(|extent| extent.blocks).sum::<u64>(), blocks, "nothing is pending");
    // A change far away: the answer is for as many leaves as there are steps, and goes on behind.
    world.store.zero(huge, Lba(blocks - 10), 10).unwrap();
    let first = ask(&mut world, 0);
    assert_eq!(first.iter().map(|extent| extent.blocks).collect::<Vec<_>>(), [2048 * 340]);
    let last = ask(&mut world, blocks - 20);
    let last: Vec<_> = last.iter().map(|extent| (extent.blocks, extent.state)).collect();
    assert_eq!(last, [(10, BlockState::Hole), (10, BlockState::Zero)]);
}

/// Whether the store goes on as if everything were well.
fn is_well(world: &World) -> bool {
    world.store.status().state == PoolState::Healthy
}

#[test]
fn a_write_cut_off_inside_its_admission_never_was_or_is_whole() {
    let (mut kept, mut cut, mut last) = (0, 1, false);
    while !last {
        let mut world = World::new(60, 256 << 10);
        world.write(0, 40, 1);
        let before = world.store.admitted_through();
        // Longer than a batch, and than what is left of the segment.
        let data = vec![2; 150 * BLOCK];
        world.memory.cut_after(Some(cut));
        let World { store, disk, .. } = &mut world;
        let write = || store.write(*disk, Lba(20), &mut Payload::Copied(&[&data])).unwrap();
        last = catch_unwind(AssertUnwindSafe(write)).is_ok();
        world = world.kill();
        let admitted = world.store.admitted_through();
        if admitted > before {
            world.model.extend((20..170).map(|lba| (lba, 2)));
            kept += 1;
        }
        assert!(is_well(&world) && (admitted > before || !last), "cut after {cut}");
        // Whoever gets the pages that were given back writes to them, and dies before a batch is
        // opened; then again, as soon as one is.
        let mut free = Vec::new();
        while let Some(mut page) = world.pages.borrow_mut().take(1) {
            world.memory.slice_mut(&mut page).fill(0xff);
            free.push(page);
        }
        world = world.kill();
        assert!(is_well(&world), "{cut}: {:?}", world.store.status().state);
        assert_eq!(world.store.admitted_through(), admitted);
        world.write(500, 1, 3);
        assert_eq!(
            world.store.admitted_through().0,
            admitted.0 + 1,
            "the number is the next one's"
        );
        world = world.kill();
        assert!(is_well(&world), "{cut}: {:?}", world.store.status().state);
        world.check(512);
        cut += 3;
    }
    assert!(cut > 200 && kept > 0, "{cut} stores, {kept} times whole");
}

/// Changes that are made as one find room for all their ranges, or none is made.
#[test]
fn ranges_changed_as_one_have_room_for_all() {
    let mut world = World::new(800, 128 << 10);
    let made = world.store.create_disk("huge", 1 << 40, Durability::Strict, Provision::Thin);
    let huge = made.unwrap();
    for at in 0..4094 {
        world.store.discard(huge, Lba(at * 1000), 100).unwrap();
    }
    let far = 100_000_000;
    let zero = |at: u64| Change::Zero { lba: Lba(far + at * 1000), blocks: 100 };
    let changed = world.store.change(huge, &mut [zero(0), zero(1), zero(2)]);
    assert_eq!(changed, Err(Refused::Busy));
    world.poll();
    world.store.change(huge, &mut [zero(0), zero(1), zero(2)]).unwrap();
}
