//! When a write is answered, and what is flushed: the modes of durability and the limits of loss.

use bowline_store::{DiskId, Durability, Event, Extent, Micros, Refused, Seq, Ticket};

use crate::broken::Broken;
use crate::disks::no_such_disk;
use crate::disks::{Asked, Held, State};
use crate::event::{ByteExtent, DiskEvent, Submitted};
use crate::usage::Kind;
use crate::{Disks, IoError, Volume};

/// Acknowledged writes of disks that are not `ordered` are flushed after this time.
const FLUSH_AFTER_MICROS: u64 = 5_000_000;
/// Time is as old as the last poll: limits are kept this much early.
const TURN_MICROS: u64 = 10_000;
/// After a flush has failed, the next of our own waits this long: the pool has stopped.
const RETRY_MICROS: u64 = 1_000_000;

impl<V: Volume> Disks<V> {
    /// Moves everything that can move. Returns whether something happened.
    pub fn poll(&mut self, now: Micros) -> bool {
        self.now = self.now.max(now);
        let mut moved = self.volume.poll(now);
        while let Some(event) = self.volume.next_event() {
            moved = true;
            self.on_event(event);
            self.run();
        }
        loop {
            let served = self.serve_starving();
            let ran = self.run();
            moved |= served | ran;
            if !served && !ran {
                break;
            }
        }
        self.note_durable();
        let has_flushed = self.flush_what_is_due();
        moved | has_flushed | self.offer_room()
    }

    /// FLUSH: what was replied before is durable, or, on an `ordered` disk, in order.
    pub fn flush(&mut self, ticket: Ticket, disk: DiskId) -> Submitted {
        let submitted = if self.durability(disk) == Some(Durability::Ordered) {
            self.order(disk);
            Submitted::Done(Ok(()))
        } else {
            self.persist(ticket, disk)
        };
        self.uses.submitted(ticket, (disk, Kind::Flush), self.now, &submitted);
        submitted
    }

    /// ORDER: no write that comes later survives without those replied before. The log sees to it.
    pub fn order(&mut self, _disk: DiskId) {
        self.counters.orders += 1;
    }

    /// What was replied before is durable, whatever the disk's mode. For the end of a session or of
    /// the server, and before a fork leaves the host.
    pub fn persist(&mut self, ticket: Ticket, disk: DiskId) -> Submitted {
        if self.volume.disk(disk).is_none() {
            return Submitted::Done(Err(no_such_disk(disk)));
        }
        let seq = self.state(disk).seq;
        if seq <= self.volume.durable_through() || self.is_broken(Broken::FlushFromMemory) {
            return Submitted::Done(Ok(()));
        }
        self.make_durable(ticket);
        Submitted::Pending
    }

    /// All that was admitted so far, changes of the catalogue too, is durable;
    /// [`DiskEvent::Done`] follows.
    pub fn persist_all(&mut self, ticket: Ticket) {
        self.make_durable(ticket);
    }

    /// Changes what FLUSH means on a disk. Requests that come later are served in the new mode; the
    /// reply says that the change, and all that was replied before it, is durable.
    pub fn set_durability(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        durability: Durability,
    ) -> Submitted {
        if self.volume.disk(disk).is_none() {
            return Submitted::Done(Err(no_such_disk(disk)));
        }
        if let Err(error) = self.volume.set_durability(disk, durability) {
            return Submitted::Done(Err(error.into()));
        }
        self.set_loss_clock();
        self.flush_due = self.now;
        self.make_durable(ticket);
        Submitted::Pending
    }

    /// When [`Disks::poll`] has something to do even if nothing comes from outside until then.
    pub fn wake_at(&self) -> Option<Micros> {
        let is_waiting = self.background_is_running || self.flush_due == Micros(u64::MAX);
        (!is_waiting).then_some(self.flush_due)
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Read { ticket, span, result } => match self.asked.take(ticket) {
                Asked::OldBlock { disk, operation, merge } => {
                    self.old_block(disk, operation, merge, span, result);
                }
                Asked::Read { ticket, disk, since } => {
                    if result.is_ok() {
                        self.uses.note(disk, Kind::Read, since, self.now);
                    }
                    let result = result.map_err(IoError::from);
                    self.events.push_back(DiskEvent::Read { ticket, span, result });
                }
                _ => unreachable!("the store answers something else with a read"),
            },
            Event::Status { ticket, result } => {
                let Asked::Status { ticket, skip_bytes, bytes } = self.asked.take(ticket) else {
                    unreachable!("the store answers something else with a status")
                };
                let result = result.map_err(IoError::from);
                let result = result.map(|extents| in_bytes(&extents, skip_bytes, bytes));
                self.events.push_back(DiskEvent::Status { ticket, result });
            }
            Event::Flushed { ticket, result } => self.on_flushed(ticket, result),
            Event::Room => {
                self.store_is_full = false;
            }
        }
    }

    fn on_flushed(&mut self, ticket: Ticket, result: Result<(), Refused>) {
        let since = match self.asked.take(ticket) {
            Asked::Durable { ticket, since } => {
                let result = result.clone().map_err(IoError::from);
                self.events.push_back(DiskEvent::Done { ticket, result });
                since
            }
            Asked::Background { since } => {
                self.background_is_running = false;
                since
            }
            _ => unreachable!("the store answers something else with a flush"),
        };
        match result {
            Ok(()) => {
                self.flush_times.note(self.now.0.saturating_sub(since.0));
                self.flush_due = self.now;
            }
            Err(refused) => {
                self.flush_due = Micros(self.now.0 + RETRY_MICROS);
                self.fail_held(&refused.into());
            }
        }
    }

    /// Answers a change that has been admitted, or sees to it that it will be.
    pub(crate) fn answer(
        &mut self,
        disk: DiskId,
        ticket: Ticket,
        seq: Seq,
        bytes: u64,
        fua: bool,
    ) -> Submitted {
        let mode = self.durability(disk).unwrap_or_default();
        let is_ordered = mode == Durability::Ordered;
        self.state(disk).seq = seq;
        if mode == Durability::Sync
            || (fua && !is_ordered && !self.is_broken(Broken::FuaFromMemory))
        {
            self.make_durable(ticket);
            return Submitted::Pending;
        }
        self.counters.orders += u64::from(fua);
        let (now, flushing_through) = (self.now, self.flushing_through);
        let is_endless = !is_ordered || self.is_broken(Broken::EndlessLoss);
        let state = self.state(disk);
        if is_endless || (state.held.is_empty() && state.may_lose(now, bytes)) {
            state.unflushed.note(now, seq, bytes, flushing_through, &state.limits);
            self.note_dirty(disk);
            self.start_loss_clock(is_ordered);
            return Submitted::Done(Ok(()));
        }
        state.held.push_back(Held { ticket, seq, loss_bytes: bytes });
        self.counters.replies_held += 1;
        self.note_dirty(disk);
        Submitted::Pending
    }

    /// Flushes; the request is done when all that is admitted now is durable.
    pub(crate) fn make_durable(&mut self, ticket: Ticket) {
        self.counters.flushes += 1;
        let since = self.now;
        self.start_flush(Asked::Durable { ticket, since });
    }

    fn start_flush(&mut self, asked: Asked) {
        let ticket = self.asked.insert(asked);
        self.flushing_through = self.volume.admitted_through();
        self.volume.flush(ticket);
    }

    /// Puts a disk on the list of those with something to lose, and sees when it is due.
    fn note_dirty(&mut self, disk: DiskId) {
        let (now, p99_micros) = (self.now, self.flush_times.p99_micros());
        let is_ordered = self.durability(disk) == Some(Durability::Ordered);
        let Some(state) = self.states.get_mut(&disk) else { return };
        // A disk that is on the list can become due sooner only by what it holds.
        let is_news = !std::mem::replace(&mut state.is_dirty, true);
        if is_news {
            self.dirty.push(disk);
        }
        if is_news || is_ordered {
            self.flush_due = self.flush_due.min(state.flush_due(is_ordered, now, p99_micros));
        }
    }

    /// A write is acknowledged: if nothing was to be lost until now, there is from now on. Before
    /// its reply, so that a successor knows.
    fn start_loss_clock(&mut self, is_ordered: bool) {
        if is_ordered && self.loss_clock.is_none() && !self.is_broken(Broken::ClockStands) {
            self.loss_clock = Some(self.now);
            self.volume.set_loss_clock(self.loss_clock);
        }
    }

    /// Puts the clock of loss to the oldest write that is left.
    pub(crate) fn set_loss_clock(&mut self) {
        let of_disk = |disk: &DiskId| {
            let is_ordered = self.durability(*disk) == Some(Durability::Ordered);
            self.states.get(disk).filter(|_| is_ordered)?.unflushed.since()
        };
        let oldest = self.dirty.iter().filter_map(of_disk).min();
        if oldest != self.loss_clock {
            self.loss_clock = oldest;
            self.volume.set_loss_clock(oldest);
        }
    }

    /// Forgets what has become durable and gives the replies that waited for it.
    fn note_durable(&mut self) {
        let durable_through = self.volume.durable_through();
        if durable_through == self.durable_through {
            return;
        }
        self.durable_through = durable_through;
        for index in (0..self.dirty.len()).rev() {
            let disk = self.dirty[index];
            self.release_held(disk);
            let Some(state) = self.states.get_mut(&disk) else { continue };
            if state.unflushed.is_empty() && state.held.is_empty() {
                state.is_dirty = false;
                self.dirty.swap_remove(index);
            }
        }
        self.set_loss_clock();
        self.flush_due = self.now;
    }

    /// Gives the replies of a disk that its limits of loss allow now.
    fn release_held(&mut self, disk: DiskId) {
        let (now, flushing_through) = (self.now, self.flushing_through);
        let durable_through = self.durable_through;
        let mode = self.durability(disk);
        let Some(state) = self.states.get_mut(&disk) else { return };
        state.unflushed.forget_through(durable_through);
        while let Some(held) = state.held.front() {
            let is_durable = held.seq <= durable_through;
            let is_allowed = match mode {
                Some(Durability::Ordered) => state.may_lose(now, held.loss_bytes),
                Some(Durability::Strict | Durability::Hinted) => true,
                Some(Durability::Sync) | None => false,
            };
            if !is_durable && !is_allowed {
                return;
            }
            if !is_durable {
                let (seq, bytes) = (held.seq, held.loss_bytes);
                state.unflushed.note(now, seq, bytes, flushing_through, &state.limits);
            }
            let done = DiskEvent::Done { ticket: held.ticket, result: Ok(()) };
            self.events.push_back(done);
            state.held.pop_front();
        }
    }

    /// The pool has stopped: what is held will not become durable.
    fn fail_held(&mut self, error: &IoError) {
        for disk in &self.dirty {
            let Some(state) = self.states.get_mut(disk) else { continue };
            for Held { ticket, .. } in state.held.drain(..) {
                let result = Err(error.clone());
                self.events.push_back(DiskEvent::Done { ticket, result });
            }
        }
    }

    /// Starts a flush of our own if a disk needs one, and notes when the next is due.
    fn flush_what_is_due(&mut self) -> bool {
        let is_due = self.flush_due <= self.now && !self.background_is_running;
        if !is_due || self.is_broken(Broken::NoBackgroundFlush) {
            return false;
        }
        let mut due = Micros(u64::MAX);
        for disk in &self.dirty {
            let is_ordered = self.durability(*disk) == Some(Durability::Ordered);
            let Some(state) = self.states.get(disk) else { continue };
            due = due.min(state.flush_due(is_ordered, self.now, self.flush_times.p99_micros()));
        }
        self.flush_due = due;
        if due > self.now {
            return false;
        }
        self.flush_in_background();
        true
    }

    /// Starts a flush that nobody waits for.
    pub(crate) fn flush_in_background(&mut self) {
        self.counters.background_flushes += 1;
        self.background_is_running = true;
        self.start_flush(Asked::Background { since: self.now });
    }

    /// Tells those who were told busy when it makes sense to try again.
    fn offer_room(&mut self) -> bool {
        let has_pages = self.pages.borrow().free() >= self.pages_wanted;
        if !self.room_wanted || self.store_is_full || !self.starving.is_empty() || !has_pages {
            return false;
        }
        (self.room_wanted, self.pages_wanted) = (false, 0);
        self.events.push_back(DiskEvent::Room);
        true
    }
}

impl State {
    /// Whether a write of so many bytes may be answered before it is durable.
    fn may_lose(&self, now: Micros, bytes: u64) -> bool {
        let micros_max = self.limits.micros_max();
        let margin = TURN_MICROS.min(micros_max / 4);
        let age = self.unflushed.since().map_or(0, |since| now.0.saturating_sub(since.0));
        age < micros_max - margin
            && self.unflushed.bytes().saturating_add(bytes) <= self.limits.loss_bytes_max
    }

    /// When the disk is due for a flush: early enough for one as slow as the slow ones of late.
    fn flush_due(&self, is_ordered: bool, now: Micros, p99_micros: u64) -> Micros {
        if !self.held.is_empty() {
            return now;
        }
        let Some(since) = self.unflushed.since() else { return Micros(u64::MAX) };
        if !is_ordered {
            return Micros(since.0.saturating_add(FLUSH_AFTER_MICROS));
        }
        if self.unflushed.bytes() >= self.limits.loss_bytes_max / 2 {
            return now;
        }
        let micros_max = self.limits.micros_max();
        let early = (micros_max / 4).max(p99_micros.saturating_mul(2));
        Micros(since.0.saturating_add(micros_max.saturating_sub(early)))
    }
}

/// Runs of blocks as runs of bytes: without what is before and after the range asked for.
fn in_bytes(extents: &[Extent], mut skip_bytes: u64, mut bytes: u64) -> Vec<ByteExtent> {
    let mut runs = Vec::with_capacity(extents.len());
    for extent in extents {
        let run = extent.blocks.saturating_mul(bowline_store::BLOCK_BYTES);
        let run = run.saturating_sub(std::mem::take(&mut skip_bytes)).min(bytes);
        bytes -= run;
        if run > 0 {
            runs.push(ByteExtent { bytes: run, state: extent.state });
        }
    }
    runs
}
