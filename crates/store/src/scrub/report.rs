//! What a scrub has to say.

use crate::{DiskId, Lba, SegmentId, SlotId};

/// Findings kept in words; all are counted.
pub(super) const FINDINGS_MAX: usize = 100;

/// Whether a scrub runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScrubState {
    /// None was started since the pool was opened.
    #[default]
    Never,
    /// It runs.
    Running,
    /// It keeps its place and does nothing.
    Paused,
    /// It was stopped before its end.
    Stopped,
    /// It came to its end.
    Finished,
}

/// What a finding of a scrub costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScrubSeverity {
    /// What was damaged has been written again from what is sound.
    Repaired,
    /// No disk needs what is damaged.
    Harmless,
    /// Data of a disk cannot be read.
    Lost,
}

/// Something on the medium that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubFinding {
    /// What it costs.
    pub severity: ScrubSeverity,
    /// Whether the medium could not read it, rather than read something else.
    pub is_unreadable: bool,
    /// Whose it is, where that is known.
    pub disk: Option<DiskId>,
    /// The block on the disk, where that is known.
    pub lba: Option<Lba>,
    /// The segment.
    pub segment: Option<SegmentId>,
    /// Where that lies; none for what lies before the slots.
    pub slot: Option<SlotId>,
    /// The block in the slot, or in the pool where there is no slot.
    pub block: u64,
    /// What is wrong.
    pub what: String,
    /// What is to be done.
    pub remedy: String,
}

impl ScrubFinding {
    /// Something wrong before the slots, at the beginning of the pool, until more is said of it.
    pub(super) fn new(severity: ScrubSeverity, what: String, remedy: &str) -> ScrubFinding {
        let remedy = remedy.to_owned();
        let (disk, lba, segment, slot) = (None, None, None, None);
        let (is_unreadable, block) = (false, 0);
        ScrubFinding { severity, is_unreadable, disk, lba, segment, slot, block, what, remedy }
    }
}

/// What is wrong with something that is not what was written.
pub(super) fn wrong(is_unreadable: bool) -> &'static str {
    if is_unreadable { "cannot be read" } else { "does not verify" }
}

/// How far the running scrub is, or how the last one ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Whether it runs.
    pub state: ScrubState,
    /// Bytes read from the medium and verified.
    pub verified_bytes: u64,
    /// Bytes in use still to be looked at, as far as is known; where a log segment ends before its
    /// slot does is known when it has been read.
    pub left_bytes: u64,
    /// Bytes a second, over the last minute of its running.
    pub bytes_per_second: u64,
    /// Bytes a second at most.
    pub bytes_per_second_max: u64,
    /// How long it ran, pauses included.
    pub elapsed_micros: u64,
    /// Slots looked through.
    pub slots: u64,
    /// Pages of the map verified.
    pub pages: u64,
    /// Findings that cost data.
    pub lost: u64,
    /// Findings that cost nothing.
    pub harmless: u64,
    /// Findings that were put right.
    pub repaired: u64,
    /// The first hundred of them.
    pub findings: Vec<ScrubFinding>,
}

impl ScrubStatus {
    /// Findings of all kinds.
    #[must_use]
    pub fn findings_total(&self) -> u64 {
        self.lost + self.harmless + self.repaired
    }

    pub(super) fn add(&mut self, finding: ScrubFinding) {
        match finding.severity {
            ScrubSeverity::Lost => self.lost += 1,
            ScrubSeverity::Harmless => self.harmless += 1,
            ScrubSeverity::Repaired => self.repaired += 1,
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}
