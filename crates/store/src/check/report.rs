//! What a check has to say.

use crate::{BatchNumber, DiskId, Lba, LineageId, SegmentId, Seq, SlotId};

/// How a check is done.
#[derive(Default)]
pub struct CheckOptions<'o> {
    /// Blocks whose checksums are held in memory at a time; 0: what 128 MiB hold. A larger pool is
    /// checked in several rounds.
    pub blocks_at_a_time: u64,
    /// Called as the check goes on.
    pub progress: Option<&'o mut dyn FnMut(CheckProgress)>,
    /// Whether to list where each structure lies: for tests that damage them.
    #[doc(hidden)]
    pub places: bool,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckProgress {
    /// Bytes verified.
    pub done_bytes: u64,
    /// Bytes to verify, as far as is known.
    pub total_bytes: u64,
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckVerdict {
    /// Closed in good order, and every block is what was written.
    Clean,
    /// Not closed; the log is to be replayed. Every block is what was written.
    Dirty,
    /// Every block is what was written; a copy of something or a proof beside it is damaged.
    Repairable,
    /// Data is lost or wrong; the report lists what.
    Damaged,
    /// There is no pool.
    #[default]
    NotAPool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// No data is lost by it.
    Repairable,
    /// Data is lost, or the pool contradicts itself.
    Loss,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What can be done.
    pub remedy: String,
}

/// A range of a disk that cannot be read, or has lost its last writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The disk.
    pub disk: DiskId,
    /// The first block.
    pub lba: Lba,
    /// Number of blocks.
    pub blocks: u64,
    /// The segment in which they, or the page of the map that names them, were expected.
    pub segment: SegmentId,
    /// Where that lies.
    pub slot: SlotId,
    /// Whether an earlier repair gave it up: reads fail until it is written again.
    pub is_given_up: bool,
    /// Why.
    pub why: String,
}

/// A disk of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedDisk {
    /// Its id.
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Blocks of data found on it.
    pub mapped_blocks: u64,
}

/// Something `repair` can do about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairStep {
    /// Writes damaged copies of the pool header, of superblocks and of the last checkpoint's blob
    /// again, from the good ones.
    Copies,
    /// Cuts the log off behind a batch; what is listed as lost behind it is gone then.
    CutLog {
        /// The last batch that is kept.
        after: BatchNumber,
    },
    /// Moves what lies in a slot elsewhere: a header or a head in it is damaged, and goes with the
    /// slot.
    Empty {
        /// Which one.
        slot: SlotId,
    },
    /// Gives up blocks that cannot be read, or what a damaged page of the map named: reads of the
    /// range fail until it is written again. They are never answered with zeros.
    GiveUp {
        /// Whose range.
        lineage: LineageId,
        /// The disk that has it.
        disk: DiskId,
        /// The level of what hangs in the map there: 0 for blocks, 1 for a leaf page.
        level: u8,
        /// Which one of its level; of blocks, the first.
        index: u64,
        /// The first block.
        lba: Lba,
        /// Number of blocks.
        blocks: u64,
    },
}

/// Where a structure lies on the medium.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub kind: PlaceKind,
    /// Its first byte.
    pub at: u64,
    /// Its length.
    pub bytes: u64,
}

/// Structures on the medium.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceKind {
    Header,
    Superblock,
    Blob,
    SegmentHeader,
    /// The header of a segment of the log since the checkpoint.
    LogHeader,
    /// The head of a batch since the checkpoint, and its number.
    LogBatch(u64),
    LogData,
    /// The head of an older batch.
    BatchHead,
    ImageHead,
    /// A page of the map and its level.
    Page(u8),
    Data,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What it comes to.
    pub verdict: CheckVerdict,
    /// The pool's identity, if a header verifies.
    pub pool: Option<crate::PoolId>,
    /// The last epoch.
    pub epoch: u64,
    /// The last superblock's generation.
    pub generation: u64,
    /// Slots of the pool.
    pub slots: u32,
    /// Segments in them.
    pub segments: u64,
    /// The disks, with what was found on them.
    pub disks: Vec<CheckedDisk>,
    /// Whether the pool was closed in good order.
    pub is_clean: bool,
    /// Batches of the log behind the last checkpoint.
    pub batches_replayed: u64,
    /// The last write in the pool.
    pub sequence_last: Seq,
    /// Bytes of data and of pages of the map whose checksums were verified.
    pub verified_bytes: u64,
    /// Blocks kept although nothing leads to them.
    pub dead_blocks: u64,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What cannot be read.
    pub losses: Vec<Loss>,
    /// What `repair` would do.
    pub repairs: Vec<RepairStep>,
    /// Where structures lie, if that was asked for.
    #[doc(hidden)]
    pub places: Vec<Place>,
}

impl CheckReport {
    /// Notes a finding.
    pub(super) fn find(&mut self, severity: Severity, place: String, what: String, remedy: &str) {
        self.findings.push(Finding { severity, place, what, remedy: remedy.into() });
    }

    /// Proposes a step, once.
    pub(super) fn repair(&mut self, step: RepairStep) {
        if !self.repairs.contains(&step) {
            self.repairs.push(step);
        }
    }

    /// Proposes to give a block up; neighbours become one step.
    pub(super) fn give_up_block(&mut self, lineage: LineageId, disk: DiskId, lba: u64) {
        if let Some(RepairStep::GiveUp { lineage: of, level: 0, lba: first, blocks, .. }) =
            self.repairs.last_mut()
            && *of == lineage
            && first.0 + *blocks == lba
        {
            *blocks += 1;
            return;
        }
        let (level, index, lba, blocks) = (0, lba, Lba(lba), 1);
        self.repairs.push(RepairStep::GiveUp { lineage, disk, level, index, lba, blocks });
    }

    /// Notes that nothing can be read.
    pub(super) fn lose_everything(&mut self, what: &str) {
        let remedy = "restore the pool from a copy: without this nothing in it can be found";
        self.find(Severity::Loss, "pool".into(), what.into(), remedy);
    }

    /// Notes a loss; neighbours become one.
    pub(super) fn lose(&mut self, loss: Loss) {
        if let Some(last) = self.losses.last_mut()
            && (last.disk, last.segment, last.slot) == (loss.disk, loss.segment, loss.slot)
            && last.lba.0 + last.blocks == loss.lba.0
            && last.why == loss.why
        {
            last.blocks += loss.blocks;
            return;
        }
        self.losses.push(loss);
    }

    /// The report with its verdict.
    pub(super) fn judged(mut self) -> CheckReport {
        let worst = self.findings.iter().map(|finding| finding.severity).max();
        let is_lost = self.losses.iter().any(|loss| !loss.is_given_up);
        self.verdict = if self.pool.is_none() && worst != Some(Severity::Loss) {
            CheckVerdict::NotAPool
        } else if worst == Some(Severity::Loss) || is_lost {
            CheckVerdict::Damaged
        } else if worst == Some(Severity::Repairable) || !self.losses.is_empty() {
            CheckVerdict::Repairable
        } else if self.is_clean {
            CheckVerdict::Clean
        } else {
            CheckVerdict::Dirty
        };
        self.losses.sort_by_key(|loss| (loss.disk, loss.lba));
        self
    }
}
