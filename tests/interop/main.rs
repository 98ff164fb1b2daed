//! Foreign clients agree that the server speaks NBD: one behaviour a test, over each transport.
//!
//! `BOWLINE_TEST_SERVER=qemu-nbd` runs them against another server, which is how the tests
//! themselves are tested.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbdtools;
mod qemu;
mod stress;

use bowline_testbed::server::{Server, Setup, Transport};

/// The size of the disk that most tests use.
const DISK_BYTES: u64 = 64 << 20;

/// A server with one empty disk, its URI, and a folder for files.
struct Bed {
    server: Server,
    uri: String,
}

impl Bed {
    fn new(transport: Transport) -> Bed {
        let server = Server::start(Setup::new(env!("CARGO_BIN_EXE_bowline"))).unwrap();
        let uri = server.uri(transport, 0);
        Bed { server, uri }
    }

    /// A path for a file of the test.
    fn file(&self, name: &str) -> String {
        self.server.folder().join(name).display().to_string()
    }

    /// A file of this name with bytes that repeat nowhere, and one long hole.
    fn data(&self, name: &str) -> String {
        let path = self.file(name);
        let mut bytes = Vec::with_capacity(DISK_BYTES as usize);
        for at in 0..DISK_BYTES / 8 {
            let hole = at % (1 << 20) < 1 << 19;
            let word = if hole { 0 } else { bowline_testbed::history::mix(at) };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    bowline_testbed::tool::run(program, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// One test for each transport, from a function that takes a [`Bed`].
macro_rules! over_each_transport {
    ($($name:ident)*) => {
        mod unix {
            $(#[test] fn $name() {
                super::$name(&crate::Bed::new(bowline_testbed::server::Transport::Unix));
            })*
        }
        mod tcp {
            $(#[test] fn $name() {
                super::$name(&crate::Bed::new(bowline_testbed::server::Transport::Tcp));
            })*
        }
    };
}
use over_each_transport;
