//! FLUSH, FUA and ORDER by mode, and the limits of loss.

use std::collections::BTreeMap;
use std::rc::Rc;

use bowline_store::{BLOCK_BYTES, Durability, Lba, Micros, Payload, Ticket};

use super::model::ModelVolume;
use super::{DISK, Random, done, poll, quiet, shared_pages, write};
use crate::broken::Broken;
use crate::{DiskEvent, Disks, IoErrorKind, Loss, LossLimits, Submitted, Volume};

const BLOCK: [u8; BLOCK_BYTES as usize] = [7; BLOCK_BYTES as usize];
const OK: Submitted = Submitted::Done(Ok(()));

fn flush(disks: &mut Disks<ModelVolume>, ticket: u64) -> Submitted {
    disks.flush(Ticket(ticket), DISK)
}

#[test]
fn strict_flush_waits_for_the_medium_once() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    assert_eq!(flush(&mut disks, 1), OK, "nothing to flush");
    assert_eq!(write(&mut disks, 2, 0, &BLOCK), OK);
    assert_eq!(flush(&mut disks, 3), Submitted::Pending);
    assert_eq!(disks.store().durable_through().0, 0);
    poll(&mut disks, 1);
    assert_eq!(done(&mut disks), [(3, Ok(()))]);
    assert_eq!((disks.store().durable_through().0, disks.store().flushes_done), (1, 1));
    assert_eq!(flush(&mut disks, 4), OK, "nothing new to flush");
    assert_eq!((disks.store().flushes_done, disks.wake_at()), (1, None));
}

#[test]
fn hinted_flush_is_durable_and_order_is_free() {
    let mut disks = quiet(1 << 20, Durability::Hinted);
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    disks.order(DISK);
    poll(&mut disks, 1);
    assert_eq!((disks.store().flushes_done, disks.counters().orders), (0, 1));
    assert_eq!(flush(&mut disks, 2), Submitted::Pending);
}

#[test]
fn ordered_flush_and_fua_are_order() {
    let mut disks = quiet(1 << 20, Durability::Ordered);
    let fua = disks.write(Ticket(1), DISK, 0, &mut Payload::Copied(&[&BLOCK]), true);
    assert_eq!((fua, flush(&mut disks, 2)), (OK, OK));
    assert_eq!(disks.counters().orders, 2);
    poll(&mut disks, 1000);
    assert_eq!(disks.store().flushes_done, 0);
    let loss = Loss { age_micros: 1000, bytes: BLOCK_BYTES, replies_held: 0 };
    assert_eq!(disks.loss(DISK), loss);
    assert_eq!(disks.persist(Ticket(3), DISK), Submitted::Pending, "unless a session ends");
    poll(&mut disks, 1000);
    assert_eq!(done(&mut disks), [(3, Ok(()))]);
    assert_eq!(disks.loss(DISK), Loss::default());
}

#[test]
fn sync_writes_are_answered_when_durable() {
    let mut disks = quiet(1 << 20, Durability::Sync);
    disks.store_mut().flushes_are_held = true;
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), Submitted::Pending);
    assert_eq!(write(&mut disks, 2, 512, &BLOCK[..512]), Submitted::Pending);
    assert_eq!(disks.discard(Ticket(3), DISK, 8192, 4096, false), Submitted::Pending);
    poll(&mut disks, 1);
    assert_eq!(done(&mut disks), []);
    disks.store_mut().flushes_are_held = false;
    poll(&mut disks, 1);
    let mut results = done(&mut disks);
    results.sort_by_key(|(ticket, _)| *ticket);
    assert_eq!(results, [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    assert_eq!(disks.store().durable_through(), disks.store().admitted_through());
}

#[test]
fn strict_disks_are_flushed_after_five_seconds() {
    let mut disks = quiet(1 << 20, Durability::Strict);
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    poll(&mut disks, 4_999_000);
    assert_eq!(disks.store().flushes_done, 0);
    poll(&mut disks, 1_000);
    assert_eq!((disks.store().flushes_done, disks.counters().background_flushes), (1, 1));
    poll(&mut disks, 20_000_000);
    assert_eq!(disks.counters().background_flushes, 1, "a clean disk is left alone");
}

#[test]
fn ordered_disks_are_flushed_before_their_time_is_up() {
    let mut disks = quiet(1 << 20, Durability::Ordered);
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    poll(&mut disks, 700_000);
    assert_eq!(disks.store().flushes_done, 0);
    assert_eq!(disks.wake_at(), Some(Micros(750_000)));
    poll(&mut disks, 50_000);
    assert_eq!((disks.store().flushes_done, disks.wake_at()), (1, None));
}

#[test]
fn a_slow_medium_is_flushed_earlier() {
    let mut disks = quiet(1 << 20, Durability::Ordered);
    disks.store_mut().flushes_are_held = true;
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    poll(&mut disks, 800_000);
    poll(&mut disks, 400_000);
    disks.store_mut().flushes_are_held = false;
    poll(&mut disks, 1);
    assert_eq!(write(&mut disks, 2, 0, &BLOCK), OK);
    poll(&mut disks, 250_000);
    assert_eq!(disks.store().flushes_done, 2, "a flush took 400 ms, so the next one starts early");
}

#[test]
fn a_write_beyond_the_limit_alone_is_answered_when_durable() {
    let mut disks = quiet(1 << 20, Durability::Ordered);
    disks.set_loss_limits(DISK, LossLimits { loss_ms_max: 1000, loss_bytes_max: 4096 });
    assert_eq!(write(&mut disks, 1, 0, &[1; 8192]), Submitted::Pending);
    assert_eq!(disks.loss(DISK).replies_held, 1);
    assert_eq!(write(&mut disks, 2, 0, &BLOCK), Submitted::Pending, "replies keep their order");
    assert_eq!(disks.store().contents(DISK)[..4096], BLOCK, "held writes are visible");
    poll(&mut disks, 1);
    assert_eq!(done(&mut disks), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(disks.loss(DISK), Loss::default());
}

#[test]
fn becoming_strict_flushes_first() {
    let mut disks = quiet(1 << 20, Durability::Ordered);
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    let change = disks.set_durability(Ticket(2), DISK, Durability::Strict);
    assert_eq!(change, Submitted::Pending);
    assert_eq!(flush(&mut disks, 3), Submitted::Pending, "flushes are durable from now on");
    poll(&mut disks, 1);
    assert_eq!(done(&mut disks), [(2, Ok(())), (3, Ok(()))]);
    assert_eq!(disks.store().durable_through().0, 2, "the write and the change of mode");
}

#[test]
fn a_stopped_pool_fails_what_waits_for_it() {
    let mut disks = quiet(1 << 20, Durability::Ordered);
    disks.set_loss_limits(DISK, LossLimits { loss_ms_max: 1000, loss_bytes_max: 4096 });
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    assert_eq!(write(&mut disks, 2, 0, &BLOCK), Submitted::Pending);
    assert_eq!(disks.persist(Ticket(3), DISK), Submitted::Pending);
    disks.store_mut().is_stopped = true;
    let refused = write(&mut disks, 4, 0, &BLOCK);
    let is_stopped = |result: &Result<(), crate::IoError>| {
        result.as_ref().is_err_and(|error| error.kind == IoErrorKind::Stopped)
    };
    assert!(matches!(&refused, Submitted::Done(result) if is_stopped(result)));
    poll(&mut disks, 1);
    let results: BTreeMap<_, _> = done(&mut disks).into_iter().collect();
    assert_eq!(results.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert!(results.values().all(is_stopped));
    let flushes = disks.counters().background_flushes;
    poll(&mut disks, 1000);
    assert_eq!(disks.counters().background_flushes, flushes, "a failed flush is not just retried");
    disks.store_mut().is_stopped = false;
    poll(&mut disks, 2_000_000);
    assert_eq!(disks.loss(DISK), Loss::default(), "what was acknowledged becomes durable");
}

#[test]
fn what_a_predecessor_acknowledged_is_flushed() {
    let pages = shared_pages(8);
    let mut volume = ModelVolume::new(Rc::clone(&pages), 1);
    volume.add_disk(DISK, 1 << 20, Durability::Ordered);
    volume.write(DISK, Lba(0), &mut Payload::Copied(&[&BLOCK])).unwrap();
    let mut disks = Disks::new(volume, pages);
    poll(&mut disks, 1);
    assert_eq!(disks.store().durable_through().0, 1);
}

/// The first write after a restart in which nothing could be flushed yet, some time after the
/// predecessor's oldest. Whether it is answered before it is durable.
fn restart(later_micros: u64, broken: Option<Broken>) -> bool {
    let pages = shared_pages(8);
    let mut volume = ModelVolume::new(Rc::clone(&pages), 1);
    volume.add_disk(DISK, 1 << 20, Durability::Ordered);
    let mut disks = Disks::new(volume, Rc::clone(&pages));
    disks.set_now(Micros(5_000_000));
    assert_eq!(write(&mut disks, 1, 0, &BLOCK), OK);
    assert_eq!(disks.store().loss_clock, Some(Micros(5_000_000)));
    let Disks { mut volume, .. } = disks;
    volume.flushes_are_held = true;
    let mut disks = Disks::new(volume, pages);
    disks.broken = broken;
    disks.set_now(Micros(5_000_000 + later_micros));
    let submitted = write(&mut disks, 1, 0, &BLOCK);
    disks.store_mut().flushes_are_held = false;
    poll(&mut disks, 1);
    assert_eq!(disks.loss(DISK), Loss::default());
    assert_eq!(disks.store().loss_clock, None);
    submitted == OK
}

#[test]
fn what_a_predecessor_acknowledged_counts_against_the_limits() {
    assert!(!restart(0, None), "it may have lost all that its limit of bytes allows");
    assert!(!restart(2_000_000, None));
    assert!(restart(2_000_000, Some(Broken::ForgetPredecessor)), "which this test would notice");
}

/// Writes to an `ordered` disk over a medium with slow flushes and says what broke a limit.
fn lose(seed: u64, broken: Option<Broken>) -> Result<u64, String> {
    let mut random = Random(seed);
    let loss_bytes_max = [64 << 10, 64 << 20][random.below(2) as usize];
    let limits = LossLimits { loss_ms_max: 100, loss_bytes_max };
    let mut disks = quiet(1 << 20, Durability::Ordered);
    disks.set_loss_limits(DISK, limits);
    disks.broken = broken;
    let (mut acknowledged, mut waiting) = (Vec::new(), BTreeMap::new());
    let (mut now, mut held_until) = (0, 0);
    let gap_micros = [200, 2_000, 10_000][random.below(3) as usize];
    for ticket in 0..1_500 {
        now += random.below(gap_micros);
        if random.chance(2) {
            held_until = now + random.below(250_000);
        }
        disks.store_mut().flushes_are_held = now < held_until;
        disks.poll(Micros(now));
        while let Some(event) = disks.next_event() {
            let DiskEvent::Done { ticket, .. } = event else { return Err("other event".into()) };
            let (seq, bytes) = waiting.remove(&ticket.0).ok_or("answered twice")?;
            acknowledged.push((now, seq, bytes));
        }
        // The disks do not see the time that passes until the next poll.
        now += random.below(9_000);
        let blocks = 1 + random.below(3);
        let bytes = vec![1; (blocks * BLOCK_BYTES) as usize];
        let submitted = write(&mut disks, ticket, random.below(64) * BLOCK_BYTES, &bytes);
        let (seq, bytes) = (disks.store().admitted_through(), blocks * BLOCK_BYTES);
        match submitted {
            Submitted::Done(_) => acknowledged.push((now, seq, bytes)),
            _ => drop(waiting.insert(ticket, (seq, bytes))),
        }
        acknowledged.retain(|(_, seq, _)| *seq > disks.store().durable_through());
        let times = acknowledged.iter().map(|(time, ..)| *time);
        let clock = disks.store().loss_clock.map_or(u64::MAX, |clock| clock.0);
        if times.clone().min().is_some_and(|oldest| clock > oldest) {
            return Err("a successor would not know how old writes are".into());
        }
        let span = times.clone().max().unwrap_or(0) - times.min().unwrap_or(0);
        let bytes: u64 = acknowledged.iter().map(|(.., bytes)| bytes).sum();
        if span > limits.loss_ms_max * 1000 || bytes > limits.loss_bytes_max {
            return Err(format!("{span} us and {bytes} bytes could be lost"));
        }
        let shown = disks.loss(DISK);
        if shown.bytes < bytes || shown.age_micros + 9_000 < span {
            return Err(format!("{shown:?} is shown for {span} us and {bytes} bytes"));
        }
    }
    disks.store_mut().flushes_are_held = false;
    poll(&mut disks, 1);
    let answered = done(&mut disks).len();
    if answered != waiting.len() {
        return Err(format!("{answered} of {} held replies came", waiting.len()));
    }
    Ok(disks.counters().replies_held)
}

#[test]
fn limits_of_loss_are_kept() {
    let held: u64 =
        (0..40).map(|seed| lose(seed, None).unwrap_or_else(|e| panic!("seed {seed}: {e}"))).sum();
    assert!(held > 1_000, "only {held} replies met a limit");
}

#[test]
fn broken_limits_of_loss_are_noticed() {
    for broken in [Broken::EndlessLoss, Broken::NoBackgroundFlush, Broken::ClockStands] {
        let noticed = (0..10).find_map(|seed| lose(seed, Some(broken)).err());
        assert!(noticed.is_some(), "{broken:?} goes unnoticed");
    }
}
