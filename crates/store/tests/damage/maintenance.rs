//! A pool that serves goes on with its maintenance beside damage.

use bowline_store::{DiskId, Durability, PoolState, Provision};

use crate::world::{BLOCK, Random, SLOT_BYTES, World, content, format_with, open, tag_of};

/// The block nobody writes again.
const STAYS: u64 = 7;
const BLOCKS: u64 = 600;

/// What spoils a block on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoil {
    Unreadable,
    Flipped,
    /// The head of its batch cannot be read: the block itself can.
    HeadUnreadable,
}

/// Overwrites everything but one block until compaction has emptied many slots.
fn overwrite(world: &mut World, disk: DiskId, random: &mut Random, tags: &mut [u64]) {
    for _ in 0..700 {
        let lba = random.below(BLOCKS - 8);
        for lba in lba..lba + 8 {
            if lba != STAYS {
                let tag = random.next() >> 1;
                tags[lba as usize] = tag;
                world.write(disk, lba, &content(tag));
            }
        }
        if random.below(4) == 0 {
            world.flush();
        }
    }
    world.flush();
}

/// Where the medium holds the only copy of a write's block.
fn place_of(world: &World, tag: u64) -> usize {
    let (bytes, wanted) = (world.bytes.borrow(), content(tag));
    let is_it = |at: &usize| bytes[*at..*at + BLOCK] == wanted;
    let found: Vec<usize> = (0..bytes.len()).step_by(BLOCK).filter(is_it).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn goes_on(spoil: Spoil) {
    let mut world = open(format_with(64, SLOT_BYTES), 1).unwrap();
    let disk = world.store.create_disk("a", 64 << 20, Durability::Strict, Provision::Thin);
    let disk = disk.unwrap();
    let (mut random, mut tags) = (Random::new(23), vec![0; BLOCKS as usize]);
    for lba in 0..BLOCKS {
        tags[lba as usize] = 1 + lba;
        world.write(disk, lba, &content(1 + lba));
    }
    world.flush();
    let at = place_of(&world, 1 + STAYS);
    let mut bad = at as u64..at as u64 + BLOCK as u64;
    match spoil {
        Spoil::Flipped => world.bytes.borrow_mut()[at + 99] ^= 4,
        Spoil::Unreadable => world.unreadable.borrow_mut().push(bad),
        Spoil::HeadUnreadable => {
            let magic = |at: u64| world.bytes.borrow()[at as usize + 8..][..8] == *b"BOWLBTCH";
            while !magic(bad.start) {
                bad = bad.start - BLOCK as u64..bad.start;
            }
            world.unreadable.borrow_mut().push(bad);
        }
    }
    let before = world.store.status().counters.slots_compacted;
    overwrite(&mut world, disk, &mut random, &mut tags);
    let status = world.store.status();
    assert_eq!(status.state, PoolState::Healthy, "{spoil:?}");
    assert!(status.counters.slots_compacted > before + 40, "{spoil:?}: {status:#?}");
    assert!(status.space.pending_free_bytes < status.space.capacity_bytes / 2);
    let is_lost = spoil != Spoil::HeadUnreadable;
    assert_eq!(status.unmovable_slots, usize::from(is_lost), "{spoil:?}");
    for (lba, tag) in tags.iter().enumerate() {
        let found = world.read(disk, lba as u64);
        if lba as u64 == STAYS && is_lost {
            assert!(found.is_err(), "{spoil:?}: wrong data");
        } else {
            assert_eq!(tag_of(&found.unwrap()), *tag, "{spoil:?}: block {lba}");
        }
    }
    // Written again, it is sound, and nothing keeps the slot any more.
    world.write(disk, STAYS, &content(77));
    world.flush();
    overwrite(&mut world, disk, &mut random, &mut tags);
    assert_eq!(world.store.status().unmovable_slots, 0, "{spoil:?}");
    assert_eq!(tag_of(&world.read(disk, STAYS).unwrap()), 77);
    world.store.close().unwrap();
}

#[test]
fn compaction_goes_on_beside_a_block_that_cannot_be_read() {
    goes_on(Spoil::Unreadable);
}

#[test]
fn compaction_goes_on_beside_a_block_that_is_not_what_was_written() {
    goes_on(Spoil::Flipped);
}

#[test]
fn compaction_needs_no_head_of_a_batch() {
    goes_on(Spoil::HeadUnreadable);
}
