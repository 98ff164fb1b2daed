//! The server is dropped, with all that the disks had in memory, and a successor goes on from the
//! records: between any two polls, or between any two stores to the arena. The client on the other
//! side of the sockets sees one stream: each reply once, the right data, and each change was
//! admitted once.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bowline_arena::{Cut, SharedPages};
use bowline_disk::Volume;
use bowline_wire::values::{command, command_flag};

use super::Random;
use super::client::{opening, parse, reads_of, request, take_opening};
use super::rig::{DISK, Rig};
use super::volume::MapVolume;
use crate::records::Broken;
use crate::{Options, SessionId};

/// The part of the disk that a client has for itself, and its slots: whoever writes one has it for
/// itself until the reply.
const AREA: u64 = 8 << 20;
const SLOT: u64 = 512 << 10;
const SLOTS: usize = 16;

/// When the process dies.
#[derive(Clone, Copy)]
pub enum Death {
    /// After a turn of the loop, one time in so many.
    Turn(u64),
    /// After a store, at most so many after the last death.
    Store(u64),
    /// Once, after so many stores.
    Once(u64),
}

/// What a client has asked and not been told yet.
struct Asked {
    slot: usize,
    /// What the slot holds once it is told.
    after: Option<Vec<u8>>,
    /// What it must read.
    reads: Option<Vec<u8>>,
    is_change: bool,
}

/// One client: sends a batch of requests, checks the replies, sends the next.
pub struct Client {
    pub id: SessionId,
    base: u64,
    slots: Vec<Vec<u8>>,
    structured: bool,
    opened: bool,
    asked: BTreeMap<u64, Asked>,
    stream: Vec<u8>,
    cookie: u64,
    batches: u64,
    pub changes: u64,
    long: bool,
}

/// How long requests get, and how many.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: u64,
    pub batches: u64,
    pub requests: u64,
    pub long: bool,
}

impl Client {
    fn new(id: SessionId, number: u64, load: Load) -> Client {
        Client {
            id,
            base: number * AREA,
            slots: vec![vec![0; SLOT as usize]; SLOTS],
            structured: number % 2 == 1,
            opened: false,
            asked: BTreeMap::new(),
            stream: Vec::new(),
            // The same names for different requests of different sessions.
            cookie: 0,
            batches: load.batches,
            changes: 0,
            long: load.long,
        }
    }

    /// What the disk must hold, and where.
    pub fn contents(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let place = |slot: usize| self.base + slot as u64 * SLOT;
        self.slots.iter().enumerate().map(move |(slot, bytes)| (place(slot), &bytes[..]))
    }

    /// Looks at what came. Returns bytes to send, if it is this client's turn.
    fn step(&mut self, incoming: &mut Vec<u8>, random: &mut Random, requests: u64) -> Vec<u8> {
        if !self.opened {
            let expected = if self.structured { 6 } else { 3 };
            let mut copy = incoming.clone();
            if copy.len() < 18 || take_opening(&mut copy).len() < expected {
                return Vec::new();
            }
            *incoming = copy;
            self.opened = true;
        }
        if !self.asked.is_empty() && !self.take_replies(incoming) {
            return Vec::new();
        }
        if self.batches == 0 {
            return Vec::new();
        }
        self.batches -= 1;
        self.batch(random, requests)
    }

    /// Whether all replies are here; they are checked then.
    fn take_replies(&mut self, incoming: &mut Vec<u8>) -> bool {
        let outcomes = parse(incoming, &reads_of(&self.stream));
        // The data of a simple reply may be behind its header.
        let is_done = |(cookie, asked): (&u64, &Asked)| {
            let bytes = asked.reads.as_ref().map_or(0, Vec::len);
            outcomes.get(cookie).is_some_and(|one| one.done && one.bytes().len() >= bytes)
        };
        if !self.asked.iter().all(is_done) {
            return false;
        }
        assert_eq!(outcomes.len(), self.asked.len(), "a reply to nothing");
        incoming.clear();
        for (cookie, asked) in std::mem::take(&mut self.asked) {
            let outcome = &outcomes[&cookie];
            assert_eq!(outcome.error, None, "{cookie}: {}", outcome.message);
            if let Some(reads) = asked.reads {
                let got = outcome.bytes();
                let wrong = got.iter().zip(&reads).position(|(got, expected)| got != expected);
                let (bytes, slot) = (got.len(), asked.slot);
                assert!(
                    got == reads,
                    "request {cookie} read {bytes} of {} bytes, slot {slot}, wrong from {wrong:?}",
                    reads.len()
                );
            }
            if let Some(after) = asked.after {
                self.slots[asked.slot] = after;
            }
            self.changes += u64::from(asked.is_change);
        }
        true
    }

    fn batch(&mut self, random: &mut Random, requests: u64) -> Vec<u8> {
        self.stream.clear();
        let mut free: Vec<usize> = (0..SLOTS).collect();
        for _ in 0..requests {
            let slot = free.swap_remove(random.below(free.len() as u64) as usize);
            self.cookie += 1;
            let (bytes, asked) = self.one(random, slot);
            self.stream.extend(bytes);
            self.asked.insert(self.cookie, asked);
        }
        self.stream.clone()
    }

    fn one(&self, random: &mut Random, slot: usize) -> (Vec<u8>, Asked) {
        let old = &self.slots[slot];
        let sizes: &[u64] = if self.long {
            &[512, 4096, 8192, 40_960, 66_048, 131_072, 300_032]
        } else {
            &[512, 4096, 4096, 8192, 4608]
        };
        let bytes = sizes[random.below(sizes.len() as u64) as usize];
        let unit = if random.below(3) == 0 { 512 } else { 4096 };
        let at = random.below(8) * unit;
        let offset = self.base + slot as u64 * SLOT + at;
        let range = at as usize..(at + bytes) as usize;
        let fua = if random.below(5) == 0 { command_flag::FUA } else { 0 };
        let ask = |kind, flags| request(kind, flags, self.cookie, offset, bytes as u32);
        let quiet = Asked { slot, after: None, reads: None, is_change: false };
        match random.below(12) {
            0..6 => {
                let data = random.bytes(bytes as usize);
                let mut after = old.clone();
                after[range].copy_from_slice(&data);
                let stream = [ask(command::WRITE, fua), data].concat();
                (stream, Asked { after: Some(after), is_change: true, ..quiet })
            }
            6..9 => (ask(command::READ, 0), Asked { reads: Some(old[range].to_vec()), ..quiet }),
            9 => (request(command::FLUSH, 0, self.cookie, 0, 0), quiet),
            10 => {
                let mut after = old.clone();
                after[range].fill(0);
                let stream = ask(command::WRITE_ZEROES, fua | command_flag::NO_HOLE);
                (stream, Asked { after: Some(after), is_change: true, ..quiet })
            }
            _ => {
                // Whole blocks only: what a discard leaves of others is not promised.
                let (first, bytes) = (at.next_multiple_of(4096), bytes.next_multiple_of(4096));
                let mut after = old.clone();
                after[first as usize..(first + bytes) as usize].fill(0);
                let offset = self.base + slot as u64 * SLOT + first;
                let stream = request(command::TRIM, fua, self.cookie, offset, bytes as u32);
                (stream, Asked { after: Some(after), is_change: true, ..quiet })
            }
        }
    }
}

/// What a run has seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub deaths: u64,
}

/// Runs clients to their end over a rig that dies. Says what went wrong first.
pub fn live<V: Volume>(
    mut rig: Rig<V>,
    load: Load,
    death: Death,
    mut revive: impl FnMut(V, &SharedPages) -> V,
) -> Result<(Rig<V>, Vec<Client>, Seen), String> {
    let mut random = Random(rig.random.next());
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..load.clients {
        let client = Client::new(rig.accept(), number, load);
        clients.push(client);
        let client = &clients[number as usize];
        rig.send(client.id, &opening("one", client.structured));
    }
    let mut seen = Seen::default();
    let arm = |rig: &Rig<V>, random: &mut Random, first: bool| match death {
        Death::Store(most) => rig.memory.cut_after(Some(1 + random.below(most))),
        Death::Once(stores) if first => rig.memory.cut_after(Some(stores)),
        _ => {}
    };
    arm(&rig, &mut random, true);
    let (mut quiet, mut turns) = (0, 0);
    while quiet <= rig.rest_polls {
        turns += 1;
        if turns > 60_000 {
            return Err("it never comes to an end".to_string());
        }
        let turned = catch_unwind(AssertUnwindSafe(|| rig.turn()));
        let dies = match turned {
            Ok(moved) => {
                quiet = if moved { 0 } else { quiet + 1 };
                matches!(death, Death::Turn(one_in) if random.below(one_in) == 0)
            }
            Err(cause) if cause.is::<Cut>() => true,
            Err(cause) => return Err(panic_text(cause.as_ref())),
        };
        let checked = catch_unwind(AssertUnwindSafe(|| {
            for client in &mut clients {
                let mut incoming = std::mem::take(&mut rig.at(client.id).incoming);
                let stream = client.step(&mut incoming, &mut random, load.requests);
                rig.at(client.id).incoming = incoming;
                if !stream.is_empty() {
                    quiet = 0;
                    rig.send(client.id, &stream);
                }
            }
        }));
        checked.map_err(|cause| panic_text(cause.as_ref()))?;
        if dies {
            quiet = 0;
            // One successor in four is cut off while it takes over.
            let cut = matches!(death, Death::Store(_)) && random.below(4) == 0;
            let cut = cut.then(|| 1 + random.below(40));
            let adopted = catch_unwind(AssertUnwindSafe(|| rig.die(&mut revive, cut)));
            rig = adopted
                .map_err(|cause| panic_text(cause.as_ref()))?
                .map_err(|error| error.to_string())?;
            seen.deaths = rig.deaths;
            arm(&rig, &mut random, false);
        }
    }
    rig.memory.cut_after(None);
    for client in &clients {
        if client.batches > 0 || !client.asked.is_empty() {
            let (id, left) = (client.id, client.asked.keys());
            return Err(format!("{id:?} waits for {left:?}: {}", rig.describe(client.id)));
        }
    }
    Ok((rig, clients, seen))
}

fn panic_text(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().cloned();
    text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

fn options() -> Options {
    Options { sessions_max: 8, requests_max: 64, attempts_max: u8::MAX, ..Options::default() }
}

fn rig(seed: u64, pages: u64, broken: Option<Broken>) -> Rig {
    let mut rig = Rig::new(pages, options());
    rig.random = Random(seed);
    rig.delay(seed % 4);
    rig.piece_bytes_max = [u64::MAX, 3000, 100_000, 700][seed as usize % 4];
    rig.disks.store_mut().busy_every = [0, 7, 0, 3][seed as usize / 4 % 4];
    rig.broken = broken;
    rig.server.break_records(broken);
    rig
}

/// A run over the volume of blocks, judged to the last block and change.
fn judge(rig: Rig, load: Load, death: Death) -> Result<Seen, String> {
    let (mut rig, clients, seen) = live(rig, load, death, |volume: MapVolume, pages| {
        volume.survive(SharedPages::clone(pages))
    })?;
    let changes: u64 = clients.iter().map(|client| client.changes).sum();
    let admitted = rig.disks.store().admitted_through().0;
    if admitted != changes {
        return Err(format!("{changes} changes were made {admitted} times"));
    }
    let content = catch_unwind(AssertUnwindSafe(|| {
        for client in &clients {
            for (offset, expected) in client.contents() {
                let content = rig.disks.store().content(DISK, offset, SLOT);
                assert!(content == expected, "other bytes from {offset} on");
            }
        }
    }));
    content.map_err(|cause| panic_text(cause.as_ref()))?;
    rig.pass(3_000_000);
    if !rig.is_clean() {
        return Err(format!("{} bytes are held by nobody", rig.server.held_bytes()));
    }
    Ok(seen)
}

const SMALL: Load = Load { clients: 3, batches: 4, requests: 8, long: false };
const LONG: Load = Load { clients: 2, batches: 3, requests: 6, long: true };

#[test]
fn nobody_notices_a_death_between_two_polls() {
    let mut deaths = 0;
    for seed in 0..16 {
        let seen = judge(rig(seed, 900, None), SMALL, Death::Turn(4));
        deaths += seen.unwrap_or_else(|error| panic!("seed {seed}: {error}")).deaths;
    }
    // The fourth of each four moves in small pieces, which takes long.
    for seed in [0, 1, 2, 4, 5, 6, 7] {
        let seen = judge(rig(seed, 2000, None), LONG, Death::Turn(6));
        deaths += seen.unwrap_or_else(|error| panic!("long, seed {seed}: {error}")).deaths;
    }
    assert!(deaths > 100, "{deaths} deaths");
}

#[test]
fn nobody_notices_a_death_between_two_stores() {
    let mut deaths = 0;
    for seed in 0..16 {
        let seen = judge(rig(seed, 900, None), SMALL, Death::Store(150));
        deaths += seen.unwrap_or_else(|error| panic!("seed {seed}: {error}")).deaths;
        let seen = judge(rig(seed, 2000, None), LONG, Death::Store(150));
        deaths += seen.unwrap_or_else(|error| panic!("long, seed {seed}: {error}")).deaths;
    }
    assert!(deaths > 500, "{deaths} deaths");
}

#[test]
fn every_prefix_of_the_stores_can_be_adopted() {
    for (seed, load) in [
        (4, Load { clients: 2, batches: 1, requests: 4, long: false }),
        (1, Load { clients: 1, batches: 1, requests: 3, long: true }),
    ] {
        let (mut stores, mut died) = (0, true);
        while died {
            stores += 1;
            let seen = judge(rig(seed, 900, None), load, Death::Once(stores));
            let seen = seen.unwrap_or_else(|error| panic!("cut after store {stores}: {error}"));
            died = seen.deaths > 0;
        }
        assert!(stores > 100, "{stores} stores");
    }
}

#[test]
fn what_is_broken_on_purpose_is_noticed() {
    for broken in [Broken::PublishBeforeContent, Broken::ForgetSend, Broken::ExecuteAgain] {
        let found = (0..40).find_map(|seed| {
            let death = Death::Store(60);
            judge(rig(seed, 900, Some(broken)), SMALL, death).err()
        });
        let found = found.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        assert!(!found.is_empty(), "{broken:?}");
    }
}
