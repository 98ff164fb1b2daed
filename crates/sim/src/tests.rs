//! The simulator judged by itself: what is right passes, and every bug is found.

use crate::reference::{BUGS, Reference};
use crate::{Coverage, Exploration, Options, explore, run_seed};

fn options(broken: Option<&str>) -> Options {
    Options {
        operations: 500,
        broken: broken.map(str::to_owned),
        faults: false,
        damage: false,
        ..Options::default()
    }
}

#[test]
fn a_right_store_passes() {
    let mut coverage = Coverage::default();
    for seed in 1..=60 {
        let outcome = run_seed::<Reference>(seed, &options(None), None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        coverage.merge(&outcome.coverage);
    }
    for (name, count) in coverage.iter() {
        println!("{name:<40} {count}");
    }
}

#[test]
fn every_bug_is_found() {
    for bug in BUGS.into_iter().chain(["skip-fence"]) {
        let found = (1..=60).find_map(|seed| {
            let outcome = run_seed::<Reference>(seed, &options(Some(bug)), None);
            outcome.violation.map(|violation| (seed, violation))
        });
        println!("{bug}: {found:?}");
        assert!(found.is_some(), "{bug} is not found");
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    let trace = || {
        let mut lines = Vec::new();
        let mut sink = |line: &str| lines.push(line.to_owned());
        let outcome = run_seed::<Reference>(3, &options(None), Some(&mut sink));
        assert_eq!(outcome.violation, None);
        lines
    };
    let first = trace();
    assert!(first.len() > 300);
    assert_eq!(first, trace());
}

#[test]
fn every_prefix_of_the_stores_is_adopted() {
    let coverage = explore::<Reference>(1, &Exploration::default()).unwrap();
    for (name, count) in coverage.iter() {
        println!("{name:<40} {count}");
    }
    let reached = ["prefixes adopted", "prefixes with an unreplied change", "adoptions cut"];
    assert_eq!(coverage.missing(&reached), [""; 0]);
}

#[test]
fn what_is_published_before_its_content_is_found() {
    let broken = Some("publish-before-content".to_owned());
    let what = Exploration { broken: broken.clone(), ..Exploration::default() };
    let violation = explore::<Reference>(1, &what).unwrap_err();
    println!("{violation}");
}
