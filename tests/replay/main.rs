//! Crash states of a pool that a real guest works on, rebuilt from what was recorded below
//! Bowline, recovered by the real server and judged by the file system's own check, by what the
//! guest was promised, and by `pool check`.
//!
//! `BOWLINE_REPLAY_STATES` sets how many states of each file system, `BOWLINE_REPLAY_SEED` which
//! ones. A state in which a promise is broken is kept in build/replay.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Mutex;

use bowline_testbed::replay::campaign::Campaign;
use bowline_testbed::replay::faults::Fault;
use bowline_testbed::replay::record::Plan;
use bowline_testbed::root;
use bowline_testbed::server::{Kind, Setup};

/// One guest at a time: emulation takes a whole core.
static ALONE: Mutex<()> = Mutex::new(());

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name);
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn campaign(file_system: &str) -> Campaign {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_bowline"));
    setup.kind = Kind::Bowline;
    let seed = number("BOWLINE_REPLAY_SEED", 1);
    let records = number("BOWLINE_REPLAY_RECORDS", 120);
    let writes = number("BOWLINE_REPLAY_WRITES", 4000);
    let plan = Plan { file_system: file_system.into(), seed, records, writes };
    let campaign = Campaign::record(setup, &plan).unwrap_or_else(|error| panic!("{error}"));
    println!("replay: {file_system}, seed {seed}, recorded: {}", campaign.recorded());
    campaign
}

fn replay(file_system: &str) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let campaign = campaign(file_system);
    let states = number("BOWLINE_REPLAY_STATES", 5) as usize;
    let coverage = campaign.run(states, 3, &root().join("build/replay"));
    let coverage = coverage.unwrap_or_else(|error| panic!("{error}"));
    println!("replay: {file_system}, {states} states sound: {coverage}");
}

#[test]
fn ext4_survives_its_crash_states() {
    replay("ext4");
}

#[test]
fn xfs_survives_its_crash_states() {
    replay("xfs");
}

#[test]
fn btrfs_survives_its_crash_states() {
    replay("btrfs");
}

/// The replayer itself can fail: flushes that were ignored, an old superblock, and promises that
/// nobody kept are all caught.
#[test]
fn what_is_wrong_in_a_state_is_caught() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let caught = campaign("ext4").faults(&Fault::ALL);
    for (fault, how) in caught.unwrap_or_else(|error| panic!("{error}")) {
        println!("replay: {fault:?} is caught: {}", how.lines().last().unwrap_or_default());
    }
}
