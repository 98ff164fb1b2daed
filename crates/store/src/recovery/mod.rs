//! Opening a pool: superblock, checkpoint, log, arena; then a new epoch begins.
//!
//! Invariants (rules D3, D4):
//! - What is accepted of the log is the longest chain that verifies. Where that chain ends although
//!   something later proves that more of it was durable, the pool is *damaged*: it opens for
//!   reading, and nothing is cut off.
//! - With the arena of the last epoch at hand, the log counts as far as the arena saw it flushed;
//!   everything later is in the arena and is written again. So a flush that failed before the
//!   process died cannot make recovery trust what the medium only seems to hold. Where the arena
//!   is gone but the host is not, what nothing proves to be durable is written in place once more.
//! - Recovery writes other bytes only to slots nothing points to, and its own record of the new
//!   epoch last. So it may be cut off anywhere and done again.

mod half;
mod in_place;
mod load;
mod replay;
mod search;
mod walk;

use std::rc::Rc;

use bowline_arena::{Memory, SharedPages, Span};

use crate::appender::Appender;
use crate::backing::backed_slot;
use crate::blocking::Blocking;
use crate::catalogue::Catalogue;
use crate::compaction::{WINDOW_BLOCKS, WINDOWS_MAX};
use crate::format::{
    CUTS_MAX, Cut, Entries, EntryKind, PoolHeader, Position, Record, SegmentKind, Superblock,
};
use crate::index::Index;
use crate::io::InFlight;
use crate::log::{Identity, Log, OpenSegment};
use crate::map::Map;
use crate::segments::{Segments, SlotState};
use crate::staging::{Found, Staging};
use crate::status::{Counters, PoolState};
use crate::store::{ArenaRegion, Broken, Recovered, Store, StoreOptions};
use crate::streams::Streams;
use crate::tables::{Deltas, Words};
use crate::{BLOCK_BYTES, BatchNumber, Epoch, Media, SlotId, StoreError};

pub use load::{CreateOptions, create, pool_header};
pub(crate) use load::{
    check_slot_count, choose_root, double_root, load_blob, read_blob_copy, read_header, read_root,
    read_roots, write_root,
};
pub(crate) use replay::Replay;
pub(crate) use walk::{Damage, Walk, Why};

/// Pages for reading the map, and for the streams.
const LOAD_PAGES: u32 = 32;
const MAP_RUN_PAGES: u32 = 32;
const BLOB_RUN_PAGES: u32 = 16;
const IMAGE_RUN_PAGES: u32 = 64;
/// All of these, and the page of the superblock.
const STORE_PAGES: u64 =
    (WINDOW_BLOCKS + LOAD_PAGES + 2 * (MAP_RUN_PAGES + 2 * BLOB_RUN_PAGES + IMAGE_RUN_PAGES) + 1)
        as u64;
/// Epochs since the last checkpoint after which one is made before anything else.
const CUTS_MANY: usize = CUTS_MAX - 8;

const GONE: &str = "the pool was not closed and its arena is gone: writes that were acknowledged \
                    but not flushed may be lost";
const NOT_QUIET: &str = "the pool was not closed, its arena is gone, and this file system does not \
                         tell whether I/O of the last server is still under way: serve it with \
                         that server's --arena directory, or serve a copy of it, or restart the \
                         machine";

/// A batch a dead process left, with the memory it lies in.
struct Left {
    found: Found,
    head: Span,
    data: Vec<Span>,
}

/// What of the pool has been understood so far.
pub(crate) struct Known {
    pub header: PoolHeader,
    pub root: Superblock,
    pub segments: Segments,
    pub catalogue: Catalogue,
    pub map: Map,
    /// Copies of the blob that cannot be used, and why.
    pub bad_blobs: Vec<(usize, String)>,
}

/// The log as it was read behind the last checkpoint.
struct ReadLog {
    replay: Replay,
    /// Where what is accepted of it ends.
    last: Position,
    /// Why more of it should be there.
    damage: Option<Damage>,
}

impl<M: Media> Store<M> {
    /// Opens a pool: recovers it from whatever the last epoch left, takes over the arena, and
    /// begins a new epoch. The caller has made sure that the last owner is dead and its I/O has
    /// come to rest.
    ///
    /// # Errors
    /// If the medium holds no pool, cannot be read or written, or the pool is damaged beyond
    /// reading. Lesser damage is a state of the open pool.
    pub fn open(
        mut media: M,
        arena: ArenaRegion,
        options: StoreOptions,
    ) -> Result<Store<M>, StoreError> {
        let memory = arena.pages.borrow().memory().clone();
        let mut staging = Staging::new(arena.control);
        if options.broken.contains(&Broken::PublishBeforeContent) {
            staging.break_publish();
        }
        // Before anything else takes a page: these hold what the dead process acknowledged.
        let left = if arena.is_fresh {
            Ok(Vec::new())
        } else {
            take_left(&staging, &memory, &arena.pages)
        };
        let header = read_header(&mut Blocking::new(&mut media, &arena.pages)?)?;
        let root = {
            let mut medium = Blocking::new(&mut media, &arena.pages)?;
            read_root(&mut medium, &header)?
        };
        let is_ours = !arena.is_fresh
            && staging.belongs_to(&memory, root.epoch)
            && !options.broken.contains(&Broken::IgnoreArena);
        let mut left = if is_ours { left } else { forget_left(left, &arena.pages) };
        let lost = !is_ours && !root.clean && root.boot == options.boot && root.epoch.0 > 0;
        let state = match lost && !options.broken.contains(&Broken::IgnoreArena) {
            true if !options.accept_loss => PoolState::LostWrites(GONE.into()),
            true if !options.is_quiet => PoolState::LostWrites(NOT_QUIET.into()),
            _ => PoolState::Healthy,
        };
        let mut opening = Opening {
            media,
            pages: arena.pages,
            memory,
            staging: Some(staging),
            options,
            state,
            is_arena_lost: lost,
            index: None,
        };
        let delta_bytes = opening.options.delta_bytes;
        // An arena that was made with another setting may have less room.
        let has_room = |span: &Span| u64::from(span.bytes()) >= Index::bytes(delta_bytes);
        let index = arena.index.filter(has_room);
        let index = index.map(|span| Index::new(Rc::clone(&opening.memory), span, delta_bytes));
        let Some(index) = index else { return opening.run(header, root, left, is_ours) };
        if is_ours && opening.state == PoolState::Healthy {
            let plan = opening.plan(&header, &root, &left, &index);
            if let (Ok(plan), Ok(left)) = (plan, &mut left) {
                return opening.go_on(header, root, std::mem::take(left), plan, index);
            }
            // The log is read.
        }
        opening.index = Some(index);
        opening.run(header, root, left, is_ours)
    }
}

/// Takes the pages of the batches a dead process left, before anybody else can.
fn take_left(staging: &Staging, memory: &Memory, pages: &SharedPages) -> Result<Vec<Left>, String> {
    let mut all = Vec::new();
    let mut batches = staging.found(memory);
    half::leave_out(memory, &mut batches);
    for found in batches {
        let mut pages = pages.borrow_mut();
        let damaged = || format!("the arena's record of batch {} is damaged", found.number);
        let head = pages.adopt(found.head).ok_or_else(damaged)?;
        let mut data = Vec::new();
        for part in &found.spans {
            data.push(pages.adopt(*part).ok_or_else(damaged)?);
        }
        all.push(Left { found, head, data });
    }
    Ok(all)
}

/// Gives back what turned out to be another epoch's.
fn forget_left(left: Result<Vec<Left>, String>, pages: &SharedPages) -> Result<Vec<Left>, String> {
    for Left { head, data, .. } in left.unwrap_or_default() {
        let mut pages = pages.borrow_mut();
        pages.give(head);
        data.into_iter().for_each(|span| pages.give(span));
    }
    Ok(Vec::new())
}

/// Slots that images of the arena's records lie in are taken, before the log looks for one.
fn keep_image_slots(memory: &Memory, left: &[Left], segments: &mut Segments) {
    for one in left {
        let blocks: Vec<&[u8]> = one
            .data
            .iter()
            .flat_map(|span| memory.slice(span).chunks_exact(BLOCK_BYTES as usize))
            .collect();
        let entries = u32::from(one.found.progress.entries);
        // One that makes no sense is told when the batch is adopted.
        for found in Entries::new(memory.slice(&one.head), entries).map_while(Result::ok) {
            if found.entry.kind != EntryKind::Record {
                continue;
            }
            let block = blocks.get(found.data_block as usize);
            let Some(Record::Moved(moves)) = block.and_then(|block| Record::decode(block)) else {
                continue;
            };
            for to in moves {
                if segments.slot(to.slot) == Some(SlotState::Free) {
                    segments.use_slot(to.slot, SegmentKind::Images);
                }
            }
        }
    }
}

struct Opening<M> {
    media: M,
    pages: SharedPages,
    memory: Rc<Memory>,
    staging: Option<Staging>,
    options: StoreOptions,
    state: PoolState,
    /// The arena of the last epoch is gone, although the host still runs.
    is_arena_lost: bool,
    /// Where the changes of the map are to lie, if they are to outlive the process.
    index: Option<(Index, [Words; 2])>,
}

impl<M: Media> Opening<M> {
    fn run(
        mut self,
        header: PoolHeader,
        root: Superblock,
        left: Result<Vec<Left>, String>,
        is_ours: bool,
    ) -> Result<Store<M>, StoreError> {
        self.check_memory()?;
        let work = self.take_work()?;
        let streams = self.take_streams()?;
        let loads = self.take_spans(LOAD_PAGES, 1)?;
        let (salt, frames) = (header.salt, self.options.map_frames);
        let map = match self.index.take() {
            Some(index) => Map::in_index(salt, index, frames, loads),
            None => Map::new(salt, self.options.delta_bytes, frames, loads),
        };
        let (mut known, mut read) = self.read_log(header, root, map, is_ours)?;
        let left = self.judge(&known, &read, left);
        let batches_replayed = read.replay.batches;
        let mut counters = Counters { batches_replayed, ..Counters::default() };
        let log_bytes = read.replay.bytes;
        let log = if self.state.is_writing() {
            self.begin_log(&mut known, &mut read, left, is_ours)?
        } else {
            // Nothing will be written: the place of the log is only a name.
            self.new_log(&known, OpenSegment::nowhere(read.last), read.last)
        };
        if self.state.is_writing() {
            counters.batches_adopted = log.adopted;
        }
        let Known { header, root, segments, catalogue, map, bad_blobs } = known;
        let bad_blobs = bad_blobs.len();
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
            seq: read.replay.seq,
            log_bytes,
            streams,
            work,
        });
        store.back_at_start();
        if store.state.is_writing() && store.root.cuts.len() > CUTS_MANY {
            store.checkpoint_now()?;
        }
        if bad_blobs > 0 {
            // Two copies again, before the other one goes too.
            store.want_checkpoint();
        }
        store.begin_index();
        store.regain_slots();
        Ok(store)
    }

    /// Whether the memory holds the largest write there will be: it would be refused as busy for
    /// ever otherwise.
    fn check_memory(&self) -> Result<(), StoreError> {
        let bytes = self.options.write_bytes_max;
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let too_small = |what: &str, have: u64, need: u64| {
            Err(StoreError::Invalid(format!(
                "{what} too small: a write of {bytes} bytes takes {need}, and there are {have}; \
                 give more memory"
            )))
        };
        let (changes, delta_bytes) =
            (Deltas::capacity_of(self.options.delta_bytes / 2) as u64, self.options.delta_bytes);
        if changes < blocks {
            return too_small(&format!("delta_bytes {delta_bytes} (changes) is"), changes, blocks);
        }
        let descriptors = self.staging.as_ref().map_or(0, Staging::capacity);
        let batches = blocks / 32 + 3;
        if descriptors < batches {
            return too_small("the arena's control area (descriptors) is", descriptors, batches);
        }
        let pages = u64::from(self.pages.borrow().count());
        let needed = blocks + u64::from(Log::overhead_pages(blocks as u32)) + STORE_PAGES;
        if pages - pages / 8 < needed {
            return too_small("the arena (pages) is", pages - pages / 8, needed);
        }
        Ok(())
    }

    /// The windows of compaction.
    fn take_work(&self) -> Result<Vec<Span>, StoreError> {
        // The longest runs first: what a dead process left may have broken the free pages up.
        let mut work = self.take_spans(1, WINDOW_BLOCKS)?;
        // More windows let compaction read ahead; a small arena does without.
        let spare = self.pages.borrow().count() / 16 / WINDOW_BLOCKS;
        work.extend(self.take_spans(spare.min(WINDOWS_MAX - 1), WINDOW_BLOCKS)?);
        Ok(work)
    }

    /// The buffers of the streams, longest first.
    fn take_streams(&self) -> Result<Streams, StoreError> {
        let images = Appender::new(SegmentKind::Images, self.take_spans(2, IMAGE_RUN_PAGES)?);
        let pages = Appender::new(SegmentKind::Map, self.take_spans(2, MAP_RUN_PAGES)?);
        let blob = || -> Result<Appender, StoreError> {
            Ok(Appender::new(SegmentKind::Blob, self.take_spans(2, BLOB_RUN_PAGES)?))
        };
        let blobs = [blob()?, blob()?];
        let page = self.take_spans(1, 1)?.pop().ok_or_else(no_memory)?;
        Ok(Streams::new(pages, blobs, images, page))
    }

    /// Reads the last checkpoint, and the log behind it as far as it can be believed.
    fn read_log(
        &mut self,
        header: PoolHeader,
        root: Superblock,
        map: Map,
        is_ours: bool,
    ) -> Result<(Known, ReadLog), StoreError> {
        let mut medium = Blocking::new(&mut self.media, &self.pages)?;
        let mut known = load_blob(&mut medium, header, root, map)?;
        let flushed = self.staging.as_ref().map(|staging| staging.released(&self.memory));
        let mut walk = Walk::new(&known, flushed.filter(|_| is_ours));
        known.segments.reuses_at_once =
            self.options.broken.contains(&Broken::ReuseBeforeCheckpoint);
        walk.is_rewritten = self.is_arena_lost
            && self.state.is_writing()
            && !self.options.broken.contains(&Broken::RewriteNothing);
        walk.is_chain_ignored = self.options.broken.contains(&Broken::NoChain);
        let mut replay = Replay::new(known.root.seq);
        let damage = walk.run(&mut medium, &mut known, &mut replay)?;
        Ok((known, ReadLog { replay, last: walk.position(), damage }))
    }

    /// Settles whether the pool may be written to. Returns what of the arena is to be believed.
    fn judge(
        &mut self,
        known: &Known,
        read: &ReadLog,
        left: Result<Vec<Left>, String>,
    ) -> Vec<Left> {
        let left = left.unwrap_or_else(|damage| {
            self.state = PoolState::Damaged(damage);
            Vec::new()
        });
        let is_accepted = self.options.accept_cut == Some(read.last.number);
        if let Some(damage) = read.damage.as_ref().filter(|_| !is_accepted) {
            self.state = PoolState::Damaged(damage.to_string());
        }
        if let Some(damage) = cut_short(&self.media, &known.header, known) {
            self.state = PoolState::Damaged(damage);
        }
        left
    }

    /// The log of the new epoch, with what the arena held at its beginning. The pool turns out to
    /// be damaged if that does not follow the log.
    fn begin_log(
        &mut self,
        known: &mut Known,
        read: &mut ReadLog,
        left: Vec<Left>,
        is_ours: bool,
    ) -> Result<Log, StoreError> {
        if known.root.epoch.0 > 0 {
            let mut medium = Blocking::new(&mut self.media, &self.pages)?;
            double_root(&mut medium, &known.header, &known.root, &self.options.broken)?;
        }
        keep_image_slots(&self.memory, &left, &mut known.segments);
        known.segments.hides_space = self.options.broken.contains(&Broken::HideSpace);
        if self.options.broken.contains(&Broken::OpenBareSlots) {
            known.segments.skip_backing();
        }
        let segment = self.first_segment(known, read.last)?;
        let mut log = self.new_log(known, segment, read.last);
        if !is_ours {
            log.staging.format(&self.memory);
        }
        if let Err(damage) = self.adopt(&mut log, left, read.last.number) {
            self.state = PoolState::Damaged(damage);
        }
        bowline_arena::fail_point!("recovery.adopted");
        if self.state.is_writing() {
            self.settle(&mut log, known, &mut read.replay, read.last)?;
        }
        Ok(log)
    }

    fn take_spans(&self, count: u32, pages: u32) -> Result<Vec<Span>, StoreError> {
        (0..count).map(|_| self.pages.borrow_mut().take(pages).ok_or_else(no_memory)).collect()
    }

    fn new_log(&mut self, known: &Known, segment: OpenSegment, last: Position) -> Log {
        let identity = Identity {
            pool: known.header.pool,
            salt: known.header.salt,
            epoch: Epoch(known.root.epoch.0 + 1),
            instance: self.options.instance,
            slot_blocks: known.header.slot_blocks(),
        };
        let staging = self.staging.take().unwrap_or_else(|| panic!("one log takes the area"));
        Log::new(identity, self.pages.clone(), staging, segment, last)
    }

    /// The segment the new epoch begins with, in a slot that holds nothing.
    fn first_segment(
        &mut self,
        known: &mut Known,
        last: Position,
    ) -> Result<OpenSegment, StoreError> {
        let mut medium = Blocking::new(&mut self.media, &self.pages)?;
        let slot = backed_slot(&mut medium, &known.header, &mut known.segments)?;
        let successor = backed_slot(&mut medium, &known.header, &mut known.segments)?;
        drop(medium);
        let segment = known.segments.take_segment_id();
        known.segments.add_whole(segment, SegmentKind::Log, slot);
        let before = (last.segment, last.number, last.checksum);
        Ok(OpenSegment { segment, slot, successor, next_block: 1, is_fresh: true, before })
    }

    /// Puts the arena's batches behind the log's last one.
    fn adopt(&self, log: &mut Log, left: Vec<Left>, last: BatchNumber) -> Result<(), String> {
        // An empty batch counts where others follow it: it was closed to prove a flush. The last
        // one had only been opened.
        let filled = left.iter().filter(|one| one.found.progress.entries > 0);
        let end = filled.map(|one| one.found.number).max().unwrap_or(last);
        for Left { found, head, data } in left {
            if found.number <= last || found.number > end {
                if found.number > end {
                    log.staging.retract(&self.memory, found.number);
                }
                let mut pages = self.pages.borrow_mut();
                pages.give(head);
                data.into_iter().for_each(|span| pages.give(span));
                continue;
            }
            if found.number != log.next_number {
                return Err(format!(
                    "the log ends with batch {}, but the arena goes on with batch {}",
                    log.last(),
                    found.number
                ));
            }
            log.adopt(&found, head, data)?;
        }
        Ok(())
    }

    /// Writes what the arena held, makes everything durable, and records the new epoch.
    fn settle(
        &mut self,
        log: &mut Log,
        known: &mut Known,
        replay: &mut Replay,
        last: Position,
    ) -> Result<(), StoreError> {
        let first = (log.segment.segment, log.segment.slot);
        let mut medium = Blocking::new(&mut self.media, &self.pages)?;
        medium.is_flush_skipped = self.options.broken.contains(&Broken::NoFlushAtRecovery);
        medium.flush()?;
        if log.batches.is_empty() {
            // A recovery that was cut off may have put an arena's batches there that is gone now.
            // What this one does not accept must not come back in the next; nor may the header say
            // that the segment begins behind another batch.
            medium.write_block(known.header.block_at(first.1, 1), |_| {})?;
            medium.write_block(known.header.block_at(first.1, 0), |block| {
                log.encode_header(block);
            })?;
        }
        for at in 0..log.batches.len() {
            if log.batches[at].blocks() > log.blocks_left() {
                roll(&mut medium, log, known, at)?;
            }
            log.place(at);
            let Some((_, slot, block, parts)) = log.submit_next() else { break };
            medium.write_parts(known.header.block_at(slot, block), parts)?;
            replay.adopted(&mut medium, log, at, known)?;
        }
        medium.flush()?;
        bowline_arena::fail_point!("recovery.flushed");
        let epoch = log.identity.epoch;
        // A new area has to know how much of the log it may trust before it belongs to an epoch.
        log.staging.release(&self.memory, last.number);
        // An epoch that was announced and never began is this area's own by now.
        log.staging.begin(&self.memory, known.root.epoch);
        log.staging.announce(&self.memory, epoch);
        let cut = Cut { epoch, accepted: last, segment: first.0, slot: first.1 };
        if self.options.broken.contains(&Broken::NoEpochRecord) {
            known.root.epoch = epoch;
        } else {
            let boot = self.options.boot;
            record_epoch(&mut medium, known, cut, boot)?;
        }
        bowline_arena::fail_point!("recovery.epoch");
        log.settled();
        log.staging.begin(&self.memory, epoch);
        Ok(())
    }
}

/// Goes on in the next segment while batches are placed.
fn roll<M: Media>(
    medium: &mut Blocking<'_, M>,
    log: &mut Log,
    known: &mut Known,
    at: usize,
) -> Result<(), StoreError> {
    let successor = backed_slot(medium, &known.header, &mut known.segments)?;
    let (old, slot) = (log.segment.slot, log.segment.successor);
    let segment = known.segments.take_segment_id();
    known.segments.close_slot(old, 0);
    known.segments.add_whole(segment, SegmentKind::Log, slot);
    let last = BatchNumber(log.batches[at].number.0 - 1);
    log.begin_segment(segment, slot, successor, last);
    Ok(())
}

/// Writes the superblock of the new epoch, both copies.
fn record_epoch<M: Media>(
    medium: &mut Blocking<'_, M>,
    known: &mut Known,
    cut: Cut,
    boot: u128,
) -> Result<(), StoreError> {
    let root = &mut known.root;
    root.epoch = cut.epoch;
    root.generation += 1;
    root.boot = boot;
    root.clean = false;
    root.segment_limit.0 = root.segment_limit.0.max(known.segments.next_segment().0 + (1 << 20));
    // An epoch that accepted nothing leaves no trace.
    root.cuts.retain(|old| old.accepted.number < cut.accepted.number);
    root.cuts.push(cut);
    if root.cuts.len() > CUTS_MAX {
        return Err(StoreError::Damaged("too many starts without a checkpoint".into()));
    }
    write_root(medium, &known.header, root, &mut 0)
}

/// What is missing of the medium, if anything is.
pub(crate) fn cut_short<M: Media>(media: &M, header: &PoolHeader, known: &Known) -> Option<String> {
    let (have, wanted) = (header.slots_on(media.bytes_total()), known.segments.slot_count());
    (have < wanted).then(|| {
        format!(
            "the medium has room for {have} slots only, but the pool has {wanted}: it was cut \
             short; give it back its size of at least {} bytes",
            header.block_at(SlotId(wanted), 0)
        )
    })
}

fn no_memory() -> StoreError {
    StoreError::Invalid("the arena has too few pages for a store".into())
}
