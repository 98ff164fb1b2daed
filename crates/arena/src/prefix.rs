//! Every state a successor may find: the stores to a memory, cut between any two of them.
//!
//! A kill falls between two instructions, so what survives of a memory is a prefix of the stores
//! to it, in program order. [`Prefixes`] rebuilds the memory after each prefix from a snapshot and
//! the recorded stores ([`Memory::record_stores`]).

use crate::{Memory, Part, Record};

const PAGE: usize = 4096;

/// The memories after 0, 1, 2, .. of the recorded stores; each its own, to be adopted and changed.
///
/// Only pages that are not zero are copied, so a large and mostly empty memory is cheap.
pub struct Prefixes<'a> {
    image: Vec<u8>,
    /// Pages of the image that are not all zero, or were not once.
    filled: Vec<bool>,
    records: &'a [Record],
    /// How many records the image contains.
    applied: usize,
    /// How many the next memory is to contain.
    next: usize,
}

impl<'a> Prefixes<'a> {
    /// Starts from the bytes a memory had when recording began.
    ///
    /// # Panics
    /// If a record reaches past the end of the snapshot, or that is not made of pages.
    #[must_use]
    pub fn new(snapshot: Vec<u8>, records: &'a [Record]) -> Prefixes<'a> {
        assert!(!snapshot.is_empty() && snapshot.len().is_multiple_of(PAGE), "whole pages");
        for record in records {
            let end = record.offset as usize + record.bytes.len();
            assert!(end <= snapshot.len(), "a record past the end of the memory");
        }
        let filled = snapshot.chunks(PAGE).map(|page| page.iter().any(|byte| *byte != 0)).collect();
        Prefixes { image: snapshot, filled, records, applied: 0, next: 0 }
    }

    fn apply(&mut self, upto: usize) {
        for record in &self.records[self.applied..upto] {
            let start = record.offset as usize;
            let end = start + record.bytes.len();
            self.image[start..end].copy_from_slice(&record.bytes);
            if end > start {
                self.filled[start / PAGE..=(end - 1) / PAGE].fill(true);
            }
        }
        self.applied = upto;
    }

    fn build(&self) -> Memory {
        let memory = Memory::private(self.image.len() as u64);
        for (index, page) in self.image.chunks(PAGE).enumerate() {
            if self.filled[index] {
                let offset = (index * PAGE) as u64;
                memory.land(Part { offset, bytes: PAGE as u32 }, page);
            }
        }
        memory
    }
}

impl Iterator for Prefixes<'_> {
    /// How many stores have happened, and the memory then.
    type Item = (usize, Memory);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next > self.records.len() {
            return None;
        }
        self.apply(self.next);
        self.next += 1;
        Some((self.applied, self.build()))
    }

    /// Passes over prefixes without building their memories, so `step_by` is cheap.
    fn nth(&mut self, count: usize) -> Option<Self::Item> {
        self.next = self.next.saturating_add(count);
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.records.len() + 1).saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Prefixes<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs two stores to a record and one publication, in the order given, and says in how many
    /// of the prefixes a reader who trusts the publication finds a half-written record.
    fn torn_records(publish_first: bool) -> usize {
        let memory = Memory::private(8192);
        // SAFETY: the only span of a fresh memory.
        let mut span = unsafe { memory.claim(Part { offset: 0, bytes: 8192 }) };
        let snapshot = memory.snapshot();
        memory.record_stores(true);
        if publish_first {
            memory.publish(&mut span, 4096, 1);
        }
        memory.write(&mut span, 4000, &[7; 40]);
        memory.write(&mut span, 4040, &[7; 56]);
        memory.publish(&mut span, 4096, 1);
        let records = memory.record_stores(false);
        let prefixes = Prefixes::new(snapshot, &records);
        assert_eq!(prefixes.len(), records.len() + 1);
        let torn = |memory: &Memory| {
            // SAFETY: the only span of this memory.
            let span = unsafe { memory.claim(Part { offset: 0, bytes: 8192 }) };
            let bytes = memory.slice(&span);
            memory.read(&span, 4096) == 1 && bytes[4000..4096] != [7; 96]
        };
        prefixes.filter(|(_, memory)| torn(memory)).count()
    }

    #[test]
    fn publishing_before_the_content_is_caught() {
        assert_eq!(torn_records(false), 0);
        assert_eq!(torn_records(true), 2);
    }

    #[test]
    fn steps_skip_without_losing_stores() {
        let records: Vec<Record> = (0..10u64)
            .map(|index| Record { offset: index * 8, bytes: vec![index as u8 + 1; 8] })
            .collect();
        let found: Vec<(usize, u8)> = Prefixes::new(vec![0; 4096], &records)
            .step_by(5)
            .map(|(count, memory)| {
                let mut bytes = Vec::new();
                memory.fetch(Part { offset: 32, bytes: 1 }, &mut bytes);
                (count, bytes[0])
            })
            .collect();
        assert_eq!(found, [(0, 0), (5, 5), (10, 5)]);
    }
}
