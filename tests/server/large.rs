//! A disk of a terabyte that is not there.

use std::os::unix::fs::MetadataExt;

use bowline_testbed::server::{Crash, Server, Transport};

use crate::{client, setup};

const TERABYTE: u64 = 1 << 40;
const MEBIBYTE: usize = 1 << 20;

/// A mebibyte of blocks, each of which repeats a word of its own.
fn regular(seed: u64) -> Vec<u8> {
    let blocks = (0..MEBIBYTE as u64 / 4096).map(|block| (seed << 16 | block).to_le_bytes());
    blocks.flat_map(|word| word.repeat(4096 / 8)).collect()
}

#[test]
fn a_terabyte_is_served_without_its_space() {
    let mut setup = setup();
    (setup.pool_bytes, setup.disks[0].1) = (TERABYTE + TERABYTE / 5, TERABYTE);
    let words = tempfile::tempdir().unwrap();
    let filter = format!("data-less={}", words.path().join("words").display());
    setup.arguments = vec!["--media-filter".into(), filter];
    let mut server = Server::start(setup).unwrap();
    let places = |round: u64| (0..100).map(move |at| (at * 7919 + round) * (TERABYTE / 800_000));
    let places = |round| places(round).map(|at| at / 4096 * 4096);
    for round in 1..=2u64 {
        let mut writer = client(&server, Transport::Unix);
        for at in places(round) {
            writer.write(at, &regular(round << 40 | at >> 12)).unwrap();
        }
        writer.flush().unwrap();
        writer.write(TERABYTE - MEBIBYTE as u64, &regular(round)).unwrap();
        server.crash(Crash::Process).unwrap();
        server.serve().unwrap();
        let mut reader = client(&server, Transport::Tcp);
        let end = reader.read(TERABYTE - MEBIBYTE as u64, MEBIBYTE as u32).unwrap();
        assert!(end == regular(round), "not flushed, and there");
        for at in places(round) {
            let found = reader.read(at, MEBIBYTE as u32).unwrap();
            assert!(found == regular(round << 40 | at >> 12), "at {at}");
        }
    }
    let taken = std::fs::metadata(server.pool()).unwrap().blocks() * 512;
    assert!(taken < 64 << 20, "200 MiB were written, {} MiB are taken", taken >> 20);
    server.stop().unwrap();
}
