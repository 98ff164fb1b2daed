//! The structures before the slots, of which there are two copies each: a damaged copy is written
//! again.
//!
//! Invariants:
//! - The pair of the running epoch is written by checkpoints only: a damaged copy of it is put
//!   right by asking for one. No other pair, and no pool header, is written by anybody else while
//!   the pool is open, so a copy may be written there at any time; one at a time, and flushed
//!   before the next.
//! - What is written to the pair of an older epoch is what its other copy holds, or, if that is
//!   damaged too, the filler a repair would write: the epoch that runs is the latest there is.

use super::report::wrong;
use super::window::{Found, Run};
use super::{Job, Next, Phase, ScrubFinding, ScrubSeverity};
use crate::format::{
    POOL_HEADER_AT, PoolHeader, SUPERBLOCK_COPIES, SUPERBLOCK_PAIRS, Superblock, superblock_at,
};
use crate::store::{Broken, Store};
use crate::{BLOCK_BYTES, Epoch, Media};

/// Blocks there are.
pub(super) const BLOCKS: u64 = 2 + SUPERBLOCK_COPIES * SUPERBLOCK_PAIRS;

/// What a place before the slots is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header(usize),
    Superblock { pair: u64, copy: u64 },
}

/// What a copy is.
enum Copy {
    Sound(Option<Box<Superblock>>),
    Unreadable,
    Wrong,
}

/// How far the writing of a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fix {
    #[default]
    Write,
    Writing,
    Flush,
}

/// Where the scrub of the copies stands.
#[derive(Default)]
pub(super) struct Copies {
    next: u64,
    /// A superblock of the pair that verifies.
    sound: Option<Box<Superblock>>,
    /// Damaged copies of the pair, or of the pool header.
    bad: Vec<Place>,
    fix: Fix,
    /// The generation of the superblock when the place was read, unless another was on its way.
    generation: Option<u64>,
}

fn place(number: u64) -> Option<Place> {
    let headers = POOL_HEADER_AT.len() as u64;
    if number < headers {
        return Some(Place::Header(number as usize));
    }
    let number = number - headers;
    let (pair, copy) = (number / SUPERBLOCK_COPIES, number % SUPERBLOCK_COPIES);
    (pair < SUPERBLOCK_PAIRS).then_some(Place::Superblock { pair, copy })
}

impl Place {
    fn at(self) -> u64 {
        match self {
            Place::Header(copy) => POOL_HEADER_AT.get(copy).copied().unwrap_or_default(),
            Place::Superblock { pair, copy } => superblock_at(pair, copy),
        }
    }

    fn name(self) -> String {
        match self {
            Place::Header(copy) => format!("copy {copy} of the pool header"),
            Place::Superblock { pair, copy } => format!("copy {copy} of superblock {pair}"),
        }
    }
}

impl<M: Media> Store<M> {
    pub(super) fn step_copies(&mut self, job: &mut Job) -> Next {
        let place = place(job.copies.next);
        // What a copy is to hold is known when both have been read.
        let is_inside = matches!(place, Some(Place::Superblock { copy: 1.., .. }));
        if let Some(bad) = job.copies.bad.last().copied().filter(|_| !is_inside) {
            return self.write_copy(job, bad);
        }
        let Some(place) = place else {
            job.phase = Phase::Slots;
            return Next::Again;
        };
        let at = place.at();
        let generation = self.checkpoint.is_none().then_some(self.root.generation);
        if self.scrub.window.blocks_from(at) == 0 {
            job.copies.generation = generation;
            return Next::Read(Run { at, blocks: 1, slot: None });
        }
        let copy = self.look_at_copy(place);
        if let Copy::Sound(found) = copy {
            return self.sound_copy(job, place, found);
        }
        let was_quiet = generation.is_some() && generation == job.copies.generation;
        if self.is_of_running_epoch(place) && !was_quiet {
            // A checkpoint may have been writing it that moment.
            return Next::Later;
        }
        if !job.is_second {
            job.is_second = true;
            job.copies.generation = generation;
            return Next::Read(Run { at, blocks: 1, slot: None });
        }
        self.bad_copy(job, place, matches!(copy, Copy::Unreadable))
    }

    fn look_at_copy(&self, place: Place) -> Copy {
        let bytes = match self.scrub.window.block(&self.memory, place.at()) {
            Found::Bytes(bytes) => bytes,
            Found::Unreadable => return Copy::Unreadable,
        };
        // Where nothing is written, the last crash may have left an older one in the second place.
        let is_running = self.is_of_running_epoch(place) && self.state.is_writing();
        match place {
            Place::Header(_) => match PoolHeader::decode(bytes) {
                Ok(header) if header == self.header => Copy::Sound(None),
                _ => Copy::Wrong,
            },
            Place::Superblock { pair, .. } => {
                let found = Superblock::decode(self.header.salt, self.header.pool, bytes);
                let (epoch, generation) = (self.root.epoch, self.root.generation);
                // An older one in the place of the last is as bad as none.
                let fits = |found: &Superblock| {
                    let is_of_pair =
                        found.epoch.0 % SUPERBLOCK_PAIRS == pair || found.epoch == Epoch(0);
                    let is_last = found.epoch == epoch && found.generation >= generation;
                    is_of_pair && (is_last || !is_running) && found.epoch <= epoch
                };
                let found = found.filter(fits).map(Box::new);
                found.map_or(Copy::Wrong, |found| Copy::Sound(Some(found)))
            }
        }
    }

    fn is_of_running_epoch(&self, place: Place) -> bool {
        let running = self.root.epoch.0 % SUPERBLOCK_PAIRS;
        matches!(place, Place::Superblock { pair, .. } if pair == running)
    }

    fn sound_copy(&mut self, job: &mut Job, place: Place, found: Option<Box<Superblock>>) -> Next {
        self.scrub_verified(1);
        let is_first = matches!(place, Place::Superblock { copy: 0, .. });
        if is_first || job.copies.sound.is_none() {
            job.copies.sound = found;
        }
        self.next_copy(job)
    }

    fn next_copy(&mut self, job: &mut Job) -> Next {
        job.is_second = false;
        job.blocks_done(1);
        job.copies.next += 1;
        Next::Again
    }

    fn bad_copy(&mut self, job: &mut Job, place: Place, is_unreadable: bool) -> Next {
        let is_running = self.is_of_running_epoch(place);
        let what = format!("{} {}", place.name(), wrong(is_unreadable));
        let is_writing = self.state.is_writing();
        let (severity, remedy) = match (is_writing, is_running) {
            (true, true) => {
                // No checkpoint is under way. The one asked for must not touch the good copy first.
                if let Place::Superblock { copy, .. } = place
                    && !self.options.broken.contains(&Broken::SoundCopyFirst)
                {
                    self.doubtful_copy = copy;
                }
                self.want_checkpoint();
                (ScrubSeverity::Repaired, "the next checkpoint, which was asked for, writes it")
            }
            (true, false) => (ScrubSeverity::Repaired, "it has been written again"),
            (false, _) => (
                ScrubSeverity::Harmless,
                "the other copy serves; stop the server and run `bowline pool repair`",
            ),
        };
        let block = place.at() / BLOCK_BYTES;
        let finding = ScrubFinding::new(severity, what, remedy);
        self.found(ScrubFinding { is_unreadable, block, ..finding });
        if matches!(place, Place::Superblock { copy: 0, .. }) {
            job.copies.sound = None;
        }
        if is_writing && !is_running && !self.is_scrub_blind() {
            job.copies.bad.push(place);
        }
        self.next_copy(job)
    }

    /// Writes a copy again, then flushes it.
    fn write_copy(&mut self, job: &mut Job, place: Place) -> Next {
        let result = self.scrub.written.take();
        let is_over = !self.state.is_writing() || result == Some(false);
        match job.copies.fix {
            Fix::Write if !is_over => {
                job.copies.fix = Fix::Writing;
                let mut block = vec![0; BLOCK_BYTES as usize].into_boxed_slice();
                match place {
                    Place::Header(_) => self.header.encode(&mut block),
                    Place::Superblock { .. } => {
                        let filler =
                            Superblock { epoch: Epoch(0), generation: 0, ..self.root.clone() };
                        let sound = job.copies.sound.as_deref().unwrap_or(&filler);
                        sound.encode(self.header.salt, &mut block);
                    }
                }
                return Next::Write(place.at(), block);
            }
            Fix::Writing if !is_over => {
                job.copies.fix = Fix::Flush;
                return Next::Again;
            }
            // It is refused while another flush is under way.
            Fix::Flush if !is_over && result.is_none() => return Next::Flush,
            _ => {}
        }
        job.copies.fix = Fix::Write;
        job.copies.bad.pop();
        Next::Again
    }
}
