//! The log's part of the arena: which batches a successor must find, and where their bytes are.
//!
//! ```text
//! 0     magic u64, released u64: batches up to it are not needed any more,
//!       epoch u64 that fills it, next epoch u64 that is about to, loss clock u64
//! 4096  descriptors, 512 bytes each, batch n in descriptor n modulo their count:
//!       number u64, head offset u64, progress u64, segment u64, slot u32, block u32,
//!       checksum of the batch before u64, its own u64 (0 while it is open), last request u64,
//!       spans of data {first page u32, pages u32}
//! ```
//!
//! Invariants:
//! - A batch's descriptor counts once its number is published, and then for what its progress
//!   says: so many entries and data blocks, whose checksum the same word carries. Whatever the
//!   word covers was stored before it (broken mode `publish-before-content`).
//! - The place of a batch is where it will be written, or was. It is stored before the number, and
//!   changes only while the area is not gone on with in place ([`Index`](crate::index::Index)).
//! - The descriptor of the last batch released stays until another takes its place: it says where
//!   the log ends when nothing else does.
//! - Batches from `released` + 1 on are complete in the arena up to the newest; pages of a batch
//!   are given back only after `released` has passed it, or it was retracted.

use bowline_arena::{Memory, PAGE_BYTES, Part, Span};
use twox_hash::XxHash3_64;

use crate::{BatchNumber, Epoch, Micros, SegmentId, Seq, SlotId};

const MAGIC: u64 = u64::from_le_bytes(*b"BOWLSTG2");
const RELEASED_AT: u32 = 8;
const EPOCH_AT: u32 = 16;
const NEXT_EPOCH_AT: u32 = 24;
const LOSS_CLOCK_AT: u32 = 32;
const DESCRIPTORS_AT: u32 = 4096;
const DESCRIPTOR_BYTES: u32 = 512;
const HEAD_AT: u32 = 8;
const PROGRESS_AT: u32 = 16;
const SEGMENT_AT: u32 = 24;
const BLOCK_AT: u32 = 32;
const PREVIOUS_AT: u32 = 40;
const CHECKSUM_AT: u32 = 48;
const SEQ_AT: u32 = 56;
const SPANS_AT: u32 = 64;
/// Most spans of data in a batch.
pub(crate) const SPANS_MAX: usize = ((DESCRIPTOR_BYTES - SPANS_AT) / 8) as usize;

/// How far a batch has been filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub entries: u16,
    pub data_blocks: u16,
    /// Over the bytes of all entries.
    pub checksum: u32,
}

impl Progress {
    fn word(self) -> u64 {
        u64::from(self.entries) | u64::from(self.data_blocks) << 16 | u64::from(self.checksum) << 32
    }

    fn from_word(word: u64) -> Progress {
        Progress {
            entries: word as u16,
            data_blocks: (word >> 16) as u16,
            checksum: (word >> 32) as u32,
        }
    }

    /// The checksum once `entry` is added.
    pub(crate) fn extend(self, entry: &[u8]) -> u32 {
        XxHash3_64::oneshot_with_seed(u64::from(self.checksum), entry) as u32
    }
}

/// Where a batch lies in the chain and on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub segment: SegmentId,
    pub slot: SlotId,
    /// The block of the slot where its head lies.
    pub block: u32,
    /// The checksum of the batch before.
    pub previous: u64,
}

/// What a descriptor says of a batch beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    pub place: Place,
    pub progress: Progress,
    /// Its checksum; none while it is open.
    pub checksum: Option<u64>,
    /// The last request admitted before it was closed.
    pub seq: Seq,
}

/// A batch as a successor finds it.
#[derive(Debug)]
pub(crate) struct Found {
    pub number: BatchNumber,
    pub head: Part,
    pub progress: Progress,
    pub spans: Vec<Part>,
}

/// The control area of the log.
pub(crate) struct Staging {
    control: Span,
    descriptors: u64,
    broken_publish: bool,
}

impl Staging {
    /// Takes the area as it is.
    ///
    /// # Panics
    /// If the area has no room for two descriptors.
    pub(crate) fn new(control: Span) -> Staging {
        let room = control.bytes().saturating_sub(DESCRIPTORS_AT);
        let descriptors = u64::from(room / DESCRIPTOR_BYTES);
        assert!(descriptors >= 2, "the control area is too small");
        Staging { control, descriptors, broken_publish: false }
    }

    /// Whether the area belongs to an epoch, or to one that was about to begin.
    pub(crate) fn belongs_to(&self, memory: &Memory, epoch: Epoch) -> bool {
        memory.read(&self.control, 0) == MAGIC
            && (memory.read(&self.control, EPOCH_AT) == epoch.0
                || memory.read(&self.control, NEXT_EPOCH_AT) == epoch.0)
    }

    /// Makes the area empty.
    pub(crate) fn format(&mut self, memory: &Memory) {
        memory.publish(&mut self.control, 0, 0);
        for at in [RELEASED_AT, EPOCH_AT, NEXT_EPOCH_AT, LOSS_CLOCK_AT] {
            memory.publish(&mut self.control, at, 0);
        }
        for index in 0..self.descriptors as u32 {
            memory.publish(&mut self.control, DESCRIPTORS_AT + index * DESCRIPTOR_BYTES, 0);
        }
        memory.publish(&mut self.control, 0, MAGIC);
    }

    /// An epoch is about to be written to the medium that goes on with this area.
    pub(crate) fn announce(&mut self, memory: &Memory, epoch: Epoch) {
        memory.publish(&mut self.control, NEXT_EPOCH_AT, epoch.0);
    }

    /// The epoch has begun; from here on the area is its own.
    pub(crate) fn begin(&mut self, memory: &Memory, epoch: Epoch) {
        memory.publish(&mut self.control, EPOCH_AT, epoch.0);
    }

    /// Says when the oldest write was acknowledged that a limit of loss counts.
    pub(crate) fn set_loss_clock(&mut self, memory: &Memory, since: Option<Micros>) {
        let word = since.map_or(0, |since| since.0.max(1));
        if memory.read(&self.control, LOSS_CLOCK_AT) != word {
            memory.publish(&mut self.control, LOSS_CLOCK_AT, word);
        }
    }

    /// What was last said of it, perhaps by a dead process.
    pub(crate) fn loss_clock(&self, memory: &Memory) -> Option<Micros> {
        let word = memory.read(&self.control, LOSS_CLOCK_AT);
        (word > 0).then_some(Micros(word))
    }

    /// Publishes progress before the content it covers: a broken mode for the explorer to catch.
    pub(crate) fn break_publish(&mut self) {
        self.broken_publish = true;
    }

    pub(crate) fn is_publish_broken(&self) -> bool {
        self.broken_publish
    }

    /// Batches that fit at a time.
    pub(crate) fn capacity(&self) -> u64 {
        self.descriptors
    }

    fn at(&self, number: BatchNumber) -> u32 {
        DESCRIPTORS_AT + (number.0 % self.descriptors) as u32 * DESCRIPTOR_BYTES
    }

    /// A new, empty batch whose head block is `head`.
    pub(crate) fn open(&mut self, memory: &Memory, number: BatchNumber, head: Part, place: &Place) {
        let at = self.at(number);
        // Whose it was before is nobody's while it changes.
        memory.publish(&mut self.control, at, 0);
        memory.publish(&mut self.control, at + HEAD_AT, head.offset);
        memory.publish(&mut self.control, at + PROGRESS_AT, 0);
        self.place(memory, number, place);
        memory.publish(&mut self.control, at, number.0);
    }

    /// A batch gets a place, and is open there.
    pub(crate) fn place(&mut self, memory: &Memory, number: BatchNumber, place: &Place) {
        let at = self.at(number);
        let block = u64::from(place.slot.0) | u64::from(place.block) << 32;
        memory.publish(&mut self.control, at + CHECKSUM_AT, 0);
        memory.publish(&mut self.control, at + SEGMENT_AT, place.segment.0);
        memory.publish(&mut self.control, at + BLOCK_AT, block);
        memory.publish(&mut self.control, at + PREVIOUS_AT, place.previous);
    }

    /// A batch is closed: its head has this checksum, and its bytes change no more.
    pub(crate) fn close(&mut self, memory: &Memory, number: BatchNumber, checksum: u64, seq: Seq) {
        let at = self.at(number);
        memory.publish(&mut self.control, at + SEQ_AT, seq.0);
        memory.publish(&mut self.control, at + CHECKSUM_AT, checksum);
    }

    /// A batch that was closed takes entries again.
    pub(crate) fn reopen(&mut self, memory: &Memory, number: BatchNumber) {
        let at = self.at(number);
        memory.publish(&mut self.control, at + CHECKSUM_AT, 0);
    }

    /// What the area says of a batch, if it still knows it.
    pub(crate) fn placed(&self, memory: &Memory, number: BatchNumber) -> Option<Placed> {
        let at = self.at(number);
        let read = |field| memory.read(&self.control, at + field);
        if number.0 == 0 || read(0) != number.0 {
            return None;
        }
        let block = read(BLOCK_AT);
        let place = Place {
            segment: SegmentId(read(SEGMENT_AT)),
            slot: SlotId(block as u32),
            block: (block >> 32) as u32,
            previous: read(PREVIOUS_AT),
        };
        let checksum = Some(read(CHECKSUM_AT)).filter(|checksum| *checksum != 0);
        let progress = Progress::from_word(read(PROGRESS_AT));
        Some(Placed { place, progress, checksum, seq: Seq(read(SEQ_AT)) })
    }

    /// Names a span of data of a batch.
    pub(crate) fn span(&mut self, memory: &Memory, number: BatchNumber, index: usize, part: Part) {
        assert!(index < SPANS_MAX);
        let at = self.at(number) + SPANS_AT + index as u32 * 8;
        let page = part.offset / u64::from(PAGE_BYTES);
        let pages = u64::from(part.bytes / PAGE_BYTES);
        memory.publish(&mut self.control, at, page | pages << 32);
    }

    /// Makes the batch count as far as `progress` says.
    pub(crate) fn publish(&mut self, memory: &Memory, number: BatchNumber, progress: Progress) {
        let at = self.at(number) + PROGRESS_AT;
        memory.publish(&mut self.control, at, progress.word());
    }

    /// A batch of a dead process that is not gone on with: its pages are about to be given back,
    /// and a successor must not find them under its number.
    pub(crate) fn retract(&mut self, memory: &Memory, number: BatchNumber) {
        let at = self.at(number);
        memory.publish(&mut self.control, at, 0);
    }

    /// Batches up to `number` are not needed any more.
    pub(crate) fn release(&mut self, memory: &Memory, number: BatchNumber) {
        memory.publish(&mut self.control, RELEASED_AT, number.0);
    }

    /// Batches up to this one were on the medium and flushed.
    pub(crate) fn released(&self, memory: &Memory) -> BatchNumber {
        BatchNumber(memory.read(&self.control, RELEASED_AT))
    }

    /// The batches a dead process left, oldest first.
    pub(crate) fn found(&self, memory: &Memory) -> Vec<Found> {
        let mut number = BatchNumber(memory.read(&self.control, RELEASED_AT) + 1);
        let mut all = Vec::new();
        while all.len() < self.descriptors as usize {
            let at = self.at(number);
            if memory.read(&self.control, at) != number.0 {
                break;
            }
            let progress = Progress::from_word(memory.read(&self.control, at + PROGRESS_AT));
            let head = Part { offset: memory.read(&self.control, at + HEAD_AT), bytes: PAGE_BYTES };
            let mut spans = Vec::new();
            let mut pages = 0;
            while pages < u64::from(progress.data_blocks) && spans.len() < SPANS_MAX {
                let word = memory.read(&self.control, at + SPANS_AT + spans.len() as u32 * 8);
                let count = (word >> 32).min(u64::from(progress.data_blocks) - pages);
                let offset = (word & u64::from(u32::MAX)) * u64::from(PAGE_BYTES);
                spans.push(Part { offset, bytes: count as u32 * PAGE_BYTES });
                pages += count;
            }
            all.push(Found { number, head, progress, spans });
            number = BatchNumber(number.0 + 1);
        }
        all
    }
}
