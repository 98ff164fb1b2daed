//! The numbers of the store, each its own type.

use std::fmt;

/// Bytes in a block: the unit of mapping, of checksums and of I/O to the medium.
pub const BLOCK_BYTES: u64 = 4096;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(/// A logical block address on a disk, in blocks of [`BLOCK_BYTES`].
    Lba(u64));
id!(/// The number of a write in the one order of a pool; 0 is before the first.
    Seq(u64));
id!(/// A disk, for ever: ids of destroyed disks are not used again.
    DiskId(u32));
id!(/// The owner of blocks: a disk has one at a time and gets a new one when it is forked.
    LineageId(u32));
id!(/// A segment of the log, for ever: segment ids are never used again.
    SegmentId(u64));
id!(/// A place on the medium that holds a segment or images of several.
    SlotId(u32));
id!(/// The number of a batch of the log.
    BatchNumber(u64));
id!(/// The term of one adoption of the pool; each start is a new one.
    Epoch(u64));
id!(/// The identity of a pool, drawn at random when it is made.
    PoolId(u128));
id!(/// A point in time of the data thread's monotonic clock, in microseconds.
    Micros(u64));
