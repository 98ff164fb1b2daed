//! What a pool says of its space, held to what lies on its medium.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bowline_store::{
    BLOCK_BYTES, Broken, CheckVerdict, Disk, DiskId, Mapped, Micros, PlaceKind, Space, StoreOptions,
};

use crate::world::{History, Random, SLOT_BYTES, check_bytes, format_with, open_with, options};

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

fn mapped(history: &History, disk: DiskId) -> Mapped {
    history.world.store.mapped(history.world.store.disk(disk).unwrap())
}

/// How many blocks of a disk hold data, by the model.
fn held(history: &History, disk: DiskId) -> u64 {
    let blocks = history.model.range((disk.0, 0)..(disk.0 + 1, 0));
    blocks.filter(|(_, tags)| tags.last() != Some(&0)).count() as u64
}

fn is_sound(verdict: CheckVerdict) -> bool {
    matches!(verdict, CheckVerdict::Clean | CheckVerdict::Dirty)
}

/// What each disk says of its data, now and after a checkpoint, and what a check counts.
fn compare(history: &mut History, disks: &[DiskId]) {
    for disk in disks {
        let (now, held) = (mapped(history, *disk), held(history, *disk) * BLOCK_BYTES);
        let most = now.bytes.unwrap() + now.changed_bytes;
        assert!(held <= most && (!now.is_all || held == most), "{disk}: {held}, told {now:?}");
    }
    let bytes = |history: &History| Rc::new(RefCell::new(history.world.bytes.borrow().clone()));
    history.world.flush();
    let report = check_bytes(&bytes(history), &[], false);
    assert!(is_sound(report.verdict), "{:#?}", report.findings);
    history.checkpoint();
    let report_too = check_bytes(&bytes(history), &[], false);
    assert!(is_sound(report_too.verdict), "{:#?}", report_too.findings);
    for disk in disks {
        let (now, held) = (mapped(history, *disk), held(history, *disk));
        let exact = Mapped { bytes: Some(held * BLOCK_BYTES), changed_bytes: 0, is_all: true };
        assert_eq!(now, exact, "{disk}");
        for report in [&report, &report_too] {
            let found = report.disks.iter().find(|found| found.id == *disk).unwrap();
            assert_eq!(found.mapped_blocks, held, "{disk}");
        }
    }
}

#[test]
fn a_disk_says_how_much_data_it_holds() {
    let mut history = History::new(96);
    let disks = [history.disk("a", 64 << 20), history.disk("b", 64 << 20)];
    let mut random = Random::new(6);
    for step in 0..1500 {
        let disk = disks[random.below(2) as usize];
        let lba = random.below(3000);
        match random.below(20) {
            // Shorter than a range, within a leaf, and over several leaves.
            0 => history.clear(disk, lba, 1 + random.below(40), step % 2 == 0),
            1 => history.clear(disk, lba, 65 + random.below(200), step % 2 == 0),
            2 => history.clear(disk, lba, 700 + random.below(700), step % 2 == 0),
            _ => history.write(disk, lba, 1 + random.below(6)),
        }
        if step % 300 == 150 {
            let disk = history.world.store.disk(disks[0]).unwrap().clone();
            let (small, large) = (2000 * BLOCK_BYTES, disk.bytes);
            let store = &mut history.world.store;
            store.change_disk(Disk { bytes: small, ..disk.clone() }).unwrap();
            store.change_disk(Disk { bytes: large, ..disk }).unwrap();
            for (_, tags) in history.model.range_mut((disks[0].0, 2000)..(disks[0].0 + 1, 0)) {
                tags.push(0);
            }
        }
        if step % 130 == 100 {
            history = history.restart();
        }
        if step % 100 == 99 {
            compare(&mut history, &disks);
        }
    }
    history.world.store.destroy_disk(disks[0]).unwrap();
    compare(&mut history, &disks[1..]);
}

/// In the log one block, in the map nothing but what was there before.
#[test]
fn a_discard_of_any_size_is_one_record() {
    for blocks in [1 << 8, 1 << 18, 1 << 28] {
        let mut history = History::new(64);
        let disk = history.disk("a", 2 << 40);
        history.write(disk, 5, 3);
        history.world.flush();
        history.checkpoint();
        let counters = |history: &History| history.world.store.status().counters;
        let before = counters(&history);
        history.clear(disk, 0, blocks, false);
        history.world.flush();
        let discarded = counters(&history);
        assert_eq!(discarded.batches - before.batches, 1, "{blocks} blocks");
        assert_eq!(discarded.log_bytes - before.log_bytes, BLOCK_BYTES, "{blocks} blocks");
        history.checkpoint();
        let pages = (counters(&history).map_bytes - before.map_bytes) / BLOCK_BYTES;
        assert!(pages <= 5, "a way through the map from the root to a leaf, not {pages} pages");
        let mut history = history.restart();
        assert_eq!(history.world.read(disk, 6).unwrap(), vec![0; BLOCK_BYTES as usize]);
        assert_eq!(space(&history).mapped_bytes, 0);
    }
}

/// Ahead of the log, once in a pool's life, and only where somebody flushes.
#[test]
fn a_slot_is_made_ready_ahead_where_clients_flush() {
    let slot_bytes = 1 << 20;
    let pool = || History::of(open_with(format_with(64, slot_bytes), &[], options(1)).unwrap());
    let mut history = pool();
    let disk = history.disk("a", 8 << 20);
    let zeroed = history.world.zeroed.clone();
    history.world.idle();
    assert!(zeroed.borrow().is_empty(), "nobody has flushed");
    for at in 0..15 {
        history.write(disk, at, 1);
        history.world.flush();
    }
    assert!(zeroed.borrow().is_empty(), "15 flushes of a segment are not often");
    history.write(disk, 15, 1);
    history.world.flush();
    history.world.poll();
    let [(at, bytes)] = zeroed.borrow()[..] else { panic!("{:?}", zeroed.borrow()) };
    assert_eq!((at - FIRST_SLOT_AT) % slot_bytes, 0);
    assert_eq!(bytes, slot_bytes);
    let place = at as usize..(at + bytes) as usize;
    let is_empty = |history: &History| {
        history.world.bytes.borrow()[place.clone()].iter().all(|byte| *byte == 0)
    };
    assert!(is_empty(&history), "the log has not come to it yet");
    // Its successor was named when the segment began: that one comes first.
    history.write(disk, 100, 250);
    history.write(disk, 400, 250);
    history.world.flush();
    assert!(!is_empty(&history), "the log goes on in it");

    let mut rested = pool();
    let disk = rested.disk("a", 8 << 20);
    rested.write(disk, 1, 1);
    rested.world.flush();
    let zeroed = rested.world.zeroed.clone();
    assert!(zeroed.borrow().is_empty(), "one flush is not often");
    rested.world.idle();
    rested.world.idle();
    assert_eq!(zeroed.borrow().len(), 1, "a pool that is left alone has time for one slot");
}

#[test]
fn a_count_that_is_wrong_is_found() {
    let found = |broken: Vec<Broken>| {
        let bytes = format_with(48, SLOT_BYTES);
        let options = StoreOptions { broken, ..options(1) };
        let mut history = History::of(open_with(bytes.clone(), &[], options).unwrap());
        let disk = history.disk("a", 64 << 20);
        history.write(disk, 100, 500);
        history.write(disk, 5000, 1);
        history.checkpoint();
        history.clear(disk, 0, 1000, false);
        history.checkpoint();
        history.world.flush();
        check_bytes(&bytes, &[], false)
    };
    assert_eq!(found(Vec::new()).verdict, CheckVerdict::Dirty);
    let report = found(vec![Broken::CountWhatIsFreed]);
    assert_eq!(report.verdict, CheckVerdict::Repairable);
    let what = "its map names 1 blocks of data; the checkpoint says 501";
    assert!(report.findings.iter().any(|finding| finding.what == what), "{:#?}", report.findings);
}
