//! The disks of a pool: changed by records in the log, materialised by checkpoints.

use std::collections::BTreeMap;

use crate::format::{LineageRecord, Record};
use crate::{BLOCK_BYTES, Disk, DiskId, LineageId, StoreError};

/// Most bytes in the name of a disk.
const NAME_BYTES_MAX: usize = 255;
/// The largest disk: 64-bit offsets stay clear of overflow.
const DISK_BYTES_MAX: u64 = 1 << 60;

/// The disks of a pool.
#[derive(Debug, Default, Clone)]
pub(crate) struct Catalogue {
    pub disks: BTreeMap<DiskId, Disk>,
    pub next_disk: u32,
    pub next_lineage: u32,
}

impl Catalogue {
    /// Checks that a name can be given to a new disk.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), StoreError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
            return Err(StoreError::Invalid(format!(
                "{name:?} cannot name a disk: use 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -"
            )));
        }
        if self.disks.values().any(|disk| disk.name == name) {
            return Err(StoreError::Invalid(format!("there is a disk named {name} already")));
        }
        Ok(())
    }

    /// Checks that a disk can have a size.
    pub(crate) fn check_bytes(bytes: u64) -> Result<(), StoreError> {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) || bytes > DISK_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "{bytes} bytes cannot be the size of a disk: use a multiple of {BLOCK_BYTES} up to \
                 {DISK_BYTES_MAX}"
            )));
        }
        Ok(())
    }

    /// The ids a new disk gets.
    pub(crate) fn next_ids(&self) -> (DiskId, LineageId) {
        (DiskId(self.next_disk), LineageId(self.next_lineage))
    }

    /// Applies a record; returns the lineage whose blocks are garbage now, if one is.
    pub(crate) fn apply(&mut self, record: &Record) -> Option<LineageId> {
        match record {
            Record::Disk(disk) => {
                self.next_disk = self.next_disk.max(disk.id.0 + 1);
                self.next_lineage = self.next_lineage.max(disk.lineage.0 + 1);
                self.disks.insert(disk.id, disk.clone());
                None
            }
            Record::Destroyed(id) => self.disks.remove(id).map(|disk| disk.lineage),
            Record::Moved(_) | Record::Grown { .. } => None,
        }
    }
}

/// The record of a lineage nothing was written to.
pub(crate) fn empty_lineage(lineage: LineageId) -> LineageRecord {
    let root = crate::tables::Entry::HOLE;
    LineageRecord { lineage, parent: lineage, height: 0, root, data_blocks: Some(0) }
}
