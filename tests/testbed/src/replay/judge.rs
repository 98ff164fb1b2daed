//! Recovers crash states with the real server, and holds them against the promises.
//!
//! One guest checks all states. Its disks are *lanes*: sockets behind which one server after the
//! other appears, each with another state. QEMU comes back by itself, so a check costs no boot.
//! While the guest checks one lane, the host prepares the others.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::record::{self, DISK_BYTES, Promises, RAW_BLOCKS};
use crate::Result;
use crate::guest::{Disk, Guest};
use crate::history::BLOCK_BYTES;
use crate::server::{Crash, Server, Setup, Transport};
use crate::story::bank;
use crate::tool::until;

/// Servers that states are recovered with.
pub struct Lane {
    server: Server,
    serial: String,
}

/// The guest that checks file systems: one at a time, as no two of them may be the same one.
pub struct Checker(Mutex<Guest>);

/// A place for pools that is fast, if there is room.
fn place() -> PathBuf {
    let shared = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(shared).map_or(0, |found| found.f_bavail * found.f_frsize);
    if room > 4 << 30 { shared.to_owned() } else { std::env::temp_dir() }
}

/// Lanes, and a guest that has them as disks.
///
/// # Errors
/// If something does not come up.
pub fn open(setup: &Setup, lanes: usize) -> Result<(Vec<Lane>, Checker)> {
    let mut opened = Vec::new();
    for at in 0..lanes {
        let mut setup = setup.clone();
        setup.disks =
            vec![("data".into(), DISK_BYTES), ("raw".into(), RAW_BLOCKS * BLOCK_BYTES as u64)];
        // The arena of a host that died is gone, and this host lives: it has to be told.
        setup.arguments = vec!["--accept-loss".into(), "--memory".into(), "96M".into()];
        let mut server = Server::idle(setup, &place())?;
        server.make()?;
        server.serve()?;
        server.make_disks()?;
        opened.push(Lane { server, serial: format!("lane{at}") });
    }
    let disks: Vec<Disk> = opened.iter().map(Lane::disk).collect();
    let guest = Guest::boot(&disks)?;
    for lane in &mut opened {
        lane.server.crash(Crash::Host)?;
    }
    Ok((opened, Checker(Mutex::new(guest))))
}

impl Lane {
    fn disk(&self) -> Disk {
        Disk {
            serial: self.serial.clone(),
            address: self.server.address(Transport::Unix, 0),
            export: self.server.export(0).into(),
        }
    }

    /// Where the next state belongs.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.server.pool()
    }

    /// Recovers the state, and writes down what reaches the medium meanwhile. The host dies again
    /// when the recovery is over.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn recover_logged(&mut self, log: &Path) -> Result<()> {
        let filter = ["--media-filter".to_string(), format!("log={}", log.display())];
        self.server.setup().arguments.extend(filter);
        let recovered = self.recover();
        let arguments = &mut self.server.setup().arguments;
        arguments.truncate(arguments.len() - 2);
        self.server.crash(Crash::Host)?;
        recovered
    }

    /// Starts the server; the pool must be well.
    fn recover(&mut self) -> Result<()> {
        self.server.crash(Crash::Host)?;
        self.server.spawn()?;
        let mut state = String::new();
        until("the server answers", Duration::from_secs(60), || {
            let status = self.server.json(&["status"]).unwrap_or_default();
            state = status["pool"]["state"].as_str().unwrap_or_default().to_string();
            !state.is_empty() || self.server.is_dead()
        })?;
        if state != "well" {
            let state = if state.is_empty() { "refused" } else { &state };
            return Err(format!("the pool is {state}\n{}", self.said()).into());
        }
        Ok(())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.server.log()).unwrap_or_default()
    }

    /// Recovers the state and checks everything: the pool, our own client's disk, the guest's.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn judge(
        &mut self,
        checker: &Checker,
        file_system: &str,
        promises: &Promises,
    ) -> Result<()> {
        let judged = self.judge_served(checker, file_system, promises);
        if judged.is_err() {
            self.server.crash(Crash::Host)?;
        }
        judged
    }

    fn judge_served(
        &mut self,
        checker: &Checker,
        file_system: &str,
        promises: &Promises,
    ) -> Result<()> {
        std::fs::write(self.server.log(), "")?;
        self.recover()?;
        let address = self.server.address(Transport::Unix, 1);
        let found = record::read_raw(&address, self.server.export(1))
            .map_err(|error| format!("our own client's disk: {error}"))?;
        promises.raw.judge_host(&found)?;
        checker.check(&self.serial, file_system, promises.jobs)?;
        self.server.stop()?;
        self.server.check()
    }
}

impl Checker {
    /// The file system's own check, and what its files hold.
    fn check(&self, serial: &str, file_system: &str, jobs: [u64; 3]) -> Result<()> {
        let mut guest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said =
            guest.run(&script(&format!("/dev/disk/by-serial/{serial}"), file_system, jobs))?;
        let lines = said.lines().filter_map(|line| line.strip_prefix("bank:"));
        bank(&lines.collect::<Vec<_>>().join("\n"), jobs[2]).map(|_| ())
    }
}

/// `fsck.xfs` and `fsck.btrfs` do nothing: a mount replays the log, then the real checkers look.
fn script(device: &str, file_system: &str, [journal, churn, _]: [u64; 3]) -> String {
    let content = format!(
        "bowline-guest journal-check /disk/journal {journal} && \
         bowline-guest churn-check /disk/churn {churn} && \
         {{ sqlite3 /disk/bank.db 'PRAGMA integrity_check; \
         SELECT count(*), max(id) FROM account;' | sed s/^/bank:/; }}"
    );
    let (before, after) = match file_system {
        "ext4" => (
            format!("{{ e2fsck -fp {device}; code=$?; [ $code -le 1 ] || exit 1$code; }}"),
            format!("e2fsck -fn {device}"),
        ),
        "xfs" => ("true".into(), format!("xfs_repair -n {device}")),
        // Of one file system btrfs knows one device only, and remembers the last one.
        _ => (
            "modprobe btrfs && btrfs device scan --forget".into(),
            format!("btrfs check --readonly {device}"),
        ),
    };
    format!(
        "{before} && mount -t {file_system} {device} /disk && {{ {content}; kept=$?; \
         umount /disk && [ $kept = 0 ] && {after}; }}"
    )
}
