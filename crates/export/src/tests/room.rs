//! The longest requests over a real store, with no more memory than a server has.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Pages};
use bowline_store::{
    ArenaRegion, Completion, CreateOptions, Durability, Io, IoId, Media, MediumError, PoolId,
    Provision, Store, StoreOptions, create,
};
use bowline_wire::values::command;

use super::client::{connect, one, parse, read, request, write};
use super::rig::Rig;
use super::store::VecMedia;
use crate::{ExportedDisk, Options};

const JUMBO: u32 = 32 << 20;
const DISK_BYTES: u64 = 96 << 20;
/// What a server divides: by default, and the least it can be given.
const BUFFER_BYTES: [u64; 2] = [48 << 20, 46 << 20];

/// A medium that takes its time with reads.
struct Slow {
    inner: VecMedia,
    reads: VecDeque<(u64, IoId, Io)>,
    delay_polls: u64,
    polls: u64,
}

impl Slow {
    fn begin_due(&mut self, now: u64) {
        while self.reads.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, id, io)) = self.reads.pop_front() else { return };
            self.inner.submit(id, io);
        }
    }
}

impl Media for Slow {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        match io {
            Io::Read { .. } => self.reads.push_back((self.polls + self.delay_polls, id, io)),
            _ => self.inner.submit(id, io),
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        self.polls += 1;
        self.begin_due(self.polls);
        self.inner.complete()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        self.begin_due(u64::MAX);
        self.inner.wait()
    }
}

/// A store as a server opens it, with so many bytes of buffers.
fn served(buffer_bytes: u64, delay_polls: u64) -> Rig<Store<Slow>> {
    // The store's control area and the records of sessions have regions of their own in an arena.
    let record_bytes = u64::from(Options::default().record_bytes(buffer_bytes + (8 << 20)));
    let memory = Rc::new(Memory::private(buffer_bytes + (1 << 20) + record_bytes));
    let mut pages = Pages::whole(Rc::clone(&memory));
    let control = pages.take(256).unwrap();
    assert_eq!(u64::from(pages.free() * PAGE_BYTES), buffer_bytes + record_bytes);
    let pages = Rc::new(RefCell::new(pages));
    let inner = VecMedia {
        memory,
        bytes: Rc::new(RefCell::new(vec![0; 512 << 20])),
        done: VecDeque::new(),
    };
    let mut media = Slow { inner, reads: VecDeque::new(), delay_polls, polls: 0 };
    let options = CreateOptions { pool: PoolId(7), salt: 7, slot_bytes: 4 << 20, now_seconds: 0 };
    create(&mut media, &pages, &options).unwrap();
    let region = ArenaRegion { control, index: None, pages: Rc::clone(&pages), is_fresh: true };
    let write_bytes_max = u64::from(JUMBO + 2 * PAGE_BYTES);
    let options = StoreOptions { map_frames: 256, write_bytes_max, ..StoreOptions::default() };
    let mut store = Store::open(media, region, options).unwrap();
    let made = store.create_disk("real", DISK_BYTES, Durability::Strict, Provision::Thin);
    let disk = made.unwrap();
    let mut rig = Rig::over(store, pages, Options::default());
    let name = "real".to_string();
    rig.offer(vec![ExportedDisk { disk, name, description: String::new(), read_only: false }]);
    rig.rest_polls = 20 + 2 * delay_polls;
    rig
}

#[test]
fn the_longest_write_that_is_not_aligned_goes_through() {
    for buffer_bytes in BUFFER_BYTES {
        let mut rig = served(buffer_bytes, 0);
        let id = connect(&mut rig, "real", true);
        let before = rig.random.bytes(DISK_BYTES as usize);
        for at in (0..DISK_BYTES).step_by(8 << 20) {
            let data = before[at as usize..][..8 << 20].to_vec();
            assert_eq!(write(&mut rig, id, at, &data).error, None);
        }
        for offset in [512, 4096 + 3584, (40 << 20) + 2048] {
            let data = rig.random.bytes(JUMBO as usize);
            rig.send(id, &request(command::WRITE, 0, 1, offset, JUMBO));
            rig.send(id, &data);
            rig.settle();
            let incoming = std::mem::take(&mut rig.at(id).incoming);
            let outcomes = parse(&incoming, &Default::default());
            let outcome = outcomes.get(&1).unwrap_or_else(|| panic!("busy for ever at {offset}"));
            assert_eq!(outcome.error, None);
            assert!(read(&mut rig, id, offset, JUMBO).bytes() == data);
        }
        // What lies around them is as it was.
        assert!(read(&mut rig, id, 0, 512).bytes() == before[..512]);
        let behind = (40 << 20) + 2048 + JUMBO as usize;
        let kept = read(&mut rig, id, behind as u64, 4096).bytes();
        assert!(kept == before[behind..][..4096]);
        assert_eq!(one(&mut rig, id, &request(command::FLUSH, 0, 1, 0, 0)).error, None);
    }
}

#[test]
fn many_long_writes_that_are_not_aligned_go_through() {
    for buffer_bytes in BUFFER_BYTES {
        let mut rig = served(buffer_bytes, 100);
        let ids: Vec<_> = (0..24).map(|_| connect(&mut rig, "real", true)).collect();
        let old = vec![1; 8 << 20];
        for at in (0..DISK_BYTES).step_by(8 << 20) {
            assert_eq!(write(&mut rig, ids[0], at, &old).error, None);
        }
        assert_eq!(one(&mut rig, ids[0], &request(command::FLUSH, 0, 1, 0, 0)).error, None);
        let data = rig.random.bytes(1 << 20);
        for (index, id) in ids.iter().enumerate() {
            for turn in 0..3u64 {
                let offset = (index as u64 * 3 + turn) * ((1 << 20) + 4096) + 512;
                rig.send(*id, &request(command::WRITE, 0, turn, offset, 1 << 20));
                rig.send(*id, &data);
            }
        }
        rig.settle();
        for id in &ids {
            let incoming = std::mem::take(&mut rig.at(*id).incoming);
            let outcomes = parse(&incoming, &Default::default());
            assert_eq!(outcomes.len(), 3, "busy for ever");
            assert!(outcomes.values().all(|one| one.done && one.error.is_none()));
        }
    }
}

#[test]
fn writes_that_fill_every_lane_are_admitted() {
    for buffer_bytes in BUFFER_BYTES {
        let mut rig = served(buffer_bytes, 0);
        let ids: Vec<_> = (0..46).map(|_| connect(&mut rig, "real", true)).collect();
        let (jumbo, others) = ids.split_first().unwrap();
        let data = rig.random.bytes(JUMBO as usize);
        let bytes_of = |at: usize| if at < 3 { (1 << 20) - 4096 } else { 4096 };
        // All but the last byte of each: whatever may be held is held.
        for (at, id) in others.iter().enumerate() {
            let bytes = bytes_of(at);
            rig.send(*id, &request(command::WRITE, 0, 1, (at as u64) << 20, bytes));
            rig.send(*id, &data[..bytes as usize - 1]);
        }
        rig.send(*jumbo, &request(command::WRITE, 0, 1, 60 << 20, JUMBO));
        rig.send(*jumbo, &data[..JUMBO as usize - 1]);
        rig.settle();
        assert!(rig.server.held_bytes() > 38 << 20, "{}", rig.server.held_bytes());
        for (at, id) in others.iter().enumerate() {
            rig.send(*id, &data[bytes_of(at) as usize - 1..][..1]);
        }
        rig.send(*jumbo, &data[JUMBO as usize - 1..]);
        rig.settle();
        for id in &ids {
            let incoming = std::mem::take(&mut rig.at(*id).incoming);
            let outcomes = parse(&incoming, &Default::default());
            assert_eq!(outcomes.get(&1).map(|one| one.error), Some(None), "busy for ever");
        }
        assert!(read(&mut rig, *jumbo, 60 << 20, JUMBO).bytes() == data);
    }
}
