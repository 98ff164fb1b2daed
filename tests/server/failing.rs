//! A medium that fails, and works again.

use std::time::Duration;

use bowline_testbed::server::{Crash, Server, Transport};
use bowline_testbed::tool::until;

use crate::{client, setup};

const BLOCK: u64 = 4096;
const IO_ERROR: i32 = 5;
/// Which flush of the medium fails: a start needs some of its own.
const FAILING_FLUSH: u64 = 30;

fn block(at: u64) -> [u8; BLOCK as usize] {
    [at as u8 + 1; BLOCK as usize]
}

fn verify(server: &Server, written: u64) {
    let mut reader = client(server, Transport::Tcp);
    for at in 0..written {
        assert!(reader.read(at * BLOCK, BLOCK as u32).unwrap() == block(at), "block {at}");
    }
}

fn state(server: &Server) -> String {
    server.json(&["pool", "status"]).unwrap()["state"].as_str().unwrap().to_owned()
}

/// Waits until the server has written something about its pool having stopped.
fn until_logged(server: &Server, what: &str) {
    let is_told = |line: &str| line.contains(what) && line.contains("\"stopped\"");
    let is_logged = || std::fs::read_to_string(server.log()).unwrap().lines().any(is_told);
    until(what, Duration::from_secs(20), is_logged).unwrap();
}

#[test]
fn a_pool_that_stopped_goes_on_where_it_was_when_it_is_told_to() {
    let mut server = Server::start(setup()).unwrap();
    server.stop().unwrap();
    let filter = format!("error=flush:#{FAILING_FLUSH}");
    server.setup().arguments = vec!["--media-filter".into(), filter];
    server.serve().unwrap();
    let mut writer = client(&server, Transport::Unix);
    let mut written = 0;
    let failure = loop {
        writer.write(written * BLOCK, &block(written)).unwrap();
        written += 1;
        if let Err(error) = writer.flush() {
            break error;
        }
        assert!(written <= FAILING_FLUSH, "no flush fails");
    };
    assert_eq!(failure.raw_os_error(), Some(IO_ERROR), "{failure}");
    assert_eq!(state(&server), "stopped");
    let refused = writer.write(written * BLOCK, &block(written)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(IO_ERROR), "{refused}");
    verify(&server, written);
    until_logged(&server, "not well");

    server.bowline(&["pool", "resume"]).unwrap();
    assert_eq!(state(&server), "well");
    for _ in 0..20 {
        writer.write(written * BLOCK, &block(written)).unwrap();
        written += 1;
    }
    writer.flush().unwrap();
    verify(&server, written);
    until_logged(&server, "well again");
    // Also what lay behind the failure is durable: the arena goes with the host.
    server.crash(Crash::Host).unwrap();
    server.setup().arguments = vec!["--accept-loss".into()];
    server.serve().unwrap();
    verify(&server, written);
    server.stop().unwrap();
    server.check().unwrap();
}
