//! Many seeds: their verdicts, and what they have reached together.

use std::collections::BTreeMap;

use crate::coverage::Coverage;
use crate::model::Violation;
use crate::run::{Options, Outcome, run_seed};
use crate::subject::Subject;

/// What every set of runs must reach, whatever the subject.
pub const COVERED: &[&str] = &[
    "process crashes",
    "host crashes",
    "memories lost",
    "lost writes told",
    "clean stops",
    "crashes inside a call",
    "recoveries crashed inside",
    "host crashes right after a recovery",
    "writes landed late",
    "blocks lost in host crashes",
    "blocks torn in host crashes",
    "changes lost lawfully",
    "changes kept without a promise",
    "flushes answered",
    "flushes paid for",
    "blocks read",
    "zero blocks read",
    "states verified",
    "blocks judged",
    "busy",
];

/// What runs with a failing device must reach.
pub const COVERED_WITH_FAULTS: &[&str] = &[
    "medium read errors",
    "medium write errors",
    "medium flush errors",
    "reads failed with the medium",
    "flushes failed",
    "writing stopped",
    "resumed",
    "killed while writing is stopped",
    "recoveries refused by read errors",
];

/// The phases of writing elsewhere, as a pool names them, and what is counted when it comes to one:
/// that it did, that the process was killed in it, and that the host lost its power.
pub const HEALING: [(&str, [&str; 3]); 5] = [
    ("drain", ["heal: drain", "heal: killed in drain", "heal: power lost in drain"]),
    ("flush", ["heal: flush", "heal: killed in flush", "heal: power lost in flush"]),
    ("place", ["heal: place", "heal: killed in place", "heal: power lost in place"]),
    ("root", ["heal: root", "heal: killed in root", "heal: power lost in root"]),
    (
        "root-flush",
        ["heal: root flush", "heal: killed in root flush", "heal: power lost in root flush"],
    ),
];

/// What runs of a pool with a failing device must reach.
pub const COVERED_WITH_FAULTS_BY_POOLS: &[&str] = &[
    "heals",
    "heals without a stop",
    "resumes failed",
    "heal: drain",
    "heal: flush",
    "heal: place",
    "heal: root",
    "heal: root flush",
    "reads while healing",
    "refused while healing",
    "errors while healing",
];

/// What runs on a pool of slots, filled to the brim and damaged at the end must reach.
pub const COVERED_BY_POOLS: &[&str] = &[
    "no space",
    "data counted",
    "data bounded",
    "blocks rotten",
    "damage noticed by reads",
    "scrubs ended",
    "damage found by a scrub before reads",
];

/// What came of many seeds.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// Those that broke a promise.
    pub failed: BTreeMap<u64, Violation>,
    /// What all have reached.
    pub coverage: Coverage,
}

impl Report {
    /// Adds a seed.
    pub fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.coverage.merge(&outcome.coverage);
        if let Some(violation) = outcome.violation {
            self.failed.insert(seed, violation);
        }
    }

    /// Adds another report.
    pub fn merge(&mut self, other: Report) {
        self.seeds += other.seeds;
        self.coverage.merge(&other.coverage);
        self.failed.extend(other.failed);
    }

    /// What was to be reached and was not.
    #[must_use]
    pub fn missing<S: Subject>(&self, options: &Options) -> Vec<&'static str> {
        let mut names = COVERED.to_vec();
        names.extend(S::COVERED);
        if options.faults {
            names.extend(COVERED_WITH_FAULTS);
        }
        if options.damage {
            names.extend(COVERED_BY_POOLS);
        }
        if options.damage && options.faults {
            names.extend(COVERED_WITH_FAULTS_BY_POOLS);
        }
        self.coverage.missing(&names)
    }
}

/// Runs seeds one after the other.
#[must_use]
pub fn run_seeds<S: Subject>(seeds: impl Iterator<Item = u64>, options: &Options) -> Report {
    let mut report = Report::default();
    for seed in seeds {
        report.add(seed, run_seed::<S>(seed, options, None));
    }
    report
}

/// The first seed that finds a behaviour broken on purpose and passes without it, and what it says.
#[must_use]
pub fn find<S: Subject>(
    broken: &str,
    seeds: impl Iterator<Item = u64>,
    options: &Options,
) -> Option<(u64, Violation)> {
    let breaking = Options { broken: Some(broken.to_owned()), ..options.clone() };
    seeds.into_iter().find_map(|seed| {
        let violation = run_seed::<S>(seed, &breaking, None).violation?;
        let sound = run_seed::<S>(seed, options, None).violation;
        sound.is_none().then_some((seed, violation))
    })
}
