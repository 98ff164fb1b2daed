//! The map, page by page from the roots, and what only it can judge.
//!
//! The walk knows a place on a disk, not a page: each step goes down from the root as it is then.
//! So a checkpoint that replaces pages meanwhile hides none of those that stay. Pages are read from
//! the medium, also those that are in memory.

use std::collections::BTreeMap;

use super::slots::Wrong;
use super::window::Found;
use super::{Job, Next, Phase, ScrubFinding, ScrubSeverity};
use crate::format::{FANOUT, PageHead, PageRef, block_checksum, span_of_level};
use crate::store::Store;
use crate::tables::{Entry, State};
use crate::{Lba, LineageId, Media, SlotId};

/// Places looked at in one step.
const PLACES_PER_STEP: usize = 64;
/// Pages read at a time: those of neighbours often lie side by side.
const PAGES_AHEAD: u32 = 16;

/// Where the walk is.
#[derive(Default)]
pub(super) struct Walk {
    lineage: LineageId,
    lba: u64,
    /// Pages above the leaves on the way to it, by level.
    path: BTreeMap<u8, (u64, Box<[u8]>)>,
    /// Blocks of a leaf that only the map can judge.
    blocks: Vec<(u64, Entry)>,
}

/// What the walk comes to next.
enum Place {
    /// A page that hangs by this entry, at a level.
    Page(Entry, u8),
    /// Nothing that could be read, up to this block.
    Nothing(u64),
    End,
}

impl<M: Media> Store<M> {
    pub(super) fn step_tree(&mut self, job: &mut Job) -> Next {
        if let Some((lba, entry)) = job.tree.blocks.last().copied() {
            return self.judge_by_map(job, lba, entry);
        }
        for _ in 0..PLACES_PER_STEP {
            let next = self.map.lineages.range(job.tree.lineage..).next();
            let Some((lineage, record)) = next.map(|(id, record)| (*id, *record)) else {
                job.phase = Phase::Blob;
                return Next::Again;
            };
            if lineage != job.tree.lineage {
                job.tree = Walk { lineage, ..Walk::default() };
            }
            match job.tree.next(record.root, record.height) {
                Place::Nothing(end) => job.tree.lba = end,
                Place::End => {
                    let lineage = LineageId(lineage.0.saturating_add(1));
                    job.tree = Walk { lineage, ..Walk::default() };
                }
                Place::Page(entry, level) => return self.look_at_page(job, entry, level),
            }
        }
        Next::Again
    }

    fn look_at_page(&mut self, job: &mut Job, entry: Entry, level: u8) -> Next {
        let Some((slot, block)) = self.segments.locate(entry) else {
            self.bad_page(job, entry, level, None, false);
            return Next::Again;
        };
        if self.held_from(slot, block) == 0 {
            let left = self.segments.slot_blocks().saturating_sub(block);
            let room = self.scrub.window.room().min(PAGES_AHEAD);
            return Next::Read(self.slot_run(slot, block, left.min(room)));
        }
        let at = self.header.block_at(slot, block);
        let index = job.tree.lba / span_of_level(level + 1);
        let wanted = PageHead { level, lineage: job.tree.lineage, index };
        let (page, is_unreadable) = match self.scrub.window.block(&self.memory, at) {
            Found::Bytes(bytes) => {
                let is_sound = block_checksum(self.header.salt, bytes) == entry.checksum
                    && PageRef(bytes).head() == Some(wanted);
                (is_sound.then(|| bytes.to_vec().into_boxed_slice()), false)
            }
            Found::Unreadable => (None, true),
        };
        let Some(page) = page else {
            if !job.is_second && !self.is_scrub_blind() {
                job.is_second = true;
                return Next::Read(self.slot_run(slot, block, 1));
            }
            self.bad_page(job, entry, level, Some((slot, block)), is_unreadable);
            return Next::Again;
        };
        job.is_second = false;
        self.scrub_verified(1);
        self.scrub.status.pages += 1;
        job.blocks_done(1);
        if level > 0 {
            job.tree.path.insert(level, (entry.address, page));
            return Next::Again;
        }
        self.look_into_leaf(job, &page);
        Next::Again
    }

    /// Notes blocks of a leaf that nothing else has judged, and goes on behind it.
    fn look_into_leaf(&mut self, job: &mut Job, page: &[u8]) {
        let first = job.tree.lba - job.tree.lba % FANOUT;
        job.tree.lba = first + FANOUT;
        for (lba, index) in (first..).zip(0..FANOUT as usize) {
            let entry = PageRef(page).entry(index);
            if entry.state() != Some(State::Data)
                || self.map.pending(job.tree.lineage, Lba(lba)).is_some()
            {
                continue;
            }
            let bits = job.unverified.get(&entry.segment());
            let is_unverified =
                bits.is_some_and(|bits| entry.index() < bits.blocks() && bits.get(entry.index()));
            if is_unverified || self.segments.locate(entry).is_none() {
                job.tree.blocks.push((lba, entry));
            }
        }
    }

    /// A block of which only the map knows what it should be.
    fn judge_by_map(&mut self, job: &mut Job, lba: u64, entry: Entry) -> Next {
        let lineage = job.tree.lineage;
        if self.map.pending(lineage, Lba(lba)).is_some() {
            job.tree.blocks.pop();
            return Next::Again;
        }
        let place = self.segments.locate(entry);
        let is_sound = match place {
            Some((slot, block)) if self.held_from(slot, block) == 0 => {
                return Next::Read(self.slot_run(slot, block, 1));
            }
            Some((slot, block)) => {
                let at = self.header.block_at(slot, block);
                match self.scrub.window.block(&self.memory, at) {
                    Found::Bytes(bytes) => {
                        Ok(block_checksum(self.header.salt, bytes) == entry.checksum)
                    }
                    Found::Unreadable => Err(true),
                }
            }
            None => Err(false),
        };
        if is_sound == Ok(true) {
            self.scrub_verified(1);
        } else if let Some((slot, block)) = place.filter(|_| !job.is_second) {
            job.is_second = true;
            return Next::Read(self.slot_run(slot, block, 1));
        } else {
            let (slot, block) = place.unwrap_or((SlotId(u32::MAX), 0));
            self.bad_block(
                slot,
                &Wrong {
                    segment: entry.segment(),
                    block,
                    index: entry.index(),
                    is_unreadable: is_sound == Err(true),
                    owner: Some((lineage, lba)),
                },
            );
        }
        job.is_second = false;
        job.tree.blocks.pop();
        Next::Again
    }

    /// A page of the map is damaged, and what it names cannot be found.
    fn bad_page(
        &mut self,
        job: &mut Job,
        entry: Entry,
        level: u8,
        place: Option<(SlotId, u32)>,
        is_unreadable: bool,
    ) {
        job.is_second = false;
        let span = span_of_level(level + 1);
        let first = job.tree.lba - job.tree.lba % span;
        job.tree.lba = first + span;
        let disk = self.disk_of(job.tree.lineage);
        let what = if is_unreadable { "cannot be read" } else { "is not what was written" };
        let remedy = "reads of these blocks fail unless the page is still in memory: copy what can \
                      be read, then stop the server and run `bowline pool check`";
        // Of a disk that is gone nothing is needed.
        let severity = if disk.is_some() { ScrubSeverity::Lost } else { ScrubSeverity::Harmless };
        let what = format!("the page of the map for blocks {first} to {} {what}", first + span - 1);
        self.found(ScrubFinding {
            is_unreadable,
            disk,
            lba: disk.map(|_| Lba(first)),
            segment: Some(entry.segment()),
            slot: place.map(|(slot, _)| slot),
            block: place.map_or(0, |(_, block)| block.into()),
            ..ScrubFinding::new(severity, what, remedy)
        });
    }
}

impl Walk {
    /// Goes down from a root as far as pages are known.
    fn next(&self, root: Entry, height: u8) -> Place {
        if self.lba >= span_of_level(height) {
            return Place::End;
        }
        let (mut entry, mut level) = (root, height);
        loop {
            if entry.state() != Some(State::Page) || level == 0 {
                let span = span_of_level(level);
                return Place::Nothing(self.lba - self.lba % span + span);
            }
            level -= 1;
            match self.path.get(&level) {
                Some((address, page)) if *address == entry.address => {
                    let index = self.lba / span_of_level(level) % FANOUT;
                    entry = PageRef(page).entry(index as usize);
                }
                _ => return Place::Page(entry, level),
            }
        }
    }
}
