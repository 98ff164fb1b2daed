//! What lands after the death of a process whose medium has threads: nothing, once its lock is
//! free.

#![allow(clippy::expect_used, reason = "a test says so and ends")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use bowline_arena::{Memory, OwnerLock, Pages};
use bowline_media::{OpenOptions, create_file, open};
use bowline_store::{Io, IoId};

const WRITE_BYTES: u32 = 1 << 20;
const WRITES: u64 = 16;

/// Not a test of its own: what the child does. Does nothing in the parent.
#[test]
fn plays_its_role() {
    let Some(path) = std::env::var_os("BOWLINE_TEST_MEDIUM").map(PathBuf::from) else { return };
    let lock = OwnerLock::file(&path.with_extension("lock")).expect("lock").expect("free");
    let mut pages = Pages::whole(Memory::private(WRITES * u64::from(WRITE_BYTES)));
    let memory = Rc::clone(pages.memory());
    let mut media = open(&path, OpenOptions::new(Rc::clone(&memory))).expect("opened").media;
    for index in 0..WRITES {
        let mut span = pages.take(WRITE_BYTES / 4096).expect("pages");
        memory.slice_mut(&mut span).fill(0xdd);
        let at = index * u64::from(WRITE_BYTES);
        media.submit(IoId(index), Io::Write { at, from: vec![span.part()] });
    }
    media.wait().expect("one is written, others are under way");
    // SAFETY: ends this process; touches no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    drop(lock);
}

fn child(medium: &Path) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "plays_its_role", "--nocapture", "--test-threads=1"])
        .env("BOWLINE_TEST_MEDIUM", medium)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started")
}

#[test]
fn a_successor_is_never_overwritten() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let path = directory.path().join("medium");
    create_file(&path, WRITES * u64::from(WRITE_BYTES), true).expect("made");
    let mut found = 0;
    for _ in 0..10 {
        let file = File::options().read(true).write(true).open(&path).expect("opened");
        let zeros = vec![0; WRITE_BYTES as usize];
        let fill = |data: &[u8]| {
            for index in 0..WRITES {
                file.write_all_at(data, index * u64::from(WRITE_BYTES)).expect("written");
            }
            file.sync_all().expect("synced");
        };
        let count = |byte: u8| {
            let mut data = vec![0; WRITE_BYTES as usize];
            let whole = |index: &u64| {
                file.read_exact_at(&mut data, index * u64::from(WRITE_BYTES)).expect("read");
                data.iter().all(|b| *b == byte)
            };
            (0..WRITES).filter(whole).count()
        };
        fill(&zeros);
        let mut child = child(&path);
        // The lock is there once the child has it, and free once no thread of it is left.
        while count(0) as u64 == WRITES && child.try_wait().expect("looked").is_none() {}
        while OwnerLock::file(&path.with_extension("lock")).expect("opened").is_none() {}
        found += count(0xdd);
        fill(&vec![0xee; WRITE_BYTES as usize]);
        let status = child.wait().expect("waited");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(count(0xee) as u64, WRITES, "a write of the dead came after its successor's");
    }
    assert!(found > 0, "no child has written anything: nothing has been tested");
}
