//! A thousand clients that do nothing, one that does much, and the memory they cost.

use bowline_testbed::nbd::Client;
use bowline_testbed::server::{Server, Transport};

use crate::{client, setup, without_ring};

const CLIENTS: usize = 1000;
const LONG: u32 = 32 << 20;
/// The memory the server is given, of all its processes.
const MEMORY: u64 = 160 << 20;

/// The most memory the process has ever had in use.
fn peak_bytes(server: &Server) -> u64 {
    let status = server.json(&["status"]).unwrap();
    let pid = status["processes"]["active"]["pid"].as_u64().unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

/// This process has an end of each connection.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    assert!(
        maximum.is_none_or(|most| most > 2 * CLIENTS as u64),
        "too few descriptors: {maximum:?}"
    );
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

fn serve_a_thousand(transport: Transport, mut setup: bowline_testbed::server::Setup) {
    allow_descriptors();
    // As little as many systems give a service.
    setup.wrapper = vec!["prlimit".into(), "--nofile=256:4096".into()];
    setup.arguments.extend(["--memory".into(), MEMORY.to_string()]);
    let server = Server::start(setup).unwrap();
    let mut idle: Vec<Client> = (0..CLIENTS).map(|_| client(&server, transport)).collect();
    let mut worker = client(&server, transport);
    let bytes: Vec<u8> = (0..LONG / 8).flat_map(|at| u64::from(at + 1).to_le_bytes()).collect();
    worker.write(LONG.into(), &bytes).unwrap();
    assert!(worker.read(LONG.into(), LONG).unwrap() == bytes, "32 MiB come back as they were");
    let status = server.json(&["status"]).unwrap();
    let connections = status["exports"].as_array().unwrap().iter();
    let connections: u64 = connections.map(|one| one["connections"].as_u64().unwrap()).sum();
    assert_eq!(connections, CLIENTS as u64 + 1);
    // They are idle, not dead: all of them at once, then all are answered.
    for (at, client) in idle.iter_mut().enumerate() {
        let read = (bowline_testbed::nbd::Request::Read, 0);
        client.send(read, at as u64, u64::from(LONG) + at as u64 * 4096, 4096, &[]).unwrap();
    }
    for (at, client) in idle.iter_mut().enumerate() {
        let (reply, data) = client.receive_read(4096).unwrap();
        assert_eq!((reply.cookie, reply.error), (at as u64, 0));
        assert!(data == bytes[at * 4096..(at + 1) * 4096], "client {at}");
    }
    let peak = peak_bytes(&server);
    assert!(peak <= MEMORY, "{} MiB were in use", peak >> 20);
    println!("{CLIENTS} clients and 32 MiB in one request: at most {} MiB in use", peak >> 20);
}

#[test]
fn a_thousand_idle_clients_and_a_long_request_over_unix() {
    serve_a_thousand(Transport::Unix, setup());
}

#[test]
fn a_thousand_idle_clients_and_a_long_request_over_tcp() {
    serve_a_thousand(Transport::Tcp, setup());
}

#[test]
fn a_thousand_idle_clients_and_a_long_request_without_a_ring() {
    serve_a_thousand(Transport::Unix, without_ring());
}
