//! A raw device as a pool.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bowline_testbed::device::LoopDevice;
use bowline_testbed::server::{Crash, Server, Setup, Transport};
use bowline_testbed::tool;

use crate::{client, setup, without_ring};

const BYTES: u64 = 256 << 20;

fn served_on_a_device(setup: Setup) {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::over(&folder.path().join("device"), BYTES).unwrap();
    let mut server = Server::start(Setup { device: Some(device.path().into()), ..setup }).unwrap();
    let pool = server.json(&["pool", "status"]).unwrap();
    assert_eq!(pool["path"], device.path().to_str().unwrap());
    assert_eq!(pool["allocation"], "device");
    for round in 1..=3u8 {
        let mut writer = client(&server, Transport::Unix);
        writer.write(0, &vec![round; 8 << 20]).unwrap();
        writer.flush().unwrap();
        writer.write(16 << 20, &vec![round + 10; 1 << 20]).unwrap();
        writer.write((32 << 20) + 512, &[round + 20; 512]).unwrap();
        server.crash(if round == 3 { Crash::Host } else { Crash::Process }).unwrap();
        server.setup().arguments = vec!["--accept-loss".into()];
        server.serve().unwrap();
        let mut reader = client(&server, Transport::Tcp);
        assert_eq!(reader.read(0, 8 << 20).unwrap(), vec![round; 8 << 20], "flushed");
        if round < 3 {
            assert_eq!(reader.read(16 << 20, 1 << 20).unwrap(), vec![round + 10; 1 << 20]);
            assert_eq!(reader.read((32 << 20) + 512, 512).unwrap(), vec![round + 20; 512]);
        }
    }
    server.stop().unwrap();
    server.check().unwrap();
    let again = create(&device, &[]);
    assert_eq!(again.0, Some(1), "{}", again.1);
    assert!(again.1.contains("a Bowline pool"), "{}", again.1);
    server.check().unwrap();
}

fn create(device: &LoopDevice, more: &[&str]) -> (Option<i32>, String) {
    let path = device.path().to_str().unwrap();
    let arguments = [&["pool", "create", path], more].concat();
    let output = tool::output(env!("CARGO_BIN_EXE_bowline"), &arguments).unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_raw_device_is_served_by_a_ring() {
    served_on_a_device(setup());
}

#[test]
fn a_raw_device_is_served_by_threads() {
    served_on_a_device(without_ring());
}

#[test]
fn what_lies_on_a_device_is_not_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::over(&folder.path().join("device"), BYTES).unwrap();
    let file = File::options().read(true).write(true).open(device.path()).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
    file.sync_all().unwrap();
    let (code, said) = create(&device, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("an XFS file system") && said.contains("--yes"), "{said}");
    let mut start = [0; 4];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"XFSB");
    let (code, said) = create(&device, &["--yes"]);
    assert_eq!(code, Some(0), "{said}");
    file.read_exact_at(&mut start, 0).unwrap();
    assert_ne!(&start, b"XFSB");
}
