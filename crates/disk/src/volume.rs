//! The border to the store: exactly what disk semantics need of it.

use bowline_arena::Span;
use bowline_store::{
    Change, Disk, DiskId, Durability, Event, Lba, Media, Micros, Payload, Refused, Seq, Store,
    StoreError, Ticket,
};

/// An ordered store of disks, as this crate sees it.
///
/// What is relied on:
/// - Changes take effect when they are admitted, in the order of their numbers and each as a whole.
///   A read sees every change admitted before it was asked for.
/// - What is refused has had no effect, and the spans of its payload are still in it.
/// - After a change was refused as busy, [`Event::Room`] follows.
/// - Nothing but [`Volume::poll`] calls back: no method waits.
pub trait Volume {
    /// Writes whole blocks as one change.
    ///
    /// # Errors
    /// When the change is not taken.
    fn write(&mut self, disk: DiskId, lba: Lba, payload: &mut Payload<'_>) -> Result<Seq, Refused>;

    /// Makes blocks read as zeros and keeps their reservation.
    ///
    /// # Errors
    /// When the change is not taken.
    fn zero(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused>;

    /// Makes blocks holes.
    ///
    /// # Errors
    /// When the change is not taken.
    fn discard(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused>;

    /// Makes several changes as one.
    ///
    /// # Errors
    /// When none of them is taken.
    fn change(&mut self, disk: DiskId, changes: &mut [Change]) -> Result<Seq, Refused>;

    /// Reads whole blocks; [`Event::Read`] gives the span back.
    fn read(&mut self, ticket: Ticket, disk: DiskId, lba: Lba, into: Span);

    /// Asks for the states of blocks; [`Event::Status`] answers.
    fn block_status(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
        extents_max: usize,
    );

    /// Makes everything admitted so far durable; [`Event::Flushed`] tells when.
    fn flush(&mut self, ticket: Ticket);

    /// The highest number all of whose predecessors and itself are durable.
    fn durable_through(&self) -> Seq;

    /// The highest number admitted.
    fn admitted_through(&self) -> Seq;

    /// Moves everything that can move. Returns whether something happened.
    fn poll(&mut self, now: Micros) -> bool;

    /// The next thing the store has to tell.
    fn next_event(&mut self) -> Option<Event>;

    /// A disk by its id.
    fn disk(&self, disk: DiskId) -> Option<&Disk>;

    /// Keeps, where it outlives the process, when the oldest write was acknowledged on an `ordered`
    /// disk that is not durable; none if there is no such write.
    fn set_loss_clock(&mut self, since: Option<Micros>);

    /// What was last kept so, perhaps by a predecessor.
    fn loss_clock(&self) -> Option<Micros>;

    /// Changes what FLUSH means on a disk: a record of the log like any other.
    ///
    /// # Errors
    /// If there is no such disk, or the pool does not write.
    fn set_durability(&mut self, disk: DiskId, durability: Durability) -> Result<(), StoreError>;
}

impl<M: Media> Volume for Store<M> {
    fn write(&mut self, disk: DiskId, lba: Lba, payload: &mut Payload<'_>) -> Result<Seq, Refused> {
        Store::write(self, disk, lba, payload)
    }

    fn zero(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        Store::zero(self, disk, lba, blocks)
    }

    fn discard(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        Store::discard(self, disk, lba, blocks)
    }

    fn change(&mut self, disk: DiskId, changes: &mut [Change]) -> Result<Seq, Refused> {
        Store::change(self, disk, changes)
    }

    fn read(&mut self, ticket: Ticket, disk: DiskId, lba: Lba, into: Span) {
        Store::read(self, ticket, disk, lba, into);
    }

    fn block_status(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
        extents_max: usize,
    ) {
        Store::block_status(self, ticket, disk, lba, blocks, extents_max);
    }

    fn flush(&mut self, ticket: Ticket) {
        Store::flush(self, ticket);
    }

    fn durable_through(&self) -> Seq {
        Store::durable_through(self)
    }

    fn admitted_through(&self) -> Seq {
        Store::admitted_through(self)
    }

    fn poll(&mut self, now: Micros) -> bool {
        Store::poll(self, now)
    }

    fn next_event(&mut self) -> Option<Event> {
        Store::next_event(self)
    }

    fn disk(&self, disk: DiskId) -> Option<&Disk> {
        Store::disk(self, disk)
    }

    fn set_loss_clock(&mut self, since: Option<Micros>) {
        Store::set_loss_clock(self, since);
    }

    fn loss_clock(&self) -> Option<Micros> {
        Store::loss_clock(self)
    }

    fn set_durability(&mut self, disk: DiskId, durability: Durability) -> Result<(), StoreError> {
        Store::set_durability(self, disk, durability)
    }
}
