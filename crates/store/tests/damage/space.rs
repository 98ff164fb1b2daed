//! What a pool says of its space, held to what lies on its medium.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bowline_store::{BLOCK_BYTES, DiskId, Micros, PlaceKind, Space};

use crate::world::{History, Random, SLOT_BYTES, check_bytes};

const FIRST_SLOT_AT: u64 = 1 << 20;

/// What a check finds on the medium: blocks and pages that something leads to, blocks kept for
/// nothing, and slots that hold anything.
fn on_medium(history: &mut History) -> (u64, u64, u64) {
    history.world.flush();
    let bytes = Rc::new(RefCell::new(history.world.bytes.borrow().clone()));
    let report = check_bytes(&bytes, &[], true);
    let needed = report
        .places
        .iter()
        .filter(|place| matches!(place.kind, PlaceKind::Data | PlaceKind::Page(_)));
    let slots: BTreeSet<u64> = report
        .places
        .iter()
        .filter_map(|place| place.at.checked_sub(FIRST_SLOT_AT))
        .map(|at| at / SLOT_BYTES)
        .collect();
    (needed.count() as u64, report.dead_blocks, slots.len() as u64)
}

fn space(history: &History) -> Space {
    history.world.store.status().space
}

#[test]
fn every_figure_is_what_lies_on_the_medium() {
    let mut history = History::new(96);
    let (a, b) = (history.disk("a", 64 << 20), history.disk("b", 16 << 20));
    let mut random = Random::new(4);
    for _ in 0..700 {
        let blocks = 1 + random.below(6);
        history.write(a, random.below(900), blocks);
        history.write(b, random.below(300), 1);
    }
    history.checkpoint();
    let now = space(&history);
    assert_eq!(now.logical_bytes, 80 << 20);
    assert_eq!(now.shared_bytes, 0, "nothing is shared yet");
    assert_eq!(now.capacity_bytes, 96 * SLOT_BYTES);
    let (needed, dead, slots) = on_medium(&mut history);
    let now_too = space(&history);
    assert_eq!(now_too.mapped_bytes, (needed + dead) * BLOCK_BYTES, "{needed} and {dead} dead");
    // Beside those that hold something: the log's next slot, and one each for what is appended to.
    let used = now_too.physical_bytes / SLOT_BYTES;
    assert!((slots..=slots + 6).contains(&used), "{used} slots used, {slots} hold something");
    assert_eq!(now_too.reclaimable_bytes, now_too.physical_bytes - now_too.mapped_bytes);

    // All of a disk is given back: after a checkpoint it is dead.
    let before = space(&history);
    history.world.store.destroy_disk(DiskId(1)).unwrap();
    history.checkpoint();
    let after = space(&history);
    assert_eq!(after.logical_bytes, 16 << 20);
    let (needed, dead, _) = on_medium(&mut history);
    assert_eq!(space(&history).mapped_bytes, (needed + dead) * BLOCK_BYTES);
    assert!(after.mapped_bytes < before.mapped_bytes / 2, "{after:?}");
    // What is left of the other lies between what is dead now: compaction could win that.
    assert!(after.reclaimable_bytes > before.reclaimable_bytes, "{before:?} {after:?}");
}

/// A slot that compaction has emptied is not used, and waits for a checkpoint before it is free.
#[test]
fn what_is_emptied_waits_before_it_is_free() {
    let mut history = History::new(64);
    let disk = history.disk("a", 64 << 20);
    let mut random = Random::new(5);
    let (mut waited, mut freed) = (0, 0);
    for _ in 0..20_000 {
        let blocks = 1 + random.below(6);
        history.write(disk, random.below(900), blocks);
        history.world.now += 100;
        history.world.store.poll(Micros(history.world.now));
        let now = space(&history);
        assert!(now.physical_bytes + now.pending_free_bytes <= now.capacity_bytes, "{now:?}");
        assert!(now.pending_free_bytes.is_multiple_of(SLOT_BYTES), "{now:?}");
        freed += u64::from(now.pending_free_bytes < waited);
        waited = now.pending_free_bytes;
        if freed > 3 {
            return;
        }
    }
    panic!("{freed} times something that waited came free: {:?}", space(&history));
}
