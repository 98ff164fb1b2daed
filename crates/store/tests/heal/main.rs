//! Writing elsewhere after the medium has failed: errors, kills and power cuts in each of its
//! phases, and what goes on meanwhile.

#![allow(clippy::unwrap_used)]

mod medium;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bowline_arena::{Arena, Memory, SharedPages};
use bowline_store::{
    ArenaRegion, Broken, CreateOptions, DiskId, Durability, Event, Lba, Micros, Payload, PoolId,
    PoolState, Provision, Refused, Store, StoreOptions, Ticket, create,
};

use crate::medium::{Loss, Platter, Slow};

const BLOCK: usize = 4096;
const FLUSH: Ticket = Ticket(77);

struct World {
    platter: Rc<RefCell<Platter>>,
    store: Store<Slow>,
    memory: Rc<Memory>,
    pages: SharedPages,
    disk: DiskId,
    now: u64,
    /// Blocks written, each the next one of the disk, and those known to be flushed.
    written: u64,
    flushed: u64,
    /// How the last flush was answered.
    answer: Option<Result<(), Refused>>,
    rooms: u64,
    broken: Option<Broken>,
}

/// What sets it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A write of the log that fails, and its retry.
    Write,
    /// A flush of the log, then a resume.
    Flush,
    /// A checkpoint's last flush, of the second copy of its superblock, then a resume.
    Root,
}

const CAUSES: [Cause; 3] = [Cause::Write, Cause::Flush, Cause::Root];

fn open(
    platter: Rc<RefCell<Platter>>,
    arena: Arena,
    is_fresh: bool,
    boot: u128,
    broken: Option<Broken>,
) -> World {
    let (memory, pages) = (arena.memory.clone(), arena.pages.clone());
    let media = Slow { platter: platter.clone(), memory: memory.clone() };
    let region =
        ArenaRegion { control: arena.control, index: None, pages: pages.clone(), is_fresh };
    let options = StoreOptions {
        delta_bytes: 2 << 20,
        map_frames: 64,
        checkpoint_log_bytes: Some(1 << 30),
        boot,
        broken: broken.into_iter().collect(),
        ..StoreOptions::default()
    };
    let store = Store::open(media, region, options).unwrap();
    assert_eq!(store.status().state, PoolState::Healthy);
    let disk = store.disk_by_name("disk").map(|disk| disk.id).unwrap_or_default();
    let (now, written, flushed, answer, rooms) = (0, 0, 0, None, 0);
    World { platter, store, memory, pages, disk, now, written, flushed, answer, rooms, broken }
}

fn arena() -> Arena {
    Arena::private(256 << 10, 12 << 20)
}

impl World {
    fn new(broken: Option<Broken>) -> World {
        World::sized(60, broken)
    }

    fn sized(slots: usize, broken: Option<Broken>) -> World {
        let bytes = vec![0; (1 << 20) + slots * (128 << 10)];
        let platter = Rc::new(RefCell::new(Platter::new(bytes)));
        let arena = arena();
        let mut media = Slow { platter: platter.clone(), memory: arena.memory.clone() };
        let options =
            CreateOptions { pool: PoolId(7), salt: 99, slot_bytes: 128 << 10, now_seconds: 0 };
        create(&mut media, &arena.pages, &options).unwrap();
        let mut world = open(platter, arena, true, 1, broken);
        let made = world.store.create_disk("disk", 8 << 20, Durability::Strict, Provision::Thin);
        world.disk = made.unwrap();
        world
    }

    /// Polls until nothing more happens without the medium. False if nothing did.
    fn poll(&mut self) -> bool {
        let mut has_moved = false;
        while self.poll_once() {
            has_moved = true;
        }
        has_moved
    }

    fn poll_once(&mut self) -> bool {
        self.now += 10;
        let moved = self.store.poll(Micros(self.now));
        while let Some(event) = self.store.next_event() {
            match event {
                Event::Flushed { result, .. } => self.answer = Some(result),
                Event::Room => self.rooms += 1,
                Event::Read { span, result, .. } => {
                    result.unwrap();
                    self.pages.borrow_mut().give(span);
                }
                Event::Status { .. } => {}
            }
        }
        moved
    }

    /// The medium does one thing.
    fn tick(&mut self) -> bool {
        let memory = self.memory.clone();
        let ticked = self.platter.borrow_mut().carry_out(&memory);
        self.poll() || ticked
    }

    fn rest(&mut self) {
        self.poll();
        while self.tick() {}
    }

    fn write(&mut self, blocks: u64) -> Result<(), Refused> {
        let bytes: Vec<u8> =
            (self.written..self.written + blocks).flat_map(|lba| [tag(lba); BLOCK]).collect();
        self.store.write(self.disk, Lba(self.written), &mut Payload::Copied(&[&bytes]))?;
        self.written += blocks;
        Ok(())
    }

    fn write_all(&mut self, blocks: u64) {
        while self.write(blocks) == Err(Refused::Busy) {
            assert!(self.tick() || self.poll_once(), "nothing moves: {:?}", self.store.status());
        }
    }

    /// Flushes, however long it takes.
    fn flush(&mut self) -> Result<(), Refused> {
        let written = self.written;
        self.answer = None;
        self.store.flush(FLUSH);
        self.rest();
        let answer = self.answer.take().unwrap();
        if answer.is_ok() {
            self.flushed = written;
        }
        answer
    }

    /// How many blocks of the beginning are there; nothing may lie behind them.
    fn found(&mut self) -> u64 {
        let (mut count, mut is_over) = (0, false);
        for first in (0..832).step_by(64) {
            let span = self.pages.borrow_mut().take(64).unwrap();
            self.store.read(Ticket(1), self.disk, Lba(first), span);
            let span = loop {
                match self.store.next_event() {
                    Some(Event::Read { span, result, .. }) => {
                        result.unwrap_or_else(|error| panic!("{error}"));
                        break span;
                    }
                    Some(Event::Flushed { result, .. }) => self.answer = Some(result),
                    Some(_) => {}
                    None => {
                        let memory = self.memory.clone();
                        self.now += 10;
                        let moved = self.store.poll(Micros(self.now));
                        assert!(moved || self.platter.borrow_mut().carry_out(&memory));
                    }
                }
            };
            for (at, block) in self.memory.slice(&span).chunks(BLOCK).enumerate() {
                let lba = first + at as u64;
                if block.iter().all(|byte| *byte == 0) {
                    is_over = true;
                    continue;
                }
                assert!(!is_over, "block {lba} is there, one before it is not");
                assert!(block.iter().all(|byte| *byte == tag(lba)), "block {lba} is wrong");
                count += 1;
            }
            self.pages.borrow_mut().give(span);
        }
        count
    }

    /// Up to the moment when the log is to be written elsewhere: much is flushed, much is not, a
    /// checkpoint is under way, and requests are in flight.
    fn fail(&mut self, cause: Cause) {
        (0..30).for_each(|_| self.write_all(9));
        self.flush().unwrap();
        (0..20).for_each(|_| self.write_all(7));
        match cause {
            Cause::Write => {
                self.rest();
                self.store.want_checkpoint();
                (0..30).for_each(|_| drop(self.write(11)));
                self.poll();
                self.platter.borrow_mut().writes_failing = 1000;
                while self.healing().is_none() {
                    assert!(self.tick(), "{:?}", self.store.status());
                }
                self.platter.borrow_mut().writes_failing = 0;
            }
            Cause::Flush => {
                self.platter.borrow_mut().flushes_failing = 1;
                assert!(self.flush().is_err());
            }
            Cause::Root => {
                self.flush().unwrap();
                let checkpoints = self.store.status().counters.checkpoints;
                self.store.want_checkpoint();
                self.poll();
                let mut flushes = 0;
                while self.store.status().state == PoolState::Healthy {
                    // Of what it names, of the first copy, and of the second.
                    let is_flush = self.platter.borrow().next_is_flush() == Some(true);
                    flushes += u64::from(is_flush);
                    if is_flush && flushes == 3 {
                        self.platter.borrow_mut().flushes_failing = 1;
                    }
                    assert!(self.tick(), "{:?}", self.store.status());
                }
                assert_eq!(self.store.status().counters.checkpoints, checkpoints);
            }
        }
        if cause != Cause::Write {
            self.rest();
            assert!(matches!(self.store.status().state, PoolState::Stopped(_)));
            assert!(matches!(self.write(1), Err(Refused::Stopped(_))));
            self.store.resume().unwrap();
        }
    }

    fn healing(&self) -> Option<&'static str> {
        self.store.status().healing
    }

    /// The process is killed, and its successor finds everything.
    fn check_kill(&self) {
        let platter = Platter::new(self.platter.borrow().bytes.clone());
        let arena = Arena::adopt_private(self.memory.successor()).unwrap();
        let mut world = open(Rc::new(RefCell::new(platter)), arena, false, 1, self.broken);
        assert_eq!(world.found(), self.written);
    }

    /// The host goes down, in all ways: a prefix is there, with all that was flushed.
    fn check_power_cuts(&self) {
        for loss in Loss::ALL {
            let bytes = self.platter.borrow().after(loss);
            let platter = Rc::new(RefCell::new(Platter::new(bytes)));
            let mut world = open(platter, arena(), true, 2, self.broken);
            let found = world.found();
            assert!(
                (self.flushed..=self.written).contains(&found),
                "{loss:?} in {:?}: {found} blocks of {}..={}",
                self.healing(),
                self.flushed,
                self.written
            );
        }
    }
}

fn tag(lba: u64) -> u8 {
    (lba % 251) as u8 + 1
}

/// Each write and each flush from the first failure on fails in its turn.
#[test]
fn an_error_in_each_phase_stops_the_pool_or_changes_nothing() {
    for cause in CAUSES {
        let (mut phases, mut stops) = (BTreeSet::new(), 0);
        for number in 0.. {
            let mut world = World::new(None);
            world.fail(cause);
            world.answer = None;
            world.store.flush(FLUSH);
            let written = world.written;
            let at = world.platter.borrow().changes + number;
            world.platter.borrow_mut().fails.insert(at);
            let mut phase = None;
            while world.healing().is_some() {
                phase = world.healing();
                if !world.tick() {
                    world.poll_once();
                }
            }
            let has_failed = world.platter.borrow().changes > at;
            if !has_failed {
                break;
            }
            world.rest();
            let is_stopped = world.store.status().state != PoolState::Healthy;
            if is_stopped {
                phases.insert(phase);
                stops += 1;
                assert_eq!(world.found(), written);
                let resumed = world.store.resumed();
                assert_eq!(resumed.is_some_and(|result| result.is_err()), cause != Cause::Write);
                world.check_kill();
                world.check_power_cuts();
                world.store.resume().unwrap();
                world.rest();
                assert!(world.store.resumed().is_some_and(|result| result.is_ok()));
                world.flush().unwrap();
            } else if cause == Cause::Write {
                assert_eq!(world.answer.take(), Some(Ok(())));
                world.flushed = written;
            }
            world.write_all(5);
            world.flush().unwrap();
            assert_eq!(world.found(), written + 5);
            world.check_kill();
            world.check_power_cuts();
            assert_eq!(world.store.status().state, PoolState::Healthy);
        }
        for phase in ["flush", "root", "root-flush"] {
            assert!(phases.contains(&Some(phase)), "{cause:?} {phases:?}");
        }
        assert!(stops >= 5, "{cause:?}: {stops} stops");
    }
}

/// After each thing the medium does, and each poll between.
fn dies_everywhere(cause: Cause, broken: Option<Broken>) {
    let mut world = World::new(broken);
    world.fail(cause);
    let mut phases = BTreeSet::new();
    let mut is_flush_asked = false;
    let mut steps = 0;
    loop {
        phases.extend(world.healing());
        // A pool that is stopped takes no flush before it is resumed.
        if (cause == Cause::Write || world.healing().is_none()) && !is_flush_asked {
            is_flush_asked = true;
            world.answer = None;
            world.store.flush(FLUSH);
        }
        if world.answer.take() == Some(Ok(())) {
            world.flushed = world.written;
        }
        world.check_kill();
        world.check_power_cuts();
        steps += 1;
        if world.poll_once() {
            continue;
        }
        let memory = world.memory.clone();
        if !world.platter.borrow_mut().carry_out(&memory) {
            break;
        }
    }
    assert_eq!(world.flushed, world.written);
    // And what comes behind it.
    world.write_all(9);
    world.flush().unwrap();
    world.check_kill();
    world.check_power_cuts();
    assert_eq!(world.store.status().state, PoolState::Healthy);
    let all = ["drain", "flush", "place", "root", "root-flush"];
    let missed: Vec<_> = all.iter().filter(|phase| !phases.contains(*phase)).collect();
    let is_reached = missed.is_empty() || missed == [&"drain"] || broken.is_some();
    assert!(is_reached && steps > 30, "{cause:?} {phases:?}, {steps} steps");
}

#[test]
fn a_death_at_each_step_after_a_failed_write_loses_nothing() {
    dies_everywhere(Cause::Write, None);
}

#[test]
fn a_death_at_each_step_after_a_failed_flush_loses_nothing() {
    dies_everywhere(Cause::Flush, None);
}

#[test]
fn a_death_at_each_step_after_a_failed_checkpoint_loses_nothing() {
    dies_everywhere(Cause::Root, None);
}

/// A full arena: everything in it gets another place, some of it in each step.
#[test]
fn reads_go_on_and_writes_wait_while_all_gets_other_places() {
    let mut world = World::sized(200, None);
    world.flush().unwrap();
    // Nobody flushes: what is written stays in the arena.
    while world.written < 700 {
        world.write(20).unwrap();
        world.rest();
    }
    let (unflushed, rooms) = (world.written, world.rooms);
    world.platter.borrow_mut().writes_failing = 1000;
    world.write(3).unwrap();
    while world.healing().is_none() {
        assert!(world.tick());
    }
    world.platter.borrow_mut().writes_failing = 0;
    let (mut places, mut refusals) = (0, 0);
    while world.healing().is_some() {
        places += u64::from(world.healing() == Some("place"));
        refusals += u64::from(world.write(1) == Err(Refused::Busy));
        // Blocks of the beginning have their new places first; from the arena they need no medium.
        for lba in [1, unflushed / 2, world.written - 2] {
            let span = world.pages.borrow_mut().take(1).unwrap();
            world.store.read(Ticket(lba), world.disk, Lba(lba), span);
            let Some(Event::Read { span, result, .. }) = world.store.next_event() else {
                panic!("a read of block {lba} waits in {:?}", world.healing());
            };
            result.unwrap();
            assert!(world.memory.slice(&span).iter().all(|byte| *byte == tag(lba)));
            world.pages.borrow_mut().give(span);
        }
        if !world.poll_once() {
            let memory = world.memory.clone();
            world.platter.borrow_mut().carry_out(&memory);
        }
    }
    assert!(places > 1, "{unflushed} blocks in {places} steps");
    assert!(refusals > 5, "{refusals}");
    world.poll();
    assert!(world.rooms > rooms, "nobody is told that there is room again");
    world.write_all(1);
    world.flush().unwrap();
    world.check_power_cuts();
}

/// New places for each try would use up what is free, and nothing gives any back meanwhile.
#[test]
fn tries_that_fail_take_no_more_slots() {
    let mut world = World::new(None);
    world.fail(Cause::Flush);
    for round in 0..60 {
        while world.healing() != Some(["root", "root-flush"][round % 2]) {
            assert!(world.poll_once() || world.tick());
        }
        let next = world.platter.borrow().changes;
        world.platter.borrow_mut().fails.insert(next);
        world.rest();
        assert!(world.store.resumed().is_some_and(|result| result.is_err()), "round {round}");
        assert_eq!(world.found(), world.written);
        world.store.resume().unwrap();
    }
    world.check_power_cuts();
    world.rest();
    world.flush().unwrap();
    world.check_kill();
    world.check_power_cuts();
}

/// Flushes that fail, each after everything got a new place: where it was before is free again, and
/// there is no checkpoint that would give anything back. Before it, segments of the log that are
/// dead, but that a replay is led through.
fn fails_again_and_again(broken: Option<Broken>) {
    let mut world = World::new(broken);
    for _ in 0..3 {
        world.written = 0;
        world.write_all(64);
        world.flush().unwrap();
    }
    world.fail(Cause::Flush);
    for round in 0..15 {
        let resumed = loop {
            match world.store.resumed() {
                Some(result) => break result,
                None => assert!(world.poll_once() || world.tick()),
            }
        };
        resumed.unwrap_or_else(|error| panic!("round {round}: {error}"));
        // The next one is of the log or of a checkpoint.
        world.platter.borrow_mut().flushes_failing = 1;
        world.rest();
        assert!(matches!(world.store.status().state, PoolState::Stopped(_)), "round {round}");
        assert_eq!(world.found(), world.written);
        world.check_kill();
        world.check_power_cuts();
        world.store.resume().unwrap();
    }
    assert_eq!(world.store.status().counters.checkpoints, 0);
    world.rest();
    world.flush().unwrap();
    world.check_kill();
    world.check_power_cuts();
}

#[test]
fn failures_without_a_checkpoint_in_between_take_no_more_slots() {
    fails_again_and_again(None);
}

#[test]
fn segments_that_are_left_too_readily_are_noticed() {
    let broken = Some(Broken::HealLeavesSafe);
    assert!(std::panic::catch_unwind(|| fails_again_and_again(broken)).is_err());
}

#[test]
fn a_pool_is_closed_when_all_is_written_elsewhere() {
    for cause in CAUSES {
        let mut world = World::new(None);
        world.fail(cause);
        assert!(world.healing().is_some());
        world.store.close().unwrap();
        world.flushed = world.written;
        world.check_power_cuts();
    }
    // What cannot be written stays in the arena, and whoever closes the pool is told.
    let mut world = World::new(None);
    world.fail(Cause::Write);
    world.platter.borrow_mut().flushes_failing = 1;
    assert!(world.store.close().is_err());
    world.check_kill();
    world.check_power_cuts();
    assert!(matches!(world.store.status().state, PoolState::Stopped(_)));
    assert!(world.store.close().is_ok(), "a pool that had stopped is left as it is");
}

#[test]
fn every_broken_way_is_noticed() {
    let all = [
        (Broken::HealTrustsMedium, Cause::Flush),
        (Broken::HealWithoutRoot, Cause::Flush),
        (Broken::HealAnswersEarly, Cause::Write),
    ];
    let is_missed = |(broken, cause): &(Broken, Cause)| {
        std::panic::catch_unwind(|| dies_everywhere(*cause, Some(*broken))).is_ok()
    };
    let missed: Vec<_> = all.into_iter().filter(is_missed).collect();
    assert_eq!(missed, []);
}
