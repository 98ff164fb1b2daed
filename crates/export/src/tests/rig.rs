//! An event loop without sockets: what clients send lies in vectors, in pieces of any length.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Pages, Part, SharedPages};
use bowline_disk::{Disks, Volume};
use bowline_store::{DiskId, Micros};

use super::Random;
use super::volume::MapVolume;
use crate::{Action, CloseCause, ExportedDisk, IoStop, NbdServer, Options, SessionId};

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
    receive: Option<Vec<Part>>,
    cancel: bool,
    send: Option<Vec<Part>>,
    shut: bool,
    pub closed: Option<CloseCause>,
}

pub struct Rig<V: Volume = MapVolume> {
    pub server: NbdServer,
    pub disks: Disks<V>,
    pub pages: SharedPages,
    memory: Rc<Memory>,
    pub connections: BTreeMap<SessionId, Connection>,
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
        let memory = Rc::new(Memory::private(pages * u64::from(PAGE_BYTES)));
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
        let mut server = NbdServer::new(Rc::clone(&pages), options);
        let exported = |disk, name: &str, read_only| ExportedDisk {
            disk,
            name: name.to_string(),
            description: String::new(),
            read_only,
        };
        server.set_exports(vec![exported(DISK, "one", false), exported(FROZEN, "frozen", true)]);
        Rig {
            server,
            disks: Disks::new(volume, Rc::clone(&pages)),
            pages,
            memory,
            connections: BTreeMap::new(),
            random: Random(1),
            now: 0,
            piece_bytes_max: u64::MAX,
            cancelled: 0,
            turns: 0,
            rest_polls: 4,
        }
    }

    pub fn accept(&mut self) -> SessionId {
        let id = self.server.accepted().unwrap();
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
            | Action::CancelReceive { session }
            | Action::Send { session, .. }
            | Action::Shutdown { session }
            | Action::Close { session, .. }) = &action;
            let one = self.connections.get_mut(session).unwrap();
            assert!(one.closed.is_none(), "{action:?} after its end");
            match action {
                Action::AwaitReadable { .. } => {
                    assert!(!one.awaiting && one.receive.is_none(), "two receives");
                    one.awaiting = true;
                }
                Action::Receive { parts, .. } => {
                    assert!(!one.awaiting && one.receive.is_none(), "two receives");
                    assert!(!parts.is_empty() && parts.len() <= 64);
                    one.receive = Some(parts);
                }
                Action::CancelReceive { .. } => {
                    one.cancel = true;
                    self.cancelled += 1;
                }
                Action::Send { parts, .. } => {
                    assert!(one.send.is_none(), "two sends");
                    assert!(!parts.is_empty() && parts.len() <= 64);
                    one.send = Some(parts);
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
        let Some(parts) = one.receive.take() else { return false };
        if std::mem::take(&mut one.cancel) && one.outgoing.is_empty() {
            self.server.received(&mut self.disks, id, Err(IoStop::Cancelled));
            return true;
        }
        if one.reset {
            self.server.received(&mut self.disks, id, Err(IoStop::Failed(104)));
            return true;
        }
        if one.shut || (one.ended && one.outgoing.is_empty()) {
            self.server.received(&mut self.disks, id, Ok(0));
            return true;
        }
        if one.outgoing.is_empty() {
            one.receive = Some(parts);
            return false;
        }
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
        self.server.received(&mut self.disks, id, Ok(count as u32));
        true
    }

    fn move_out(&mut self, id: SessionId) -> bool {
        let one = self.at(id);
        if one.deaf && !one.shut && !one.reset {
            return false;
        }
        let Some(parts) = one.send.take() else { return false };
        if one.shut || one.reset {
            self.server.sent(&mut self.disks, id, Err(IoStop::Failed(32)));
            return true;
        }
        let mut bytes = Vec::new();
        parts.iter().for_each(|part| self.memory.fetch(*part, &mut bytes));
        let count = self.length(bytes.len());
        self.at(id).incoming.extend_from_slice(&bytes[..count]);
        self.server.sent(&mut self.disks, id, Ok(count as u32));
        true
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

    /// Nothing is held by anybody.
    pub fn is_clean(&self) -> bool {
        let pages = self.pages.borrow();
        pages.free() == pages.count() && self.server.held_bytes() == 0
    }
}
