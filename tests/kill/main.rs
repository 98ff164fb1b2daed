//! Kill loops: real processes, real clients, kill -9 in the middle of everything, and a judge who
//! remembers what every client was told.
//!
//! After the death of all processes every acknowledged write is there, flushed or not. After the
//! death of the host (the arena is gone) everything flushed is there, and what is there is a
//! prefix. `BOWLINE_KILL_ROUNDS` makes the loops longer, `BOWLINE_KILL_EACH` says how often the
//! server dies at each labelled place, `BOWLINE_KILL_SEED` changes the course of all;
//! `BOWLINE_TEST_SERVER=qemu-nbd` runs them against another server, to test the loops themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bowline_testbed::history::{Broken, mix};
use bowline_testbed::nbd::Client;
use bowline_testbed::server::{Crash, Kind, Server, Setup, Transport};
use bowline_testbed::tool::until;
use bowline_testbed::writer::{DEEP, Habit, Progress, Writer};

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name);
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn setup(kind: Kind) -> Setup {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_bowline"));
    setup.kind = kind;
    setup.pool_bytes = 2 << 30;
    setup
}

fn writers(server: &Server, habits: &[Habit]) -> Vec<Writer> {
    let seed = number("BOWLINE_KILL_SEED", 1);
    let transports = [Transport::Unix, Transport::Tcp];
    let make = |(at, &habit): (usize, &Habit)| {
        let transport = match server.kind() {
            // Each of nbdkit's processes has a memory of its own.
            Kind::Nbdkit => Transport::Unix,
            _ => transports[at % 2],
        };
        let address = server.address(transport, 0);
        let seed = mix(seed ^ (at as u64) << 32);
        Writer::new(at as u32 + 1, habit, address, server.export(0), seed)
    };
    habits.iter().enumerate().map(make).collect()
}

/// How a server that has not died meanwhile ends.
#[derive(Clone, Copy)]
enum End {
    Crash(Crash),
    /// It is told to.
    Stop,
}

/// Lets the writers work until `is_over` says so about their number of writes, or their server has
/// died; ends whatever is left of it, and says how far they came.
fn work(
    server: &mut Server,
    writers: &mut Vec<Writer>,
    end: End,
    mut is_over: impl FnMut(&mut Server, u64) -> bool,
) -> Arc<Progress> {
    let progress = Arc::new(Progress::default());
    let threads: Vec<_> = std::mem::take(writers)
        .into_iter()
        .map(|mut writer| {
            let progress = progress.clone();
            std::thread::spawn(move || {
                writer.work(&progress);
                writer
            })
        })
        .collect();
    until("the writers get on", Duration::from_secs(120), || is_over(server, progress.writes()))
        .unwrap();
    match end {
        End::Crash(crash) => server.crash(crash).unwrap(),
        // One that dies of it gives no answer.
        End::Stop => {
            progress.stopping();
            drop(server.bowline(&["stop"]));
        }
    }
    writers.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    progress
}

/// Lets the writers work, kills everything after some writes, starts it again and judges; round
/// after round. The first promise that was broken ends it.
fn kill_loop(
    server: &mut Server,
    writers: &mut Vec<Writer>,
    crash: Crash,
    rounds: u64,
) -> Result<u64, Broken> {
    let mut acknowledged = 0;
    for round in 0..rounds {
        let target = 200 + mix(round ^ number("BOWLINE_KILL_SEED", 1)) % 2000;
        let end = End::Crash(crash);
        let progress = work(server, writers, end, |_, writes| writes >= target);
        acknowledged += progress.writes();
        if writers.iter().any(Writer::is_deep) {
            let deepest = progress.deepest();
            assert!(deepest >= DEEP, "only {deepest} requests were in flight on a connection");
        }
        server.serve().unwrap();
        writers.iter_mut().try_for_each(|writer| writer.judge(crash))?;
    }
    Ok(acknowledged)
}

#[test]
fn every_acknowledged_write_survives_the_death_of_all_processes() {
    let mut server = Server::start(setup(Kind::chosen())).unwrap();
    let habits = [Habit::NEVER_FLUSHES, Habit::FLUSHES, Habit::FUA, Habit::DEEP, Habit::DEEP];
    let mut writers = writers(&server, &habits);
    let rounds = number("BOWLINE_KILL_ROUNDS", 12);
    let result = kill_loop(&mut server, &mut writers, Crash::Process, rounds);
    let acknowledged = result.unwrap_or_else(|broken| panic!("{broken}"));
    println!("{rounds} kills, {acknowledged} acknowledged writes, none lost");
    server.stop().unwrap();
    server.check().unwrap();
}

#[test]
fn what_was_flushed_survives_the_death_of_the_host_and_the_rest_is_a_prefix() {
    let mut server = Server::start(setup(Kind::chosen())).unwrap();
    server.setup().arguments.push("--accept-loss".into());
    let mut writers = writers(&server, &[Habit::ONE_BY_ONE, Habit::ONE_BY_ONE]);
    let rounds = number("BOWLINE_KILL_ROUNDS", 8);
    let result = kill_loop(&mut server, &mut writers, Crash::Host, rounds);
    let acknowledged = result.unwrap_or_else(|broken| panic!("{broken}"));
    println!("{rounds} deaths of the host, {acknowledged} acknowledged writes, all promises kept");
    server.stop().unwrap();
    server.check().unwrap();
}

/// At which of its passings a labelled place kills, try after try. Some are passed once in a life.
const PASSINGS: [u64; 8] = [1, 1, 17, 1, 2, 1, 1, 40];
/// Tries at each place, however soon it has killed.
const TRIES_MIN: u64 = 3;

/// The one place that no server passes: it is where places are listed.
const LISTING: &str = "fail.list";

/// Lets a server die at a labelled place, or end in good order if it does not come by, and judges
/// its successor. Whether it died there.
fn die_at(server: &mut Server, writers: &mut Vec<Writer>, label: &str, attempt: u64) -> bool {
    // Every other time it adopts what one before it left, else it begins anew.
    if attempt.is_multiple_of(2) {
        server.crash(Crash::Process).unwrap();
    } else {
        server.stop().unwrap();
    }
    let passing = PASSINGS[attempt as usize % PASSINGS.len()];
    server.setup().environment = vec![("BOWLINE_KILL_AT".into(), format!("{label}:{passing}"))];
    if server.try_serve().unwrap() {
        let target = 500 + 500 * (attempt % 3);
        work(server, writers, End::Stop, |server, writes| server.is_dead() || writes > target);
    }
    let was_killed = server.ended_by_kill().unwrap();
    server.setup().environment.clear();
    server.serve().unwrap();
    for writer in writers {
        let judged = writer.judge(Crash::Process);
        judged.unwrap_or_else(|broken| panic!("killed at {label}:{passing}: {broken}"));
    }
    was_killed
}

/// At every labelled place of the program, when it is passed for the first time and later.
#[test]
fn every_acknowledged_write_survives_a_death_at_every_labelled_place() {
    let program = env!("CARGO_BIN_EXE_bowline");
    let labels = bowline_testbed::tool::run(program, &["fail-points"]).unwrap();
    let labels: Vec<&str> = labels.lines().filter(|label| *label != LISTING).collect();
    assert!(labels.len() >= 20, "the program has lost its fail points: {labels:?}");
    let mut server = Server::start(setup(Kind::Bowline)).unwrap();
    let mut writers = writers(&server, &[Habit::DEEP, Habit::NEVER_FLUSHES, Habit::FLUSHES]);
    let wanted = number("BOWLINE_KILL_EACH", 1);
    let mut kills = BTreeMap::new();
    for label in &labels {
        let (mut killed, mut attempt) = (0, 0);
        while attempt < TRIES_MIN || (killed < wanted && attempt < 6 * wanted) {
            killed += u64::from(die_at(&mut server, &mut writers, label, attempt));
            attempt += 1;
        }
        println!("{killed:4} kills in {attempt:3} tries at {label}");
        kills.insert(label, killed);
    }
    println!("{} labels, {} deaths, nothing lost", labels.len(), kills.values().sum::<u64>());
    kills.retain(|_, killed| *killed < wanted);
    assert!(kills.is_empty(), "these were to kill {wanted} times at least: {kills:?}");
    server.stop().unwrap();
    server.check().unwrap();
}

/// The loop itself can fail: a server that keeps everything in its own memory is caught.
#[test]
fn a_server_that_forgets_is_caught() {
    let mut server = Server::start(setup(Kind::Nbdkit)).unwrap();
    for (habit, crash) in [(Habit::NEVER_FLUSHES, Crash::Process), (Habit::ONE_BY_ONE, Crash::Host)]
    {
        let mut writers = writers(&server, &[habit]);
        let result = kill_loop(&mut server, &mut writers, crash, 1);
        assert!(result.is_err(), "{crash:?}: {habit:?} was not lost with its server");
    }
}

#[test]
fn lost_writes_are_admitted_and_nothing_is_written_until_the_operator_accepts() {
    let mut server = Server::start(setup(Kind::Bowline)).unwrap();
    let address = server.address(Transport::Unix, 0);
    let mut client = Client::connect(&address, server.export(0)).unwrap();
    client.write(0, &[7; 4096]).unwrap();
    server.crash(Crash::Host).unwrap();
    server.spawn().unwrap();
    until("the server answers", Duration::from_secs(60), || {
        server.json(&["status"]).is_ok_and(|status| status["pool"]["state"] == "lost-writes")
    })
    .unwrap();
    let mut client = Client::connect(&address, server.export(0)).unwrap();
    assert!(client.write(4096, &[8; 4096]).is_err(), "a write was taken");
    assert!(client.read(0, 4096).is_ok(), "reads go on");
    assert!(server.bowline(&["pool", "resume"]).is_err(), "resumed without --accept-loss");
    server.bowline(&["pool", "resume", "--accept-loss"]).unwrap();
    // The pool is opened anew, and clients come back as after a death.
    let mut client = Client::connect(&address, server.export(0)).unwrap();
    client.write(4096, &[8; 4096]).unwrap();
    assert_eq!(client.read(4096, 4096).unwrap(), [8; 4096]);
    server.stop().unwrap();
    server.check().unwrap();
}
