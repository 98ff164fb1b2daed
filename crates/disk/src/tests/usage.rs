//! What clients did is counted, and how long it took.

use bowline_store::{BLOCK_BYTES, Durability, Micros, Payload, Ticket};

use super::{DISK, done, poll, quiet, write};
use crate::{DiskEvent, Submitted, Usage};

const BLOCK: [u8; BLOCK_BYTES as usize] = [7; BLOCK_BYTES as usize];

/// The classes that are not empty, and how many are in each.
fn classes(latencies: crate::Latencies) -> Vec<(usize, u64)> {
    let counts = latencies.below_power_of_two.into_iter().enumerate();
    counts.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn requests_are_counted_with_the_time_they_took() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    disks.set_now(Micros(5000));
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), Submitted::Done(Ok(())));
    assert_eq!(disks.flush(Ticket(2), DISK), Submitted::Pending);
    poll(&mut disks, 1000);
    assert_eq!(done(&mut disks), [(2, Ok(()))]);
    let usage = disks.usage(DISK);
    // At once is less than a microsecond; 1000 are less than 1024, the tenth power of two.
    assert_eq!(classes(usage.writes), [(0, 1)]);
    assert_eq!(classes(usage.flushes), [(10, 1)]);
    assert_eq!((usage.writes.sum_micros, usage.flushes.sum_micros), (0, 1000));

    let fua = disks.write(Ticket(3), DISK, 0, &mut Payload::Copied(&[&BLOCK]), true);
    assert_eq!(fua, Submitted::Pending);
    poll(&mut disks, 3);
    assert_eq!(done(&mut disks).len(), 1);
    assert_eq!(classes(disks.usage(DISK).writes), [(0, 1), (2, 1)]);

    let span = disks.pages.borrow_mut().take(1).unwrap();
    disks.read(Ticket(4), DISK, 0, 4096, span).unwrap();
    poll(&mut disks, 7);
    assert!(matches!(disks.next_event(), Some(DiskEvent::Read { result: Ok(()), .. })));
    let usage = disks.usage(DISK);
    assert_eq!((classes(usage.reads), usage.reads.sum_micros), (vec![(3, 1)], 7));
}

#[test]
fn bytes_that_are_discarded_or_zeroed_are_counted_when_it_went_well() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    let ok = Submitted::Done(Ok(()));
    assert_eq!(disks.discard(Ticket(1), DISK, 0, 64 << 10, false), ok);
    assert_eq!(disks.zero(Ticket(2), DISK, 0, 32 << 10, true, false), ok);
    // Parts of blocks are read first, and answered later.
    assert_eq!(disks.zero(Ticket(3), DISK, 512, 1024, true, false), Submitted::Pending);
    assert_eq!(disks.usage(DISK).zeroed_bytes, 32 << 10);
    poll(&mut disks, 10);
    assert_eq!(done(&mut disks), [(3, Ok(()))]);
    let outside = disks.discard(Ticket(4), DISK, 1 << 20, 4096, false);
    assert!(matches!(outside, Submitted::Done(Err(_))));
    let usage = disks.usage(DISK);
    assert_eq!((usage.discarded_bytes, usage.zeroed_bytes), (64 << 10, (32 << 10) + 1024));
    assert_eq!(usage.writes.count(), 0);
    assert_eq!(Usage::default().reads.count(), 0);
}

#[test]
fn who_waits_for_room_counts_from_when_it_came() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    let submitted = Submitted::Busy;
    disks.uses.submitted(Ticket(9), (DISK, crate::usage::Kind::Write), Micros(10), &submitted);
    disks.uses.submitted(
        Ticket(9),
        (DISK, crate::usage::Kind::Write),
        Micros(75),
        &Submitted::Done(Ok(())),
    );
    assert_eq!(disks.usage(DISK).writes.sum_micros, 65);
}
