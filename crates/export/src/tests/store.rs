//! The same over a real store, on a medium that is a vector of bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, Pages};
use bowline_store::{
    ArenaRegion, Completion, CreateOptions, Durability, Io, IoId, Media, MediumError, PoolId,
    Provision, Store, StoreOptions, create,
};
use bowline_wire::values::command;

use super::client::{ask, block, connect, one, read, request, write};
use super::rig::Rig;
use crate::{ExportedDisk, Options};

const POOL_BYTES: usize = 192 << 20;

struct VecMedia {
    memory: Rc<Memory>,
    bytes: Vec<u8>,
    done: VecDeque<Completion>,
}

impl Media for VecMedia {
    fn bytes_total(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        match io {
            Io::Read { at, into } => {
                let at = at as usize;
                self.memory.land(into, &self.bytes[at..at + into.bytes as usize]);
            }
            Io::Write { at, from } => {
                let mut bytes = Vec::new();
                from.into_iter().for_each(|part| self.memory.fetch(part, &mut bytes));
                self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
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

fn real() -> Rig<Store<VecMedia>> {
    let memory = Rc::new(Memory::private(64 << 20));
    let mut pages = Pages::whole(Rc::clone(&memory));
    let control = pages.take(64).unwrap();
    let pages = Rc::new(RefCell::new(pages));
    let mut media = VecMedia { memory, bytes: vec![0; POOL_BYTES], done: VecDeque::new() };
    let options = CreateOptions { pool: PoolId(7), salt: 7, slot_bytes: 4 << 20, now_seconds: 0 };
    create(&mut media, &pages, &options).unwrap();
    let region = ArenaRegion { control, pages: Rc::clone(&pages), is_fresh: true };
    let options = StoreOptions { map_frames: 256, ..StoreOptions::default() };
    let mut store = Store::open(media, region, options).unwrap();
    let disk = store.create_disk("real", 96 << 20, Durability::Strict, Provision::Thin).unwrap();
    let mut rig = Rig::over(store, pages, Options::default());
    rig.server.set_exports(vec![ExportedDisk {
        disk,
        name: "real".to_string(),
        description: String::new(),
        read_only: false,
    }]);
    rig.rest_polls = 20;
    rig
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
