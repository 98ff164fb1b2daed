//! A store that is a vector of bytes and a list of changes.

use std::collections::{BTreeMap, VecDeque};

use bowline_arena::{SharedPages, Span};
use bowline_store::{
    BLOCK_BYTES, BlockState, Change, Disk, DiskId, Durability, Event, Extent, Lba, LineageId,
    LossLimits, MediumError, Micros, Payload, Provision, ReadError, Refused, Seq, StoreError,
    Ticket,
};

use super::Random;
use crate::Volume;

/// One admitted change: bytes at one place, or at several.
struct Record {
    disk: DiskId,
    pieces: Vec<(usize, Vec<u8>)>,
}

struct Read {
    ticket: Ticket,
    disk: DiskId,
    lba: Lba,
    span: Span,
    /// The bytes when the read was asked for.
    early: Vec<u8>,
}

pub struct ModelVolume {
    pages: SharedPages,
    disks: BTreeMap<DiskId, Disk>,
    contents: BTreeMap<DiskId, Vec<u8>>,
    states: BTreeMap<DiskId, Vec<BlockState>>,
    log: Vec<Record>,
    durable: u64,
    reads: Vec<Read>,
    flushes: VecDeque<(Ticket, u64)>,
    events: VecDeque<Event>,
    random: Random,
    owes_room: bool,
    /// How many of a hundred changes are refused as busy, or for want of space.
    pub busy_percent: u64,
    pub no_space_percent: u64,
    /// How many of a hundred polls bring each thing under way to its end.
    pub progress_percent: u64,
    pub reads_are_held: bool,
    pub flushes_are_held: bool,
    pub is_stopped: bool,
    pub reads_fail: bool,
    /// Flushes the medium was asked for.
    pub flushes_done: u64,
    pub loss_clock: Option<Micros>,
}

impl ModelVolume {
    pub fn new(pages: SharedPages, seed: u64) -> ModelVolume {
        ModelVolume {
            pages,
            disks: BTreeMap::new(),
            contents: BTreeMap::new(),
            states: BTreeMap::new(),
            log: Vec::new(),
            durable: 0,
            reads: Vec::new(),
            flushes: VecDeque::new(),
            events: VecDeque::new(),
            random: Random(seed),
            owes_room: false,
            busy_percent: 0,
            no_space_percent: 0,
            progress_percent: 100,
            reads_are_held: false,
            flushes_are_held: false,
            is_stopped: false,
            reads_fail: false,
            flushes_done: 0,
            loss_clock: None,
        }
    }

    pub fn add_disk(&mut self, id: DiskId, bytes: u64, durability: Durability) {
        let disk = Disk {
            id,
            name: format!("disk{id}"),
            bytes,
            lineage: LineageId(id.0),
            durability,
            provision: Provision::Thin,
            read_only: false,
            loss_limits: LossLimits::default(),
        };
        let blocks = bytes.div_ceil(BLOCK_BYTES) as usize;
        self.disks.insert(id, disk);
        self.contents.insert(id, vec![0; blocks * BLOCK_BYTES as usize]);
        self.states.insert(id, vec![BlockState::Hole; blocks]);
    }

    pub fn disk_mut(&mut self, id: DiskId) -> &mut Disk {
        self.disks.get_mut(&id).unwrap()
    }

    pub fn remove_disk(&mut self, id: DiskId) {
        self.disks.remove(&id);
    }

    /// Room is told of with the next poll.
    pub fn clear_busy(&mut self) {
        self.owes_room = false;
        self.events.push_back(Event::Room);
    }

    pub fn contents(&self, disk: DiskId) -> &[u8] {
        &self.contents[&disk]
    }

    /// What a disk holds after a loss of power that left the first `count` changes.
    pub fn after_cut(&self, disk: DiskId, count: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.contents[&disk].len()];
        for record in self.log.iter().take(count as usize).filter(|record| record.disk == disk) {
            for (at, piece) in &record.pieces {
                bytes[*at..*at + piece.len()].copy_from_slice(piece);
            }
        }
        bytes
    }

    fn admit(&mut self, disk: DiskId, changes: Vec<(Lba, Vec<u8>, BlockState)>) -> Seq {
        let mut pieces = Vec::new();
        for (lba, bytes, state) in changes {
            let at = (lba.0 * BLOCK_BYTES) as usize;
            let content = self.contents.get_mut(&disk).unwrap();
            content[at..at + bytes.len()].copy_from_slice(&bytes);
            let blocks = lba.0 as usize..lba.0 as usize + bytes.len() / BLOCK_BYTES as usize;
            self.states.get_mut(&disk).unwrap()[blocks].fill(state);
            pieces.push((at, bytes));
        }
        self.log.push(Record { disk, pieces });
        Seq(self.log.len() as u64)
    }

    fn taken(&self, spans: &mut Vec<Span>) -> Vec<u8> {
        let mut pages = self.pages.borrow_mut();
        let memory = pages.memory().clone();
        let bytes = spans.iter().flat_map(|span| memory.slice(span).to_vec()).collect();
        spans.drain(..).for_each(|span| pages.give(span));
        bytes
    }

    fn refusal(&mut self) -> Result<(), Refused> {
        if self.is_stopped {
            return Err(Refused::Stopped("a flush failed".into()));
        }
        if self.owes_room || self.random.chance(self.busy_percent) {
            self.owes_room = true;
            return Err(Refused::Busy);
        }
        if self.random.chance(self.no_space_percent) {
            return Err(Refused::NoSpace);
        }
        Ok(())
    }

    /// Some blocks of a read are looked up when it is asked for, some when it ends.
    fn finish_read(&mut self, mut read: Read) {
        let at = (read.lba.0 * BLOCK_BYTES) as usize;
        let late = &self.contents[&read.disk][at..at + read.early.len()];
        let memory = self.pages.borrow().memory().clone();
        let block = BLOCK_BYTES as usize;
        for (index, into) in memory.slice_mut(&mut read.span).chunks_mut(block).enumerate() {
            let from = if self.random.chance(50) { &read.early[..] } else { late };
            into.copy_from_slice(&from[index * block..(index + 1) * block]);
        }
        let cause = MediumError::System { call: "read".into(), code: 5 };
        let error = ReadError::Medium { disk: read.disk, lba: read.lba, cause };
        let result = if self.reads_fail { Err(error) } else { Ok(()) };
        self.events.push_back(Event::Read { ticket: read.ticket, span: read.span, result });
    }
}

impl Volume for ModelVolume {
    fn write(&mut self, disk: DiskId, lba: Lba, payload: &mut Payload<'_>) -> Result<Seq, Refused> {
        self.refusal()?;
        let bytes = match payload {
            Payload::Copied(slices) => slices.concat(),
            Payload::Owned(spans) => self.taken(spans),
        };
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES as usize));
        Ok(self.admit(disk, vec![(lba, bytes, BlockState::Data)]))
    }

    fn change(&mut self, disk: DiskId, changes: &mut [Change]) -> Result<Seq, Refused> {
        self.refusal()?;
        let zeros = |blocks: u64| vec![0; (blocks * BLOCK_BYTES) as usize];
        let mut all = Vec::new();
        for change in changes {
            all.push(match change {
                Change::Write { lba, spans } => (*lba, self.taken(spans), BlockState::Data),
                Change::Zero { lba, blocks } => (*lba, zeros(*blocks), BlockState::Zero),
                Change::Discard { lba, blocks } => (*lba, zeros(*blocks), BlockState::Hole),
            });
        }
        Ok(self.admit(disk, all))
    }

    fn zero(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.refusal()?;
        let bytes = vec![0; (blocks * BLOCK_BYTES) as usize];
        Ok(self.admit(disk, vec![(lba, bytes, BlockState::Zero)]))
    }

    fn discard(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.refusal()?;
        let bytes = vec![0; (blocks * BLOCK_BYTES) as usize];
        Ok(self.admit(disk, vec![(lba, bytes, BlockState::Hole)]))
    }

    fn read(&mut self, ticket: Ticket, disk: DiskId, lba: Lba, into: Span) {
        let at = (lba.0 * BLOCK_BYTES) as usize;
        let early = self.contents[&disk][at..at + into.bytes() as usize].to_vec();
        self.reads.push(Read { ticket, disk, lba, span: into, early });
    }

    fn block_status(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
        extents_max: usize,
    ) {
        let states = &self.states[&disk][lba.0 as usize..(lba.0 + blocks) as usize];
        let runs = states.chunk_by(|one, two| one == two).take(extents_max);
        let extents = runs.map(|run| Extent { blocks: run.len() as u64, state: run[0] }).collect();
        self.events.push_back(Event::Status { ticket, result: Ok(extents) });
    }

    fn flush(&mut self, ticket: Ticket) {
        self.flushes.push_back((ticket, self.log.len() as u64));
    }

    fn durable_through(&self) -> Seq {
        Seq(self.durable)
    }

    fn admitted_through(&self) -> Seq {
        Seq(self.log.len() as u64)
    }

    fn poll(&mut self, _now: Micros) -> bool {
        let events = self.events.len();
        let mut at = 0;
        while at < self.reads.len() {
            if !self.reads_are_held && self.random.chance(self.progress_percent) {
                let read = self.reads.swap_remove(at);
                self.finish_read(read);
            } else {
                at += 1;
            }
        }
        while !self.flushes_are_held && self.random.chance(self.progress_percent) {
            let Some((ticket, through)) = self.flushes.pop_front() else { break };
            let stopped = Refused::Stopped("a flush failed".into());
            let result = if self.is_stopped { Err(stopped) } else { Ok(()) };
            if result.is_ok() {
                self.flushes_done += u64::from(through > self.durable);
                self.durable = self.durable.max(through);
            }
            self.events.push_back(Event::Flushed { ticket, result });
        }
        if self.owes_room && self.random.chance(self.progress_percent) {
            self.owes_room = false;
            self.events.push_back(Event::Room);
        }
        self.events.len() > events
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn disk(&self, disk: DiskId) -> Option<&Disk> {
        self.disks.get(&disk)
    }

    fn set_loss_clock(&mut self, since: Option<Micros>) {
        self.loss_clock = since;
    }

    fn loss_clock(&self) -> Option<Micros> {
        self.loss_clock
    }

    fn set_durability(&mut self, disk: DiskId, durability: Durability) -> Result<(), StoreError> {
        let found = self.disks.get_mut(&disk);
        let found = found.ok_or_else(|| StoreError::Invalid("no such disk".into()))?;
        found.durability = durability;
        // A record of the log that changes no bytes.
        self.log.push(Record { disk, pieces: Vec::new() });
        Ok(())
    }
}
