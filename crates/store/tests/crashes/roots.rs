//! Superblocks, in two copies that must never be in doubt at once: a process is killed before each
//! write and flush near the writing of one, and its successor's start is cut off by a loss of power
//! before each of its own. Of all that is not flushed then, whoever wrote it, each sector of a
//! superblock is there or what it was before, in every combination; of the rest nothing, all or
//! every other sector is there. The pool must open, and hold what a model says.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use bowline_arena::Memory;
use bowline_store::{Broken, DiskId, Io, PoolState, ScrubState};
use twox_hash::XxHash3_64;

use crate::history::{Death, History};
use crate::world::{BLOCK, Before, FIRST_SLOT_AT, Fails, Step, Tape, Taped, Walk, after_power_cut};

const SECTOR: usize = 512;
const SUPERBLOCKS: std::ops::Range<usize> = 128 << 10..FIRST_SLOT_AT as usize;

/// What was tried.
#[derive(Default)]
struct Tried {
    deaths: Cell<u64>,
    cuts: Cell<u64>,
    /// Of these, with sectors of both an old and a new superblock in one place.
    torn: Cell<u64>,
    /// Bytes and bounds that were judged: many ways lead to the same.
    judged: RefCell<HashSet<(u64, (u64, u64))>>,
}

fn count(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get() + more);
}

fn is_root(io: &Io) -> bool {
    matches!(io, Io::Write { at, .. } if SUPERBLOCKS.contains(&(*at as usize)))
}

/// Whether this write, or one before it that is not flushed, is of a superblock.
fn is_near(before: &Io, walk: &Walk, last: Option<&Step>) -> bool {
    let is_pending = walk.pending.iter().any(|(at, _)| SUPERBLOCKS.contains(at));
    is_root(before) || is_pending || matches!(last, Some(Step::FailedFlush))
}

/// Sectors that are not flushed, in the order they were written: place and bytes.
type Sectors<'a> = Vec<(usize, &'a [u8])>;

/// Those of superblocks that are not what was there before, and all others.
fn loose(walk: &Walk) -> (Sectors<'_>, Sectors<'_>) {
    let doubtful = walk.doubtful.iter().map(|(at, block)| (*at, block.as_slice()));
    let pending = walk.pending.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
    let (roots, rest): (Sectors, Sectors) = doubtful
        .chain(pending)
        .flat_map(|(at, bytes)| (at..).step_by(SECTOR).zip(bytes.chunks(SECTOR)))
        .partition(|(at, _)| SUPERBLOCKS.contains(at));
    let is_new = |(at, sector): &(usize, &[u8])| walk.stable[*at..*at + SECTOR] != **sector;
    (roots.into_iter().filter(is_new).collect(), rest)
}

fn sum_of_block(bytes: &[u8], at: usize) -> u64 {
    XxHash3_64::oneshot_with_seed(at as u64, &bytes[at..at + BLOCK])
}

fn sum_of(bytes: &[u8]) -> u64 {
    (0..bytes.len()).step_by(BLOCK).fold(0, |sum, at| sum ^ sum_of_block(bytes, at))
}

/// All that a loss of power may leave, one after the other: how, whether a superblock is torn
/// there, a sum of the bytes and the bytes. `sum` is that of what is flushed.
fn each_loss(walk: &Walk, sum: u64, mut judge: impl FnMut(&str, bool, u64, &[u8])) {
    let (roots, rest) = loose(walk);
    assert!(roots.len() < 13, "{} sectors are not flushed", roots.len());
    let places: BTreeSet<usize> =
        roots.iter().chain(&rest).map(|(at, _)| at / BLOCK * BLOCK).collect();
    let mut bytes = walk.stable.clone();
    for parts in 0..if rest.is_empty() { 1 } else { 3 } {
        for mask in 0..1u32 << roots.len() {
            let rest = rest.iter().filter(|(at, _)| parts > at / SECTOR % 2);
            let some = (0..).zip(&roots).filter(|(number, _)| mask >> number & 1 == 1);
            for (at, sector) in rest.chain(some.map(|(_, sector)| sector)) {
                bytes[*at..*at + SECTOR].copy_from_slice(sector);
            }
            let sum = places.iter().fold(sum, |sum, at| {
                sum ^ sum_of_block(&walk.stable, *at) ^ sum_of_block(&bytes, *at)
            });
            let is_torn = mask != 0 && mask + 1 != 1 << roots.len();
            judge(&format!("sectors {mask:b}, rest {parts}"), is_torn, sum, &bytes);
            for at in &places {
                bytes[*at..*at + BLOCK].copy_from_slice(&walk.stable[*at..*at + BLOCK]);
            }
        }
    }
}

/// A successor that is killed in its start.
struct Second {
    before: Io,
    /// How many steps it had made.
    length: usize,
    bytes: RefCell<Vec<u8>>,
    memory: Memory,
}

/// Cuts the start of a killed process's successor off everywhere: by losses of power, and so many
/// times by another kill, with which it begins anew.
fn cut_start(death: &Death, walk: &Walk, tried: &Tried, more_deaths: u32) {
    count(&tried.deaths, 1);
    let tape = Rc::new(RefCell::new(Tape::default()));
    let seconds = Rc::new(RefCell::new(Vec::new()));
    let (noted, taped) = (seconds.clone(), tape.clone());
    let note = |media: &Taped| -> Option<Before> {
        let (bytes, memory) = (media.bytes.clone(), media.memory.clone());
        Some(Rc::new(move |before: &Io| {
            let steps = &taped.borrow().steps;
            let is_after =
                matches!(steps.last(), Some(Step::Write { at, .. }) if SUPERBLOCKS.contains(at));
            if !is_root(before) && !is_after {
                return;
            }
            let length = steps.len();
            let (before, bytes) = (before.clone(), RefCell::new(bytes.borrow().clone()));
            let memory = memory.successor();
            noted.borrow_mut().push(Second { before, length, bytes, memory });
        }))
    };
    let length = match more_deaths {
        0 => death.start(Some(tape.clone()), |_| None),
        _ => death.start(Some(tape.clone()), note),
    };
    let steps = &tape.borrow().steps[..length];
    let (timeline, at) = (death.tape.timelines.last().unwrap(), death.tape.steps.len());
    let (low, _) = timeline.bounds(at);
    let high = timeline.admitted.last().map_or(low, |last| last.1).max(low);
    let (mut walk, mut sum) = (walk.clone(), sum_of(&walk.stable));
    for cut in 0..=length {
        // What a start has found when it is open is durable.
        let bounds = (if cut == length { high } else { low }, high);
        each_loss(&walk, sum, |how, is_torn, sum, bytes| {
            if !tried.judged.borrow_mut().insert((sum, bounds)) {
                return;
            }
            count(&tried.cuts, 1);
            count(&tried.torn, u64::from(is_torn));
            let bytes = bytes.to_vec();
            after_power_cut(bytes, timeline, bounds, death.boot + 1, death.broken).unwrap_or_else(
                |error| panic!("killed at {at}, cut off after {cut} steps, {how}: {error}"),
            );
        });
        for second in seconds.borrow().iter().filter(|second| second.length == cut) {
            let Second { before, bytes, memory, .. } = second;
            if cut > 0 && cut < length {
                let death = Death { before, bytes, memory, ..*death };
                cut_start(&death, &walk, tried, more_deaths - 1);
            }
        }
        if let Some(step) = steps.get(cut) {
            walk.step(step);
            sum = if matches!(step, Step::Flush) { sum_of(&walk.stable) } else { sum };
        }
    }
}

/// A history whose processes are killed near superblocks, and their successors so many times.
fn history(broken: Option<Broken>, more_deaths: u32) -> (History, Rc<Tried>) {
    let mut history = History::new(7, broken);
    let tried = Rc::new(Tried::default());
    let (noted, seen) = (tried.clone(), RefCell::new((0, Walk::over(&[]))));
    history.killed = Rc::new(move |death: &Death| {
        let (walked, walk) = &mut *seen.borrow_mut();
        death.tape.steps[*walked..].iter().for_each(|step| walk.step(step));
        *walked = death.tape.steps.len();
        if is_near(death.before, walk, death.tape.steps.last()) {
            cut_start(death, walk, &noted, more_deaths);
        }
    });
    // The first process did not know.
    history.power_cut(true);
    (history, tried)
}

fn some(history: &mut History, disk: DiskId) {
    for _ in 0..3 {
        let lba = history.below(50);
        history.write(disk, lba, 4);
    }
    history.world().poll(4);
}

fn told(tried: &Tried) -> (u64, u64, u64) {
    let told = (tried.deaths.get(), tried.cuts.get(), tried.torn.get());
    println!("{} deaths, {} losses of power, {} tore a superblock", told.0, told.1, told.2);
    told
}

/// Checkpoints, starts, and a clean end, until the epochs are back at the first pair.
fn all_superblocks(broken: Option<Broken>) {
    let (mut history, tried) = history(broken, 1);
    let disk = history.create("small", 60);
    for round in 0..4 {
        some(&mut history, disk);
        if round % 2 == 0 {
            history.flush();
        }
        history.checkpoint(10_000);
        some(&mut history, disk);
        history.kill();
    }
    some(&mut history, disk);
    history.world().store.close().unwrap();
    let (deaths, cuts, torn) = told(&tried);
    assert!(deaths > 100 && cuts > 400 && torn > 300, "{deaths}, {cuts}, {torn}");
}

#[test]
fn a_death_near_a_superblock_and_a_loss_of_power_in_the_next_start_are_survived() {
    all_superblocks(None);
}

/// The n-th write of a superblock fails, or the n-th flush of one.
fn failing(is_flush: bool, nth: u64) -> Fails {
    let (is_next, seen) = (Cell::new(false), Cell::new(0));
    Rc::new(move |io| {
        let is_root = matches!(io, Io::Write { at, .. } if SUPERBLOCKS.contains(&(*at as usize)));
        let is_it = if is_flush { is_next.replace(is_root) } else { is_root };
        seen.set(seen.get() + u64::from(is_it));
        is_it && seen.get() == nth
    })
}

/// Either copy of a checkpoint's superblock cannot be written or flushed. The pool stops, and goes
/// on when it is told to, or its process is killed.
fn failed_copies(broken: Option<Broken>) {
    for (is_flush, nth) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let (mut history, tried) = history(broken, 0);
        let disk = history.create("small", 60);
        some(&mut history, disk);
        history.flush();
        // The start writes both copies of its own.
        history.fails = Some(failing(is_flush, 2 + nth));
        history.kill();
        some(&mut history, disk);
        history.flush();
        some(&mut history, disk);
        history.checkpoint(10_000);
        assert!(matches!(history.world().store.status().state, PoolState::Stopped(_)));
        history.world().store.resume().unwrap();
        history.world().poll(10_000);
        assert!(history.world().store.resumed().is_some_and(|result| result.is_ok()));
        history.flush();
        some(&mut history, disk);
        history.checkpoint(10_000);
        history.kill();
        told(&tried);
    }
}

#[test]
fn a_copy_of_a_superblock_that_failed_puts_the_other_at_no_risk() {
    failed_copies(None);
}

/// Damages a copy of the superblock that counts, where it lies.
fn spoil(history: &mut History, copy: usize) {
    let epoch = history.world().store.status().epoch as usize;
    let at = SUPERBLOCKS.start + (epoch % 4 * 2 + copy) * (16 << 10);
    let mut bytes = history.bytes.borrow()[at..at + BLOCK].to_vec();
    bytes[100] ^= 1;
    history.bytes.borrow_mut()[at..at + BLOCK].copy_from_slice(&bytes);
    let bytes = Rc::new(bytes);
    history.tape.borrow_mut().steps.extend([Step::Write { at, bytes }, Step::Flush]);
}

/// Either copy of the superblock is damaged, and a scrub finds that.
fn damaged_copies(broken: Option<Broken>) {
    for copy in 0..2 {
        let (mut history, tried) = history(broken, 0);
        let disk = history.create("small", 60);
        some(&mut history, disk);
        history.checkpoint(10_000);
        some(&mut history, disk);
        history.flush();
        spoil(&mut history, copy);
        history.world().store.start_scrub(u64::MAX);
        while history.world().store.scrub_news() == (ScrubState::Running, 0) {
            history.world().poll(1);
        }
        assert_eq!(history.world().store.scrub_news().1, 1);
        history.checkpoint(10_000);
        told(&tried);
    }
}

#[test]
fn a_damaged_copy_of_a_superblock_puts_the_other_at_no_risk() {
    damaged_copies(None);
}

/// Whether a pool is lost to a loss of power.
fn is_lost(what: fn(Option<Broken>), broken: Broken) -> bool {
    let result = std::panic::catch_unwind(|| what(Some(broken)));
    let text = result.err().and_then(|panic| panic.downcast::<String>().ok());
    text.is_some_and(|text| text.contains("cut off after") && text.contains("both copies"))
}

#[test]
fn every_superblock_written_in_a_wrong_order_is_noticed() {
    assert!(is_lost(all_superblocks, Broken::BothCopiesUnflushed));
    assert!(is_lost(failed_copies, Broken::FoundCopyBelieved));
    assert!(is_lost(failed_copies, Broken::SoundCopyFirst));
    assert!(is_lost(damaged_copies, Broken::SoundCopyFirst));
}
