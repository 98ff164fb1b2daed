//! After the medium has failed: what the arena holds is written again, elsewhere (rule D12).
//!
//! Invariants:
//! - Acknowledged data stays in the arena, and readable, until it is on the medium and flushed.
//! - Everything behind the last safe batch gets a new place in a new segment, and the superblock
//!   says where: a cut, as at the beginning of an epoch.
//! - A failed flush makes everything since the last good one unsafe, and is never just tried again.

use crate::blocking::Blocking;
use crate::format::{CUTS_MAX, Cut, EntryKind, LogEntry, Position};
use crate::recovery::{check_slot_count, write_root};
use crate::store::{Broken, Store};
use crate::tables::Entry;
use crate::{BatchNumber, Lba, Media, PoolState, StoreError};

impl<M: Media> Store<M> {
    /// Writes again what a failed write left undone. Waits for the medium: nothing else could go on
    /// anyway.
    pub(crate) fn heal(&mut self) -> bool {
        if !std::mem::take(&mut self.heal_wanted) {
            return false;
        }
        self.heals_since_flush += 1;
        if let Err(error) = self.write_elsewhere() {
            let cause = self.state.refuses_writes().unwrap_or_default();
            self.state = PoolState::Healthy;
            self.stop_writing(&format!("{cause}; writing elsewhere failed too: {error}"));
        }
        true
    }

    /// Tries to write again after the medium has failed: everything since the last good flush goes
    /// to fresh segments and is flushed. Waits for the medium.
    ///
    /// # Errors
    /// If the pool has not stopped, or the medium still fails; the pool stays stopped then.
    pub fn resume(&mut self) -> Result<(), StoreError> {
        if !matches!(self.state, PoolState::Stopped(_)) {
            return Err(StoreError::Invalid(format!(
                "the pool is {}: only a stopped pool can be resumed",
                self.state.word()
            )));
        }
        self.write_elsewhere()
    }

    /// Gives every batch that is not safe a new place, and records where the log goes on.
    fn write_elsewhere(&mut self) -> Result<(), StoreError> {
        while self.in_flight.len() > 0 {
            match self.media.complete() {
                Some(completion) => self.completed(completion),
                None => self.media.wait()?,
            }
        }
        self.heal_wanted = false;
        self.map.forget_bad();
        let safe = self.log.durable;
        self.flush_now()?;
        self.log.close_batch();
        // Its superblock would not know of the cut, or be mistaken for the one that does.
        self.give_up_checkpoint();
        let position = self.safe_position(safe);
        self.log.rewind(safe);
        self.next_segment(safe)?;
        let cut = Cut {
            epoch: self.root.epoch,
            accepted: position,
            segment: self.log.segment.segment,
            slot: self.log.segment.slot,
        };
        for at in 0..self.log.batches.len() {
            if self.log.batches[at].blocks() > self.log.blocks_left() {
                self.next_segment(BatchNumber(self.log.batches[at].number.0 - 1))?;
            }
            self.place_again(at);
        }
        self.record_cut(cut)?;
        self.counters.heals += 1;
        self.state = PoolState::Healthy;
        self.want_flush();
        self.make_room();
        Ok(())
    }

    fn next_segment(&mut self, last: BatchNumber) -> Result<(), StoreError> {
        if self.segments.free_slots() == 0 {
            return Err(StoreError::Invalid("no free slot to write to".into()));
        }
        self.segments.keep_for_failures(false);
        self.checkpoint_wanted = true;
        self.roll(last);
        Ok(())
    }

    fn flush_now(&mut self) -> Result<(), StoreError> {
        let pages = self.log.pages.clone();
        Ok(Blocking::new(&mut self.media, &pages)?.flush()?)
    }

    /// The place behind the last safe batch: all up to it are released.
    fn safe_position(&self, safe: BatchNumber) -> Position {
        let (segment, slot) = (self.log.segment.segment, self.log.segment.slot);
        let checksum = self.log.checksum_of(safe);
        Position { segment, slot, block: self.segments.slot_blocks(), number: safe, checksum }
    }

    /// The superblock says that the log goes on in another segment: the one that failed may not
    /// even have a header to say so.
    fn record_cut(&mut self, cut: Cut) -> Result<(), StoreError> {
        let mut root = self.root.clone();
        // Past that of a checkpoint that was given up when a copy of its superblock was written.
        root.generation += 2;
        root.cuts.retain(|old| old.accepted.number < cut.accepted.number);
        root.cuts.push(cut);
        if root.cuts.len() > CUTS_MAX {
            return Err(StoreError::Invalid("too many failures without a checkpoint".into()));
        }
        let pages = self.log.pages.clone();
        let mut medium = Blocking::new(&mut self.media, &pages)?;
        if self.options.broken.contains(&Broken::SoundCopyFirst) {
            self.doubtful_copy = 0;
        }
        write_root(&mut medium, &self.header, &root, &mut self.doubtful_copy)?;
        drop(medium);
        self.root = root;
        Ok(())
    }

    /// Gives a batch a new place, and brings the map up to it.
    fn place_again(&mut self, at: usize) {
        let (old_segment, old_first) = {
            let batch = &self.log.batches[at];
            (batch.segment, batch.block + 1)
        };
        self.log.place(at);
        let (segment, first) = (self.log.batches[at].segment, self.log.batches[at].block + 1);
        let entries: Vec<(LogEntry, u32, Vec<u32>)> = self
            .log
            .entries_of(at)
            .filter(|found| found.entry.kind == EntryKind::Write)
            .map(|found| {
                let sums = (0..found.entry.blocks as u32).map(|index| found.checksum(index));
                (found.entry, found.data_block, sums.collect())
            })
            .collect();
        for (entry, data_block, sums) in entries {
            for (index, sum) in sums.into_iter().enumerate() {
                let block = data_block + index as u32;
                let old = Entry::data(old_segment, old_first + block, sum);
                let new = Entry::data(segment, first + block, sum);
                self.repoint(&entry, Lba(entry.lba.0 + index as u64), old, new);
            }
        }
    }

    fn repoint(&mut self, entry: &LogEntry, lba: Lba, old: Entry, new: Entry) {
        let generations = [Some(&mut self.map.active), self.map.frozen.as_mut()];
        for generation in generations.into_iter().flatten() {
            let found = generation.deltas.get(entry.lineage, lba);
            if let Some(delta) = found.filter(|delta| delta.entry == old) {
                generation.deltas.insert(entry.lineage, lba, new, delta.ordinal);
                self.segments.clear_live(old);
                self.segments.set_live(new);
                return;
            }
        }
    }

    /// Gives the pool the slots its medium has grown by. Returns how many there are now.
    ///
    /// # Errors
    /// If the medium has not grown or the pool takes no writes.
    pub fn grow(&mut self) -> Result<u32, StoreError> {
        let (have, can) =
            (self.segments.slot_count(), self.header.slots_on(self.media.bytes_total()));
        if can <= have {
            return Err(StoreError::Invalid(format!(
                "the medium has room for {can} slots and the pool has {have}: enlarge the file or \
                 device first"
            )));
        }
        check_slot_count(can, &self.header)?;
        let record = crate::format::Record::Grown { slot_count: can };
        self.put_record(&record).map_err(|why| StoreError::Invalid(why.to_string()))?;
        self.segments.grow(can);
        self.make_room();
        Ok(can)
    }
}
