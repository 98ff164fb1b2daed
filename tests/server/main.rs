//! The server as a process: starts, deaths, ends, and what it costs when it does nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod device;
mod failing;
mod full;
mod large;
mod loss;
mod many;
mod readme;
mod scrub;
mod sessions;
mod user;

use std::time::Duration;

use bowline_testbed::nbd::Client;
use bowline_testbed::server::{Crash, Kind, Server, Setup, Transport};
use bowline_testbed::tool::{self, until};

const BOTH: [Transport; 2] = [Transport::Unix, Transport::Tcp];

fn setup() -> Setup {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_bowline"));
    setup.kind = Kind::Bowline;
    setup.pool_bytes = 256 << 20;
    setup
}

fn without_ring() -> Setup {
    let mut setup = setup();
    setup.environment.push(("BOWLINE_WITHOUT_IO_URING".into(), "1".into()));
    setup
}

fn client(server: &Server, transport: Transport) -> Client {
    Client::connect(&server.address(transport, 0), server.export(0)).unwrap()
}

/// Files in the arena's folder, without the lock, which stays.
fn arena_files(server: &Server) -> Vec<String> {
    let entries = std::fs::read_dir(server.arena()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".lock")).collect()
}

/// Unflushed writes on both transports, short and long, survive kill -9; twice, because a second
/// adoption finds another arena than the first.
fn unflushed_writes_survive(setup: Setup) {
    let mut server = Server::start(setup).unwrap();
    for round in 1..=2u8 {
        for (at, transport) in BOTH.into_iter().enumerate() {
            let mut client = client(&server, transport);
            let base = (at as u64) << 24;
            client.write(base, &vec![round; 4096]).unwrap();
            client.write(base + 8192 + 512, &[round + 10; 512]).unwrap();
            client.write(base + (1 << 20), &vec![round + 20; 3 << 20]).unwrap();
        }
        server.crash(Crash::Process).unwrap();
        assert!(!arena_files(&server).is_empty(), "a dead server leaves its arena");
        server.serve().unwrap();
        for (at, transport) in BOTH.into_iter().enumerate() {
            let mut client = client(&server, transport);
            let base = (at as u64) << 24;
            assert_eq!(client.read(base, 4096).unwrap(), vec![round; 4096]);
            let sectors = client.read(base + 8192, 1536).unwrap();
            assert_eq!(sectors[..512], [0; 512]);
            assert_eq!(sectors[512..1024], [round + 10; 512]);
            assert_eq!(sectors[1024..], [0; 512]);
            assert_eq!(client.read(base + (1 << 20), 3 << 20).unwrap(), vec![round + 20; 3 << 20]);
        }
    }
}

#[test]
fn unflushed_writes_survive_with_a_ring() {
    let server = Server::start(setup()).unwrap();
    let status = server.json(&["status"]).unwrap();
    if status["sockets"] == "io_uring" {
        drop(server);
        unflushed_writes_survive(setup());
    }
}

#[test]
fn unflushed_writes_survive_without_a_ring() {
    unflushed_writes_survive(without_ring());
}

#[test]
fn a_server_without_a_ring_says_so_and_serves() {
    let mut server = Server::start(without_ring()).unwrap();
    let status = server.json(&["status"]).unwrap();
    assert_eq!((&status["medium"], &status["sockets"]), (&"threads".into(), &"poll".into()));
    assert_eq!(status["conditions"][0]["name"], "io-uring-refused");
    let mut clients: Vec<Client> = (0..20).map(|at| client(&server, BOTH[at % 2])).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.write((at as u64) << 16, &vec![at as u8 + 1; 1 << 16]).unwrap();
        client.flush().unwrap();
    }
    for (at, client) in clients.iter_mut().enumerate().rev() {
        assert_eq!(client.read((at as u64) << 16, 1 << 16).unwrap(), vec![at as u8 + 1; 1 << 16]);
    }
    server.stop().unwrap();
}

#[test]
fn a_second_server_is_refused_and_names_the_owner() {
    let server = Server::start(setup()).unwrap();
    let status = server.json(&["status"]).unwrap();
    let owner = status["processes"]["active"]["pid"].to_string();
    let pool = server.pool().display().to_string();
    let socket = server.folder().join("other.sock");
    let (control, listen) = (
        server.folder().join("other-control.sock").display().to_string(),
        format!("unix:{}", socket.display()),
    );
    let second = |arena: &str| {
        let program = env!("CARGO_BIN_EXE_bowline");
        let arguments =
            ["serve", "--pool", &pool, "--nbd", &listen, "--control", &control, "--arena", arena];
        let output = tool::output(program, &arguments).unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = second(&server.arena().display().to_string());
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains(&owner) && said.contains("control.sock"), "{said}");
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let (code, said) = second(&elsewhere.path().display().to_string());
    assert_eq!(code, Some(4), "another arena is no way around: {said}");
    assert!(!socket.exists());
    client(&server, Transport::Unix).write(0, &[1; 4096]).unwrap();
}

#[test]
fn a_clean_stop_leaves_nothing_and_loses_nothing() {
    let mut server = Server::start(setup()).unwrap();
    let mut client_before = client(&server, Transport::Tcp);
    client_before.write(4096, &[7; 8192]).unwrap();
    server.stop().unwrap();
    assert_eq!(arena_files(&server), Vec::<String>::new());
    assert!(client_before.read(0, 4096).is_err(), "its connection has ended");
    let sockets = std::fs::read_dir(server.folder())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".sock"));
    assert_eq!(sockets.count(), 0);
    server.serve().unwrap();
    let status = server.json(&["pool", "status"]).unwrap();
    assert_eq!(status["state"], "well");
    let disks = server.json(&["disk", "list"]).unwrap();
    assert_eq!(disks["disks"][0]["mapped_bytes"], 8192, "{disks}");
    assert_eq!(client(&server, Transport::Unix).read(4096, 8192).unwrap(), vec![7; 8192]);
}

#[test]
fn a_signal_stops_as_cleanly() {
    let mut server = Server::start(setup()).unwrap();
    client(&server, Transport::Unix).write(0, &[9; 4096]).unwrap();
    server.terminate().unwrap();
    until("the server ends", Duration::from_secs(30), || server.is_dead()).unwrap();
    assert_eq!(arena_files(&server), Vec::<String>::new());
    server.serve().unwrap();
    assert_eq!(client(&server, Transport::Unix).read(0, 4096).unwrap(), vec![9; 4096]);
}

#[test]
fn lost_writes_are_not_written_over_until_somebody_says_so() {
    let mut server = Server::start(setup()).unwrap();
    let mut writer = client(&server, Transport::Unix);
    writer.write(0, &[1; 4096]).unwrap();
    writer.flush().unwrap();
    writer.write(4096, &[2; 4096]).unwrap();
    server.crash(Crash::Host).unwrap();
    server.spawn().unwrap();
    let mut status = serde_json::Value::Null;
    until("the server answers", Duration::from_secs(30), || {
        status = server.json(&["status"]).unwrap_or_default();
        status["state"].is_string()
    })
    .unwrap();
    assert_eq!(status["state"], "lost-writes");
    assert!(status["pool"]["conditions"][0]["remedy"].as_str().unwrap().contains("--accept-loss"));
    let mut reader = client(&server, Transport::Unix);
    assert_eq!(reader.read(0, 4096).unwrap(), vec![1; 4096]);
    assert!(reader.write(0, &[3; 4096]).is_err(), "writes are refused");
    server.crash(Crash::Process).unwrap();
    server.setup().arguments.push("--accept-loss".into());
    server.serve().unwrap();
    let mut writer = client(&server, Transport::Unix);
    assert_eq!(writer.read(0, 4096).unwrap(), vec![1; 4096]);
    writer.write(4096, &[4; 4096]).unwrap();
}

#[test]
fn a_server_with_nothing_to_do_sleeps() {
    let server = Server::start(setup()).unwrap();
    let mut busy = client(&server, Transport::Unix);
    for at in 0..64 {
        busy.write(at << 12, &[at as u8; 4096]).unwrap();
    }
    busy.flush().unwrap();
    let turns = || server.json(&["status"]).unwrap()["turns"].as_u64().unwrap();
    // Rings of the session, the proof of the last flush: all that is left to do ends by itself.
    let asked = |from: u64| turns() - from;
    until("the server falls asleep", Duration::from_secs(60), || {
        let before = turns();
        std::thread::sleep(Duration::from_millis(700));
        asked(before) <= 3
    })
    .unwrap();
    assert_eq!(busy.read(4096, 4096).unwrap(), vec![1; 4096], "and wakes up");
}

#[test]
fn disks_come_grow_and_go_while_others_are_used() {
    let server = Server::start(setup()).unwrap();
    let mut user = client(&server, Transport::Unix);
    server.bowline(&["disk", "create", "second", "--size", "16M"]).unwrap();
    let address = server.address(Transport::Tcp, 0);
    let mut second = Client::connect(&address, "second").unwrap();
    second.write(0, &[1; 4096]).unwrap();
    assert!(second.write(16 << 20, &[1; 4096]).is_err(), "past the end");
    server.bowline(&["disk", "resize", "second", "--size", "32M"]).unwrap();
    let mut second = Client::connect(&address, "second").unwrap();
    second.write(16 << 20, &[2; 4096]).unwrap();
    server.bowline(&["disk", "set", "second", "--read-only", "on"]).unwrap();
    assert!(second.write(0, &[1; 4096]).is_err(), "read-only");
    let shown = server.json(&["disk", "show", "second"]).unwrap();
    assert_eq!((&shown["size_bytes"], &shown["read_only"]), (&(32 << 20).into(), &true.into()));
    assert_eq!(shown["counters"]["write_bytes"], 8192);
    let held = (&shown["mapped_bytes"], &shown["changed_bytes"]);
    assert_eq!(held, (&0.into(), &8192.into()), "no checkpoint has counted it yet");
    server.bowline(&["disk", "destroy", "second", "--yes"]).unwrap();
    assert!(second.read(0, 4096).is_err(), "it is no more");
    assert!(Client::connect(&address, "second").is_err());
    user.write(0, &[5; 4096]).unwrap();
    server.bowline(&["pool", "grow", "--size", "512M"]).unwrap();
    let pool = server.json(&["pool", "status"]).unwrap();
    assert!(pool["size_bytes"].as_u64().unwrap() > 400 << 20, "{pool}");
}

#[test]
fn what_this_version_does_not_know_is_refused() {
    let server = Server::start(setup()).unwrap();
    let program = env!("CARGO_BIN_EXE_bowline");
    let folder = server.folder().display().to_string();
    let output = tool::output(program, &["serve", "--vhost-user", &folder]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--vhost-user is not known to this version"), "{said}");
    for provision in ["lazy", "eager"] {
        let create = ["disk", "create", "other", "--size", "1M", "--provision", provision];
        let said = server.bowline(&create).unwrap_err().to_string();
        assert!(said.contains(&format!("--provision {provision} is not known")), "{said}");
        let refusal = server.json(&create).unwrap();
        assert_eq!(refusal["error"]["kind"], "usage", "{refusal}");
    }
    assert!(server.bowline(&["disk", "show", "other"]).is_err(), "nothing was made");
    server.bowline(&["disk", "create", "other", "--size", "1M", "--provision", "thin"]).unwrap();
}

#[test]
fn status_says_where_a_pool_has_its_space_from() {
    let mut server = Server::start(setup()).unwrap();
    assert_eq!(server.json(&["pool", "status"]).unwrap()["allocation"], "sparse");
    server.stop().unwrap();
    let pool = server.pool().display().to_string();
    let program = env!("CARGO_BIN_EXE_bowline");
    let create = ["pool", "create", &pool, "--size", "256M", "--preallocate", "--yes"];
    tool::run(program, &create).unwrap();
    server.serve().unwrap();
    assert_eq!(server.json(&["pool", "status"]).unwrap()["allocation"], "preallocated");
}
