//! Pool headers and superblocks.

use crate::blocking::Blocking;
use crate::check::report::{CheckReport, Place, PlaceKind, RepairStep, Severity};
use crate::format::{POOL_HEADER_AT, PoolHeader, Superblock, has_pool_magic, superblock_at};
use crate::recovery::{choose_root, read_roots};
use crate::{BLOCK_BYTES, Media, MediumError, StoreError};

pub(super) const AGAIN: &str = "`bowline pool repair` writes it again";

/// Both copies of the pool header. None if neither can be used.
pub(super) fn check_headers<M: Media>(
    medium: &mut Blocking<'_, M>,
    report: &mut CheckReport,
    places: bool,
) -> Result<Option<PoolHeader>, StoreError> {
    let mut good: Option<PoolHeader> = None;
    let mut bad = Vec::new();
    let mut was_pool = false;
    for (copy, at) in POOL_HEADER_AT.into_iter().enumerate() {
        if places {
            report.places.push(Place { kind: PlaceKind::Header, at, bytes: BLOCK_BYTES });
        }
        let found = match medium.read(at, BLOCK_BYTES) {
            Ok(block) => {
                was_pool |= has_pool_magic(block);
                PoolHeader::decode(block)
            }
            Err(MediumError::Died) => return Err(MediumError::Died.into()),
            Err(error) => Err(StoreError::Medium(error)),
        };
        match (found, good) {
            (Ok(header), None) => good = Some(header),
            (Ok(header), Some(first)) if header == first => {}
            (Ok(_), Some(_)) => bad.push((copy, "is of another pool".to_string())),
            (Err(error), _) => bad.push((copy, error.to_string())),
        }
    }
    report.pool = good.map(|header| header.pool);
    for (copy, what) in bad {
        let severity = match good {
            Some(_) => Severity::Repairable,
            None if was_pool => Severity::Loss,
            None => Severity::Note,
        };
        let remedy = if good.is_some() { AGAIN } else { "restore the pool from a copy" };
        report.find(severity, format!("copy {copy} of the pool header"), what, remedy);
    }
    if good.is_some() && !report.findings.is_empty() {
        report.repair(RepairStep::Copies);
    }
    Ok(good)
}

/// All superblocks. None if it cannot be told which one counts.
pub(super) fn check_roots<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    report: &mut CheckReport,
    places: bool,
) -> Result<Option<Superblock>, StoreError> {
    let copies = read_roots(medium, header);
    let mut bad = Vec::new();
    for one in &copies {
        let at = superblock_at(one.pair, one.copy);
        if places {
            report.places.push(Place { kind: PlaceKind::Superblock, at, bytes: BLOCK_BYTES });
        }
        match &one.found {
            Ok(Some(_)) => {}
            Ok(None) => bad.push((one.pair, one.copy, "does not verify".to_string())),
            Err(MediumError::Died) => return Err(MediumError::Died.into()),
            Err(error) => bad.push((one.pair, one.copy, error.to_string())),
        }
    }
    for (pair, copy, what) in &bad {
        let place = format!("copy {copy} of superblock {pair}");
        report.find(Severity::Repairable, place, what.clone(), AGAIN);
    }
    if !bad.is_empty() {
        report.repair(RepairStep::Copies);
    }
    match choose_root(copies) {
        Ok(root) => Ok(Some(root)),
        Err(error) => {
            let remedy = "restore the pool from a copy";
            report.find(Severity::Loss, "superblocks".into(), error.to_string(), remedy);
            Ok(None)
        }
    }
}
