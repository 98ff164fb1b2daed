//! What sessions have done, for metrics.

use bowline_wire::values::command;

/// Counts of one session, or of all since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// READ requests.
    pub reads: u64,
    /// WRITE requests.
    pub writes: u64,
    /// FLUSH requests.
    pub flushes: u64,
    /// TRIM requests.
    pub trims: u64,
    /// CACHE requests.
    pub caches: u64,
    /// WRITE_ZEROES requests.
    pub zeroes: u64,
    /// BLOCK_STATUS requests.
    pub statuses: u64,
    /// Requests of no known type.
    pub unknown: u64,
    /// Requests that were answered by an error.
    pub errors: u64,
    /// Bytes asked for by reads that went well.
    pub read_bytes: u64,
    /// Of these, bytes that were sent as holes.
    pub hole_bytes: u64,
    /// Bytes of writes that went well.
    pub write_bytes: u64,
    /// Payload bytes copied on their way to the disk; each once.
    pub copied_bytes: u64,
    /// Payload bytes received where they became part of the log.
    pub owned_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Times that a request was parked because the disk was busy.
    pub busy: u64,
    /// Requests that were answered by an error because processes had died over them.
    pub poisoned: u64,
}

impl Counters {
    /// Counts what others have counted, too.
    pub(crate) fn add(&mut self, other: &Counters) {
        let Counters { reads, writes, flushes, trims, caches, zeroes, statuses, unknown, .. } =
            other;
        self.reads += reads;
        self.writes += writes;
        self.flushes += flushes;
        self.trims += trims;
        self.caches += caches;
        self.zeroes += zeroes;
        self.statuses += statuses;
        self.unknown += unknown;
        self.errors += other.errors;
        self.read_bytes += other.read_bytes;
        self.hole_bytes += other.hole_bytes;
        self.write_bytes += other.write_bytes;
        self.copied_bytes += other.copied_bytes;
        self.owned_bytes += other.owned_bytes;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.busy += other.busy;
        self.poisoned += other.poisoned;
    }

    /// Counts a request by its type.
    pub(crate) fn request(&mut self, kind: u16) {
        let counter = match kind {
            command::READ => &mut self.reads,
            command::WRITE => &mut self.writes,
            command::FLUSH => &mut self.flushes,
            command::TRIM => &mut self.trims,
            command::CACHE => &mut self.caches,
            command::WRITE_ZEROES => &mut self.zeroes,
            command::BLOCK_STATUS => &mut self.statuses,
            _ => &mut self.unknown,
        };
        *counter += 1;
    }
}
