//! What a successor needs to go on in place, beside the batches of the log: the changes of the map
//! since the last checkpoint, and what else has happened since.
//!
//! The changes of blocks are the two generations of the map themselves, which lie here. Everything
//! else goes into a ledger: where the log went on, what was recorded in it, large ranges.
//!
//! ```text
//! 0     magic u64
//! 8     epoch u64: of the log that this goes with; 0 while a successor has to read the log
//! 16    roles u64: bit 0 which generation is active, 1 whether the other is frozen,
//!       2 whether it is zeroed
//! 24    end of the ledger u64, in bytes since its beginning
//! 32    numbers of segments below this one may have been given out u64
//! 40    bytes of a generation u64
//! 64    three moments, 64 bytes each: the last freeze of generation 0, of 1, and the beginning:
//!       batch u64, its checksum u64, segment u64, slot u32, block u32, request u64, ledger u64
//! 4096  ledger, as a ring: {bytes u32, checksum u32, event, padding to 8}
//! ...   generation 0, generation 1 (tables/delta.rs)
//! ```
//!
//! Invariants:
//! - The epoch is published only while everything since the last checkpoint is here. A successor
//!   that does not find it reads the log.
//! - An event is stored before the end of the ledger says so, and after the batch that it belongs
//!   to was published: who goes on repeats what the last batches say (`recovery/in_place.rs`).
//! - What a checkpoint covers is told by the moment of its freeze, which is stored before the roles
//!   say that a generation is frozen: whether it became durable is asked of the superblock.

use std::rc::Rc;

use bowline_arena::{Memory, Span};
use twox_hash::XxHash3_64;

use crate::format::Position;
use crate::format::bytes::{Reader, Writer};
use crate::tables::{Deltas, State, Words};
use crate::{BatchNumber, Lba, LineageId, SegmentId, Seq, SlotId};

const MAGIC: u64 = u64::from_le_bytes(*b"BOWLIDX1");
const EPOCH_AT: u32 = 8;
const ROLES_AT: u32 = 16;
const END_AT: u32 = 24;
const IDS_AT: u32 = 32;
const GENERATION_AT: u32 = 40;
const MOMENTS_AT: u32 = 64;
const MOMENT_BYTES: u32 = 64;
const LEDGER_AT: u32 = 4096;
const EVENT_HEADER: usize = 8;
/// Numbers of segments are announced so many ahead, when half of them are used.
const IDS_AHEAD: u64 = 1024;

const ACTIVE: u64 = 1;
const FROZEN: u64 = 2;
const ZEROED: u64 = 4;

/// The moment of what was never frozen.
const BEGINNING: usize = 2;

/// Bytes of the area for changes of the map that take `delta_bytes`.
#[must_use]
pub fn index_bytes(delta_bytes: usize) -> u64 {
    Index::bytes(delta_bytes).next_multiple_of(4096)
}

/// The state of map and pool at which a checkpoint was, or will be, made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Moment {
    pub position: Position,
    pub seq: Seq,
    /// Events before belong to it.
    pub ledger: u64,
}

/// Where the log went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Continued {
    pub segment: SegmentId,
    pub slot: SlotId,
    pub successor: SlotId,
    /// The batch before.
    pub before: (SegmentId, BatchNumber, u64),
}

/// What happened, beside changes of single blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The log goes on in a segment.
    Continued(Continued),
    /// A record was put into the log.
    Recorded {
        /// By which request.
        seq: Seq,
        /// The record as it is in the log.
        record: Vec<u8>,
        /// What the images of a move hold, encoded, one after the other.
        directories: Vec<u8>,
    },
    /// A run of blocks became the same.
    Range { lineage: LineageId, from: Lba, blocks: u64, state: State, ordinal: u32 },
}

impl Left {
    /// A request that was admitted, and all before it.
    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }
}

/// The area, for the process that owns the pool.
pub(crate) struct Index {
    memory: Rc<Memory>,
    /// Header and ledger.
    control: Span,
    generation_bytes: u32,
    roles: u64,
    /// Where the ledger begins and ends that the last checkpoint needs.
    begin: u64,
    end: u64,
    ids: u64,
    /// Whether everything is here since the last checkpoint, and since the last freeze.
    is_whole: bool,
    is_whole_since_freeze: bool,
    /// The epoch that is published.
    epoch: u64,
}

/// What a dead process left, understood.
#[derive(Debug)]
pub(crate) struct Left {
    /// Which generation is active.
    pub active: usize,
    /// What was frozen, if the checkpoint is not the last one.
    pub frozen: Option<Moment>,
    /// What happened since the last checkpoint, and where in the ledger.
    pub happened: Vec<(u64, Happened)>,
    /// Where the ledger begins that is needed, and the last request before.
    begin: u64,
    seq: Seq,
    /// No segment has this number, or a higher one.
    pub next_segment: SegmentId,
}

impl Index {
    /// Bytes of an area whose generations take so many bytes together.
    #[must_use]
    pub(crate) fn bytes(delta_bytes: usize) -> u64 {
        let generation = Deltas::bytes_with_header(delta_bytes / 2) as u64;
        u64::from(LEDGER_AT) + ledger_bytes(delta_bytes) + 2 * generation
    }

    /// The area, and the words of both generations, in a span that holds zeros or what was there.
    ///
    /// # Panics
    /// If the span is smaller than [`Index::bytes`].
    pub(crate) fn new(
        memory: Rc<Memory>,
        mut span: Span,
        delta_bytes: usize,
    ) -> (Index, [Words; 2]) {
        assert!(u64::from(span.bytes()) >= Index::bytes(delta_bytes), "the area is too small");
        let generation_bytes = Deltas::bytes_with_header(delta_bytes / 2) as u32;
        let mut first = span.split_off(LEDGER_AT + ledger_bytes(delta_bytes) as u32);
        let mut second = first.split_off(generation_bytes);
        // What is left belongs to nobody.
        let _ = second.split_off(generation_bytes);
        let words = [first, second].map(|span| Words::Arena(Rc::clone(&memory), span));
        let epoch = memory.read(&span, EPOCH_AT);
        let index = Index {
            memory,
            control: span,
            generation_bytes,
            roles: 0,
            begin: 0,
            end: 0,
            ids: 0,
            is_whole: false,
            is_whole_since_freeze: false,
            epoch,
        };
        (index, words)
    }

    fn read(&self, at: u32) -> u64 {
        self.memory.read(&self.control, at)
    }

    fn publish(&mut self, at: u32, value: u64) {
        self.memory.publish(&mut self.control, at, value);
    }

    fn ledger_bytes(&self) -> u64 {
        u64::from(self.control.bytes() - LEDGER_AT)
    }

    /// Makes the area empty. The generations are to be cleared.
    pub(crate) fn format(&mut self) {
        self.forget();
        self.publish(END_AT, 0);
        self.publish(IDS_AT, 0);
        self.publish(GENERATION_AT, self.generation_bytes.into());
        self.set_roles(0);
        (self.begin, self.end, self.ids) = (0, 0, 0);
        self.publish(0, MAGIC);
    }

    /// A successor has to read the log from now on.
    pub(crate) fn forget(&mut self) {
        (self.is_whole, self.is_whole_since_freeze) = (false, false);
        if self.epoch != 0 {
            self.epoch = 0;
            self.publish(EPOCH_AT, 0);
        }
    }

    /// A successor can go on in place, if everything is here.
    pub(crate) fn confirm(&mut self, epoch: u64) {
        if self.is_whole && self.epoch != epoch {
            self.epoch = epoch;
            self.publish(EPOCH_AT, epoch);
        }
    }

    fn set_roles(&mut self, roles: u64) {
        self.roles = roles;
        self.publish(ROLES_AT, roles);
    }

    /// Numbers of segments below `next` have been given out.
    ///
    /// # Panics
    /// If more were given out than had been announced.
    pub(crate) fn keep_ids(&mut self, next: SegmentId) {
        assert!(self.ids == 0 || next.0 <= self.ids, "segments are announced");
        if next.0 + IDS_AHEAD / 2 > self.ids {
            self.ids = next.0 + IDS_AHEAD;
            self.publish(IDS_AT, self.ids);
        }
    }

    fn set_moment(&mut self, which: usize, moment: &Moment) {
        let at = MOMENTS_AT + which as u32 * MOMENT_BYTES;
        let Position { segment, slot, block, number, checksum } = moment.position;
        let place = u64::from(slot.0) | u64::from(block) << 32;
        let words = [number.0, checksum, segment.0, place, moment.seq.0, moment.ledger];
        for (word, value) in words.into_iter().enumerate() {
            self.publish(at + word as u32 * 8, value);
        }
    }

    fn moment(&self, which: usize) -> Moment {
        let at = MOMENTS_AT + which as u32 * MOMENT_BYTES;
        let word = |word: u32| self.read(at + word * 8);
        let position = Position {
            number: BatchNumber(word(0)),
            checksum: word(1),
            segment: SegmentId(word(2)),
            slot: SlotId(word(3) as u32),
            block: (word(3) >> 32) as u32,
        };
        Moment { position, seq: Seq(word(4)), ledger: word(5) }
    }

    /// Everything begins here: the active generation is `active`, and empty. The other is zeroed.
    pub(crate) fn begin(&mut self, active: usize, position: Position, seq: Seq) {
        self.forget();
        self.begin = self.end;
        // Moments before mean nothing any more, even if one is at the same place of the log.
        [0, 1].iter().for_each(|which| self.set_moment(*which, &Moment::default()));
        self.set_moment(BEGINNING, &Moment { position, seq, ledger: self.end });
        self.set_roles(active as u64 | ZEROED);
        (self.is_whole, self.is_whole_since_freeze) = (true, true);
    }

    /// The active generation is frozen, and the other takes its place. None of `was` and `is`: a
    /// generation that does not lie here.
    pub(crate) fn froze(
        &mut self,
        was: Option<usize>,
        is: Option<usize>,
        position: Position,
        seq: Seq,
    ) {
        let Some(active) = is else { return self.forget() };
        if !self.is_whole {
            self.begin = self.end;
        }
        let moment = Moment { position, seq, ledger: self.end };
        let Some(frozen) = was else {
            // A successor has to read the log until this checkpoint is durable.
            self.begin(active, position, seq);
            self.is_whole = false;
            return;
        };
        self.set_moment(frozen, &moment);
        self.set_roles(active as u64 | FROZEN);
        self.is_whole_since_freeze = true;
    }

    /// The checkpoint is durable: the frozen generation is needed no more, and about to be cleared.
    pub(crate) fn thaws(&mut self, which: Option<usize>) {
        let moment = which.unwrap_or(BEGINNING);
        self.begin = self.moment(moment).ledger;
        self.is_whole = self.is_whole_since_freeze;
        if which.is_some() {
            self.set_roles(self.roles & ACTIVE);
        }
    }

    /// A generation that lies here and is not the active one is zeroed.
    pub(crate) fn zeroed(&mut self) {
        self.set_roles(self.roles & ACTIVE | ZEROED);
    }

    /// Notes what happened. What does not fit is not noted, and the area is not whole then.
    pub(crate) fn note(&mut self, happened: &Happened) {
        if !self.is_whole && !self.is_whole_since_freeze {
            return;
        }
        let content = happened.encode();
        let mut bytes = Vec::with_capacity(content.len() + 2 * EVENT_HEADER);
        bytes.extend((content.len() as u32).to_le_bytes());
        bytes.extend(sum_of(&content).to_le_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let end = self.end + bytes.len() as u64;
        if end - self.begin > self.ledger_bytes() {
            return self.forget();
        }
        let at = self.end % self.ledger_bytes();
        let first = bytes.len().min((self.ledger_bytes() - at) as usize);
        let (head, rest) = bytes.split_at(first);
        self.memory.write(&mut self.control, LEDGER_AT + at as u32, head);
        if !rest.is_empty() {
            self.memory.write(&mut self.control, LEDGER_AT, rest);
        }
        self.end = end;
        self.publish(END_AT, end);
    }

    /// What is there for a log of this epoch whose last checkpoint is at `position`.
    ///
    /// # Errors
    /// Why a successor has to read the log.
    pub(crate) fn left(&self, epoch: u64, position: &Position) -> Result<Left, String> {
        if self.read(0) != MAGIC || epoch == 0 || self.read(EPOCH_AT) != epoch {
            return Err("not everything since the last checkpoint is there".into());
        }
        if self.read(GENERATION_AT) != u64::from(self.generation_bytes) {
            return Err("it was made with another setting for memory".into());
        }
        let roles = self.read(ROLES_AT);
        let (active, is_frozen) = ((roles & ACTIVE) as usize, roles & FROZEN != 0);
        let end = self.read(END_AT);
        let moments = [0, 1, BEGINNING].map(|which| (which, self.moment(which)));
        let of_root = moments.iter().filter(|(_, moment)| {
            let Position { number, checksum, .. } = moment.position;
            (number, checksum) == (position.number, position.checksum) && moment.ledger <= end
        });
        let base = of_root.max_by_key(|(_, moment)| moment.ledger);
        let (_, base) = base.ok_or("nothing goes with the last checkpoint")?;
        // One whose checkpoint became durable is the last checkpoint's.
        let frozen = Some(self.moment(1 - active)).filter(|frozen| is_frozen && frozen != base);
        let happened = self.happened(base.ledger, end)?;
        let next_segment = SegmentId(self.read(IDS_AT));
        let seq = frozen.map_or(base.seq, |frozen| frozen.seq.max(base.seq));
        Ok(Left { active, frozen, happened, begin: base.ledger, seq, next_segment })
    }

    fn happened(&self, begin: u64, end: u64) -> Result<Vec<(u64, Happened)>, String> {
        let damaged = |at: u64| format!("what happened at {at} does not verify");
        if end - begin > self.ledger_bytes() {
            return Err(damaged(begin));
        }
        let ring = self.memory.slice(&self.control).get(LEDGER_AT as usize..).unwrap_or_default();
        let byte = |at: u64| ring.get((at % ring.len() as u64) as usize).copied();
        let bytes = |from: u64, count: u64| (from..from + count).map_while(byte).collect();
        let (mut all, mut at) = (Vec::new(), begin);
        while at < end {
            let header: Vec<u8> = bytes(at, EVENT_HEADER as u64);
            let mut reader = Reader(&header);
            let (length, sum) = (reader.u32(), reader.u32());
            let (length, sum) = length.zip(sum).ok_or_else(|| damaged(at))?;
            let next = at + (EVENT_HEADER as u64 + u64::from(length)).next_multiple_of(8);
            if next > end {
                return Err(damaged(at));
            }
            let content: Vec<u8> = bytes(at + EVENT_HEADER as u64, length.into());
            let happened = Happened::decode(&content).filter(|_| sum_of(&content) == sum);
            all.push((at, happened.ok_or_else(|| damaged(at))?));
            at = next;
        }
        Ok(all)
    }

    /// Goes on with what was left, up to `end` of the ledger.
    pub(crate) fn adopt(&mut self, left: &Left, end: Option<u64>) {
        (self.begin, self.ids) = (left.begin, left.next_segment.0);
        self.end = end.unwrap_or_else(|| self.read(END_AT));
        self.publish(END_AT, self.end);
        self.roles = self.read(ROLES_AT);
        if self.roles & FROZEN != 0 && left.frozen.is_none() {
            self.set_roles(self.roles & ACTIVE);
        }
        (self.is_whole, self.is_whole_since_freeze) = (true, true);
    }

    /// Whether the generation that is not active has to be zeroed.
    pub(crate) fn is_other_soiled(&self) -> bool {
        self.roles & (FROZEN | ZEROED) == 0
    }
}

fn ledger_bytes(delta_bytes: usize) -> u64 {
    (delta_bytes as u64 / 8).clamp(64 << 10, 4 << 20).next_multiple_of(4096)
}

fn sum_of(bytes: &[u8]) -> u32 {
    XxHash3_64::oneshot(bytes) as u32
}

impl Happened {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Happened::Continued(one) => {
                out.u8(1);
                out.u64(one.segment.0);
                out.u32(one.slot.0);
                out.u32(one.successor.0);
                let (segment, number, checksum) = one.before;
                out.u64(segment.0);
                out.u64(number.0);
                out.u64(checksum);
            }
            Happened::Recorded { seq, record, directories } => {
                out.u8(2);
                out.u64(seq.0);
                out.bytes(record);
                out.bytes(directories);
            }
            Happened::Range { lineage, from, blocks, state, ordinal } => {
                out.u8(3);
                out.u32(lineage.0);
                out.u64(from.0);
                out.u64(*blocks);
                out.u8(match state {
                    State::Zero => 1,
                    State::Hole => 2,
                    other => panic!("a range of {other:?}"),
                });
                out.u32(*ordinal);
            }
        }
        out.0
    }

    fn decode(bytes: &[u8]) -> Option<Happened> {
        let mut from = Reader(bytes);
        Some(match from.u8()? {
            1 => Happened::Continued(Continued {
                segment: SegmentId(from.u64()?),
                slot: SlotId(from.u32()?),
                successor: SlotId(from.u32()?),
                before: (SegmentId(from.u64()?), BatchNumber(from.u64()?), from.u64()?),
            }),
            2 => Happened::Recorded {
                seq: Seq(from.u64()?),
                record: from.bytes()?.to_vec(),
                directories: from.bytes()?.to_vec(),
            },
            3 => Happened::Range {
                lineage: LineageId(from.u32()?),
                from: Lba(from.u64()?),
                blocks: from.u64()?,
                state: match from.u8()? {
                    1 => State::Zero,
                    2 => State::Hole,
                    _ => return None,
                },
                ordinal: from.u32()?,
            },
            _ => return None,
        })
    }
}
