//! The store's I/O in flight: what each id stands for.

use crate::streams::Stream;
use crate::{BatchNumber, Io, IoId, Media};

/// Why an I/O was submitted, and so what its completion means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A batch of the log.
    Batch(BatchNumber),
    /// A flush that makes the log durable.
    LogFlush,
    /// A run of blocks of a read.
    Read(usize),
    /// A page of the map.
    Page(usize),
    /// A flush for the checkpoint.
    Checkpoint,
    /// A copy of the superblock.
    Superblock,
    /// A run of blocks of a stream.
    Run(Stream, u32),
    /// Zeros in a slot that the log will come to.
    Prepare,
    /// I/O of a scrub: a read (0), a write (1), a flush (2).
    Scrub(u32),
    /// Space of a slot that will be opened.
    Back,
    /// A flush for compaction.
    Compaction,
    /// A window of the slot that compaction empties.
    CompactionRead(u32),
    /// What writing elsewhere does itself: a flush, a copy of the superblock.
    Heal,
}

impl Purpose {
    /// Whether the medium may be another one when it has come back: it is not only a read.
    fn is_change(self) -> bool {
        let is_read = matches!(
            self,
            Purpose::Read(_) | Purpose::Page(_) | Purpose::CompactionRead(_) | Purpose::Scrub(0)
        );
        !is_read
    }
}

/// The table of I/O in flight.
#[derive(Default)]
pub(crate) struct InFlight {
    slots: Vec<(u32, Option<Purpose>)>,
    free: Vec<u32>,
    /// Those in flight that are not only reads.
    changes: usize,
    /// I/Os submitted so far.
    pub submitted: u64,
}

impl InFlight {
    /// Submits an I/O for a purpose.
    pub(crate) fn submit<M: Media>(&mut self, media: &mut M, purpose: Purpose, io: Io) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        self.submitted += 1;
        self.changes += usize::from(purpose.is_change());
        let (generation, place) = &mut self.slots[slot as usize];
        *generation = generation.wrapping_add(1);
        *place = Some(purpose);
        media.submit(IoId(u64::from(*generation) << 32 | u64::from(slot)), io);
    }

    /// The purpose of an I/O that has come back.
    ///
    /// # Panics
    /// If the medium returns an id that is not in flight: it broke its contract.
    pub(crate) fn take(&mut self, id: IoId) -> Purpose {
        let slot = id.0 as u32;
        let known = self.slots.get_mut(slot as usize);
        let purpose = known.filter(|(generation, _)| u64::from(*generation) == id.0 >> 32);
        let purpose = purpose.and_then(|(_, place)| place.take());
        let purpose = purpose.unwrap_or_else(|| panic!("the medium completed {id:?} unasked"));
        self.free.push(slot);
        self.changes -= usize::from(purpose.is_change());
        purpose
    }

    /// Number of I/Os in flight that may change the medium: all but reads.
    pub(crate) fn changes(&self) -> usize {
        self.changes
    }

    /// Number of I/Os in flight.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
