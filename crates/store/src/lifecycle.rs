//! What happens to an open pool as a whole: checkpoints on demand, closing, account of itself.

use crate::blocking::Blocking;
use crate::recovery::write_root;
use crate::reserve::MARGIN_OF_DATA;
use crate::status::{Space, Status};
use crate::store::Store;
use crate::{BLOCK_BYTES, Media, Micros, StoreError};

impl<M: Media> Store<M> {
    /// Makes a checkpoint, and waits for it.
    ///
    /// # Errors
    /// If the medium fails, or has.
    pub fn checkpoint_now(&mut self) -> Result<(), StoreError> {
        self.want_checkpoint();
        let target = self.counters.checkpoints + 1;
        while self.counters.checkpoints < target {
            self.go_on()?;
        }
        Ok(())
    }

    /// Brings slots back before anybody is served, if there are too few: each start begins a
    /// segment of the log, and one that is killed soon again and again would use up what is kept.
    /// What does not go now goes on later, beside the requests.
    pub(crate) fn regain_slots(&mut self) {
        let wanted = MARGIN_OF_DATA + 1;
        if !self.state.is_writing() || self.has_margin(wanted) {
            return;
        }
        // The slot for a start has just been used.
        self.segments.keep_for_failures(false);
        if self.checkpoint_now().is_err() {
            return;
        }
        while !self.has_margin(wanted) && self.can_make_space() {
            self.compaction.slots_needed = self.slots_reserved(0) + wanted;
            if self.go_on().is_err() {
                break;
            }
        }
        self.compaction.slots_needed = 0;
    }

    /// Waits for one thing to happen.
    pub(crate) fn go_on(&mut self) -> Result<(), StoreError> {
        let now = Micros(self.now.0 + 1);
        if self.poll(now) {
            return Ok(());
        }
        if let Some(cause) = self.state.refuses_writes() {
            return Err(StoreError::Invalid(format!("the pool does not write: {cause}")));
        }
        self.wait_for_medium()
    }

    fn wait_for_medium(&mut self) -> Result<(), StoreError> {
        if self.in_flight.len() == 0 {
            return Err(StoreError::Invalid(
                "nothing is under way that could be waited for".into(),
            ));
        }
        Ok(self.media.wait()?)
    }

    /// Waits until nothing is being written elsewhere, well or not.
    fn finish_healing(&mut self) -> Result<(), StoreError> {
        while self.is_healing() {
            if !self.poll(Micros(self.now.0 + 1)) {
                self.wait_for_medium()?;
            }
        }
        Ok(())
    }

    /// Closes the pool in good order: everything is on the medium, and the superblock says so. A
    /// pool that does not write any more is left as it is; what is being written elsewhere is
    /// waited for.
    ///
    /// # Errors
    /// If the medium fails; what was flushed before is safe.
    pub fn close(&mut self) -> Result<(), StoreError> {
        let was_writing = self.state.is_writing();
        self.finish_healing()?;
        match self.state.refuses_writes() {
            // Whoever closes it takes the arena for empty, had the pool not been stopped before.
            Some(cause) if was_writing => {
                return Err(StoreError::Invalid(format!("the pool does not write: {cause}")));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        self.stop_scrub();
        while self.checkpoint.is_some() || self.compaction.is_running() {
            self.go_on()?;
        }
        self.checkpoint_now()?;
        while self.in_flight.len() > 0 || self.is_healing() || self.log.durable < self.log.last() {
            self.want_flush();
            self.go_on()?;
        }
        self.root.clean = true;
        self.root.generation = self.healing.next_generation(self.root.generation);
        let pages = self.log.pages.clone();
        let mut medium = Blocking::new(&mut self.media, &pages)?;
        write_root(&mut medium, &self.header, &self.root, &mut self.doubtful_copy)?;
        drop(medium);
        self.state.stop("the pool is closed");
        Ok(())
    }

    /// The store's account of itself.
    pub fn status(&self) -> Status {
        let slot_bytes = self.header.slot_bytes;
        let slots = u64::from(self.segments.slot_count());
        let free = (self.segments.free_slots() + self.segments.bare_slots()) as u64;
        let pending = self.segments.pending_slots() as u64;
        let mapped_bytes = self.live_blocks() * BLOCK_BYTES;
        let physical_bytes = (slots - free - pending) * slot_bytes;
        let deltas = &self.map.active.deltas;
        Status {
            state: self.state.clone(),
            space: Space {
                logical_bytes: self.disks().map(|disk| disk.bytes).sum(),
                mapped_bytes,
                shared_bytes: 0,
                physical_bytes,
                reclaimable_bytes: physical_bytes.saturating_sub(mapped_bytes),
                pending_free_bytes: pending * slot_bytes,
                capacity_bytes: slots * slot_bytes,
                limit_bytes: self.live_limit_blocks() * BLOCK_BYTES,
            },
            counters: self.counters,
            epoch: self.log.identity.epoch.0,
            generation: self.root.generation,
            log_bytes_since_checkpoint: self.bytes_since_checkpoint,
            map_frames: self.map.frames(),
            deltas: (deltas.len(), deltas.capacity()),
            tables_bytes: self.segments.memory_bytes(),
            unmovable_slots: self.unmovable_slots(),
            is_below_full: self.segments.is_below_full(),
            is_checkpointing: self.checkpoint.is_some(),
            healing: self.healing.word(),
        }
    }
}
