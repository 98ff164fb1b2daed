//! A request whose admission was cut off half-way, at the end of what a dead process left.
//!
//! Its entries say that it continues, and nothing does: it was never admitted. It is left out, with
//! its data: the pages are still those of whoever asked for it and may ask again, and its number is
//! the next request's.
//!
//! Invariants:
//! - All of it lies in the arena alone: a request is put into the log in one call, and batches are
//!   submitted by others.
//! - Which entries are left out follows from the heads of the batches, and these are held until the
//!   batches are released or retracted. So a start that was cut off finds the same again, whatever
//!   has become of the data's pages.

use bowline_arena::{Memory, PAGE_BYTES};

use crate::format::Entries;
use crate::staging::{Found, Progress};

/// Leaves out the last request of these batches if its last entry is missing. What does not verify
/// stays as it is, to be found damaged.
pub(super) fn leave_out(memory: &Memory, found: &mut [Found]) {
    let mut half = None;
    for batch in found.iter_mut().rev() {
        let end = batch.head.offset.checked_add(u64::from(PAGE_BYTES));
        if end.is_none_or(|end| end > memory.bytes_total()) {
            return;
        }
        let mut head = Vec::new();
        memory.fetch(batch.head, &mut head);
        let count = u32::from(batch.progress.entries);
        let entries: Result<Vec<_>, _> = Entries::new(&head, count).collect();
        let Ok(mut entries) = entries else { return };
        let sum = |entries: &[crate::format::FoundEntry<'_>]| {
            entries.iter().fold(Progress::default(), |before, found| {
                let blocks = if found.entry.kind.has_data() { found.entry.blocks } else { 0 };
                Progress {
                    entries: before.entries + 1,
                    data_blocks: before.data_blocks.saturating_add(blocks as u16),
                    checksum: before.extend(found.bytes),
                }
            })
        };
        if sum(&entries) != batch.progress {
            return;
        }
        while let Some(last) = entries.last() {
            if !last.entry.continues || half.is_some_and(|half| half != last.entry.seq) {
                break;
            }
            half = Some(last.entry.seq);
            entries.pop();
        }
        let left = sum(&entries);
        if left != batch.progress {
            batch.progress = left;
            cut_spans(batch);
        }
        if left.entries > 0 {
            return;
        }
    }
}

/// Names only the pages that the entries of a batch fill.
fn cut_spans(batch: &mut Found) {
    let mut left = u32::from(batch.progress.data_blocks) * PAGE_BYTES;
    batch.spans.retain_mut(|span| {
        span.bytes = span.bytes.min(left);
        left -= span.bytes;
        span.bytes > 0
    });
}
