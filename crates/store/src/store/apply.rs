//! What an entry of the log does to the catalogue, the map and the live bits. Recovery replays the
//! log through the same functions that put it there.
//!
//! Invariants:
//! - The same entries in the same order make the same catalogue, map and live bits.
//! - A generation knows how many of its deltas name data, for each lineage. Whether that is new
//!   data is known when it is folded: nothing here reads the map.
//! - A live bit is cleared here only where the same generation of changes had set it; what older
//!   generations point to is found when this one is folded.

use crate::catalogue::{Catalogue, empty_lineage};
use crate::format::{EntryKind, LogEntry, Record};
use crate::map::{Map, SMALL_RANGE_BLOCKS};
use crate::segments::Segments;
use crate::tables::{Entry, State};
use crate::{BLOCK_BYTES, Lba, LineageId, SegmentId};

/// More blocks than any disk has.
const LINEAGE_BLOCKS_MAX: u64 = 1 << 52;

/// Brings the catalogue up to a record of it, and the map with it.
pub(crate) fn apply_record(catalogue: &mut Catalogue, map: &mut Map, record: &Record) {
    if let Record::Disk(disk) = record {
        map.lineages.entry(disk.lineage).or_insert_with(|| empty_lineage(disk.lineage));
        // A disk that shrinks loses what lies beyond its end in the same breath, or a crash in
        // between would bring it back when the disk grows.
        if catalogue.disks.get(&disk.id).is_some_and(|old| disk.bytes < old.bytes) {
            make_hole(map, disk.lineage, Lba(disk.bytes / BLOCK_BYTES));
        }
    }
    if let Some(lineage) = catalogue.apply(record) {
        make_hole(map, lineage, Lba(0));
    }
}

/// Everything of a lineage from a block on is gone.
fn make_hole(map: &mut Map, lineage: LineageId, from: Lba) {
    map.insert_range(lineage, from, LINEAGE_BLOCKS_MAX - from.0, State::Hole);
}

/// Brings map and live bits up to an entry of the log whose first data block is block `index` of
/// `segment`.
pub(crate) fn apply(
    map: &mut Map,
    segments: &mut Segments,
    entry: &LogEntry,
    segment: SegmentId,
    index: u32,
    checksum: impl Fn(u32) -> u32,
) {
    let state = match entry.kind {
        EntryKind::Record => return,
        EntryKind::Write => State::Data,
        EntryKind::Zero => State::Zero,
        EntryKind::Discard => State::Hole,
    };
    if state != State::Data && entry.blocks > SMALL_RANGE_BLOCKS {
        return map.insert_range(entry.lineage, entry.lba, entry.blocks, state);
    }
    let generation = &mut map.active;
    generation.ordinal += 1;
    let ordinal = generation.ordinal;
    let (mut more, mut less) = (0, 0);
    for block in 0..entry.blocks {
        let lba = Lba(entry.lba.0 + block);
        let new = match Entry::of_state(state) {
            Some(entry) => entry,
            None => Entry::data(segment, index + block as u32, checksum(block as u32)),
        };
        let old = generation.deltas.insert(entry.lineage, lba, new, ordinal);
        if let Some(old) = old.filter(|old| old.entry.has_address()) {
            segments.clear_live(old.entry);
            less += 1;
        }
        if new.has_address() {
            segments.set_live(new);
            more += 1;
        }
    }
    generation.count_data(entry.lineage, more, less);
}
