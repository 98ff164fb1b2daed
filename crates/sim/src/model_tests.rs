use super::*;
use crate::stamp::Stamp;

fn data(disk: u32, lba: u64, number: u64) -> Seen {
    Seen::Data(Stamp { run: 1, number, disk, lba })
}

fn write(model: &mut Model, disk: u32, lba: u64, blocks: u64) -> u64 {
    change(model, disk, lba, blocks, Value::Data)
}

fn change(model: &mut Model, disk: u32, lba: u64, blocks: u64, value: Value) -> u64 {
    let number = model.next_number();
    model.admit(Change::Blocks { disk, lba, blocks, value });
    number
}

/// Two disks: 1 and 2, of 100 blocks.
fn model() -> Model {
    let mut model = Model::new(1);
    for disk in [1, 2] {
        model.next_number();
        model.admit(Change::Disk { disk, blocks: Some(100) });
    }
    model.settle(2, 2);
    model
}

fn judge(model: &Model, low: u64, seen: &[(u32, u64, Seen)]) -> Result<u64, Violation> {
    let mut judge = model.judge(low, model.top());
    judge.disk(1, Some(100))?;
    judge.disk(2, Some(100))?;
    for &(disk, lba, seen) in seen {
        judge.block(disk, lba, seen)?;
    }
    judge.verdict()
}

#[test]
fn every_prefix_across_disks_is_accepted_and_nothing_else() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 1);
    let second = write(&mut model, 2, 0, 1);
    let third = write(&mut model, 1, 0, 1);
    let (none, one, two) = (Seen::Zeros, data(1, 0, first), data(2, 0, second));
    let three = data(1, 0, third);
    assert_eq!(judge(&model, 2, &[(1, 0, none), (2, 0, none)]), Ok(2));
    assert_eq!(judge(&model, 2, &[(1, 0, one), (2, 0, none)]), Ok(first));
    assert_eq!(judge(&model, 2, &[(1, 0, one), (2, 0, two)]), Ok(second));
    assert_eq!(judge(&model, 2, &[(1, 0, three), (2, 0, two)]), Ok(third));
    assert!(judge(&model, 2, &[(1, 0, none), (2, 0, two)]).is_err(), "reordered across disks");
    assert!(judge(&model, 2, &[(1, 0, three), (2, 0, none)]).is_err(), "a hole in the order");
    assert!(judge(&model, 4, &[(1, 0, one), (2, 0, none)]).is_err(), "a flush is broken");
}

#[test]
fn requests_are_whole() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 2);
    assert!(judge(&model, 2, &[(1, 0, data(1, 0, first)), (1, 1, Seen::Zeros)]).is_err());
    assert!(judge(&model, 2, &[(1, 0, data(1, 0, first)), (1, 1, data(1, 1, first))]).is_ok());
}

#[test]
fn zeros_may_come_from_several_times() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 1);
    let zeroed = change(&mut model, 1, 0, 50, Value::Zero);
    let other = write(&mut model, 1, 1, 1);
    assert_eq!(judge(&model, 2, &[(1, 0, Seen::Zeros), (1, 1, Seen::Zeros)]), Ok(zeroed));
    let later = (1, 1, data(1, 1, other));
    assert_eq!(judge(&model, 2, &[(1, 0, Seen::Zeros), later]), Ok(other));
    assert!(judge(&model, 2, &[(1, 0, data(1, 0, first)), later]).is_err());
    assert_eq!(judge(&model, first, &[(1, 0, Seen::Zeros), (1, 1, Seen::Zeros)]), Ok(zeroed));
    assert_eq!(model.value(1, 0), Value::Zero);
    assert_eq!(model.value(1, 7), Value::Zero);
    assert_eq!(model.value(1, 50), Value::Hole);
    assert_eq!(model.value(1, 1), Value::Data);
    assert_eq!(model.live_blocks(), 1);
}

#[test]
fn the_catalogue_is_part_of_the_prefix() {
    let mut model = model();
    model.next_number();
    model.admit(Change::Disk { disk: 3, blocks: Some(10) });
    let late = write(&mut model, 1, 0, 1);
    let mut judge = model.judge(2, model.top());
    judge.disk(3, None).unwrap();
    judge.block(1, 0, data(1, 0, late)).unwrap();
    assert!(judge.verdict().is_err(), "a later write without the disk made before it");
    let mut judge = model.judge(2, model.top());
    assert!(judge.disk(3, Some(11)).is_err());
    assert!(judge.disk(9, Some(11)).is_err());
}

#[test]
fn what_was_undone_never_comes_back() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 1);
    let second = write(&mut model, 1, 0, 1);
    model.settle(first, first);
    assert!(judge(&model, first, &[(1, 0, data(1, 0, second))]).is_err());
    assert!(judge(&model, first, &[(1, 0, data(1, 0, first))]).is_ok());
    let third = write(&mut model, 1, 0, 1);
    assert!(third > second, "numbers are never used again");
    assert!(judge(&model, first, &[(1, 0, data(1, 0, first))]).is_ok());
}

#[test]
fn a_read_sees_a_version_of_its_time() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 1);
    let second = write(&mut model, 1, 0, 1);
    assert!(model.fits(1, 0, data(1, 0, first), first, second).is_ok());
    assert!(model.fits(1, 0, data(1, 0, first), second, second).is_err());
    assert!(model.fits(1, 0, Seen::Zeros, first, second).is_err());
    let foreign = Stamp { run: 2, number: second, disk: 1, lba: 0 };
    assert!(model.fits(1, 0, Seen::Data(foreign), first, second).is_err());
    let broken = Seen::Broken { claim: foreign, sector: 1 };
    assert!(model.fits(1, 0, broken, first, second).is_err());
}

#[test]
fn a_change_cut_short_may_have_happened() {
    let mut model = model();
    let sure = write(&mut model, 1, 0, 1);
    model.next_number();
    model.admit_perhaps(Change::Disk { disk: 2, blocks: None });
    assert_eq!((model.replied(), model.top()), (sure, sure + 1));
    let mut judge = model.judge(model.replied(), model.top());
    judge.disk(2, Some(100)).unwrap();
    assert_eq!(judge.verdict(), Ok(sure));
    let mut judge = model.judge(model.replied(), model.top());
    judge.disk(2, None).unwrap();
    assert_eq!(judge.verdict(), Ok(sure + 1));
}

#[test]
fn a_disk_cut_and_grown_again_holds_zeros() {
    let mut model = model();
    let first = write(&mut model, 1, 60, 1);
    for blocks in [50, 100] {
        model.next_number();
        model.admit(Change::Disk { disk: 1, blocks: Some(blocks) });
    }
    let (low, high) = (model.replied(), model.top());
    assert!(model.fits(1, 60, data(1, 60, first), low, high).is_err());
    assert!(model.fits(1, 60, Seen::Zeros, low, high).is_ok());
}

#[test]
fn the_stores_own_numbers_rise_and_promise() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 1);
    model.numbered(10).unwrap();
    write(&mut model, 1, 0, 1);
    model.numbered(12).unwrap();
    assert!(model.numbered(12).is_err());
    model.promise_sequence(11);
    assert_eq!(model.promised(), first);
}

#[test]
fn what_a_process_crash_kept_may_still_be_lost_if_nobody_promised_it() {
    let mut model = model();
    let first = write(&mut model, 1, 0, 1);
    let second = write(&mut model, 1, 0, 1);
    model.settle(second, first);
    assert_eq!(judge(&model, model.promised(), &[(1, 0, data(1, 0, first))]), Ok(first));
    assert_eq!(judge(&model, model.promised(), &[(1, 0, data(1, 0, second))]), Ok(second));
    assert!(judge(&model, model.promised(), &[(1, 0, Seen::Zeros)]).is_err());
}
