//! A crash at every write to the medium, over a history that holds what recoveries once got wrong:
//! disks destroyed, made anew, shrunk and grown; discards and zeroes in both generations of a
//! checkpoint; segments moved by compaction between a checkpoint and the crash; records that share
//! batches with data and begin or end slots; requests that go on in other segments; epochs that cut
//! each other off, some in the midst of a recovery.
//!
//! The medium keeps a tape of all writes and flushes. After each write the host goes down: what was
//! not flushed is lost, kept, kept in part, or torn. And the process is killed: what is in the
//! arena is there. What is found then, every block and every state of every disk, must be what the
//! model held after some request, no earlier one than was flushed, and the very last one after a
//! kill.

#![allow(clippy::unwrap_used)]

mod history;
mod roots;
mod world;

use std::cell::RefCell;
use std::rc::Rc;

use bowline_store::{Broken, DiskId};

use crate::history::{History, KILLS_STRIDE};
use crate::world::{HOLE, Step, Tape, Walk, ZERO, after_power_cut};

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
                    let count = 25 + self.below(38);
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

    /// A record begins wherever the writes before it end: in each place of a slot in time.
    fn trouble(
        &mut self,
        round: u64,
        (mut small, mut large): (DiskId, DiskId),
    ) -> (DiskId, DiskId) {
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
        (small, large)
    }

    /// All that recoveries once got wrong, in small rounds.
    fn play(&mut self) {
        let mut small = self.create("small", 120);
        let mut large = self.create("large", 3000);
        self.flush();
        for round in 0..12 {
            self.some(14, (small, large));
            (small, large) = self.trouble(round, (small, large));
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
