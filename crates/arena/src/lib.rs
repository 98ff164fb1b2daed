//! Shared memory, rings, fences and fail points: the ground that outlives a process.
//!
//! Nearly all `unsafe` code of Bowline lives in this crate. Its rules:
//!
//! - A [`Memory`] is one mapping. Nothing holds a reference into it for longer than a borrow of the
//!   [`Span`] that names the bytes, and two spans never overlap.
//! - Whatever must survive the process is written by [`Memory::write`] and made visible by
//!   [`Memory::publish`]; both can be recorded, so a test can adopt every prefix of the stores.
//! - Positions are offsets, never pointers.

mod memory;
mod pages;

pub use memory::{Memory, Part, Record, Span};
pub use pages::{PAGE_BYTES, Pages, SharedPages};
