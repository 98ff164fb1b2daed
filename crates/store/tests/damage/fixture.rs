//! A pool of format 1 as it was made when the format was fixed: it opens for ever.
//!
//! The file holds runs: `run COUNT BYTE` and `hex BYTES`. For a new version of the format, it is
//! what `cargo test -p bowline-store --test damage -- --nocapture runs_come_back_as_they_were`
//! prints.

use std::cell::RefCell;
use std::rc::Rc;

use bowline_store::{BlockState, CheckVerdict, DiskId, Durability, Lba, PoolState, Provision};

use crate::world::{BLOCK, Random, World, check_bytes, format_with, open, status_of};

const FORMAT_1: &str = include_str!("../fixtures/format-1.txt");
const SLOT_BYTES: u64 = 128 << 10;
const BLOCKS: u64 = 200;

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["run", count, byte] => {
                let byte = u8::from_str_radix(byte, 16).unwrap();
                bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), byte);
            }
            ["hex", digits] => {
                let pairs = digits.as_bytes().chunks(2);
                let pair = |pair: &[u8]| {
                    u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()
                };
                bytes.extend(pairs.map(pair));
            }
            _ => panic!("a line that makes no sense: {line}"),
        }
    }
    bytes
}

fn encode(bytes: &[u8]) -> String {
    const RUN_MIN: usize = 12;
    let run = |at: usize| bytes[at..].iter().take_while(|byte| **byte == bytes[at]).count();
    let (mut text, mut at) = (String::new(), 0);
    while at < bytes.len() {
        let count = run(at);
        if count >= RUN_MIN {
            text.push_str(&format!("run {count} {:02x}\n", bytes[at]));
            at += count;
            continue;
        }
        let start = at;
        while at < bytes.len() && at - start < 48 && run(at) < RUN_MIN {
            at += 1;
        }
        let digits: String = bytes[start..at].iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!("hex {digits}\n"));
    }
    text
}

/// What a block of disk 1 holds: one byte all over. 0 where there is nothing.
fn history(mut write: impl FnMut(u64, u8), mut mark: impl FnMut(u64)) -> Vec<u8> {
    let mut model = vec![0; BLOCKS as usize];
    let mut random = Random::new(17);
    for step in 0..900 {
        let lba = random.below(BLOCKS);
        let tag = 1 + (step % 250) as u8;
        model[lba as usize] = tag;
        write(lba, tag);
        mark(step);
    }
    model
}

fn build() -> Vec<u8> {
    let bytes = format_with(28, SLOT_BYTES);
    let world = RefCell::new(open(bytes.clone(), 1).unwrap());
    let make = |name: &str, bytes: u64, durability, provision| {
        world.borrow_mut().store.create_disk(name, bytes, durability, provision).unwrap()
    };
    let disk = make("root", 8 << 20, Durability::Strict, Provision::Thin);
    let wide = make("wide.disk-2", 1 << 40, Durability::Ordered, Provision::Lazy);
    let write = |lba: u64, tag: u8| world.borrow_mut().write(disk, lba, &[tag; BLOCK]);
    let model = history(write, |step| {
        let mut world = world.borrow_mut();
        if step % 90 == 89 && step < 850 {
            world.store.want_checkpoint();
            world.poll();
        }
        if step == 700 {
            world.write(wide, 99 << 20, &[7; BLOCK]);
            world.retry(|world| world.store.zero(wide, Lba(500), 70_000));
        }
        if step % 30 == 0 {
            world.flush();
        }
    });
    assert_eq!(model.len(), BLOCKS as usize);
    let mut world = world.borrow_mut();
    assert!(world.store.status().counters.slots_compacted > 0);
    world.retry(|world| world.store.discard(disk, Lba(30), 20));
    world.flush();
    world.idle();
    world.flush();
    bytes.take()
}

fn verify(world: &mut World) {
    assert_eq!(world.store.status().state, PoolState::Healthy);
    let names: Vec<String> = world.store.disks().map(|disk| disk.name.clone()).collect();
    assert_eq!(names, ["root", "wide.disk-2"]);
    let wide = world.store.disk(DiskId(2)).cloned().unwrap();
    assert_eq!((wide.bytes, wide.durability), (1 << 40, Durability::Ordered));
    assert_eq!(wide.provision, Provision::Lazy);
    let model = history(|_, _| {}, |_| {});
    for (lba, tag) in model.iter().enumerate() {
        let tag = if (30..50).contains(&lba) { 0 } else { *tag };
        assert!(world.read(DiskId(1), lba as u64).unwrap() == [tag; BLOCK], "block {lba}");
    }
    assert!(world.read(DiskId(2), 99 << 20).unwrap() == [7; BLOCK]);
    assert_eq!(status_of(world, DiskId(2), 99 << 20), BlockState::Data);
    assert_eq!(status_of(world, DiskId(2), 70_499), BlockState::Zero);
    assert_eq!(status_of(world, DiskId(2), 70_500), BlockState::Hole);
}

#[test]
fn a_pool_of_format_1_opens_for_ever() {
    let bytes = Rc::new(RefCell::new(decode(FORMAT_1)));
    let report = check_bytes(&bytes, &[], false);
    assert_eq!(report.verdict, CheckVerdict::Dirty, "{:#?}", report.findings);
    assert!(report.batches_replayed > 0 && report.segments > 3);
    let mut world = open(bytes.clone(), 2).unwrap();
    verify(&mut world);
    // Its slots are smaller than those of any pool that can be made now, and it is fuller.
    world.retry(|world| world.store.discard(DiskId(1), Lba(60), 100));
    world.write(DiskId(1), 0, &[9; BLOCK]);
    world.store.close().unwrap();
    drop(world);
    assert_eq!(check_bytes(&bytes, &[], false).verdict, CheckVerdict::Clean);
    let mut world = open(bytes, 3).unwrap();
    assert!(world.read(DiskId(1), 0).unwrap() == [9; BLOCK]);
    // How much its disks hold was not counted; what holds nothing needs no counting.
    let mapped = |world: &World| world.store.mapped(world.store.disk(DiskId(1)).unwrap()).bytes;
    assert_eq!(mapped(&world), None);
    world.retry(|world| world.store.discard(DiskId(1), Lba(0), 2048));
    world.write(DiskId(1), 3, &[9; 2 * BLOCK]);
    world.store.want_checkpoint();
    world.poll();
    assert_eq!(mapped(&world), None);
    world.retry(|world| world.store.discard(DiskId(1), Lba(0), 2048));
    world.store.want_checkpoint();
    world.poll();
    world.write(DiskId(1), 3, &[9; 2 * BLOCK]);
    world.store.want_checkpoint();
    world.poll();
    assert_eq!(mapped(&world), Some(2 * BLOCK as u64));
}

#[test]
fn runs_come_back_as_they_were() {
    let bytes = build();
    let text = encode(&bytes);
    assert!(decode(&text) == bytes);
    let mut world = open(Rc::new(RefCell::new(bytes)), 2).unwrap();
    verify(&mut world);
    println!("{text}");
}
