//! Takeovers: processes of a family are killed under clients that must not notice.
//!
//! No client connects a second time, none gets an error, none waits for a reply that does not come,
//! and none gets one twice; what was acknowledged is there, flushed or not.
//! `BOWLINE_TAKEOVER_ROUNDS` makes the loop longer, `BOWLINE_KILL_SEED` changes its course.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bowline_testbed::history::mix;
use bowline_testbed::nbd::Client;
use bowline_testbed::server::{Crash, Kind, Server, Setup, Transport};
use bowline_testbed::tool::until;
use bowline_testbed::writer::{DEEP, Habit, Progress, Writer};
use rustix::process::{Pid, Signal, kill_process};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name);
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn family() -> Server {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_bowline"));
    (setup.kind, setup.pool_bytes) = (Kind::Bowline, 2 << 30);
    setup.arguments = ["--partner", "on"].map(Into::into).into();
    Server::start(setup).unwrap()
}

/// Clients that live on one connection each.
struct Clients {
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<Writer>>,
}

impl Clients {
    fn begin(server: &Server, habits: &[Habit]) -> Clients {
        let progress = Arc::new(Progress::default());
        let seed = number("BOWLINE_KILL_SEED", 1);
        let transports = [Transport::Unix, Transport::Tcp];
        let threads = habits.iter().enumerate().map(|(at, &habit)| {
            let address = server.address(transports[at % 2], 0);
            let seed = mix(seed ^ (at as u64) << 32);
            let mut writer = Writer::new(at as u32 + 1, habit, address, server.export(0), seed);
            let progress = Arc::clone(&progress);
            std::thread::spawn(move || {
                let lived = writer.live(&progress);
                lived.unwrap_or_else(|error| panic!("writer {at} noticed: {error}"));
                writer
            })
        });
        let threads = threads.collect();
        Clients { progress, threads }
    }

    /// Waits until so many writes more have been acknowledged.
    fn go_on(&self, writes: u64) {
        let target = self.progress.writes() + writes;
        until("the writers get on", Duration::from_secs(60), || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a client has given up");
            self.progress.writes() >= target
        })
        .unwrap();
    }

    /// Lets them take their last replies, and holds what is there against what they were told.
    fn judge(self) -> u64 {
        self.progress.leave();
        let writers = self.threads.into_iter().map(|thread| thread.join().unwrap());
        for mut writer in writers.collect::<Vec<_>>() {
            writer.judge(Crash::Process).unwrap_or_else(|broken| panic!("{broken}"));
        }
        self.progress.writes()
    }
}

/// The process of a role, once the family is whole.
fn process(server: &Server, role: &str) -> Pid {
    let mut found = None;
    until("the family is whole", Duration::from_secs(60), || {
        let Ok(status) = server.json(&["status"]) else { return false };
        found = status["processes"][role]["pid"].as_i64();
        status["takeover"]["ready"] == true && found.is_some()
    })
    .unwrap();
    Pid::from_raw(found.unwrap() as i32).unwrap()
}

/// How often a process has slept.
fn sleeps(process: Pid) -> u64 {
    let path = format!("/proc/{}/status", process.as_raw_nonzero());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

const HABITS: [Habit; 5] =
    [Habit::DEEP, Habit::DEEP, Habit::NEVER_FLUSHES, Habit::FLUSHES, Habit::FUA];

/// Kills processes of these roles at once, under load, again and again.
fn kill(roles: &[&str], rounds: u64) {
    kill_with_gaps(roles, rounds, Duration::ZERO);
}

/// The same, with up to so long between one and the next.
fn kill_with_gaps(roles: &[&str], rounds: u64, gap: Duration) {
    let mut server = family();
    let clients = Clients::begin(&server, &HABITS);
    let mut silences = Vec::new();
    for round in 0..rounds {
        let processes: Vec<Pid> = roles.iter().map(|role| process(&server, role)).collect();
        clients.go_on(100 + mix(round ^ number("BOWLINE_KILL_SEED", 1)) % 3000);
        clients.progress.take_silence();
        for (at, one) in processes.iter().enumerate() {
            if at > 0 && !gap.is_zero() {
                let share = mix(round ^ 0x6a9 ^ number("BOWLINE_KILL_SEED", 1)) % 1000;
                std::thread::sleep(gap * share as u32 / 1000);
            }
            kill_process(*one, Signal::KILL).unwrap();
        }
        clients.go_on(500);
        silences.push(clients.progress.take_silence());
    }
    assert!(clients.progress.deepest() >= DEEP);
    let acknowledged = clients.judge();
    silences.sort();
    let (median, longest) = (silences[silences.len() / 2], silences[silences.len() - 1]);
    println!("{rounds} deaths of {roles:?}, {acknowledged} writes");
    println!("silence {median:?} in the median, {longest:?} at most");
    // Who is whole and has nothing to do sleeps, and does not look every millisecond.
    let keeper = process(&server, "keeper");
    let before = sleeps(keeper);
    std::thread::sleep(Duration::from_millis(500));
    let woken = sleeps(keeper) - before;
    assert!(woken < 100, "the keeper woke {woken} times for nothing");
    server.stop().unwrap();
    server.check().unwrap();
}

#[test]
fn nobody_notices_the_death_of_the_active() {
    kill(&["active"], number("BOWLINE_TAKEOVER_ROUNDS", 10));
}

#[test]
fn nobody_notices_the_death_of_the_passive() {
    kill(&["passive"], number("BOWLINE_TAKEOVER_ROUNDS", 10) / 2);
}

#[test]
fn nobody_notices_the_death_of_active_and_passive_at_once() {
    kill(&["active", "passive"], number("BOWLINE_TAKEOVER_ROUNDS", 10) / 2);
    kill(&["passive", "active"], number("BOWLINE_TAKEOVER_ROUNDS", 10) / 2);
}

#[test]
fn nobody_notices_the_death_of_the_keeper() {
    let rounds = number("BOWLINE_TAKEOVER_ROUNDS", 10);
    kill(&["keeper"], rounds / 2);
    kill(&["keeper", "active"], rounds / 2);
    kill(&["passive", "keeper"], rounds / 2);
    // While the next keeper finds out what there is.
    kill_with_gaps(&["keeper", "active"], rounds, Duration::from_millis(30));
    kill_with_gaps(&["keeper", "passive"], rounds / 2, Duration::from_millis(30));
}

/// Connections that come, go and are cut off around a takeover, many of them idle.
#[test]
fn connections_that_come_and_go_are_neither_lost_nor_kept() {
    let mut server = family();
    let connect = |at: usize| {
        let transport = [Transport::Unix, Transport::Tcp][at % 2];
        Client::connect(&server.address(transport, 0), server.export(0)).unwrap()
    };
    let mut idle: Vec<Client> = (0..300).map(connect).collect();
    for round in 0..4 {
        // Some end in good order, some by their client's death, just before.
        for client in idle.drain(..40) {
            if round % 2 == 0 { client.disconnect() } else { drop(client) }
        }
        let (active, keeper) = (process(&server, "active"), process(&server, "keeper"));
        let begun = (0..20).map(connect).collect::<Vec<_>>();
        if round >= 2 {
            kill_process(keeper, Signal::KILL).unwrap();
        }
        if round != 3 {
            kill_process(active, Signal::KILL).unwrap();
        }
        // Nobody serves just now, or nobody accepts.
        idle.extend((0..20).map(connect));
        idle.extend(begun);
        for (at, client) in idle.iter_mut().enumerate() {
            let block = [round + 1; 4096];
            client.write(at as u64 * 4096, &block).unwrap();
            assert_eq!(client.read(at as u64 * 4096, 4096).unwrap(), block);
        }
    }
    let count = idle.len();
    let open =
        |server: &Server| server.json(&["status"]).unwrap()["disks"][0]["connections"].clone();
    until("those that have gone are let go", Duration::from_secs(20), || open(&server) == count)
        .unwrap();
    drop(idle);
    until("all are let go", Duration::from_secs(20), || open(&server) == 0).unwrap();
    server.stop().unwrap();
    server.check().unwrap();
}
