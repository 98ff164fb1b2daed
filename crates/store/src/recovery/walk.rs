//! Following the log from the last checkpoint to its end, and judging that end.

use std::collections::VecDeque;
use std::fmt;

use crate::blocking::Blocking;
use crate::format::{
    BatchHead, Cut, Entries, PoolHeader, Position, SegmentHeader, SegmentKind, block_checksum,
    read_batch,
};
use crate::recovery::{Known, Replay};
use crate::{BLOCK_BYTES, BatchNumber, Epoch, Media, MediumError, SegmentId, SlotId, StoreError};

/// How many segments behind the end are searched for proof that the end is no end.
const SEARCH_SEGMENTS_MAX: usize = 8;

/// A hole in the log that cannot be a torn end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub missing: BatchNumber,
    pub segment: SegmentId,
    pub slot: SlotId,
    pub proof: BatchNumber,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "batch {} of the log (segment {}, slot {}) is missing or damaged, although it was \
             durable when batch {} was written",
            self.missing, self.segment, self.slot, self.proof
        )
    }
}

/// A batch whose head verifies and that follows the one before.
struct Candidate {
    head: BatchHead,
    block: Vec<u8>,
    slot: SlotId,
}

/// The log being followed.
pub(crate) struct Walk {
    header: PoolHeader,
    at: Position,
    cuts: VecDeque<Cut>,
    /// The epoch whose batches count now; none while it is one before the first cut.
    epoch: Option<Epoch>,
    /// Batches up to this one are known to have been durable.
    durable: BatchNumber,
    waiting: VecDeque<Candidate>,
    window: Window,
    pub is_chain_ignored: bool,
}

/// Blocks of a slot in memory.
#[derive(Default)]
struct Window {
    slot: SlotId,
    first: u32,
    bytes: Vec<u8>,
}

impl Walk {
    pub(crate) fn new(known: &Known) -> Walk {
        let root = &known.root;
        let cuts: VecDeque<Cut> = root.cuts.iter().copied().collect();
        let accepted = cuts.back().map_or(BatchNumber(0), |cut| cut.accepted.number);
        Walk {
            header: known.header,
            at: root.position,
            epoch: cuts.is_empty().then_some(root.epoch),
            durable: accepted.max(root.position.number),
            cuts,
            waiting: VecDeque::new(),
            window: Window::default(),
            is_chain_ignored: false,
        }
    }

    /// The place just behind the last batch accepted.
    pub(crate) fn position(&self) -> Position {
        self.at
    }

    /// Follows the log and replays it. Returns the damage it ends with, if it does.
    pub(crate) fn run<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        replay: &mut Replay,
    ) -> Result<Option<Damage>, StoreError> {
        let mut end = self.at;
        while let Some(candidate) = self.next(medium, known, &mut end)? {
            self.durable = self.durable.max(candidate.head.durable_upto);
            self.waiting.push_back(candidate);
            while self.waiting.front().is_some_and(|one| one.head.number <= self.durable) {
                if let Some(one) = self.waiting.pop_front() {
                    self.accept(medium, known, replay, &one)?;
                }
            }
        }
        while let Some(one) = self.waiting.pop_front() {
            if !verifies(medium, &self.header, &one)? {
                break;
            }
            self.accept(medium, known, replay, &one)?;
        }
        self.waiting.clear();
        if self.at.number == end.number {
            self.at = end;
        }
        if let Some(cut) = self.cuts.front() {
            // An epoch accepted more than there is now.
            return Ok(Some(self.damage(cut.accepted.number)));
        }
        self.search(medium)
    }

    fn accept<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        replay: &mut Replay,
        one: &Candidate,
    ) -> Result<(), StoreError> {
        let head = &one.head;
        self.at = Position {
            segment: head.segment,
            slot: one.slot,
            block: head.block + 1 + head.data_blocks,
            number: head.number,
            checksum: head.checksum,
        };
        replay.batch(medium, known, head, &one.block, one.slot)
    }

    /// The batch that follows `end`, which moves behind it.
    fn next<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        end: &mut Position,
    ) -> Result<Option<Candidate>, StoreError> {
        loop {
            if let Some(cut) = self.cuts.front().copied()
                && cut.accepted.number == end.number
            {
                self.cuts.pop_front();
                self.epoch = Some(cut.epoch);
                enter(known, cut.segment, cut.slot);
                (end.segment, end.slot, end.block) = (cut.segment, cut.slot, 1);
                continue;
            }
            if let Some(candidate) = self.batch_at(medium, end)? {
                let head = &candidate.head;
                end.block = head.block + 1 + head.data_blocks;
                (end.number, end.checksum) = (head.number, head.checksum);
                return Ok(Some(candidate));
            }
            let Some(next) = self.successor(medium, end)? else { return Ok(None) };
            enter(known, next.segment, next.slot);
            (end.segment, end.slot, end.block) = (next.segment, next.slot, 1);
        }
    }

    fn batch_at<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        end: &Position,
    ) -> Result<Option<Candidate>, StoreError> {
        if end.segment == SegmentId(0) || end.block + 1 > self.header.slot_blocks() {
            return Ok(None);
        }
        let salt = self.header.salt;
        let Some(block) = self.block(medium, end.slot, end.block)? else { return Ok(None) };
        let Some(head) = read_batch(salt, block) else { return Ok(None) };
        let block = block.to_vec();
        let follows = head.number.0 == end.number.0 + 1 && head.previous == end.checksum;
        let is_here = head.segment == end.segment
            && head.block == end.block
            && u64::from(head.block) + 1 + u64::from(head.data_blocks)
                <= u64::from(self.header.slot_blocks());
        let is_of_epoch = self.epoch.is_none_or(|epoch| head.epoch == epoch);
        if !is_here || !(follows && is_of_epoch || self.is_chain_ignored) {
            return Ok(None);
        }
        Ok(Some(Candidate { head, block, slot: end.slot }))
    }

    /// The segment the log goes on in, if it does.
    fn successor<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        end: &Position,
    ) -> Result<Option<SegmentHeader>, StoreError> {
        let Some(next) = self.next_header(medium, end.slot, end.segment)? else { return Ok(None) };
        let follows = next.before == (end.segment, end.number, end.checksum);
        let is_of_epoch = self.epoch.is_none_or(|epoch| next.epoch == epoch);
        Ok((follows && is_of_epoch).then_some(next))
    }

    /// The header in the slot a segment names as its successor.
    fn next_header<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
        segment: SegmentId,
    ) -> Result<Option<SegmentHeader>, StoreError> {
        let Some(own) = self.segment_header(medium, slot)? else { return Ok(None) };
        let Some(successor) = own.successor.filter(|_| own.segment == segment) else {
            return Ok(None);
        };
        let next = self.segment_header(medium, successor)?;
        Ok(next.filter(|next| next.kind == SegmentKind::Log && next.segment > segment))
    }

    fn segment_header<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
    ) -> Result<Option<SegmentHeader>, StoreError> {
        let (salt, pool) = (self.header.salt, self.header.pool);
        let at = self.header.block_at(slot, 0);
        match medium.read(at, BLOCK_BYTES) {
            Ok(block) => {
                let found = SegmentHeader::decode(salt, pool, block);
                Ok(found.filter(|header| header.slot == slot))
            }
            Err(MediumError::Died) => Err(MediumError::Died.into()),
            Err(_) => Ok(None),
        }
    }

    /// A block of a slot; none if it cannot be read.
    fn block<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
        block: u32,
    ) -> Result<Option<&[u8]>, StoreError> {
        let have = (self.window.bytes.len() as u64 / BLOCK_BYTES) as u32;
        let is_in = self.window.slot == slot
            && block >= self.window.first
            && block < self.window.first + have;
        if !is_in {
            let left = u64::from(self.header.slot_blocks() - block) * BLOCK_BYTES;
            let at = self.header.block_at(slot, block);
            let bytes = left.min(medium.buffer_bytes());
            let mut read = medium.read(at, bytes).map(<[u8]>::to_vec);
            if matches!(read, Err(ref error) if *error != MediumError::Died) {
                read = medium.read(at, BLOCK_BYTES).map(<[u8]>::to_vec);
            }
            self.window = match read {
                Ok(bytes) => Window { slot, first: block, bytes },
                Err(MediumError::Died) => return Err(MediumError::Died.into()),
                Err(_) => return Ok(None),
            };
        }
        let start = (u64::from(block - self.window.first) * BLOCK_BYTES) as usize;
        Ok(self.window.bytes.get(start..start + BLOCK_BYTES as usize))
    }

    /// Looks behind the end for a batch that knew more of the log to be durable than there is.
    fn search<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
    ) -> Result<Option<Damage>, StoreError> {
        let (mut slot, mut segment, mut first) = (self.at.slot, self.at.segment, self.at.block);
        if segment == SegmentId(0) {
            return Ok(None);
        }
        for _ in 0..SEARCH_SEGMENTS_MAX {
            for block in first..self.header.slot_blocks() {
                let salt = self.header.salt;
                let Some(bytes) = self.block(medium, slot, block)? else { continue };
                let Some(head) = read_batch(salt, bytes) else { continue };
                let is_real = head.segment == segment && head.block == block;
                let is_of_epoch = self.epoch.is_none_or(|epoch| head.epoch == epoch);
                if is_real && is_of_epoch && head.durable_upto > self.at.number {
                    return Ok(Some(self.damage(head.number)));
                }
            }
            let Some(next) = self.next_header(medium, slot, segment)? else { break };
            if self.epoch.is_some_and(|epoch| next.epoch != epoch) {
                break;
            }
            (slot, segment, first) = (next.slot, next.segment, 1);
        }
        Ok(None)
    }

    fn damage(&self, proof: BatchNumber) -> Damage {
        let missing = BatchNumber(self.at.number.0 + 1);
        Damage { missing, segment: self.at.segment, slot: self.at.slot, proof }
    }
}

/// The log goes on in a slot.
fn enter(known: &mut Known, segment: SegmentId, slot: SlotId) {
    if known.segments.get(segment).is_none() && slot.0 < known.segments.slot_count() {
        known.segments.use_slot(slot, SegmentKind::Log);
        known.segments.add_whole(segment, SegmentKind::Log, slot);
    }
}

/// Whether the data of a batch is what its head says.
fn verifies<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    one: &Candidate,
) -> Result<bool, StoreError> {
    let mut sums = Vec::new();
    for found in Entries::new(&one.block, one.head.entries) {
        if found.entry.kind.has_data() {
            sums.extend((0..found.entry.blocks as u32).map(|at| found.checksum(at)));
        }
    }
    if sums.len() as u32 != one.head.data_blocks {
        return Ok(false);
    }
    let mut done = 0;
    while done < sums.len() {
        let at = header.block_at(one.slot, one.head.block + 1 + done as u32);
        let bytes = match medium.read(at, (sums.len() - done) as u64 * BLOCK_BYTES) {
            Ok(bytes) => bytes,
            Err(MediumError::Died) => return Err(MediumError::Died.into()),
            Err(_) => return Ok(false),
        };
        for block in bytes.chunks_exact(BLOCK_BYTES as usize) {
            if block_checksum(header.salt, block) != sums[done] {
                return Ok(false);
            }
            done += 1;
        }
    }
    Ok(true)
}
