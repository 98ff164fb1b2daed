//! A store that is a map of blocks. Reads, flushes and the spans of owned payloads come back some
//! polls later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bowline_arena::{Cut, SharedPages, Span};
use bowline_disk::Volume;
use bowline_store::{
    BLOCK_BYTES, BlockState, Change, Disk, DiskId, Durability, Event, Extent, Lba, LineageId,
    LossLimits, MediumError, Micros, Payload, Provision, ReadError, Refused, Seq, StoreError,
    Ticket,
};

enum Block {
    Zero,
    Data(Vec<u8>),
}

pub struct MapVolume {
    pages: SharedPages,
    pub disks: BTreeMap<DiskId, Disk>,
    blocks: BTreeMap<(DiskId, u64), Block>,
    events: VecDeque<Event>,
    /// What comes back, and at which poll.
    coming: VecDeque<(u64, Event)>,
    logged: VecDeque<(u64, Span)>,
    polls: u64,
    seq: u64,
    durable: u64,
    flushing: VecDeque<(u64, u64, Ticket)>,
    /// Polls until something comes back.
    pub delay_polls: u64,
    /// Every so many changes, one is refused as busy; 0 for never.
    pub busy_every: u64,
    changes: u64,
    owes_room: bool,
    /// Blocks that cannot be read.
    pub bad: BTreeSet<u64>,
    pub is_full: bool,
    /// A write of this block ends the process, each time.
    pub deadly: Option<u64>,
}

impl MapVolume {
    pub fn new(pages: SharedPages) -> MapVolume {
        MapVolume {
            pages,
            disks: BTreeMap::new(),
            blocks: BTreeMap::new(),
            events: VecDeque::new(),
            coming: VecDeque::new(),
            logged: VecDeque::new(),
            polls: 0,
            seq: 0,
            durable: 0,
            flushing: VecDeque::new(),
            delay_polls: 1,
            busy_every: 0,
            changes: 0,
            owes_room: false,
            bad: BTreeSet::new(),
            is_full: false,
            deadly: None,
        }
    }

    /// What is left when the process that used it has died: all that was admitted.
    pub fn survive(self, pages: SharedPages) -> MapVolume {
        let MapVolume { disks, blocks, seq, durable, delay_polls, busy_every, bad, deadly, .. } =
            self;
        MapVolume {
            disks,
            blocks,
            seq,
            durable,
            delay_polls,
            busy_every,
            bad,
            deadly,
            ..MapVolume::new(pages)
        }
    }

    pub fn add_disk(&mut self, id: DiskId, name: &str, bytes: u64) {
        let disk = Disk {
            id,
            name: name.to_string(),
            bytes,
            lineage: LineageId(id.0),
            durability: Durability::Strict,
            provision: Provision::Thin,
            loss_limits: LossLimits::default(),
            read_only: false,
        };
        self.disks.insert(id, disk);
    }

    /// The bytes of whole blocks.
    pub fn content(&self, disk: DiskId, offset: u64, bytes: u64) -> Vec<u8> {
        let first = offset / BLOCK_BYTES;
        let blocks = (first..first + bytes / BLOCK_BYTES).map(|at| self.blocks.get(&(disk, at)));
        let mut content = Vec::with_capacity(bytes as usize);
        for block in blocks {
            match block {
                Some(Block::Data(bytes)) => content.extend_from_slice(bytes),
                _ => content.resize(content.len() + BLOCK_BYTES as usize, 0),
            }
        }
        content
    }

    fn admit(&mut self) -> Result<(), Refused> {
        self.changes += 1;
        if self.is_full {
            return Err(Refused::NoSpace);
        }
        if self.owes_room || self.changes.is_multiple_of(self.busy_every) {
            self.owes_room = true;
            return Err(Refused::Busy);
        }
        self.seq += 1;
        Ok(())
    }

    fn put(&mut self, disk: DiskId, lba: Lba, payload: &mut Payload<'_>) {
        let memory = self.pages.borrow().memory().clone();
        let bytes = match payload {
            Payload::Copied(slices) => slices.concat(),
            Payload::Owned(spans) => {
                let bytes = spans.iter().flat_map(|span| memory.slice(span).to_vec()).collect();
                let until = self.polls + self.delay_polls;
                self.logged.extend(std::mem::take(spans).into_iter().map(|span| (until, span)));
                bytes
            }
        };
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES as usize), "whole blocks");
        for (index, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            self.blocks.insert((disk, lba.0 + index as u64), Block::Data(block.to_vec()));
        }
    }

    fn put_zeros(&mut self, disk: DiskId, lba: Lba, blocks: u64) {
        (lba.0..lba.0 + blocks).for_each(|lba| drop(self.blocks.insert((disk, lba), Block::Zero)));
    }

    fn put_holes(&mut self, disk: DiskId, lba: Lba, blocks: u64) {
        self.blocks.retain(|(of, at), _| *of != disk || *at < lba.0 || *at >= lba.0 + blocks);
    }
}

impl Volume for MapVolume {
    fn write(&mut self, disk: DiskId, lba: Lba, payload: &mut Payload<'_>) -> Result<Seq, Refused> {
        if self.deadly == Some(lba.0) {
            std::panic::resume_unwind(Box::new(Cut));
        }
        self.admit()?;
        self.put(disk, lba, payload);
        Ok(Seq(self.seq))
    }

    fn change(&mut self, disk: DiskId, changes: &mut [Change]) -> Result<Seq, Refused> {
        self.admit()?;
        for change in changes {
            match change {
                Change::Write { lba, spans } => {
                    self.put(disk, *lba, &mut Payload::Owned(std::mem::take(spans)));
                }
                Change::Zero { lba, blocks } => self.put_zeros(disk, *lba, *blocks),
                Change::Discard { lba, blocks } => self.put_holes(disk, *lba, *blocks),
            }
        }
        Ok(Seq(self.seq))
    }

    fn zero(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.admit()?;
        self.put_zeros(disk, lba, blocks);
        Ok(Seq(self.seq))
    }

    fn discard(&mut self, disk: DiskId, lba: Lba, blocks: u64) -> Result<Seq, Refused> {
        self.admit()?;
        self.put_holes(disk, lba, blocks);
        Ok(Seq(self.seq))
    }

    fn read(&mut self, ticket: Ticket, disk: DiskId, lba: Lba, mut into: Span) {
        let memory = self.pages.borrow().memory().clone();
        let mut result = Ok(());
        for (at, to) in (lba.0..).zip(memory.slice_mut(&mut into).chunks_mut(BLOCK_BYTES as usize))
        {
            match self.blocks.get(&(disk, at)) {
                _ if self.bad.contains(&at) => {
                    let cause =
                        MediumError::System { call: format!("read of block {at}"), code: 5 };
                    result = Err(ReadError::Medium { disk, lba: Lba(at), cause });
                    to.fill(0xee);
                }
                Some(Block::Data(bytes)) => to.copy_from_slice(bytes),
                Some(Block::Zero) | None => to.fill(0),
            }
        }
        let until = self.polls + self.delay_polls;
        self.coming.push_back((until, Event::Read { ticket, span: into, result }));
    }

    fn block_status(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        lba: Lba,
        blocks: u64,
        extents_max: usize,
    ) {
        let mut extents: Vec<Extent> = Vec::new();
        for at in lba.0..lba.0 + blocks {
            let state = match self.blocks.get(&(disk, at)) {
                Some(Block::Data(_)) => BlockState::Data,
                Some(Block::Zero) => BlockState::Zero,
                None => BlockState::Hole,
            };
            match extents.last_mut() {
                Some(last) if last.state == state => last.blocks += 1,
                _ => extents.push(Extent { blocks: 1, state }),
            }
        }
        extents.truncate(extents_max);
        let until = self.polls + self.delay_polls;
        self.coming.push_back((until, Event::Status { ticket, result: Ok(extents) }));
    }

    fn flush(&mut self, ticket: Ticket) {
        self.flushing.push_back((self.polls + self.delay_polls, self.seq, ticket));
    }

    fn durable_through(&self) -> Seq {
        Seq(self.durable)
    }

    fn admitted_through(&self) -> Seq {
        Seq(self.seq)
    }

    fn poll(&mut self, _now: Micros) -> bool {
        self.polls += 1;
        let before = self.events.len();
        while let Some((_, event)) = self.coming.pop_front_if(|(until, _)| *until <= self.polls) {
            self.events.push_back(event);
        }
        while let Some((_, span)) = self.logged.pop_front_if(|(until, _)| *until <= self.polls) {
            self.pages.borrow_mut().give(span);
        }
        while let Some((_, seq, ticket)) =
            self.flushing.pop_front_if(|(until, ..)| *until <= self.polls)
        {
            self.durable = self.durable.max(seq);
            self.events.push_back(Event::Flushed { ticket, result: Ok(()) });
        }
        if std::mem::take(&mut self.owes_room) {
            self.events.push_back(Event::Room);
        }
        self.events.len() > before
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn disk(&self, disk: DiskId) -> Option<&Disk> {
        self.disks.get(&disk)
    }

    fn set_loss_clock(&mut self, _: Option<Micros>) {}

    fn loss_clock(&self) -> Option<Micros> {
        None
    }

    fn set_durability(&mut self, disk: DiskId, durability: Durability) -> Result<(), StoreError> {
        match self.disks.get_mut(&disk) {
            Some(found) => found.durability = durability,
            None => return Err(StoreError::Invalid("no such disk".to_string())),
        }
        Ok(())
    }
}
