//! The crash replayer: states a pool may be left in by the death of its host, made from what was
//! recorded below Bowline while a real guest worked, and judged one by one.
//!
//! - [`record`] lets a guest work on a disk, and a client of our own on another one, and keeps
//!   every write and flush that reaches the medium, and when which promise was given;
//! - [`trace`] reads the medium's log;
//! - [`moments`] finds where checkpoints, moves of images and the reuse of slots lie in it;
//! - [`platter`] rebuilds what the medium may hold after a cut;
//! - [`judge`] recovers such a state with the real server and holds it against the promises;
//! - [`campaign`] does all that for one file system, and counts;
//! - [`faults`] makes states and promises that are wrong, which must be caught.
//!
//! A *legal crash state* at a cut: the log of the medium is cut off behind some entry. Every write
//! that had completed before a flush was submitted, where that flush has completed before the cut,
//! is there. Of all other writes submitted before the cut any part may be there: each may be lost,
//! whole, or torn at 512 bytes, whatever became of those before and after it.

pub mod campaign;
pub mod dice;
pub mod faults;
pub mod judge;
pub mod moments;
pub mod platter;
pub mod record;
pub mod trace;
