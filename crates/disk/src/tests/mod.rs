//! Disks over a model of a store, judged by a history that knows nothing of either.

mod durability;
mod history;
mod model;
mod overlap;
mod requests;
mod usage;

use std::cell::RefCell;
use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Pages, SharedPages};
use bowline_store::{DiskId, Durability, Micros, Payload, Ticket};

use crate::{DiskEvent, Disks, IoError, Submitted};
use model::ModelVolume;

/// Numbers that are the same for the same seed, for ever (SplitMix64).
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

const DISK: DiskId = DiskId(1);

fn shared_pages(count: u64) -> SharedPages {
    let memory = Memory::private(count * u64::from(PAGE_BYTES));
    Rc::new(RefCell::new(Pages::whole(memory)))
}

/// Disks over a model that does nothing by chance, with one disk.
fn quiet(disk_bytes: u64, durability: Durability) -> Disks<ModelVolume> {
    let pages = shared_pages(256);
    let mut volume = ModelVolume::new(Rc::clone(&pages), 1);
    volume.add_disk(DISK, disk_bytes, durability);
    Disks::new(volume, pages)
}

fn write(disks: &mut Disks<ModelVolume>, ticket: u64, offset: u64, bytes: &[u8]) -> Submitted {
    disks.write(Ticket(ticket), DISK, offset, &mut Payload::Copied(&[bytes]), false)
}

/// The results of what has become done, by ticket.
fn done(disks: &mut Disks<ModelVolume>) -> Vec<(u64, Result<(), IoError>)> {
    let mut results = Vec::new();
    while let Some(event) = disks.next_event() {
        match event {
            DiskEvent::Done { ticket, result } => results.push((ticket.0, result)),
            other => panic!("unexpected {other:?}"),
        }
    }
    results
}

fn poll(disks: &mut Disks<ModelVolume>, micros: u64) {
    let now = Micros(disks.now.0 + micros);
    while disks.poll(now) {}
}
