//! What the layers above see of a store.

use bowline_arena::Span;

use crate::{DiskId, Lba, LineageId, MediumError, SegmentId};

/// Names a request between its call and its [`Event`]; chosen by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The bytes of a write: whole blocks.
pub enum Payload<'a> {
    /// Copied into the log's buffers; the slices together hold the blocks.
    Copied(&'a [&'a [u8]]),
    /// Becomes part of the log without a copy; the spans together hold the blocks, each a whole
    /// number of them.
    Owned(Vec<Span>),
}

/// Pages, of so many, that whoever else uses them leaves free: with these the store admits a write
/// whose bytes lie in pages already, however long. So those who hold such bytes never wait for each
/// other.
#[must_use]
pub fn pages_for_admission(pages: u32) -> u32 {
    ADMISSION_PAGES_MAX.min(pages / 16)
}

/// What the longest write of a client takes beside its bytes.
pub(crate) const ADMISSION_PAGES_MAX: u32 = 320;

/// A change of a range of blocks, to be made alone or with others at once.
#[derive(Debug)]
pub enum Change {
    /// Whole blocks of bytes.
    Write {
        /// The first block.
        lba: Lba,
        /// The bytes; the spans together hold the blocks, each a whole number of them.
        spans: Vec<Span>,
    },
    /// A run of zeros that stay reserved.
    Zero {
        /// The first block.
        lba: Lba,
        /// Number of blocks.
        blocks: u64,
    },
    /// A run of holes.
    Discard {
        /// The first block.
        lba: Lba,
        /// Number of blocks.
        blocks: u64,
    },
}

/// Why a write or a flush is not taken now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Buffers are full, or space is being made: try again after [`Event::Room`].
    #[error("busy: buffers are full or space is being made")]
    Busy,
    /// Live data is at the limit of the pool.
    #[error("no space: live data is at the limit of the pool; grow it or discard data")]
    NoSpace,
    /// The pool has stopped writing after a medium error, or is open for reading only.
    #[error("the pool does not write: {0}")]
    Stopped(String),
}

/// Why a read failed. Never data instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The medium could not read.
    #[error("disk {disk} block {lba}: {cause}")]
    Medium {
        /// The disk that was read.
        disk: DiskId,
        /// The block.
        lba: Lba,
        /// What the medium said.
        cause: MediumError,
    },
    /// The bytes are not the ones that were written.
    #[error(
        "disk {disk} block {lba}: checksum mismatch in segment {segment}; \
         restore the block from a copy, then run `bowline pool scrub`"
    )]
    Checksum {
        /// The disk that was read.
        disk: DiskId,
        /// The block.
        lba: Lba,
        /// Where its bytes were expected.
        segment: SegmentId,
    },
    /// A page of the map cannot be read.
    #[error("disk {disk} block {lba}: its map page in segment {segment} is damaged")]
    Map {
        /// The disk that was read.
        disk: DiskId,
        /// The block.
        lba: Lba,
        /// Where the page was expected.
        segment: SegmentId,
    },
    /// A repair gave the block up.
    #[error(
        "disk {disk} block {lba}: lost, and given up by `bowline pool repair`; \
         restore it from a copy, or discard it"
    )]
    Lost {
        /// The disk that was read.
        disk: DiskId,
        /// The block.
        lba: Lba,
    },
}

/// What a store could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The medium failed.
    #[error("the medium failed: {0}")]
    Medium(#[from] MediumError),
    /// The pool is damaged; what and where.
    #[error("the pool is damaged: {0}")]
    Damaged(String),
    /// The pool holds something that only another version of this program understands.
    #[error("the pool was written by another version: {0}")]
    Version(String),
    /// The medium holds no pool, or one of another version.
    #[error("{0}")]
    NotAPool(String),
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    /// The pool takes no change now.
    #[error("the pool takes no change now: {0}")]
    Refused(#[from] Refused),
}

/// What a range of a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// Never written, or discarded. Reads as zeros.
    Hole,
    /// Zeros that keep their reservation. Reads as zeros.
    Zero,
    /// Data.
    Data,
}

/// A run of blocks in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Number of blocks.
    pub blocks: u64,
    /// Their state.
    pub state: BlockState,
}

/// Something a store has to tell.
#[derive(Debug)]
pub enum Event {
    /// A read is done; the span comes back whatever the result.
    Read {
        /// Which read.
        ticket: Ticket,
        /// The buffer it was given.
        span: Span,
        /// How it went.
        result: Result<(), ReadError>,
    },
    /// A question about block states is answered.
    Status {
        /// Which question.
        ticket: Ticket,
        /// The runs, from the first block asked for.
        result: Result<Vec<Extent>, ReadError>,
    },
    /// Everything admitted before the flush was asked for is durable, or writing has stopped.
    Flushed {
        /// Which flush.
        ticket: Ticket,
        /// How it went.
        result: Result<(), Refused>,
    },
    /// A write that was refused as busy may be tried again.
    Room,
}

/// What a FLUSH means on a disk (DESIGN "Disk semantics").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Every FLUSH is durable.
    #[default]
    Strict,
    /// As strict, and clients may say ORDER.
    Hinted,
    /// FLUSH acts as ORDER; the loss is bounded by time and bytes.
    Ordered,
    /// Every write is durable before its reply.
    Sync,
}

/// When the space of a disk is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provision {
    /// As it is written.
    #[default]
    Thin,
    /// Reserved at once, zeroed never.
    Lazy,
    /// Reserved and zeroed at once.
    Eager,
}

/// How much an `ordered` disk may lose when power is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossLimits {
    /// The acknowledgements that can be lost span no more time than this.
    pub loss_ms_max: u64,
    /// They hold no more bytes than this. A run of zeros or a discard counts as one block.
    pub loss_bytes_max: u64,
}

impl LossLimits {
    /// The time in microseconds.
    #[must_use]
    pub fn micros_max(&self) -> u64 {
        self.loss_ms_max.saturating_mul(1000)
    }
}

impl Default for LossLimits {
    fn default() -> LossLimits {
        LossLimits { loss_ms_max: 1000, loss_bytes_max: 64 << 20 }
    }
}

/// A disk as the catalogue knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its id, for ever.
    pub id: DiskId,
    /// Its name, unique in the pool.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Who owns its blocks now.
    pub lineage: LineageId,
    /// What FLUSH means.
    pub durability: Durability,
    /// When its space is taken.
    pub provision: Provision,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What may be lost of it while it is `ordered`.
    pub loss_limits: LossLimits,
}
