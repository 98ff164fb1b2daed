//! The ordered log, segments, map and space: what a pool is (DESIGN "Store").
//!
//! One pool is one ordered log. Every write gets a sequence number when it is admitted; what
//! survives any failure is a prefix of that order. The log is the store: the map points into it.

mod api;
mod ids;
mod media;
pub mod tables;

pub use api::{
    BlockState, Disk, Durability, Event, Extent, Payload, Provision, ReadError, Refused,
    StoreError, Ticket,
};
pub use ids::{
    BLOCK_BYTES, BatchNumber, DiskId, Epoch, Lba, LineageId, Micros, PoolId, SegmentId, Seq, SlotId,
};
pub use media::{Completion, Io, IoId, Media, MediumError};
