//! Shared memory, rings, fences and fail points: the ground that outlives a process.
//!
//! Nearly all `unsafe` code of Bowline lives in this crate. Its rules:
//!
//! - A [`Memory`] is one mapping. Nothing holds a reference into it for longer than a borrow of the
//!   [`Span`] that names the bytes, and two spans never overlap.
//! - Whatever must survive the process is written by [`Memory::write`] and made visible by
//!   [`Memory::publish`]; both can be recorded, so a test can adopt every prefix of the stores.
//! - Positions are offsets, never pointers.

mod abi;
pub mod fail;
mod fence;
mod file;
mod header;
mod large;
mod lock;
mod memory;
mod operation;
mod pages;
mod place;
mod prefix;
mod queues;
mod ring;
mod roster;
mod socket;

pub use fence::{DeadRing, FenceError, Passed, patience};
pub use file::{Adopted, Arena, ArenaError, ArenaFile, ArenaOptions, SharedPages, owner};
pub use header::ARENA_LAYOUT;
pub use lock::{Life, OwnerLock, life, own_start};
pub use memory::{Cut, Memory, Part, Record, Span};
pub use operation::Operation;
pub use pages::{PAGE_BYTES, Pages};
pub use place::{boot_id, default_directory};
pub use prefix::Prefixes;
pub use ring::{Completed, Ring, RingOptions, RingRefused, UserData};
pub use roster::{Enrolled, Fate, ROSTER_BYTES, Roster, Threads, Watched};
pub use socket::{receive_parts, send_parts};
