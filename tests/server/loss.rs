//! Limits of loss belong to the disk, and hold whatever is restarted and killed.

use std::time::Duration;

use bowline_testbed::server::{Crash, Server, Transport};
use bowline_testbed::tool::until;

use crate::{client, setup};

const BLOCK: u64 = 4096;
const WRITES: u64 = 100;

/// An `ordered` disk over a medium that really loses what was not flushed, and is slow to flush.
fn ordered(limits: &[&str], flush_delay: &str) -> Server {
    let mut server = Server::start(setup()).unwrap();
    let ordered = ["disk", "set", "disk", "--durability", "ordered"];
    server.bowline(&[&ordered[..], limits].concat()).unwrap();
    server.stop().unwrap();
    let filters = [format!("flush-delay={flush_delay}"), "volatile".into()];
    let filters = filters.into_iter().flat_map(|filter| ["--media-filter".into(), filter]);
    server.setup().arguments = filters.collect();
    server.serve().unwrap();
    server
}

/// Blocks that are missing after the loss of the host, of `WRITES` that were acknowledged.
fn lost(server: &mut Server) -> u64 {
    let mut writer = client(server, Transport::Unix);
    for at in 0..WRITES {
        writer.write(at * BLOCK, &[at as u8 + 1; BLOCK as usize]).unwrap();
    }
    server.crash(Crash::Host).unwrap();
    server.setup().arguments = vec!["--accept-loss".into()];
    server.serve().unwrap();
    let mut reader = client(server, Transport::Unix);
    let there: Vec<bool> = (0..WRITES)
        .map(|at| match reader.read(at * BLOCK, BLOCK as u32).unwrap() {
            block if block == [at as u8 + 1; BLOCK as usize] => true,
            block if block == [0; BLOCK as usize] => false,
            _ => panic!("block {at} holds what was never written there"),
        })
        .collect();
    assert!(there.is_sorted_by(|one, next| one >= next), "what is there is a prefix: {there:?}");
    there.iter().filter(|there| !**there).count() as u64
}

#[test]
fn a_disk_loses_no_more_than_its_limit_in_bytes() {
    let mut server = ordered(&["--max-loss-bytes", "64K"], "50ms");
    // The limit is the disk's, not the process's.
    server.crash(Crash::Process).unwrap();
    server.serve().unwrap();
    let lost_blocks = lost(&mut server);
    assert!(lost_blocks <= 16, "{lost_blocks} blocks of 4 KiB are gone, the limit is 64 KiB");
    // What this would look like without the limit, so that the test can fail.
    let mut server = ordered(&[], "1s");
    assert!(lost(&mut server) > 16, "the usual limit is 64 MiB");
}

#[test]
fn replies_wait_for_a_flush_when_the_time_is_up() {
    let server = ordered(&["--max-loss", "300ms"], "2s");
    let durable = || {
        let pool = server.json(&["pool", "status"]).unwrap();
        (pool["sequence_admitted"].as_u64().unwrap(), pool["sequence_durable"].as_u64().unwrap())
    };
    let mut writer = client(&server, Transport::Unix);
    writer.write(0, &[1; 4096]).unwrap();
    let (first, _) = durable();
    until("the first write has got old", Duration::from_secs(60), || {
        let disk = server.json(&["disk", "show", "disk"]).unwrap();
        disk["loss"]["unflushed_age_ms"].as_u64().unwrap() >= 300 || durable().1 >= first
    })
    .unwrap();
    writer.write(4096, &[2; 4096]).unwrap();
    let (_, durable_through) = durable();
    assert!(durable_through >= first, "a reply was given while older writes could be lost");
}

fn limits(server: &Server) -> (u64, u64) {
    let disk = server.json(&["disk", "show", "disk"]).unwrap();
    let number = |name: &str| disk["loss"][name].as_u64().unwrap();
    (number("max_loss_ms"), number("max_loss_bytes"))
}

#[test]
fn limits_survive_whatever_ends_the_server() {
    let mut server = Server::start(setup()).unwrap();
    assert_eq!(limits(&server), (1000, 64 << 20));
    server.bowline(&["disk", "set", "disk", "--max-loss", "20ms"]).unwrap();
    assert_eq!(limits(&server), (20, 64 << 20));
    server.crash(Crash::Process).unwrap();
    server.serve().unwrap();
    assert_eq!(limits(&server), (20, 64 << 20));
    server.bowline(&["disk", "set", "disk", "--max-loss-bytes", "1M"]).unwrap();
    server.stop().unwrap();
    server.serve().unwrap();
    assert_eq!(limits(&server), (20, 1 << 20));
    server.setup().arguments.push("--accept-loss".into());
    server.crash(Crash::Host).unwrap();
    server.serve().unwrap();
    assert_eq!(limits(&server), (20, 1 << 20));
}
