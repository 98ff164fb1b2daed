//! A job that never flushes: single blocks at places drawn from their number, straight to the
//! device. What was acknowledged must survive the death of the disk server all the same.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::acknowledge;

const BLOCK_BYTES: usize = 4096;
const O_DIRECT: i32 = 0o40000;

/// Blocks the job works on; each is written many times.
const BLOCKS: u64 = 2048;

/// A number that looks random (the finaliser of splitmix64).
pub fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn place(number: u64) -> u64 {
    mix(number) % BLOCKS
}

fn fill(block: &mut [u8], number: u64) {
    for (at, word) in block.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = if at == 0 { number } else { mix(number ^ (at as u64) << 40) }.to_le_bytes();
    }
}

/// The number of the write that a block holds, if it is whole.
fn holds(block: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(*block.first_chunk()?);
    let mut expected = vec![0; BLOCK_BYTES];
    fill(&mut expected, number);
    (block == expected).then_some(number)
}

/// A buffer with room for one aligned block, and where that block starts.
fn aligned() -> (Vec<u8>, usize) {
    let buffer = vec![0u8; 2 * BLOCK_BYTES];
    let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
    (buffer, start)
}

fn open(path: &str, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(O_DIRECT).open(path)
}

/// Writes for ever.
pub fn run(path: &str) -> io::Result<()> {
    let device = open(path, true)?;
    let (mut buffer, start) = aligned();
    let block = &mut buffer[start..start + BLOCK_BYTES];
    for number in 1.. {
        fill(block, number);
        device.write_all_at(block, place(number) * BLOCK_BYTES as u64)?;
        acknowledge(number)?;
    }
    Ok(())
}

/// Every block holds the last write to it up to `through`, or a later one of the same place.
pub fn check(path: &str, through: u64) -> io::Result<()> {
    let device = open(path, false)?;
    let last: BTreeMap<u64, u64> = (1..=through).map(|number| (place(number), number)).collect();
    let (mut buffer, start) = aligned();
    let block = &mut buffer[start..start + BLOCK_BYTES];
    for (&at, &number) in &last {
        device.read_exact_at(block, at * BLOCK_BYTES as u64)?;
        let held = holds(block);
        if !held.is_some_and(|held| held >= number && place(held) == at) {
            let what = format!("{path} block {at}: holds {held:?}, write {number} is lost");
            return Err(io::Error::other(what));
        }
    }
    println!("{}", last.len());
    Ok(())
}
