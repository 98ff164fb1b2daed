//! What lands after the death of a process: with threads nothing, once its lock is free; with a
//! ring nothing, once nobody can write to the medium any more, wherever the ring's file is.

#![allow(clippy::expect_used, reason = "a test says so and ends")]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{Memory, OwnerLock, Pages, Ring, RingOptions};
use bowline_media::{OpenOptions, Writers, create_file, open, writers, writers_gone};
use bowline_store::{Io, IoId};

const WRITE_BYTES: u32 = 1 << 20;
const WRITES: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// Not a test of its own: what the child does. Does nothing in the parent.
#[test]
fn plays_its_role() {
    let Some(path) = std::env::var_os("BOWLINE_TEST_MEDIUM").map(PathBuf::from) else { return };
    let lock = OwnerLock::file(&path.with_extension("lock")).expect("lock").expect("free");
    let mut pages = Pages::whole(Memory::private(WRITES * u64::from(WRITE_BYTES)));
    let memory = Rc::clone(pages.memory());
    let mut options = OpenOptions::new(Rc::clone(&memory));
    if std::env::var_os("BOWLINE_TEST_RING").is_some() {
        let ring = Ring::anonymous(Rc::clone(&memory), RingOptions::default()).expect("ring");
        options.ring = Some((Rc::new(RefCell::new(ring)), 5));
    }
    let mut media = open(&path, options).expect("opened").media;
    for index in 0..WRITES {
        let mut span = pages.take(WRITE_BYTES / 4096).expect("pages");
        memory.slice_mut(&mut span).fill(0xdd);
        let at = index * u64::from(WRITE_BYTES);
        media.submit(IoId(index), Io::Write { at, from: vec![span.part()] });
    }
    if media.complete().is_none() {
        media.wait().expect("one is written, others are under way");
    }
    // SAFETY: ends this process; touches no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    drop(lock);
}

fn child(medium: &Path, with_ring: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    if with_ring {
        command.env("BOWLINE_TEST_RING", "1");
    }
    command
        .args(["--exact", "plays_its_role", "--nocapture", "--test-threads=1"])
        .env("BOWLINE_TEST_MEDIUM", medium)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started")
}

#[test]
fn a_successor_is_never_overwritten() {
    kill_and_succeed(false);
}

/// As after a start with another arena directory: the ring of the dead is not to be found.
#[test]
fn a_successor_that_knows_of_no_ring_is_never_overwritten() {
    kill_and_succeed(true);
}

fn fill(path: &Path, byte: u8) {
    let file = File::options().write(true).open(path).expect("opened");
    for index in 0..WRITES {
        let data = vec![byte; WRITE_BYTES as usize];
        file.write_all_at(&data, index * u64::from(WRITE_BYTES)).expect("written");
    }
    file.sync_all().expect("synced");
}

/// How many of the writes' places are full of a byte.
fn count(path: &Path, byte: u8) -> u64 {
    let file = File::open(path).expect("opened");
    let mut data = vec![0; WRITE_BYTES as usize];
    let whole = |index: &u64| {
        file.read_exact_at(&mut data, index * u64::from(WRITE_BYTES)).expect("read");
        data.iter().all(|b| *b == byte)
    };
    (0..WRITES).filter(whole).count() as u64
}

fn kill_and_succeed(with_ring: bool) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let path = directory.path().join("medium");
    create_file(&path, WRITES * u64::from(WRITE_BYTES), true).expect("made");
    let (mut found, mut late) = (0, 0);
    for _ in 0..10 {
        fill(&path, 0);
        // Another test's child may hold the file open until it runs its own program.
        assert_eq!(writers_gone(&path, PATIENCE).expect("looked"), Writers::None);
        let mut child = child(&path, with_ring);
        // The lock is there once the child has it, and free once no thread of it is left.
        while count(&path, 0) == WRITES && child.try_wait().expect("looked").is_none() {}
        while OwnerLock::file(&path.with_extension("lock")).expect("opened").is_none() {}
        if with_ring {
            late += u32::from(writers(&path).expect("looked") == Writers::Some);
            assert_eq!(writers_gone(&path, PATIENCE).expect("looked"), Writers::None);
        }
        found += count(&path, 0xdd);
        fill(&path, 0xee);
        let status = child.wait().expect("waited");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(count(&path, 0xee), WRITES, "a write of the dead came after its successor's");
    }
    println!("{late} of 10 had I/O under way when the lock was free");
    assert!(found > 0, "no child has written anything: nothing has been tested");
}

/// A file that somebody has open for writing, and nobody any more.
#[test]
fn who_can_write_to_a_file_is_told() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let path = directory.path().join("medium");
    create_file(&path, 1 << 20, false).expect("made");
    let _reader = File::open(&path).expect("opened");
    let found = writers_gone(&path, PATIENCE).expect("looked");
    assert_eq!(found, Writers::None, "readers do not matter");
    let memory = Rc::new(Memory::private(1 << 20));
    let medium = open(&path, OpenOptions::new(memory)).expect("opened");
    assert_eq!(writers(&path).expect("looked"), Writers::Some);
    assert_eq!(writers_gone(&path, Duration::from_millis(5)).expect("looked"), Writers::Some);
    drop(medium);
    assert_eq!(writers_gone(&path, PATIENCE).expect("looked"), Writers::None);
    // Nobody is hindered by the look, and who comes later is seen.
    let writer = File::options().write(true).open(&path).expect("opened");
    assert_eq!(writers(&path).expect("looked"), Writers::Some);
    writer.write_all_at(&[1], 0).expect("written");
    assert!(writers(&directory.path().join("none")).is_err());
}
