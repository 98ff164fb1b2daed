//! Recoveries that once went wrong.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_store::{
    CheckVerdict, Disk, DiskId, Durability, Lba, PoolState, Provision, StoreOptions,
};

use crate::world::{
    BLOCK, SLOT_BYTES, World, adopt, adopt_in_vain, check_bytes, content, format_with, open,
    open_with, options, tag_of,
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

/// Two generations of ranges become one in a replay, which may be full when a disk goes.
#[test]
fn a_disk_destroyed_after_many_discards_is_replayed() {
    for more in 0..12 {
        let (mut world, disk) = world(400);
        let other = world.store.create_disk("b", 1 << 40, Durability::Strict, Provision::Thin);
        let other = other.unwrap();
        world.flush();
        let discard = |world: &mut World, at: u64| world.store.discard(other, Lba(at * 1000), 100);
        for at in 0..4088 {
            discard(&mut world, at).unwrap();
        }
        // The checkpoint begins, and never ends.
        world.is_stuck.set(true);
        world.poll();
        for at in 0..more {
            discard(&mut world, 5000 + at).unwrap();
        }
        world.store.destroy_disk(disk).unwrap();
        let bytes = world.bytes.clone();
        let mut world = adopt(world, 1);
        assert!(world.store.disk(disk).is_none());
        world.flush();
        drop(world);
        let world = open(bytes, 2).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        assert!(world.store.disk(disk).is_none());
    }
}

/// What an arena held is durable when its pool is open again. Once that is proven, a sector lost
/// there is no torn end.
#[test]
fn what_an_arena_held_is_proven_when_the_pool_is_left_alone() {
    let (mut world, disk) = world(60);
    world.write(disk, 1, &content(1));
    world.flush();
    // It never comes to the medium.
    world.is_stuck.set(true);
    world.write(disk, 2, &content(2));
    world.poll();
    let mut world = adopt(world, 1);
    assert_eq!(world.store.status().counters.batches_adopted, 1);
    world.idle();
    let bytes = world.bytes.clone();
    drop(world);
    let data = content(2);
    let at = bytes.borrow().chunks(BLOCK).position(|block| block == &data[..]).unwrap();
    bytes.borrow_mut()[(at - 1) * BLOCK..at * BLOCK].fill(0);
    let world = open(bytes, 2).unwrap();
    let state = world.store.status().state;
    assert!(matches!(state, PoolState::Damaged(_)), "cut off without a word: {state:?}");
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
    while world.store.status().space.pending_free_bytes == 0 && lba < 480 {
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

/// A recovery that does not accept something must not find it in the next.
#[test]
fn what_a_recovery_that_was_cut_off_wrote_does_not_come_back() {
    let (mut world, disk) = world(40);
    world.write(disk, 1, &content(1));
    world.flush();
    world.is_stuck.set(true);
    world.write(disk, 1, &content(2));
    world.write(disk, 2, &content(3));
    // Killed, adopted, and the host goes down before the new epoch is recorded.
    let bytes = adopt_in_vain(world, 1);
    for boot in 2..5 {
        let mut world = open(bytes.clone(), boot).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        assert_eq!(tag_of(&world.read(disk, 1).unwrap()), 1, "boot {boot}");
        assert_eq!(tag_of(&world.read(disk, 2).unwrap()), 0, "boot {boot}");
    }
}

/// An error is not the end of the log, even where nothing proves that it goes on.
#[test]
fn a_batch_that_cannot_be_read_now_is_not_cut_off() {
    let (mut world, disk) = world(40);
    world.write(disk, 1, &content(1));
    world.flush();
    let before = world.bytes.borrow().clone();
    world.write(disk, 2, &content(2));
    world.flush();
    let after = world.bytes.borrow().clone();
    let changed = |at: &usize| before[*at..*at + BLOCK] != after[*at..*at + BLOCK];
    let blocks: Vec<usize> = (0..after.len()).step_by(BLOCK).filter(changed).collect();
    assert_eq!(blocks.len(), 2, "a head and a block of data");
    for at in blocks {
        let bytes = Rc::new(RefCell::new(after.clone()));
        let bad = at as u64..at as u64 + 1;
        let report = check_bytes(&bytes, std::slice::from_ref(&bad), false);
        assert_eq!(report.verdict, CheckVerdict::Damaged);
        let mut blind = open_with(bytes.clone(), &[bad], options(2)).unwrap();
        let state = blind.store.status().state;
        assert!(matches!(state, PoolState::Damaged(ref why) if why.contains("read")), "{state:?}");
        assert_eq!(tag_of(&blind.read(disk, 1).unwrap()), 1);
        drop(blind);
        let mut world = open(bytes, 3).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        assert_eq!(tag_of(&world.read(disk, 2).unwrap()), 2);
    }
}

/// The superblocks of a pool that was closed are put back after it has been used again.
#[test]
fn an_old_end_in_good_order_is_not_believed() {
    let (mut world, disk) = world(40);
    world.write(disk, 1, &content(1));
    world.store.close().unwrap();
    let bytes = world.bytes.clone();
    drop(world);
    let old = bytes.borrow()[..1 << 20].to_vec();
    let mut found = Vec::new();
    for rounds in [1, 3, 40, 400] {
        let mut world = open(bytes.clone(), 10 + u128::from(rounds)).unwrap();
        for at in 0..rounds {
            world.write(disk, 1 + at % 9, &content(100 + at));
            world.flush();
        }
        world.idle();
        world.flush();
        let mut copy = world.bytes.borrow().clone();
        copy[..1 << 20].copy_from_slice(&old);
        let copy = Rc::new(RefCell::new(copy));
        assert_eq!(check_bytes(&copy, &[], false).verdict, CheckVerdict::Damaged);
        let state = open(copy, 3).map(|world| world.store.status().state);
        assert!(!matches!(state, Ok(PoolState::Healthy)), "{rounds} rounds: {state:?}");
        found.push(state.is_ok());
    }
    assert!(found.contains(&true), "none of them opened for reading");
}

/// A server dies with writes under way; its arena is gone, and its rings with it. Returns whether a
/// successor that is told to go on has sound data after those writes have landed.
fn succeed(waits: bool, is_quiet: bool) -> Result<bool, PoolState> {
    let (mut world, disk) = world(40);
    world.write(disk, 1, &content(1));
    world.flush();
    world.is_stuck.set(true);
    for lba in 0..40 {
        world.write(disk, 100 + lba, &content(2));
    }
    // Batches of the log, pages, the tables of a checkpoint.
    world.store.want_checkpoint();
    world.poll();
    let (bytes, under_way) = (world.bytes.clone(), world.under_way.clone());
    assert!(under_way.borrow().len() > 2, "{} writes", under_way.borrow().len());
    drop(world);
    let land = || {
        for (at, late) in under_way.borrow().iter() {
            let at = *at as usize;
            bytes.borrow_mut()[at..at + late.len()].copy_from_slice(late);
        }
    };
    if waits {
        land();
    }
    let before = bytes.borrow().clone();
    let options = StoreOptions { accept_loss: true, is_quiet, ..options(1) };
    let mut world = open_with(bytes.clone(), &[], options).unwrap();
    let state = world.store.status().state;
    if state != PoolState::Healthy {
        assert!(*bytes.borrow() == before, "nothing is written");
        return Err(state);
    }
    for lba in 0..60 {
        world.write(disk, 200 + lba, &content(1000 + lba));
        world.flush();
    }
    world.store.checkpoint_now().unwrap();
    if !waits {
        land();
    }
    let can_read = (0..60).all(|lba| world.read(disk, 200 + lba).is_ok());
    drop(world);
    Ok(can_read && check_bytes(&bytes, &[], false).verdict == CheckVerdict::Dirty)
}

#[test]
fn who_does_not_wait_for_a_dead_servers_writes_is_overwritten() {
    assert_eq!(succeed(true, true), Ok(true));
    assert_eq!(succeed(false, true), Ok(false), "late writes do no harm: nothing is proven");
    let told = succeed(false, false).unwrap_err();
    assert!(matches!(&told, PoolState::LostWrites(why) if why.contains("--arena")), "{told:?}");
}
