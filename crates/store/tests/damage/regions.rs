//! Damage that does not care about structures: slots put back or swapped, media cut short, regions
//! lost, bits flipped anywhere.

use bowline_store::CheckVerdict;

use crate::world::{BLOCK, Outcome, Random, image, judge, judge_unreadable, slot, slots};

fn count(outcomes: &[Outcome], verdict: CheckVerdict) -> usize {
    outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
}

#[test]
fn an_old_copy_of_a_slot_is_put_back() {
    let image = image();
    let mut outcomes = Vec::new();
    for index in 0..slots() {
        let mut last: &[u8] = &image.bytes[slot(index)];
        for earlier in image.earlier.iter().rev() {
            let Some(old) = earlier.get(slot(index)).filter(|old| *old != last) else { continue };
            last = old;
            let mut bytes = image.bytes.clone();
            bytes[slot(index)].copy_from_slice(old);
            outcomes.push(judge(image, bytes, 5));
        }
    }
    assert!(outcomes.len() > 150, "{}", outcomes.len());
    let damaged = count(&outcomes, CheckVerdict::Damaged);
    assert!(damaged > outcomes.len() / 2, "{damaged} of {}", outcomes.len());
    assert!(outcomes.iter().any(|one| one.is_open && !one.is_healthy), "a gap in the log");
    assert!(outcomes.iter().any(|one| one.is_healthy && one.errors > 0), "lost data");
}

#[test]
fn a_slot_of_the_log_is_lost_or_full_of_garbage() {
    let image = image();
    let mut random = Random::new(5);
    for index in 0..slots() {
        for kind in 0..2 {
            let mut bytes = image.bytes.clone();
            match kind {
                0 => bytes[slot(index)].fill(0),
                _ => bytes[slot(index)].fill_with(|| random.next() as u8),
            }
            judge(image, bytes, 5);
        }
    }
}

#[test]
fn two_slots_are_swapped() {
    let image = image();
    let mut random = Random::new(6);
    let mut outcomes = Vec::new();
    for _ in 0..120 {
        let (one, two) = (random.below(slots() as u64), random.below(slots() as u64));
        let (one, two) = (slot(one as usize), slot(two as usize));
        let mut bytes = image.bytes.clone();
        bytes[one.clone()].copy_from_slice(&image.bytes[two.clone()]);
        bytes[two].copy_from_slice(&image.bytes[one]);
        outcomes.push(judge(image, bytes, 5));
    }
    assert!(count(&outcomes, CheckVerdict::Damaged) > 60);
}

#[test]
fn the_medium_is_cut_short_anywhere() {
    let image = image();
    let mut random = Random::new(7);
    let total = image.bytes.len();
    let mut ends = vec![0, 1, 63, BLOCK, 64 << 10, 128 << 10, 1 << 20, total - 1, total - BLOCK];
    ends.extend((0..80).map(|_| random.below(total as u64) as usize));
    for end in ends {
        let outcome = judge(image, image.bytes[..end].to_vec(), 5);
        assert!(!outcome.is_healthy, "cut at {end}: {outcome:?}");
        assert_ne!(outcome.verdict, CheckVerdict::Clean);
    }
}

#[test]
fn superblocks_of_an_earlier_time_are_put_back() {
    let image = image();
    for earlier in &image.earlier {
        for pair in 0..4 {
            let at = (128 << 10) + pair * (32 << 10);
            let mut bytes = image.bytes.clone();
            bytes[at..at + (32 << 10)].copy_from_slice(&earlier[at..at + (32 << 10)]);
            judge(image, bytes, 5);
        }
        let mut bytes = image.bytes.clone();
        bytes[..1 << 20].copy_from_slice(&earlier[..1 << 20]);
        judge(image, bytes, 5);
    }
}

#[test]
fn both_copies_of_a_superblock_are_lost() {
    let image = image();
    let mut verdicts = Vec::new();
    for pair in 0..4 {
        let at = (128 << 10) + pair * (32 << 10);
        let mut bytes = image.bytes.clone();
        bytes[at..at + (32 << 10)].fill(0);
        verdicts.push(judge(image, bytes, 5).verdict);
    }
    let damaged = verdicts.iter().filter(|verdict| **verdict == CheckVerdict::Damaged).count();
    // The last one is missed, and so is the place where a later one could have been.
    assert_eq!(damaged, 2, "{verdicts:?}");
}

#[test]
fn a_copy_of_a_superblock_that_cannot_be_read_stops_nobody() {
    let image = image();
    for copy in 0..8 {
        let bad = (128 << 10) + copy * (16 << 10);
        let bad = bad..bad + 4096;
        let outcome = judge_unreadable(image, image.bytes.clone(), &[bad], 5);
        assert!(outcome.is_healthy, "copy {copy}: {:?}", outcome.verdict);
    }
}

#[test]
fn sectors_that_cannot_be_read() {
    let image = image();
    let mut random = Random::new(8);
    let mut errors = 0;
    for _ in 0..250 {
        let at = random.below(image.bytes.len() as u64 / 4096) * 4096;
        let bad = at..at + 4096 * (1 + random.below(3));
        errors += judge_unreadable(image, image.bytes.clone(), &[bad], 5).errors;
    }
    assert!(errors > 0);
}

#[test]
fn regions_of_zeros_and_garbage() {
    let image = image();
    let mut random = Random::new(9);
    for _ in 0..250 {
        let blocks = 1 + random.below(24) as usize;
        let at = random.below(image.bytes.len() as u64 / 512) as usize * 512;
        let end = (at + blocks * 512 * (1 + random.below(8) as usize)).min(image.bytes.len());
        let mut bytes = image.bytes.clone();
        match random.below(3) {
            0 => bytes[at..end].fill(0),
            1 => bytes[at..end].fill_with(|| random.next() as u8),
            _ => bytes.copy_within(0..end - at, at),
        }
        judge(image, bytes, 5);
    }
}

#[test]
fn bits_flipped_by_seed() {
    let image = image();
    let mut damaged = 0;
    let seeds = if cfg!(debug_assertions) { 1500 } else { 6000 };
    for seed in 0..seeds {
        let mut random = Random::new(1000 + seed);
        let mut bytes = image.bytes.clone();
        for _ in 0..1 + random.below(12) {
            let at = random.below(image.bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        damaged += usize::from(judge(image, bytes, 31).verdict == CheckVerdict::Damaged);
    }
    assert!(damaged > seeds as usize / 8, "{damaged} of {seeds}");
}
