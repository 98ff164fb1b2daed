//! What clients asked and were told, and which contents of a disk that allows.
//!
//! A sector holds the stamp of the request that wrote it last, or zero. Which of several requests
//! in flight came last is not known; which contents are impossible is.

use std::collections::BTreeSet;

use crate::SECTOR_BYTES;

/// A request that changes sectors.
#[derive(Debug, Clone)]
pub struct Change {
    pub stamp: u64,
    pub start: u64,
    pub end: u64,
    /// Whether it leaves its stamp, or zeros.
    pub is_write: bool,
    pub fua: bool,
    pub submitted: u64,
    pub replied: Option<u64>,
}

/// All changes of one disk and the flushes that were answered.
#[derive(Debug, Default)]
pub struct History {
    pub changes: Vec<Change>,
    /// When the latest flush that was answered had been submitted.
    pub flushed: u64,
}

impl Change {
    fn covers(&self, sector: u64) -> bool {
        (self.start..self.end).contains(&sector)
    }

    fn leaves(&self, sector: u64) -> Option<u64> {
        self.covers(sector).then_some(if self.is_write { self.stamp } else { 0 })
    }
}

/// The stamps of sectors; an error if one holds bytes of two.
pub fn stamps(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let sectors = bytes.chunks(SECTOR_BYTES as usize).enumerate();
    let stamps = sectors.map(|(sector, bytes)| {
        let words: BTreeSet<u64> =
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        match (words.len(), words.first()) {
            (1, Some(stamp)) => Ok(*stamp),
            _ => Err(format!("sector {sector} is mixed of {words:?}")),
        }
    });
    stamps.collect()
}

impl History {
    /// A read submitted at `submitted` and answered now may find these sectors.
    pub fn check_read(&self, first: u64, found: &[u64], submitted: u64) -> Result<(), String> {
        let must = |change: &Change| change.replied.is_some_and(|replied| replied < submitted);
        self.check_sectors(first, found, must)
    }

    /// These may be the contents when nothing is in flight.
    pub fn check_quiet(&self, found: &[u64]) -> Result<(), String> {
        let visible: BTreeSet<u64> = found.iter().copied().collect();
        let must = |change: &Change| change.replied.is_some() || visible.contains(&change.stamp);
        self.check_sectors(0, found, must)?;
        self.check_pairs(found)
    }

    /// These may be the contents after a loss of power.
    pub fn check_cut(&self, found: &[u64], is_durable: bool) -> Result<(), String> {
        let visible: BTreeSet<u64> = found.iter().copied().filter(|stamp| *stamp > 0).collect();
        let changes = self.changes.iter().filter(|change| visible.contains(&change.stamp));
        let latest = changes.map(|change| change.submitted).max().unwrap_or(0);
        let before = if is_durable { latest.max(self.flushed) } else { latest };
        let must = |change: &Change| {
            let is_old = change.replied.is_some_and(|replied| replied < before);
            let is_through = is_durable && change.fua && change.replied.is_some();
            is_old || is_through || visible.contains(&change.stamp)
        };
        self.check_sectors(0, found, must)?;
        self.check_pairs(found)
    }

    /// Each sector shows a change that none of those that must show came after for certain.
    fn check_sectors(
        &self,
        first: u64,
        found: &[u64],
        must: impl Fn(&Change) -> bool,
    ) -> Result<(), String> {
        for (sector, stamp) in (first..).zip(found) {
            let musts = self.changes.iter().filter(|change| change.covers(sector) && must(change));
            let newest = musts.max_by_key(|change| change.submitted);
            let Some(newest) = newest else {
                let is_known = self.changes.iter().any(|c| c.leaves(sector) == Some(*stamp));
                if *stamp == 0 || is_known {
                    continue;
                }
                return Err(format!("sector {sector} shows {stamp}, which nobody wrote there"));
            };
            let may_show = |change: &Change| {
                change.leaves(sector) == Some(*stamp)
                    && change.replied.is_none_or(|replied| replied >= newest.submitted)
            };
            if !self.changes.iter().any(may_show) {
                return Err(format!("sector {sector} shows {stamp} after {newest:?}"));
            }
        }
        Ok(())
    }

    /// No two writes each show in a place where the other wrote too.
    fn check_pairs(&self, found: &[u64]) -> Result<(), String> {
        let shown = |change: &Change, other: &Change| {
            let (start, end) = (change.start.max(other.start), change.end.min(other.end));
            (start..end).any(|sector| found.get(sector as usize) == Some(&change.stamp))
        };
        let writes: Vec<&Change> = self.changes.iter().filter(|change| change.is_write).collect();
        for (at, one) in writes.iter().enumerate() {
            for two in &writes[at + 1..] {
                if shown(one, two) && shown(two, one) {
                    return Err(format!("both show where both wrote: {one:?}, {two:?}"));
                }
            }
        }
        Ok(())
    }
}
