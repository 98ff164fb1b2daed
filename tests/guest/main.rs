//! The demo's story as a test: a Linux guest lives through the death of its disk server, once for
//! each file system.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Mutex;

use bowline_testbed::guest::{Disk, Guest};
use bowline_testbed::server::{Kind, Server, Setup, Transport};
use bowline_testbed::story::{Plot, run};

/// One guest at a time: emulation takes a whole core.
static ALONE: Mutex<()> = Mutex::new(());

fn story(file_system: &str, kills: u32) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let setup = Setup::new(env!("CARGO_BIN_EXE_bowline"));
    let plot = Plot { file_system: file_system.into(), kills, records: 30 };
    let ending = run(setup, &plot, &mut |line| println!("{line}"));
    let ending = ending.unwrap_or_else(|error| panic!("{error}"));
    let least = u64::from(kills) * plot.records;
    assert!(ending.journal >= least && ending.transactions >= least && ending.unflushed >= least);
}

#[test]
fn ext4_lives_through_three_kills() {
    story("ext4", 3);
}

#[test]
fn xfs_lives_through_a_kill() {
    story("xfs", 1);
}

#[test]
fn btrfs_lives_through_a_kill() {
    story("btrfs", 1);
}

/// The checks in the guest can fail: each is shown something that is not there.
#[test]
fn what_is_missing_in_a_guest_is_caught() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_bowline"));
    setup.kind = Kind::QemuNbd;
    let server = Server::start(setup).unwrap();
    let address = server.address(Transport::Unix, 0);
    let blank = Disk { serial: "blank".into(), address, export: String::new() };
    let mut guest = Guest::boot(&[blank]).unwrap();
    let job = guest.start("exec bowline-guest journal /run/journal").unwrap();
    guest.reach(job, 10).unwrap();
    guest.run("pkill -f '[b]owline-guest journal'").unwrap();
    // It ends by a signal, which is not an exit code; after that it has said everything.
    assert!(guest.end(job).is_err());
    let known = guest.acknowledged(job);
    guest.run(&format!("bowline-guest journal-check /run/journal {known}")).unwrap();
    let more = format!("bowline-guest journal-check /run/journal {}", known + 2);
    assert_eq!(guest.output(&more).unwrap().0, 1, "a record that was never written was found");
    guest.run("sed -i 's/record 000000000003/record 000000000004/' /run/journal").unwrap();
    let damaged = format!("bowline-guest journal-check /run/journal {known}");
    assert_eq!(guest.output(&damaged).unwrap().0, 1, "a damaged record was not found");
    let blank = guest.output("bowline-guest raw-check /dev/disk/by-serial/blank 100").unwrap();
    assert_eq!(blank.0, 1, "writes to a blank disk were found");
    assert!(blank.1.contains("is lost"), "{}", blank.1);
}
