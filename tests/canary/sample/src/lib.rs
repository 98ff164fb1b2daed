//! What the core may not do, one of each. tests/canary/main.rs runs clippy over this file and
//! demands a complaint for every path that clippy-core.toml bans.

use std::collections::{HashMap, HashSet};

pub fn methods() {
    let _ = std::time::Instant::now();
    let _ = std::time::SystemTime::now();
    let _ = std::thread::spawn(|| ());
    std::thread::scope(|_| ());
    std::thread::sleep(std::time::Duration::ZERO);
    let _ = std::env::var("A");
    let _ = std::env::var_os("A");
    let _ = std::env::args();
    let _ = std::io::stdin();
    let _ = std::io::stdout();
    let _ = std::io::stderr();
    let _ = std::fs::read("a");
    let _ = std::fs::read_to_string("a");
    let _ = std::fs::write("a", "b");
    let _ = std::fs::create_dir_all("a");
    let _ = std::fs::remove_file("a");
    let _ = std::fs::rename("a", "b");
    let _: HashMap<u8, u8> = HashMap::new();
    let _: HashMap<u8, u8> = HashMap::with_capacity(1);
    let _: HashSet<u8> = HashSet::new();
    let _: HashSet<u8> = HashSet::with_capacity(1);
}

pub type Types = (
    std::time::Instant,
    std::time::SystemTime,
    std::fs::File,
    std::fs::OpenOptions,
    std::net::TcpStream,
    std::net::TcpListener,
    std::net::UdpSocket,
    std::os::unix::net::UnixStream,
    std::os::unix::net::UnixListener,
    std::thread::JoinHandle<()>,
    std::thread::Builder,
    std::process::Command,
    std::hash::RandomState,
);
