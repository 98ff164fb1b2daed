//! Pools.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Condition;

/// How a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PoolState {
    /// Nothing is wrong.
    #[default]
    Well,
    /// It works; something needs a look.
    Degraded,
    /// The host lost its arena: acknowledged writes may be missing, so none are taken.
    LostWrites,
    /// The medium failed a flush or ran out: reads go on, writes wait for `pool resume`.
    Stopped,
    /// Its content contradicts itself: it is read only until `pool repair`.
    Damaged,
}

impl PoolState {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            PoolState::Well => "well",
            PoolState::Degraded => "degraded",
            PoolState::LostWrites => "lost-writes",
            PoolState::Stopped => "stopped",
            PoolState::Damaged => "damaged",
        }
    }

    /// Every state there is.
    pub const ALL: [PoolState; 5] = [
        PoolState::Well,
        PoolState::Degraded,
        PoolState::LostWrites,
        PoolState::Stopped,
        PoolState::Damaged,
    ];
}

/// Where a pool has its space from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    /// A file that takes space of its file system as slots are opened: that may run out.
    #[default]
    Sparse,
    /// A file that has all its space.
    Preallocated,
    /// A raw device.
    Device,
}

impl Allocation {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Allocation::Sparse => "sparse",
            Allocation::Preallocated => "preallocated",
            Allocation::Device => "device",
        }
    }
}

/// Where the space is. The same words everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// What the disks could hold at most: the sum of their sizes.
    pub logical_bytes: u64,
    /// What they hold.
    pub mapped_bytes: u64,
    /// What of that is stored once for several.
    pub shared_bytes: u64,
    /// What is taken on the medium.
    pub physical_bytes: u64,
    /// What of that compaction can give back.
    pub reclaimable_bytes: u64,
    /// What is free and may be used after the next checkpoint.
    pub pending_free_bytes: u64,
}

/// What the store did since the server started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCounters {
    /// Batches written to the log.
    pub log_batches: u64,
    /// Bytes written to the log, payload and headers.
    pub log_bytes: u64,
    /// Bytes of map pages and tables written.
    pub map_bytes: u64,
    /// Bytes that compaction moved.
    pub compaction_bytes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Flushes of the medium.
    pub media_flushes: u64,
    /// Blocks whose checksum did not match when they were read.
    pub checksum_errors: u64,
    /// Reads and writes that the medium failed.
    pub media_errors: u64,
}

/// Whether a scrub runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubState {
    /// None was started since the server was.
    #[default]
    Never,
    /// It runs.
    Running,
    /// It waits to go on.
    Paused,
    /// It was stopped before its end.
    Cancelled,
    /// It came to its end.
    Finished,
}

impl ScrubState {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ScrubState::Never => "never",
            ScrubState::Running => "running",
            ScrubState::Paused => "paused",
            ScrubState::Cancelled => "cancelled",
            ScrubState::Finished => "finished",
        }
    }

    /// Every state there is.
    pub const ALL: [ScrubState; 5] = [
        ScrubState::Never,
        ScrubState::Running,
        ScrubState::Paused,
        ScrubState::Cancelled,
        ScrubState::Finished,
    ];
}

/// What a finding of a scrub costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubSeverity {
    /// It has been written again from what is sound, or will be by a checkpoint that was asked for.
    Repaired,
    /// No disk needs what is damaged.
    Harmless,
    /// Data of a disk cannot be read.
    Lost,
}

impl ScrubSeverity {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ScrubSeverity::Repaired => "repaired",
            ScrubSeverity::Harmless => "harmless",
            ScrubSeverity::Lost => "lost",
        }
    }
}

/// Something that a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFinding {
    /// What it costs.
    pub severity: ScrubSeverity,
    /// The disk it belongs to, if one is known.
    pub disk: Option<String>,
    /// Where on that disk, in bytes.
    pub offset_bytes: Option<u64>,
    /// Where on the medium.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// What is to be done.
    pub remedy: String,
}

/// How far a scrub is, or how the last one ended. Not remembered when the server stops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether it runs.
    pub state: ScrubState,
    /// Bytes read and verified.
    pub done_bytes: u64,
    /// Bytes to verify in all, as known now.
    pub total_bytes: u64,
    /// Bytes verified a second, over the last minute.
    pub rate_bytes_per_second: u64,
    /// Places that do not hold what was written, of whatever severity.
    pub bad_blocks: u64,
    /// Bytes a second at most; a quarter of it while clients are at work.
    #[serde(default)]
    pub rate_max_bytes_per_second: u64,
    /// When it began, in seconds since 1970.
    #[serde(default)]
    pub begun_at_seconds: Option<u64>,
    /// When it ended.
    #[serde(default)]
    pub ended_at_seconds: Option<u64>,
    /// How long it ran, pauses included.
    #[serde(default)]
    pub elapsed_seconds: u64,
    /// Findings that cost data.
    #[serde(default)]
    pub lost: u64,
    /// Findings that cost nothing.
    #[serde(default)]
    pub harmless: u64,
    /// Findings that were put right.
    #[serde(default)]
    pub repaired: u64,
    /// The first hundred findings.
    #[serde(default)]
    pub findings: Vec<ScrubFinding>,
}

/// A pool as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Where it is.
    pub path: String,
    /// Its identity, in hexadecimal.
    pub id: String,
    /// Where it has its space from.
    #[serde(default)]
    pub allocation: Allocation,
    /// How it is.
    pub state: PoolState,
    /// What is not well.
    pub conditions: Vec<Condition>,
    /// The size of its file or device.
    pub size_bytes: u64,
    /// Where the space is.
    pub space: Space,
    /// Memory for its tables of live blocks and directories: by the size of the pool and what is on
    /// it, not by a setting; about 270 MiB for a TiB overwritten at random.
    #[serde(default)]
    pub tables_bytes: u64,
    /// How often it was opened for writing.
    pub epoch: u64,
    /// The number of the last write that was admitted.
    pub sequence_admitted: u64,
    /// The number of the last write that is durable.
    pub sequence_durable: u64,
    /// How far a scrub is.
    pub scrub: ScrubStatus,
    /// What the store did.
    pub counters: PoolCounters,
}

/// What to do about a scrub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubAction {
    /// Start from the beginning, or go on if it is paused.
    Start,
    /// Keep the place.
    Pause,
    /// Give up.
    Stop,
}

/// An order about scrubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// What to do.
    pub action: ScrubAction,
    /// Bytes a second at most; `None`: as the server thinks fit.
    pub rate_bytes_per_second: Option<u64>,
}

/// An order to grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowPool {
    /// The new size; `None`: what the file or device has now.
    pub size_bytes: Option<u64>,
}

/// An order to write again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// Whether the operator knows that acknowledged writes were lost, and goes on all the same.
    #[serde(default)]
    pub accept_loss: bool,
}

/// An order to repair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repair {
    /// Whether to do it; otherwise it is only said what would be done.
    #[serde(default)]
    pub apply: bool,
}

/// What a repair does, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Whether it was done.
    pub applied: bool,
    /// The steps.
    pub findings: Vec<Finding>,
}

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Where: a slot, a segment, a disk and block.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// What can be done.
    pub remedy: String,
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// Everything is what was written.
    Sound,
    /// All data is there; something beside it needs a repair.
    Repairable,
    /// Data is missing or wrong.
    Damaged,
}

/// The result of `pool check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The pool.
    pub path: String,
    /// Its identity, in hexadecimal.
    pub id: String,
    /// What it comes to.
    pub verdict: Verdict,
    /// Whether it was closed in good order; if not, the next start replays its log.
    pub is_clean: bool,
    /// Slots looked through.
    pub slots: u64,
    /// Segments found in them.
    pub segments: u64,
    /// Disks in the catalogue.
    pub disks: u64,
    /// Bytes whose checksum was verified.
    pub verified_bytes: u64,
    /// The last write that is in the pool.
    pub sequence_last: u64,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// A pool that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCreated {
    /// Where it is.
    pub path: String,
    /// Its identity, in hexadecimal.
    pub id: String,
    /// Its size.
    pub size_bytes: u64,
}
