//! The disks of a pool: what a client may ask, and what happens at once.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bowline_arena::{Memory, SharedPages, Span};
use bowline_store::{
    BLOCK_BYTES, DiskId, Durability, LossLimits, Micros, Payload, Refused, Seq, Ticket,
};

use crate::area::Area;
use crate::broken::Broken;
use crate::event::{DiskEvent, Submitted};
use crate::loss::{FlushTimes, Inherited, Loss, Unflushed};
use crate::operation::{OperationId, Queue};
use crate::slots::Slots;
use crate::staging::{Shortage, Work};
use crate::usage::{Kind, Usage, Uses};
use crate::witness::offer;
use crate::{IoError, IoErrorKind, Volume, Witness};

/// Bytes in a sector: the unit clients may use.
pub const SECTOR_BYTES: u64 = 512;

/// Runs of zeros with unaligned edges are written as bytes up to this many blocks. Longer ones are
/// three changes made as one: each edge, and what is between.
pub(crate) const ZERO_BLOCKS_AS_BYTES_MAX: u64 = 64;

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskCounters {
    /// Old blocks that were read to be merged with parts of new ones.
    pub merges: u64,
    /// ORDERs, and FLUSHes and FUAs that acted as ORDER.
    pub orders: u64,
    /// Flushes that clients waited for.
    pub flushes: u64,
    /// Flushes nobody asked for: they keep what a loss of power can cost within its limits.
    pub background_flushes: u64,
    /// Replies that were held because a limit of loss was reached.
    pub replies_held: u64,
    /// Requests refused as busy.
    pub busy: u64,
}

/// What was asked of the store.
pub(crate) enum Asked {
    Read {
        ticket: Ticket,
        disk: DiskId,
        since: Micros,
    },
    Status {
        ticket: Ticket,
        skip_bytes: u64,
        bytes: u64,
    },
    OldBlock {
        disk: DiskId,
        operation: OperationId,
        merge: usize,
    },
    /// A flush after which a request is done.
    Durable {
        ticket: Ticket,
        since: Micros,
    },
    /// A flush of our own.
    Background {
        since: Micros,
    },
}

/// A reply that waits until a limit of loss allows it.
pub(crate) struct Held {
    pub ticket: Ticket,
    pub seq: Seq,
    pub loss_bytes: u64,
}

/// What is known of one disk beyond the catalogue.
pub(crate) struct State {
    pub queue: Queue,
    pub limits: LossLimits,
    pub unflushed: Unflushed,
    pub held: VecDeque<Held>,
    /// The last change of this disk.
    pub seq: Seq,
    /// Whether it is in the list of those with `unflushed` or `held` writes.
    pub is_dirty: bool,
    pub is_starving: bool,
}

/// All disks of a pool, with the semantics of the crate's head.
pub struct Disks<V> {
    pub(crate) volume: V,
    pub(crate) pages: SharedPages,
    pub(crate) memory: Rc<Memory>,
    pub(crate) now: Micros,
    pub(crate) asked: Slots<Asked>,
    pub(crate) states: BTreeMap<DiskId, State>,
    pub(crate) events: VecDeque<DiskEvent>,
    pub(crate) operations: u64,
    /// Operations that wait for nobody any more and have not begun.
    pub(crate) runnable: VecDeque<(DiskId, OperationId)>,
    /// Disks with operations that wait for room, the next to be served first.
    pub(crate) starving: VecDeque<DiskId>,
    pub(crate) store_is_full: bool,
    /// Somebody was told busy, and for how many pages they wait.
    pub(crate) room_wanted: bool,
    pub(crate) pages_wanted: u32,
    /// Disks with acknowledged writes that are not durable, or held replies.
    pub(crate) dirty: Vec<DiskId>,
    /// When the first of them is due for a flush.
    pub(crate) flush_due: Micros,
    pub(crate) background_is_running: bool,
    /// The last change a flush was asked for, and the last known durable.
    pub(crate) flushing_through: Seq,
    pub(crate) durable_through: Seq,
    pub(crate) flush_times: FlushTimes,
    /// When the oldest write was acknowledged that a limit of loss counts; the volume knows it too.
    pub(crate) loss_clock: Option<Micros>,
    /// What a predecessor acknowledged, until it is durable.
    inherited: Option<Inherited>,
    pub(crate) counters: DiskCounters,
    pub(crate) uses: Uses,
    pub(crate) witness: Option<Rc<dyn Witness>>,
    #[cfg(test)]
    pub(crate) broken: Option<Broken>,
}

impl<V: Volume> Disks<V> {
    /// The disks of a pool. `pages` are those the store uses.
    pub fn new(volume: V, pages: SharedPages) -> Disks<V> {
        let memory = Rc::clone(pages.borrow().memory());
        let durable_through = volume.durable_through();
        let has_unflushed = durable_through < volume.admitted_through();
        let mut disks = Disks {
            volume,
            pages,
            memory,
            now: Micros(0),
            asked: Slots::new(),
            states: BTreeMap::new(),
            events: VecDeque::new(),
            operations: 0,
            runnable: VecDeque::new(),
            starving: VecDeque::new(),
            store_is_full: false,
            room_wanted: false,
            pages_wanted: 0,
            dirty: Vec::new(),
            flush_due: Micros(u64::MAX),
            background_is_running: false,
            flushing_through: durable_through,
            durable_through,
            flush_times: FlushTimes::default(),
            loss_clock: None,
            inherited: None,
            counters: DiskCounters::default(),
            uses: Uses::default(),
            witness: None,
            #[cfg(test)]
            broken: None,
        };
        if has_unflushed {
            let through = disks.volume.admitted_through();
            disks.loss_clock = disks.volume.loss_clock();
            disks.inherited = disks.loss_clock.map(|since| Inherited { since, through });
            disks.flush_in_background();
        } else {
            disks.volume.set_loss_clock(None);
        }
        disks
    }

    /// The store below.
    pub fn store(&self) -> &V {
        &self.volume
    }

    /// The store below, for what goes past the disks: catalogue and pool.
    pub fn store_mut(&mut self) -> &mut V {
        &mut self.volume
    }

    /// The store below, for good. What was under way is forgotten, as if the process had died.
    pub fn into_store(self) -> V {
        self.volume
    }

    /// Counts since the start.
    pub fn counters(&self) -> DiskCounters {
        self.counters
    }

    /// What clients did to a disk since the start, and how long it took.
    pub fn usage(&self, disk: DiskId) -> Usage {
        self.uses.of(disk)
    }

    /// What a loss of power would cost on a disk now.
    pub fn loss(&self, disk: DiskId) -> Loss {
        let Some(state) = self.states.get(&disk) else { return Loss::default() };
        Loss {
            age_micros: state.unflushed.since().map_or(0, |s| self.now.0.saturating_sub(s.0)),
            bytes: state.unflushed.bytes(),
            replies_held: state.held.len(),
        }
    }

    /// Says what time it is, without doing anything. To be called when a loop has slept: what is
    /// acknowledged from then on is not as old as the last poll.
    pub fn set_now(&mut self, now: Micros) {
        self.now = self.now.max(now);
    }

    /// The catalogue says anew how much a disk may lose while it is `ordered`.
    pub fn set_loss_limits(&mut self, disk: DiskId, limits: LossLimits) {
        self.state(disk).limits = limits;
        self.flush_due = self.now;
    }

    /// Writes bytes. The spans of an owned payload are taken unless the result is an error or busy.
    pub fn write(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        payload: &mut Payload<'_>,
        fua: bool,
    ) -> Submitted {
        let submitted = self.write_bytes(ticket, disk, offset, payload, fua);
        self.uses.submitted(ticket, (disk, Kind::Write), self.now, &submitted);
        submitted
    }

    fn write_bytes(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        payload: &mut Payload<'_>,
        fua: bool,
    ) -> Submitted {
        let bytes = payload_bytes(payload);
        let area = match self.check(disk, offset, bytes, Access::Write) {
            Ok(area) => area,
            Err(error) => return Submitted::Done(Err(error)),
        };
        if area.is_whole() && !self.is_blocked(disk, &area) {
            if self.must_queue_up() {
                return self.busy();
            }
            let witness = self.witness.as_deref();
            let admitted = offer(witness, &mut self.volume, ticket, |volume| {
                volume.write(disk, area.first, payload)
            });
            return match admitted {
                Ok(seq) => self.answer(disk, ticket, seq, bytes, fua),
                Err(refused) => self.refuse(refused),
            };
        }
        let work = match self.stage(&area, payload) {
            Ok(spans) => Work::write(&area, spans),
            Err(shortage) => return self.short(shortage),
        };
        self.enqueue(disk, ticket, &area, work, bytes, fua)
    }

    /// Writes bytes that lie in their place among whole blocks: the spans cover the blocks around
    /// them, as those of a read do. They are taken unless the result is an error or busy.
    ///
    /// # Panics
    /// If the spans are not as large as the blocks.
    pub fn write_in_place(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        (offset, bytes): (u64, u64),
        spans: &mut Vec<Span>,
        fua: bool,
    ) -> Submitted {
        let whole: u64 = spans.iter().map(|span| u64::from(span.bytes())).sum();
        let area = match self.check(disk, offset, bytes, Access::Write) {
            Ok(area) => area,
            Err(error) => return Submitted::Done(Err(error)),
        };
        assert_eq!(whole, area.blocks * BLOCK_BYTES, "the spans hold the blocks");
        if area.is_whole() {
            let mut payload = Payload::Owned(std::mem::take(spans));
            let submitted = self.write(ticket, disk, offset, &mut payload, fua);
            if let Payload::Owned(left) = payload {
                *spans = left;
            }
            return submitted;
        }
        let submitted = match self.stage_in_place(&area, bytes, spans) {
            Ok(staged) => {
                let work = Work::write(&area, staged);
                self.enqueue(disk, ticket, &area, work, bytes, fua)
            }
            Err(shortage) => self.short(shortage),
        };
        self.uses.submitted(ticket, (disk, Kind::Write), self.now, &submitted);
        submitted
    }

    /// Makes bytes read as zeros. Whole blocks keep their reservation if `keep_allocated`, and
    /// become holes otherwise; parts of blocks are written.
    pub fn zero(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        bytes: u64,
        keep_allocated: bool,
        fua: bool,
    ) -> Submitted {
        let submitted = match self.check(disk, offset, bytes, Access::Write) {
            Ok(area) => self.zero_area(ticket, disk, &area.to_disk_end(), keep_allocated, fua),
            Err(error) => Submitted::Done(Err(error)),
        };
        self.uses.submitted(ticket, (disk, Kind::Zero { bytes }), self.now, &submitted);
        submitted
    }

    fn zero_area(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        area: &Area,
        keep_allocated: bool,
        fua: bool,
    ) -> Submitted {
        if area.is_whole() {
            return self.fill(disk, ticket, area, keep_allocated, fua);
        }
        let work = if area.blocks <= ZERO_BLOCKS_AS_BYTES_MAX {
            self.stage(area, &mut Payload::Copied(&[])).map(|spans| Work::write(area, spans))
        } else {
            self.stage_edges(area).map(|spans| Work::zero(area, spans, keep_allocated))
        };
        match work {
            Ok(work) => self.enqueue(disk, ticket, area, work, BLOCK_BYTES, fua),
            Err(shortage) => self.short(shortage),
        }
    }

    /// Gives blocks back. Parts of blocks are left as they are.
    pub fn discard(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        bytes: u64,
        fua: bool,
    ) -> Submitted {
        let area = match self.check(disk, offset, bytes, Access::Write) {
            Ok(area) => area.to_disk_end(),
            Err(error) => return Submitted::Done(Err(error)),
        };
        let submitted = match area.inner() {
            Some(inner) => self.fill(disk, ticket, &inner, false, fua),
            None => Submitted::Done(Ok(())),
        };
        self.uses.submitted(ticket, (disk, Kind::Discard { bytes }), self.now, &submitted);
        submitted
    }

    /// Reads bytes. The span covers the whole blocks around them: they start at `offset` modulo the
    /// size of a block. [`DiskEvent::Read`] gives the span back.
    ///
    /// # Errors
    /// If the request makes no sense; the span is in the error.
    ///
    /// # Panics
    /// If the span is not as large as the blocks.
    pub fn read(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        bytes: u32,
        into: Span,
    ) -> Result<(), (IoError, Span)> {
        let area = match self.check(disk, offset, u64::from(bytes), Access::Read) {
            Ok(area) => area,
            Err(error) => return Err((error, into)),
        };
        assert_eq!(u64::from(into.bytes()), area.blocks * BLOCK_BYTES, "the span holds the blocks");
        let ticket = self.asked.insert(Asked::Read { ticket, disk, since: self.now });
        self.volume.read(ticket, disk, area.first, into);
        Ok(())
    }

    /// Asks what a range holds. [`DiskEvent::Status`] answers, with at most `extents_max` runs and
    /// perhaps not to the end of the range.
    ///
    /// # Errors
    /// If the request makes no sense.
    pub fn status(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        bytes: u64,
        extents_max: usize,
    ) -> Result<(), IoError> {
        let area = self.check(disk, offset, bytes, Access::Read)?;
        let skip_bytes = area.head_bytes;
        let ticket = self.asked.insert(Asked::Status { ticket, skip_bytes, bytes });
        self.volume.block_status(ticket, disk, area.first, area.blocks, extents_max);
        Ok(())
    }

    /// The next thing the disks have to tell.
    pub fn next_event(&mut self) -> Option<DiskEvent> {
        let event = self.events.pop_front()?;
        if let DiskEvent::Done { ticket, result } = &event {
            self.uses.done(*ticket, self.now, result.is_ok());
        }
        Some(event)
    }

    /// Whole blocks of zeros or holes.
    fn fill(
        &mut self,
        disk: DiskId,
        ticket: Ticket,
        area: &Area,
        keep_allocated: bool,
        fua: bool,
    ) -> Submitted {
        let (lba, blocks) = (area.first, area.blocks);
        if self.is_blocked(disk, area) {
            let work = Work::fill(lba, blocks, keep_allocated);
            return self.enqueue(disk, ticket, area, work, BLOCK_BYTES, fua);
        }
        if self.must_queue_up() {
            return self.busy();
        }
        let witness = self.witness.as_deref();
        let admitted = offer(witness, &mut self.volume, ticket, |volume| match keep_allocated {
            true => volume.zero(disk, lba, blocks),
            false => volume.discard(disk, lba, blocks),
        });
        match admitted {
            Ok(seq) => self.answer(disk, ticket, seq, BLOCK_BYTES, fua),
            Err(refused) => self.refuse(refused),
        }
    }

    fn check(
        &self,
        disk: DiskId,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Area, IoError> {
        let Some(found) = self.volume.disk(disk) else { return Err(no_such_disk(disk)) };
        if bytes == 0 || !(offset | bytes).is_multiple_of(SECTOR_BYTES) {
            let text =
                format!("{bytes} bytes at {offset}: not whole sectors of {SECTOR_BYTES} bytes");
            return Err(IoError::new(IoErrorKind::Invalid, text));
        }
        if offset.checked_add(bytes).is_none_or(|end| end > found.bytes) {
            let (name, size) = (&found.name, found.bytes);
            let text = format!("{bytes} bytes at {offset}: disk {name} ends at {size}");
            return Err(IoError::new(IoErrorKind::OutOfRange, text));
        }
        if access == Access::Write && found.read_only {
            let text = format!("disk {} is read-only", found.name);
            return Err(IoError::new(IoErrorKind::ReadOnly, text));
        }
        Ok(Area::around(offset, bytes, found.bytes))
    }

    /// Whether the blocks are in the hands of a request that is on its way.
    fn is_blocked(&self, disk: DiskId, area: &Area) -> bool {
        let queue = self.states.get(&disk).map(|state| &state.queue);
        queue.is_some_and(|queue| queue.overlaps((area.first, area.end())))
            && !self.is_broken(Broken::PassOperations)
    }

    /// Whether operations wait for room: newcomers do not overtake them.
    fn must_queue_up(&self) -> bool {
        !self.starving.is_empty() && !self.is_broken(Broken::OvertakeStarving)
    }

    fn refuse(&mut self, refused: Refused) -> Submitted {
        if refused != Refused::Busy {
            return Submitted::Done(Err(refused.into()));
        }
        self.store_is_full = true;
        self.busy()
    }

    fn short(&mut self, shortage: Shortage) -> Submitted {
        if shortage.pages > self.pages.borrow().count() {
            let text = "the request is larger than all buffers of the server together";
            return Submitted::Done(Err(IoError::new(IoErrorKind::Invalid, text)));
        }
        self.pages_wanted = self.pages_wanted.max(shortage.pages);
        self.busy()
    }

    fn busy(&mut self) -> Submitted {
        self.room_wanted = true;
        self.counters.busy += 1;
        Submitted::Busy
    }

    pub(crate) fn durability(&self, disk: DiskId) -> Option<Durability> {
        self.volume.disk(disk).map(|disk| disk.durability)
    }

    /// What is known of a disk. Met for the first time, all that was admitted may be its own.
    pub(crate) fn state(&mut self, disk: DiskId) -> &mut State {
        let admitted_through = self.volume.admitted_through();
        let forgets = self.is_broken(Broken::ForgetPredecessor);
        let inherited = self.inherited.filter(|one| one.through > self.durable_through && !forgets);
        let known = self.volume.disk(disk).map(|known| known.loss_limits);
        self.states
            .entry(disk)
            .or_insert_with(|| State::new(admitted_through, known.unwrap_or_default(), inherited))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl State {
    /// What a predecessor acknowledged may all be this disk's, as much as its limits allowed.
    fn new(seq: Seq, limits: LossLimits, inherited: Option<Inherited>) -> State {
        let mut unflushed = Unflushed::default();
        if let Some(Inherited { since, through }) = inherited {
            unflushed.note(since, through, limits.loss_bytes_max, through, &limits);
        }
        State {
            queue: Queue::default(),
            limits,
            unflushed,
            held: VecDeque::new(),
            seq,
            is_dirty: false,
            is_starving: false,
        }
    }
}

pub(crate) fn no_such_disk(disk: DiskId) -> IoError {
    IoError::new(IoErrorKind::Invalid, format!("there is no disk {disk}"))
}

fn payload_bytes(payload: &Payload<'_>) -> u64 {
    match payload {
        Payload::Copied(slices) => slices.iter().map(|slice| slice.len() as u64).sum(),
        Payload::Owned(spans) => spans.iter().map(|span| u64::from(span.bytes())).sum(),
    }
}
