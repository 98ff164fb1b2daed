//! Scrubs: of a sound pool nothing is found, whatever clients do meanwhile; what is damaged is
//! found, whether anything leads to it or not.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bowline_store::{
    Broken, CheckVerdict, DiskId, Durability, Place, PlaceKind, Provision, ScrubFinding,
    ScrubSeverity, ScrubState, ScrubStatus,
};

use crate::world::{
    BLOCK, History, Random, SLOT_BYTES, World, adopt_in_vain, check_bytes, content, format_with,
    image, open, open_with, options, tag_of,
};

const FIRST_SLOT_AT: u64 = 1 << 20;

/// Scrubs from beginning to end, as fast as it goes.
fn scrub(world: &mut World) -> ScrubStatus {
    world.store.start_scrub(u64::MAX);
    for _ in 0..100_000 {
        world.poll();
        if world.store.scrub().state == ScrubState::Finished {
            let status = world.store.scrub();
            assert_eq!(status.left_bytes, 0);
            return status;
        }
        world.now += 1000;
    }
    panic!("a scrub never ends: {:?}", world.store.scrub());
}

/// Where a finding is, in bytes.
fn at(finding: &ScrubFinding) -> u64 {
    let slot = finding.slot.map_or(0, |slot| FIRST_SLOT_AT + u64::from(slot.0) * SLOT_BYTES);
    slot + finding.block * BLOCK as u64
}

/// The pool with a rich history, open and at rest.
fn opened() -> World {
    let mut world = open(Rc::new(RefCell::new(image().bytes.clone())), 77).unwrap();
    world.flush();
    world
}

/// Where everything lies in it.
fn places() -> Vec<Place> {
    let bytes = Rc::new(RefCell::new(opened().bytes.borrow().clone()));
    let report = check_bytes(&bytes, &[], true);
    assert_eq!(report.verdict, CheckVerdict::Dirty);
    report.places
}

#[test]
fn a_sound_pool_has_no_findings_and_is_read_as_a_whole() {
    let mut world = opened();
    let status = scrub(&mut world);
    assert_eq!(status.findings, []);
    // What the check looks at is what something leads to; a scrub reads at least that, and no more
    // than what is in use.
    let blocks: BTreeSet<u64> = places()
        .iter()
        .flat_map(|place| (0..place.bytes / BLOCK as u64).map(|at| place.at / BLOCK as u64 + at))
        .collect();
    let led_to = blocks.len() as u64 * BLOCK as u64;
    let in_use = world.store.status().space.physical_bytes + (256 << 10);
    let verified = status.verified_bytes;
    println!("{verified} bytes verified; {led_to} are led to; slots in use have {in_use}");
    assert!((led_to..=in_use).contains(&verified), "{verified} of {led_to} to {in_use}");
}

#[test]
fn every_byte_that_was_written_is_read() {
    let mut history = History::new(80);
    let disk = history.disk("a", 64 << 20);
    let mut random = Random::new(8);
    for _ in 0..300 {
        history.write(disk, random.below(400), 1 + random.below(4));
    }
    history.checkpoint();
    history.world.flush();
    let counters = history.world.store.status().counters;
    assert_eq!((counters.checkpoints, counters.slots_compacted), (1, 0));
    let status = scrub(&mut history.world);
    assert_eq!(status.findings, []);
    // Nothing was moved, and no page was replaced: everything that was ever written is in use.
    let copies = 10 * BLOCK as u64;
    let written = counters.log_bytes + counters.map_bytes;
    let live = history.world.store.status().space.mapped_bytes;
    println!("{written} bytes written, {live} of them live, {} verified", status.verified_bytes);
    assert_eq!(status.verified_bytes, copies + written);
    assert!(written > live + live / 2, "most of the log is dead: {live} of {written}");
}

#[test]
fn a_sound_pool_under_load_has_no_findings() {
    for seed in 1..4 {
        let mut history = History::new(96);
        let (a, b) = (history.disk("a", 64 << 20), history.disk("b", 1 << 30));
        let mut random = Random::new(seed);
        let (mut scrubs, mut left) = (0, 0);
        for step in 0..6000u64 {
            let blocks = 1 + random.below(6);
            match random.below(12) {
                0..8 => history.write(a, random.below(900 - blocks), blocks),
                8 => history.write(b, random.below(12) * 20_000 + random.below(12), 1),
                9 => history.clear(a, random.below(700), 1 + random.below(30), step % 2 == 0),
                10 => history.clear(b, random.below(9) * 20_000, 20_000, false),
                _ => history.world.flush(),
            }
            if random.below(200) == 0 {
                history.checkpoint();
            }
            history.world.now += 300;
            let status = history.world.store.scrub();
            assert_eq!(status.findings, [], "seed {seed}, step {step}");
            if status.state != ScrubState::Running {
                scrubs += u64::from(status.state == ScrubState::Finished);
                left = left.max(status.left_bytes);
                history.world.store.start_scrub(200 << 20);
            }
        }
        let counters = history.world.store.status().counters;
        println!("seed {seed}: {scrubs} scrubs, {counters:?}");
        assert!(scrubs > 2, "only {scrubs} scrubs came to their end");
        assert!(counters.slots_compacted > 20 && counters.checkpoints > 20, "{counters:?}");
        assert_eq!(left, 0);
    }
}

fn word(kind: PlaceKind) -> &'static str {
    match kind {
        PlaceKind::Header => "header",
        PlaceKind::Superblock => "superblock",
        PlaceKind::Blob => "blob",
        PlaceKind::SegmentHeader | PlaceKind::LogHeader => "segment header",
        PlaceKind::LogBatch(_) | PlaceKind::BatchHead => "batch head",
        PlaceKind::LogData => "log data",
        PlaceKind::ImageHead => "image head",
        PlaceKind::Page(_) => "page",
        PlaceKind::Data => "data",
    }
}

/// Damages places of each kind, one at a time, in a pool that is open, and scrubs.
fn damage_each(
    per_kind: usize,
    broken: &[Broken],
    damage: impl Fn(&mut [u8], &mut Random),
) -> BTreeMap<&'static str, Vec<(Place, ScrubStatus)>> {
    let mut by_kind: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
    for place in places() {
        by_kind.entry(word(place.kind)).or_default().push(place);
    }
    let mut random = Random::new(5);
    let mut outcomes: BTreeMap<&str, Vec<(Place, ScrubStatus)>> = BTreeMap::new();
    for (kind, mut places) in by_kind {
        while places.len() > per_kind {
            places.swap_remove(random.below(places.len() as u64) as usize);
        }
        for place in places {
            let bytes = Rc::new(RefCell::new(image().bytes.clone()));
            let mut options = options(77);
            options.broken = broken.to_vec();
            let mut world = open_with(bytes, &[], options).unwrap();
            world.flush();
            let (from, to) = (place.at as usize, (place.at + place.bytes) as usize);
            damage(&mut world.bytes.borrow_mut()[from..to], &mut random);
            outcomes.entry(kind).or_default().push((place, scrub(&mut world)));
        }
    }
    outcomes
}

fn check_outcomes(outcomes: &BTreeMap<&'static str, Vec<(Place, ScrubStatus)>>) {
    let kinds: Vec<&str> = outcomes.keys().copied().collect();
    assert_eq!(kinds.len(), 9, "{kinds:?}");
    let mut missed = 0;
    for (kind, outcomes) in outcomes {
        for (place, status) in outcomes {
            let range = place.at..place.at + place.bytes;
            let found = status.findings.iter().find(|one| range.contains(&at(one)));
            let Some(found) = found else {
                // Of the last segment of an epoch that was cut off, the header may never have been
                // whole: nothing on the medium can tell.
                assert_eq!(*kind, "segment header", "{place:?}: not in {status:#?}");
                missed += 1;
                continue;
            };
            let wanted: &[ScrubSeverity] = match *kind {
                "header" | "superblock" | "blob" => &[ScrubSeverity::Repaired],
                "segment header" | "batch head" | "image head" => &[ScrubSeverity::Harmless],
                "page" | "data" => &[ScrubSeverity::Lost],
                // Blocks of the log may have been written over since.
                _ => &[ScrubSeverity::Lost, ScrubSeverity::Harmless],
            };
            assert!(wanted.contains(&found.severity), "{kind}: {found:#?}");
            let has_address = found.disk.is_some() && found.lba.is_some();
            assert!(*kind != "data" || has_address, "whose block is it? {found:#?}");
        }
    }
    println!("{missed} headers could not be judged");
    assert!(missed * 10 < outcomes["segment header"].len(), "{missed} headers");
}

#[test]
fn a_flipped_bit_in_every_kind_of_structure_is_found() {
    check_outcomes(&damage_each(40, &[], |bytes, random| {
        let at = random.below(56.min(bytes.len() as u64)) as usize;
        bytes[at] ^= 1 << random.below(8);
    }));
}

#[test]
fn garbage_in_place_of_every_kind_of_structure_is_found() {
    check_outcomes(&damage_each(20, &[], |bytes, random| {
        bytes.fill_with(|| random.next() as u8);
    }));
}

#[test]
fn a_scrub_that_does_not_verify_is_caught() {
    let outcomes = damage_each(3, &[Broken::BlindScrub], |bytes, _| bytes[17] ^= 4);
    assert!(outcomes.values().flatten().all(|(_, status)| status.findings.is_empty()));
    assert!(std::panic::catch_unwind(|| check_outcomes(&outcomes)).is_err());
}

/// Blocks that were written over: nothing leads to them, and a scrub that follows the map would
/// never see them.
#[test]
fn dead_blocks_of_the_log_are_verified_too() {
    let mut history = History::new(60);
    let disk = history.disk("a", 1 << 20);
    for _ in 0..40 {
        history.write(disk, 7, 1);
    }
    history.world.flush();
    let bytes = Rc::new(RefCell::new(history.world.bytes.borrow().clone()));
    let places = check_bytes(&bytes, &[], true).places;
    let live: BTreeSet<u64> =
        places.iter().filter(|p| p.kind == PlaceKind::Data).map(|p| p.at).collect();
    let all = places.iter().filter(|place| place.kind == PlaceKind::LogData);
    let all = all.flat_map(|place| (0..place.bytes).step_by(BLOCK).map(|at| place.at + at));
    let dead: Vec<u64> = all.filter(|at| !live.contains(at)).collect();
    assert!(live.len() == 1 && dead.len() >= 39, "{} live, {} dead", live.len(), dead.len());
    for place in [dead[3], dead[20]] {
        history.world.bytes.borrow_mut()[place as usize + 99] ^= 1;
    }
    let status = scrub(&mut history.world);
    let found: Vec<u64> = status.findings.iter().map(at).collect();
    assert_eq!(found, [dead[3], dead[20]]);
    assert_eq!((status.lost, status.harmless), (0, 2), "{status:#?}");
    assert!(status.findings.iter().all(|one| one.disk == Some(DiskId(1)) || one.lba.is_some()));
}

#[test]
fn damaged_copies_are_written_again() {
    let copies: Vec<Place> = places()
        .into_iter()
        .filter(|place| matches!(place.kind, PlaceKind::Header | PlaceKind::Superblock))
        .collect();
    // Each copy alone, and both of each pair.
    let mut sets: Vec<Vec<Place>> = copies.iter().map(|copy| vec![*copy]).collect();
    sets.extend(copies.chunks(2).map(<[Place]>::to_vec));
    for set in sets {
        let mut world = opened();
        for place in &set {
            world.bytes.borrow_mut()[place.at as usize + 20] ^= 1;
        }
        let status = scrub(&mut world);
        // The checkpoint that the first one asks for may write the second one before it is read.
        assert!(status.repaired > 0 && status.findings_total() == status.repaired);
        assert!(status.repaired == set.len() as u64 || set.len() == 2, "{:#?}", status.findings);
        world.poll();
        let again = scrub(&mut world);
        assert_eq!(again.findings, [], "{set:?}");
        let bytes = Rc::new(RefCell::new(world.bytes.borrow().clone()));
        drop(world);
        assert!(matches!(
            check_bytes(&bytes, &[], false).verdict,
            CheckVerdict::Dirty | CheckVerdict::Clean
        ));
    }
}

#[test]
fn what_the_medium_cannot_read_is_found_to_the_block() {
    let data: Vec<u64> = places()
        .iter()
        .filter(|place| place.kind == PlaceKind::Data)
        .map(|place| place.at)
        .collect();
    let bad = data[data.len() / 2];
    // Opened without it, so that a recovery does not stumble over it.
    let mut world = opened();
    world.unreadable.borrow_mut().push(bad..bad + BLOCK as u64);
    let status = scrub(&mut world);
    let found: Vec<(u64, bool)> =
        status.findings.iter().map(|one| (at(one), one.is_unreadable)).collect();
    assert_eq!(found, [(bad, true)]);
    assert_eq!(status.lost, 1);
}

/// Whatever it is: a medium that reports an error has not changed it.
#[test]
fn what_the_medium_cannot_read_is_told_from_what_it_changed() {
    let mut kinds: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for place in places() {
        let name = format!("{:?}", place.kind);
        let kind = name.split('(').next().unwrap_or_default();
        kinds.entry(kind.to_owned()).or_default().push(place.at);
    }
    let mut found = BTreeSet::new();
    for (kind, all) in &kinds {
        for bad in [all[0], all[all.len() / 2], all[all.len() - 1]] {
            let mut world = opened();
            world.unreadable.borrow_mut().push(bad..bad + BLOCK as u64);
            for finding in scrub(&mut world).findings {
                assert!(finding.is_unreadable, "{kind} at {bad}: {finding:?}");
                assert!(finding.what.contains("cannot be read"), "{finding:?}");
                found.insert(kind.as_str());
            }
        }
    }
    let missed: Vec<&String> = kinds.keys().filter(|kind| !found.contains(kind.as_str())).collect();
    assert!(missed.is_empty(), "nothing found of {missed:?}");
}

/// A recovery that was cut off has written the header of its first segment, behind what it had
/// accepted. The next one accepts more, from where the batches first went, and begins there too.
#[test]
fn a_header_of_a_recovery_that_was_cut_off_misleads_nobody() {
    let mut world = open(format_with(40, SLOT_BYTES), 1).unwrap();
    let disk = world.store.create_disk("a", 1 << 20, Durability::Strict, Provision::Thin).unwrap();
    world.flush();
    world.is_stuck.set(true);
    for lba in 0..6 {
        world.write(disk, lba, &content(lba + 1));
        world.poll();
    }
    let under_way = world.under_way.take();
    assert!(under_way.len() > 2);
    let bytes = adopt_in_vain(world, 1);
    for (at, landed) in under_way {
        bytes.borrow_mut()[at as usize..at as usize + landed.len()].copy_from_slice(&landed);
    }
    let mut world = open(bytes, 2).unwrap();
    let last = world.read(disk, 1).unwrap();
    assert_eq!(tag_of(&last), 2);
    world.store.want_checkpoint();
    world.poll();
    assert_eq!(scrub(&mut world).findings, []);
    let mut world = open(world.bytes.clone(), 3).unwrap();
    assert_eq!(scrub(&mut world).findings, []);
    // Nothing of the log is passed over either.
    let at = world.bytes.borrow().chunks(BLOCK).position(|block| block == last).unwrap();
    world.bytes.borrow_mut()[at * BLOCK + 99] ^= 1;
    let status = scrub(&mut world);
    assert_eq!((status.lost, status.findings_total()), (1, 1), "{:#?}", status.findings);
}

#[test]
fn a_scrub_can_be_paused_stopped_and_begun_anew() {
    let mut world = opened();
    world.store.start_scrub(1 << 20);
    world.poll();
    world.store.pause_scrub();
    let paused = world.store.scrub();
    assert_eq!(paused.state, ScrubState::Paused);
    for _ in 0..100 {
        world.now += 1_000_000;
        world.poll();
    }
    assert_eq!(world.store.scrub().verified_bytes, paused.verified_bytes);
    world.store.start_scrub(1 << 20);
    // One mebibyte a second.
    let before = world.now;
    while world.store.scrub().state == ScrubState::Running {
        world.now += 10_000;
        world.poll();
        assert!(world.now - before < 120_000_000, "{:?}", world.store.scrub());
    }
    let status = world.store.scrub();
    let seconds = (world.now - before) as f64 / 1e6;
    let rate = (status.verified_bytes - paused.verified_bytes) as f64 / seconds;
    assert!(rate < f64::from(1 << 20) * 1.1, "{rate} bytes a second");
    world.store.start_scrub(1 << 20);
    world.poll();
    world.store.stop_scrub();
    assert_eq!(world.store.scrub().state, ScrubState::Stopped);
    let free = world.pages.borrow().free();
    world.poll();
    assert_eq!(world.pages.borrow().free(), free);
    assert_eq!(scrub(&mut world).findings, []);
}
