//! Recoveries that once went wrong.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_store::{CheckVerdict, Disk, DiskId, Durability, Lba, PoolState, Provision};

use crate::world::{
    BLOCK, SLOT_BYTES, World, adopt, check_bytes, content, format_with, open, tag_of,
};

fn world(slots: u64) -> (World, DiskId) {
    let mut world = open(format_with(slots, SLOT_BYTES), 1).unwrap();
    let disk = world.store.create_disk("a", 256 << 20, Durability::Strict, Provision::Thin);
    world.flush();
    (world, disk.unwrap())
}

fn sound(world: &World) {
    let report = check_bytes(&world.bytes, &[], false);
    assert_eq!(report.verdict, CheckVerdict::Dirty, "{:#?}", report.findings);
}

/// The batch that proves the last flush is empty, and may never reach the medium.
#[test]
fn an_empty_batch_between_others_is_adopted() {
    let (mut world, disk) = world(40);
    world.write(disk, 1, &content(1));
    world.flush();
    world.is_stuck.set(true);
    world.idle();
    world.write(disk, 2, &content(2));
    let mut world = adopt(world, 1);
    assert_eq!(world.store.status().state, PoolState::Healthy);
    assert_eq!(tag_of(&world.read(disk, 1).unwrap()), 1);
    assert_eq!(tag_of(&world.read(disk, 2).unwrap()), 2);
}

/// Shrinking is one change: no crash brings back what lay beyond the end.
#[test]
fn a_disk_that_shrank_and_grew_holds_zeros() {
    for checkpoint in [false, true] {
        let (mut world, disk) = world(40);
        for lba in [10, 900, 60_000] {
            world.write(disk, lba, &content(lba));
        }
        let old = world.store.disk(disk).cloned().unwrap();
        if checkpoint {
            world.store.want_checkpoint();
            world.poll();
        }
        world.store.change_disk(Disk { bytes: 500 * BLOCK as u64, ..old.clone() }).unwrap();
        world.flush();
        let mut world = open(world.bytes.clone(), 2).unwrap();
        sound(&world);
        world.store.change_disk(old).unwrap();
        world.flush();
        let mut world = open(world.bytes.clone(), 3).unwrap();
        assert_eq!(tag_of(&world.read(disk, 10).unwrap()), 10);
        assert_eq!(tag_of(&world.read(disk, 900).unwrap()), 0);
        assert_eq!(tag_of(&world.read(disk, 60_000).unwrap()), 0);
    }
}

/// Ranges fill up in a replay as well as in a running pool.
#[test]
fn a_disk_destroyed_after_many_discards_is_replayed() {
    for discards in 4085..4100 {
        let (mut world, disk) = world(60);
        let other = world.store.create_disk("b", 1 << 40, Durability::Strict, Provision::Thin);
        for at in 0..discards {
            // No poll, and so no checkpoint that would take the ranges away.
            if world.store.discard(other.as_ref().copied().unwrap(), Lba(at * 1000), 100).is_err() {
                break;
            }
        }
        let destroyed = world.store.destroy_disk(disk).is_ok();
        let bytes = world.bytes.clone();
        let mut world = adopt(world, 1);
        assert_eq!(world.store.disk(disk).is_none(), destroyed);
        world.flush();
        drop(world);
        let world = open(bytes, 2).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        assert_eq!(world.store.disk(disk).is_none(), destroyed);
    }
}

/// The closing batch comes also where the segment is full: in the next one.
#[test]
fn a_flush_at_the_very_end_of_a_segment_is_proven() {
    let mut proven = 0;
    for writes in 0..16 {
        let (mut world, disk) = world(60);
        for at in 0..writes {
            world.write(disk, 100 + at, &content(at + 1));
            world.flush();
        }
        // The last one fills 1 + 13 blocks: for some number of writes exactly the segment.
        world.write(disk, 1, &(0..13).flat_map(|at| content(500 + at)).collect::<Vec<u8>>());
        world.flush();
        let before = world.bytes.borrow().clone();
        let batches = world.store.status().counters.batches;
        world.idle();
        world.flush();
        assert_eq!(world.store.status().counters.batches, batches + 1, "{writes} writes");
        assert!(*world.bytes.borrow() != before);
        proven += 1;
    }
    assert_eq!(proven, 16);
}

/// Nothing before the record of a pool that grew knows the slots behind it.
#[test]
fn a_log_that_goes_on_in_slots_just_added_is_recovered() {
    let (mut world, disk) = world(40);
    let blocks: Vec<u8> = (0..24).flat_map(|at| content(1 + at)).collect();
    let mut lba = 0;
    while world.store.status().space.pending_free_bytes == 0 && lba < 600 {
        world.write(disk, lba, &blocks);
        lba += 24;
    }
    world.flush();
    let bytes = (1 << 20) + 80 * SLOT_BYTES as usize;
    world.bytes.borrow_mut().resize(bytes, 0);
    world.store.grow().unwrap();
    for at in 0..30 {
        world.write(disk, 5000 + at * 24, &blocks);
    }
    world.poll();
    let copy = Rc::new(RefCell::new(world.bytes.borrow().clone()));
    let mut world = open(copy, 2).unwrap();
    sound(&world);
    let mut found = 0;
    for at in 0..30 {
        let tag = tag_of(&world.read(disk, 5000 + at * 24 + 3).unwrap());
        assert!(tag == 4 || tag == 0);
        found += u64::from(tag == 4);
    }
    assert!(found > 20, "only {found} of the writes that were on the medium");
}
