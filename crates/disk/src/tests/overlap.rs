//! Random requests that overlap, on a store that refuses, delays and loses; and proof that the
//! history notices each broken promise.

use std::collections::BTreeMap;
use std::rc::Rc;

use bowline_arena::{SharedPages, Span};
use bowline_store::{BLOCK_BYTES, DiskId, Durability, Micros, Payload, Ticket};

use super::history::{Change, History, stamps};
use super::model::ModelVolume;
use super::{Random, shared_pages};
use crate::broken::Broken;
use crate::{DiskEvent, Disks, SECTOR_BYTES, Submitted, Volume};

/// Small and dense, large enough for runs of zeros that are no bytes, and `ordered`.
const DISKS: [(DiskId, u64, Durability); 4] = [
    (DiskId(1), 5, Durability::Strict),
    (DiskId(2), 80 * 8 + 3, Durability::Strict),
    (DiskId(3), 13 * 8 - 1, Durability::Ordered),
    (DiskId(4), 6 * 8, Durability::Sync),
];
const PAGES: u64 = 160;

enum Waiting {
    Change { disk: DiskId, at: usize },
    Read { disk: DiskId, first: u64, sectors: u64, submitted: u64 },
    Flush { disk: DiskId, submitted: u64 },
}

struct Run {
    disks: Disks<ModelVolume>,
    pages: SharedPages,
    random: Random,
    histories: BTreeMap<DiskId, History>,
    waiting: BTreeMap<u64, Waiting>,
    time: u64,
    waits_for_room: bool,
    merged_reads: u64,
}

impl Run {
    fn new(seed: u64, broken: Option<Broken>) -> Run {
        let mut random = Random(seed);
        let pages = shared_pages(PAGES);
        let mut volume = ModelVolume::new(Rc::clone(&pages), random.next());
        volume.busy_percent = [0, 5, 30][random.below(3) as usize];
        volume.no_space_percent = [0, 0, 5][random.below(3) as usize];
        volume.progress_percent = [10, 30, 80][random.below(3) as usize];
        for (disk, sectors, durability) in DISKS {
            volume.add_disk(disk, sectors * SECTOR_BYTES, durability);
        }
        let mut disks = Disks::new(volume, Rc::clone(&pages));
        disks.broken = broken;
        let histories = DISKS.map(|(disk, ..)| (disk, History::default())).into();
        let waiting = BTreeMap::new();
        Run {
            disks,
            pages,
            random,
            histories,
            waiting,
            time: 0,
            waits_for_room: false,
            merged_reads: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn submit(&mut self) -> Result<(), String> {
        let (disk, sectors, durability) = DISKS[self.random.below(4) as usize];
        let start = self.random.below(sectors);
        let most = if self.random.chance(20) { sectors - start } else { 12.min(sectors - start) };
        let (mut start, mut count) = (start, 1 + self.random.below(most));
        if self.random.chance(30) && sectors >= start / 8 * 8 + 8 {
            start = start / 8 * 8;
            count = (count / 8 * 8).max(8);
        }
        match self.random.below(10) {
            0 | 1 => self.read(disk, start, count),
            2 => self.flush(disk),
            _ if self.waits_for_room => Ok(()),
            kind => {
                let fua = self.random.chance(10);
                let is_durable =
                    durability == Durability::Sync || (fua && durability != Durability::Ordered);
                self.change(disk, start, count, kind, fua, is_durable)
            }
        }
    }

    fn change(
        &mut self,
        disk: DiskId,
        start: u64,
        count: u64,
        kind: u64,
        fua: bool,
        is_durable: bool,
    ) -> Result<(), String> {
        let submitted = self.tick();
        let (offset, bytes) = (start * SECTOR_BYTES, count * SECTOR_BYTES);
        let ticket = Ticket(submitted);
        let disk_end = self.histories_end(disk);
        let (mut from, mut to, is_write) = (start, start + count, kind > 4);
        let result = match kind {
            3 => {
                let keep = self.random.chance(50);
                self.disks.zero(ticket, disk, offset, bytes, keep, fua)
            }
            4 => {
                from = start.next_multiple_of(8);
                to = if to == disk_end { to } else { to / 8 * 8 };
                self.disks.discard(ticket, disk, offset, bytes, fua)
            }
            _ => self.write(ticket, disk, offset, bytes, fua)?,
        };
        if result == Submitted::Busy {
            self.waits_for_room = true;
            return Ok(());
        }
        let history = self.histories.entry(disk).or_default();
        let change = Change {
            stamp: submitted,
            start: from,
            end: to.max(from),
            is_write,
            fua: is_durable,
            submitted,
            replied: None,
        };
        history.changes.push(change);
        let at = history.changes.len() - 1;
        self.waiting.insert(submitted, Waiting::Change { disk, at });
        match result {
            Submitted::Done(result) => self.done(ticket, result.is_ok()),
            _ => Ok(()),
        }
    }

    fn write(
        &mut self,
        ticket: Ticket,
        disk: DiskId,
        offset: u64,
        bytes: u64,
        fua: bool,
    ) -> Result<Submitted, String> {
        let content = ticket.0.to_le_bytes().repeat(bytes as usize / 8);
        let is_owned = bytes.is_multiple_of(BLOCK_BYTES) && self.random.chance(50);
        if !is_owned {
            let (one, two) = content.split_at(self.random.below(bytes) as usize);
            let mut payload = Payload::Copied(&[one, two]);
            return Ok(self.disks.write(ticket, disk, offset, &mut payload, fua));
        }
        let pages = (bytes / BLOCK_BYTES) as u32;
        let Some(mut spans) = self.pages.borrow_mut().take_scattered(pages, 2) else {
            return Ok(self.disks.write(
                ticket,
                disk,
                offset,
                &mut Payload::Copied(&[&content]),
                fua,
            ));
        };
        let memory = Rc::clone(self.pages.borrow().memory());
        for span in &mut spans {
            let length = span.bytes() as usize;
            memory.slice_mut(span).copy_from_slice(&content[..length]);
        }
        let mut payload = Payload::Owned(spans);
        let result = self.disks.write(ticket, disk, offset, &mut payload, fua);
        let Payload::Owned(left) = payload else { return Err("payload of another kind".into()) };
        let is_taken = !matches!(result, Submitted::Busy | Submitted::Done(Err(_)));
        if is_taken != left.is_empty() {
            return Err(format!("{result:?} left {} spans", left.len()));
        }
        left.into_iter().for_each(|span| self.pages.borrow_mut().give(span));
        Ok(result)
    }

    fn read(&mut self, disk: DiskId, first: u64, sectors: u64) -> Result<(), String> {
        let blocks = (first + sectors).div_ceil(8) - first / 8;
        let Some(span) = self.pages.borrow_mut().take(blocks as u32) else { return Ok(()) };
        let submitted = self.tick();
        let bytes = (sectors * SECTOR_BYTES) as u32;
        let offset = first * SECTOR_BYTES;
        let result = self.disks.read(Ticket(submitted), disk, offset, bytes, span);
        result.map_err(|(error, _)| error.to_string())?;
        self.waiting.insert(submitted, Waiting::Read { disk, first, sectors, submitted });
        Ok(())
    }

    fn flush(&mut self, disk: DiskId) -> Result<(), String> {
        let submitted = self.tick();
        let result = self.disks.flush(Ticket(submitted), disk);
        self.waiting.insert(submitted, Waiting::Flush { disk, submitted });
        match result {
            Submitted::Done(result) => self.done(Ticket(submitted), result.is_ok()),
            Submitted::Pending => Ok(()),
            Submitted::Busy => Err("a flush is busy".into()),
        }
    }

    fn done(&mut self, ticket: Ticket, is_ok: bool) -> Result<(), String> {
        let now = self.tick();
        match self.waiting.remove(&ticket.0) {
            Some(Waiting::Change { disk, at }) => {
                if is_ok && let Some(history) = self.histories.get_mut(&disk) {
                    history.changes[at].replied = Some(now);
                }
            }
            Some(Waiting::Flush { disk, submitted }) => {
                if is_ok && let Some(history) = self.histories.get_mut(&disk) {
                    history.flushed = history.flushed.max(submitted);
                }
            }
            _ => return Err(format!("an answer to {ticket:?}, which waits for none")),
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<bool, String> {
        let now = Micros(self.disks.now.0 + self.random.below(20_000));
        let moved = self.disks.poll(now);
        while let Some(event) = self.disks.next_event() {
            match event {
                DiskEvent::Done { ticket, result } => self.done(ticket, result.is_ok())?,
                DiskEvent::Read { ticket, span, result } => {
                    result.map_err(|error| error.to_string())?;
                    self.read_done(ticket, span)?;
                }
                DiskEvent::Status { .. } => return Err("nobody asked for a status".into()),
                DiskEvent::Room => self.waits_for_room = false,
            }
        }
        Ok(moved)
    }

    fn read_done(&mut self, ticket: Ticket, span: Span) -> Result<(), String> {
        let Some(Waiting::Read { disk, first, sectors, submitted }) =
            self.waiting.remove(&ticket.0)
        else {
            return Err(format!("read {ticket:?} was not asked for"));
        };
        let memory = Rc::clone(self.pages.borrow().memory());
        let skip = ((first % 8) * SECTOR_BYTES) as usize;
        let bytes = &memory.slice(&span)[skip..skip + (sectors * SECTOR_BYTES) as usize];
        let found = stamps(bytes)?;
        self.pages.borrow_mut().give(span);
        self.merged_reads += 1;
        self.histories[&disk].check_read(first, &found, submitted)
    }

    /// What a loss of power may leave now is allowed, whatever it leaves.
    fn check_cut(&mut self) -> Result<(), String> {
        let volume = self.disks.store();
        let (durable, admitted) = (volume.durable_through().0, volume.admitted_through().0);
        let count = durable + self.random.below(admitted - durable + 1);
        for (disk, sectors, durability) in DISKS {
            let bytes = self.disks.store().after_cut(disk, count);
            let found = stamps(&bytes[..(sectors * SECTOR_BYTES) as usize])?;
            let is_durable = durability != Durability::Ordered;
            let result = self.histories[&disk].check_cut(&found, is_durable);
            result.map_err(|text| format!("disk {disk} cut after change {count}: {text}"))?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        for _ in 0..20_000 {
            self.poll()?;
            let is_idle = self.waiting.is_empty() && self.disks.asked.len() == 0;
            if is_idle && !self.waits_for_room {
                return Ok(());
            }
        }
        Err(format!("{} requests wait for ever", self.waiting.len()))
    }

    fn check_quiet(&self) -> Result<(), String> {
        for (disk, sectors, _) in DISKS {
            let (inside, beyond) =
                self.disks.store().contents(disk).split_at((sectors * SECTOR_BYTES) as usize);
            self.histories[&disk].check_quiet(&stamps(inside)?)?;
            if beyond.iter().any(|byte| *byte != 0) {
                return Err(format!("bytes past the end of disk {disk}"));
            }
        }
        let free = self.pages.borrow().free();
        if u64::from(free) != PAGES {
            return Err(format!("{free} of {PAGES} pages came back"));
        }
        Ok(())
    }

    fn histories_end(&self, disk: DiskId) -> u64 {
        DISKS.iter().find(|found| found.0 == disk).map_or(0, |found| found.1)
    }
}

fn run(seed: u64, broken: Option<Broken>, steps: u32) -> Result<Run, String> {
    let mut run = Run::new(seed, broken);
    let burst = 20 + run.random.below(70);
    for step in 0..steps {
        if run.random.chance(burst) {
            run.submit()?;
        } else {
            run.poll()?;
        }
        if step % 16 == 0 {
            run.check_cut()?;
        }
    }
    run.drain()?;
    run.check_quiet()?;
    Ok(run)
}

#[test]
fn overlapping_requests_keep_every_promise() {
    let (mut merges, mut busy, mut reads) = (0, 0, 0);
    for seed in 0..150 {
        let run = run(seed, None, 400).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
        merges += run.disks.counters().merges;
        busy += run.disks.counters().busy;
        reads += run.merged_reads;
    }
    assert!(merges > 10_000 && busy > 500 && reads > 5_000, "{merges} {busy} {reads}");
}

#[test]
fn broken_promises_are_noticed() {
    let broken = [
        Broken::PassOperations,
        Broken::MergeWithoutLock,
        Broken::ReplyBeforeMerge,
        Broken::ForgetTail,
        Broken::SplitAdmission,
        Broken::FlushFromMemory,
        Broken::FuaFromMemory,
    ];
    for broken in broken {
        let noticed = (0..60).find_map(|seed| run(seed, Some(broken), 400).err());
        assert!(noticed.is_some(), "{broken:?} goes unnoticed");
    }
}
