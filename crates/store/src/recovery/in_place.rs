//! Going on in place: a process died, its arena is there, and so is the index. Nothing of the log
//! is read, and nothing is written before the pool is open; it goes on in the same epoch, as if
//! nothing had happened.
//!
//! Invariants:
//! - What the dead process closed is written again where it was written, or would have been, with
//!   the same bytes. What it left open stays open.
//! - The last batches are applied once more, in order: the process may have died between the
//!   publishing of an entry and the end of what it changes. Those that a freeze covers had been
//!   applied before it.
//! - Nothing that was not told to be durable counts as durable.
//! - Whatever does not go together is no error here: the log is read instead, as if there were no
//!   index. So everything is looked at before anything is changed.

use std::collections::BTreeMap;

use bowline_arena::Memory;

use super::{Known, Left, Opening, Replay, double_root, load_blob};
use crate::blocking::Blocking;
use crate::checkpoint::Frozen;
use crate::format::{PoolHeader, Position, Record, SegmentKind, Superblock, read_batch};
use crate::index::{self, Continued, Happened, Index, Moment};
use crate::io::InFlight;
use crate::log::{Identity, Log, OpenSegment, Stage};
use crate::map::Map;
use crate::staging::{Placed, Staging};
use crate::status::Counters;
use crate::store::{Broken, Recovered, Store};
use crate::tables::{Deltas, Directory, Words};
use crate::{BatchNumber, Media, SegmentId, Seq, StoreError};

/// What there is to go on with, all of which goes together.
pub(super) struct Plan {
    index: index::Left,
    /// Of the batches that were left: where those lie that are gone on with, and whether the last
    /// one is open.
    kept: Vec<Placed>,
    is_last_open: bool,
    /// Where the log goes on.
    segment: OpenSegment,
    /// Behind which batch the ones that were left follow.
    last: Position,
    seq: Seq,
    /// Where segments of the log lie that are known.
    continued: BTreeMap<SegmentId, Continued>,
    /// The ledger ends here, if it says more than the batches do.
    ledger_end: Option<u64>,
}

impl Plan {
    /// A broken mode: the last checkpoint is taken to hold what was frozen.
    pub(super) fn forget_frozen(&mut self) {
        self.index.frozen = None;
    }

    /// Looks whether everything goes together.
    ///
    /// # Errors
    /// What does not.
    pub(super) fn make(
        (header, root): (&PoolHeader, &Superblock),
        memory: &Memory,
        staging: &Staging,
        left: &[Left],
        (index, words): &(Index, [Words; 2]),
    ) -> Result<Plan, String> {
        if root.clean || !words.iter().all(Deltas::are) {
            return Err("nothing was going on".into());
        }
        let index = index.left(root.epoch.0, &root.position)?;
        let mut chain = Chain::begin(memory, staging, &index, left)?;
        for one in left {
            chain.add(header, memory, staging, one)?;
        }
        let Chain { kept, is_last_open, released, last, previous, seq } = chain;
        let end = kept.last().copied().or(released);
        let end = end.ok_or("nothing says where the log ends")?;
        let goes_on = where_it_goes_on(&index);
        let own = goes_on.iter().find(|(_, one)| one.segment == end.place.segment);
        let later: Vec<_> =
            goes_on.iter().filter(|(_, one)| one.segment > end.place.segment).collect();
        let behind = (end.place.segment, BatchNumber(last.number.0 + kept.len() as u64), previous);
        let (current, is_fresh) = match (own, &later[..]) {
            // Where something half admitted was put is forgotten with it.
            (Some((_, own)), []) => (*own, false),
            (Some((_, own)), _) if is_last_open => (*own, false),
            (_, [(_, next)]) if next.before == behind => (*next, true),
            _ => return Err("it is not known where the log goes on".into()),
        };
        let next_block = match (is_fresh, is_last_open) {
            (true, _) => 1,
            (false, true) => end.place.block,
            (false, false) => end.place.block + 1 + u32::from(end.progress.data_blocks),
        };
        let Continued { segment, slot, successor, before } = current;
        let segment = OpenSegment { segment, slot, successor, next_block, is_fresh, before };
        let dropped = later.first().filter(|(_, one)| one.segment > current.segment);
        let ledger_end = dropped.map(|(at, _)| *at);
        let continued = goes_on.into_iter().map(|(_, one)| (one.segment, one)).collect();
        Ok(Plan { index, kept, is_last_open, segment, last, seq, continued, ledger_end })
    }
}

/// Where the log went on, each with its place in the ledger.
fn where_it_goes_on(index: &index::Left) -> Vec<(u64, Continued)> {
    let mut all: Vec<(u64, Continued)> = Vec::new();
    for (at, happened) in &index.happened {
        if let Happened::Continued(one) = happened {
            // A freeze names the last one again.
            if all.last().is_none_or(|(_, last)| last.segment != one.segment) {
                all.push((*at, *one));
            }
        }
    }
    all
}

/// The batches that were left, as far as they follow one another.
struct Chain {
    kept: Vec<Placed>,
    is_last_open: bool,
    /// The last one released, if it is still known.
    released: Option<Placed>,
    last: Position,
    /// Checksum of the last closed one.
    previous: u64,
    seq: Seq,
}

impl Chain {
    fn begin(
        memory: &Memory,
        staging: &Staging,
        index: &index::Left,
        left: &[Left],
    ) -> Result<Chain, String> {
        let number = staging.released(memory);
        let released = staging.placed(memory, number);
        let checksum = match (released, left.first()) {
            (Some(Placed { checksum: Some(checksum), .. }), _) => checksum,
            (_, Some(first)) => {
                let placed = staging.placed(memory, first.found.number);
                placed.ok_or("a batch has no place")?.place.previous
            }
            _ => return Err("nothing says where the log ends".into()),
        };
        let last = Position { number, checksum, ..Position::default() };
        let seq = released.map_or(Seq(0), |one| one.seq).max(index.seq());
        let kept = Vec::new();
        Ok(Chain { kept, is_last_open: false, released, last, previous: checksum, seq })
    }

    fn add(
        &mut self,
        header: &PoolHeader,
        memory: &Memory,
        staging: &Staging,
        one: &Left,
    ) -> Result<(), String> {
        let number = one.found.number;
        let placed = staging.placed(memory, number);
        let placed = placed.ok_or_else(|| format!("batch {number} has no place"))?;
        let broken = |what: &str| Err(format!("batch {number} {what}"));
        if self.is_last_open {
            // What was half admitted is left out.
            return match one.found.progress.entries {
                0 => Ok(()),
                _ => broken("follows one that is open"),
            };
        }
        if placed.place.previous != self.previous {
            return broken("does not follow the one before");
        }
        let is_whole = placed.progress == one.found.progress;
        if let Some(checksum) = placed.checksum.filter(|_| is_whole) {
            let head = read_batch(header.salt, memory.slice(&one.head));
            let is_it = head.is_some_and(|head| {
                let place = (head.segment, head.block, head.previous);
                let expected = (placed.place.segment, placed.place.block, placed.place.previous);
                head.number == number && head.checksum == checksum && place == expected
            });
            if !is_it {
                return broken("is not what was closed");
            }
            self.previous = checksum;
            self.seq = self.seq.max(placed.seq);
        } else {
            self.is_last_open = true;
        }
        self.kept.push(Placed { progress: one.found.progress, ..placed });
        Ok(())
    }
}

/// The pool as it was when the process died.
struct Resumed {
    known: Known,
    frozen: Option<Frozen>,
    /// The last request whose record has been applied.
    recorded: Seq,
}

impl<M: Media> Opening<M> {
    /// Looks whether a dead process can be gone on from in place.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn plan(
        &self,
        header: &PoolHeader,
        root: &Superblock,
        left: &Result<Vec<Left>, String>,
        index: &(Index, [Words; 2]),
    ) -> Result<Plan, String> {
        let staging = self.staging.as_ref().ok_or("there is no log in the arena")?;
        let left = left.as_ref().map_err(String::clone)?;
        let mut plan = Plan::make((header, root), &self.memory, staging, left, index)?;
        if self.options.broken.contains(&Broken::ForgetFrozen) {
            plan.forget_frozen();
        }
        Ok(plan)
    }

    /// Goes on in place.
    pub(super) fn go_on(
        mut self,
        header: PoolHeader,
        root: Superblock,
        left: Vec<Left>,
        mut plan: Plan,
        index: (Index, [Words; 2]),
    ) -> Result<Store<M>, StoreError> {
        self.check_memory()?;
        let work = self.take_work()?;
        let streams = self.take_streams()?;
        let loads = self.take_spans(super::LOAD_PAGES, 1)?;
        let frames = (self.options.map_frames, loads);
        let map = Map::left(header.salt, index, &plan.index, plan.ledger_end, frames);
        let map = map.ok_or_else(|| StoreError::Damaged("the arena's index is damaged".into()))?;
        let happened = std::mem::take(&mut plan.index.happened);
        let resumed = self.resume(header, root, map, &plan, happened)?;
        let Resumed { mut known, frozen, recorded } = resumed;
        let mut log = self.resume_log(&known, left, &plan)?;
        bowline_arena::fail_point!("recovery.adopted");
        let replay = self.repeat(&log, &mut known, (&plan, frozen.as_ref(), recorded))?;
        let Known { header, root, segments, catalogue, map, bad_blobs } = known;
        let changed = (map.active.deltas.len() + map.active.ranges.len()) as u64;
        let batches_adopted = log.adopted;
        let counters = Counters { batches_adopted, went_on_in_place: 1, ..Counters::default() };
        log.seq = replay.seq;
        let continued = plan.continued;
        let mut store = Store::start(Recovered {
            media: self.media,
            in_flight: InFlight::default(),
            header,
            options: self.options,
            memory: self.memory,
            log,
            map,
            segments,
            catalogue,
            root,
            counters,
            state: self.state,
            seq: replay.seq,
            log_bytes: changed * crate::BLOCK_BYTES,
            streams,
            work,
        });
        let closed = store.log.batches.iter().rev().find(|batch| batch.stage == Stage::Closed);
        store.adopted_through = closed.map_or(BatchNumber(0), |batch| batch.number);
        if let Some(frozen) = frozen {
            store.take_frozen(frozen);
        }
        for one in continued.values() {
            store.scrub.segment_begins(one.segment, (one.before.0, one.before.1));
        }
        store.back_at_start();
        if !bad_blobs.is_empty() {
            store.want_checkpoint();
        }
        store.regain_slots();
        Ok(store)
    }

    /// Counts what is there, and applies the last batches once more.
    fn repeat(
        &mut self,
        log: &Log,
        known: &mut Known,
        (plan, frozen, recorded): (&Plan, Option<&Frozen>, Seq),
    ) -> Result<Replay, StoreError> {
        // Before anything changes: what is noted now is newer than all that was.
        let Known { segments, map, .. } = known;
        map.recount(|entry| segments.set_live(entry));
        let mut replay = Replay::new(plan.seq);
        (replay.recorded_through, replay.begun) = (recorded, frozen.is_some().into());
        let covered = frozen.map_or(BatchNumber(0), |frozen| frozen.position.number);
        let mut medium = Blocking::new(&mut self.media, &self.pages)?;
        for at in 0..log.batches.len() {
            let is_repeated = log.batches[at].number > covered
                && !self.options.broken.contains(&Broken::RepeatNothing);
            if is_repeated {
                replay.adopted(&mut medium, log, at, known)?;
            }
        }
        Ok(replay)
    }

    /// Brings the last checkpoint up to what has happened since.
    fn resume(
        &mut self,
        header: PoolHeader,
        root: Superblock,
        map: Map,
        plan: &Plan,
        happened: Vec<(u64, Happened)>,
    ) -> Result<Resumed, StoreError> {
        let mut medium = Blocking::new(&mut self.media, &self.pages)?;
        double_root(&mut medium, &header, &root, &self.options.broken)?;
        let mut known = load_blob(&mut medium, header, root, map)?;
        drop(medium);
        let (mut recorded, mut frozen) = (Seq(0), None);
        let catalogue_of = |known: &Known, moment: &Moment| Frozen {
            begun: 1,
            position: moment.position,
            seq: moment.seq,
            catalogue: known.catalogue.clone(),
        };
        let moment = plan.index.frozen;
        for (at, happened) in happened {
            if plan.ledger_end.is_some_and(|end| at >= end) {
                break;
            }
            let is_later = moment.is_some_and(|moment| at >= moment.ledger);
            if let Some(moment) = moment.filter(|_| is_later && frozen.is_none()) {
                frozen = Some(catalogue_of(&known, &moment));
            }
            apply_happened(&mut known, happened, (is_later, moment.is_some()), &mut recorded)?;
        }
        if let Some(moment) = moment.filter(|_| frozen.is_none()) {
            frozen = Some(catalogue_of(&known, &moment));
        }
        let OpenSegment { segment, slot, successor, .. } = plan.segment;
        let count = known.segments.slot_count();
        if known.segments.get(segment).is_none() || slot.0.max(successor.0) >= count {
            return Err(StoreError::Damaged(format!("segment {segment} of the log lies nowhere")));
        }
        known.segments.reopen_slot(slot, SegmentKind::Log);
        known.segments.reopen_slot(successor, SegmentKind::Log);
        known.segments.set_next_segment(plan.index.next_segment);
        Ok(Resumed { known, frozen, recorded })
    }

    /// The log as it was.
    fn resume_log(
        &mut self,
        known: &Known,
        left: Vec<Left>,
        plan: &Plan,
    ) -> Result<Log, StoreError> {
        let identity = Identity {
            pool: known.header.pool,
            salt: known.header.salt,
            epoch: known.root.epoch,
            instance: self.options.instance,
            slot_blocks: known.header.slot_blocks(),
        };
        let staging = self.staging.take().unwrap_or_else(|| panic!("one log takes the area"));
        let mut log = Log::new(identity, self.pages.clone(), staging, plan.segment, plan.last);
        let kept = plan.kept.len();
        for (at, Left { found, head, data }) in left.into_iter().enumerate() {
            if at >= kept {
                log.staging.retract(&self.memory, found.number);
                let mut pages = self.pages.borrow_mut();
                pages.give(head);
                data.into_iter().for_each(|span| pages.give(span));
                continue;
            }
            log.adopt(&found, head, data).map_err(StoreError::Damaged)?;
            let placed = &plan.kept[at];
            let is_open = plan.is_last_open && at + 1 == kept;
            let header = plan.continued.get(&placed.place.segment);
            let header = header.filter(|_| placed.place.block == 1);
            log.resume(placed, is_open, header);
        }
        Ok(log)
    }
}

/// Applies what happened since a checkpoint; (is it later than a freeze, is there one).
fn apply_happened(
    known: &mut Known,
    happened: Happened,
    (is_later, has_frozen): (bool, bool),
    recorded: &mut Seq,
) -> Result<(), StoreError> {
    match happened {
        Happened::Continued(one) => super::walk::enter(known, one.segment, one.slot),
        Happened::Range { lineage, from, blocks, state, ordinal } => {
            let is_frozens = has_frozen && !is_later;
            let map = &mut known.map;
            let frozen = map.frozen.as_mut().filter(|_| is_frozens);
            let generation = frozen.unwrap_or(&mut map.active);
            generation.ordinal = generation.ordinal.max(ordinal);
            generation.ranges.insert(lineage, from, blocks, state, ordinal);
        }
        Happened::Recorded { seq, record, directories } => {
            let damaged = || StoreError::Damaged("a record in the arena's index is damaged".into());
            let record = Record::decode(&record).ok_or_else(damaged)?;
            *recorded = (*recorded).max(seq);
            if let Record::Moved(moves) = &record {
                let mut rest = &directories[..];
                for to in moves {
                    let (held, length) = Directory::decode(rest).map_err(|_| damaged())?;
                    rest = rest.get(length..).ok_or_else(damaged)?;
                    let is_known = known.segments.get(to.segment).is_some();
                    if is_known && to.slot.0 < known.segments.slot_count() {
                        known.segments.use_slot(to.slot, SegmentKind::Images);
                        // What the dead process counted as its first checkpoint is not durable.
                        known.segments.moved(to, held, u64::from(is_later));
                    }
                }
            }
            if let Record::Grown { slot_count } = record {
                known.segments.grow(slot_count);
            }
            known.apply_catalogue(&record);
        }
    }
    Ok(())
}

impl Known {
    /// Brings the catalogue up to a record whose ranges are known.
    fn apply_catalogue(&mut self, record: &Record) {
        if let Record::Disk(disk) = record {
            let lineage = disk.lineage;
            let empty = || crate::catalogue::empty_lineage(lineage);
            self.map.lineages.entry(lineage).or_insert_with(empty);
        }
        self.catalogue.apply(record);
    }
}
