//! Reads: from the arena where the log still has the bytes, else from the medium, always verified.
//!
//! A read asks the map for all its blocks at one moment; if a page of the map is missing, it waits
//! for the page and asks again from the start. So it sees one state of the map, and the bytes of
//! each block are those the map named then: an address names the same bytes for ever, and a slot
//! being read is not used again before the read is done.

use std::collections::VecDeque;

use bowline_arena::Span;

use crate::format::block_checksum;
use crate::io::Purpose;
use crate::map::{Loaded, Lookup};
use crate::store::Store;
use crate::tables::{Entry, State};
use crate::{
    BLOCK_BYTES, BlockState, DiskId, Event, Extent, Io, Lba, LineageId, Media, MediumError,
    ReadError, SlotId, Ticket,
};

/// Most steps for one question about block states, each a leaf of the map or, where changes are
/// pending, a block: some tenths of a millisecond. The answer may be for less than was asked.
const STATUS_STEPS_MAX: usize = 2048;
/// How often a block whose checksum is wrong is read again before it is given up.
const RETRIES_MAX: u8 = 1;

/// A run of blocks being read.
#[derive(Debug, Clone, Copy)]
struct Run {
    slot: SlotId,
    block: u32,
    first: u32,
    blocks: u32,
}

/// What was asked.
enum Kind {
    Data { span: Span },
    Status(Question),
}

/// A question about block states, and what is known of the answer. What has been found stays when a
/// page has to be waited for: maps may be larger than memory.
#[derive(Debug, Default)]
struct Question {
    blocks: u64,
    extents_max: usize,
    extents: Vec<Extent>,
    done: u64,
    steps: usize,
}

impl Question {
    /// Adds a run; false if there is no room for it in the answer.
    fn add(&mut self, blocks: u64, state: BlockState) -> bool {
        let count = self.extents.len();
        match self.extents.last_mut() {
            Some(last) if last.state == state => last.blocks += blocks,
            _ if count == self.extents_max => return false,
            _ => self.extents.push(Extent { blocks, state }),
        }
        self.done += blocks;
        true
    }
}

/// A read under way.
struct Read {
    ticket: Ticket,
    disk: DiskId,
    lineage: LineageId,
    lba: Lba,
    kind: Kind,
    /// What the map said of each block; blocks already in place are holes here.
    entries: Vec<Entry>,
    runs: Vec<Run>,
    in_flight: u32,
    retries: u8,
    /// A damaged page of the map was looked for once more.
    has_looked_again: bool,
    failed: Option<MediumError>,
}

/// All reads under way.
#[derive(Default)]
pub(crate) struct Reads {
    slots: Vec<Option<Read>>,
    free: Vec<usize>,
    /// Reads that wait for a page of the map.
    waiting: VecDeque<usize>,
}

impl Reads {
    fn add(&mut self, read: Read) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[at] = Some(read);
        at
    }

    fn take(&mut self, at: usize) -> Option<Read> {
        let read = self.slots.get_mut(at).and_then(Option::take)?;
        self.free.push(at);
        Some(read)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl<M: Media> Store<M> {
    /// Reads whole blocks into a span; [`Event::Read`] gives it back. Blocks nobody wrote are
    /// zeros.
    ///
    /// # Panics
    /// If the disk does not exist or the span is not a whole number of blocks.
    pub fn read(&mut self, ticket: Ticket, disk: DiskId, lba: Lba, into: Span) {
        assert!(u64::from(into.bytes()).is_multiple_of(BLOCK_BYTES) && into.bytes() > 0);
        self.counters.reads += 1;
        self.begin(ticket, disk, lba, Kind::Data { span: into });
    }

    /// Asks for the states of a range; [`Event::Status`] answers, perhaps for less than was asked.
    ///
    /// # Panics
    /// If the disk does not exist or nothing is asked.
    pub fn block_status(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
        extents_max: usize,
    ) {
        assert!(blocks > 0 && extents_max > 0);
        let question = Question { blocks, extents_max, ..Question::default() };
        self.begin(ticket, disk, lba, Kind::Status(question));
    }

    fn begin(&mut self, ticket: Ticket, disk: DiskId, lba: Lba, kind: Kind) {
        let lineage = self.lineage_of(disk);
        let at = self.reads.add(Read {
            ticket,
            disk,
            lineage,
            lba,
            kind,
            entries: Vec::new(),
            runs: Vec::new(),
            in_flight: 0,
            retries: 0,
            has_looked_again: false,
            failed: None,
        });
        self.advance(at);
    }

    /// Goes on with a read as far as it can.
    fn advance(&mut self, at: usize) {
        let Some(read) = self.reads.slots[at].as_mut() else { return };
        let (lineage, lba) = (read.lineage, read.lba);
        match &mut read.kind {
            Kind::Data { span } => {
                let blocks = u64::from(span.bytes()) / BLOCK_BYTES;
                self.advance_data(at, lineage, lba, blocks);
            }
            Kind::Status(question) => {
                let question = std::mem::take(question);
                self.advance_status(at, lineage, lba, question);
            }
        }
    }

    fn advance_data(&mut self, at: usize, lineage: LineageId, lba: Lba, blocks: u64) {
        let mut entries = self.reads.slots[at]
            .as_mut()
            .map(|read| std::mem::take(&mut read.entries))
            .unwrap_or_default();
        entries.clear();
        let mut known = 0;
        while known < blocks {
            let here = Lba(lba.0 + known);
            match self.map.leaf_run(lineage, here, blocks - known, &mut entries) {
                Ok(run) => known += run,
                Err(Lookup::Needs(page)) => return self.wait_for_page(at, page),
                Err(Lookup::Damaged(_)) if self.looks_again(at) => {}
                Err(Lookup::Damaged(segment)) => {
                    return self.fail(at, |disk| ReadError::Map { disk, lba: here, segment });
                }
                Err(Lookup::Found(_)) => unreachable!("what is found is no error"),
            }
        }
        if let Some(lost) = entries.iter().position(|entry| *entry == Entry::LOST) {
            let lba = Lba(lba.0 + lost as u64);
            return self.fail(at, |disk| ReadError::Lost { disk, lba });
        }
        self.start_runs(at, entries);
    }

    /// Whether a page that is known to be bad is worth another look: the medium may have recovered
    /// since it failed somebody else. Each read looks once.
    fn looks_again(&mut self, at: usize) -> bool {
        let Some(read) = self.reads.slots[at].as_mut() else { return false };
        let looks = !std::mem::replace(&mut read.has_looked_again, true);
        if looks {
            self.map.forget_bad();
        }
        looks
    }

    fn wait_for_page(&mut self, at: usize, page: Entry) {
        if self.load_page(page) {
            self.reads.waiting.push_back(at);
        } else {
            // Nothing will come that could wake it: it is told now.
            self.advance(at);
        }
    }

    /// Starts to read a page of the map, unless it is on its way. False if it lies nowhere, which
    /// the map knows from now on.
    pub(crate) fn load_page(&mut self, page: Entry) -> bool {
        let Some((slot, block)) = self.segments.locate(page) else {
            self.map.note_lost(page);
            return false;
        };
        if let Some((number, into)) = self.map.start_load(page, (slot, block)) {
            self.segments.reader(slot, 1);
            let at = self.header.block_at(slot, block);
            self.in_flight.submit(&mut self.media, Purpose::Page(number), Io::Read { at, into });
        }
        true
    }

    /// A page of the map has been read; whoever waits for it goes on.
    pub(crate) fn page_done(&mut self, number: usize, result: Result<(), MediumError>) {
        match self.map.finish_load(&self.memory, number, result) {
            Some(Loaded::Again { slot, block, into }) => {
                let io = Io::Read { at: self.header.block_at(slot, block), into };
                self.in_flight.submit(&mut self.media, Purpose::Page(number), io);
            }
            Some(Loaded::Done(slot)) => {
                self.segments.reader(slot, -1);
                self.retry_reads();
            }
            None => {}
        }
    }

    /// Fills what is in memory, and starts to read the rest.
    fn start_runs(&mut self, at: usize, mut entries: Vec<Entry>) {
        let Some(mut read) = self.reads.slots[at].take() else { return };
        let Kind::Data { span } = &mut read.kind else { return };
        let memory = self.memory.clone();
        read.runs.clear();
        for (index, entry) in entries.iter_mut().enumerate() {
            let to = index * BLOCK_BYTES as usize;
            let to = to..to + BLOCK_BYTES as usize;
            if entry.state() != Some(State::Data) {
                memory.slice_mut(span)[to].fill(0);
                *entry = Entry::HOLE;
            } else if let Some(bytes) = self.log.in_memory(entry.segment(), entry.index()) {
                memory.slice_mut(span)[to].copy_from_slice(bytes);
                *entry = Entry::HOLE;
                self.counters.reads_from_arena += 1;
            } else if let Some((slot, block)) = self.segments.locate(*entry) {
                extend(&mut read.runs, slot, block, index as u32);
            } else {
                read.failed = Some(MediumError::System {
                    call: format!("look-up of segment {}", entry.segment()),
                    code: libc_enoent(),
                });
            }
        }
        read.entries = entries;
        let part = span.part();
        read.in_flight = read.runs.len() as u32;
        for run in &read.runs {
            self.segments.reader(run.slot, 1);
            let into = part.sub(run.first * BLOCK_BYTES as u32, run.blocks * BLOCK_BYTES as u32);
            let at_bytes = self.header.block_at(run.slot, run.block);
            let io = Io::Read { at: at_bytes, into };
            self.in_flight.submit(&mut self.media, Purpose::Read(at), io);
        }
        let is_done = read.in_flight == 0;
        self.reads.slots[at] = Some(read);
        if is_done {
            self.finish_read(at);
        }
    }

    /// One run of a read has come back.
    pub(crate) fn read_done(&mut self, at: usize, result: Result<(), MediumError>) {
        let Some(read) = self.reads.slots.get_mut(at).and_then(Option::as_mut) else { return };
        read.in_flight -= 1;
        if let Err(error) = result {
            read.failed = Some(error);
        }
        if read.in_flight == 0 {
            for run in &read.runs {
                self.segments.reader(run.slot, -1);
            }
            self.finish_read(at);
        }
    }

    fn finish_read(&mut self, at: usize) {
        let Some(read) = self.reads.slots[at].as_mut() else { return };
        let Kind::Data { span } = &read.kind else { return };
        let salt = self.header.salt;
        let wrong = if read.failed.is_some() {
            None
        } else {
            let bytes = self.memory.slice(span).chunks_exact(BLOCK_BYTES as usize);
            let is_wrong = |(entry, bytes): (&Entry, &[u8])| {
                entry.has_address() && block_checksum(salt, bytes) != entry.checksum
            };
            read.entries.iter().zip(bytes).position(is_wrong)
        };
        if (wrong.is_some() || read.failed.is_some()) && read.retries < RETRIES_MAX {
            read.retries += 1;
            read.failed = None;
            return self.advance(at);
        }
        let (disk, first) = (read.disk, read.lba);
        let error = match (wrong, read.failed.take()) {
            (Some(index), _) => {
                self.counters.checksum_errors += 1;
                let segment = read.entries[index].segment();
                Some(ReadError::Checksum { disk, lba: Lba(first.0 + index as u64), segment })
            }
            (None, Some(cause)) => {
                self.counters.read_errors += 1;
                Some(ReadError::Medium { disk, lba: first, cause })
            }
            (None, None) => None,
        };
        self.answer(at, error.map_or(Ok(()), Err));
    }

    fn fail(&mut self, at: usize, error: impl FnOnce(DiskId) -> ReadError) {
        let Some(read) = self.reads.slots[at].as_ref() else { return };
        let error = error(read.disk);
        self.counters.read_errors += 1;
        self.map.forget_bad();
        self.answer(at, Err(error));
    }

    fn answer(&mut self, at: usize, result: Result<(), ReadError>) {
        let Some(read) = self.reads.take(at) else { return };
        let ticket = read.ticket;
        self.events.push_back(match read.kind {
            Kind::Data { span } => Event::Read { ticket, span, result },
            Kind::Status(_) => Event::Status { ticket, result: result.map(|()| Vec::new()) },
        });
    }

    fn advance_status(&mut self, at: usize, lineage: LineageId, lba: Lba, mut question: Question) {
        while question.done < question.blocks && question.steps < STATUS_STEPS_MAX {
            let here = Lba(lba.0 + question.done);
            let (found, run) = self.map.run(lineage, here, question.blocks - question.done);
            let entry = match found {
                Lookup::Found(entry) => entry,
                Lookup::Needs(page) => {
                    if let Some(read) = self.reads.slots[at].as_mut() {
                        read.kind = Kind::Status(question);
                    }
                    return self.wait_for_page(at, page);
                }
                Lookup::Damaged(_) if self.looks_again(at) => continue,
                Lookup::Damaged(segment) => {
                    return self.fail(at, |disk| ReadError::Map { disk, lba: here, segment });
                }
            };
            let state = match entry.state() {
                // What is lost is not zeros: whoever copies data has to meet the error.
                Some(State::Data | State::Lost) => BlockState::Data,
                Some(State::Zero | State::Reserved) => BlockState::Zero,
                _ => BlockState::Hole,
            };
            question.steps += 1;
            if !question.add(run, state) {
                break;
            }
        }
        if let Some(read) = self.reads.take(at) {
            let (ticket, result) = (read.ticket, Ok(question.extents));
            self.events.push_back(Event::Status { ticket, result });
        }
    }

    /// Tries the reads that wait for pages again. Returns whether there were any.
    pub(crate) fn retry_reads(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.reads.waiting);
        let any = !waiting.is_empty();
        for at in waiting {
            self.advance(at);
        }
        any
    }
}

/// Adds a block to the last run if it follows it on the medium, else begins a new one.
fn extend(runs: &mut Vec<Run>, slot: SlotId, block: u32, index: u32) {
    if let Some(last) = runs.last_mut()
        && last.slot == slot
        && last.block + last.blocks == block
        && last.first + last.blocks == index
    {
        last.blocks += 1;
        return;
    }
    runs.push(Run { slot, block, first: index, blocks: 1 });
}

/// "No such file or directory": what a look-up that finds nothing says.
fn libc_enoent() -> i32 {
    2
}
