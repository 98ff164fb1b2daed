//! Scrubs of a served pool, as an operator sees them.

use std::os::unix::fs::FileExt;
use std::process::Output;
use std::time::Duration;

use bowline_testbed::server::{Server, Transport};
use bowline_testbed::tool::{self, until};

use crate::{client, setup};

/// Runs the program and tells how it ended, whatever that is.
fn ask(server: &Server, arguments: &[&str]) -> (Option<i32>, String, String) {
    let socket = server.folder().join("control.sock").display().to_string();
    let arguments = [arguments, &["--control", &socket]].concat();
    let Output { status, stdout, stderr } =
        tool::output(env!("CARGO_BIN_EXE_bowline"), &arguments).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn http(server: &Server, request: &str) -> String {
    use std::io::{Read, Write};
    let socket = server.folder().join("control.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(stream, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A block that looks like no other.
fn pattern(seed: u8) -> Vec<u8> {
    (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

#[test]
fn a_scrub_finds_what_the_medium_changed_and_nothing_else() {
    let mut setup = setup();
    setup.disks[0].1 = 128 << 20;
    let server = Server::start(setup).unwrap();
    let mut user = client(&server, Transport::Unix);
    for at in 0..64u64 {
        user.write(at << 20, &vec![at as u8 + 1; 1 << 20]).unwrap();
    }
    user.write(70 << 20, &pattern(1)).unwrap();
    user.write(71 << 20, &pattern(2)).unwrap();
    user.write(71 << 20, &pattern(3)).unwrap();
    user.flush().unwrap();
    let (code, said, _) = ask(&server, &["pool", "scrub", "--rate", "4G", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("finished") && said.contains(" 0 bad blocks"), "{said}");
    let status = server.json(&["pool", "status"]).unwrap();
    let scrub = &status["scrub"];
    let verified = scrub["done_bytes"].as_u64().unwrap();
    assert!(verified > 64 << 20 && verified <= status["space"]["physical_bytes"].as_u64().unwrap());
    assert_eq!(&scrub["total_bytes"], &scrub["done_bytes"]);
    assert!(scrub["ended_at_seconds"].as_u64() >= scrub["begun_at_seconds"].as_u64());

    // The medium changes one bit of a block, and one of a block that was written over.
    let pool = std::fs::File::options().read(true).write(true).open(server.pool()).unwrap();
    let mut bytes = vec![0; 256 << 20];
    let read = pool.read_at(&mut bytes, 0).unwrap();
    for wanted in [pattern(1), pattern(2)] {
        let places = bytes[..read].chunks_exact(4096);
        let found = places.into_iter().position(|block| block == wanted).unwrap();
        pool.write_all_at(&[wanted[77] ^ 4], found as u64 * 4096 + 77).unwrap();
    }
    pool.sync_all().unwrap();
    let (code, said, _) = ask(&server, &["pool", "scrub", "--rate", "4G", "--wait", "--json"]);
    assert_eq!(code, Some(4), "{said}");
    let status = server.json(&["pool", "status"]).unwrap();
    let scrub = &status["scrub"];
    assert_eq!((&scrub["lost"], &scrub["harmless"]), (&1.into(), &1.into()), "{scrub:#}");
    let lost = scrub["findings"].as_array().unwrap().iter().find(|one| one["severity"] == "lost");
    let lost = lost.unwrap();
    assert_eq!(lost["offset_bytes"], 70 << 20, "{lost:#}");
    assert_eq!(lost["disk"], server.export(0), "{lost:#}");
    assert_eq!(
        (&status["state"], &status["conditions"][0]["name"]),
        (&"degraded".into(), &"data-damaged".into())
    );
    let metrics = http(&server, "GET /metrics HTTP/1.1");
    for line in [
        "bowline_scrub_state_info{state=\"finished\"} 1",
        "bowline_scrub_findings_count{severity=\"lost\"} 1",
        "bowline_scrub_findings_count{severity=\"harmless\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(user.read(70 << 20, 4096).is_err(), "never wrong data");
    assert_eq!(user.read(71 << 20, 4096).unwrap(), pattern(3));
    let log = std::fs::read_to_string(server.log()).unwrap();
    assert!(log.contains("a scrub found something"), "{log}");

    // Written again, it is sound; what is dead stays as it is.
    user.write(70 << 20, &pattern(4)).unwrap();
    user.flush().unwrap();
    let (code, said, _) = ask(&server, &["pool", "scrub", "--rate", "4G", "--wait"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("0 lost, 2 harmless"), "{said}");
}

#[test]
fn a_scrub_is_paused_goes_on_and_is_stopped() {
    let server = Server::start(setup()).unwrap();
    let mut user = client(&server, Transport::Unix);
    for at in 0..32u64 {
        user.write(at << 20, &vec![at as u8 + 1; 1 << 20]).unwrap();
    }
    user.flush().unwrap();
    assert_eq!(ask(&server, &["pool", "scrub", "stop"]).0, Some(2), "none is under way");
    assert_eq!(ask(&server, &["pool", "scrub", "pause"]).0, Some(2));
    assert_eq!(ask(&server, &["pool", "scrub", "--rate", "0"]).0, Some(1));
    assert_eq!(ask(&server, &["pool", "scrub", "stop", "--wait"]).0, Some(1));
    assert_eq!(ask(&server, &["pool", "scrub", "--rate", "1M"]).0, Some(0));
    let done = || {
        let status = server.json(&["pool", "status"]).unwrap();
        status["scrub"]["done_bytes"].as_u64().unwrap()
    };
    until("it reads something", Duration::from_secs(60), || done() > 0).unwrap();
    let (_, said, _) = ask(&server, &["pool", "status"]);
    assert!(said.contains("running") && said.contains("time left"), "{said}");
    let (code, said, _) = ask(&server, &["pool", "scrub", "pause"]);
    assert!(code == Some(0) && said.contains("paused"), "{said}");
    let (code, said, _) = ask(&server, &["pool", "scrub", "stop"]);
    assert!(code == Some(0) && said.contains("stopped early"), "{said}");
    assert!(done() < 32 << 20, "it was stopped before its end");
    assert_eq!(ask(&server, &["wait", "scrub"]).0, Some(0));
}

#[test]
fn a_repair_of_a_served_pool_is_refused_with_what_to_do() {
    let server = Server::start(setup()).unwrap();
    let answer = http(&server, "POST /v1/pool/repair HTTP/1.1\r\nContent-Length: 0");
    assert!(answer.starts_with("HTTP/1.1 409"), "{answer}");
    for part in ["while it is served", "bowline stop, then bowline pool repair"] {
        assert!(answer.contains(part), "{answer}");
    }
    let pool = server.pool().display().to_string();
    let (code, _, said) = ask(&server, &["pool", "repair", &pool]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("in use") && said.contains("a server has it open"), "{said}");
}
