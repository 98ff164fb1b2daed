//! The same over a real store, on a medium that is a vector of bytes.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use bowline_arena::{Memory, Pages, Part, SharedPages};
use bowline_store::{
    ArenaRegion, Completion, CreateOptions, Durability, Io, IoId, Media, MediumError, PoolId,
    Provision, Store, StoreOptions, create,
};
use bowline_wire::values::command;

use super::Random;
use super::client::{ask, block, connect, one, parse, read, request, write};
use super::dropping::{Client, Death, Load, live};
use super::rig::Rig;
use crate::{ExportedDisk, Options};

const POOL_BYTES: usize = 192 << 20;

pub struct VecMedia {
    pub memory: Rc<Memory>,
    /// Survives whoever uses it.
    pub bytes: Rc<RefCell<Vec<u8>>>,
    pub done: VecDeque<Completion>,
}

impl Media for VecMedia {
    fn bytes_total(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        match io {
            Io::Read { at, into } => {
                let at = at as usize;
                self.memory.land(into, &self.bytes.borrow()[at..at + into.bytes as usize]);
            }
            Io::Write { at, from } => {
                let mut bytes = Vec::new();
                from.into_iter().for_each(|part| self.memory.fetch(part, &mut bytes));
                let range = at as usize..at as usize + bytes.len();
                self.bytes.borrow_mut()[range].copy_from_slice(&bytes);
            }
            _ => {}
        }
        self.done.push_back(Completion { id, result: Ok(()) });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        if self.done.is_empty() { Err(MediumError::Died) } else { Ok(()) }
    }
}

fn options() -> StoreOptions {
    StoreOptions { map_frames: 256, delta_bytes: 1 << 20, ..StoreOptions::default() }
}

/// What a successor needs to find the pool again.
struct Pool {
    bytes: Rc<RefCell<Vec<u8>>>,
    control: Part,
}

impl Pool {
    /// Opens it by adoption.
    fn revive(&self, pages: &SharedPages) -> Store<VecMedia> {
        let control = pages.borrow_mut().adopt(self.control).unwrap();
        let memory = Rc::clone(pages.borrow().memory());
        let media = VecMedia { memory, bytes: Rc::clone(&self.bytes), done: VecDeque::new() };
        let region = ArenaRegion { control, index: None, pages: Rc::clone(pages), is_fresh: false };
        Store::open(media, region, options()).unwrap()
    }
}

fn real_of(memory_bytes: u64, name: &str, limits: Options) -> (Rig<Store<VecMedia>>, Pool) {
    let memory = Rc::new(Memory::private(memory_bytes));
    let mut pages = Pages::whole(Rc::clone(&memory));
    let control = pages.take(64).unwrap();
    let bytes = Rc::new(RefCell::new(vec![0; POOL_BYTES]));
    let pool = Pool { bytes: Rc::clone(&bytes), control: control.part() };
    let pages = Rc::new(RefCell::new(pages));
    let mut media = VecMedia { memory, bytes, done: VecDeque::new() };
    let format = CreateOptions { pool: PoolId(7), salt: 7, slot_bytes: 4 << 20, now_seconds: 0 };
    create(&mut media, &pages, &format).unwrap();
    let region = ArenaRegion { control, index: None, pages: Rc::clone(&pages), is_fresh: true };
    let mut store = Store::open(media, region, options()).unwrap();
    let disk = store.create_disk(name, 96 << 20, Durability::Strict, Provision::Thin).unwrap();
    let mut rig = Rig::over(store, pages, limits);
    rig.offer(vec![ExportedDisk {
        disk,
        name: name.to_string(),
        description: String::new(),
        read_only: false,
    }]);
    rig.rest_polls = 20;
    (rig, pool)
}

fn real() -> Rig<Store<VecMedia>> {
    real_of(64 << 20, "real", Options::default()).0
}

#[test]
fn nobody_notices_the_death_of_server_disks_and_store() {
    let limits = Options { sessions_max: 8, attempts_max: u8::MAX, ..Options::default() };
    let load = Load { clients: 2, batches: 4, requests: 8, long: true };
    let mut deaths = 0;
    for (seed, death) in
        [(1, Death::Turn(5)), (2, Death::Store(400)), (3, Death::Store(400)), (4, Death::Turn(9))]
    {
        let (mut rig, pool) = real_of(16 << 20, "one", limits);
        rig.random = Random(seed);
        rig.piece_bytes_max = 60_000;
        let lived = live(rig, load, death, |_, pages| pool.revive(pages));
        let (mut rig, clients, seen) = lived.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        deaths += seen.deaths;
        let id = connect(&mut rig, "one", true);
        for (offset, expected) in clients.iter().flat_map(Client::contents) {
            let got = read(&mut rig, id, offset, expected.len() as u32).bytes();
            assert!(got == expected, "seed {seed}: other bytes from {offset} on");
        }
    }
    assert!(deaths > 40, "{deaths} deaths");
}

#[test]
fn a_write_cut_off_inside_its_admission_is_made_once() {
    // Long enough to span batches; the cuts fall into the store's own stores.
    let data = Random(5).bytes(3 << 20);
    for stores in (2..240).step_by(7) {
        let limits = Options { sessions_max: 8, ..Options::default() };
        let (mut rig, pool) = real_of(24 << 20, "one", limits);
        let id = connect(&mut rig, "one", true);
        rig.send(id, &request(command::WRITE, 0, 1, 0, 3 << 20));
        rig.send(id, &data[..data.len() - 1]);
        rig.settle();
        rig.send(id, &data[data.len() - 1..]);
        rig.memory.cut_after(Some(stores));
        for _ in 0..20 {
            if catch_unwind(AssertUnwindSafe(|| rig.turn())).is_err() {
                break;
            }
        }
        let mut rig = rig.die(|_, pages| pool.revive(pages), None).unwrap();
        rig.settle();
        let outcomes = parse(&rig.at(id).incoming, &BTreeMap::new());
        assert!(outcomes[&1].done && outcomes[&1].error.is_none(), "cut after {stores}");
        rig.at(id).incoming.clear();
        assert!(read(&mut rig, id, 0, 3 << 20).bytes() == data, "cut after {stores}");
        // The disk's own record, and the write.
        assert_eq!(rig.disks.store().admitted_through().0, 2, "cut after {stores}");
    }
}

#[test]
fn sessions_work_over_a_real_store() {
    for structured in [false, true] {
        let mut rig = real();
        let id = connect(&mut rig, "real", structured);
        for (number, bytes) in [512, 4096, 66_048, 1 << 20, 32 << 20].into_iter().enumerate() {
            let offset = block(number as u64 * 512) + if bytes % 4096 == 0 { 0 } else { 512 };
            let data = rig.random.bytes(bytes);
            assert_eq!(write(&mut rig, id, offset, &data).error, None, "{bytes} bytes");
            let outcome = read(&mut rig, id, offset, bytes as u32);
            assert!(outcome.error.is_none() && outcome.bytes() == data, "{bytes} bytes");
            assert_eq!(one(&mut rig, id, &request(command::FLUSH, 0, 1, 0, 0)).error, None);
        }
        assert_eq!(one(&mut rig, id, &request(command::TRIM, 0, 1, 0, 64 << 20)).error, None);
        assert!(read(&mut rig, id, 0, 1 << 20).bytes() == vec![0; 1 << 20]);
    }
}

#[test]
fn many_sessions_write_and_flush_a_real_store() {
    let mut rig = real();
    let ids: Vec<_> = (0..8).map(|_| connect(&mut rig, "real", true)).collect();
    let mut expected = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        let mut stream = Vec::new();
        for number in 0..64u64 {
            let data = rig.random.bytes(4096);
            let offset = block(index as u64 * 64 + number);
            stream.extend(request(command::WRITE, 0, number, offset, 4096));
            stream.extend_from_slice(&data);
            expected.extend(data);
            if number % 8 == 7 {
                stream.extend(request(command::FLUSH, 0, 1000 + number, 0, 0));
            }
        }
        rig.send(*id, &stream);
    }
    for id in &ids {
        let outcomes = ask(&mut rig, *id, &[]);
        assert_eq!(outcomes.len(), 72);
        assert!(outcomes.values().all(|one| one.done && one.error.is_none()));
    }
    assert!(read(&mut rig, ids[0], 0, expected.len() as u32).bytes() == expected);
}
