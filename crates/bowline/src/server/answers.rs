//! What the control plane asks and orders, answered from the live store.
//!
//! What changes the catalogue is a record of the log: it is answered when that is durable, and the
//! loop goes on meanwhile.

use std::path::Path;

use bowline_disk::IoError;
use bowline_store::{Disk, DiskId, Durability, LossLimits, Provision, StoreError, Ticket};

use super::command::{Asker, Command, Commands, Reply};
use super::data::Data;
use crate::control::api::{
    self, DiskChange, DiskCreate, DiskStatus, GrowPool, Kind, PoolStatus, Problem, Repair, Resume,
};
use crate::control::service::no_disk;

/// An answer that waits until a change is durable.
pub(super) enum Pending {
    /// A disk that was made or changed.
    Disk(DiskId, Reply<DiskStatus>),
    /// A pool that was enlarged.
    Pool(Reply<PoolStatus>),
    /// A disk that was destroyed, as it was last.
    Destroyed(Box<DiskStatus>, Reply<DiskStatus>),
}

/// What becomes of an order to write again.
enum Resuming {
    /// The pool writes.
    NotNeeded,
    /// What is not flushed is being written again.
    Begun,
    /// The pool has to be opened anew for that.
    Anew,
}

fn cannot_resume(error: &StoreError) -> Problem {
    refused("the pool cannot write again", error)
}

impl Data {
    pub(super) fn answer(&mut self, command: Command, commands: &Commands) {
        match command {
            Command::Status(reply) => reply.send(Ok(self.server_status())),
            Command::Scrub(order, reply) => reply.send(self.order_scrub(order)),
            Command::Grow(GrowPool { size_bytes: Some(bytes) }, reply) => {
                self.enlarge_elsewhere(bytes, reply, commands.asker());
            }
            Command::Grow(GrowPool { size_bytes: None }, reply) => match self.grow() {
                Ok(()) => self.persist(Pending::Pool(reply)),
                Err(problem) => reply.send(Err(problem)),
            },
            Command::Resume(order, reply) => match self.resume(order) {
                Ok(Resuming::Anew) => self.reopen(reply),
                Ok(Resuming::Begun) => self.resuming.push(reply),
                Ok(Resuming::NotNeeded) => reply.send(Ok(self.pool_status())),
                Err(problem) => reply.send(Err(problem)),
            },
            Command::Repair(order, reply) => reply.send(Err(self.repair(order))),
            Command::CreateDisk(order, reply) => {
                let made = self.create_disk(&order);
                self.when_durable(made, reply);
            }
            Command::ChangeDisk(name, change, reply) => {
                let changed = self.change_disk(&name, &change);
                self.when_durable(changed, reply);
            }
            Command::DestroyDisk(name, reply) => self.destroy_disk(&name, reply),
            Command::Stop(reply) => self.stop(reply),
        }
    }

    /// Answers a change when it is durable.
    fn when_durable(&mut self, change: Result<DiskId, Problem>, reply: Reply<DiskStatus>) {
        match change {
            Err(problem) => reply.send(Err(problem)),
            Ok(disk) => {
                self.offer_disks();
                self.persist(Pending::Disk(disk, reply));
            }
        }
    }

    fn persist(&mut self, pending: Pending) {
        let ticket = self.ticket();
        self.pending.insert(ticket, pending);
        self.disks.persist_all(ticket);
    }

    /// A change of ours is durable, or never will be.
    pub(super) fn made_durable(&mut self, ticket: Ticket, result: Result<(), IoError>) {
        let Some(pending) = self.pending.remove(&ticket) else { return };
        let failed = |error: &IoError| {
            Problem::new(Kind::Failed, "the change is not durable").why(error.to_string())
        };
        match pending {
            Pending::Disk(disk, reply) => reply.send(match result {
                Ok(()) => self.disk_status(disk).ok_or_else(|| no_disk(&disk.to_string())),
                Err(error) => Err(failed(&error)),
            }),
            Pending::Pool(reply) => {
                reply.send(result.map(|()| self.pool_status()).map_err(|error| failed(&error)));
            }
            Pending::Destroyed(last, reply) => {
                reply.send(result.map(|()| *last).map_err(|error| failed(&error)));
            }
        }
    }

    fn find(&self, name: &str) -> Result<Disk, Problem> {
        self.disks.store().disk_by_name(name).cloned().ok_or_else(|| no_disk(name))
    }

    fn create_disk(&mut self, order: &DiskCreate) -> Result<DiskId, Problem> {
        let name = &order.name;
        if order.provision != api::Provision::Thin {
            return Err(no_reservation(order.provision));
        }
        if self.disks.store().disk_by_name(name).is_some() {
            return Err(Problem::new(Kind::Exists, format!("there is a disk {name:?} already"))
                .next(format!("bowline disk show {name}")));
        }
        let durability = durability(order.durability);
        let store = self.disks.store_mut();
        let made = store.create_disk(name, order.size_bytes, durability, Provision::Thin);
        made.map_err(|error| refused(&format!("cannot make disk {name:?}"), &error))
    }

    fn change_disk(&mut self, name: &str, change: &DiskChange) -> Result<DiskId, Problem> {
        let old = self.find(name)?;
        let bytes = change.size_bytes.unwrap_or(old.bytes);
        if bytes < old.bytes && !change.shrink {
            let what = format!("disk {name:?} would lose what lies past its new end");
            return Err(Problem::new(Kind::Usage, what).next("say --shrink if that is meant"));
        }
        let loss_limits = LossLimits {
            loss_ms_max: change.max_loss_ms.unwrap_or(old.loss_limits.loss_ms_max),
            loss_bytes_max: change.max_loss_bytes.unwrap_or(old.loss_limits.loss_bytes_max),
        };
        let changed = Disk {
            bytes,
            durability: change.durability.map_or(old.durability, durability),
            read_only: change.read_only.unwrap_or(old.read_only),
            loss_limits,
            ..old.clone()
        };
        if changed != old {
            let store = self.disks.store_mut();
            let result = store.change_disk(changed);
            result.map_err(|error| refused(&format!("cannot change disk {name:?}"), &error))?;
            self.disks.set_loss_limits(old.id, loss_limits);
        }
        Ok(old.id)
    }

    fn destroy_disk(&mut self, name: &str, reply: Reply<DiskStatus>) {
        let last = self.find(name).and_then(|disk| {
            let last = self.disk_status(disk.id).ok_or_else(|| no_disk(name))?;
            let destroyed = self.disks.store_mut().destroy_disk(disk.id);
            destroyed.map_err(|e| refused(&format!("cannot destroy disk {name:?}"), &e))?;
            Ok(last)
        });
        match last {
            Err(problem) => reply.send(Err(problem)),
            Ok(last) => {
                self.offer_disks();
                self.persist(Pending::Destroyed(Box::new(last), reply));
            }
        }
    }

    /// Makes the pool's file larger, and durably so before the log says that it is. That waits for
    /// the file system, so another thread does it, and asks for the growth when it is done.
    fn enlarge_elsewhere(&self, bytes: u64, reply: Reply<PoolStatus>, asker: Asker) {
        let path = self.config.pool.clone();
        let enlarge = move || match enlarge(&path, bytes) {
            Ok(()) => {
                // If nobody takes it any more, whoever asked is told that the server stops.
                asker.post(Command::Grow(GrowPool { size_bytes: None }, reply));
            }
            Err(problem) => reply.send(Err(problem)),
        };
        if let Err(error) = std::thread::Builder::new().name("enlarge".into()).spawn(enlarge) {
            tracing::warn!(%error, "no thread to enlarge the pool's file");
        }
    }

    /// Uses what the file or device has.
    fn grow(&mut self) -> Result<(), Problem> {
        let grown = self.disks.store_mut().grow();
        grown.map(|_| ()).map_err(|error| cannot_grow(&self.config.pool, &error))
    }

    /// Begins to write again.
    fn resume(&mut self, order: Resume) -> Result<Resuming, Problem> {
        let degraded = |what: &str| Problem::new(Kind::Degraded, what);
        match self.pool_status().state {
            api::PoolState::Well | api::PoolState::Degraded => Ok(Resuming::NotNeeded),
            api::PoolState::LostWrites if order.accept_loss => Ok(Resuming::Anew),
            api::PoolState::LostWrites => Err(degraded("acknowledged writes were lost")
                .next("check the guests' file systems, then add --accept-loss")),
            api::PoolState::Stopped => match self.disks.store_mut().resume() {
                Ok(()) => Ok(Resuming::Begun),
                Err(error) => Err(cannot_resume(&error)),
            },
            api::PoolState::Damaged => {
                Err(degraded("the pool is damaged").next("bowline stop, then bowline pool check"))
            }
        }
    }

    /// Answers whoever waits for the pool to write again, when it does or cannot.
    pub(super) fn answer_resuming(&mut self) {
        if self.resuming.is_empty() {
            return;
        }
        let Some(result) = self.disks.store_mut().resumed() else { return };
        for reply in std::mem::take(&mut self.resuming) {
            reply.send(match &result {
                Ok(()) => Ok(self.pool_status()),
                Err(error) => Err(cannot_resume(error)),
            });
        }
    }

    /// Never: a repair decides what is given up, and nobody may write or read meanwhile.
    fn repair(&self, order: Repair) -> Problem {
        let path = self.config.pool.display();
        let yes = if order.apply { " --yes" } else { "" };
        Problem::new(Kind::Busy, format!("{path} cannot be repaired while it is served"))
            .why("a repair needs the pool for itself")
            .next(format!("bowline stop, then bowline pool repair {path}{yes}"))
    }
}

/// Makes a pool's file larger.
fn enlarge(path: &Path, bytes: u64) -> Result<(), Problem> {
    let failed = |error: std::io::Error| cannot_grow(path, &error);
    let file = std::fs::File::options().write(true).open(path).map_err(failed)?;
    let now = file.metadata().map_err(failed)?;
    if !now.is_file() {
        let what = "a device is used as large as it is";
        return Err(Problem::new(Kind::Usage, what).next("leave --size out"));
    }
    if bytes <= now.len() {
        let what = format!("{} has {} bytes already", path.display(), now.len());
        return Err(Problem::new(Kind::Usage, what));
    }
    file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

fn cannot_grow(path: &Path, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Kind::Failed, format!("cannot grow {}", path.display())).why(error.to_string())
}

fn refused(what: &str, error: &StoreError) -> Problem {
    let kind = match error {
        StoreError::Invalid(_) => Kind::Usage,
        _ => Kind::Failed,
    };
    Problem::new(kind, what).why(error.to_string())
}

/// What is not reserved is not called reserved.
fn no_reservation(provision: api::Provision) -> Problem {
    let word = if provision == api::Provision::Lazy { "lazy" } else { "eager" };
    let what = format!("--provision {word} is not known to this version");
    Problem::new(Kind::Usage, what)
        .why("no space can be set aside for one disk yet: what one does not use, another may take")
        .next("leave it out: the disk takes space as it is written")
}

fn durability(word: api::Durability) -> Durability {
    match word {
        api::Durability::Strict => Durability::Strict,
        api::Durability::Hinted => Durability::Hinted,
        api::Durability::Ordered => Durability::Ordered,
        api::Durability::Sync => Durability::Sync,
    }
}
