//! The tables in memory below the store: pure data, no I/O.
//!
//! - [`Entry`]: what the map says of one block.
//! - [`Deltas`] and [`Ranges`]: changes of the map not folded into leaf pages yet, block by block
//!   and in large runs. One generation is a pair of them; [`newest`] combines the two.
//! - [`Frames`]: a cache of map pages.
//! - [`LiveBits`] and [`Directory`]: which blocks of a segment are alive, which an image holds.
//!
//! None of them holds a pointer in its records: indices only, so that a table can lie in shared
//! memory and be read by a successor.

mod delta;
mod entry;
mod frames;
mod live;
mod ranges;
mod words;

pub use delta::{Delta, Deltas, LeafCursor};
pub use entry::{Entry, LEAF_ENTRIES, SEGMENT_BLOCKS_MAX, SEGMENT_ID_MAX, State, leaf_of};
pub use frames::{FRAME_BYTES, FrameId, Frames};
pub use live::{Directory, LiveBits, Malformed};
pub use ranges::{Range, Ranges, newest};
pub use words::Words;

#[cfg(test)]
mod random;

/// A cheap mix of two numbers under a seed. The seed keeps a guest, who chooses block addresses,
/// from choosing which of them collide.
#[inline]
fn mix(seed: u64, first: u64, second: u64) -> u64 {
    let left = u128::from(first ^ seed);
    let right = u128::from(second.wrapping_add(seed.rotate_left(32)) ^ 0x9e37_79b9_7f4a_7c15);
    let product = left * right;
    let folded = (product as u64) ^ ((product >> 64) as u64);
    // The first product maps small differences to the low bits; the second spreads them over the
    // high ones, where `slot_of` looks.
    (folded ^ seed).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// The slot of a hash in a table of `slots`, without a division.
#[inline]
fn slot_of(hash: u64, slots: usize) -> usize {
    (((hash >> 32) * slots as u64) >> 32) as usize
}
