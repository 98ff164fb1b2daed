//! What a client was told, and whether what is found afterwards agrees.
//!
//! Writes are whole blocks and numbered in the order they were sent. After the death of a process
//! every block must hold the last write that was acknowledged, or one that was on its way. After
//! the death of the host it may be older, but all blocks together must be the state after some
//! number of writes (a prefix), and no less than was flushed.

use std::collections::BTreeMap;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// A number that looks random (the finaliser of splitmix64).
#[must_use]
pub fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of a block that a write leaves: they name the writer, the write and the place.
#[must_use]
pub fn content(writer: u32, number: u64, block: u64) -> Vec<u8> {
    let name = [u64::from(writer), number, block].map(u64::to_le_bytes).concat();
    let seed = mix(number ^ u64::from(writer) << 48 ^ block << 24);
    let rest = (0..(BLOCK_BYTES / 8 - 3) as u64).flat_map(|at| mix(seed ^ at).to_le_bytes());
    name.into_iter().chain(rest).collect()
}

/// The number of the write that left these bytes: 0 if they are zeros, `None` if they are torn,
/// of another writer or of another place.
#[must_use]
pub fn number(writer: u32, block: u64, bytes: &[u8]) -> Option<u64> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Some(0);
    }
    let number = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == content(writer, number, block)).then_some(number)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Sent,
    Acknowledged,
}

#[derive(Debug, Clone, Copy)]
struct Write {
    block: u64,
    blocks: u64,
    state: State,
}

/// What one writer was told.
#[derive(Debug, Clone, Default)]
pub struct History {
    writer: u32,
    settled: BTreeMap<u64, u64>,
    writes: BTreeMap<u64, Write>,
    next: u64,
    flushed: u64,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

impl History {
    /// A writer that has written nothing.
    #[must_use]
    pub fn new(writer: u32) -> History {
        History { writer, next: 1, ..History::default() }
    }

    /// Who writes.
    #[must_use]
    pub fn writer(&self) -> u32 {
        self.writer
    }

    /// Numbers a write that is about to be sent.
    pub fn send(&mut self, block: u64, blocks: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.writes.insert(number, Write { block, blocks, state: State::Sent });
        number
    }

    /// The bytes of a write.
    #[must_use]
    pub fn payload(&self, number: u64) -> Vec<u8> {
        let Some(write) = self.writes.get(&number) else { return Vec::new() };
        let blocks = write.block..write.block + write.blocks;
        blocks.flat_map(|block| content(self.writer, number, block)).collect()
    }

    /// A write was answered.
    pub fn acknowledge(&mut self, number: u64) {
        if let Some(write) = self.writes.get_mut(&number) {
            write.state = State::Acknowledged;
        }
    }

    /// Everything that is acknowledged now will be covered by a flush that is about to be sent;
    /// give the number to [`flushed`](History::flushed) when it is answered.
    #[must_use]
    pub fn covered(&self) -> u64 {
        let unanswered = self.writes.iter().find(|(_, write)| write.state == State::Sent);
        unanswered.map_or(self.next, |(&number, _)| number) - 1
    }

    /// A flush was answered.
    pub fn flushed(&mut self, covered: u64) {
        self.flushed = self.flushed.max(covered);
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        let writes = self.writes.values();
        writes.filter(|write| write.state == State::Acknowledged).count() as u64
    }

    /// How many writes are known to be durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.flushed
    }

    fn is_on_its_way(&self, number: u64, block: u64) -> bool {
        self.writes.get(&number).is_some_and(|write| {
            write.state == State::Sent && (write.block..write.block + write.blocks).contains(&block)
        })
    }

    /// The last acknowledged write to each block.
    fn expected(&self) -> BTreeMap<u64, u64> {
        let mut expected = self.settled.clone();
        for (&number, write) in &self.writes {
            let value = if write.state == State::Acknowledged { Some(number) } else { None };
            for block in write.block..write.block + write.blocks {
                let held = expected.entry(block).or_insert(0);
                *held = value.unwrap_or(*held);
            }
        }
        expected
    }

    /// Every block that was ever written to.
    #[must_use]
    pub fn blocks(&self) -> Vec<u64> {
        self.expected().into_keys().collect()
    }

    /// Judges what is found after the death of a process.
    ///
    /// # Errors
    /// The first acknowledged write that is not there, or bytes that nobody wrote there.
    pub fn judge_process(&self, found: &BTreeMap<u64, Vec<u8>>) -> Result<(), Broken> {
        let expected = self.expected();
        for (&block, bytes) in found {
            let last = expected.get(&block).copied().unwrap_or(0);
            let Some(held) = number(self.writer, block, bytes) else {
                return Err(self.broken(block, "holds bytes that nobody wrote there"));
            };
            if held != last && !self.is_on_its_way(held, block) {
                let what = format!("holds write {held}, acknowledged was {last}");
                return Err(self.broken(block, &what));
            }
        }
        Ok(())
    }

    /// Judges what is found after the death of the host. Right only for a writer that waits for
    /// each reply before the next write: then the order of sending is the order of admission.
    ///
    /// # Errors
    /// Something flushed that is not there, or a write that is there without one before it.
    pub fn judge_host(&self, found: &BTreeMap<u64, Vec<u8>>) -> Result<(), Broken> {
        let mut held = BTreeMap::new();
        for (&block, bytes) in found {
            let Some(number) = number(self.writer, block, bytes) else {
                return Err(self.broken(block, "holds bytes that nobody wrote there"));
            };
            held.insert(block, number);
        }
        // The prefix must reach the youngest write that is there, and the last flush.
        let through = held.values().copied().max().unwrap_or(0).max(self.flushed);
        let mut expected: BTreeMap<u64, u64> = held.keys().map(|&block| (block, 0)).collect();
        expected.extend(&self.settled);
        for (&number, write) in self.writes.range(..=through) {
            for block in write.block..write.block + write.blocks {
                expected.insert(block, number);
            }
        }
        for (&block, &number) in &expected {
            let there = held.get(&block).copied();
            if there != Some(number) {
                let what = format!(
                    "holds write {there:?}, but write {through} is durable and write {number} \
                     before it is not there"
                );
                return Err(self.broken(block, &what));
            }
        }
        Ok(())
    }

    fn broken(&self, block: u64, what: &str) -> Broken {
        Broken(format!("writer {}, block {block}: {what}", self.writer))
    }

    /// Goes on from what is found and is durable by now: what was lost never was, what was on its
    /// way is settled.
    pub fn settle(&mut self, found: &BTreeMap<u64, Vec<u8>>) {
        self.writes.clear();
        let held = found
            .iter()
            .filter_map(|(&block, bytes)| Some((block, number(self.writer, block, bytes)?)));
        self.settled = held.collect();
        self.flushed = self.next - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(history: &History, held: &[(u64, u64)]) -> BTreeMap<u64, Vec<u8>> {
        let bytes = |number, block| match number {
            0 => vec![0; BLOCK_BYTES],
            number => content(history.writer, number, block),
        };
        held.iter().map(|&(block, number)| (block, bytes(number, block))).collect()
    }

    /// Write 1 to block 1, 2 to block 2, 3 to block 1 are acknowledged, 4 to block 2 is on its way.
    fn history() -> History {
        let mut history = History::new(7);
        for block in [1, 2, 1] {
            let number = history.send(block, 1);
            history.acknowledge(number);
        }
        history.send(2, 1);
        history
    }

    #[test]
    fn what_was_acknowledged_must_be_there_after_a_process_dies() {
        let history = history();
        for held in [[(1, 3), (2, 2)], [(1, 3), (2, 4)]] {
            assert_eq!(history.judge_process(&found(&history, &held)), Ok(()));
        }
        for held in [[(1, 1), (2, 2)], [(1, 3), (2, 0)], [(1, 0), (2, 4)], [(1, 4), (2, 2)]] {
            assert!(history.judge_process(&found(&history, &held)).is_err(), "{held:?}");
        }
    }

    #[test]
    fn torn_and_misplaced_blocks_are_caught() {
        let history = history();
        let mut torn = found(&history, &[(1, 3), (2, 2)]);
        torn.get_mut(&1).unwrap()[4095] ^= 1;
        assert!(history.judge_process(&torn).is_err());
        assert!(history.judge_host(&torn).is_err());
        let elsewhere = BTreeMap::from([(1, content(7, 3, 2)), (2, content(7, 2, 2))]);
        assert!(history.judge_process(&elsewhere).is_err());
        let somebody = BTreeMap::from([(1, content(8, 3, 1)), (2, content(7, 2, 2))]);
        assert!(history.judge_process(&somebody).is_err());
    }

    #[test]
    fn after_a_host_dies_any_prefix_is_right_and_nothing_else() {
        let history = history();
        for held in [[(1, 0), (2, 0)], [(1, 1), (2, 0)], [(1, 1), (2, 2)], [(1, 3), (2, 4)]] {
            assert_eq!(history.judge_host(&found(&history, &held)), Ok(()), "{held:?}");
        }
        for held in [[(1, 0), (2, 2)], [(1, 3), (2, 0)], [(1, 1), (2, 4)]] {
            assert!(history.judge_host(&found(&history, &held)).is_err(), "{held:?}");
        }
    }

    #[test]
    fn after_a_host_dies_what_was_flushed_is_there() {
        let mut history = history();
        assert_eq!(history.covered(), 3);
        history.flushed(2);
        assert_eq!(history.judge_host(&found(&history, &[(1, 1), (2, 2)])), Ok(()));
        assert!(history.judge_host(&found(&history, &[(1, 1), (2, 0)])).is_err());
    }

    #[test]
    fn a_history_goes_on_from_what_was_found() {
        let mut history = history();
        history.settle(&found(&history, &[(1, 3), (2, 4)]));
        assert_eq!(history.judge_process(&found(&history, &[(1, 3), (2, 4)])), Ok(()));
        assert!(history.judge_process(&found(&history, &[(1, 3), (2, 2)])).is_err());
        assert_eq!(history.send(1, 1), 5);
    }
}
