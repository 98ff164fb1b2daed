//! A sparse pool on a file system that runs full below it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bowline_testbed::device::LoopDevice;
use bowline_testbed::history::mix;
use bowline_testbed::nbd::Request;
use bowline_testbed::server::{Crash, Server, Transport};
use bowline_testbed::tool::{self, until};

use crate::{client, setup};

const NO_SPACE: i32 = 28;
const MEBIBYTE: usize = 1 << 20;

/// A small ext4 of its own.
struct FileSystem {
    folder: tempfile::TempDir,
    _device: LoopDevice,
    _file: tempfile::TempDir,
}

impl FileSystem {
    fn new(bytes: u64) -> FileSystem {
        let file = tempfile::tempdir().unwrap();
        let device = LoopDevice::over(&file.path().join("device"), bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let name = device.path().to_str().unwrap().to_owned();
        tool::run("mkfs.ext4", &["-q", "-m", "0", &name]).unwrap();
        tool::run("mount", &[&name, folder.path().to_str().unwrap()]).unwrap();
        FileSystem { folder, _device: device, _file: file }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        if let Err(error) = tool::run("umount", &[self.folder.path().to_str().unwrap()]) {
            eprintln!("{error}");
        }
    }
}

fn mebibyte(seed: u64) -> Vec<u8> {
    (0..MEBIBYTE as u64 / 8).flat_map(|at| mix(seed << 32 | at).to_le_bytes()).collect()
}

fn verify(server: &Server, written: &[(u64, u64)]) {
    let mut reader = client(server, Transport::Tcp);
    for (at, seed) in written {
        let found = reader.read(at << 20, MEBIBYTE as u32).unwrap();
        assert!(found == mebibyte(*seed), "mebibyte {at}");
    }
}

/// Writes until there is no space; what was acknowledged, mebibyte by mebibyte.
fn fill(server: &Server, written: &mut Vec<(u64, u64)>) {
    let mut writer = client(server, Transport::Unix);
    for at in written.len() as u64.. {
        match writer.write(at << 20, &mebibyte(at)) {
            Ok(()) => written.push((at, at)),
            Err(error) => return assert_eq!(error.raw_os_error(), Some(NO_SPACE), "{error}"),
        }
    }
}

fn is_degraded(server: &Server) {
    let pool = server.json(&["pool", "status"]).unwrap();
    assert_eq!((&pool["state"], &pool["allocation"]), (&"degraded".into(), &"sparse".into()));
    let conditions = pool["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["name"] == "space-below"), "{pool}");
}

#[test]
fn a_full_file_system_below_costs_nothing_that_was_acknowledged() {
    let below = FileSystem::new(320 << 20);
    let filler = File::create(below.path("filler")).unwrap();
    let none = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&filler, none, 0, 64 << 20).unwrap();
    let pool = below.path("pool");
    File::create(&pool).unwrap().set_len(512 << 20).unwrap();
    let mut setup = setup();
    (setup.device, setup.disks[0].1) = (Some(pool), 480 << 20);
    let mut server = Server::start(setup).unwrap();
    let mut written = Vec::new();
    fill(&server, &mut written);
    let full_at = written.len();
    assert!(full_at > 16, "only {full_at} MiB went in");
    is_degraded(&server);
    verify(&server, &written);
    // Nobody can write over what has no space, but over what has some, and back.
    server.crash(Crash::Process).unwrap();
    server.serve().unwrap();
    verify(&server, &written);
    let mut client = client(&server, Transport::Unix);
    client.ask((Request::Trim, 0), 0, (full_at as u32 / 2) << 20, &[]).unwrap();
    let again = mebibyte(1 << 20);
    until("what was given back is used", Duration::from_secs(60), || {
        client.write(0, &again).is_ok()
    })
    .unwrap();
    let mut written: Vec<_> = written.split_off(full_at / 2);
    written.push((0, 1 << 20));
    verify(&server, &written);
    // The pool grows again when the file system has space again.
    drop(filler);
    std::fs::remove_file(below.path("filler")).unwrap();
    let mut after = (full_at as u64..full_at as u64 + full_at as u64 / 2 + 16).peekable();
    until("writes are taken again", Duration::from_secs(60), || {
        while let Some(at) = after.peek().copied() {
            if client.write(at << 20, &mebibyte(at)).is_err() {
                return false;
            }
            written.push((at, at));
            after.next();
        }
        true
    })
    .unwrap();
    server.crash(Crash::Process).unwrap();
    server.serve().unwrap();
    verify(&server, &written);
    server.stop().unwrap();
    server.check().unwrap();
}
