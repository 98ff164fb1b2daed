//! Repairing a pool that nobody serves: says what would be done and what would be lost by it, and
//! does it only if told to.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use bowline_arena::{Arena, Memory, OwnerLock, Pages, boot_id};
use bowline_store::{ArenaRegion, CheckOptions, CheckReport, RepairStep, StoreOptions};

use super::check::{losses, place_of};
use super::{PATIENCE, failed, nobody_writes};
use crate::control::api::{Finding, Kind, Problem, RepairReport};

const CHECK_BYTES: u64 = 64 << 20;
const CONTROL_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = 32 << 20;

/// A repair that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Repair {
    /// Whether to do it; otherwise it is only said what would be done.
    pub apply: bool,
    /// Whether to go on although the arena is gone, and acknowledged writes with it.
    pub accept_loss: bool,
}

/// Checks a pool, and repairs what can be repaired if that was asked for.
pub fn repair(path: &Path, order: Repair) -> Result<RepairReport, Problem> {
    let lock = OwnerLock::pool(path).map_err(|error| failed(path, "lock", error))?;
    let Some(_lock) = lock else {
        let what = format!("{} is in use", path.display());
        return Err(Problem::new(Kind::Busy, what)
            .why("a server has it open")
            .next("stop the server first"));
    };
    let is_quiet = nobody_writes(path, PATIENCE)?;
    let report = checked(path)?;
    let mut findings: Vec<Finding> =
        report.repairs.iter().map(|step| step_words(&report, step)).collect();
    findings.extend(losses(&report));
    let applied = order.apply && !report.repairs.is_empty();
    if applied {
        apply(path, &report.repairs, order.accept_loss, is_quiet)?;
    }
    Ok(RepairReport { applied, findings })
}

fn checked(path: &Path) -> Result<CheckReport, Problem> {
    let memory = Rc::new(Memory::private(CHECK_BYTES));
    let mut options = bowline_media::OpenOptions::new(memory.clone());
    options.read_only = true;
    let opened = bowline_media::open(path, options).map_err(|error| failed(path, "open", error))?;
    let mut media = opened.media;
    let pages = Rc::new(RefCell::new(Pages::whole(memory)));
    bowline_store::check(&mut media, &pages, CheckOptions::default())
        .map_err(|error| failed(path, "check", error))
}

fn apply(
    path: &Path,
    steps: &[RepairStep],
    accept_loss: bool,
    is_quiet: bool,
) -> Result<(), Problem> {
    let Arena { memory, control, pages, .. } = Arena::private(CONTROL_BYTES, PAGE_BYTES);
    let options = bowline_media::OpenOptions::new(memory);
    let opened = bowline_media::open(path, options).map_err(|error| failed(path, "open", error))?;
    let region = ArenaRegion { control, index: None, pages, is_fresh: true };
    let boot = boot_id().map_err(|error| failed(path, "find this boot of", error))?;
    let options = StoreOptions { boot, accept_loss, is_quiet, ..StoreOptions::default() };
    bowline_store::repair(opened.media, region, steps, options)
        .map_err(|error| failed(path, "repair", error))
}

fn step_words(report: &CheckReport, step: &RepairStep) -> Finding {
    let (place, what, remedy) = match step {
        RepairStep::Copies => (
            "pool headers and superblocks".into(),
            "damaged copies are written again from the good ones".into(),
            "nothing is lost by it",
        ),
        RepairStep::CutLog { after } => (
            "log".into(),
            format!("the log is cut off behind batch {after}"),
            "what lies behind it is lost: the writes listed, and what the missing batch held",
        ),
        RepairStep::Empty { slot } => (
            format!("slot {slot}"),
            "what lies in it is moved elsewhere, away from a damaged header".into(),
            "nothing is lost by it",
        ),
        RepairStep::GiveUp { disk, lba, blocks, level, .. } => (
            place_of(report, *disk, lba.0, *blocks),
            match level {
                0 => "what cannot be read is given up".into(),
                _ => "what only a damaged page of the map knew is given up".into(),
            },
            "reads of the blocks listed fail until they are written or discarded",
        ),
    };
    Finding { place, what, remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::control::api::Verdict;
    use crate::offline::{Create, check, create};

    #[test]
    fn a_header_is_written_again_only_if_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let order = Create { path: path.clone(), size_bytes: Some(64 << 20), preallocate: false };
        create(&order).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0x55; 512], 0).unwrap();
        drop(file);
        let said = repair(&path, Repair { apply: false, accept_loss: false }).unwrap();
        assert_eq!((said.applied, said.findings.len()), (false, 1));
        assert_eq!(check(&path).unwrap().verdict, Verdict::Repairable);
        let done = repair(&path, Repair { apply: true, accept_loss: false }).unwrap();
        assert!(done.applied);
        assert_eq!(check(&path).unwrap().verdict, Verdict::Sound);
    }
}
