//! The code fence: processes that die in every way, and who watches them without a right to write.
//!
//! A child is this test program again, asked by its environment to play the dying process.

#![cfg(not(miri))]
#![allow(clippy::expect_used, reason = "a test says so and ends")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bowline_arena::{Fate, Roster, Watched};

const LONG: Option<Duration> = Some(Duration::from_secs(60));
const THREADS: usize = 5;

fn child(role: &str, path: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "plays_its_role", "--nocapture", "--test-threads=1"])
        .env("BOWLINE_TEST_ROLE", role)
        .env("BOWLINE_TEST_ROSTER", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let said = BufReader::new(child.stdout.take().expect("its output"));
    let is_ready = |line: std::io::Result<String>| line.is_ok_and(|line| line.contains("ready"));
    assert!(said.lines().any(is_ready), "the child does not get ready");
    child
}

/// Not a test of its own: what a child does. Does nothing in the parent.
#[test]
fn plays_its_role() {
    let Some(role) = std::env::var_os("BOWLINE_TEST_ROLE") else { return };
    let path = std::env::var_os("BOWLINE_TEST_ROSTER").expect("path");
    let file = File::options().read(true).write(true).open(path).expect("file");
    let roster = Roster::begin(&file).expect("a roster");
    let own = roster.enrol().expect("enrolled");
    let (sender, begun) = std::sync::mpsc::channel();
    let threads: Vec<_> = (1..THREADS)
        .map(|_| {
            let sender = sender.clone();
            let builder = std::thread::Builder::new();
            let work = move || {
                sender.send(()).expect("told");
                std::thread::sleep(Duration::from_secs(600));
            };
            roster.spawn(builder, work).expect("a thread")
        })
        .collect();
    for _ in &threads {
        begun.recv().expect("it runs");
    }
    println!("\nready");
    match role.to_str() {
        Some("stays") => std::thread::sleep(Duration::from_secs(600)),
        Some("panics") => std::process::abort(),
        Some("leaves") => {
            drop(own);
            std::process::exit(0);
        }
        role => panic!("no such role: {role:?}"),
    }
}

/// A file on tmpfs, empty.
fn file() -> tempfile::NamedTempFile {
    tempfile::Builder::new().prefix("bowline-test-").tempfile_in("/dev/shm").expect("a file")
}

#[test]
fn a_killed_process_is_gone_when_all_its_threads_are() {
    let file = file();
    let mut child = child("stays", file.path());
    let watched = Watched::open(&File::open(file.path()).expect("to read")).expect("a roster");
    assert_eq!(watched.wait(Some(Duration::from_millis(20))).expect("waited"), Fate::Runs);
    child.kill().expect("killed");
    assert_eq!(watched.wait(LONG).expect("waited"), Fate::Gone);
    assert_eq!(watched.wait(None).expect("waited"), Fate::Gone, "and stays so");
    child.wait().expect("reaped");
}

#[test]
fn whoever_waits_without_a_limit_is_woken() {
    let file = file();
    let mut child = child("stays", file.path());
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let file = File::open(file.path()).expect("to read");
            let watched = Watched::open(&file).expect("a roster");
            std::thread::spawn(move || watched.wait(None).expect("waited"))
        })
        .collect();
    // They sleep by then, or find out without.
    let watched = Watched::open(&File::open(file.path()).expect("to read")).expect("a roster");
    assert_eq!(watched.wait(Some(Duration::from_millis(50))).expect("waited"), Fate::Runs);
    child.kill().expect("killed");
    for one in waits {
        assert_eq!(one.join().expect("it came back"), Fate::Gone);
    }
    child.wait().expect("reaped");
}

#[test]
fn a_process_that_aborts_or_leaves_is_gone() {
    for role in ["panics", "leaves"] {
        let file = file();
        let mut child = child(role, file.path());
        let watched = Watched::open(&File::open(file.path()).expect("to read")).expect("a roster");
        assert_eq!(watched.wait(LONG).expect("waited"), Fate::Gone, "{role}");
        child.wait().expect("reaped");
    }
}

#[test]
fn threads_that_end_are_nobodys_concern_and_leave_their_places() {
    let file = file();
    let roster = Roster::begin(file.as_file()).expect("a roster");
    let watched = Watched::open(&File::open(file.path()).expect("to read")).expect("a roster");
    assert_eq!(watched.wait(LONG).expect("waited"), Fate::Gone, "nobody has begun");
    for _ in 0..200 {
        let thread = roster.spawn(std::thread::Builder::new(), || 7).expect("a thread");
        assert_eq!(thread.join().expect("it ended"), 7);
    }
    let own = roster.enrol().expect("enrolled");
    assert_eq!(watched.wait(Some(Duration::ZERO)).expect("waited"), Fate::Runs);
    drop(own);
    assert_eq!(watched.wait(LONG).expect("waited"), Fate::Gone);
}

#[test]
fn a_thread_that_has_not_begun_makes_it_unsure() {
    use std::os::unix::fs::FileExt;
    let file = file();
    let _roster = Roster::begin(file.as_file()).expect("a roster");
    let watched = Watched::open(&File::open(file.path()).expect("to read")).expect("a roster");
    // As between the call that begins a thread and its first instruction.
    file.as_file().write_all_at(&1u32.to_ne_bytes(), 64 * 3).expect("written");
    assert_eq!(watched.wait(LONG).expect("waited"), Fate::Unsure);
}

#[test]
fn what_is_no_roster_is_refused() {
    let file = file();
    assert!(Watched::open(file.as_file()).is_err(), "empty");
    file.as_file().set_len(4096).expect("a length");
    assert!(Watched::open(file.as_file()).is_err(), "not begun");
}
