//! A pool with a rich history as a run of bytes, what every block of it must read as, and copies of
//! it to be damaged, checked and opened.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::OnceLock;

use bowline_arena::{Arena, Memory, SharedPages};
use bowline_store::{
    ArenaRegion, BlockState, CheckOptions, CheckReport, CheckVerdict, Completion, CreateOptions,
    DiskId, Durability, Event, Io, IoId, Lba, Media, MediumError, Micros, Payload, PoolId,
    PoolState, Provision, Refused, Store, StoreError, StoreOptions, Ticket, check, create,
};

pub const BLOCK: usize = 4096;
/// The seed of all checksums.
pub const SALT: u64 = 99;
pub const SLOT_BYTES: u64 = 128 << 10;
const SLOTS: u64 = 64;
/// Slots the pool gets at last, so that its log goes on for a while without a checkpoint.
const SLOTS_MORE: u64 = 40;
const FIRST_SLOT_AT: u64 = 1 << 20;
/// Blocks of the last writes: whether they are lost with the end of the log cannot always be told.
pub const TAIL: std::ops::Range<u64> = 900..978;

/// A medium in memory that completes at once and reports what does not exist as unreadable.
pub struct Plain {
    pub bytes: Rc<RefCell<Vec<u8>>>,
    memory: Rc<Memory>,
    done: VecDeque<Completion>,
    is_read_only: bool,
    /// Writes neither land nor come back: they are under way.
    pub is_stuck: Rc<Cell<bool>>,
    /// What is under way.
    pub under_way: UnderWay,
    /// Writes below this place fail.
    pub refused_below: u64,
    /// Byte ranges the medium cannot read.
    pub unreadable: Unreadable,
    /// Where zeros were asked for ahead of the log, and how many bytes.
    pub zeroed: Zeroed,
}

type Zeroed = Rc<RefCell<Vec<(u64, u64)>>>;
type UnderWay = Rc<RefCell<Vec<(u64, Vec<u8>)>>>;
type Unreadable = Rc<RefCell<Vec<std::ops::Range<u64>>>>;

impl Plain {
    fn failed(at: u64) -> Result<(), MediumError> {
        Err(MediumError::System { call: format!("transfer at {at}"), code: 5 })
    }

    fn run(&mut self, io: &Io) -> Result<(), MediumError> {
        let mut bytes = self.bytes.borrow_mut();
        match io {
            Io::Read { at, into } => {
                let (from, to) = (*at as usize, *at as usize + into.bytes as usize);
                let is_bad = |bad: &std::ops::Range<u64>| bad.start < to as u64 && *at < bad.end;
                if to > bytes.len() || self.unreadable.borrow().iter().any(is_bad) {
                    return Plain::failed(*at);
                }
                self.memory.land(*into, &bytes[from..to]);
            }
            Io::Write { at, from } => {
                assert!(!self.is_read_only, "a write at {at} where only reads are allowed");
                if *at < self.refused_below {
                    return Plain::failed(*at);
                }
                let mut to = *at as usize;
                for part in from {
                    let mut taken = Vec::new();
                    self.memory.fetch(*part, &mut taken);
                    if to + taken.len() > bytes.len() {
                        return Plain::failed(*at);
                    }
                    bytes[to..to + taken.len()].copy_from_slice(&taken);
                    to += taken.len();
                }
                // A sector that is written anew can be read again.
                let is_written =
                    |bad: &mut std::ops::Range<u64>| *at <= bad.start && bad.end <= to as u64;
                self.unreadable.borrow_mut().retain_mut(|bad| !is_written(bad));
            }
            Io::Allocate { at, bytes, zeroed: true } => {
                self.zeroed.borrow_mut().push((*at, *bytes));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Media for Plain {
    fn bytes_total(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        if self.is_stuck.get()
            && let Io::Write { at, from } = &io
        {
            let mut bytes = Vec::new();
            from.iter().for_each(|part| self.memory.fetch(*part, &mut bytes));
            self.under_way.borrow_mut().push((*at, bytes));
            return;
        }
        let result = self.run(&io);
        self.done.push_back(Completion { id, result });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        if self.done.is_empty() { Err(MediumError::Died) } else { Ok(()) }
    }
}

pub struct Random(pub u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}

/// The content of a block: a write's number, spread over it so that no part looks like another's.
pub fn content(tag: u64) -> Vec<u8> {
    let mut random = Random::new(tag);
    let mut block: Vec<u8> = (0..BLOCK / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    block[..8].copy_from_slice(&tag.to_le_bytes());
    block
}

/// Everything a block may ever have read as, oldest first; 0 stands for zeros.
pub type Model = BTreeMap<(u32, u64), Vec<u64>>;

/// A pool as bytes, and what it holds.
#[derive(Clone)]
pub struct Image {
    pub bytes: Vec<u8>,
    pub model: Model,
    /// The bytes at earlier times.
    pub earlier: Vec<Vec<u8>>,
}

/// A pool that is open.
pub struct World {
    pub store: Store<Plain>,
    pub bytes: Rc<RefCell<Vec<u8>>>,
    pub memory: Rc<Memory>,
    pub pages: SharedPages,
    pub is_stuck: Rc<Cell<bool>>,
    pub under_way: UnderWay,
    pub unreadable: Unreadable,
    pub zeroed: Zeroed,
    pub now: u64,
}

fn arena() -> Arena {
    Arena::private(64 << 10, 6 << 20)
}

fn plain(bytes: &Rc<RefCell<Vec<u8>>>, arena: &Arena) -> Plain {
    Plain {
        bytes: bytes.clone(),
        memory: arena.memory.clone(),
        done: VecDeque::new(),
        is_read_only: false,
        is_stuck: Rc::default(),
        under_way: Rc::default(),
        refused_below: 0,
        unreadable: Rc::default(),
        zeroed: Rc::default(),
    }
}

pub fn options(boot: u128) -> StoreOptions {
    StoreOptions {
        delta_bytes: 1 << 20,
        map_frames: 32,
        checkpoint_log_bytes: Some(3 << 20),
        boot,
        ..StoreOptions::default()
    }
}

pub fn format_with(slots: u64, slot_bytes: u64) -> Rc<RefCell<Vec<u8>>> {
    let bytes = Rc::new(RefCell::new(vec![0; (FIRST_SLOT_AT + slots * slot_bytes) as usize]));
    let arena = arena();
    let made = CreateOptions { pool: PoolId(7), salt: SALT, slot_bytes, now_seconds: 0 };
    create(&mut plain(&bytes, &arena), &arena.pages, &made).unwrap();
    bytes
}

pub fn open_with(
    bytes: Rc<RefCell<Vec<u8>>>,
    unreadable: &[std::ops::Range<u64>],
    options: StoreOptions,
) -> Result<World, StoreError> {
    open_on(arena(), true, bytes, unreadable, options)
}

/// Opens in the memory that a world left behind when it was killed.
pub fn adopt(world: World, boot: u128) -> World {
    let World { store, bytes, memory, pages, .. } = world;
    drop((store, pages));
    let arena = Arena::adopt_private(memory.successor()).unwrap();
    open_on(arena, false, bytes, &[], options(boot)).unwrap()
}

/// As [`adopt`], on a medium that takes no superblock: the recovery fails at its last step.
pub fn adopt_in_vain(world: World, boot: u128) -> Rc<RefCell<Vec<u8>>> {
    let World { store, bytes, memory, pages, .. } = world;
    drop((store, pages));
    let arena = Arena::adopt_private(memory.successor()).unwrap();
    let mut media = plain(&bytes, &arena);
    media.refused_below = FIRST_SLOT_AT;
    let Arena { control, pages, .. } = arena;
    let region = ArenaRegion { control, index: None, pages, is_fresh: false };
    assert!(Store::open(media, region, options(boot)).is_err());
    bytes
}

fn open_on(
    arena: Arena,
    is_fresh: bool,
    bytes: Rc<RefCell<Vec<u8>>>,
    unreadable: &[std::ops::Range<u64>],
    options: StoreOptions,
) -> Result<World, StoreError> {
    let media = plain(&bytes, &arena);
    media.unreadable.borrow_mut().extend_from_slice(unreadable);
    let (is_stuck, unreadable) = (media.is_stuck.clone(), media.unreadable.clone());
    let (under_way, zeroed) = (media.under_way.clone(), media.zeroed.clone());
    let Arena { control, pages, memory, .. } = arena;
    let region = ArenaRegion { control, index: None, pages: pages.clone(), is_fresh };
    let store = Store::open(media, region, options)?;
    Ok(World { store, bytes, memory, pages, is_stuck, under_way, unreadable, zeroed, now: 0 })
}

pub fn open(bytes: Rc<RefCell<Vec<u8>>>, boot: u128) -> Result<World, StoreError> {
    open_with(bytes, &[], options(boot))
}

/// Checks bytes; the medium takes no write.
pub fn check_bytes(
    bytes: &Rc<RefCell<Vec<u8>>>,
    unreadable: &[std::ops::Range<u64>],
    places: bool,
) -> CheckReport {
    let arena = arena();
    let mut media = plain(bytes, &arena);
    media.is_read_only = true;
    media.unreadable.borrow_mut().extend_from_slice(unreadable);
    check(&mut media, &arena.pages, CheckOptions { places, ..CheckOptions::default() }).unwrap()
}

pub fn repair(bytes: &Rc<RefCell<Vec<u8>>>, report: &CheckReport) -> Result<(), StoreError> {
    let arena = arena();
    let media = plain(bytes, &arena);
    let Arena { control, pages, .. } = arena;
    let region = ArenaRegion { control, index: None, pages, is_fresh: true };
    bowline_store::repair(media, region, &report.repairs, options(4711))
}

impl World {
    pub fn poll(&mut self) {
        for _ in 0..20_000 {
            self.now += 100;
            if !self.store.poll(Micros(self.now)) {
                return;
            }
        }
        panic!("the store never comes to rest");
    }

    pub fn retry<T>(&mut self, mut what: impl FnMut(&mut World) -> Result<T, Refused>) -> T {
        for _ in 0..50 {
            match what(self) {
                Ok(done) => return done,
                Err(Refused::Busy) => self.poll(),
                Err(other) => panic!("{other}: {:?}", self.store.status()),
            }
        }
        panic!("busy for ever: {:?}", self.store.status());
    }

    pub fn write(&mut self, disk: DiskId, lba: u64, data: &[u8]) {
        self.retry(|world| world.store.write(disk, Lba(lba), &mut Payload::Copied(&[data])));
    }

    pub fn flush(&mut self) {
        self.store.flush(Ticket(9));
        for _ in 0..100 {
            self.poll();
            while let Some(event) = self.store.next_event() {
                if let Event::Flushed { result, .. } = event {
                    return result.unwrap();
                }
            }
        }
        panic!("no answer to a flush");
    }

    /// Leaves the pool alone long enough that it writes down what is durable.
    pub fn idle(&mut self) {
        self.now += 2_000_000;
        self.poll();
    }

    /// A block, or that it cannot be read.
    pub fn read(&mut self, disk: DiskId, lba: u64) -> Result<Vec<u8>, String> {
        let span = self.pages.borrow_mut().take(1).unwrap();
        self.store.read(Ticket(1), disk, Lba(lba), span);
        for _ in 0..100 {
            while let Some(event) = self.store.next_event() {
                if let Event::Read { span, result, .. } = event {
                    let bytes = self.memory.slice(&span).to_vec();
                    self.pages.borrow_mut().give(span);
                    return result.map(|()| bytes).map_err(|error| error.to_string());
                }
            }
            self.poll();
        }
        panic!("a read never ends");
    }
}

/// What a block is said to hold.
pub fn status_of(world: &mut World, disk: DiskId, lba: u64) -> BlockState {
    world.store.block_status(Ticket(5), disk, Lba(lba), 1, 1);
    for _ in 0..50 {
        while let Some(event) = world.store.next_event() {
            if let Event::Status { result, .. } = event {
                return result.unwrap()[0].state;
            }
        }
        world.poll();
    }
    panic!("no answer");
}

/// Which write a block holds; 0 if it is zeros.
pub fn tag_of(block: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&block[..8]);
    let tag = u64::from_le_bytes(first);
    let is_right = if tag == 0 { block.iter().all(|b| *b == 0) } else { block == content(tag) };
    assert!(is_right, "a block that nobody wrote: {:02x?}", &block[..32]);
    tag
}

/// Writes, discards, zeroes, flushes and starts anew, with a model beside it.
pub struct History {
    pub world: World,
    pub model: Model,
    next: u64,
    boot: u128,
    compacted: u64,
}

impl History {
    pub fn new(slots: u64) -> History {
        History::of(open(format_with(slots, SLOT_BYTES), 1).unwrap())
    }

    /// A history of a pool that was just made.
    pub fn of(world: World) -> History {
        History { world, model: Model::new(), next: 0, boot: 1, compacted: 0 }
    }

    pub fn disk(&mut self, name: &str, bytes: u64) -> DiskId {
        self.world.store.create_disk(name, bytes, Durability::Strict, Provision::Thin).unwrap()
    }

    pub fn write(&mut self, disk: DiskId, lba: u64, blocks: u64) {
        let mut data = Vec::new();
        for lba in lba..lba + blocks {
            self.next += 1;
            data.extend(content(self.next));
            self.model.entry((disk.0, lba)).or_default().push(self.next);
        }
        self.world.write(disk, lba, &data);
    }

    pub fn clear(&mut self, disk: DiskId, lba: u64, blocks: u64, keep: bool) {
        for (_, tags) in self.model.range_mut((disk.0, lba)..(disk.0, lba + blocks)) {
            tags.push(0);
        }
        self.world.retry(|world| {
            if keep {
                world.store.zero(disk, Lba(lba), blocks)
            } else {
                world.store.discard(disk, Lba(lba), blocks)
            }
        });
    }

    pub fn checkpoint(&mut self) {
        self.world.store.want_checkpoint();
        self.world.poll();
    }

    /// A power cut of a medium that keeps everything, and another start.
    pub fn restart(mut self) -> History {
        self.world.flush();
        self.boot += 1;
        self.compacted += self.world.store.status().counters.slots_compacted;
        let bytes = self.world.bytes.clone();
        drop(self.world);
        History { world: open(bytes, self.boot).unwrap(), ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        self.world.bytes.borrow().clone()
    }

    pub fn image(&self) -> Image {
        let bytes = self.bytes();
        Image { bytes, model: self.model.clone(), earlier: Vec::new() }
    }
}

/// Three disks, one of them high, one destroyed; overwritten until compaction has moved most of it;
/// closed, cut off and started anew in between; with a log since the last checkpoint that spans
/// several segments, and several segments of it that hold nothing but the last writes.
fn build() -> Image {
    let mut history = History::new(SLOTS);
    let mut random = Random::new(3);
    let (a, b) = (history.disk("a", 64 << 20), history.disk("b", 1 << 30));
    let gone = history.disk("gone", 4 << 20);
    let mut earlier = Vec::new();
    history.write(gone, 0, 40);
    for round in 0..14u64 {
        for _ in 0..90 {
            let blocks = 1 + random.below(6);
            match random.below(10) {
                0..7 => history.write(a, random.below(800 - blocks), blocks),
                7 => history.write(b, random.below(12) * 20_000 + random.below(12), 1),
                8 => history.clear(a, random.below(700), 1 + random.below(30), round % 2 == 0),
                _ => history.clear(b, random.below(9) * 20_000, 20_000, false),
            }
        }
        match round {
            4 => {
                history.world.store.destroy_disk(gone).unwrap();
                history.model.retain(|(disk, _), _| *disk != gone.0);
            }
            3 | 6 | 9 => history = history.restart(),
            _ => history.checkpoint(),
        }
        earlier.push(history.bytes());
    }
    let compacted = history.world.store.status().counters.slots_compacted + history.compacted;
    assert!(compacted > 20, "only {compacted} slots were compacted");
    history.world.flush();
    let bytes = (FIRST_SLOT_AT + (SLOTS + SLOTS_MORE) * SLOT_BYTES) as usize;
    history.world.bytes.borrow_mut().resize(bytes, 0);
    history.checkpoint();
    history.world.store.grow().unwrap();
    for _ in 0..60 {
        history.write(a, random.below(790), 1 + random.below(4));
        history.write(b, random.below(12) * 20_000 + random.below(12), 1);
        if random.below(3) == 0 {
            history.world.flush();
        }
    }
    history.clear(a, 100, 90, false);
    earlier.push(history.bytes());
    for lba in TAIL {
        history.write(a, lba, 1);
        history.world.flush();
        if lba % 20 == 0 {
            earlier.push(history.bytes());
        }
    }
    history.world.idle();
    history.world.flush();
    Image { earlier, ..history.image() }
}

/// Where a slot begins and ends on the medium.
pub fn slot(index: usize) -> std::ops::Range<usize> {
    let at = FIRST_SLOT_AT as usize + index * SLOT_BYTES as usize;
    at..at + SLOT_BYTES as usize
}

pub fn slots() -> usize {
    (SLOTS + SLOTS_MORE) as usize
}

/// The pool most tests damage.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(build)
}

/// What came of a damaged copy.
#[derive(Debug, Default)]
pub struct Outcome {
    pub verdict: CheckVerdict,
    pub is_open: bool,
    pub is_healthy: bool,
    pub errors: usize,
}

/// Checks and opens a damaged copy, reads `share` of its blocks, and holds it to what was written:
/// - no panic, and no block that was never written there;
/// - a pool that serves gives the last flushed content or an error;
/// - a pool that opens for reading only gives what was there at some time, or an error;
/// - the check says damaged exactly if something is lost, and lists what.
pub fn judge(image: &Image, bytes: Vec<u8>, share: u64) -> Outcome {
    judge_unreadable(image, bytes, &[], share)
}

pub fn judge_unreadable(
    image: &Image,
    bytes: Vec<u8>,
    unreadable: &[std::ops::Range<u64>],
    share: u64,
) -> Outcome {
    let bytes = Rc::new(RefCell::new(bytes));
    let report = check_bytes(&bytes, unreadable, false);
    let mut outcome = Outcome { verdict: report.verdict, ..Outcome::default() };
    // What is said to be repairable can be repaired, and there is something to do about all else.
    let is_given_up = report.losses.iter().any(|loss| loss.is_given_up);
    let has_steps = !report.repairs.is_empty() || is_given_up;
    assert!(report.verdict != CheckVerdict::Repairable || has_steps, "{report:#?}");
    assert!(report.findings.iter().all(|found| !found.remedy.is_empty()), "{report:#?}");
    let is_bad = matches!(report.verdict, CheckVerdict::Damaged | CheckVerdict::NotAPool);
    let mut world = match open_with(bytes, unreadable, options(77)) {
        Ok(world) => world,
        Err(error) => {
            assert!(is_bad, "open says {error}, check says {:?}", report.verdict);
            return outcome;
        }
    };
    let state = world.store.status().state;
    outcome.is_open = true;
    outcome.is_healthy = state == PoolState::Healthy;
    assert!(outcome.is_healthy || is_bad, "open: {state:?}, check: {report:#?}");
    let lost: BTreeSet<(u32, u64)> = report
        .losses
        .iter()
        .flat_map(|loss| (0..loss.blocks).map(|at| (loss.disk.0, loss.lba.0 + at)))
        .filter(|key| image.model.contains_key(key))
        .collect();
    for (at, ((disk, lba), tags)) in image.model.iter().enumerate() {
        if !(at as u64).is_multiple_of(share) && !lost.contains(&(*disk, *lba)) {
            continue;
        }
        let found = match world.read(DiskId(*disk), *lba) {
            Ok(block) => tag_of(&block),
            Err(error) => {
                outcome.errors += 1;
                assert!(is_bad, "disk {disk} block {lba}: {error}, check: {report:#?}");
                let is_listed = lost.contains(&(*disk, *lba));
                assert!(is_listed, "disk {disk} block {lba}: {error}, not in {report:#?}");
                continue;
            }
        };
        let is_tail = *disk == 1 && TAIL.contains(lba);
        let is_last = tags.last() == Some(&found);
        let was_ever = found == 0 || tags.contains(&found);
        assert!(was_ever, "disk {disk} block {lba}: write {found} was never there");
        let is_right = is_last || is_tail || !outcome.is_healthy;
        assert!(is_right, "disk {disk} block {lba}: {found} of {tags:?} from a healthy pool");
        let is_lost = outcome.is_healthy && lost.contains(&(*disk, *lba));
        assert!(!is_lost, "disk {disk} block {lba} reads well, but {report:#?}");
    }
    outcome
}
