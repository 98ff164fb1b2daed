//! A pool that is open: what it consists of, and the loop that moves everything forward.
//!
//! Invariants:
//! - Nothing here waits. `poll` takes what the medium has finished, writes what is ready, and lets
//!   checkpoint and compaction make one small step each.
//! - Who was refused for want of room hears of it when there may be some again, once.

mod apply;
mod disks;
mod flow;
mod pump;
mod write;

use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, SharedPages, Span};

use crate::api::{Event, Ticket};
use crate::backing::Backing;
use crate::catalogue::Catalogue;
use crate::checkpoint::{Checkpoint, Frozen};
use crate::compaction::Compaction;
use crate::format::{PoolHeader, Superblock};
use crate::heal::Healing;
use crate::io::{InFlight, Purpose};
use crate::log::Log;
use crate::map::Map;
use crate::prepare::Prepared;
use crate::read::Reads;
use crate::reserve::Shape;
use crate::scrub::Scrub;
use crate::segments::Segments;
use crate::status::{Counters, PoolState};
use crate::streams::Streams;
use crate::tables::Entry;
use crate::{BatchNumber, Completion, LineageId, Media, Micros, Seq};

pub(crate) use apply::{apply, apply_record};
use flow::Flow;

/// How a store is to behave.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes for changes of the map that are not folded yet, two generations together.
    pub delta_bytes: usize,
    /// Pages of the map kept in memory.
    pub map_frames: usize,
    /// The largest write there will be, in bytes: the pool is opened only if memory holds it. A
    /// larger one may wait for ever.
    pub write_bytes_max: u64,
    /// Bytes of log after which a checkpoint begins; none: by the size of the pool.
    pub checkpoint_log_bytes: Option<u64>,
    /// The boot of this machine.
    pub boot: u128,
    /// The instance that opens the pool.
    pub instance: u64,
    /// Takes a pool whose acknowledged writes were lost with its arena.
    pub accept_loss: bool,
    /// It is known that no I/O of a former owner can land any more, wherever its rings are. If that
    /// cannot be told, a pool whose last owner died on this boot is written to only with the arena
    /// of that owner, beside which its rings lie.
    pub is_quiet: bool,
    /// Goes on behind this batch, where a damaged log ends: what lay behind is lost. Only repair
    /// says so.
    #[doc(hidden)]
    pub accept_cut: Option<BatchNumber>,
    /// Nodes of the map the next checkpoint gives up: lineage, level, index. Only repair names any.
    #[doc(hidden)]
    pub give_up: Vec<(LineageId, u8, u64)>,
    /// Bytes of slots whose space is taken ahead, beyond what must always be free.
    pub ahead_bytes: u64,
    /// Deliberately broken behaviour, for oracles to catch. Empty in every sound store.
    pub broken: Vec<Broken>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            delta_bytes: 32 << 20,
            map_frames: 16384,
            write_bytes_max: 1 << 20,
            checkpoint_log_bytes: None,
            boot: 0,
            instance: 1,
            accept_loss: false,
            is_quiet: true,
            accept_cut: None,
            give_up: Vec::new(),
            ahead_bytes: 64 << 20,
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
    /// A scrub finds nothing wrong.
    BlindScrub,
    /// Slots are opened whether they have space or not.
    OpenBareSlots,
    /// What comes free while the file system below is full counts as without space.
    HideSpace,
    /// Data below a node that a range replaced still counts as data of its disk.
    CountWhatIsFreed,
    /// A start writes the second copy of a superblock before the first is flushed.
    BothCopiesUnflushed,
    /// A start flushes the copy of a superblock that it finds, and does not write it again.
    FoundCopyBelieved,
    /// A sound copy of a superblock is written over while the other one is in doubt.
    SoundCopyFirst,
    /// Writing elsewhere leaves what seems to be on the medium where it is, whatever flush failed.
    HealTrustsMedium,
    /// Writing elsewhere does not record where the log goes on.
    HealWithoutRoot,
    /// Writing elsewhere frees segments of the log that hold safe batches too.
    HealLeavesSafe,
    /// A checkpoint that was given up and is taken up again counts as one that begins now.
    RenumberCheckpoint,
    /// A start without the arena of its host's last server believes what the medium shows to be
    /// there to stay.
    RewriteNothing,
    /// Who waits for a flush is answered when all has its new place, before that is written.
    HealAnswersEarly,
    /// Who goes on in place does not apply the last batches once more.
    RepeatNothing,
    /// Who goes on in place takes what was frozen for part of the last checkpoint.
    ForgetFrozen,
}

/// The arena's parts that a store uses.
pub struct ArenaRegion {
    /// The log's control area.
    pub control: Span,
    /// The pages all buffers come from.
    pub pages: SharedPages,
    /// Where the changes of the map lie, so that a successor goes on without reading the log: at
    /// least [`index_bytes`](crate::index_bytes). Without, they are memory of the process.
    pub index: Option<Span>,
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
    /// The copy of it that may not be whole or durable, if one may not: it is written first.
    pub(crate) doubtful_copy: u64,
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
    /// What a dead process left is flushed when it is written, whether anybody waits or not: its
    /// pages may be all there are.
    pub(crate) adopted_through: BatchNumber,
    room_wanted: bool,
    room_made: bool,
    /// Somebody was refused because too much waits to be written.
    drain_wanted: bool,
    flow: Flow,
    pub(crate) last_write_at: Micros,
    /// When somebody last asked for a flush.
    last_flush_at: Option<Micros>,
    /// The last batch whose durability some later header or checkpoint proves.
    proven: BatchNumber,
    pub(crate) prepared: Prepared,
    pub(crate) backing: Backing,
    pub(crate) healing: Healing,
    /// A checkpoint that was given up; its generation is still frozen.
    pub(crate) given_up: Option<Frozen>,
    /// Pages of checkpoints that were given up, not yet counted as dead.
    pub(crate) forsaken: Vec<Entry>,
    /// Most pages the fold of the frozen generation makes.
    pub(crate) frozen_pages: u64,
    /// How many pages the maps can have.
    pub(crate) shape: Shape,
    /// Free pages of memory that somebody waits for.
    pages_wanted: u32,
    pub(crate) scrub: Scrub,
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
        // The superblock says how much of the log this epoch accepted. What the arena held is
        // durable behind that, but nothing on the medium says so yet.
        let proven = from.root.proven();
        let compaction = Compaction::new(Rc::clone(&from.memory), from.work);
        let mut store = Store {
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
            doubtful_copy: 0,
            reads: Reads::default(),
            events: VecDeque::new(),
            checkpoint: None,
            checkpoints_begun: 0,
            checkpoint_wanted: false,
            compaction,
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
            adopted_through: BatchNumber(0),
            room_wanted: false,
            room_made: false,
            drain_wanted: false,
            flow: Flow::default(),
            last_write_at: Micros(0),
            last_flush_at: None,
            proven,
            prepared: Prepared::default(),
            backing: Backing::default(),
            healing: Healing::default(),
            given_up: None,
            forsaken: Vec::new(),
            frozen_pages: 0,
            shape: Shape::default(),
            pages_wanted: 0,
            scrub: Scrub::default(),
        };
        // Which disks have grown in the log that was replayed is not known.
        let resized = if from.log_bytes == 0 { 0 } else { store.catalogue.disks.len() };
        store.shape_changed(resized as u64);
        store.log.seq = store.log.seq.max(store.seq);
        store.keep_ids();
        store
    }

    /// A successor has to know which numbers of segments may have been given out, before the medium
    /// does.
    pub(crate) fn keep_ids(&mut self) {
        let next = self.segments.next_segment();
        if let Some(index) = &mut self.map.index {
            index.keep_ids(next);
        }
    }

    /// Lets a successor go on in place: at once if nothing happened since the last checkpoint, else
    /// from the next one on.
    pub(crate) fn begin_index(&mut self) {
        if self.map.index.is_none() || !self.state.is_writing() {
            return;
        }
        let has_more = self.counters.batches_replayed > 0 || self.counters.batches_adopted > 0;
        if has_more || self.checkpoint.is_some() {
            return self.want_checkpoint();
        }
        self.map.begin_index(self.root.position, self.seq);
        self.note_segment();
        if let Some(index) = &mut self.map.index {
            index.confirm(self.root.epoch.0);
        }
    }

    /// The log goes on elsewhere, or nowhere: a successor has to read it.
    pub(crate) fn forget_index(&mut self) {
        if let Some(index) = &mut self.map.index {
            index.forget();
        }
    }

    /// A dead process had frozen a generation: its checkpoint is begun once more.
    pub(crate) fn take_frozen(&mut self, frozen: Frozen) {
        self.frozen_pages = self.frozen_pages_max();
        self.checkpoints_begun = frozen.begun;
        self.given_up = Some(frozen);
        self.want_checkpoint();
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

    /// Keeps in the arena when the oldest write was acknowledged that a limit of loss counts.
    pub fn set_loss_clock(&mut self, since: Option<Micros>) {
        self.log.staging.set_loss_clock(&self.memory, since);
    }

    /// What was last kept there, perhaps by a process that died.
    pub fn loss_clock(&self) -> Option<Micros> {
        self.log.staging.loss_clock(&self.memory)
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
        self.keep_ids();
        let submitted = self.in_flight.submitted;
        while let Some(completion) = self.media.complete() {
            self.completed(completion);
            moved = true;
        }
        moved |= self.step_heal();
        moved |= self.forget_forsaken();
        moved |= self.pump_log();
        moved |= self.pump_flush();
        self.prepare_slot();
        self.back_slots();
        if self.forsaken.is_empty() {
            moved |= self.is_writing() && self.step_checkpoint();
            // A checkpoint that met damage has stopped the pool.
            moved |= self.is_writing() && self.step_compaction();
        }
        // A scrub would mend a copy of a superblock that is being written.
        moved |= !self.is_healing() && self.step_scrub();
        self.tell_room();
        moved || self.in_flight.submitted != submitted
    }

    /// Tells who was refused that there may be room now. Who still wants some asks again, and says
    /// anew what it takes.
    fn tell_room(&mut self) {
        // While the log holds pages, it tells when it gives some back. Who else does, does not.
        let may_have_pages = self.pages_wanted > 0 && self.log.batches.is_empty();
        let has_pages = || self.log.pages.borrow().free() >= self.pages_wanted;
        let is_made = std::mem::take(&mut self.room_made) || (may_have_pages && has_pages());
        let is_drained = self.drain_wanted && !self.is_behind();
        let is_wanted = self.room_wanted || self.drain_wanted;
        if is_drained || is_wanted && is_made {
            (self.room_wanted, self.drain_wanted) = (false, false);
            self.pages_wanted = 0;
            self.compaction.slots_needed = 0;
            self.events.push_back(Event::Room);
        }
    }

    /// Whether anything is written now: not while the pool is stopped, nor while what the arena
    /// holds gets other places.
    pub(crate) fn is_writing(&self) -> bool {
        self.state.is_writing() && !self.is_healing()
    }

    /// Whether something is under way that needs [`Store::poll`].
    pub fn is_busy(&self) -> bool {
        self.in_flight.len() > 0
            || self.is_healing()
            || !self.forsaken.is_empty()
            || self.reads.len() > 0
            || self.log.open().is_some()
            || self.checkpoint.is_some()
            || !self.waiters.is_empty()
    }

    /// What never changes about the pool.
    pub fn header(&self) -> &PoolHeader {
        &self.header
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
            Purpose::Prepare => self.slot_prepared(completion.result),
            Purpose::Back => self.slot_backed(completion.result),
            Purpose::LogFlush => self.flush_done(completion.result),
            Purpose::Read(at) => self.read_done(at, completion.result),
            Purpose::Page(number) => self.page_done(number, completion.result),
            Purpose::Checkpoint => {
                self.flush_came_back(&completion.result);
                self.checkpoint_io_done(completion.result);
            }
            Purpose::Superblock => self.checkpoint_io_done(completion.result),
            Purpose::Compaction => {
                self.flush_came_back(&completion.result);
                self.images_flushed(completion.result);
            }
            Purpose::CompactionRead(window) => self.victim_read(window, completion.result),
            Purpose::Scrub(which) => {
                if which == 2 {
                    self.flush_came_back(&completion.result);
                }
                self.scrub_io_done(which, completion.result);
            }
            Purpose::Run(kind, buffer) => self.run_done(kind, buffer, completion.result),
            Purpose::Heal => self.heal_io_done(completion.result),
        }
    }
}
