//! An event loop without sockets: what clients send lies in vectors, in pieces of any length.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use bowline_arena::{Cut, Memory, PAGE_BYTES, Pages, Part, SharedPages};
use bowline_disk::{Disks, Volume};
use bowline_store::{DiskId, Micros};

use super::Random;
use super::volume::MapVolume;
use crate::records::Broken;
use crate::{
    Action, Adoption, CloseCause, ExportedDisk, FoundSessions, IoStop, KernelOperation, NbdServer,
    Options, RecordsError, SessionId,
};

pub const DISK: DiskId = DiskId(3);
pub const FROZEN: DiskId = DiskId(4);
pub const DISK_BYTES: u64 = 128 << 20;

/// The far end of a session and what is under way for it.
#[derive(Default)]
pub struct Connection {
    /// What the client sent and the server has not received.
    pub outgoing: Vec<u8>,
    /// The client sends no more.
    pub ended: bool,
    /// The connection is broken.
    pub reset: bool,
    /// The client does not take what the server sends.
    pub deaf: bool,
    /// What the client got.
    pub incoming: Vec<u8>,
    awaiting: bool,
    receive: Option<(u8, Vec<Part>)>,
    cancel: bool,
    send: Option<(u8, Vec<Part>)>,
    shut: bool,
    pub closed: Option<CloseCause>,
}

pub struct Rig<V: Volume = MapVolume> {
    pub server: NbdServer,
    pub disks: Disks<V>,
    pub pages: SharedPages,
    pub memory: Rc<Memory>,
    /// The region of the records.
    pub region: Part,
    options: Options,
    exported: Vec<ExportedDisk>,
    /// What the kernel made of the last receive and send of each session.
    results: BTreeMap<(SessionId, bool), (u8, Result<u32, IoStop>)>,
    pub broken: Option<Broken>,
    pub deaths: u64,
    pub connections: BTreeMap<SessionId, Connection>,
    /// The number of each one's connection.
    numbers: BTreeMap<SessionId, u64>,
    pub random: Random,
    pub now: u64,
    /// Longest piece that moves at once.
    pub piece_bytes_max: u64,
    /// Receives cancelled by the server.
    pub cancelled: u64,
    turns: u64,
    /// Polls without anything moving until nothing will.
    pub rest_polls: u64,
}

impl Rig {
    pub fn new(pages: u64, options: Options) -> Rig {
        // Beside the pages asked for, room for the records.
        let bytes = pages * u64::from(PAGE_BYTES);
        let bytes = bytes + u64::from(options.record_bytes(bytes + (8 << 20)));
        let memory = Rc::new(Memory::private(bytes));
        let pages = Rc::new(RefCell::new(Pages::whole(memory)));
        let mut volume = MapVolume::new(Rc::clone(&pages));
        volume.add_disk(DISK, "one", DISK_BYTES);
        volume.add_disk(FROZEN, "frozen", DISK_BYTES);
        Rig::over(volume, pages, options)
    }

    /// 48 MiB of pages and the defaults.
    pub fn roomy() -> Rig {
        Rig::new(48 << 8, Options::default())
    }

    /// What the store is asked for comes back so many polls later.
    pub fn delay(&mut self, polls: u64) {
        self.disks.store_mut().delay_polls = polls;
        self.rest_polls = polls + 3;
    }
}

impl<V: Volume> Rig<V> {
    pub fn over(volume: V, pages: SharedPages, options: Options) -> Rig<V> {
        let memory = pages.borrow().memory().clone();
        let record_bytes = options.record_bytes(memory.bytes_total());
        let region = pages.borrow_mut().take(record_bytes / PAGE_BYTES).unwrap();
        let region_part = region.part();
        let mut server = NbdServer::new(Rc::clone(&pages), region, options);
        let exported = |disk, name: &str, read_only| ExportedDisk {
            disk,
            name: name.to_string(),
            description: String::new(),
            read_only,
        };
        let exported = vec![exported(DISK, "one", false), exported(FROZEN, "frozen", true)];
        server.set_exports(exported.clone());
        let mut disks = Disks::new(volume, Rc::clone(&pages));
        server.watch(&mut disks);
        Rig {
            server,
            disks,
            pages,
            memory,
            region: region_part,
            options,
            exported,
            results: BTreeMap::new(),
            broken: None,
            deaths: 0,
            connections: BTreeMap::new(),
            numbers: BTreeMap::new(),
            random: Random(1),
            now: 0,
            piece_bytes_max: u64::MAX,
            cancelled: 0,
            turns: 0,
            rest_polls: 4,
        }
    }

    /// Sets what is offered, now and after a death.
    pub fn offer(&mut self, exported: Vec<ExportedDisk>) {
        self.exported = exported.clone();
        self.server.set_exports(exported);
    }

    pub fn accept(&mut self) -> SessionId {
        let number = self.connections.len() as u64;
        let id = self.server.accepted(number).unwrap();
        self.numbers.insert(id, number);
        assert!(self.connections.insert(id, Connection::default()).is_none());
        id
    }

    pub fn at(&mut self, id: SessionId) -> &mut Connection {
        self.connections.get_mut(&id).unwrap()
    }

    pub fn send(&mut self, id: SessionId, bytes: &[u8]) {
        self.at(id).outgoing.extend_from_slice(bytes);
    }

    fn act(&mut self) -> bool {
        let mut any = false;
        while let Some(action) = self.server.next_action() {
            any = true;
            let (Action::AwaitReadable { session }
            | Action::Receive { session, .. }
            | Action::CancelReceive { session, .. }
            | Action::Send { session, .. }
            | Action::Shutdown { session }
            | Action::Close { session, .. }) = &action;
            // Nobody has the socket of a session whose process died accepting it.
            let nobody = || Connection { reset: true, ..Connection::default() };
            let one = self.connections.entry(*session).or_insert_with(nobody);
            if self.deaths > 0 && one.closed.is_some() && matches!(action, Action::Close { .. }) {
                continue;
            }
            assert!(one.closed.is_none(), "{action:?} after its end");
            match action {
                Action::AwaitReadable { .. } => {
                    assert!(!one.awaiting && one.receive.is_none(), "two receives");
                    one.awaiting = true;
                }
                Action::Receive { number, parts, .. } => {
                    assert!(!one.awaiting && one.receive.is_none(), "two receives");
                    assert!(!parts.is_empty() && parts.len() <= 64);
                    one.receive = Some((number, parts));
                }
                Action::CancelReceive { .. } => {
                    one.cancel = true;
                    self.cancelled += 1;
                }
                Action::Send { number, parts, .. } => {
                    assert!(one.send.is_none(), "two sends");
                    assert!(!parts.is_empty() && parts.len() <= 64);
                    one.send = Some((number, parts));
                }
                Action::Shutdown { .. } => one.shut = true,
                Action::Close { cause, .. } => {
                    let idle = one.receive.is_none() && one.send.is_none() && !one.awaiting;
                    assert!(idle, "closed with something under way");
                    one.closed = Some(cause);
                }
            }
        }
        any
    }

    fn length(&mut self, available: usize) -> usize {
        let limit = self.piece_bytes_max.min(available as u64);
        if self.piece_bytes_max == u64::MAX || limit == 0 {
            return limit as usize;
        }
        1 + self.random.below(limit) as usize
    }

    fn move_in(&mut self, id: SessionId) -> bool {
        let one = self.at(id);
        let over = one.shut || one.reset;
        if one.awaiting && (!one.outgoing.is_empty() || one.ended || over) {
            one.awaiting = false;
            self.server.readable(&mut self.disks, id);
            return true;
        }
        let Some(result) = self.receive(id) else { return false };
        self.server.received(&mut self.disks, id, result);
        true
    }

    /// What the kernel does about a receive.
    fn receive(&mut self, id: SessionId) -> Option<Result<u32, IoStop>> {
        let one = self.at(id);
        let (number, parts) = one.receive.take()?;
        let result = if std::mem::take(&mut one.cancel) && one.outgoing.is_empty() {
            Err(IoStop::Cancelled)
        } else if one.reset {
            Err(IoStop::Failed(104))
        } else if one.shut || (one.ended && one.outgoing.is_empty()) {
            Ok(0)
        } else if one.outgoing.is_empty() {
            one.receive = Some((number, parts));
            return None;
        } else {
            let space: usize = parts.iter().map(|part| part.bytes as usize).sum();
            let available = one.outgoing.len().min(space);
            let count = self.length(available);
            let bytes: Vec<u8> = self.at(id).outgoing.drain(..count).collect();
            let mut rest = &bytes[..];
            for part in parts {
                let (now, later) = rest.split_at(rest.len().min(part.bytes as usize));
                if !now.is_empty() {
                    self.memory.land(part.sub(0, now.len() as u32), now);
                }
                rest = later;
            }
            Ok(count as u32)
        };
        self.results.insert((id, false), (number, result));
        Some(result)
    }

    fn move_out(&mut self, id: SessionId) -> bool {
        let Some(result) = self.deliver(id) else { return false };
        self.server.sent(&mut self.disks, id, result);
        true
    }

    /// What the kernel does about a send.
    fn deliver(&mut self, id: SessionId) -> Option<Result<u32, IoStop>> {
        let one = self.at(id);
        if one.deaf && !one.shut && !one.reset {
            return None;
        }
        let (number, parts) = one.send.take()?;
        let result = if one.shut || one.reset {
            Err(IoStop::Failed(32))
        } else {
            let mut bytes = Vec::new();
            parts.iter().for_each(|part| self.memory.fetch(*part, &mut bytes));
            let count = self.length(bytes.len());
            self.at(id).incoming.extend_from_slice(&bytes[..count]);
            Ok(count as u32)
        };
        self.results.insert((id, true), (number, result));
        Some(result)
    }

    /// What is at the kernel is done in part or not at all.
    fn end_operations(&mut self) {
        let ids: Vec<SessionId> = self.connections.keys().copied().collect();
        for id in ids {
            if self.random.below(2) == 0 {
                self.receive(id);
                self.deliver(id);
            }
            let one = self.at(id);
            (one.awaiting, one.cancel, one.receive, one.send) = (false, false, None, None);
        }
    }

    /// The process dies. What is at the kernel is done in part or not at all. `revive` makes the
    /// store that a successor finds; the successor goes on from the records, and dies itself after
    /// so many stores, or of what the store does to it. Then the next one does.
    pub fn die(
        mut self,
        mut revive: impl FnMut(V, &SharedPages) -> V,
        mut cut: Option<u64>,
    ) -> Result<Rig<V>, RecordsError> {
        self.end_operations();
        let Rig { mut memory, results, broken, mut deaths, .. } = self;
        let mut volume = self.disks.into_store();
        loop {
            deaths += 1;
            memory = Rc::new(memory.successor());
            let mut whole = Pages::whole(Rc::clone(&memory));
            let region = whole.adopt(self.region).unwrap();
            let pages = Rc::new(RefCell::new(whole));
            let found = FoundSessions::read(&memory, &region)?;
            for (session, number) in found.connections() {
                // One whose process died accepting it has a number that nobody else knows.
                let known = self.numbers.get(&session);
                assert!(known.is_none_or(|known| *known == number), "whose socket is it?");
            }
            found.keep(&mut pages.borrow_mut())?;
            volume = revive(volume, &pages);
            let mut disks = Disks::new(volume, Rc::clone(&pages));
            disks.set_now(Micros(self.now));
            let mut ask = |operation: KernelOperation| {
                let KernelOperation { session, is_send, number } = operation;
                let (last, result) = results.get(&(session, is_send))?;
                (*last == number).then_some(*result)
            };
            let adoption = Adoption {
                pages: Rc::clone(&pages),
                region,
                found,
                options: self.options,
                exported: self.exported.clone(),
                now: Micros(self.now),
                results: &mut ask,
            };
            memory.cut_after(cut.take());
            let adopt = AssertUnwindSafe(|| NbdServer::adopt_as(adoption, &mut disks, broken));
            let adopted = catch_unwind(adopt);
            memory.cut_after(None);
            match adopted {
                Ok(server) => {
                    return Ok(Rig {
                        server: server?,
                        disks,
                        pages,
                        memory,
                        region: self.region,
                        options: self.options,
                        exported: self.exported,
                        results,
                        broken,
                        deaths,
                        connections: self.connections,
                        numbers: self.numbers,
                        random: self.random,
                        now: self.now,
                        piece_bytes_max: self.piece_bytes_max,
                        cancelled: self.cancelled,
                        turns: self.turns,
                        rest_polls: self.rest_polls,
                    });
                }
                Err(cause) if cause.is::<Cut>() => volume = disks.into_store(),
                Err(cause) => resume_unwind(cause),
            }
        }
    }

    /// One round of the loop. Returns whether something moved.
    pub fn turn(&mut self) -> bool {
        let mut any = self.act();
        let ids: Vec<SessionId> = self.connections.keys().copied().collect();
        for id in ids {
            if self.connections[&id].closed.is_none() {
                any |= self.move_in(id);
                any |= self.move_out(id);
            }
        }
        any |= self.disks.poll(Micros(self.now));
        while let Some(event) = self.disks.next_event() {
            self.server.disk_event(&mut self.disks, event);
            any = true;
        }
        self.server.poll(&mut self.disks, Micros(self.now));
        self.turns += 1;
        any
    }

    /// Goes on until nothing moves, not even what comes back some polls later.
    pub fn settle(&mut self) {
        let (mut quiet, limit) = (0, self.turns + 200_000);
        while quiet <= self.rest_polls {
            assert!(self.turns < limit, "it never comes to rest");
            quiet = if self.turn() { 0 } else { quiet + 1 };
        }
    }

    /// Lets time pass, sweep by sweep.
    pub fn pass(&mut self, micros: u64) {
        let until = self.now + micros;
        while self.now < until {
            self.now = (self.now + 100_000).min(until);
            self.settle();
        }
    }

    /// Where a session stands, for the report of a failure.
    pub fn describe(&mut self, id: SessionId) -> String {
        let Some(session) = self.server.sessions.get(id.0) else {
            return format!("closed: {:?}", self.connections[&id].closed);
        };
        format!(
            "{:?} {:?} {:?} sending {} ring {} kept {:?} wants {:?} waiting {:?} taking up {:?} \
             doubt {:?} skips {} requests {} incoming {:?} unsent {} from client {}",
            session.phase,
            session.parked,
            session.receiving,
            session.sending,
            session.ring.used(),
            session.kept,
            session.wants,
            session.waiting,
            session.to_take_up,
            session.in_doubt,
            session.skip_bytes,
            session.requests,
            session.incoming.as_ref().map(|one| (one.header, one.filled)),
            session.send.bytes(),
            self.connections[&id].outgoing.len(),
        )
    }

    /// Nothing is held by anybody.
    pub fn is_clean(&self) -> bool {
        let pages = self.pages.borrow();
        let records = self.region.bytes / PAGE_BYTES;
        pages.free() + records == pages.count() && self.server.held_bytes() == 0
    }
}
