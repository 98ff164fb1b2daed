//! A device that says that it has flushed and has not. No store can keep its promises on it; a good
//! one finds out where that can be proven, and never serves what was never written.

use crate::faults::Faults;
use crate::model::Violation;
use crate::recover::Crash;
use crate::run::{Options, POOL_HEAD_BLOCKS, Simulation, Stop, guarded};
use crate::stamp::Seen;
use crate::subject::{Health, OpenError, Setup, Subject};
use crate::{Coverage, Random};

/// Lets a device lie under a load, takes its power away, and counts what comes of it: `lies told by
/// the pool`, `lies without a loss`, `lies that could not be proven`.
///
/// # Errors
/// If something is served that was never written, or the store panics.
pub fn lie<S: Subject>(seed: u64) -> Result<Coverage, Violation> {
    let options = Options { faults: false, damage: false, ..Options::default() };
    let mut random = Random::new(seed);
    let setup = S::setup(Setup {
        slot_blocks: 32,
        slots: 60,
        medium_blocks: 32 * 60 + POOL_HEAD_BLOCKS,
        arena_bytes: 4 << 20,
        in_place: seed.is_multiple_of(2),
        checkpoint_bytes: 1 << 20,
        broken: None,
        seed,
    });
    let mut load = Simulation::<S>::new(seed, &options, setup, random.fork(), None);
    load.begin()?;
    load.settled(|load| (0..200).try_for_each(|_| load.step()))?;
    *load.host.device.borrow_mut().faults() = Faults { lies: 100_000, ..Faults::default() };
    load.settled(|load| (0..400).try_for_each(|_| load.step()))?;
    *load.host.device.borrow_mut().faults() = Faults::default();
    load.end(Crash::Host, Crash::Clean);
    let mut coverage = Coverage::default();
    match guarded(|| S::open(&load.host, &load.setup, false)) {
        Ok(Ok(subject)) => load.subject = Some(subject),
        Ok(Err(OpenError::Damaged(_))) => {
            coverage.hit("lies told by the pool");
            return Ok(coverage);
        }
        Ok(Err(error)) => return Err(Violation(format!("recovery: {error}"))),
        Err(Stop::Broken(violation)) => return Err(violation),
        Err(Stop::Died) => return Err(Violation("the process died by itself".into())),
    }
    let health = load.subject.as_ref().map(Subject::health);
    load.damaged = true;
    load.settled(Simulation::read_everything)?;
    for &(disk, lba, seen) in &load.judged {
        if let Some(Seen::Data(stamp)) = seen {
            let is_ours = (stamp.run, stamp.disk, stamp.lba) == (seed, disk, lba);
            if !is_ours {
                return Err(Violation(format!("disk {disk} block {lba} holds {stamp:?}")));
            }
        }
        if let Some(broken @ Seen::Broken { .. }) = seen {
            return Err(Violation(format!("disk {disk} block {lba} holds {broken:?}")));
        }
    }
    if matches!(health, Some(Health::Damaged(_))) {
        coverage.hit("lies told by the pool");
    } else if load.judge(load.model.promised(), load.model.top()).is_ok() {
        coverage.hit("lies without a loss");
    } else {
        coverage.hit("lies that could not be proven");
    }
    Ok(coverage)
}
