//! The disks of a pool: finding, making, changing and destroying them.
//!
//! Invariants:
//! - A change is one record of the log: it happens whole, and in the order of the writes.
//! - A disk keeps its id, its lineage and the blocks within its size through every change.

use super::Store;
use crate::api::{Disk, Durability, LossLimits, Provision, StoreError};
use crate::catalogue::Catalogue;
use crate::format::Record;
use crate::{DiskId, Mapped, Media};

impl<M: Media> Store<M> {
    /// The disks of the pool.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.catalogue.disks.values()
    }

    /// A disk.
    pub fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.catalogue.disks.get(&id)
    }

    /// A disk by its name.
    pub fn disk_by_name(&self, name: &str) -> Option<&Disk> {
        self.disks().find(|disk| disk.name == name)
    }

    /// How much of a disk holds data.
    pub fn mapped(&self, disk: &Disk) -> Mapped {
        self.map.mapped(disk.lineage)
    }

    /// Makes a disk. It is durable once a later flush is.
    ///
    /// # Errors
    /// If the name or size cannot be, or the pool takes no writes.
    pub fn create_disk(
        &mut self,
        name: &str,
        bytes: u64,
        durability: Durability,
        provision: Provision,
    ) -> Result<DiskId, StoreError> {
        self.catalogue.check_name(name)?;
        Catalogue::check_bytes(bytes)?;
        let (id, lineage) = self.catalogue.next_ids();
        self.put_disk(Disk {
            id,
            name: name.to_owned(),
            bytes,
            lineage,
            durability,
            provision,
            read_only: false,
            loss_limits: LossLimits::default(),
        })?;
        Ok(id)
    }

    /// Changes anything about a disk but its id, lineage and blocks. A disk that shrinks loses what
    /// lies beyond its new end.
    ///
    /// # Errors
    /// If there is no such disk, the change cannot be, or the pool takes no writes.
    pub fn change_disk(&mut self, changed: Disk) -> Result<(), StoreError> {
        let Some(old) = self.catalogue.disks.get(&changed.id).cloned() else {
            return Err(StoreError::Invalid(format!("there is no disk {}", changed.id)));
        };
        Catalogue::check_bytes(changed.bytes)?;
        if changed.name != old.name {
            self.catalogue.check_name(&changed.name)?;
        }
        self.put_disk(Disk { lineage: old.lineage, ..changed })
    }

    fn put_disk(&mut self, disk: Disk) -> Result<(), StoreError> {
        self.put_record(&Record::Disk(disk))?;
        Ok(())
    }

    /// Changes what FLUSH means on a disk.
    ///
    /// # Errors
    /// If there is no such disk or the pool takes no writes.
    pub fn set_durability(&mut self, id: DiskId, durability: Durability) -> Result<(), StoreError> {
        let Some(disk) = self.disk(id).cloned() else {
            return Err(StoreError::Invalid(format!("there is no disk {id}")));
        };
        self.change_disk(Disk { durability, ..disk })
    }

    /// Destroys a disk and everything on it.
    ///
    /// # Errors
    /// If there is no such disk or the pool takes no writes.
    pub fn destroy_disk(&mut self, id: DiskId) -> Result<(), StoreError> {
        if !self.catalogue.disks.contains_key(&id) {
            return Err(StoreError::Invalid(format!("there is no disk {id}")));
        }
        self.put_record(&Record::Destroyed(id))?;
        Ok(())
    }
}
