//! The real store under the simulator: sound seeds pass and reach what they are meant to reach, and
//! every behaviour broken on purpose is found.

use bowline_sim::pool::{BROKEN, BROKEN_HEALING, BROKEN_SCRUB, Pool};
use bowline_sim::{Coverage, Exploration, Options, explore, find, lie, run_seed, run_seeds};

fn verdict(seeds: std::ops::Range<u64>, options: &Options) {
    let report = run_seeds::<Pool>(seeds, options);
    assert!(report.failed.is_empty(), "{:#?}", report.failed);
    assert_eq!(report.missing::<Pool>(options), [""; 0], "never reached");
}

#[test]
fn seeds_keep_every_promise() {
    verdict(1..41, &Options { faults: false, ..Options::default() });
}

#[test]
fn seeds_keep_every_promise_on_a_failing_medium() {
    verdict(1101..1301, &Options { operations: 1000, ..Options::default() });
}

/// Seeds that once failed: a header of a recovery that was cut off, a scrub that took an error of
/// the medium for damage, a slot whose header never went out, a checkpoint that came upon damage,
/// batches that a failed flush had dropped and an arena that was gone, a header of a slot that such
/// a flush had dropped, a burst of failures that left no slot to go on in, batches of an arena that
/// nothing on the medium proved to be durable, slots that came free behind the freeze of a
/// checkpoint that was given up and taken up again.
#[test]
fn seeds_that_failed_once_keep_every_promise() {
    for seed in
        [1776, 3197, 3227, 3873, 3879, 4218, 4817, 5395, 5421, 6499, 6583, 70889, 71373, 80297]
    {
        let report = run_seeds::<Pool>(seed..seed + 1, &Options::default());
        assert!(report.failed.is_empty(), "{:#?}", report.failed);
    }
}

/// The file system below is full before the pool is: what was acknowledged has its place all the
/// same, and the pool goes on with what there is.
#[test]
fn seeds_keep_every_promise_on_a_file_system_that_is_full() {
    let options = Options { sparse: true, operations: 1000, ..Options::default() };
    let report = run_seeds::<Pool>(2001..2061, &options);
    assert!(report.failed.is_empty(), "{:#?}", report.failed);
    assert!(report.coverage.count("allocations without space below") > 60);
    assert!(report.coverage.count("no space") > 60);
}

#[test]
fn a_slot_that_is_opened_without_space_is_found() {
    let options = Options { sparse: true, faults: false, damage: false, ..Options::default() };
    assert!(find::<Pool>("open-bare-slots", 1..20, &options).is_some());
}

#[test]
fn space_that_is_hidden_is_found() {
    let options = Options { sparse: true, ..Options::default() };
    assert!(find::<Pool>("hide-space", 12001..12021, &options).is_some());
}

#[test]
fn every_broken_behaviour_is_found() {
    let options = Options { faults: false, damage: false, ..Options::default() };
    let missed: Vec<&str> = BROKEN
        .iter()
        .copied()
        .filter(|broken| find::<Pool>(broken, 1..200, &options).is_none())
        .collect();
    assert_eq!(missed, [""; 0], "not found");
}

#[test]
fn every_broken_way_of_writing_elsewhere_is_found() {
    let options = Options { damage: false, operations: 1000, ..Options::default() };
    let missed: Vec<&str> = BROKEN_HEALING
        .iter()
        .copied()
        .filter(|broken| find::<Pool>(broken, 1..801, &options).is_none())
        .collect();
    assert_eq!(missed, [""; 0], "not found");
}

/// What is met too rarely to be looked for, on seeds that have met it.
#[test]
fn rare_broken_behaviours_are_found_by_the_seeds_that_met_them() {
    for (broken, seed) in [("renumber-checkpoint", 70889), ("rewrite-nothing", 3227)] {
        assert!(find::<Pool>(broken, seed..seed + 1, &Options::default()).is_some(), "{broken}");
    }
}

#[test]
fn a_scrub_that_does_not_verify_is_found() {
    let options = Options { faults: false, ..Options::default() };
    let (_, violation) = find::<Pool>(BROKEN_SCRUB, 1..60, &options).unwrap();
    assert!(violation.0.contains("a scrub found nothing"), "{violation:?}");
}

#[test]
fn a_flush_that_costs_the_medium_nothing_is_found() {
    let broken = Some("flush-lies".to_owned());
    let options = Options { faults: false, damage: false, broken, ..Options::default() };
    let violation = run_seed::<Pool>(1, &options, None).violation;
    let text = violation.map_or(String::new(), |violation| violation.0);
    assert!(text.contains("the medium was not flushed since"), "{text}");
}

#[test]
fn prefixes_of_the_stores_are_adopted() {
    let what = Exploration { stride: 11, nested_stride: 40, ..Exploration::default() };
    let coverage = explore::<Pool>(1, &what).unwrap();
    let reached = ["prefixes adopted", "stores cut inside", "adoptions cut"];
    assert_eq!(coverage.missing(&reached), [""; 0]);
}

/// Seeds that are even go on in place.
#[test]
fn who_goes_on_in_place_finds_all_at_every_prefix_of_the_stores() {
    let what = Exploration { stride: 23, nested_stride: 40, ..Exploration::default() };
    let coverage = explore::<Pool>(2, &what).unwrap();
    let reached = ["prefixes adopted", "stores cut inside", "adoptions cut"];
    assert_eq!(coverage.missing(&reached), [""; 0]);
}

#[test]
fn who_goes_on_in_place_and_applies_nothing_once_more_is_found() {
    let broken = Some("repeat-nothing".to_owned());
    let what = Exploration { broken, ..Exploration::default() };
    assert!(explore::<Pool>(2, &what).is_err());
}

#[test]
fn who_goes_on_in_place_and_forgets_what_was_frozen_is_found() {
    let options = Options { faults: false, ..Options::default() };
    assert!(find::<Pool>("forget-frozen", 2..40, &options).is_some());
}

#[test]
fn what_is_published_before_its_content_is_found() {
    let broken = Some("publish-before-content".to_owned());
    let what = Exploration { broken, ..Exploration::default() };
    assert!(explore::<Pool>(1, &what).is_err());
}

#[test]
fn a_lying_device_is_found_out_or_nothing_wrong_is_served() {
    let mut coverage = Coverage::default();
    for seed in 1..20 {
        coverage.merge(&lie::<Pool>(seed).unwrap());
    }
    assert!(coverage.count("lies told by the pool") > 0, "{coverage:?}");
}
