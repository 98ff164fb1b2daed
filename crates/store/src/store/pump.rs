//! Batches and flushes on their way to the medium, and who waits for them.
//!
//! Invariants:
//! - One flush is in flight at a time: of two, one could fail and the other seem to succeed.
//! - A request for a flush succeeds only when everything admitted before it had completed, and a
//!   flush of the medium that was submitted after that has succeeded.
//! - Who waits for a flush is not made to wait for more than a little of what was admitted later.
//! - A write that failed twice, or a flush that failed once, stops the log until what the arena
//!   holds has been written elsewhere.

use super::{Broken, Store};
use crate::api::{Event, Refused, Ticket};
use crate::io::Purpose;
use crate::reserve::MARGIN_OF_DATA;
use crate::{BLOCK_BYTES, BatchNumber, Io, Media, MediumError, Micros};

/// Batches in flight before the open one waits to fill up.
const EAGER_BATCHES_MAX: usize = 4;
/// A pool that was written to and then left alone closes its log after this time, so that the last
/// flush can be proven (rule D3).
const IDLE_CLOSE_MICROS: u64 = 500_000;
/// So long after a flush was asked for, another one is expected.
const FLUSHES_NEAR_MICROS: u64 = 20_000;

impl<M: Media> Store<M> {
    /// Asks that everything admitted so far be made durable; [`Event::Flushed`] answers.
    pub fn flush(&mut self, ticket: Ticket) {
        self.counters.flush_requests += 1;
        if let Some(cause) = self.state.refuses_writes() {
            let result = Err(Refused::Stopped(cause));
            self.events.push_back(Event::Flushed { ticket, result });
            return;
        }
        self.last_flush_at = Some(self.now);
        let target = self.log.last();
        if target <= self.log.durable {
            self.events.push_back(Event::Flushed { ticket, result: Ok(()) });
            return;
        }
        self.waiters.push_back((target, ticket));
    }

    /// When [`Store::poll`] has something to do although nothing is under way: the last flush of a
    /// pool that was left alone is to be proven, a slot to be made ready.
    pub fn wake_at(&self) -> Option<Micros> {
        let unproven = self.log.durable == self.log.last() && self.proven < self.log.durable;
        let is_idle = unproven && self.log.open().is_none() && self.is_writing();
        let is_idle = is_idle && self.may_prove();
        let idle_at = is_idle.then(|| Micros(self.last_write_at.0 + IDLE_CLOSE_MICROS + 1));
        [idle_at, self.scrub.wake_at(), self.prepare_at()].into_iter().flatten().min()
    }

    /// The medium was flushed for another reason: that makes the log durable too.
    pub(crate) fn log_is_durable(&mut self, covered: BatchNumber) {
        self.healing.flushed();
        self.log.flushed(covered);
        self.room_made = true;
        self.answer_waiters();
    }

    /// Whether clients wait for flushes now and then: what nobody waits for is kept small then.
    pub(crate) fn is_beside_flushes(&self) -> bool {
        let near = |last: Micros| self.now.0.saturating_sub(last.0) < FLUSHES_NEAR_MICROS;
        self.last_flush_at.is_some_and(near)
    }

    /// Whether batches of the log are on their way.
    pub(crate) fn is_writing_log(&self) -> bool {
        self.flow.batches() > 0
    }

    /// What is on the medium proves that everything up to `number` is durable.
    pub(crate) fn proven_through(&mut self, number: BatchNumber) {
        self.proven = self.proven.max(number);
    }

    pub(super) fn batch_done(&mut self, number: BatchNumber, result: Result<(), MediumError>) {
        self.flow.done(number, self.now);
        match result {
            Ok(()) => self.log.complete(number),
            Err(MediumError::Died) => self.stop_writing("the process died"),
            Err(_) if self.log.retry(number) => self.counters.write_retries += 1,
            Err(error) => self.write_failed(&format!("a write of the log failed: {error}")),
        }
    }

    pub(super) fn flush_done(&mut self, result: Result<(), MediumError>) {
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
    pub(super) fn flush_came_back(&mut self, result: &Result<(), MediumError>) {
        let covered = self.flushing.take().unwrap_or_default();
        if result.is_err() {
            self.leave_headless();
        }
        if result.is_ok() && self.is_writing() {
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

    /// A broken mode: answers everybody who waits for a flush, whatever is durable.
    pub(crate) fn answer_all_waiters(&mut self) {
        for (_, ticket) in std::mem::take(&mut self.waiters) {
            self.events.push_back(Event::Flushed { ticket, result: Ok(()) });
        }
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
        let cause = &self.healing.stop(cause);
        self.state.stop(cause);
        self.forget_index();
        self.flush_turn_wanted = false;
        self.give_up_checkpoint();
        for slot in self.compaction.give_up() {
            self.segments.close_slot(slot, self.checkpoints_begun);
        }
        self.fail_waiters(cause);
    }

    /// Writes closed batches, and closes the open one when it is time.
    pub(super) fn pump_log(&mut self) -> bool {
        if !self.is_writing() {
            return false;
        }
        let mut moved = self.close_when_idle();
        while self.flow.has_room(self.is_next_behind_flush()) {
            let Some((number, slot, block, from)) = self.log.submit_next() else {
                let is_eager = self.flow.batches() < EAGER_BATCHES_MAX
                    || self.flush_wanted
                    || !self.waiters.is_empty();
                if self.log.open_is_empty() || !is_eager {
                    break;
                }
                self.log.close_batch();
                continue;
            };
            let bytes: u64 = from.iter().map(|part| u64::from(part.bytes)).sum();
            self.flow.submitted(number, bytes, self.now);
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

    /// Whether there is room for an empty batch.
    fn may_prove(&self) -> bool {
        self.log.has_room() || self.has_margin(1 + MARGIN_OF_DATA)
    }

    /// After a flush and some quiet, an empty batch says that what came before it is durable.
    fn close_when_idle(&mut self) -> bool {
        let quiet = self.now.0.saturating_sub(self.last_write_at.0) > IDLE_CLOSE_MICROS;
        let unproven = self.log.durable == self.log.last() && self.proven < self.log.durable;
        if !quiet || !unproven || self.log.open().is_some() {
            return false;
        }
        if !self.may_prove() {
            return false;
        }
        if !self.log.has_room() {
            self.roll(self.log.last());
        }
        self.log.open_batch();
        self.log.close_batch();
        self.proven = self.log.last();
        true
    }

    /// Flushes the medium when somebody waits for it, or the arena fills up.
    pub(super) fn pump_flush(&mut self) -> bool {
        if !self.is_writing() || self.flushing.is_some() {
            return false;
        }
        if self.log.completed <= self.log.durable {
            return false;
        }
        let completed = self.log.completed;
        let is_waited_for = self.waiters.front().is_some_and(|(target, _)| *target <= completed)
            || (completed >= self.adopted_through && self.log.durable < self.adopted_through);
        if !is_waited_for && !self.is_arena_filling() && !self.flush_wanted {
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

    /// Whether the next batch to be submitted is one that nobody who waits for a flush waits for.
    fn is_next_behind_flush(&self) -> bool {
        let target = self.waiters.back().map(|(target, _)| *target);
        target.is_some_and(|target| self.log.submitted_through() >= target)
    }

    /// Whether too much waits to be written for more to be admitted.
    pub(super) fn is_behind(&self) -> bool {
        self.flow.is_behind(self.log.waiting_blocks() * BLOCK_BYTES)
    }

    /// Whether a flush is needed to get pages or descriptors back. Who waits for room waits for
    /// what is in flight too: a flush for each batch would keep the arena full for ever.
    fn is_arena_filling(&self) -> bool {
        let pages = u64::from(self.log.pages.borrow().count());
        let in_flight = self.flow.bytes() / BLOCK_BYTES;
        let unflushed = self.log.retained_blocks.saturating_sub(in_flight);
        let is_enough = unflushed >= pages / 8 || in_flight == 0;
        unflushed >= pages / 4 || !self.log.has_descriptors(256) || (self.room_wanted && is_enough)
    }
}
