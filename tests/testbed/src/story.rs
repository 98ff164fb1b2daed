//! A guest that lives through the death of its disk server, told in words and figures.
//!
//! The demo tells it to a person; the test of the same name runs it and believes only the checks.

use std::time::Instant;

use crate::Result;
use crate::guest::{Disk, Guest, Job};
use crate::server::{Crash, Server, Setup, Transport};

/// How the story goes.
#[derive(Debug, Clone)]
pub struct Plot {
    /// The file system in the guest: `ext4`, `xfs` or `btrfs`.
    pub file_system: String,
    /// How often everything is killed.
    pub kills: u32,
    /// How many records each job must get on between two kills.
    pub records: u64,
}

/// What came out, for who counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// Records that were made durable, one fsync each, and were acknowledged.
    pub journal: u64,
    /// Transactions that SQLite committed.
    pub transactions: u64,
    /// Writes that were never flushed and were acknowledged.
    pub unflushed: u64,
}

const JOBS: [(&str, &str); 3] = [
    ("records of a journal, an fsync after each", "exec bowline-guest journal /disk/journal"),
    ("transactions of SQLite", "bowline-guest sql | sqlite3 /disk/bank.db"),
    ("writes to a raw disk, never flushed", "exec bowline-guest raw /dev/disk/by-serial/raw"),
];

/// Tells the story; `tell` gets one line at a time.
///
/// # Errors
/// The first promise that is broken, or whatever else goes wrong.
pub fn run(mut setup: Setup, plot: &Plot, tell: &mut dyn FnMut(&str)) -> Result<Ending> {
    setup.pool_bytes = 4 << 30;
    setup.disks = vec![("data".into(), 1 << 30), ("raw".into(), 64 << 20)];
    let mut server = Server::start(setup)?;
    tell("A disk server is up: a pool of 4 GiB, a disk for a file system, a disk for raw writes.");
    let disk = |server: &Server, at: usize, serial: &str| Disk {
        serial: serial.into(),
        address: server.address(Transport::Unix, at),
        export: server.export(at).into(),
    };
    let started = Instant::now();
    let mut guest = Guest::boot(&[disk(&server, 0, "data"), disk(&server, 1, "raw")])?;
    let kernel = guest.run("uname -r")?;
    tell(&format!(
        "A Linux guest has booted in {:.1} s (kernel {kernel}, QEMU process {}).",
        started.elapsed().as_secs_f64(),
        guest.pid()
    ));
    let make = match plot.file_system.as_str() {
        "ext4" => "mkfs.ext4 -q".to_string(),
        other => format!("mkfs.{other} -q -f"),
    };
    let device = "/dev/disk/by-serial/data";
    guest.run(&format!("{make} {device} && mount {device} /disk"))?;
    tell(&format!("It has made an {} file system and starts three jobs.", plot.file_system));
    let mut jobs = Vec::new();
    for (_, command) in JOBS {
        jobs.push(guest.start(command)?);
    }
    for round in 1..=plot.kills {
        progress(&guest, &jobs, plot.records)?;
        let before = figures(&guest, &jobs);
        tell("");
        tell(&format!("Kill {round}: kill -9 of every process of the server, now."));
        let started = Instant::now();
        server.crash(Crash::Process)?;
        for ((name, _), number) in JOBS.iter().zip(&before) {
            tell(&format!("  {number:>8} {name}: acknowledged so far"));
        }
        server.serve()?;
        progress(&guest, &jobs, 1)?;
        let seconds = started.elapsed().as_secs_f64();
        tell(&format!("  The server is back; the guest's jobs go on after {seconds:.1} s."));
    }
    progress(&guest, &jobs, plot.records)?;
    tell("");
    let ending = check(&mut guest, &jobs, plot, tell)?;
    drop(guest);
    server.stop()?;
    server.check()?;
    tell("  pool:         every block of it is what was written");
    Ok(ending)
}

fn figures(guest: &Guest, jobs: &[Job]) -> Vec<u64> {
    jobs.iter().map(|&job| guest.acknowledged(job)).collect()
}

fn progress(guest: &Guest, jobs: &[Job], records: u64) -> Result<()> {
    let from = figures(guest, jobs);
    jobs.iter().zip(from).try_for_each(|(&job, from)| guest.reach(job, from + records))
}

fn check(
    guest: &mut Guest,
    jobs: &[Job],
    plot: &Plot,
    tell: &mut dyn FnMut(&str),
) -> Result<Ending> {
    // The pattern does not match the command line that it stands in.
    guest.run("pkill -f '[b]owline-guest (journal|raw|sql)'")?;
    for &job in jobs {
        guest.end(job).map(|_| ()).or_else(|error| match error.to_string() {
            killed if killed.starts_with("a command was killed") => Ok(()),
            _ => Err(error),
        })?;
    }
    let figures = figures(guest, jobs);
    let ending = Ending { journal: figures[0], transactions: figures[1], unflushed: figures[2] };
    tell("The jobs are stopped. Is everything there that the guest was told is written?");
    let Ending { journal, transactions, unflushed } = ending;
    let found = guest.run(&format!("bowline-guest journal-check /disk/journal {journal}"))?;
    tell(&format!("  journal:      {journal} acknowledged, {found} there"));
    let count = "PRAGMA integrity_check; SELECT count(*), max(id) FROM account;";
    let said = guest.run(&format!("sqlite3 /disk/bank.db '{count}'"))?;
    let found = bank(&said, transactions)?;
    tell(&format!("  SQLite:       {transactions} acknowledged, {found} there, integrity ok"));
    let device = "/dev/disk/by-serial/raw";
    let blocks = guest.run(&format!("bowline-guest raw-check {device} {unflushed}"))?;
    tell(&format!(
        "  raw writes:   {unflushed} acknowledged and never flushed, all {blocks} blocks right"
    ));
    let mounted = "/dev/disk/by-serial/data";
    let check = match plot.file_system.as_str() {
        "ext4" => "e2fsck -fn",
        "xfs" => "xfs_repair -n",
        _ => "btrfs check --readonly",
    };
    guest.run(&format!("umount /disk && {check} {mounted}"))?;
    tell(&format!("  file system:  {check} finds nothing to repair"));
    Ok(ending)
}

/// The number of accounts, if the database is whole and has all that were acknowledged.
pub(crate) fn bank(said: &str, acknowledged: u64) -> Result<u64> {
    let mut lines = said.lines();
    let (whole, numbers) = (lines.next(), lines.next().unwrap_or_default());
    let (count, last) = numbers.split_once('|').unwrap_or(("0", "0"));
    let (count, last): (u64, u64) = (count.parse()?, last.parse().unwrap_or(0));
    if whole != Some("ok") || count < acknowledged || count != last {
        return Err(format!("SQLite: {acknowledged} were acknowledged, found: {said}").into());
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_that_lost_something_is_caught() {
        assert_eq!(bank("ok\n7|7", 6).unwrap(), 7);
        for (said, acknowledged) in
            [("ok\n7|7", 8), ("ok\n6|7", 5), ("row 3 missing\n7|7", 7), ("", 0), ("ok\n0|", 1)]
        {
            assert!(bank(said, acknowledged).is_err(), "{said}");
        }
    }
}
