//! A guest that writes perfect copies of the pool's own structures into its disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bowline_store::{CheckVerdict, DiskId, Micros, PlaceKind, PoolState};

use crate::world::{BLOCK, Image, check_bytes, image, open};

/// Raw blocks of the medium that hold structures.
fn structures(image: &Image) -> Vec<Vec<u8>> {
    let report = check_bytes(&Rc::new(RefCell::new(image.bytes.clone())), &[], true);
    let is_wanted = |kind: PlaceKind| !matches!(kind, PlaceKind::Data | PlaceKind::LogData);
    let places = report.places.iter().filter(|place| is_wanted(place.kind));
    let blocks = places.map(|place| &image.bytes[place.at as usize..][..BLOCK]);
    blocks.map(<[u8]>::to_vec).collect()
}

#[test]
fn perfect_copies_of_structures_are_data_and_nothing_else() {
    let image = image();
    let copies = structures(image);
    assert!(copies.len() > 200, "{}", copies.len());
    // From the present state, and, as no guest could, from states before those were written.
    let starts = [&image.bytes, &image.earlier[12], &image.earlier[14], &image.earlier[15]];
    for (number, start) in starts.into_iter().enumerate() {
        let bytes = Rc::new(RefCell::new(start.clone()));
        let mut world = open(bytes.clone(), 50).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        let disk = DiskId(1);
        let mut written = BTreeMap::new();
        for (at, copy) in copies.iter().enumerate() {
            let lba = 2000 + at as u64 % 700;
            // Now and then a whole run, so that a copy of block n lies at a block n again.
            world.write(disk, lba, copy);
            written.insert(lba, copy.clone());
            if at % (3 + number * 4) == 0 {
                world.flush();
            }
        }
        world.flush();
        world.idle();
        world.flush();
        drop(world);
        let report = check_bytes(&bytes, &[], false);
        assert_eq!(report.verdict, CheckVerdict::Dirty, "{:#?}", report.findings);
        let mut world = open(bytes.clone(), 51).unwrap();
        assert_eq!(world.store.status().state, PoolState::Healthy);
        for (lba, copy) in &written {
            assert!(world.read(disk, *lba).unwrap() == *copy, "block {lba}");
        }
        world.store.close().unwrap();
        drop(world);
        assert_eq!(check_bytes(&bytes, &[], false).verdict, CheckVerdict::Clean);
    }
}

#[test]
fn a_torn_end_full_of_copies_is_still_an_end() {
    let image = image();
    let copies = structures(image);
    let bytes = Rc::new(RefCell::new(image.earlier[12].clone()));
    let mut world = open(bytes.clone(), 50).unwrap();
    world.write(DiskId(1), 3000, &copies[7]);
    world.flush();
    let before = bytes.borrow().clone();
    // One request, never flushed, all of it copies; then its first block does not arrive.
    world.write(DiskId(1), 3001, &copies[..24].concat());
    // The log is written at once; a checkpoint, which would make the request durable, takes more.
    for _ in 0..2 {
        world.store.poll(Micros(world.now + 1));
    }
    let after = bytes.borrow().clone();
    drop(world);
    // The head lies before the first of its data.
    let is_new = |at: &usize| {
        let block = &after[*at..][..BLOCK];
        *block == copies[0] && *block != before[*at..][..BLOCK]
    };
    let head = (0..after.len()).step_by(BLOCK).find(is_new).map(|data| data - BLOCK);
    let head = head.unwrap();
    let mut torn = after.clone();
    torn[head..head + BLOCK].copy_from_slice(&before[head..head + BLOCK]);
    let torn = Rc::new(RefCell::new(torn));
    let report = check_bytes(&torn, &[], false);
    assert_eq!(report.verdict, CheckVerdict::Dirty, "{:#?}", report.findings);
    let mut world = open(torn, 51).unwrap();
    assert_eq!(world.store.status().state, PoolState::Healthy);
    assert!(world.read(DiskId(1), 3000).unwrap() == copies[7]);
    assert_eq!(world.read(DiskId(1), 3001).unwrap(), vec![0; BLOCK]);
}
