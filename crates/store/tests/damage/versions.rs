//! What another version has written is not passed over: it is said, and nothing is cut off.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_arena::Part;
use bowline_store::{CheckVerdict, DiskId, Durability, PlaceKind, PoolState, Provision};
use twox_hash::XxHash3_64;

use crate::world::{
    BLOCK, SALT, SLOT_BYTES, adopt, check_bytes, content, format_with, open, tag_of,
};

/// A batch as the format says: 80 bytes of head, entries from 128 on.
fn seal(head: &mut [u8]) {
    let rest = XxHash3_64::oneshot_with_seed(SALT, &head[80..BLOCK]);
    let sum = XxHash3_64::oneshot_with_seed(SALT ^ rest, &head[8..80]);
    head[..8].copy_from_slice(&sum.to_le_bytes());
}

/// The place of the last batch of the log.
fn last_batch(bytes: &Rc<RefCell<Vec<u8>>>) -> usize {
    let report = check_bytes(bytes, &[], true);
    assert_eq!(report.verdict, CheckVerdict::Dirty, "{:#?}", report.findings);
    let batches = report.places.iter().filter_map(|place| match place.kind {
        PlaceKind::LogBatch(number) => Some((number, place.at)),
        _ => None,
    });
    batches.max().unwrap().1 as usize
}

/// The pool says so, gives what it understands, and is not repaired by this version.
fn is_told(bytes: &Rc<RefCell<Vec<u8>>>, what: &str) {
    let report = check_bytes(bytes, &[], false);
    assert_eq!(report.verdict, CheckVerdict::Damaged);
    assert!(report.findings.iter().any(|found| found.what.contains(what)), "{report:#?}");
    assert!(report.findings.iter().any(|found| found.remedy.contains("version")), "{report:#?}");
    assert!(report.repairs.is_empty(), "{:?}", report.repairs);
    let before = bytes.borrow().clone();
    let mut world = open(bytes.clone(), 5).unwrap();
    match world.store.status().state {
        PoolState::Damaged(why) => assert!(why.contains(what), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(tag_of(&world.read(DiskId(1), 1).unwrap()), 1);
    drop(world);
    assert!(*bytes.borrow() == before, "nothing is written");
}

#[test]
fn entries_of_another_version_are_told() {
    let mut world = open(format_with(40, SLOT_BYTES), 1).unwrap();
    let disk = world.store.create_disk("a", 64 << 20, Durability::Strict, Provision::Thin).unwrap();
    world.write(disk, 1, &content(1));
    world.flush();
    world.write(disk, 2, &content(2));
    world.flush();
    let sound = world.bytes.borrow().clone();
    let at = last_batch(&world.bytes);
    // Sealed as it is, it is the same batch.
    let same = Rc::new(RefCell::new(sound.clone()));
    seal(&mut same.borrow_mut()[at..at + BLOCK]);
    assert!(*same.borrow() == sound);
    for (offset, byte, what) in [
        (128 + 4, 9, "entry 0 is of kind 9, which is not known"),
        // It says that it has as many blocks as no batch has.
        (128 + 17, 8, "entry 0 does not fit its batch"),
        // Another entry than there is.
        (20, 2, "entry 1 is of kind 0, which is not known"),
        // Another data block than the entries name.
        (24, 2, "entry 1 does not fit its batch"),
    ] {
        let bytes = Rc::new(RefCell::new(sound.clone()));
        bytes.borrow_mut()[at + offset] = byte;
        seal(&mut bytes.borrow_mut()[at..at + BLOCK]);
        is_told(&bytes, what);
    }
}

#[test]
fn records_of_another_version_are_told() {
    let mut world = open(format_with(40, SLOT_BYTES), 1).unwrap();
    let disk = world.store.create_disk("a", 64 << 20, Durability::Strict, Provision::Thin).unwrap();
    world.write(disk, 1, &content(1));
    world.flush();
    world.store.create_disk("b", 64 << 20, Durability::Strict, Provision::Thin).unwrap();
    world.flush();
    let bytes = world.bytes.clone();
    let at = last_batch(&bytes);
    {
        let mut bytes = bytes.borrow_mut();
        let (head, record) = bytes[at..at + 2 * BLOCK].split_at_mut(BLOCK);
        record[0] = 77;
        let sum = XxHash3_64::oneshot_with_seed(SALT, record) as u32;
        head[128 + 32..128 + 36].copy_from_slice(&sum.to_le_bytes());
        seal(head);
    }
    is_told(&bytes, "a record of kind 77 cannot be understood");
}

/// An arena filled by another version is left to it.
#[test]
fn entries_of_another_version_in_the_arena_are_told() {
    let mut world = open(format_with(40, SLOT_BYTES), 1).unwrap();
    let disk = world.store.create_disk("a", 64 << 20, Durability::Strict, Provision::Thin).unwrap();
    world.write(disk, 1, &content(1));
    world.flush();
    world.is_stuck.set(true);
    world.write(disk, 2, &content(2));
    let pages = (0..world.memory.bytes_total()).step_by(BLOCK);
    let mut spoilt = 0;
    for offset in pages {
        let (mut page, part) = (Vec::new(), Part { offset, bytes: BLOCK as u32 });
        world.memory.fetch(part, &mut page);
        // The head of a batch that is open: a write of one block at block 2.
        let is_head = page[..128].iter().all(|byte| *byte == 0);
        if is_head && (page[132], page[136], page[144]) == (1, 2, 1) {
            page[132] = 9;
            world.memory.land(part, &page);
            spoilt += 1;
        }
    }
    assert_eq!(spoilt, 1);
    let world = adopt(world, 1);
    match world.store.status().state {
        PoolState::Damaged(why) => assert!(why.contains("kind 9"), "{why}"),
        other => panic!("{other:?}"),
    }
}
