//! What a store says of itself.

/// Whether a pool takes writes, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolState {
    /// Everything works.
    Healthy,
    /// Writes are refused after an error of the medium; reads go on.
    Stopped(String),
    /// Damage was found when the pool was opened: it can only be read.
    Damaged(String),
    /// The arena of an unclean epoch of this boot is gone, and acknowledged writes with it.
    LostWrites(String),
}

impl PoolState {
    /// Why writes are refused, if they are.
    pub fn refuses_writes(&self) -> Option<String> {
        match self {
            PoolState::Healthy => None,
            PoolState::Stopped(cause)
            | PoolState::Damaged(cause)
            | PoolState::LostWrites(cause) => Some(cause.clone()),
        }
    }

    /// Whether the pool writes.
    pub fn is_writing(&self) -> bool {
        *self == PoolState::Healthy
    }

    pub(crate) fn stop(&mut self, cause: &str) {
        if self.is_writing() {
            *self = PoolState::Stopped(cause.to_owned());
        }
    }

    /// One word for machines.
    pub fn word(&self) -> &'static str {
        match self {
            PoolState::Healthy => "healthy",
            PoolState::Stopped(_) => "stopped",
            PoolState::Damaged(_) => "damaged",
            PoolState::LostWrites(_) => "lost-writes",
        }
    }

    /// What an operator has to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            PoolState::Healthy => "nothing to do",
            PoolState::Stopped(_) => {
                "mend the medium (space under a sparse pool, cable, device), then run \
                 `bowline pool resume`; until then keep the host up and the arena where it is"
            }
            PoolState::Damaged(_) => {
                "copy what you need; then `bowline stop`, `bowline pool check PATH` to see what is \
                 lost, and `bowline pool repair PATH`"
            }
            PoolState::LostWrites(_) => {
                "check the guests' file systems, then run `bowline pool resume --accept-loss`, or \
                 serve the pool once with `--accept-loss`"
            }
        }
    }
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub reads: u64,
    pub reads_from_arena: u64,
    pub read_errors: u64,
    pub checksum_errors: u64,
    pub written_bytes: u64,
    pub batches: u64,
    pub segments: u64,
    pub log_bytes: u64,
    pub map_bytes: u64,
    pub image_bytes: u64,
    pub flush_requests: u64,
    pub media_flushes: u64,
    pub busy: u64,
    pub checkpoints: u64,
    pub slots_compacted: u64,
    pub slots_freed: u64,
    /// Writes of the log that failed and were tried again in place.
    pub write_retries: u64,
    /// Times everything in the arena was written elsewhere after the medium had failed.
    pub heals: u64,
    /// Batches found in the arena and written again when the pool was opened.
    pub batches_adopted: u64,
    /// 1 if this start went on in place where a process had died, and read nothing of the log.
    pub went_on_in_place: u64,
    /// Batches of the log replayed when the pool was opened.
    pub batches_replayed: u64,
}

/// The space of a pool, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Sizes of all disks.
    pub logical_bytes: u64,
    /// Blocks that are alive, data and map, as far as is known now.
    pub mapped_bytes: u64,
    /// Blocks that more than one disk refers to.
    pub shared_bytes: u64,
    /// Slots in use.
    pub physical_bytes: u64,
    /// What compaction could win.
    pub reclaimable_bytes: u64,
    /// Slots that are empty but wait for a checkpoint.
    pub pending_free_bytes: u64,
    /// Size of the pool.
    pub capacity_bytes: u64,
    /// Most bytes that can be alive.
    pub limit_bytes: u64,
}

/// How much of a disk holds data.
///
/// A write does not read the map, so what it replaced is known when the next checkpoint has folded
/// it: `bytes` is exact for the last checkpoint, and still is if nothing has changed since. At no
/// time are there more than `bytes + changed_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Blocks of data when the last checkpoint began. Zeros and holes do not count, whether they
    /// are reserved or not. None if it is not known: the pool was written before it was counted, or
    /// a page of the map was damaged.
    pub bytes: Option<u64>,
    /// Blocks written since; they may be new, or take the place of others.
    pub changed_bytes: u64,
    /// Whether nothing on any disk has changed since.
    pub is_all: bool,
}

/// A store's account of itself.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether it writes, and why not.
    pub state: PoolState,
    /// Its space.
    pub space: Space,
    /// What it has done.
    pub counters: Counters,
    /// This adoption of the pool.
    pub epoch: u64,
    /// Checkpoints in the pool's life.
    pub generation: u64,
    /// Bytes of log a recovery now would have to read.
    pub log_bytes_since_checkpoint: u64,
    /// Frames of the map in use, and in all.
    pub map_frames: (usize, usize),
    /// Changes not folded yet, and how many fit.
    pub deltas: (usize, usize),
    /// Bytes of memory for live bits and directories: by the size of the pool and what is on it,
    /// not by a setting.
    pub tables_bytes: usize,
    /// Slots that compaction leaves alone because a block in them cannot be read, or is not what
    /// was written. `bowline pool check` says which; writing or discarding the block cures it.
    pub unmovable_slots: usize,
    /// Whether the file system below has no space left for slots that have none yet.
    pub is_below_full: bool,
    /// Whether a checkpoint is under way.
    pub is_checkpointing: bool,
    /// How far writing elsewhere has come, in a word, if it is under way: `drain`, `flush`,
    /// `place`, `root`, `root-flush`.
    pub healing: Option<&'static str>,
}
