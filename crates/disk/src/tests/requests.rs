//! What is refused, what waits, and what comes back when something fails.

use std::rc::Rc;

use bowline_store::{BLOCK_BYTES, BlockState, DiskId, Durability, Payload, Ticket};

use super::model::ModelVolume;
use super::{DISK, done, poll, quiet, shared_pages, write};
use crate::broken::Broken;
use crate::{ByteExtent, DiskEvent, Disks, IoErrorKind, Submitted, Volume};

const BLOCK: [u8; BLOCK_BYTES as usize] = [7; BLOCK_BYTES as usize];
const OK: Submitted = Submitted::Done(Ok(()));

fn kind(submitted: Submitted) -> Option<IoErrorKind> {
    match submitted {
        Submitted::Done(result) => result.err().map(|error| error.kind),
        _ => None,
    }
}

#[test]
fn senseless_requests_are_refused() {
    let mut disks = quiet(10_240, Durability::Strict);
    assert_eq!(kind(write(&mut disks, 1, 0, &[])), Some(IoErrorKind::Invalid));
    assert_eq!(kind(write(&mut disks, 1, 100, &[0; 512])), Some(IoErrorKind::Invalid));
    assert_eq!(kind(write(&mut disks, 1, 0, &[0; 100])), Some(IoErrorKind::Invalid));
    assert_eq!(kind(write(&mut disks, 1, 10_240, &[0; 512])), Some(IoErrorKind::OutOfRange));
    assert_eq!(kind(write(&mut disks, 1, 9_728, &[0; 1024])), Some(IoErrorKind::OutOfRange));
    let end = u64::MAX - 511;
    let zeroed = disks.zero(Ticket(1), DISK, end, 1024, true, false);
    assert_eq!(kind(zeroed), Some(IoErrorKind::OutOfRange));
    let discarded = disks.discard(Ticket(1), DISK, 0, end, false);
    assert_eq!(kind(discarded), Some(IoErrorKind::OutOfRange));
    let other = disks.discard(Ticket(1), DiskId(9), 0, 512, false);
    assert_eq!(kind(other), Some(IoErrorKind::Invalid));
    assert_eq!(kind(disks.flush(Ticket(1), DiskId(9))), Some(IoErrorKind::Invalid));
    assert!(disks.status(Ticket(1), DISK, 0, 0, 1).is_err());
    let span = disks.pages.borrow_mut().take(1).unwrap();
    let (error, span) = disks.read(Ticket(1), DISK, 10_240, 512, span).unwrap_err();
    assert_eq!(error.kind, IoErrorKind::OutOfRange);
    disks.pages.borrow_mut().give(span);
    assert_eq!(disks.store().admitted_through().0, 0);
}

#[test]
fn a_read_only_disk_is_read_and_flushed_only() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    disks.store_mut().disk_mut(DISK).read_only = true;
    assert_eq!(kind(write(&mut disks, 1, 0, &BLOCK)), Some(IoErrorKind::ReadOnly));
    let discarded = disks.discard(Ticket(1), DISK, 0, 4096, false);
    assert_eq!(kind(discarded), Some(IoErrorKind::ReadOnly));
    assert_eq!(disks.flush(Ticket(1), DISK), OK);
    let span = disks.pages.borrow_mut().take(1).unwrap();
    assert!(disks.read(Ticket(1), DISK, 512, 512, span).is_ok());
}

#[test]
fn an_old_block_that_cannot_be_read_fails_the_write_and_nothing_else() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    disks.store_mut().reads_fail = true;
    assert_eq!(write(&mut disks, 1, 512, &[1; 8192]), Submitted::Pending);
    assert_eq!(write(&mut disks, 2, 4096, &BLOCK), Submitted::Pending, "it waits for the first");
    poll(&mut disks, 1);
    let results = done(&mut disks);
    assert_eq!(results[0].1.as_ref().map_err(|error| error.kind), Err(IoErrorKind::Medium));
    assert_eq!(results[1], (2, Ok(())));
    assert_eq!(disks.store().admitted_through().0, 1);
    assert_eq!(disks.pages.borrow().free(), disks.pages.borrow().count());
}

#[test]
fn requests_that_wait_notice_what_became_of_their_disk() {
    type Spoil = fn(&mut ModelVolume);
    let spoil: [(Spoil, IoErrorKind); 3] = [
        (|volume| volume.remove_disk(DISK), IoErrorKind::Invalid),
        (|volume| volume.disk_mut(DISK).bytes = 4096, IoErrorKind::OutOfRange),
        (|volume| volume.disk_mut(DISK).read_only = true, IoErrorKind::ReadOnly),
    ];
    for (spoil, expected) in spoil {
        let mut disks = quiet(1 << 20, Durability::Strict);
        assert_eq!(write(&mut disks, 1, 4096 + 512, &[1; 512]), Submitted::Pending);
        assert_eq!(write(&mut disks, 2, 4096, &BLOCK), Submitted::Pending);
        spoil(disks.store_mut());
        poll(&mut disks, 1);
        let kinds = done(&mut disks).into_iter().map(|(_, result)| result.map_err(|e| e.kind));
        assert_eq!(kinds.collect::<Vec<_>>(), [Err(expected), Err(expected)]);
        assert_eq!(disks.store().admitted_through().0, 0);
        assert_eq!(disks.pages.borrow().free(), disks.pages.borrow().count());
    }
}

#[test]
fn merges_delay_nobody_who_does_not_overlap_them() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    disks.store_mut().reads_are_held = true;
    assert_eq!(write(&mut disks, 1, 512, &[1; 512]), Submitted::Pending);
    assert_eq!(write(&mut disks, 2, 4096, &BLOCK), OK);
    assert_eq!(disks.flush(Ticket(3), DISK), Submitted::Pending);
    poll(&mut disks, 1);
    assert_eq!(done(&mut disks), [(3, Ok(()))], "a flush does not wait for what is not replied");
}

#[test]
fn parts_of_blocks_are_zeroed_and_not_discarded() {
    let mut disks = quiet(128 * BLOCK_BYTES, Durability::Strict);
    let ones = vec![1; 128 * BLOCK_BYTES as usize];
    let contents = |disks: &Disks<ModelVolume>| disks.store().contents(DISK).to_vec();
    for bytes in [3 * 512, 100 * BLOCK_BYTES] {
        assert_eq!(write(&mut disks, 1, 0, &ones), OK);
        assert_eq!(disks.discard(Ticket(2), DISK, 512, bytes, false), OK);
        let whole = (bytes + 512) / BLOCK_BYTES * BLOCK_BYTES;
        let discarded = contents(&disks).iter().filter(|byte| **byte == 0).count() as u64;
        assert_eq!(discarded, whole.saturating_sub(BLOCK_BYTES));

        assert_eq!(write(&mut disks, 3, 0, &ones), OK);
        let zeroed = disks.zero(Ticket(4), DISK, 512, bytes, true, false);
        assert_eq!(zeroed, Submitted::Pending);
        poll(&mut disks, 1);
        assert_eq!(done(&mut disks), [(4, Ok(()))]);
        let mut expected = ones.clone();
        expected[512..512 + bytes as usize].fill(0);
        assert!(contents(&disks) == expected);
    }
}

/// Whether a loss of power at any point leaves all or nothing of a long run of zeros whose edges
/// are not whole blocks.
fn long_zeros_are_whole(broken: Option<Broken>) -> bool {
    let mut is_whole = true;
    for (offset, keep) in [(512, true), (512, false), (4096, true), (0, false)] {
        let mut disks = quiet(128 * BLOCK_BYTES, Durability::Strict);
        disks.broken = broken;
        let ones = vec![1; 128 * BLOCK_BYTES as usize];
        assert_eq!(write(&mut disks, 1, 0, &ones), OK);
        let before = disks.store().admitted_through().0;
        let bytes = 100 * BLOCK_BYTES + if offset % BLOCK_BYTES == 0 { 1024 } else { 0 };
        assert_eq!(disks.zero(Ticket(4), DISK, offset, bytes, keep, false), Submitted::Pending);
        poll(&mut disks, 1);
        assert_eq!(done(&mut disks), [(4, Ok(()))]);
        let mut zeroed = ones.clone();
        zeroed[offset as usize..(offset + bytes) as usize].fill(0);
        assert!(disks.store().contents(DISK) == zeroed);
        for count in before..=disks.store().admitted_through().0 {
            let found = disks.store().after_cut(DISK, count);
            is_whole &= found == ones || found == zeroed;
        }
    }
    is_whole
}

#[test]
fn a_long_run_of_zeros_is_one_change() {
    assert!(long_zeros_are_whole(None));
    assert!(!long_zeros_are_whole(Some(Broken::SplitAdmission)), "nobody would notice");
}

#[test]
fn states_are_told_in_bytes() {
    let mut disks = quiet(10 * BLOCK_BYTES, Durability::Strict);
    assert_eq!(write(&mut disks, 1, 0, &[1; 8192]), OK);
    assert_eq!(disks.zero(Ticket(2), DISK, 12_288, 4096, true, false), OK);
    let mut ask = |offset, bytes, extents_max| {
        disks.status(Ticket(3), DISK, offset, bytes, extents_max).unwrap();
        poll(&mut disks, 1);
        match disks.next_event() {
            Some(DiskEvent::Status { result: Ok(extents), .. }) => {
                extents.iter().map(|ByteExtent { bytes, state }| (*bytes, *state)).collect()
            }
            other => panic!("unexpected {other:?}"),
        }
    };
    let (data, hole, zero) = (BlockState::Data, BlockState::Hole, BlockState::Zero);
    let all: Vec<(u64, BlockState)> = ask(512, 20_480 - 1024, 9);
    assert_eq!(all, [(7680, data), (4096, hole), (4096, zero), (3584, hole)]);
    assert_eq!(ask(4608, 512, 9), [(512, data)]);
    assert_eq!(ask(0, 40_960, 2), [(8192, data), (4096, hole)]);

    let mut disks = quiet(8192 + 512, Durability::Strict);
    assert_eq!(disks.zero(Ticket(1), DISK, 8192, 512, true, false), OK, "whole, as far as it goes");
    assert_eq!(disks.discard(Ticket(1), DISK, 8192, 512, false), OK);
    assert_eq!(disks.store().admitted_through().0, 2);
}

#[test]
fn whoever_lacks_memory_is_told_when_to_try_again() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    let all = disks.pages.borrow_mut().take(255).unwrap();
    assert_eq!(write(&mut disks, 1, 512, &[1; 512]), Submitted::Busy, "two pages are needed");
    poll(&mut disks, 1);
    assert!(disks.next_event().is_none());
    disks.pages.borrow_mut().give(all);
    poll(&mut disks, 1);
    assert!(matches!(disks.next_event(), Some(DiskEvent::Room)));
    assert_eq!(write(&mut disks, 1, 512, &[1; 512]), Submitted::Pending);
    let larger = kind(write(&mut disks, 2, 4096 + 512, &vec![1; (1 << 20) - 8192]));
    assert_eq!(larger, Some(IoErrorKind::Invalid), "it would never fit");
}

/// Two disks with waiting merges, one of them with many; tells in which order they were served,
/// and whether a newcomer got in before them.
fn starve(broken: Option<Broken>) -> (Vec<u64>, bool) {
    let pages = shared_pages(256);
    let mut volume = ModelVolume::new(Rc::clone(&pages), 1);
    for disk in [1, 2, 3] {
        volume.add_disk(DiskId(disk), 1 << 20, Durability::Strict);
    }
    let mut disks = Disks::new(volume, pages);
    disks.broken = broken;
    let merge = |disks: &mut Disks<ModelVolume>, ticket, disk, block: u64| {
        let offset = block * BLOCK_BYTES + 512;
        disks.write(Ticket(ticket), DiskId(disk), offset, &mut Payload::Copied(&[&[1; 512]]), false)
    };
    disks.store_mut().busy_percent = 100;
    disks.store_mut().progress_percent = 100;
    for ticket in 10..14 {
        assert_eq!(merge(&mut disks, ticket, 1, ticket), Submitted::Pending);
    }
    for ticket in 20..22 {
        assert_eq!(merge(&mut disks, ticket, 2, ticket), Submitted::Pending);
    }
    poll_once(&mut disks);
    disks.store_mut().busy_percent = 0;
    disks.store_mut().clear_busy();
    assert_eq!(merge(&mut disks, 31, 3, 9), Submitted::Pending);
    let newcomer = disks.write(Ticket(30), DiskId(3), 0, &mut Payload::Copied(&[&BLOCK]), false);
    poll(&mut disks, 1);
    let mut served = Vec::new();
    while let Some(event) = disks.next_event() {
        match event {
            DiskEvent::Done { ticket, .. } => served.push(ticket.0),
            DiskEvent::Room => served.push(0),
            other => panic!("unexpected {other:?}"),
        }
    }
    (served, newcomer != Submitted::Busy)
}

fn poll_once(disks: &mut Disks<ModelVolume>) {
    disks.poll(disks.now);
}

#[test]
fn those_who_wait_for_room_are_served_first_and_in_turn_by_disk() {
    let (served, newcomer_came_first) = starve(None);
    assert!(!newcomer_came_first);
    let disks: Vec<u64> = served.iter().map(|ticket| ticket / 10).collect();
    let first = disks[0];
    assert_eq!(disks[..6], [first, 3 - first, 3, first, 3 - first, 1]);
    assert_eq!(disks[7], 0, "the newcomer is told when all have been served");
    let (_, newcomer_came_first) = starve(Some(Broken::OvertakeStarving));
    assert!(newcomer_came_first, "the broken promise is noticed");
}
