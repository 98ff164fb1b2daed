//! Checking a pool: the store's report in the words of the control plane.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::rc::Rc;

use bowline_arena::{Memory, OwnerLock, Pages};
use bowline_store::{CheckOptions, CheckProgress, CheckVerdict, Severity};

use super::failed;
use crate::control::api::{CheckReport, Finding, Kind, Problem, Verdict};
use crate::size::Size;

/// Buffers for reading; what the check remembers of a pool is not in it.
const MEMORY_BYTES: u64 = 64 << 20;

/// Reads a pool through and gives a verdict. Nothing is written.
pub fn check(path: &Path) -> Result<CheckReport, Problem> {
    let lock = OwnerLock::pool(path).map_err(|error| failed(path, "lock", error))?;
    let Some(_lock) = lock else {
        let what = format!("{} is in use", path.display());
        return Err(Problem::new(Kind::Busy, what)
            .why("a server has it open")
            .next("check it online with `bowline pool scrub`, or stop the server first"));
    };
    let memory = Rc::new(Memory::private(MEMORY_BYTES));
    let mut options = bowline_media::OpenOptions::new(memory.clone());
    options.read_only = true;
    let opened = bowline_media::open(path, options).map_err(|error| failed(path, "open", error))?;
    let mut media = opened.media;
    let pages = Rc::new(RefCell::new(Pages::whole(memory)));
    let is_watched = std::io::stderr().is_terminal();
    let mut show = |progress: CheckProgress| show(progress);
    let options = CheckOptions {
        progress: is_watched.then_some(&mut show as &mut dyn FnMut(CheckProgress)),
        ..CheckOptions::default()
    };
    let report = bowline_store::check(&mut media, &pages, options);
    if is_watched {
        eprint!("\r{:60}\r", "");
    }
    translated(path, &report.map_err(|error| failed(path, "check", error))?)
}

fn show(progress: CheckProgress) {
    let (done, total) = (Size(progress.done_bytes), Size(progress.total_bytes));
    eprint!("\r{:60}\r{done} of {total} verified", "");
    let _ = std::io::stderr().flush();
}

fn translated(path: &Path, report: &bowline_store::CheckReport) -> Result<CheckReport, Problem> {
    let verdict = match report.verdict {
        CheckVerdict::Clean | CheckVerdict::Dirty => Verdict::Sound,
        CheckVerdict::Repairable => Verdict::Repairable,
        CheckVerdict::Damaged => Verdict::Damaged,
        CheckVerdict::NotAPool => {
            let what = format!("{} holds no Bowline pool", path.display());
            return Err(Problem::new(Kind::No, what));
        }
    };
    let mut findings: Vec<Finding> = report.findings.iter().map(finding).collect();
    findings.extend(losses(report));
    Ok(CheckReport {
        path: path.display().to_string(),
        id: report.pool.map_or_else(String::new, |pool| format!("{:032x}", pool.0)),
        verdict,
        is_clean: report.is_clean,
        slots: u64::from(report.slots),
        segments: report.segments,
        disks: report.disks.len() as u64,
        verified_bytes: report.verified_bytes,
        sequence_last: report.sequence_last.0,
        findings,
    })
}

/// What cannot be read, one finding a range.
pub fn losses(report: &bowline_store::CheckReport) -> impl Iterator<Item = Finding> {
    report.losses.iter().map(|loss| {
        let place = place_of(report, loss.disk, loss.lba.0, loss.blocks);
        let expected = match loss.is_given_up {
            true => String::new(),
            false => format!(", expected in segment {}, slot {}", loss.segment, loss.slot),
        };
        Finding {
            place: format!("{place}{expected}"),
            what: loss.why.clone(),
            remedy: "write the range again from a copy".into(),
        }
    })
}

/// A range of a disk, in words.
pub fn place_of(
    report: &bowline_store::CheckReport,
    disk: bowline_store::DiskId,
    first: u64,
    blocks: u64,
) -> String {
    let found = report.disks.iter().find(|found| found.id == disk);
    let name = found.map_or_else(|| disk.to_string(), |found| found.name.clone());
    format!("disk {name}, blocks {first} to {}", first + blocks.saturating_sub(1))
}

fn finding(finding: &bowline_store::Finding) -> Finding {
    let note = if finding.severity == Severity::Note { "note: " } else { "" };
    Finding {
        place: finding.place.clone(),
        what: format!("{note}{}", finding.what),
        remedy: finding.remedy.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::offline::{Create, create};

    #[test]
    fn a_new_pool_is_sound_and_a_damaged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let order = Create { path: path.clone(), size_bytes: Some(64 << 20), preallocate: false };
        let created = create(&order).unwrap();
        let report = check(&path).unwrap();
        assert_eq!((report.verdict, report.findings.len()), (Verdict::Sound, 0));
        assert_eq!(report.id, created.id);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0x55; 512], 0).unwrap();
        let report = check(&path).unwrap();
        assert_ne!(report.verdict, Verdict::Sound, "{report:?}");
        assert!(!report.findings.is_empty());
    }

    #[test]
    fn what_is_no_pool_is_told_apart_from_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zeros");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        assert_eq!(check(&path).unwrap_err().kind, Kind::No);
    }
}
