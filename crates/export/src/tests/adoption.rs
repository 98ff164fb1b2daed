//! Single deaths at chosen places, and records that are none.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use bowline_arena::{Cut, Pages, SharedPages};
use bowline_wire::ErrorCode;
use bowline_wire::values::command;

use super::Random;
use super::client::{connect, one, opening, parse, read, request, take_opening, write};
use super::rig::{DISK, Rig};
use super::volume::MapVolume;
use crate::records::Broken;
use crate::{CloseCause, FoundSessions, Options};

fn revive(volume: MapVolume, pages: &SharedPages) -> MapVolume {
    volume.survive(SharedPages::clone(pages))
}

fn die(rig: Rig) -> Rig {
    rig.die(revive, None).unwrap()
}

#[test]
fn a_handshake_is_gone_on_with_after_every_byte() {
    for structured in [false, true] {
        let stream = [opening("one", structured), request(command::READ, 0, 9, 0, 512)].concat();
        for cut in 0..=stream.len() {
            let mut rig = Rig::new(200, Options { sessions_max: 4, ..Options::default() });
            let id = rig.accept();
            rig.send(id, &stream[..cut]);
            rig.settle();
            rig = die(rig);
            rig.send(id, &stream[cut..]);
            rig.settle();
            let expected = if structured { 6 } else { 3 };
            assert_eq!(take_opening(&mut rig.at(id).incoming).len(), expected, "after {cut}");
            let reads = BTreeMap::from([(9, (0, 512))]);
            let outcome = &parse(&rig.at(id).incoming, &reads)[&9];
            assert!(outcome.done && outcome.bytes() == [0; 512], "after {cut}");
        }
    }
}

#[test]
fn the_longest_requests_are_gone_on_with() {
    const JUMBO: u32 = 32 << 20;
    for (structured, at) in [(false, 0), (true, 8192)] {
        let mut rig = Rig::new(40 << 8, Options::default());
        rig.delay(2);
        rig.piece_bytes_max = 3 << 20;
        let id = connect(&mut rig, "one", structured);
        let data = rig.random.bytes(JUMBO as usize);
        rig.send(id, &request(command::WRITE, 0, 1, at, JUMBO));
        rig.send(id, &data);
        rig.send(id, &request(command::FLUSH, 0, 2, 0, 0));
        for _ in 0..16 {
            rig.turn();
            rig = die(rig);
        }
        rig.settle();
        let incoming = std::mem::take(&mut rig.at(id).incoming);
        let outcomes = parse(&incoming, &BTreeMap::new());
        assert!(outcomes[&1].done && outcomes[&1].error.is_none() && outcomes[&2].done);
        rig.send(id, &request(command::READ, 0, 3, at, JUMBO));
        for _ in 0..16 {
            rig.turn();
            rig = die(rig);
        }
        rig.settle();
        let reads = BTreeMap::from([(3, (at, JUMBO))]);
        let outcome = &parse(&rig.at(id).incoming, &reads)[&3];
        assert!(outcome.done && outcome.bytes() == data);
        rig.at(id).incoming.clear();
        rig.pass(2_000_000);
        assert!(rig.is_clean());
    }
}

#[test]
fn errors_and_good_byes_are_gone_on_with() {
    for turns in 0..12 {
        let mut rig = Rig::new(400, Options { sessions_max: 4, ..Options::default() });
        rig.delay(3);
        rig.disks.store_mut().bad.insert(3);
        let id = connect(&mut rig, "one", true);
        let other = connect(&mut rig, "frozen", false);
        rig.send(id, &request(command::READ, 0, 1, 3 * 4096, 4096));
        rig.send(id, &request(command::READ, 0, 2, u64::MAX - 511, 512));
        rig.send(id, &[request(command::WRITE, 0, 3, 3 * 4096 + 512, 512), vec![1; 512]].concat());
        rig.send(id, &request(command::DISC, 0, 4, 0, 0));
        rig.send(other, &[request(command::WRITE, 0, 5, 0, 70_000), vec![1; 70_000]].concat());
        rig.send(other, &request(command::READ, 0, 6, 0, 512));
        for _ in 0..turns {
            rig.turn();
            rig = die(rig);
        }
        rig.settle();
        let outcomes = parse(&rig.at(id).incoming, &BTreeMap::new());
        let errors: Vec<_> = outcomes.iter().map(|(cookie, one)| (*cookie, one.error)).collect();
        let io = Some(ErrorCode::Io);
        assert_eq!(errors, [(1, io), (2, Some(ErrorCode::Invalid)), (3, io)], "{turns} deaths");
        assert_eq!(rig.at(id).closed, Some(CloseCause::Client));
        let reads = BTreeMap::from([(6, (0, 512))]);
        let outcomes = parse(&rig.at(other).incoming, &reads);
        assert_eq!(outcomes[&5].error, Some(ErrorCode::NotPermitted));
        assert!(outcomes[&6].done);
        rig.at(other).reset = true;
        rig = die(rig);
        rig.settle();
        assert!(matches!(rig.at(other).closed, Some(CloseCause::Socket(104))));
        assert!(rig.is_clean() && rig.server.sessions_open() == 0);
    }
}

#[test]
fn those_who_wait_for_memory_are_served_by_the_successor() {
    let options = Options {
        buffer_bytes_max: u64::from(crate::session::BUFFER_BYTES) * 2,
        small_bytes_max: 2 << 20,
        ..Options::default()
    };
    let mut rig = Rig::new(6 << 8, options);
    rig.delay(2);
    rig.piece_bytes_max = 50_000;
    let data = rig.random.bytes(600_000);
    let ids: Vec<_> = (0..6).map(|_| rig.accept()).collect();
    for (index, id) in ids.iter().enumerate() {
        rig.send(*id, &opening("one", false));
        let offset = index as u64 * (4 << 20);
        rig.send(*id, &request(command::WRITE, 0, 1, offset, 600_000 / 512 * 512));
        rig.send(*id, &data[..600_000 / 512 * 512]);
        rig.send(*id, &request(command::READ, 0, 2, offset, 4096));
    }
    rig.at(ids[0]).deaf = true;
    for _ in 0..40 {
        rig.turn();
        rig = die(rig);
    }
    rig.at(ids[0]).deaf = false;
    rig.pass(3_000_000);
    for id in ids {
        take_opening(&mut rig.at(id).incoming);
        let reads = BTreeMap::from([(2, (0, 4096))]);
        let outcomes = parse(&rig.at(id).incoming, &reads);
        assert!(outcomes[&1].done && outcomes[&1].error.is_none());
        assert!(outcomes[&2].done);
    }
    assert!(rig.is_clean());
}

/// Turns until the process has died so often, each time taken over.
fn until_deaths(mut rig: Rig, deaths: u64) -> Rig {
    for _ in 0..200 {
        match catch_unwind(AssertUnwindSafe(|| rig.turn())) {
            Ok(_) => {}
            Err(cause) => {
                assert!(cause.is::<Cut>());
                rig = die(rig);
            }
        }
    }
    assert_eq!(rig.deaths, deaths);
    rig
}

#[test]
fn a_request_that_kills_two_processes_is_answered_by_an_error() {
    // Whole blocks are written where they are parsed, others when their old bytes are here.
    for (offset, bytes) in [(7 * 4096, 4096), (7 * 4096 + 512, 512), (7 * 4096, 70 * 4096)] {
        let mut rig = Rig::new(400, Options { sessions_max: 4, ..Options::default() });
        let id = connect(&mut rig, "one", true);
        let other = connect(&mut rig, "one", true);
        rig.disks.store_mut().deadly = Some(7);
        let payload = vec![1; bytes as usize];
        rig.send(id, &[request(command::WRITE, 0, 1, offset, bytes), payload].concat());
        rig.send(id, &request(command::READ, 0, 2, 0, 512));
        rig.send(other, &[request(command::WRITE, 0, 1, 0, 512), vec![3; 512]].concat());
        rig = until_deaths(rig, 2);
        let poison = rig.server.next_poison().unwrap();
        assert_eq!((poison.session, poison.offset, poison.bytes), (id, offset, bytes));
        assert!(rig.server.next_poison().is_none());
        let outcomes = parse(&rig.at(id).incoming, &BTreeMap::new());
        assert_eq!(outcomes[&1].error, Some(ErrorCode::Io));
        assert!(outcomes[&2].done && outcomes[&2].error.is_none());
        let outcomes = parse(&rig.at(other).incoming, &BTreeMap::new());
        assert!(outcomes[&1].done && outcomes[&1].error.is_none(), "who waits is not suspected");
        rig.at(id).incoming.clear();
        // The next request is nobody's poison.
        assert_eq!(write(&mut rig, id, 65_536, &[5; 4096]).error, None);
        assert_eq!(read(&mut rig, id, 65_536, 512).bytes(), [5; 512]);
    }
}

/// A long write of whose first block the old bytes cannot be read: it fails while its disk holds
/// the payload. The process dies after so many stores, and whoever gets pages next writes to them.
/// Returns whether the client was told of an error; none if nobody died.
fn dies_beside_a_failure(stores: u64, broken: Option<Broken>) -> Result<Option<bool>, String> {
    const AT: u64 = 3 * 4096 + 512;
    let mut rig = Rig::new(400, Options { sessions_max: 4, ..Options::default() });
    rig.broken = broken;
    rig.server.break_records(broken);
    rig.delay(2);
    rig.disks.store_mut().bad.insert(3);
    let id = connect(&mut rig, "one", true);
    let data = rig.random.bytes(70_144);
    rig.send(id, &[request(command::WRITE, 0, 1, AT, data.len() as u32), data.clone()].concat());
    rig.memory.cut_after(Some(stores));
    let died = (0..40).any(|_| catch_unwind(AssertUnwindSafe(|| rig.turn())).is_err());
    rig.memory.cut_after(None);
    if !died {
        return Ok(None);
    }
    while let Some(mut span) = { rig.pages.borrow_mut().take(1) } {
        rig.memory.slice_mut(&mut span).fill(0xaa);
    }
    // The error of the medium has passed: who tries again succeeds.
    rig.disks.store_mut().bad.clear();
    rig = die(rig);
    rig.settle();
    let outcome = &parse(&rig.at(id).incoming, &BTreeMap::new())[&1];
    let is_error = outcome.error.is_some();
    let expected = if is_error { vec![0; data.len()] } else { data };
    let content = rig.disks.store().content(DISK, 3 * 4096, 18 * 4096);
    if !outcome.done || content[512..512 + expected.len()] != expected {
        return Err(format!("cut after {stores}: other bytes, told {:?}", outcome.error));
    }
    rig.pass(3_000_000);
    let is_clean = rig.is_clean();
    is_clean.then_some(Some(is_error)).ok_or_else(|| format!("cut after {stores}: pages are held"))
}

#[test]
fn a_payload_that_was_let_go_is_not_written() {
    let (mut errors, mut made) = (0, 0);
    for stores in 1.. {
        match dies_beside_a_failure(stores, None).unwrap() {
            Some(true) => errors += 1,
            Some(false) => made += 1,
            None => break,
        }
    }
    assert!(errors > 0 && made > 10, "{errors} errors, {made} made after all");
    let broken = Some(Broken::LetGoInSilence);
    let noticed = (1..200).find_map(|stores| dies_beside_a_failure(stores, broken).err());
    let noticed = noticed.unwrap();
    assert!(noticed.contains("other bytes"), "{noticed}");
}

/// A rig with sessions in many states, in the middle of things.
fn busy_rig() -> Rig {
    let mut rig = Rig::new(900, Options { sessions_max: 6, ..Options::default() });
    rig.delay(3);
    let id = connect(&mut rig, "one", true);
    let other = connect(&mut rig, "one", false);
    assert_eq!(one(&mut rig, id, &request(command::FLUSH, 0, 1, 0, 0)).error, None);
    rig.at(id).deaf = true;
    let half = [request(command::WRITE, 0, 1, 0, 200_704), vec![1; 100_000]].concat();
    rig.send(other, &[request(command::WRITE, 0, 7, 512, 1024), vec![2; 1024]].concat());
    rig.send(other, &half);
    for cookie in 0..6 {
        rig.send(id, &request(command::READ, 0, cookie, 0, 8192));
    }
    let fresh = rig.accept();
    rig.send(fresh, &opening("one", true)[..9]);
    for _ in 0..7 {
        rig.turn();
    }
    rig
}

/// A place in the region where something is, mostly.
fn place(random: &mut Random, turn: u64, bytes: u64) -> u64 {
    match turn % 4 {
        0 => random.below(128),
        1 => 4096 + random.below(3 * 256),
        2 => 8192 + random.below(8 * 64),
        _ => random.below(bytes),
    }
}

#[test]
fn records_that_are_none_are_refused() {
    let rig = busy_rig();
    let mut pages = Pages::whole(rig.memory.successor());
    let region = pages.adopt(rig.region).unwrap();
    let memory = Rc::clone(pages.memory());
    assert_eq!(FoundSessions::read(&memory, &region).unwrap().len(), 3);
    let (mut random, mut refused) = (Random(7), 0);
    for turn in 0..4000 {
        let offset = rig.region.offset + place(&mut random, turn, u64::from(rig.region.bytes));
        let part = bowline_arena::Part { offset, bytes: 1 };
        let mut byte = Vec::new();
        memory.fetch(part, &mut byte);
        memory.land(part, &[byte[0] ^ 1 << random.below(8)]);
        let kept = FoundSessions::read(&memory, &region).and_then(|found| found.keep(&mut pages));
        refused += u64::from(kept.is_err());
        pages.release_kept();
        memory.land(part, &byte);
    }
    assert!(refused > 300, "{refused} of 4000 changes were noticed");
    assert!(FoundSessions::read(&memory, &region).is_ok());
}

#[test]
fn adopting_changed_records_is_an_error_or_goes_on_but_is_no_panic() {
    let (mut random, mut adopted) = (Random(9), 0);
    for turn in 0..120 {
        let mut rig = busy_rig();
        for _ in 0..2 {
            let offset = rig.region.offset + place(&mut random, turn, u64::from(rig.region.bytes));
            let part = bowline_arena::Part { offset, bytes: 1 };
            rig.memory.land(part, &[random.next() as u8]);
        }
        rig.random = Random(turn);
        match rig.die(revive, None) {
            Ok(_) => adopted += 1,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert!(adopted > 20 && adopted < 120, "{adopted} adopted");
}

#[test]
fn whoever_does_not_take_over_has_all_pages() {
    let rig = busy_rig();
    let mut pages = Pages::whole(rig.memory.successor());
    let region = pages.adopt(rig.region).unwrap();
    let free = pages.free();
    let memory = Rc::clone(pages.memory());
    let found = FoundSessions::read(&memory, &region).unwrap();
    found.keep(&mut pages).unwrap();
    assert!(pages.free() < free, "something is kept");
    pages.release_kept();
    assert_eq!(pages.free(), free);
    let pages = Rc::new(std::cell::RefCell::new(pages));
    let options = Options { sessions_max: 6, ..Options::default() };
    let server = crate::NbdServer::new(pages, region, options);
    assert_eq!((server.sessions_open(), server.held_bytes()), (0, 0));
}
