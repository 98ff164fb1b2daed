//! The ordered log, segments, map and space: what a pool is (DESIGN "Store").
//!
//! One pool is one ordered log. Every write gets a sequence number when it is admitted; what
//! survives any failure is a prefix of that order. The log is the store: the map points into it.

mod api;
mod appender;
mod backing;
mod blocking;
mod catalogue;
mod check;
mod checkpoint;
mod compaction;
mod fold;
mod format;
mod heal;
mod ids;
mod index;
mod io;
mod lifecycle;
mod log;
mod map;
mod media;
mod prepare;
mod read;
mod recovery;
mod repair;
mod reserve;
mod scrub;
mod segments;
mod staging;
mod status;
mod store;
mod streams;
pub mod tables;

pub use api::{
    BlockState, Change, Disk, Durability, Event, Extent, LossLimits, Payload, Provision, ReadError,
    Refused, StoreError, Ticket, pages_for_admission,
};
pub use check::{
    CheckOptions, CheckProgress, CheckReport, CheckVerdict, CheckedDisk, Finding, Loss, RepairStep,
    Severity, check,
};
#[doc(hidden)]
pub use check::{Place, PlaceKind};
pub use format::{FORMAT_VERSION, PoolHeader};
pub use ids::{
    BLOCK_BYTES, BatchNumber, DiskId, Epoch, Lba, LineageId, Micros, PoolId, SegmentId, Seq, SlotId,
};
pub use index::index_bytes;
pub use media::{Completion, Io, IoId, Media, MediumError};
pub use recovery::{CreateOptions, create, pool_header};
pub use repair::repair;
pub use scrub::{ScrubFinding, ScrubSeverity, ScrubState, ScrubStatus};
pub use status::{Counters, Mapped, PoolState, Space, Status};
#[doc(hidden)]
pub use store::Broken;
pub use store::{ArenaRegion, Store, StoreOptions};
