//! The small steps in which a store makes a fold: each does a bounded piece of work, or asks for
//! the page it has to wait for.

use super::{Fold, LEAVES_AT_A_TIME, Missing, PER_STEP, change_leaf, fetch, new_page, uniform};
use crate::checkpoint::Step;
use crate::format::span_of_level;
use crate::format::{FANOUT, LineageRecord, PageHead, SegmentKind, block_checksum};
use crate::store::{Broken, Store};
use crate::tables::{Entry, State};
use crate::{LineageId, Media};

impl<M: Media> Store<M> {
    /// Makes one small step of a fold. `Err` says what is damaged.
    pub(crate) fn step_fold(&mut self, fold: &mut Fold) -> Result<Step, String> {
        if self.map.frozen.is_none() {
            return Ok(Step::Done);
        }
        let mut step = self.step_ranges(fold);
        if let Ok(false) = step {
            step = self.step_leaves(fold);
        }
        if let Ok(false) = step {
            step = self.step_inner(fold);
        }
        match step {
            Ok(true) => Ok(Step::Moved),
            Ok(false) => Ok(Step::Done),
            Err(missing) => self.wait_for(missing),
        }
    }

    fn wait_for(&mut self, missing: Missing) -> Result<Step, String> {
        match missing {
            // If it lies nowhere, the next step finds that it is damaged.
            Missing::Page(page) => drop(self.load_page(page)),
            Missing::Buffer => {}
            Missing::Damaged(page) => {
                return Err(format!(
                    "a page of the map in segment {} is damaged; run `bowline pool check`",
                    page.segment()
                ));
            }
        }
        Ok(Step::Waits)
    }

    /// Ranges and what they freed. False when there is nothing of it left.
    fn step_ranges(&mut self, fold: &mut Fold) -> Result<bool, Missing> {
        while let Some(node) = fold.give_up.last().copied() {
            fold.give_up_node(&mut self.map, node)?;
            fold.give_up.pop();
        }
        for _ in 0..PER_STEP {
            let Some(freed) = fold.walk.last().copied() else { break };
            // Pages are read one after the other here unless more are asked for beforehand.
            let ahead: Vec<Entry> = fold.walk.iter().rev().take(8).map(|freed| freed.0).collect();
            for page in ahead {
                if self.map.page(page).is_none() && !self.map.is_bad(page) {
                    self.load_page(page);
                }
            }
            fold.walk.pop();
            match fold.free_page(&mut self.map, &mut self.segments, freed) {
                Ok(_) if self.options.broken.contains(&Broken::CountWhatIsFreed) => {}
                Ok(gone) => fold.count_data(freed.2, 0, gone),
                // What a damaged page named leaks; the page itself goes, as it would anyway.
                Err(Missing::Damaged(page)) => {
                    fold.dies(page);
                    fold.lose_count(freed.2);
                }
                Err(missing) => {
                    fold.walk.push(freed);
                    return Err(missing);
                }
            }
        }
        if !fold.walk.is_empty() {
            return Ok(true);
        }
        let next =
            self.map.frozen.as_ref().and_then(|f| f.ranges.all().get(fold.next_range)).copied();
        let Some(range) = next else { return Ok(false) };
        fold.apply_range(&mut self.map, &range)?;
        fold.next_range += 1;
        Ok(true)
    }

    /// Leaves. False when there is none left.
    fn step_leaves(&mut self, fold: &mut Fold) -> Result<bool, Missing> {
        if let Some(frozen) = &self.map.frozen {
            while fold.jobs.len() < LEAVES_AT_A_TIME {
                let Some(leaf) = fold.next_leaf(frozen) else { break };
                fold.jobs.push(leaf);
            }
        }
        if fold.jobs.is_empty() {
            return Ok(false);
        }
        let (mut done, mut stuck) = (0, None);
        let mut at = 0;
        while at < fold.jobs.len() && done < PER_STEP {
            let (lineage, leaf) = fold.jobs[at];
            match self.fold_leaf(fold, lineage, leaf) {
                Ok(()) => {
                    fold.jobs.swap_remove(at);
                    done += 1;
                }
                Err(Missing::Page(page)) => {
                    self.load_page(page);
                    stuck = Some(Missing::Page(page));
                    at += 1;
                }
                Err(other) => return if done > 0 { Ok(true) } else { Err(other) },
            }
        }
        match stuck {
            Some(missing) if done == 0 => Err(missing),
            _ => Ok(true),
        }
    }

    fn fold_leaf(&mut self, fold: &mut Fold, lineage: LineageId, leaf: u64) -> Result<(), Missing> {
        let record = fold.lineages.get(&lineage).copied();
        let is_in = |r: &LineageRecord| r.height > 0 && leaf * FANOUT < span_of_level(r.height);
        let Some(record) = record.filter(is_in) else {
            // Beyond the end of the disk, or of a disk that is gone: all of it is dead.
            let frozen = self.map.frozen.as_ref();
            let dead: Vec<Entry> = frozen
                .map(|f| f.deltas.leaf(lineage, leaf).map(|delta| delta.entry).collect())
                .unwrap_or_default();
            for entry in dead.into_iter().filter(|entry| entry.has_address()) {
                self.segments.clear_live(entry);
            }
            return Ok(());
        };
        if self.ready_stream(SegmentKind::Map).is_err() {
            return Err(Missing::Buffer);
        }
        let old = fold.entry_of(&mut self.map, &record, 1, leaf)?;
        let mut page = if old.state() == Some(State::Page) {
            fetch(&mut self.map, old)?.to_vec().into_boxed_slice()
        } else {
            new_page(PageHead { level: 0, lineage, index: leaf }, old)
        };
        fold.open_path(&mut self.map, &record, 1, leaf)?;
        let Some(frozen) = &self.map.frozen else { return Ok(()) };
        let (more, less) = change_leaf(frozen, &mut self.segments, lineage, leaf, &mut page);
        fold.count_data(lineage, more, less);
        if old.state() == Some(State::Page) {
            fold.dies(old);
        }
        let entry = match uniform(&page) {
            Some(state) => state,
            None => self.put_page(fold, &page),
        };
        fold.set_entry(lineage, 1, leaf, entry);
        Ok(())
    }

    /// Writes a page to the stream of the map, which is ready.
    fn put_page(&mut self, fold: &mut Fold, page: &[u8]) -> Entry {
        let stream = self.streams.of(SegmentKind::Map);
        let index = stream.put(&self.memory, page);
        let segment = stream.target.map(|target| target.segment).unwrap_or_default();
        let entry = Entry::page(segment, index, block_checksum(self.header.salt, page));
        self.segments.set_live(entry);
        self.map.remember(entry, page);
        fold.made.push(entry);
        entry
    }

    /// Pages above the leaves, from the bottom up. False when there is none left.
    fn step_inner(&mut self, fold: &mut Fold) -> Result<bool, Missing> {
        for _ in 0..PER_STEP {
            if fold.inner.is_empty() {
                return Ok(false);
            }
            if self.ready_stream(SegmentKind::Map).is_err() {
                return Err(Missing::Buffer);
            }
            let Some(((level, lineage, index), page)) = fold.inner.pop_first() else { break };
            let entry = match uniform(&page) {
                Some(state) => state,
                None => self.put_page(fold, &page),
            };
            fold.set_entry(lineage, level + 1, index, entry);
        }
        Ok(true)
    }
}
