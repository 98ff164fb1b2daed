//! How everything is, from the live store, disks and sessions.

use bowline_arena::PAGE_BYTES;
use bowline_disk::{Latencies, Usage};
use bowline_export::Counters;
use bowline_store::{Disk, DiskId, Durability, PoolState as StoreState, Provision};

use super::data::Data;
use crate::control::api::{
    self, Allocation, Buffers, Condition, DiskCounters, DiskStatus, Export, Latency, Loss,
    PoolCounters, PoolState, PoolStatus, Process, Processes, ServerStatus, Space, Takeover,
};
use crate::size::Size;

/// From here on a pool is called nearly full.
const FULL_PERCENT: u64 = 85;

impl Data {
    /// The whole server.
    pub(super) fn server_status(&self) -> ServerStatus {
        let pool = self.pool_status();
        let exports = self.listeners.iter().zip(&self.connections);
        let mut disks: Vec<DiskStatus> =
            self.disks.store().disks().map(|disk| self.status_of(disk)).collect();
        disks.sort_by(|one, other| one.name.cmp(&other.name));
        ServerStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs(),
            state: pool.state,
            conditions: self.notes.clone(),
            processes: self.processes(),
            takeover: self.takeover(),
            medium: self.medium_name.into(),
            sockets: self.sockets.name().into(),
            exports: exports
                .map(|(listener, connections)| Export {
                    protocol: "nbd".into(),
                    address: listener.address.to_string(),
                    connections: connections.now,
                    connections_opened: connections.opened,
                })
                .collect(),
            memory_bytes: resident_bytes(),
            buffers: self.buffers(),
            stall_max_us: self.turns.longest_us,
            turns: self.turns.count,
            pool,
            disks,
        }
    }

    fn processes(&self) -> Processes {
        let active = Some(Process { pid: std::process::id() });
        let family = self.membership.as_ref().map(|one| one.processes).unwrap_or_default();
        Processes { active, ..family }
    }

    fn takeover(&self) -> Takeover {
        let not = |reason: &str| Takeover { ready: false, reason: reason.into() };
        match &self.membership {
            None => not("no partner is running"),
            Some(_) if self.sockets.name() != "io_uring" => {
                not("without io_uring nobody can tell how far a socket is")
            }
            Some(membership) => membership.takeover.clone(),
        }
    }

    fn buffers(&self) -> Buffers {
        let pages = self.pages.borrow();
        let bytes = |pages: u32| u64::from(pages) * u64::from(PAGE_BYTES);
        Buffers {
            bytes: bytes(pages.count()),
            used_bytes: bytes(pages.count() - pages.free()),
            connections_bytes: self.nbd.held_bytes(),
        }
    }

    /// The pool.
    pub(super) fn pool_status(&self) -> PoolStatus {
        let store = self.disks.store();
        let status = store.status();
        let (space, count) = (status.space, status.counters);
        let (state, conditions) = self.conditions(&status);
        PoolStatus {
            path: self.config.pool.display().to_string(),
            id: format!("{:032x}", self.header.pool.0),
            allocation: allocation(&self.config.pool),
            state,
            conditions,
            size_bytes: space.capacity_bytes,
            space: Space {
                logical_bytes: space.logical_bytes,
                mapped_bytes: space.mapped_bytes,
                shared_bytes: space.shared_bytes,
                physical_bytes: space.physical_bytes,
                reclaimable_bytes: space.reclaimable_bytes,
                pending_free_bytes: space.pending_free_bytes,
            },
            epoch: status.epoch,
            sequence_admitted: store.admitted_through().0,
            tables_bytes: status.tables_bytes as u64,
            sequence_durable: store.durable_through().0,
            scrub: self.scrub_status(),
            counters: PoolCounters {
                log_batches: count.batches,
                log_bytes: count.log_bytes,
                map_bytes: count.map_bytes,
                compaction_bytes: count.image_bytes,
                checkpoints: count.checkpoints,
                media_flushes: count.media_flushes,
                checksum_errors: count.checksum_errors,
                media_errors: count.read_errors,
            },
        }
    }

    /// What is to be known of the pool, and its state with that.
    pub(super) fn conditions(&self, status: &bowline_store::Status) -> (PoolState, Vec<Condition>) {
        let space = status.space;
        let (mut state, mut conditions) = writes(status);
        if status.unmovable_slots > 0 {
            conditions.push(unmovable(status.unmovable_slots));
            state = if state == PoolState::Well { PoolState::Degraded } else { state };
        }
        let scrub = self.disks.store().scrub();
        if scrub.findings_total() > 0 {
            conditions.push(scrub_findings(&scrub));
            state = if state == PoolState::Well { PoolState::Degraded } else { state };
        }
        if status.is_below_full {
            conditions.push(space_below());
            state = if state == PoolState::Well { PoolState::Degraded } else { state };
        }
        let limit = space.limit_bytes;
        if space.mapped_bytes.saturating_mul(100) >= limit.saturating_mul(FULL_PERCENT) {
            conditions.push(space_low(space.mapped_bytes, limit));
            state = if state == PoolState::Well { PoolState::Degraded } else { state };
        }
        (state, conditions)
    }

    /// One disk, if it is there.
    pub(super) fn disk_status(&self, id: DiskId) -> Option<DiskStatus> {
        self.disks.store().disk(id).map(|disk| self.status_of(disk))
    }

    fn status_of(&self, disk: &Disk) -> DiskStatus {
        let (loss, limits) = (self.disks.loss(disk.id), disk.loss_limits);
        let mapped = self.disks.store().mapped(disk);
        let of_disk = self.nbd.sessions().filter(|session| session.disk == Some(disk.id));
        DiskStatus {
            name: disk.name.clone(),
            id: disk.id.0,
            size_bytes: disk.bytes,
            mapped_bytes: mapped.bytes,
            changed_bytes: mapped.changed_bytes,
            durability: match disk.durability {
                Durability::Strict => api::Durability::Strict,
                Durability::Hinted => api::Durability::Hinted,
                Durability::Ordered => api::Durability::Ordered,
                Durability::Sync => api::Durability::Sync,
            },
            provision: match disk.provision {
                Provision::Thin => api::Provision::Thin,
                Provision::Lazy => api::Provision::Lazy,
                Provision::Eager => api::Provision::Eager,
            },
            read_only: disk.read_only,
            connections: of_disk.count() as u64,
            uris: self.listeners.iter().map(|one| one.address.uri(&disk.name)).collect(),
            loss: Loss {
                unflushed_bytes: loss.bytes,
                unflushed_age_ms: loss.age_micros / 1000,
                max_loss_ms: limits.loss_ms_max,
                max_loss_bytes: limits.loss_bytes_max,
            },
            counters: counters(&self.nbd.disk_counters(disk.id), &self.disks.usage(disk.id)),
        }
    }
}

fn counters(count: &Counters, usage: &Usage) -> DiskCounters {
    DiskCounters {
        read_operations: count.reads,
        read_bytes: count.read_bytes,
        write_operations: count.writes,
        write_bytes: count.write_bytes,
        discard_operations: count.trims,
        discard_bytes: usage.discarded_bytes,
        zero_operations: count.zeroes,
        zero_bytes: usage.zeroed_bytes,
        flush_operations: count.flushes,
        error_operations: count.errors,
        read_latency: latency(&usage.reads),
        write_latency: latency(&usage.writes),
        flush_latency: latency(&usage.flushes),
    }
}

/// As a document has it: classes up to the last that is not empty.
fn latency(latencies: &Latencies) -> Latency {
    let used = latencies.below_power_of_two.iter().rposition(|count| *count > 0);
    let used = used.map_or(0, |last| last + 1);
    Latency {
        below_power_of_two_us: latencies.below_power_of_two.iter().take(used).copied().collect(),
        sum_us: latencies.sum_micros,
    }
}

/// Where the pool has its space from. What the file system says is taken is as good as any memory
/// of ours: a file may be filled up behind our back, and is by the store.
fn allocation(path: &std::path::Path) -> Allocation {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    match std::fs::metadata(path) {
        Ok(pool) if pool.file_type().is_block_device() => Allocation::Device,
        Ok(pool) if pool.blocks() * 512 >= pool.len() => Allocation::Preallocated,
        _ => Allocation::Sparse,
    }
}

/// Memory of this process that is in use, by the kernel's counters: cheap enough to ask here.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kibibytes.unwrap_or(0u64) << 10
}

fn condition(name: &str, meaning: String, doing: &str, remedy: &str) -> Condition {
    Condition { name: name.into(), meaning, doing: doing.into(), remedy: remedy.into() }
}

/// Whether writes go on, and what is to be known of that.
fn writes(status: &bowline_store::Status) -> (PoolState, Vec<Condition>) {
    let remedy = status.state.remedy();
    let (state, condition) = match &status.state {
        StoreState::Healthy if status.healing.is_some() => (PoolState::Degraded, healing()),
        StoreState::Healthy => return (PoolState::Well, Vec::new()),
        StoreState::Stopped(cause) => (PoolState::Stopped, stopped(cause, remedy)),
        StoreState::Damaged(cause) => (PoolState::Damaged, damaged(cause, remedy)),
        StoreState::LostWrites(cause) => (PoolState::LostWrites, lost_writes(cause, remedy)),
    };
    (state, vec![condition])
}

fn stopped(cause: &str, remedy: &str) -> Condition {
    let meaning = format!("writes are refused, guests get errors: {cause}");
    let doing = "reads go on; what was acknowledged and is not flushed stays in the arena, and is \
                 written again by `bowline pool resume` or the next start";
    condition("stopped", meaning, doing, remedy)
}

fn damaged(cause: &str, remedy: &str) -> Condition {
    let meaning = format!("writes are refused, some data may be missing: {cause}");
    let doing = "reads go on, each verified; nothing is written, and nothing cut off";
    condition("damaged", meaning, doing, remedy)
}

fn lost_writes(cause: &str, remedy: &str) -> Condition {
    let doing = "writes are refused until the loss is accepted; reads go on";
    condition("lost-writes", cause.to_owned(), doing, remedy)
}

fn healing() -> Condition {
    let meaning = "a write of the log failed twice: the medium has a fault there";
    let doing = "what is not flushed is being written elsewhere; writes and flushes wait for that";
    let remedy = "none now; look into the system's log for errors of the device";
    condition("writing-elsewhere", meaning.into(), doing, remedy)
}

fn unmovable(slots: usize) -> Condition {
    let meaning =
        format!("{slots} slots hold a block that cannot be read or is not what was written");
    let doing =
        "reads of such blocks fail; compaction leaves their slots alone and goes on elsewhere";
    let remedy = "run `bowline pool scrub`, which names the blocks; write or discard them, or stop \
                  the server and run `bowline pool repair`; replace the medium if there are more \
                  and more";
    condition("slots-unmovable", meaning, doing, remedy)
}

fn space_below() -> Condition {
    let meaning = "the file system of the pool has no space left: the pool cannot become larger";
    let doing = "what was acknowledged has its space; writes are taken while dead space can be won";
    let remedy = "free space on that file system; writes go on by themselves";
    condition("space-below", meaning.into(), doing, remedy)
}

fn space_low(mapped_bytes: u64, limit_bytes: u64) -> Condition {
    let (mapped, limit) = (Size(mapped_bytes), Size(limit_bytes));
    let meaning = format!(
        "{mapped} of the {limit} that the pool can hold are taken: at the limit guests' writes fail"
    );
    let doing = "dead space is compacted; writes are taken until live data is at the limit";
    let remedy = "discard data in the guests, destroy disks, or `bowline pool grow`";
    condition("space-low", meaning, doing, remedy)
}

fn scrub_findings(scrub: &bowline_store::ScrubStatus) -> Condition {
    let (total, lost) = (scrub.findings_total(), scrub.lost);
    if lost > 0 {
        let meaning = format!("{lost} places with data of disks are not what was written");
        let doing = "reads of them fail, and never give wrong data; everything else is served";
        let remedy = "see what and where under scrub; restore it from a copy, then scrub again";
        return condition("data-damaged", meaning, doing, remedy);
    }
    let meaning = format!("the medium changed bytes in {total} places; no data is lost by it");
    let doing = "what has a second copy was written again, the rest goes when slots are emptied";
    let remedy = "find out why (cable, memory, device), then scrub again: that takes this away";
    condition("medium-changed-bytes", meaning, doing, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads a condition learns what it means, what goes on, and what is his to do.
    #[test]
    fn every_condition_says_what_to_do() {
        let states = [
            StoreState::Stopped("why".into()),
            StoreState::Damaged("why".into()),
            StoreState::LostWrites("why".into()),
        ];
        let [stop, damage, loss] = states.map(|state| state.remedy());
        let mut scrub = bowline_store::ScrubStatus { harmless: 2, ..Default::default() };
        let harmless = scrub_findings(&scrub);
        scrub.lost = 3;
        let conditions = [
            stopped("why", stop),
            damaged("why", damage),
            lost_writes("why", loss),
            healing(),
            unmovable(2),
            space_low(9 << 30, 10 << 30),
            harmless,
            scrub_findings(&scrub),
        ];
        let mut names: Vec<&str> = conditions.iter().map(|one| one.name.as_str()).collect();
        names.dedup();
        assert_eq!(names.len(), conditions.len());
        for one in &conditions {
            for words in [&one.meaning, &one.doing, &one.remedy] {
                assert!(!words.is_empty() && !words.contains("  "), "{one:?}");
            }
        }
        for (condition, command) in conditions.iter().zip(["pool resume", "pool check", "--accept"])
        {
            assert!(condition.remedy.contains(command), "{condition:?}");
            assert!(condition.meaning.contains("why"), "{condition:?}");
        }
    }
}
