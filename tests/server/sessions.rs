//! What the connections of a killed server leave to the next one: nothing but what they wrote.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bowline_testbed::nbd::{Client, Request};
use bowline_testbed::server::{Crash, Server, Setup};
use bowline_testbed::tool::until;

use crate::{BOTH, client, setup, without_ring};

/// Requests of each kind in flight on each connection: short, unaligned and long writes, reads.
const EACH: u64 = 32;
const LONG: u32 = 128 << 10;
const READ: u32 = 64 << 10;
/// The part of the disk that a connection has for itself.
const AREA: u64 = 16 << 20;

/// Bytes of buffers that are in use, and those that connections hold.
fn in_use(server: &Server) -> (u64, u64) {
    let status = server.json(&["status"]).unwrap();
    let bytes = |name: &str| status["buffers"][name].as_u64().unwrap();
    (bytes("used_bytes"), bytes("connections_bytes"))
}

/// Sends writes and reads, and takes only the replies to the first of them. Says what those wrote.
fn many_in_flight(client: &mut Client, at: u64, tag: u8) -> Vec<(u64, Vec<u8>)> {
    let base = at * AREA;
    let mut told = Vec::new();
    for number in 0..EACH {
        let (offset, data) = (base + number * 4096, vec![tag; 4096]);
        client.send((Request::Write, 0), number, offset, 4096, &data).unwrap();
        told.push((offset, data));
    }
    for _ in 0..EACH {
        assert_eq!(client.receive().unwrap().error, 0);
    }
    let base = base + (1 << 20);
    for number in 0..EACH {
        let aligned = base + number * 8192;
        let long = base + (1 << 20) + number * u64::from(LONG);
        let (short, odd) = (vec![tag; 4096], vec![tag; 512]);
        client.send((Request::Write, 0), number, aligned, 4096, &short).unwrap();
        client.send((Request::Write, 0), number, aligned + 4096 + 512, 512, &odd).unwrap();
        client.send((Request::Write, 0), number, long, LONG, &vec![tag; LONG as usize]).unwrap();
    }
    for number in 0..EACH {
        // More than a connection takes that nobody reads from.
        client.send((Request::Read, 0), number, base + (1 << 20), READ, &[]).unwrap();
    }
    told
}

/// Connections of all kinds, until the server dies. Says what must be there then.
fn work_and_die(server: &mut Server, tag: u8, idle_bytes: u64) -> Vec<(u64, Vec<u8>)> {
    let mut told = Vec::new();
    let mut clients = Vec::new();
    for at in 0..2 {
        let mut deep = client(server, BOTH[at as usize % 2]);
        told.extend(many_in_flight(&mut deep, at, tag));
        clients.push(deep);
        // Half of a long payload.
        let mut half = client(server, BOTH[at as usize % 2]);
        half.send((Request::Write, 0), 1, (2 + at) * AREA, 1 << 20, &vec![tag; 1 << 19]).unwrap();
        clients.push(half);
    }
    until("connections hold buffers", Duration::from_secs(60), || {
        let (used, held) = in_use(server);
        held > 2 << 20 && used >= idle_bytes + held
    })
    .unwrap();
    server.crash(Crash::Process).unwrap();
    told
}

/// Writes where nobody else does, and flushes it.
fn write_and_flush(server: &Server) {
    let mut client = client(server, BOTH[0]);
    client.send((Request::Write, 0), 1, 64 * (1 << 20) - 4096, 4096, &[7; 4096]).unwrap();
    client.send((Request::Flush, 0), 2, 0, 0, &[]).unwrap();
    for _ in 0..2 {
        assert_eq!(client.receive().unwrap().error, 0);
    }
    client.disconnect();
}

/// Nothing is in use that is not when nobody is connected, and what was told is there.
fn nothing_is_left(server: &Server, idle_bytes: u64, told: &[(u64, Vec<u8>)]) {
    until("all buffers are free", Duration::from_secs(60), || {
        // The batch that proves what was taken from the arena keeps its page until it is flushed.
        write_and_flush(server);
        in_use(server) == (idle_bytes, 0)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}, not {idle_bytes}", in_use(server)));
    let mut client = client(server, BOTH[0]);
    for (offset, data) in told {
        assert!(client.read(*offset, 4096).unwrap() == *data, "other bytes from {offset} on");
    }
}

/// The bytes of the arena's file that have a kind: see `docs/format.md`.
fn region_of(arena: &File, kind: u32) -> std::ops::Range<u64> {
    let mut identity = [0; 256];
    arena.read_exact_at(&mut identity, 0).unwrap();
    let number = |at: usize| u64::from_le_bytes(identity[at..at + 8].try_into().unwrap());
    let found = (56..248).step_by(24).find(|at| number(*at) as u32 == kind).unwrap();
    number(found + 8)..number(found + 8) + number(found + 16)
}

/// Changes bytes of every record that sessions have left.
fn damage_sessions(server: &Server) {
    let entries = std::fs::read_dir(server.arena()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths = paths.filter(|path| path.extension().is_some_and(|name| name == "arena"));
    let arena = File::options().read(true).write(true).open(paths.next().unwrap()).unwrap();
    let region = region_of(&arena, 3);
    for at in (region.start + 4096..region.end).step_by(16) {
        let mut byte = [0];
        arena.read_exact_at(&mut byte, at).unwrap();
        arena.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    }
}

fn log_of(server: &Server) -> String {
    let mut text = String::new();
    File::open(server.log()).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn a_killed_server_leaves_nothing(setup: Setup) {
    let mut server = Server::start(setup).unwrap();
    // As it is after a start: the disks of the test were made by the one before.
    server.stop().unwrap();
    server.serve().unwrap();
    let (idle_bytes, _) = in_use(&server);
    for tag in 1..=3 {
        let told = work_and_die(&mut server, tag, idle_bytes);
        server.serve().unwrap();
        let log = log_of(&server);
        assert_eq!(log.matches("connections were cut off").count(), usize::from(tag), "{log}");
        nothing_is_left(&server, idle_bytes, &told);
    }
    let told = work_and_die(&mut server, 4, idle_bytes);
    damage_sessions(&server);
    server.serve().unwrap();
    assert!(log_of(&server).contains("what connections there were is not known"));
    nothing_is_left(&server, idle_bytes, &told);
    server.stop().unwrap();
    server.check().unwrap();
}

#[test]
fn a_killed_server_leaves_nothing_with_a_ring() {
    a_killed_server_leaves_nothing(setup());
}

#[test]
fn a_killed_server_leaves_nothing_without_a_ring() {
    a_killed_server_leaves_nothing(without_ring());
}
