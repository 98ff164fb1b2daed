//! A pool that is open: the write path, and the loop that moves everything forward.
//!
//! Invariants:
//! - A write is admitted whole or refused; once admitted, nothing can keep it from its place in
//!   the order: buffers, descriptors, deltas and slots were made sure of before.
//! - Nothing here waits. `poll` takes what the medium has finished, writes what is ready, and lets
//!   checkpoint and compaction make one small step each.

use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, SharedPages, Span};

use crate::api::{Disk, Durability, Event, Payload, Provision, Refused, StoreError, Ticket};
use crate::catalogue::{Catalogue, empty_lineage};
use crate::checkpoint::{Checkpoint, Frozen, Streams};
use crate::compaction::Compaction;
use crate::format::{EntryKind, LogEntry, PoolHeader, Record, SegmentKind, Superblock};
use crate::io::{InFlight, Purpose};
use crate::log::{Blocks, Gather, Log};
use crate::map::{Map, SMALL_RANGE_BLOCKS};
use crate::read::Reads;
use crate::segments::Segments;
use crate::status::{Counters, PoolState};
use crate::tables::{Entry, State};
use crate::{
    BLOCK_BYTES, BatchNumber, Completion, DiskId, Io, Lba, LineageId, Media, MediumError, Micros,
    Seq,
};

/// Batches in flight before the open one waits to fill up.
const EAGER_BATCHES_MAX: usize = 4;
/// Bytes in flight on the medium, at the least and at the most (rule D11).
const IN_FLIGHT_BYTES_MIN: u64 = 512 << 10;
const IN_FLIGHT_BYTES_MAX: u64 = 8 << 20;
/// How long what is in flight should take.
const IN_FLIGHT_MICROS: u64 = 2_000;
/// A pool that was written to and then left alone closes its log after this time, so that the last
/// flush can be proven (rule D3).
const IDLE_CLOSE_MICROS: u64 = 500_000;

/// Slots no live data may take: two of the log, one each of map, blob and images, and what must be
/// free for a write to be admitted.
const SLOTS_KEPT_MIN: u64 = 14;
/// More blocks than any disk has.
const LINEAGE_BLOCKS_MAX: u64 = 1 << 52;

/// How a store is to behave.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes for changes of the map that are not folded yet, two generations together.
    pub delta_bytes: usize,
    /// Pages of the map kept in memory.
    pub map_frames: usize,
    /// Bytes of log after which a checkpoint begins; none: by the size of the pool.
    pub checkpoint_log_bytes: Option<u64>,
    /// The boot of this machine.
    pub boot: u128,
    /// The instance that opens the pool.
    pub instance: u64,
    /// Takes a pool whose acknowledged writes were lost with its arena.
    pub accept_loss: bool,
    /// Goes on behind this batch, where a damaged log ends: what lay behind is lost. Only repair
    /// says so.
    #[doc(hidden)]
    pub accept_cut: Option<BatchNumber>,
    /// Nodes of the map the next checkpoint gives up: lineage, level, index. Only repair names any.
    #[doc(hidden)]
    pub give_up: Vec<(LineageId, u8, u64)>,
    /// Deliberately broken behaviour, for oracles to catch. Empty in every sound store.
    pub broken: Vec<Broken>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            delta_bytes: 32 << 20,
            map_frames: 16384,
            checkpoint_log_bytes: None,
            boot: 0,
            instance: 1,
            accept_loss: false,
            accept_cut: None,
            give_up: Vec::new(),
            broken: Vec::new(),
        }
    }
}

/// Ways to break a store that the oracles must catch.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Recovery does not check that batches follow one another.
    NoChain,
    /// Recovery does not record where the new epoch begins.
    NoEpochRecord,
    /// Slots are reused before a checkpoint stops needing them.
    ReuseBeforeCheckpoint,
    /// Recovery does not flush what it accepted.
    NoFlushAtRecovery,
    /// A flush is answered when the writes have completed.
    FlushLies,
    /// The superblock is written before its pages are flushed.
    CheckpointAheadOfLog,
    /// The move of an image is logged before the image is durable.
    StaleImage,
    /// Progress in the arena is published before its content.
    PublishBeforeContent,
    /// The arena of the dead process is ignored.
    IgnoreArena,
}

/// The arena's parts that a store uses.
pub struct ArenaRegion {
    /// The log's control area.
    pub control: Span,
    /// The pages all buffers come from.
    pub pages: SharedPages,
    /// Whether the arena is new: nothing in it is anybody's.
    pub is_fresh: bool,
}

/// An open pool.
pub struct Store<M> {
    pub(crate) media: M,
    pub(crate) in_flight: InFlight,
    pub(crate) header: PoolHeader,
    pub(crate) options: StoreOptions,
    pub(crate) memory: Rc<Memory>,
    pub(crate) log: Log,
    pub(crate) map: Map,
    pub(crate) segments: Segments,
    pub(crate) catalogue: Catalogue,
    /// The superblock on the medium.
    pub(crate) root: Superblock,
    pub(crate) reads: Reads,
    pub(crate) events: VecDeque<Event>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) checkpoints_begun: u64,
    pub(crate) checkpoint_wanted: bool,
    pub(crate) compaction: Compaction,
    pub(crate) streams: Streams,
    pub(crate) counters: Counters,
    pub(crate) state: PoolState,
    pub(crate) seq: Seq,
    pub(crate) now: Micros,
    pub(crate) bytes_since_checkpoint: u64,
    /// How far the log had completed when the flush in flight was submitted.
    flushing: Option<BatchNumber>,
    /// The next flush is a checkpoint's or compaction's.
    flush_turn_wanted: bool,
    waiters: VecDeque<(BatchNumber, Ticket)>,
    /// Somebody who does not wait for an event wants a flush.
    flush_wanted: bool,
    room_wanted: bool,
    room_made: bool,
    pub(crate) batches_in_flight: usize,
    bytes_in_flight: u64,
    rate: Rate,
    last_write_at: Micros,
    /// The last batch whose durability some later header or checkpoint proves.
    proven: BatchNumber,
    /// A write of the log failed twice: what the arena holds is to be written elsewhere.
    pub(crate) heal_wanted: bool,
    pub(crate) heals_since_flush: u32,
    /// A checkpoint that was given up; its generation is still frozen.
    pub(crate) given_up: Option<Frozen>,
}

/// How fast the medium takes the log.
#[derive(Debug, Default)]
struct Rate {
    window_at: Micros,
    window_bytes: u64,
    bytes_per_milli: u64,
}

/// What recovery hands to a store.
pub(crate) struct Recovered<M> {
    pub media: M,
    pub in_flight: InFlight,
    pub header: PoolHeader,
    pub options: StoreOptions,
    pub memory: Rc<Memory>,
    pub log: Log,
    pub map: Map,
    pub segments: Segments,
    pub catalogue: Catalogue,
    pub root: Superblock,
    pub counters: Counters,
    pub state: PoolState,
    pub seq: Seq,
    pub log_bytes: u64,
    pub streams: Streams,
    pub work: Vec<Span>,
}

impl<M: Media> Store<M> {
    pub(crate) fn start(from: Recovered<M>) -> Store<M> {
        let proven = from.log.durable;
        Store {
            media: from.media,
            in_flight: from.in_flight,
            header: from.header,
            options: from.options,
            memory: from.memory,
            log: from.log,
            map: from.map,
            segments: from.segments,
            catalogue: from.catalogue,
            root: from.root,
            reads: Reads::default(),
            events: VecDeque::new(),
            checkpoint: None,
            checkpoints_begun: 0,
            checkpoint_wanted: false,
            compaction: Compaction::new(from.work),
            streams: from.streams,
            counters: from.counters,
            state: from.state,
            seq: from.seq,
            now: Micros(0),
            bytes_since_checkpoint: from.log_bytes,
            flushing: None,
            flush_turn_wanted: false,
            waiters: VecDeque::new(),
            flush_wanted: false,
            room_wanted: false,
            room_made: false,
            batches_in_flight: 0,
            bytes_in_flight: 0,
            rate: Rate::default(),
            last_write_at: Micros(0),
            proven,
            heal_wanted: false,
            heals_since_flush: 0,
            given_up: None,
        }
    }

    /// Writes whole blocks. `Ok` means admitted: the bytes lie in the arena, have their place in
    /// the order, and the write may be acknowledged. An owned payload is taken only then.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist or the payload is not made of whole blocks.
    pub fn write(
        &mut self,
        disk: DiskId,
        lba: Lba,
        payload: &mut Payload<'_>,
    ) -> Result<Seq, Refused> {
        let lineage = self.lineage_of(disk);
        let bytes: usize = match payload {
            Payload::Copied(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Payload::Owned(spans) => spans.iter().map(|span| span.bytes() as usize).sum(),
        };
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE_BYTES as usize), "whole blocks");
        let blocks = (bytes as u64 / BLOCK_BYTES) as u32;
        let copied = if matches!(payload, Payload::Copied(_)) { blocks } else { 0 };
        self.admit(Class::Data, blocks, copied, blocks as usize)?;
        let mut source = match payload {
            Payload::Copied(slices) => Source::Copied(Gather::new(slices)),
            Payload::Owned(spans) => Source::Owned(std::mem::take(spans).into()),
        };
        let seq = self.next_seq();
        self.put(EntryKind::Write, lineage, lba, u64::from(blocks), seq, &mut source);
        self.counters.written_bytes += bytes as u64;
        Ok(seq)
    }

    /// Makes a range read as zeros and keep its reservation.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist or the range is empty.
    pub fn zero(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.put_range(EntryKind::Zero, disk, lba, blocks)
    }

    /// Makes a range read as zeros and gives its space back.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    ///
    /// # Panics
    /// If the disk does not exist or the range is empty.
    pub fn discard(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.put_range(EntryKind::Discard, disk, lba, blocks)
    }

    fn put_range(
        &mut self,
        kind: EntryKind,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
    ) -> Result<Seq, Refused> {
        assert!(blocks > 0, "an empty range");
        let lineage = self.lineage_of(disk);
        self.admit(Class::Range, 0, 0, blocks.min(SMALL_RANGE_BLOCKS) as usize)?;
        let seq = self.next_seq();
        self.put(kind, lineage, lba, blocks, seq, &mut Source::Nothing);
        Ok(seq)
    }

    fn next_seq(&mut self) -> Seq {
        self.seq = Seq(self.seq.0 + 1);
        self.seq
    }

    pub(crate) fn lineage_of(&self, disk: DiskId) -> LineageId {
        let known = self.catalogue.disks.get(&disk);
        known
            .unwrap_or_else(|| panic!("disk {disk} does not exist: the caller looked it up"))
            .lineage
    }

    /// Makes sure that nothing can stop a request of `blocks` data blocks half-way.
    fn admit(
        &mut self,
        class: Class,
        blocks: u32,
        copied: u32,
        changes: usize,
    ) -> Result<(), Refused> {
        if let Some(cause) = self.state.refuses_writes() {
            return Err(Refused::Stopped(cause));
        }
        if !self.map.active.has_room(changes) {
            self.checkpoint_wanted = true;
            return self.busy();
        }
        let pages = copied + Log::overhead_pages(blocks);
        let batches = u64::from(blocks / 32 + 2);
        // An eighth of the pages stays for reads: they go on whatever stops the log.
        let kept = self.log.pages.borrow().count() / 8;
        if self.log.pages.borrow().free() < pages + kept || !self.log.has_descriptors(batches) {
            return self.busy();
        }
        self.admit_space(class, blocks)
    }

    fn admit_space(&mut self, class: Class, blocks: u32) -> Result<(), Refused> {
        let room = u64::from(self.segments.slot_blocks() - 2);
        // Data, a head for each batch of it, and what is lost at the end of segments.
        let need = u64::from(blocks) + u64::from(blocks) / 16 + 2;
        let left = u64::from(self.log.blocks_unused());
        let slots = if need <= left { 0 } else { (need.div_ceil(room) + 1) as usize };
        let needed = match class {
            Class::Record => slots + 1,
            _ => class.floor() + slots + self.checkpoint_slots(),
        };
        // After a failure of the medium, what is not flushed is written again elsewhere.
        let again = self.log.retained_blocks.div_ceil(room * 3 / 4) as usize;
        if class == Class::Data && self.segments.free_slots() < needed + again {
            self.flush_wanted = true;
            if self.segments.free_slots() >= needed {
                return self.busy();
            }
        }
        if self.segments.free_slots() < needed {
            self.compaction.slots_needed = self.compaction.slots_needed.max(needed);
            if class == Class::Data && again == 0 && !self.can_make_space() {
                return Err(Refused::NoSpace);
            }
            return self.busy();
        }
        if class == Class::Data && self.live_blocks() + need > self.live_limit_blocks() {
            if self.map.active.is_empty() && self.map.frozen.is_none() {
                return Err(Refused::NoSpace);
            }
            self.checkpoint_wanted = true;
            return self.busy();
        }
        Ok(())
    }

    fn busy(&mut self) -> Result<(), Refused> {
        self.room_wanted = true;
        self.counters.busy += 1;
        Err(Refused::Busy)
    }

    pub(crate) fn live_blocks(&self) -> u64 {
        self.segments.live_blocks()
    }

    /// Most blocks that may be alive: the rest is for compaction to work with.
    pub(crate) fn live_limit_blocks(&self) -> u64 {
        let slots = u64::from(self.segments.slot_count());
        let kept = (slots * 7 / 100).max(SLOTS_KEPT_MIN).min(slots);
        let blocks = u64::from(self.segments.slot_blocks());
        (slots - kept) * (blocks - 2 - blocks / 64)
    }

    /// Puts an entry, and its data, into the log and the map; cut into several if need be.
    fn put(
        &mut self,
        kind: EntryKind,
        lineage: LineageId,
        lba: Lba,
        blocks: u64,
        seq: Seq,
        source: &mut Source<'_>,
    ) {
        self.last_write_at = self.now;
        let mut done = 0;
        while done < blocks {
            let left = blocks - done;
            let wanted = if kind.has_data() { left.min(1 << 20) as u32 } else { 0 };
            let count = self.room_in_batch(wanted, source);
            let piece = if kind.has_data() { u64::from(count) } else { left };
            let entry = LogEntry {
                lineage,
                kind,
                continues: piece < left,
                lba: Lba(lba.0 + done),
                blocks: piece,
                seq,
            };
            let data = match source {
                Source::Nothing => Blocks::Nothing,
                Source::Copied(gather) => Blocks::Copied(gather),
                Source::Owned(spans) => Blocks::Owned(take_blocks(spans, count)),
            };
            let (index, sums) = self.log.append(&entry, data);
            let segment = self.log.segment.segment;
            self.apply(&entry, segment, index, &sums);
            done += piece;
        }
    }

    /// How many blocks the open batch takes; opens another, and a segment for it, as needed.
    fn room_in_batch(&mut self, wanted: u32, source: &Source<'_>) -> u32 {
        let spans = if let Source::Owned(spans) = source { Some(spans) } else { None };
        loop {
            if let Some(count) = self.log.fits(wanted, spans) {
                // A small request is not cut in two for the sake of a full batch.
                if count == wanted || count >= 32 || self.log.open_is_empty() {
                    return count;
                }
            }
            self.log.close_batch();
            if !self.log.has_room() {
                self.roll(self.log.last());
            }
            self.log.open_batch();
        }
    }

    /// Goes on in the successor's slot, as a new segment.
    pub(crate) fn roll(&mut self, last: BatchNumber) {
        let (old, slot) = (self.log.segment.slot, self.log.segment.successor);
        let segment = self.segments.take_segment_id();
        let successor = self.segments.take_slot(SegmentKind::Log);
        let successor = successor.unwrap_or_else(|| panic!("no slot left for the log"));
        self.segments.close_slot(old, self.checkpoints_begun);
        self.segments.add_whole(segment, SegmentKind::Log, slot);
        self.log.begin_segment(segment, slot, successor, last);
        self.counters.segments += 1;
    }

    /// Brings the map up to an entry of the log.
    pub(crate) fn apply(
        &mut self,
        entry: &LogEntry,
        segment: crate::SegmentId,
        index: u32,
        sums: &[u32],
    ) {
        apply(&mut self.map, &mut self.segments, entry, segment, index, |at| {
            sums.get(at as usize).copied().unwrap_or_default()
        });
    }

    /// Asks that everything admitted so far be made durable; [`Event::Flushed`] answers.
    pub fn flush(&mut self, ticket: Ticket) {
        self.counters.flush_requests += 1;
        if let Some(cause) = self.state.refuses_writes() {
            let result = Err(Refused::Stopped(cause));
            self.events.push_back(Event::Flushed { ticket, result });
            return;
        }
        let target = self.log.last();
        if target <= self.log.durable {
            self.events.push_back(Event::Flushed { ticket, result: Ok(()) });
            return;
        }
        self.waiters.push_back((target, ticket));
    }

    /// The last write admitted.
    pub fn admitted_through(&self) -> Seq {
        self.seq
    }

    /// The last write known to be durable, with all before it.
    pub fn durable_through(&self) -> Seq {
        let first = self.log.batches.iter().find_map(|batch| batch.first_seq);
        first.map_or(self.seq, |seq| Seq(seq.0.saturating_sub(1)))
    }

    /// What there is to tell.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Moves everything forward: call it whenever the medium may have finished something, after
    /// requests were made, and at least every few milliseconds while [`Store::is_busy`]. Returns
    /// whether anything happened.
    pub fn poll(&mut self, now: Micros) -> bool {
        self.now = now;
        let mut moved = false;
        let submitted = self.in_flight.submitted;
        while let Some(completion) = self.media.complete() {
            self.completed(completion);
            moved = true;
        }
        moved |= self.heal();
        moved |= self.pump_log();
        moved |= self.pump_flush();
        if self.state.is_writing() {
            moved |= self.step_checkpoint();
            moved |= self.step_compaction();
        }
        if self.room_wanted && self.room_made {
            self.room_wanted = false;
            self.events.push_back(Event::Room);
        }
        self.room_made = false;
        moved || self.in_flight.submitted != submitted
    }

    /// Whether something is under way that needs [`Store::poll`].
    pub fn is_busy(&self) -> bool {
        self.in_flight.len() > 0
            || self.reads.len() > 0
            || self.log.open().is_some()
            || self.checkpoint.is_some()
            || !self.waiters.is_empty()
    }

    /// When [`Store::poll`] has something to do although nothing is under way: the last flush of a
    /// pool that was left alone is to be proven.
    pub fn wake_at(&self) -> Option<Micros> {
        let unproven = self.log.durable == self.log.last() && self.proven < self.log.durable;
        let is_idle = unproven && self.log.open().is_none() && self.state.is_writing();
        is_idle.then(|| Micros(self.last_write_at.0 + IDLE_CLOSE_MICROS + 1))
    }

    /// What never changes about the pool.
    pub fn header(&self) -> &PoolHeader {
        &self.header
    }

    /// The medium was flushed for another reason: that makes the log durable too.
    pub(crate) fn log_is_durable(&mut self, covered: BatchNumber) {
        self.heals_since_flush = 0;
        self.log.flushed(covered);
        self.room_made = true;
        self.answer_waiters();
    }

    /// What is on the medium proves that everything up to `number` is durable.
    pub(crate) fn proven_through(&mut self, number: BatchNumber) {
        self.proven = self.proven.max(number);
    }

    pub(crate) fn want_flush(&mut self) {
        self.flush_wanted = true;
    }

    pub(crate) fn make_room(&mut self) {
        self.room_made = true;
    }

    pub(crate) fn completed(&mut self, completion: Completion) {
        match self.in_flight.take(completion.id) {
            Purpose::Batch(number) => self.batch_done(number, completion.result),
            Purpose::LogFlush => self.flush_done(completion.result),
            Purpose::Read(at) => self.read_done(at, completion.result),
            Purpose::Page(number) => self.page_done(number, completion.result),
            Purpose::Checkpoint => {
                self.flush_came_back(&completion.result);
                self.checkpoint_io_done(completion.result);
            }
            Purpose::Superblock => self.checkpoint_io_done(completion.result),
            Purpose::Compaction(which) => {
                if which == 1 {
                    self.flush_came_back(&completion.result);
                }
                self.compaction_io_done(which, completion.result);
            }
            Purpose::Run(kind, buffer) => self.run_done(kind, buffer, completion.result),
        }
    }

    fn batch_done(&mut self, number: BatchNumber, result: Result<(), MediumError>) {
        self.batches_in_flight -= 1;
        let blocks = self.log.find(number).map_or(0, |batch| batch.blocks());
        self.bytes_in_flight -= u64::from(blocks) * BLOCK_BYTES;
        self.rate.window_bytes += u64::from(blocks) * BLOCK_BYTES;
        match result {
            Ok(()) => self.log.complete(number),
            Err(MediumError::Died) => self.stop_writing("the process died"),
            Err(_) if self.log.retry(number) => self.counters.write_retries += 1,
            Err(error) => self.heal_later(&format!("a write of the log failed: {error}")),
        }
    }

    /// Stops writing until what the arena holds has been written elsewhere (rule D12). A second
    /// time without a good flush in between is one too many.
    fn heal_later(&mut self, cause: &str) {
        if self.heals_since_flush > 0 {
            return self.stop_writing(cause);
        }
        self.heal_wanted = true;
        self.state.stop(cause);
    }

    fn flush_done(&mut self, result: Result<(), MediumError>) {
        self.flush_came_back(&result);
        if let Err(error) = result {
            self.stop_writing(&format!("a flush of the medium failed: {error}"));
        }
    }

    /// Submits a flush, unless one is in flight: of two at a time, one could fail and the other
    /// seem to succeed. Who is refused gets the next turn. Every flush makes the log durable.
    pub(crate) fn submit_flush(&mut self, purpose: Purpose) -> bool {
        if self.flushing.is_some() {
            self.flush_turn_wanted = purpose != Purpose::LogFlush;
            return false;
        }
        if purpose == Purpose::LogFlush && self.flush_turn_wanted {
            return false;
        }
        self.flush_turn_wanted = false;
        self.flushing = Some(self.log.completed);
        self.counters.media_flushes += 1;
        self.in_flight.submit(&mut self.media, purpose, Io::Flush);
        true
    }

    /// A flush has come back: the log is durable as far as it had completed.
    fn flush_came_back(&mut self, result: &Result<(), MediumError>) {
        let covered = self.flushing.take().unwrap_or_default();
        if result.is_ok() && self.state.is_writing() {
            self.log_is_durable(covered);
        }
    }

    /// Fails everybody who waits for a flush.
    pub(crate) fn fail_waiters(&mut self, cause: &str) {
        for (_, ticket) in std::mem::take(&mut self.waiters) {
            let result = Err(Refused::Stopped(cause.to_owned()));
            self.events.push_back(Event::Flushed { ticket, result });
        }
        self.room_made = true;
    }

    fn answer_waiters(&mut self) {
        while let Some((target, ticket)) = self.waiters.front().copied() {
            if target > self.log.durable {
                break;
            }
            self.waiters.pop_front();
            self.events.push_back(Event::Flushed { ticket, result: Ok(()) });
        }
    }

    /// The medium failed: the pool writes no more. Reads go on, also of what is in the arena.
    pub(crate) fn stop_writing(&mut self, cause: &str) {
        self.state.stop(cause);
        self.heal_wanted = false;
        self.flush_turn_wanted = false;
        self.give_up_checkpoint();
        for slot in self.compaction.give_up() {
            self.segments.close_slot(slot, self.checkpoints_begun);
        }
        self.fail_waiters(cause);
    }

    /// Writes closed batches, and closes the open one when it is time.
    fn pump_log(&mut self) -> bool {
        if !self.state.is_writing() {
            return false;
        }
        let mut moved = self.close_when_idle();
        self.measure();
        while self.bytes_in_flight < self.in_flight_limit() || self.batches_in_flight == 0 {
            let Some((number, slot, block, from)) = self.log.submit_next() else {
                let is_eager = self.batches_in_flight < EAGER_BATCHES_MAX
                    || self.flush_wanted
                    || !self.waiters.is_empty();
                if self.log.open_is_empty() || !is_eager {
                    break;
                }
                self.log.close_batch();
                continue;
            };
            let bytes: u64 = from.iter().map(|part| u64::from(part.bytes)).sum();
            self.batches_in_flight += 1;
            self.bytes_in_flight +=
                self.log.find(number).map_or(0, |b| u64::from(b.blocks())) * BLOCK_BYTES;
            self.counters.batches += 1;
            self.counters.log_bytes += bytes;
            self.bytes_since_checkpoint += bytes;
            let at = self.header.block_at(slot, block);
            self.in_flight.submit(&mut self.media, Purpose::Batch(number), Io::Write { at, from });
            bowline_arena::fail_point!("log.batch.submitted");
            moved = true;
        }
        moved
    }

    fn in_flight_limit(&self) -> u64 {
        let measured = self.rate.bytes_per_milli * IN_FLIGHT_MICROS / 1000;
        let wanted = if self.rate.bytes_per_milli == 0 { 4 << 20 } else { measured };
        wanted.clamp(IN_FLIGHT_BYTES_MIN, IN_FLIGHT_BYTES_MAX)
    }

    /// Learns the rate of the medium from windows in which it was never idle.
    fn measure(&mut self) {
        let passed = self.now.0.saturating_sub(self.rate.window_at.0);
        if self.batches_in_flight == 0 || passed > 100_000 {
            self.rate.window_at = self.now;
            self.rate.window_bytes = 0;
        } else if passed >= 4_000 {
            let seen = self.rate.window_bytes * 1000 / passed;
            let old = self.rate.bytes_per_milli;
            self.rate.bytes_per_milli = if old == 0 { seen } else { (old * 7 + seen) / 8 };
            self.rate.window_at = self.now;
            self.rate.window_bytes = 0;
        }
    }

    /// After a flush and some quiet, an empty batch says that what came before it is durable.
    fn close_when_idle(&mut self) -> bool {
        let quiet = self.now.0.saturating_sub(self.last_write_at.0) > IDLE_CLOSE_MICROS;
        let unproven = self.log.durable == self.log.last() && self.proven < self.log.durable;
        if !quiet || !unproven || self.log.open().is_some() {
            return false;
        }
        if !self.log.has_room() {
            if self.segments.free_slots() <= Class::Data.floor() {
                return false;
            }
            self.roll(self.log.last());
        }
        self.log.open_batch();
        self.log.close_batch();
        self.proven = self.log.last();
        true
    }

    /// Flushes the medium when somebody waits for it, or the arena fills up.
    fn pump_flush(&mut self) -> bool {
        if !self.state.is_writing() || self.flushing.is_some() {
            return false;
        }
        if self.log.completed <= self.log.durable {
            return false;
        }
        let completed = self.log.completed;
        let is_waited_for = self.waiters.front().is_some_and(|(target, _)| *target <= completed);
        let pages = self.log.pages.borrow();
        let is_filling = pages.free() < pages.count() / 2 || !self.log.has_descriptors(256);
        drop(pages);
        if !is_waited_for && !is_filling && !self.room_wanted && !self.flush_wanted {
            return false;
        }
        if self.options.broken.contains(&Broken::FlushLies) {
            self.log.flushed(completed);
            self.answer_waiters();
            return true;
        }
        self.flushing = Some(completed);
        self.flush_wanted = false;
        self.counters.media_flushes += 1;
        self.in_flight.submit(&mut self.media, Purpose::LogFlush, Io::Flush);
        bowline_arena::fail_point!("log.flush.submitted");
        true
    }

    /// Puts a record into the log and applies it.
    pub(crate) fn put_record(&mut self, record: &Record) -> Result<Seq, Refused> {
        self.admit(Class::Record, 1, 1, 0)?;
        let mut block = record.encode();
        assert!(block.len() <= BLOCK_BYTES as usize, "a record fits a block");
        block.resize(BLOCK_BYTES as usize, 0);
        let seq = self.next_seq();
        let slices = [&block[..]];
        let mut source = Source::Copied(Gather::new(&slices));
        self.put(EntryKind::Record, LineageId(0), Lba(0), 1, seq, &mut source);
        apply_record(&mut self.catalogue, &mut self.map, record);
        Ok(seq)
    }

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
        let name = name.to_owned();
        let read_only = false;
        self.put_disk(Disk { id, name, bytes, lineage, durability, provision, read_only })?;
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

    /// Slots a checkpoint of what has changed so far may take.
    fn checkpoint_slots(&self) -> usize {
        let frozen = self.map.frozen.as_ref().map_or(0, |frozen| frozen.deltas.leaves());
        let pages = self.map.active.deltas.leaves() + frozen + 4 * self.map.lineages.len();
        pages / (self.segments.slot_blocks() as usize - 1) + 1
    }

    /// Whether compaction and checkpoints can still win slots.
    fn can_make_space(&self) -> bool {
        self.segments.pending_slots() > 0
            || self.map.frozen.is_some()
            || self.compaction.is_running()
            || !self.compaction.is_exhausted()
            || self.would_checkpoint_help()
    }

    /// Whether a checkpoint would show compaction dead blocks, or slots old enough to be emptied.
    pub(crate) fn would_checkpoint_help(&self) -> bool {
        !self.map.active.is_empty()
            || (self.compaction.waits_for_age() && self.bytes_since_checkpoint > 0)
    }
}

/// Whose floor of free slots a request must leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Data,
    Range,
    Record,
}

impl Class {
    fn floor(self) -> usize {
        match self {
            Class::Data => 4,
            Class::Range => 2,
            Class::Record => 0,
        }
    }
}

/// Where the data of an entry comes from.
enum Source<'a> {
    Nothing,
    Copied(Gather<'a>),
    Owned(VecDeque<Span>),
}

/// The first `blocks` blocks of spans.
fn take_blocks(spans: &mut VecDeque<Span>, blocks: u32) -> Vec<Span> {
    let (mut taken, mut left) = (Vec::new(), blocks * PAGE_BYTES);
    while left > 0 {
        let Some(mut span) = spans.pop_front() else { break };
        if span.bytes() > left {
            spans.push_front(span.split_off(left));
        }
        left -= span.bytes();
        taken.push(span);
    }
    taken
}

/// Brings the catalogue up to a record of it, and the map with it.
pub(crate) fn apply_record(catalogue: &mut Catalogue, map: &mut Map, record: &Record) {
    if let Record::Disk(disk) = record {
        map.lineages.entry(disk.lineage).or_insert_with(|| empty_lineage(disk.lineage));
        // A disk that shrinks loses what lies beyond its end in the same breath, or a crash in
        // between would bring it back when the disk grows.
        if catalogue.disks.get(&disk.id).is_some_and(|old| disk.bytes < old.bytes) {
            make_hole(map, disk.lineage, Lba(disk.bytes / BLOCK_BYTES));
        }
    }
    if let Some(lineage) = catalogue.apply(record) {
        make_hole(map, lineage, Lba(0));
    }
}

/// Everything of a lineage from a block on is gone.
fn make_hole(map: &mut Map, lineage: LineageId, from: Lba) {
    map.active.ordinal += 1;
    let (ordinal, blocks) = (map.active.ordinal, LINEAGE_BLOCKS_MAX - from.0);
    map.active.ranges.insert(lineage, from, blocks, State::Hole, ordinal);
}

/// Brings map and live bits up to an entry of the log whose first data block is block `index` of
/// `segment`.
pub(crate) fn apply(
    map: &mut Map,
    segments: &mut Segments,
    entry: &LogEntry,
    segment: crate::SegmentId,
    index: u32,
    checksum: impl Fn(u32) -> u32,
) {
    let generation = &mut map.active;
    let state = match entry.kind {
        EntryKind::Record => return,
        EntryKind::Write => State::Data,
        EntryKind::Zero => State::Zero,
        EntryKind::Discard => State::Hole,
    };
    generation.ordinal += 1;
    let ordinal = generation.ordinal;
    if state != State::Data && entry.blocks > SMALL_RANGE_BLOCKS {
        let ranges = &mut generation.ranges;
        return ranges.insert(entry.lineage, entry.lba, entry.blocks, state, ordinal);
    }
    for block in 0..entry.blocks {
        let lba = Lba(entry.lba.0 + block);
        let new = match Entry::of_state(state) {
            Some(entry) => entry,
            None => Entry::data(segment, index + block as u32, checksum(block as u32)),
        };
        let old = generation.deltas.insert(entry.lineage, lba, new, ordinal);
        if let Some(old) = old.filter(|old| old.entry.has_address()) {
            segments.clear_live(old.entry);
        }
        if new.has_address() {
            segments.set_live(new);
        }
    }
}
