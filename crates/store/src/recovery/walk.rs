//! Following the log from the last checkpoint to its end, and judging that end.

use std::collections::VecDeque;
use std::fmt;

use crate::blocking::Blocking;
use crate::format::{
    BatchHead, Cut, Entries, PoolHeader, Position, SegmentHeader, SegmentKind, block_checksum,
    check_entries, read_batch,
};
use crate::recovery::{Known, Replay};
use crate::{BLOCK_BYTES, BatchNumber, Epoch, Media, MediumError, SegmentId, SlotId, StoreError};

/// A hole in the log that cannot be a torn end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub missing: BatchNumber,
    pub segment: SegmentId,
    pub slot: SlotId,
    pub why: Why,
}

/// What shows that the log cannot just end there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// A later batch, or an epoch that began, knew more of it to be durable.
    Proof(BatchNumber),
    /// The medium could not read what is there: an error is not an end.
    Unreadable(MediumError),
    /// The batch is there, but what it names is not what was written.
    Content(String),
    /// The batch is there as it was written, and not all of it can be understood.
    Version(String),
    /// The slot the checkpoint names holds another segment, or none: the superblock is older than
    /// what the slots hold.
    Replaced,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { missing, segment, slot, why } = self;
        let place = format!("batch {missing} of the log (segment {segment}, slot {slot})");
        match why {
            Why::Proof(proof) => write!(
                f,
                "{place} is missing or damaged, although it was durable when batch {proof} was \
                 written"
            ),
            Why::Unreadable(error) => write!(f, "{place} cannot be read: {error}"),
            Why::Content(what) => write!(f, "{place} cannot be used: {what}"),
            Why::Version(what) => {
                write!(f, "{place} was written by another version of bowline: {what}")
            }
            Why::Replaced => write!(
                f,
                "{place} is missing: the slot does not hold the segment the last checkpoint names"
            ),
        }
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
    pub(super) header: PoolHeader,
    pub(super) at: Position,
    cuts: VecDeque<Cut>,
    /// The epoch whose batches count now; none while it is one before the first cut.
    pub(super) epoch: Option<Epoch>,
    /// Batches up to this one are known to have been durable.
    durable: BatchNumber,
    waiting: VecDeque<Candidate>,
    window: Window,
    /// What the medium said where the log should have gone on.
    failed: Option<MediumError>,
    pub is_chain_ignored: bool,
    /// The last batch to be accepted, if the arena says how far the log was flushed: what lies
    /// behind it is in the arena, and is written again. A flush may have failed since, and then
    /// what the medium shows now is not there to stay.
    limit: Option<BatchNumber>,
    /// Whether what nothing proves to have been flushed is written where it lies once more: the
    /// arena is gone, the host is not, and the last flush may have failed with nobody there to
    /// hear it.
    pub is_rewritten: bool,
}

/// Blocks of a slot in memory.
#[derive(Default)]
struct Window {
    slot: SlotId,
    first: u32,
    bytes: Vec<u8>,
}

impl Walk {
    pub(crate) fn new(known: &Known, limit: Option<BatchNumber>) -> Walk {
        let root = &known.root;
        let cuts: VecDeque<Cut> = root.cuts.iter().copied().collect();
        let accepted = cuts.back().map_or(BatchNumber(0), |cut| cut.accepted.number);
        Walk {
            header: known.header,
            at: root.position,
            epoch: cuts.is_empty().then_some(root.epoch),
            durable: accepted.max(root.position.number).max(limit.unwrap_or_default()),
            cuts,
            waiting: VecDeque::new(),
            window: Window::default(),
            failed: None,
            is_chain_ignored: false,
            limit,
            is_rewritten: false,
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
        if self.at.segment != SegmentId(0) {
            // Of the checkpoint's last segment nothing may have been alive, but what follows may.
            enter(known, self.at.segment, self.at.slot);
            if !self.starts_where_it_should(medium)? {
                return Ok(Some(self.damage(Why::Replaced)));
            }
        }
        let mut end = self.at;
        while self.limit.is_none_or(|limit| end.number < limit)
            && let Some(candidate) = self.next(medium, &mut end)?
        {
            self.durable = self.durable.max(candidate.head.durable_upto);
            self.waiting.push_back(candidate);
            while self.waiting.front().is_some_and(|one| one.head.number <= self.durable) {
                if let Some(one) = self.waiting.pop_front()
                    && let Some(damage) = self.accept(medium, known, replay, &one)?
                {
                    return Ok(Some(damage));
                }
            }
        }
        while let Some(one) = self.waiting.pop_front() {
            if !self.verifies(medium, &one)? {
                break;
            }
            if self.is_rewritten {
                self.rewrite(medium, &one)?;
            }
            if let Some(damage) = self.accept(medium, known, replay, &one)? {
                return Ok(Some(damage));
            }
        }
        self.waiting.clear();
        if self.at.number == end.number {
            self.at = end;
        }
        let accepted = self.cuts.front().map(|cut| cut.accepted.number);
        let proof = accepted.max(self.limit).filter(|number| *number > self.at.number);
        if let Some(number) = proof {
            // An epoch accepted, or the arena saw flushed, more than there is now.
            return Ok(Some(self.damage(Why::Proof(number))));
        }
        if self.limit.is_some() {
            return Ok(None);
        }
        if let Some(error) = self.failed.take() {
            return Ok(Some(self.damage(Why::Unreadable(error))));
        }
        // Also behind a superblock of a pool that was closed: it may be an old one put back.
        self.search(medium, known)
    }

    /// Whether the checkpoint's last segment is where the superblock says. A slot is used again
    /// only after a later superblock, so another segment in it means that one was lost.
    fn starts_where_it_should<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
    ) -> Result<bool, StoreError> {
        let at = self.at;
        let found = self.segment_header(medium, at.slot)?;
        self.failed = None;
        // An unreadable header of a segment whose batches follow is no loss; a segment nothing was
        // written to yet has none.
        Ok(found.is_none_or(|found| found.segment == at.segment || at.block <= 1))
    }

    fn accept<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        known: &mut Known,
        replay: &mut Replay,
        one: &Candidate,
    ) -> Result<Option<Damage>, StoreError> {
        let head = &one.head;
        if let Err(bad) = check_entries(head, &one.block) {
            return Ok(Some(self.damage(Why::Version(bad.to_string()))));
        }
        // Not before: the slot may be one that a batch just accepted has added to the pool.
        enter(known, head.segment, one.slot);
        match replay.batch(medium, known, head, &one.block, one.slot) {
            Ok(()) => {}
            // Records cannot be passed over: they say where everything after them lies.
            Err(StoreError::Damaged(what)) => {
                return Ok(Some(self.damage(Why::Content(what))));
            }
            Err(StoreError::Version(what)) => {
                return Ok(Some(self.damage(Why::Version(what))));
            }
            Err(error) => return Err(error),
        }
        self.at = Position {
            segment: head.segment,
            slot: one.slot,
            block: head.block + 1 + head.data_blocks,
            number: head.number,
            checksum: head.checksum,
        };
        Ok(None)
    }

    /// The batch that follows `end`, which moves behind it.
    fn next<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        end: &mut Position,
    ) -> Result<Option<Candidate>, StoreError> {
        loop {
            self.failed = None;
            if let Some(cut) = self.cuts.front().copied()
                && cut.accepted.number == end.number
            {
                self.cuts.pop_front();
                self.epoch = Some(cut.epoch);
                (end.segment, end.slot, end.block) = (cut.segment, cut.slot, 1);
                continue;
            }
            if self.is_chain_ignored {
                self.skip_gap(medium, end)?;
            }
            if let Some(candidate) = self.batch_at(medium, end)? {
                let head = &candidate.head;
                end.block = head.block + 1 + head.data_blocks;
                (end.number, end.checksum) = (head.number, head.checksum);
                return Ok(Some(candidate));
            }
            let Some(next) = self.successor(medium, end)? else { return Ok(None) };
            (end.segment, end.slot, end.block) = (next.segment, next.slot, 1);
        }
    }

    /// A broken mode: goes on at the next batch of the segment, whatever is missing before it.
    fn skip_gap<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        end: &mut Position,
    ) -> Result<(), StoreError> {
        for block in end.block..self.header.slot_blocks() {
            let salt = self.header.salt;
            let found =
                self.block(medium, end.slot, block)?.and_then(|block| read_batch(salt, block));
            if found.is_some_and(|head| head.segment == end.segment && head.block == block) {
                end.block = block;
                break;
            }
        }
        Ok(())
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
    pub(super) fn next_header<M: Media>(
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

    pub(super) fn segment_header<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        slot: SlotId,
    ) -> Result<Option<SegmentHeader>, StoreError> {
        let (salt, pool) = (self.header.salt, self.header.pool);
        let at = self.header.block_at(slot, 0);
        let Some(block) = self.read(medium, at, BLOCK_BYTES)? else { return Ok(None) };
        let found = SegmentHeader::decode(salt, pool, &block);
        Ok(found.filter(|header| header.slot == slot))
    }

    /// Reads, twice if it must be; none if the medium cannot, which is noted.
    pub(super) fn read<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        at: u64,
        bytes: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut failed = None;
        for bytes in [bytes, BLOCK_BYTES] {
            match medium.read(at, bytes) {
                Ok(found) => return Ok(Some(found.to_vec())),
                Err(MediumError::Died) => return Err(MediumError::Died.into()),
                Err(error) => failed = Some(error),
            }
        }
        self.failed = failed;
        Ok(None)
    }

    /// A block of a slot; none if it cannot be read.
    pub(super) fn block<M: Media>(
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
            let left = self.header.slot_blocks().saturating_sub(block);
            let left = u64::from(left.max(1)) * BLOCK_BYTES;
            let at = self.header.block_at(slot, block);
            let bytes = left.min(medium.buffer_bytes());
            let Some(bytes) = self.read(medium, at, bytes)? else { return Ok(None) };
            self.window = Window { slot, first: block, bytes };
        }
        let start = (u64::from(block - self.window.first) * BLOCK_BYTES) as usize;
        Ok(self.window.bytes.get(start..start + BLOCK_BYTES as usize))
    }

    pub(super) fn damage(&self, why: Why) -> Damage {
        let missing = BatchNumber(self.at.number.0 + 1);
        Damage { missing, segment: self.at.segment, slot: self.at.slot, why }
    }

    /// Writes a batch once more, and the header of its segment if it is the first there.
    fn rewrite<M: Media>(
        &self,
        medium: &mut Blocking<'_, M>,
        one: &Candidate,
    ) -> Result<(), StoreError> {
        let first = if one.head.block == 1 { 0 } else { one.head.block };
        let blocks = one.head.block + 1 + one.head.data_blocks - first;
        let at = self.header.block_at(one.slot, first);
        Ok(medium.rewrite(at, u64::from(blocks) * BLOCK_BYTES)?)
    }

    /// Whether the data of a batch is what its head says.
    fn verifies<M: Media>(
        &mut self,
        medium: &mut Blocking<'_, M>,
        one: &Candidate,
    ) -> Result<bool, StoreError> {
        let mut sums = Vec::new();
        // A head that verifies is no torn end, whatever its entries are: accepting it says so.
        if check_entries(&one.head, &one.block).is_err() {
            return Ok(true);
        }
        for found in Entries::new(&one.block, one.head.entries).map_while(Result::ok) {
            if found.entry.kind.has_data() {
                sums.extend((0..found.entry.blocks as u32).map(|at| found.checksum(at)));
            }
        }
        let mut done = 0;
        while done < sums.len() {
            let at = self.header.block_at(one.slot, one.head.block + 1 + done as u32);
            let left = (sums.len() - done) as u64 * BLOCK_BYTES;
            let Some(bytes) = self.read(medium, at, left)? else { return Ok(false) };
            for block in bytes.chunks_exact(BLOCK_BYTES as usize) {
                if Some(block_checksum(self.header.salt, block)) != sums.get(done).copied() {
                    return Ok(false);
                }
                done += 1;
            }
        }
        Ok(true)
    }
}

/// The log goes on in a slot.
pub(super) fn enter(known: &mut Known, segment: SegmentId, slot: SlotId) {
    if known.segments.get(segment).is_none() && slot.0 < known.segments.slot_count() {
        known.segments.use_slot(slot, SegmentKind::Log);
        known.segments.add_whole(segment, SegmentKind::Log, slot);
    }
}
