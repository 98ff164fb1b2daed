//! A guest works on a disk, a client of our own on another one, and all that reaches the medium is
//! written down, and which promise was given when. Half-way the server is killed and started again.
//!
//! Time is the length of the medium's log: a promise that was heard of when the log had some length
//! was given no later, so every cut behind that length owes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dice::Dice;
use super::trace::Trace;
use crate::guest::{Disk, Guest, Job};
use crate::history::{BLOCK_BYTES, History};
use crate::nbd::Client;
use crate::server::{Crash, Server, Setup, Transport};
use crate::{Result, nbd};

/// The jobs in the guest, each of which makes something durable, and says so.
pub const JOBS: [&str; 3] = [
    "exec bowline-guest journal /disk/journal",
    "exec bowline-guest churn /disk/churn",
    "bowline-guest sql | sqlite3 /disk/bank.db",
];

/// The disk of the guest. XFS is not made smaller.
pub const DISK_BYTES: u64 = 320 << 20;
/// The disk of our own client.
pub const RAW_BLOCKS: u64 = 14336;
/// A pool so small that the live data fills most of it.
pub const POOL_BYTES: u64 = 136 << 20;
const FLUSH_EVERY: u64 = 16;
const BLOCKS_MAX: u64 = 24;
const RAW_WRITER: u32 = 1;

/// What a recording is made with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `ext4`, `xfs` or `btrfs`.
    pub file_system: String,
    /// The course of our own client.
    pub seed: u64,
    /// Records of the guest's journal to wait for.
    pub records: u64,
    /// Writes of our own client, spread over that time.
    pub writes: u64,
}

/// What our own client did, with the time.
#[derive(Debug, Clone, Copy)]
enum RawEvent {
    /// A write is about to be sent: first block, blocks.
    Sent(u64, u64),
    /// A flush was answered that covered writes up to this one.
    Flushed(u64),
}

/// A recording.
pub struct Recording {
    /// The file system.
    pub file_system: String,
    /// The pool before the first entry of the log.
    pub base: Vec<u8>,
    /// What reached the medium.
    pub trace: Trace,
    /// Bytes of the pool that the disks held at the end.
    pub mapped: u64,
    /// The length of the log when every job was at work.
    pub from: u64,
    /// For each job, what it had acknowledged: time and number.
    acknowledged: [Vec<(u64, u64)>; 3],
    raw: Vec<(u64, RawEvent)>,
}

/// What must be there after a crash.
#[derive(Debug, Clone)]
pub struct Promises {
    /// For each job in the guest, the number up to which everything is there.
    pub jobs: [u64; 3],
    /// What our own client was told.
    pub raw: History,
}

impl Recording {
    /// What was promised when the log was this long.
    #[must_use]
    pub fn promises(&self, length: u64) -> Promises {
        let heard = |numbers: &Vec<(u64, u64)>| {
            let before = numbers.iter().filter(|(stamp, _)| *stamp <= length);
            before.map(|(_, number)| *number).max().unwrap_or(0)
        };
        let mut raw = History::new(RAW_WRITER);
        for (stamp, event) in &self.raw {
            match *event {
                _ if *stamp > length => break,
                RawEvent::Sent(block, blocks) => {
                    let number = raw.send(block, blocks);
                    raw.acknowledge(number);
                }
                RawEvent::Flushed(covered) => raw.flushed(covered),
            }
        }
        Promises { jobs: [0, 1, 2].map(|job| heard(&self.acknowledged[job])), raw }
    }

    /// The length of the log when this job had got on by `more` since it had this length.
    #[must_use]
    pub fn later(&self, job: usize, length: u64, more: u64) -> Option<u64> {
        let number = self.promises(length).jobs[job] + more;
        self.acknowledged[job].iter().find(|heard| heard.1 >= number).map(|heard| heard.0)
    }

    /// The length of the log when our own client had been told of so many more writes that they
    /// are durable.
    #[must_use]
    pub fn later_raw(&self, length: u64, more: u64) -> Option<u64> {
        let number = self.promises(length).raw.durable() + more;
        let is_later = |event: &RawEvent| matches!(event, RawEvent::Flushed(to) if *to >= number);
        self.raw.iter().find(|(_, event)| is_later(event)).map(|(stamp, _)| *stamp)
    }
}

/// Records.
///
/// # Errors
/// If something cannot be started, or a job fails.
pub fn record(mut setup: Setup, plan: &Plan) -> Result<Recording> {
    setup.pool_bytes = POOL_BYTES;
    setup.disks =
        vec![("data".into(), DISK_BYTES), ("raw".into(), RAW_BLOCKS * BLOCK_BYTES as u64)];
    let mut server = Server::idle(setup, &std::env::temp_dir())?;
    server.make()?;
    let base = std::fs::read(server.pool())?;
    let log = server.folder().join("medium.log");
    server.setup().arguments = filters(&log, plan.seed);
    server.serve()?;
    server.make_disks()?;
    let mut own = Own::connect(&server, &log, plan.seed)?;
    own.fill()?;
    let data = Disk {
        serial: "data".into(),
        address: server.address(Transport::Unix, 0),
        export: server.export(0).into(),
    };
    let stamped = log.clone();
    let mut guest = Guest::boot_stamped(&[data], Arc::new(move || length(&stamped)))?;
    let jobs = begin(&mut guest, &plan.file_system)?;
    let from = length(&log);
    let mut deaths = Vec::new();
    for record in 0..plan.records {
        guest.reach(jobs[0], record)?;
        if record == plan.records / 2 {
            deaths.push(restart(&mut server, &mut own)?);
        }
        let due = plan.writes * (record + 1) / plan.records;
        own.write(due)?;
    }
    guest.reach(jobs[0], plan.records)?;
    let acknowledged = jobs.map(|job| guest.numbers(job));
    let status = server.json(&["status"])?;
    let mapped = status["pool"]["space"]["mapped_bytes"].as_u64().ok_or("status names no space")?;
    drop(guest);
    server.crash(Crash::Process)?;
    let trace = Trace::read(&log, &deaths)?;
    let Plan { file_system, .. } = plan.clone();
    Ok(Recording { file_system, base, trace, mapped, from, acknowledged, raw: own.events })
}

/// Media differ in how much they have in flight for a crash to lose.
fn filters(log: &Path, seed: u64) -> Vec<String> {
    let slow: &[&str] = match seed % 4 {
        0 => &["flush-delay=16ms"],
        1 | 2 => &["flush-delay=4ms"],
        _ => &["delay=write:2ms", "flush-delay=4ms"],
    };
    let log = format!("log={}", log.display());
    let filters = std::iter::once(log.as_str()).chain(slow.iter().copied());
    filters.flat_map(|filter| ["--media-filter".to_string(), filter.to_string()]).collect()
}

/// Kills the server and starts it again, with its arena; the guest waits. The length of the log
/// between the two.
fn restart(server: &mut Server, own: &mut Own) -> Result<u64> {
    server.crash(Crash::Process)?;
    // The last entry may be cut short, and is not to stand before the next one.
    let log = Trace::read(&own.log, &[])?.length;
    std::fs::File::options().write(true).open(&own.log)?.set_len(log)?;
    server.serve()?;
    own.client = Client::connect(&server.address(Transport::Unix, 1), server.export(1))?;
    Ok(log)
}

fn length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(u64::MAX, |found| found.len())
}

/// Makes the file system, and starts the jobs.
fn begin(guest: &mut Guest, file_system: &str) -> Result<[Job; 3]> {
    let device = "/dev/disk/by-serial/data";
    let (make, options) = match file_system {
        "ext4" => ("mkfs.ext4 -q -J size=8", "discard"),
        "xfs" => ("mkfs.xfs -q -f", "discard"),
        _ => ("mkfs.btrfs -q -f", "discard"),
    };
    guest.run(&format!("{make} {device} && mount -o {options} {device} /disk"))?;
    // Something that stays, so that space is short.
    guest.run("dd if=/dev/urandom of=/disk/filler bs=1M count=16 conv=fsync")?;
    let mut jobs = Vec::new();
    for command in JOBS {
        jobs.push(guest.start(command)?);
    }
    for &job in &jobs {
        guest.reach(job, 2)?;
    }
    jobs.try_into().map_err(|_| "there are three jobs".into())
}

/// Our own client: it waits for each reply, so that the order of its writes is known.
struct Own {
    client: Client,
    log: PathBuf,
    history: History,
    events: Vec<(u64, RawEvent)>,
    dice: Dice,
    written: u64,
}

impl Own {
    fn connect(server: &Server, log: &Path, seed: u64) -> Result<Own> {
        let client = Client::connect(&server.address(Transport::Unix, 1), server.export(1))?;
        let history = History::new(RAW_WRITER);
        let (events, dice) = (Vec::new(), Dice::new(seed));
        Ok(Own { client, log: log.to_owned(), history, events, dice, written: 0 })
    }

    /// Writes every block once.
    fn fill(&mut self) -> Result<()> {
        const STEP: u64 = 128;
        for block in (0..RAW_BLOCKS).step_by(STEP as usize) {
            self.write_one(block, STEP.min(RAW_BLOCKS - block))?;
        }
        self.flush()
    }

    /// Writes at random until this number of writes is reached.
    fn write(&mut self, number: u64) -> Result<()> {
        while self.written < number {
            self.written += 1;
            let blocks = 1 + self.dice.below(BLOCKS_MAX);
            let block = self.dice.below(RAW_BLOCKS - blocks + 1);
            self.write_one(block, blocks)?;
            if self.written.is_multiple_of(FLUSH_EVERY) {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn write_one(&mut self, block: u64, blocks: u64) -> Result<()> {
        self.events.push((length(&self.log), RawEvent::Sent(block, blocks)));
        let number = self.history.send(block, blocks);
        self.client.write(block * BLOCK_BYTES as u64, &self.history.payload(number))?;
        self.history.acknowledge(number);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let covered = self.history.covered();
        self.client.flush()?;
        self.history.flushed(covered);
        self.events.push((length(&self.log), RawEvent::Flushed(covered)));
        Ok(())
    }
}

/// Reads every block of our own client's disk.
///
/// # Errors
/// If one cannot be read.
pub fn read_raw(
    address: &nbd::Address,
    export: &str,
) -> Result<std::collections::BTreeMap<u64, Vec<u8>>> {
    const STEP: u64 = 512;
    let mut client = Client::connect(address, export)?;
    let mut found = std::collections::BTreeMap::new();
    for start in (0..RAW_BLOCKS).step_by(STEP as usize) {
        let blocks = STEP.min(RAW_BLOCKS - start);
        let data = client.read(start * BLOCK_BYTES as u64, blocks as u32 * BLOCK_BYTES as u32)?;
        for (at, block) in data.chunks(BLOCK_BYTES).enumerate() {
            found.insert(start + at as u64, block.to_vec());
        }
    }
    client.disconnect();
    Ok(found)
}
