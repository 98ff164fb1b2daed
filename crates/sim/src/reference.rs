//! A store as simple as one can be that keeps every promise: one chained log, all of it replayed at
//! each start, and switchable bugs. It shows that the oracle passes what is right and finds what is
//! wrong, before and beside the real store.

use std::collections::{BTreeMap, VecDeque};

use bowline_arena::{Pages, Part, Span};
use bowline_store::{Io, IoId, Media, Refused, Ticket};
use twox_hash::XxHash3_64;

use self::record::{DISK, GONE, HOLE, Header, MAGIC, NOTHING, WRITE, ZERO};
use crate::media::SimMedia;
use crate::model::Value;
use crate::platter::PAGE;
use crate::subject::{Health, Host, OpenError, Run, Setup, Subject, Told};

mod record;
mod recovery;

/// The bugs, each to be found by the oracle.
pub const BUGS: [&str; 9] = [
    "lose-acknowledged",
    "reorder",
    "tear",
    "flush-lies",
    "no-flush-at-recovery",
    "split-request",
    "stale-read",
    "forget-zero",
    "reuse-buffers",
];

const PAGE_U32: u32 = PAGE as u32;

struct Read {
    ticket: Ticket,
    span: Span,
    left: usize,
    failed: Option<String>,
}

/// The little store.
pub struct Reference {
    setup: Setup,
    media: SimMedia,
    pages: Pages,
    control: Span,
    arena: Span,
    tail: u32,
    position: u64,
    number: u64,
    chain: u64,
    durable: u64,
    map: BTreeMap<(u64, u64), (u64, u64)>,
    states: BTreeMap<u64, Vec<(u64, u64, Value)>>,
    disks: BTreeMap<u64, u64>,
    /// Blocks of the medium whose bytes are still in the arena.
    fresh: BTreeMap<u64, u32>,
    under_way: Vec<u64>,
    flushes: VecDeque<(Ticket, u64)>,
    flushing: Option<u64>,
    crowded: bool,
    reads: BTreeMap<u64, Read>,
    read_ids: BTreeMap<u64, u64>,
    next_id: u64,
    told: VecDeque<Told>,
    appends: u64,
    /// The boot of the last start that was not stopped cleanly.
    unclean_boot: Option<u64>,
    boot: u64,
}

impl Reference {
    fn buggy(&self, name: &str) -> bool {
        self.setup.is_broken(name)
    }

    fn blocking(&mut self, io: Io) -> Result<(), OpenError> {
        self.next_id += 1;
        self.media.submit(IoId(self.next_id), io);
        self.media.wait().map_err(|error| OpenError::Medium(error.to_string()))?;
        let done = self.media.complete().ok_or(OpenError::Other("nothing came".into()))?;
        done.result.map_err(|error| OpenError::Medium(error.to_string()))
    }

    fn read_blocks(&mut self, block: u64, blocks: u64) -> Result<Option<Vec<u8>>, OpenError> {
        if block + blocks > self.setup.medium_blocks {
            return Ok(None);
        }
        let Some(span) = self.pages.take(blocks as u32) else { return Ok(None) };
        self.blocking(Io::Read { at: block * PAGE as u64, into: span.part() })?;
        let bytes = self.pages.memory().slice(&span).to_vec();
        self.pages.give(span);
        Ok(Some(bytes))
    }

    fn apply(&mut self, header: Header, at: u64) {
        if header.kind == NOTHING && header.lba != 0 {
            self.unclean_boot = (header.blocks == 0).then_some(header.lba);
        }
        let Header { kind, disk, lba, blocks, .. } = header;
        self.number = header.number;
        self.chain = header.sum();
        let end = lba.saturating_add(blocks);
        match kind {
            WRITE => {
                for index in 0..blocks {
                    let place = at + 1 + index;
                    let before = self.map.get(&(disk, lba + index)).map_or(place, |place| place.0);
                    self.map.insert((disk, lba + index), (place, before));
                }
            }
            ZERO | HOLE => self.map.retain(|key, _| key.0 != disk || !(lba..end).contains(&key.1)),
            DISK => {
                self.disks.insert(disk, blocks);
            }
            GONE => {
                self.disks.remove(&disk);
                self.map.retain(|key, _| key.0 != disk);
            }
            _ => {}
        }
        let value = [Value::Hole, Value::Data, Value::Zero, Value::Hole];
        if let Some(value) = value.get(kind as usize) {
            self.states.entry(disk).or_default().push((lba, blocks, *value));
        }
    }

    fn header(&self, kind: u64, disk: u64, lba: u64, blocks: u64, data_sum: u64) -> Header {
        let (number, chain) = (self.number + 1, self.chain);
        Header { number, chain, kind, disk, lba, blocks, data_sum }
    }

    fn append(
        &mut self,
        kind: u64,
        disk: u32,
        lba: u64,
        blocks: u64,
        data: &[u8],
    ) -> Result<u64, Refused> {
        let bytes = PAGE_U32 + data.len() as u32;
        if self.tail + bytes > self.arena.bytes() {
            self.crowded = true;
            return Err(Refused::Busy);
        }
        if self.position + u64::from(bytes / PAGE_U32) > self.setup.medium_blocks {
            return Err(Refused::NoSpace);
        }
        self.appends += 1;
        let header = self.header(kind, u64::from(disk), lba, blocks, XxHash3_64::oneshot(data));
        let memory = self.pages.memory().clone();
        let early = self.buggy("publish-before-content");
        if early {
            memory.publish(&mut self.control, 0, u64::from(self.tail + bytes));
        }
        if !data.is_empty() {
            memory.write(&mut self.arena, self.tail + PAGE_U32, data);
        }
        memory.write(&mut self.arena, self.tail, &header.encode());
        if !early {
            memory.publish(&mut self.control, 0, u64::from(self.tail + bytes));
        }
        for index in 0..header.data_blocks() {
            let skip = self.tail + PAGE_U32 * (1 + index as u32);
            self.fresh.insert(self.position + 1 + index, skip);
        }
        let from: Vec<Part> = vec![self.arena.part().sub(self.tail, bytes)];
        self.media.submit(IoId(header.number << 2), Io::Write { at: self.position * 4096, from });
        self.under_way.push(header.number);
        self.apply(header, self.position);
        self.position += u64::from(bytes / PAGE_U32);
        self.tail += bytes;
        Ok(self.number)
    }

    fn clear(&mut self, kind: u64, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused> {
        if self.buggy("forget-zero") && self.appends.is_multiple_of(3) {
            let sequence = self.append(kind, disk, lba, 0, &[])?;
            let end = lba.saturating_add(blocks);
            let key = u64::from(disk);
            self.map.retain(|at, _| at.0 != key || !(lba..end).contains(&at.1));
            return Ok(sequence);
        }
        self.append(kind, disk, lba, blocks, &[])
    }

    fn completed(&mut self, id: u64, result: Result<(), String>) {
        match id & 3 {
            0 => self.under_way.retain(|&number| number != id >> 2),
            1 => {
                let through = self.flushing.take().unwrap_or(0);
                self.durable = self.durable.max(through);
                self.answer_flushes();
            }
            _ => {
                let Some(read_id) = self.read_ids.remove(&id) else { return };
                if let Some(read) = self.reads.get_mut(&read_id) {
                    read.left -= 1;
                    read.failed = read.failed.take().or(result.err());
                    if read.left == 0 {
                        self.finish_read(read_id);
                    }
                }
            }
        }
    }

    fn finish_read(&mut self, read_id: u64) {
        let Some(read) = self.reads.remove(&read_id) else { return };
        let bytes = self.pages.memory().slice(&read.span).to_vec();
        self.pages.give(read.span);
        let result = read.failed.map_or(Ok(bytes), Err);
        self.told.push_back(Told::Read { ticket: read.ticket, result });
    }

    fn answer_flushes(&mut self) {
        while let Some(&(ticket, number)) = self.flushes.front()
            && number <= self.durable
        {
            self.flushes.pop_front();
            self.told.push_back(Told::Flushed { ticket, result: Ok(()) });
        }
        let early = self.buggy("reuse-buffers") && self.crowded;
        if (self.durable == self.number || early) && self.tail > 0 {
            self.tail = 0;
            self.fresh.clear();
            self.pages.memory().clone().publish(&mut self.control, 0, 0);
            if std::mem::take(&mut self.crowded) {
                self.told.push_back(Told::Room);
            }
        }
    }
}

impl Subject for Reference {
    const COVERED: &'static [&'static str] = &["records appended"];

    fn live_blocks_max(&self) -> u64 {
        self.setup.medium_blocks
    }

    fn setup(setup: Setup) -> Setup {
        Setup { medium_blocks: 1 << 18, ..setup }
    }

    fn format(_host: &Host, _setup: &Setup) -> Result<(), String> {
        Ok(())
    }

    fn open(host: &Host, setup: &Setup, accept_loss: bool) -> Result<Self, OpenError> {
        let mut pages = Pages::whole(host.memory.clone());
        let no_page = || OpenError::Other("no page".into());
        let control = pages.take(1).ok_or_else(no_page)?;
        let arena = pages.take(600).ok_or_else(no_page)?;
        let mut store = Reference {
            setup: setup.clone(),
            media: SimMedia::new(&host.device),
            pages,
            control,
            arena,
            tail: 0,
            position: 0,
            number: 0,
            chain: 0,
            durable: 0,
            map: BTreeMap::new(),
            states: BTreeMap::new(),
            disks: BTreeMap::new(),
            fresh: BTreeMap::new(),
            under_way: Vec::new(),
            flushes: VecDeque::new(),
            flushing: None,
            crowded: false,
            reads: BTreeMap::new(),
            read_ids: BTreeMap::new(),
            next_id: 0,
            told: VecDeque::new(),
            appends: 0,
            unclean_boot: None,
            boot: host.boot,
        };
        store.replay()?;
        let left = store.pages.memory().read(&store.control, 8) == MAGIC;
        if !left && store.unclean_boot == Some(host.boot) && !accept_loss {
            return Err(OpenError::LostWrites);
        }
        store.adopt()?;
        store.begin(host.boot)?;
        Ok(store)
    }

    fn create_disk(&mut self, disk: u32, blocks: u64) -> Result<(), Refused> {
        self.append(DISK, disk, 0, blocks, &[]).map(|_| ())
    }

    fn resize_disk(&mut self, disk: u32, blocks: u64) -> Result<(), Refused> {
        self.append(DISK, disk, 0, blocks, &[]).map(|_| ())
    }

    fn destroy_disk(&mut self, disk: u32) -> Result<(), Refused> {
        self.append(GONE, disk, 0, 0, &[]).map(|_| ())
    }

    fn disks(&self) -> Vec<(u32, u64)> {
        self.disks.iter().map(|(&disk, &blocks)| (disk as u32, blocks)).collect()
    }

    fn write(&mut self, disk: u32, lba: u64, bytes: &[u8], _owned: bool) -> Result<u64, Refused> {
        let blocks = (bytes.len() / PAGE) as u64;
        if self.buggy("split-request") && blocks > 1 {
            let (first, rest) = bytes.split_at(PAGE);
            if self.tail + 2 * PAGE_U32 + bytes.len() as u32 > self.arena.bytes() {
                self.crowded = true;
                return Err(Refused::Busy);
            }
            self.append(WRITE, disk, lba, 1, first)?;
            return self.append(WRITE, disk, lba + 1, blocks - 1, rest);
        }
        self.append(WRITE, disk, lba, blocks, bytes)
    }

    fn zero(&mut self, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused> {
        self.clear(ZERO, disk, lba, blocks)
    }

    fn discard(&mut self, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused> {
        self.clear(HOLE, disk, lba, blocks)
    }

    fn read(&mut self, ticket: Ticket, disk: u32, lba: u64, blocks: u64) -> bool {
        let Some(mut span) = self.pages.take(blocks as u32) else { return false };
        let memory = self.pages.memory().clone();
        let mut fetch = Vec::new();
        for index in 0..blocks {
            let skip = index as u32 * PAGE_U32;
            let place = self.map.get(&(u64::from(disk), lba + index));
            let stale = self.buggy("stale-read") && ticket.0.is_multiple_of(7);
            let place = place.map(|place| if stale { place.1 } else { place.0 });
            match place.map(|place| (place, self.fresh.get(&place))) {
                None => memory.write(&mut span, skip, &[0; PAGE]),
                Some((_, Some(&at))) => {
                    let bytes = memory.slice(&self.arena)[at as usize..at as usize + PAGE].to_vec();
                    memory.write(&mut span, skip, &bytes);
                }
                Some((place, None)) => fetch.push((place, span.part().sub(skip, PAGE_U32))),
            }
        }
        self.next_id += 1;
        let read_id = self.next_id;
        let read = Read { ticket, span, left: fetch.len(), failed: None };
        self.reads.insert(read_id, read);
        if fetch.is_empty() {
            self.finish_read(read_id);
        }
        for (place, into) in fetch {
            self.next_id += 1;
            let id = self.next_id << 2 | 2;
            self.read_ids.insert(id, read_id);
            self.media.submit(IoId(id), Io::Read { at: place * PAGE as u64, into });
        }
        true
    }

    fn block_status(&mut self, ticket: Ticket, disk: u32, lba: u64, blocks: u64) {
        let changes = self.states.get(&u64::from(disk)).map_or(&[][..], Vec::as_slice);
        let end = lba + blocks;
        let (mut runs, mut at): (Vec<Run>, u64) = (Vec::new(), lba);
        while at < end && runs.len() < 64 {
            // The last change that covers a block decides it; later ones bound the run.
            let last = changes.iter().rposition(|c| at >= c.0 && at - c.0 < c.1);
            let value = last.map_or(Value::Hole, |index| changes[index].2);
            let own_end = last.map_or(end, |index| changes[index].0 + changes[index].1);
            let later = changes[last.map_or(0, |index| index + 1)..].iter();
            let next = later.filter(|c| c.1 > 0 && c.0 > at).map(|c| c.0).min().unwrap_or(end);
            let blocks = own_end.min(next).min(end) - at;
            runs.push(Run { blocks, value });
            at += blocks;
        }
        self.told.push_back(Told::Status { ticket, result: Ok(runs) });
    }

    fn flush(&mut self, ticket: Ticket) {
        if self.buggy("flush-lies") {
            self.told.push_back(Told::Flushed { ticket, result: Ok(()) });
        } else {
            self.flushes.push_back((ticket, self.number));
        }
    }

    fn durable_through(&self) -> u64 {
        self.durable
    }

    fn poll(&mut self, _now: u64) -> bool {
        let mut worked = false;
        while let Some(done) = self.media.complete() {
            worked = true;
            self.completed(done.id.0, done.result.map_err(|error| error.to_string()));
        }
        let wanted = self.flushes.back().map(|next| next.1);
        let wanted = if self.crowded { Some(self.number) } else { wanted };
        let complete = self.under_way.iter().min().map_or(self.number, |number| number - 1);
        if self.flushing.is_none()
            && wanted.is_some_and(|wanted| wanted > self.durable || self.crowded)
            && complete > self.durable
        {
            self.flushing = Some(complete);
            self.next_id += 1;
            self.media.submit(IoId(self.next_id << 2 | 1), Io::Flush);
        }
        self.answer_flushes();
        worked
    }

    fn next_told(&mut self) -> Option<Told> {
        self.told.pop_front()
    }

    fn health(&self) -> Health {
        Health::Good
    }

    fn resume(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn resumed(&mut self) -> Option<Result<(), String>> {
        Some(Ok(()))
    }

    fn close(mut self) -> Result<(), String> {
        while !self.under_way.is_empty() {
            self.media.wait().map_err(|error| error.to_string())?;
            self.poll(0);
        }
        self.blocking(Io::Flush).map_err(|error| error.to_string())?;
        self.mark(self.boot, true).map_err(|error| error.to_string())?;
        self.pages.memory().clone().publish(&mut self.control, 0, 0);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("records appended", self.appends)]
    }
}
