//! Repairs: what they mend, what they give up, and that they give up nothing else.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bowline_store::{CheckVerdict, DiskId, Lba, PlaceKind, PoolState, RepairStep};

use crate::world::{
    BLOCK, Random, SLOT_BYTES, check_bytes, content, image, judge, judge_unreadable, open,
    open_with, options, repair, status_of, tag_of,
};

fn places(wanted: impl Fn(PlaceKind) -> bool) -> Vec<(usize, usize)> {
    let report = check_bytes(&Rc::new(RefCell::new(image().bytes.clone())), &[], true);
    let found = report.places.iter().filter(|place| wanted(place.kind));
    found.map(|place| (place.at as usize, place.bytes as usize)).collect()
}

#[test]
fn copies_are_written_again() {
    let original = image();
    let mut copies = places(|kind| matches!(kind, PlaceKind::Header | PlaceKind::Superblock));
    assert_eq!(copies.len(), 10);
    // One of each pair, in turn the first and the second.
    for half in 0..2 {
        let bytes = Rc::new(RefCell::new(original.bytes.clone()));
        for pair in copies.chunks(2) {
            bytes.borrow_mut()[pair[half].0 + 20] ^= 1;
        }
        let report = check_bytes(&bytes, &[], false);
        assert_eq!(report.verdict, CheckVerdict::Repairable);
        assert_eq!(report.repairs, [RepairStep::Copies]);
        repair(&bytes, &report).unwrap();
        let after = check_bytes(&bytes, &[], false);
        assert_eq!(after.verdict, CheckVerdict::Dirty, "{:#?}", after.findings);
        for (at, len) in copies.iter_mut().map(|(at, len)| (*at, *len)) {
            assert!(
                bytes.borrow()[at..at + len] == original.bytes[at..at + len] || at >= 128 << 10
            );
        }
    }
}

/// The blocks of each copy of the last checkpoint's blob: the first half of them are the first's.
fn blobs() -> [Vec<usize>; 2] {
    let blocks = places(|kind| kind == PlaceKind::Blob).into_iter();
    let blocks: Vec<usize> = blocks.flat_map(|(at, len)| (at..at + len).step_by(BLOCK)).collect();
    let (one, other) = blocks.split_at(blocks.len() / 2);
    let same = one.iter().zip(other);
    for (one, other) in same {
        assert!(image().bytes[*one..*one + BLOCK] == image().bytes[*other..*other + BLOCK]);
    }
    let slots = |copy: &[usize]| -> BTreeSet<usize> {
        copy.iter().map(|at| (at - (1 << 20)) / SLOT_BYTES as usize).collect()
    };
    assert!(slots(one).is_disjoint(&slots(other)), "the copies share a slot");
    [one.to_vec(), other.to_vec()]
}

/// How a copy of the blob is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Flipped,
    Gone,
    Unreadable,
}

#[test]
fn either_copy_of_the_blob_is_enough() {
    for (number, copy) in blobs().iter().enumerate() {
        for loss in [Loss::Flipped, Loss::Gone, Loss::Unreadable] {
            let mut spoilt = image().bytes.clone();
            let mut bad = Vec::new();
            match loss {
                Loss::Flipped => spoilt[copy[copy.len() / 2] + 77] ^= 2,
                Loss::Gone => copy.iter().for_each(|at| spoilt[*at..*at + BLOCK].fill(0)),
                Loss::Unreadable => bad.push(copy[0] as u64..copy[0] as u64 + BLOCK as u64),
            }
            let outcome = judge_unreadable(image(), spoilt.clone(), &bad, 3);
            assert_eq!(outcome.verdict, CheckVerdict::Repairable, "{number} {loss:?}");
            assert!(outcome.is_healthy && outcome.errors == 0, "{number} {loss:?}: {outcome:?}");
            // Repair writes it again where it was.
            let bytes = Rc::new(RefCell::new(spoilt.clone()));
            let report = check_bytes(&bytes, &bad, false);
            assert_eq!(report.repairs, [RepairStep::Copies]);
            assert!(report.findings[0].place.contains(&format!("copy {number}")));
            if loss != Loss::Unreadable {
                repair(&bytes, &report).unwrap();
                assert!(*bytes.borrow() == image().bytes, "{number} {loss:?}");
            }
            // So does a server, by the checkpoint it makes as soon as it is open.
            let bytes = Rc::new(RefCell::new(spoilt));
            let mut world = open_with(bytes.clone(), &bad, options(90)).unwrap();
            world.poll();
            world.flush();
            drop(world);
            let after = check_bytes(&bytes, &bad, false);
            assert_eq!(after.verdict, CheckVerdict::Dirty, "{:#?}", after.findings);
        }
    }
}

#[test]
fn without_both_copies_of_the_blob_nothing_can_be_found() {
    let [one, other] = blobs();
    let bytes = Rc::new(RefCell::new(image().bytes.clone()));
    bytes.borrow_mut()[one[0] + 5] ^= 1;
    bytes.borrow_mut()[other[other.len() - 1] + 5] ^= 1;
    let report = check_bytes(&bytes, &[], false);
    assert_eq!(report.verdict, CheckVerdict::Damaged);
    assert!(report.repairs.is_empty(), "{:?}", report.repairs);
    let why = open(bytes.clone(), 90).err().unwrap().to_string();
    assert!(why.contains("checkpoint"), "{why}");
    assert!(!judge(image(), bytes.take(), 3).is_open);
}

#[test]
fn a_sound_pool_is_left_as_it_is() {
    let bytes = Rc::new(RefCell::new(image().bytes.clone()));
    let report = check_bytes(&bytes, &[], false);
    assert!(report.repairs.is_empty());
    repair(&bytes, &report).unwrap();
    assert!(*bytes.borrow() == image().bytes);
}

#[test]
fn a_log_is_cut_where_it_is_damaged_and_nowhere_else() {
    let heads = places(|kind| matches!(kind, PlaceKind::LogBatch(_)));
    for at in (0..heads.len() - 4).step_by(11) {
        let bytes = Rc::new(RefCell::new(image().bytes.clone()));
        bytes.borrow_mut()[heads[at].0 + 9] ^= 4;
        let report = check_bytes(&bytes, &[], false);
        assert_eq!(report.verdict, CheckVerdict::Damaged);
        assert!(matches!(report.repairs[..], [RepairStep::CutLog { .. }]), "{:?}", report.repairs);
        // A step of another damage is not taken.
        let mut other = report.clone();
        other.repairs = vec![RepairStep::CutLog { after: bowline_store::BatchNumber(3) }];
        assert!(repair(&bytes, &other).is_err());
        repair(&bytes, &report).unwrap();
        let after = check_bytes(&bytes, &[], false);
        assert_eq!(after.verdict, CheckVerdict::Clean, "{:#?}", after.findings);
        let mut world = open(bytes.clone(), 90).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        let lost = |disk: u32, lba: u64| {
            report.losses.iter().any(|loss| {
                loss.disk.0 == disk && (loss.lba.0..loss.lba.0 + loss.blocks).contains(&lba)
            })
        };
        let mut unlisted: Vec<u64> = Vec::new();
        for ((disk, lba), tags) in &image().model {
            let found = tag_of(&world.read(DiskId(*disk), *lba).unwrap());
            assert!(found == 0 || tags.contains(&found));
            if tags.last() != Some(&found) && !lost(*disk, *lba) {
                unlisted.extend(tags.last().filter(|tag| **tag != 0));
            }
        }
        // What the missing batch itself held nobody can tell: writes with numbers side by side.
        let (first, last) = (unlisted.iter().min(), unlisted.iter().max());
        let span = last.zip(first).map_or(0, |(last, first)| last - first);
        assert!(span <= 40, "writes {first:?} to {last:?} are lost and not listed");
        world.write(DiskId(1), 5, &content(1 << 40));
        world.store.close().unwrap();
    }
}

#[test]
fn what_a_damaged_page_knew_is_given_up_and_never_zeros() {
    let pages = places(|kind| matches!(kind, PlaceKind::Page(_)));
    assert!(pages.len() > 8, "{}", pages.len());
    let mut errors = 0;
    for (at, _) in pages {
        let bytes = Rc::new(RefCell::new(image().bytes.clone()));
        bytes.borrow_mut()[at + 100] ^= 16;
        let report = check_bytes(&bytes, &[], false);
        assert_eq!(report.verdict, CheckVerdict::Damaged);
        assert!(matches!(report.repairs[..], [RepairStep::GiveUp { .. }]), "{:?}", report.repairs);
        repair(&bytes, &report).unwrap();
        let after = check_bytes(&bytes, &[], false);
        let given_up = after.losses.iter().all(|loss| loss.is_given_up);
        assert!(given_up && after.verdict != CheckVerdict::Damaged, "{:#?}", after.findings);
        assert!(after.repairs.is_empty());
        let mut world = open(bytes.clone(), 90).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        let mut lost = Vec::new();
        for ((disk, lba), tags) in &image().model {
            let is_listed = report.losses.iter().any(|loss| {
                loss.disk.0 == *disk && (loss.lba.0..loss.lba.0 + loss.blocks).contains(lba)
            });
            match world.read(DiskId(*disk), *lba) {
                Ok(block) => {
                    assert!(!is_listed, "disk {disk} block {lba} reads, though it is lost");
                    assert_eq!(tags.last(), Some(&tag_of(&block)), "disk {disk} block {lba}");
                }
                Err(error) => {
                    assert!(is_listed && error.contains("lost"), "{error}");
                    lost.push((DiskId(*disk), *lba));
                }
            }
        }
        errors += lost.len();
        // Written or discarded, it is sound again; what lies beside it stays lost.
        for (number, (disk, lba)) in lost.iter().copied().enumerate() {
            assert_eq!(status_of(&mut world, disk, lba), bowline_store::BlockState::Data);
            match number % 3 {
                0 => world.write(disk, lba, &content(1 << 41)),
                1 => {
                    world.retry(|world| world.store.discard(disk, Lba(lba), 1));
                }
                _ => {}
            }
        }
        world.store.close().unwrap();
        drop(world);
        let mut world = open(bytes, 91).unwrap();
        for (number, (disk, lba)) in lost.into_iter().enumerate() {
            let found = world.read(disk, lba);
            match number % 3 {
                0 => assert_eq!(tag_of(&found.unwrap()), 1 << 41),
                1 => assert_eq!(found.unwrap(), vec![0; BLOCK]),
                _ => assert!(found.is_err()),
            }
        }
    }
    assert!(errors > 300, "{errors}");
}

#[test]
fn a_discard_passes_over_a_damaged_page() {
    for (at, _) in places(|kind| kind == PlaceKind::Page(0)) {
        let bytes = Rc::new(RefCell::new(image().bytes.clone()));
        bytes.borrow_mut()[at + 100] ^= 16;
        let mut world = open(bytes.clone(), 90).unwrap();
        for disk in [1, 2] {
            let blocks = world.store.disk(DiskId(disk)).unwrap().bytes / BLOCK as u64;
            world.retry(|world| world.store.discard(DiskId(disk), Lba(0), blocks));
        }
        world.store.close().unwrap();
        drop(world);
        let report = check_bytes(&bytes, &[], false);
        assert_eq!(report.verdict, CheckVerdict::Clean, "{:#?}", report.findings);
    }
}

/// Whatever a check says can be repaired is repaired by one repair, and nothing else changes: what
/// was not listed as lost reads as before.
#[test]
fn one_repair_does_all_that_a_check_proposes() {
    let report = check_bytes(&Rc::new(RefCell::new(image().bytes.clone())), &[], true);
    let mut random = Random::new(29);
    let (mut emptied, mut given_up) = (0, 0);
    for round in 0..90 {
        let mut bytes = image().bytes.clone();
        for _ in 0..1 + round % 4 {
            let place = loop {
                let place = report.places[random.below(report.places.len() as u64) as usize];
                // A log that is cut off loses what nobody can list.
                if !matches!(place.kind, PlaceKind::LogBatch(_) | PlaceKind::LogHeader) {
                    break place;
                }
            };
            let at = place.at + random.below(place.bytes);
            bytes[at as usize] ^= 1 << random.below(8);
        }
        let bytes = Rc::new(RefCell::new(bytes));
        let before = check_bytes(&bytes, &[], false);
        if before.repairs.is_empty() {
            continue;
        }
        let is = |wanted: fn(&RepairStep) -> bool| before.repairs.iter().any(wanted);
        emptied += u32::from(is(|step| matches!(step, RepairStep::Empty { .. })));
        given_up += u32::from(is(|step| matches!(step, RepairStep::GiveUp { level: 0, .. })));
        if is(|step| matches!(step, RepairStep::CutLog { .. })) {
            continue;
        }
        repair(&bytes, &before).unwrap_or_else(|error| panic!("{round}: {error}: {before:#?}"));
        let after = check_bytes(&bytes, &[], false);
        assert!(after.repairs.is_empty(), "{round}: {before:#?} {after:#?}");
        assert_ne!(after.verdict, CheckVerdict::Damaged, "{round}: {after:#?}");
        assert!(after.losses.iter().all(|loss| loss.is_given_up));
        let mut world = open(bytes.clone(), 90).unwrap();
        for ((disk, lba), tags) in image().model.iter().step_by(3) {
            let is_lost = before.losses.iter().any(|loss| {
                loss.disk.0 == *disk && (loss.lba.0..loss.lba.0 + loss.blocks).contains(lba)
            });
            match world.read(DiskId(*disk), *lba) {
                Ok(block) => {
                    assert!(!is_lost, "{round}: disk {disk} block {lba} is lost");
                    assert_eq!(tags.last(), Some(&tag_of(&block)), "{round}: {disk} {lba}");
                }
                Err(error) => assert!(is_lost && error.contains("lost"), "{round}: {error}"),
            }
        }
        world.store.close().unwrap();
    }
    assert!(emptied > 5 && given_up > 5, "{emptied} emptied, {given_up} given up");
}
