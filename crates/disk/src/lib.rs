//! Disk semantics over the store: sectors, overlap, FLUSH, FUA and ORDER, the limits of loss.
//!
//! A client sees sectors of 512 bytes; the store sees blocks of 4 KiB. A request of whole blocks
//! goes straight to the store. One that covers a block only in part becomes an *operation*: the old
//! block is read, the new bytes are laid over it, and the whole is admitted as one change.
//!
//! Invariants:
//! - **A request takes effect when it is admitted**, as a whole and never before. It is answered
//!   after that. So a request that was submitted after another's reply sees it, and of requests in
//!   flight together either may come first. The sequence number is given at admission: an operation
//!   that waits holds no place in the log and delays nobody else's.
//! - **Between reading an old block and replacing it, nothing else changes it.** An operation owns
//!   its blocks from submission on; a write, run of zeros or discard that overlaps one waits behind
//!   it, in the order of submission. Requests wait for earlier ones only, so nobody waits in a ring
//!   and everybody's turn comes. Requests of whole blocks that overlap no operation never wait.
//! - **Reads never wait.** They see what is admitted: all that was replied, and none or all of a
//!   change that is not. A read that is submitted while an operation waits sees the old bytes.
//! - **Nobody waits with half of what it needs.** An operation takes all its memory when it
//!   is submitted, or is refused as busy and has taken nothing.
//! - **Operations that the store has no room for are served before new requests**, in turn by disk.
//! - **FLUSH** is answered when all changes admitted to the disk before it arrived are durable; at
//!   once if they are already. **FUA** is a flush after admission. In `ordered` mode both act as
//!   ORDER, which needs nothing done: what survives is a prefix of the log.
//! - **Limits of loss.** On an `ordered` disk the acknowledged writes that are not durable never
//!   span more time, nor hold more bytes, than its [`LossLimits`]: flushes begin early enough for
//!   the slow ones of late, and when they do not suffice, replies wait. Such writes are admitted
//!   and visible to reads, but not acknowledged. Other disks are flushed after five seconds.
//! - **No error is dropped.** An old block that cannot be read fails the request; nothing of it is
//!   written.
//!
//! Not here: threads, time and I/O (time comes with [`Disks::poll`]), who may use a disk, and what
//! protocols call these things.

mod area;
mod broken;
mod disks;
mod durable;
mod error;
mod event;
mod flow;
mod loss;
mod operation;
mod slots;
mod staging;
#[cfg(test)]
mod tests;
mod usage;
mod volume;
mod witness;

pub use bowline_store::LossLimits;
pub use disks::{DiskCounters, Disks, SECTOR_BYTES};
pub use error::{IoError, IoErrorKind};
pub use event::{ByteExtent, DiskEvent, Submitted};
pub use loss::Loss;
pub use usage::{Latencies, Usage};
pub use volume::Volume;
pub use witness::Witness;
