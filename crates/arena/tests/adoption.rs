//! Real processes, really killed: the arena is adopted, and the fence passed, by another.
//!
//! A child is this test program again, asked by its environment to play the dying server.

#![allow(clippy::expect_used, reason = "a test says so and ends")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use bowline_arena::{
    Arena, ArenaError, ArenaOptions, Completed, DeadRing, Life, Operation, RingOptions, UserData,
    fail, life,
};

const POOL: u128 = 0xb0a1;
const WRITES: u64 = 64;
const WRITE_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = WRITES * WRITE_BYTES + 4096;
/// Operations that only the death ends.
const IDLE: usize = 4;

fn options(directory: &Path) -> ArenaOptions {
    ArenaOptions {
        directory: Some(directory.to_owned()),
        pool: POOL,
        instance: 1,
        control_bytes: 1 << 16,
        session_bytes: 1 << 14,
        page_bytes: PAGE_BYTES,
        any_file_system: false,
        patience: Duration::from_secs(60),
    }
}

/// A directory on tmpfs for one test.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bowline-test-").tempdir_in("/dev/shm").expect("tmpfs")
}

fn file_names(directory: &Path, what: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("directory");
    let names = entries.map(|entry| entry.expect("entry").path());
    names.filter(|path| path.to_string_lossy().contains(what)).collect()
}

/// Starts this test program in a role of its own.
fn child(role: &str, directory: &Path, medium: &Path, variables: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "plays_its_role", "--nocapture", "--test-threads=1"])
        .env("BOWLINE_TEST_ROLE", role)
        .env("BOWLINE_TEST_DIRECTORY", directory)
        .env("BOWLINE_TEST_MEDIUM", medium)
        .envs(variables.iter().copied())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("started")
}

fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}

/// Not a test of its own: what a child does. Does nothing in the parent.
#[test]
fn plays_its_role() {
    let Some(role) = std::env::var_os("BOWLINE_TEST_ROLE") else { return };
    fail::arm_from_environment().expect("fail points");
    let path = |name| PathBuf::from(std::env::var_os(name).expect("path"));
    let mut arena = Arena::open(&options(&path("BOWLINE_TEST_DIRECTORY"))).expect("arena");
    let mut file = arena.file.take().expect("file");
    file.set_control_address("unix:child");
    match role.to_str() {
        Some("writer") => writes_and_dies(&arena, &mut file, &path("BOWLINE_TEST_MEDIUM")),
        Some("stayer") => loop {
            std::thread::park();
        },
        Some("opener") => {
            // Every fail point of adoption lies behind us: only the ring's own is left.
            drop(file.ring(RingOptions::default()).expect("ring"));
            die();
        }
        role => panic!("no such role: {role:?}"),
    }
}

fn die() -> ! {
    // SAFETY: ends this process; touches no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("killed")
}

/// Has many direct writes in flight, then is killed.
fn writes_and_dies(arena: &Arena, file: &mut bowline_arena::ArenaFile, medium: &Path) {
    let mut ring = file.ring(RingOptions::default()).expect("ring");
    let medium = File::options().write(true).custom_flags(libc::O_DIRECT).open(medium).expect("o");
    for index in 0..WRITES {
        let pages = (WRITE_BYTES / 4096) as u32;
        let mut span = arena.pages.borrow_mut().take(pages).expect("pages");
        arena.memory.slice_mut(&mut span).fill(index as u8 + 1);
        let (descriptor, at) = (medium.as_raw_fd(), index * WRITE_BYTES);
        let write = Operation::Write { descriptor, at, from: span.part() };
        ring.push(UserData::new(1, index as u32, 1), write);
    }
    // What a server always has in flight, and what only its death ends.
    let (here, _there) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let into = arena.pages.borrow_mut().take(1).expect("a page").part();
    let idle = [
        Operation::Receive { descriptor: here.as_raw_fd(), into, flags: 0 },
        Operation::Poll { descriptor: here.as_raw_fd(), events: libc::POLLIN as u16 },
        Operation::Accept { descriptor: listener.as_raw_fd() },
        Operation::Timeout { after: Duration::from_secs(3600) },
    ];
    for (slot, operation) in idle.into_iter().enumerate() {
        ring.push(UserData::new(2, slot as u32, 1), operation);
    }
    // With the first completed, not reaped, the device is in the middle of the others.
    ring.wait(None, Duration::ZERO).expect("waited");
    die();
}

/// Which of the writes have landed whole.
fn landed(medium: &Path) -> Vec<u32> {
    let file = File::options().read(true).open(medium).expect("medium");
    let mut bytes = vec![0; WRITE_BYTES as usize];
    let mut whole = |index: u32| {
        file.read_exact_at(&mut bytes, u64::from(index) * WRITE_BYTES).expect("read");
        bytes.iter().all(|byte| *byte == index as u8 + 1)
    };
    (0..WRITES as u32).filter(|index| whole(*index)).collect()
}

#[test]
fn the_fence_waits_for_writes_that_land_after_death() {
    let medium_directory = tempfile::tempdir().expect("directory");
    let medium = medium_directory.path().join("medium");
    let mut late = 0;
    // A quick disk may be done before the process is gone: again, until writes came late.
    for round in 0..50 {
        let directory = directory();
        let file = File::create(&medium).expect("medium");
        file.write_all_at(&vec![0; (WRITES * WRITE_BYTES) as usize], 0).expect("written");
        file.sync_all().expect("synced");
        let mut child = child("writer", directory.path(), &medium, &[]);
        assert!(killed(child.wait().expect("waited")));
        // The control: what somebody would see who took the end of the process for the fence.
        let rings = file_names(directory.path(), ".ring.");
        assert_eq!(rings.len(), 1);
        let dead = DeadRing::open(&rings[0]).expect("ring file");
        let at_death = dead.completed();
        let mut arena = Arena::open(&options(directory.path())).expect("adopted");
        let adopted = arena.adopted.as_ref().expect("adopted");
        assert_eq!(adopted.epoch, 1);
        assert_eq!(adopted.process, child.id());
        assert_eq!(dead.in_flight(), 0);
        let mut posted: Vec<_> = dead.completions().collect();
        posted.reverse();
        assert_eq!(posted.len(), WRITES as usize + IDLE);
        let idle = posted.iter().filter(|completed| completed.user_data.class() == 2);
        assert_eq!(idle.clone().count(), IDLE);
        assert!(idle.clone().all(|completed| completed.result == -libc::ECANCELED), "{idle:?}");
        // What had not begun may have been cancelled. What completed well has landed.
        let landed = landed(&medium);
        let well = |completed: &&Completed| completed.result as u64 == WRITE_BYTES;
        for completed in posted.iter().filter(well) {
            assert!(landed.contains(&completed.user_data.slot()), "{completed:?}");
        }
        let file = arena.file.as_mut().expect("file");
        assert_eq!(file.dead_rings().len(), 1);
        file.forget_dead_rings().expect("removed");
        assert!(file_names(directory.path(), ".ring.").is_empty());
        late += posted[at_death as usize..].iter().filter(well).count();
        if late > 0 {
            println!("round {round}: {late} of {WRITES} writes landed after death");
            return;
        }
    }
    panic!("no write was in flight at any death: the fence has not been tested");
}

#[test]
fn a_second_opener_learns_who_the_owner_is() {
    let directory = directory();
    let mut child = child("stayer", directory.path(), Path::new("/"), &[]);
    let mut short = options(directory.path());
    short.patience = Duration::from_secs(30);
    // Until the child has the lock, the arena is ours for a moment; then it is the child's.
    let error = loop {
        if file_names(directory.path(), ".arena").is_empty() {
            std::thread::yield_now();
            continue;
        }
        match Arena::open(&short) {
            Err(ArenaError::Owned { control_address, .. }) if control_address.is_empty() => {}
            Err(error) => break error,
            Ok(_) => {}
        }
        assert!(child.try_wait().expect("looked").is_none(), "the child has gone");
    };
    assert!(error.to_string().contains(&format!("process {} (unix:child)", child.id())), "{error}");
    child.kill().expect("killed");
    // Not reaped: a zombie's lock is free, and it counts as dead.
    let arena = Arena::open(&short).expect("adopted");
    assert_eq!(arena.adopted.map(|adopted| adopted.process), Some(child.id()));
    assert_ne!(life(child.id(), 0), Life::Running);
    child.wait().expect("reaped");
}

#[test]
fn a_kill_at_any_point_of_adoption_leaves_an_arena_to_adopt() {
    let points = [
        "arena.formatted",
        "arena.found",
        "arena.adopted",
        "arena.ring.recorded",
        "arena.fenced",
        "ring.submit",
    ];
    for point in points {
        assert!(fail::labels().contains(&point), "{point}");
        let directory = directory();
        let medium = directory.path().join("medium");
        File::create(&medium).expect("medium").set_len(PAGE_BYTES).expect("length");
        let die_at = [("BOWLINE_KILL_AT", point)];
        // The first dies in a fresh arena, a second in an adopted one with a dead ring.
        let role = if point == "ring.submit" { "writer" } else { "opener" };
        assert!(killed(child(role, directory.path(), &medium, &die_at).wait().expect("waited")));
        let status = child("writer", directory.path(), &medium, &[]).wait().expect("waited");
        assert!(killed(status), "{point}");
        assert!(killed(child(role, directory.path(), &medium, &die_at).wait().expect("waited")));
        let arena = Arena::open(&options(directory.path())).expect(point);
        assert!(arena.adopted.is_some(), "{point}");
        let mut file = arena.file.expect("file");
        file.forget_dead_rings().expect("removed");
        assert!(file_names(directory.path(), ".ring.").is_empty(), "{point}");
        assert!(file_names(directory.path(), ".new").is_empty(), "{point}");
        file.remove().expect("removed");
        assert!(file_names(directory.path(), ".arena").is_empty());
    }
}

#[test]
fn content_is_kept_and_epochs_count_up() {
    let directory = directory();
    for epoch in 1..=4 {
        let mut arena = Arena::open(&options(directory.path())).expect("arena");
        assert_eq!(arena.epoch, epoch);
        assert_eq!(
            arena.adopted.as_ref().map(|adopted| adopted.epoch),
            (epoch > 1).then(|| epoch - 1)
        );
        assert_eq!(arena.memory.read(&arena.control, 8), epoch - 1);
        arena.memory.publish(&mut arena.control, 8, epoch);
        assert_eq!(u64::from(arena.pages.borrow().count()) * 4096, PAGE_BYTES);
    }
}

#[test]
fn a_private_arena_is_adopted_again_with_its_content() {
    let mut arena = Arena::private(8192, 1 << 20);
    assert!(arena.adopted.is_none());
    arena.memory.publish(&mut arena.control, 0, 99);
    let page = arena.pages.borrow_mut().take(3).expect("pages").part();
    let again = Arena::adopt_private(arena.memory.successor()).expect("adopted");
    assert_eq!(again.epoch, 2);
    assert_eq!(again.adopted.map(|adopted| adopted.epoch), Some(1));
    assert_eq!(again.memory.read(&again.control, 0), 99);
    assert_eq!(again.pages.borrow().free(), 256);
    assert!(again.pages.borrow_mut().adopt(page).is_some());
    assert!(Arena::adopt_private(bowline_arena::Memory::private(1 << 20)).is_none());
}

/// Opens an arena that was changed by `damage` and says why it was refused.
fn refused(damage: impl FnOnce(&Path, &File)) -> Option<ArenaError> {
    let directory = directory();
    let path = Arena::open(&options(directory.path())).expect("arena").file.expect("file").path();
    damage(directory.path(), &File::options().write(true).open(path).expect("file"));
    Arena::open(&options(directory.path())).err()
}

#[test]
fn damaged_and_foreign_arenas_are_refused_with_a_reason() {
    assert!(refused(|_, _| ()).is_none());
    let error = refused(|_, file| file.write_all_at(&[1], 20).expect("written"));
    assert!(matches!(error, Some(ArenaError::Damaged { .. })), "{error:?}");
    let error = refused(|_, file| file.write_all_at(&[9], 8).expect("written"));
    assert!(matches!(error, Some(ArenaError::Layout { found: 9, .. })), "{error:?}");
    let error = refused(|_, file| file.set_len(1 << 20).expect("cut"));
    assert!(matches!(error, Some(ArenaError::Damaged { .. })), "{error:?}");
    let error = refused(|directory, _| {
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(directory, open).expect("changed");
    });
    assert!(matches!(error, Some(ArenaError::Directory { .. })), "{error:?}");
}

#[test]
fn an_arena_of_an_earlier_boot_is_made_anew() {
    use twox_hash::XxHash3_64;
    let error = refused(|directory, file| {
        let path = file_names(directory, ".arena").remove(0);
        let mut identity = std::fs::read(path).expect("read")[..256].to_vec();
        identity[32] ^= 1;
        let checksum = XxHash3_64::oneshot(&identity[..248]);
        identity[248..].copy_from_slice(&checksum.to_le_bytes());
        file.write_all_at(&identity, 0).expect("written");
        // A mark that must not come back.
        file.write_all_at(&[7; 8], 16384).expect("written");
    });
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn too_small_and_unsuitable_places_are_refused() {
    let elsewhere = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let error = Arena::open(&options(elsewhere.path())).err();
    let tmpfs =
        matches!(&error, Some(ArenaError::Directory { reason, .. }) if reason.contains("tmpfs"));
    assert!(tmpfs || error.is_none(), "{error:?}");
    let directory = directory();
    let mut large = options(directory.path());
    large.page_bytes = 1 << 45;
    let error = Arena::open(&large).err();
    assert!(matches!(error, Some(ArenaError::NoRoom { .. })), "{error:?}");
    assert!(file_names(directory.path(), ".new").is_empty());
}
