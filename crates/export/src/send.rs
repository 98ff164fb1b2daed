//! What a session has to send, in order: headers in a small ring, data in the spans it was read
//! into.
//!
//! Invariants: the room for every header of a started request is reserved before the request is
//! started, so a reply can always be queued; bytes that were queued are neither moved nor changed
//! until they were sent.

use std::collections::VecDeque;

use bowline_arena::{Memory, Part, Span};

use crate::budget::Loan;

/// Most parts in one send.
pub(crate) const PARTS_MAX: usize = 64;

enum Segment {
    /// The next bytes of the ring.
    Ring { bytes: u32 },
    /// Bytes of a span, which goes back once they were sent.
    Data { loan: Loan, skip: u32, bytes: u32 },
}

#[derive(Default)]
pub(crate) struct SendQueue {
    ring: Option<Span>,
    /// First unsent byte of the ring, and how many follow.
    head: u32,
    used: u32,
    reserved: u32,
    segments: VecDeque<Segment>,
    bytes: u64,
}

impl SendQueue {
    pub fn attach(&mut self, span: Span) {
        assert!(self.ring.is_none(), "a send ring with two memories");
        self.head = 0;
        self.ring = Some(span);
    }

    pub fn detach(&mut self) -> Option<Span> {
        assert!(self.is_idle(), "a send ring with replies in it is given up");
        self.ring.take()
    }

    /// Drops everything. Returns the spans.
    pub fn discard(&mut self) -> (Option<Span>, Vec<Loan>) {
        let loans = std::mem::take(&mut self.segments).into_iter().filter_map(|segment| {
            if let Segment::Data { loan, .. } = segment { Some(loan) } else { None }
        });
        let loans = loans.collect();
        (self.used, self.reserved, self.bytes) = (0, 0, 0);
        (self.ring.take(), loans)
    }

    /// Bytes queued and not sent.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Nothing to send now or later.
    pub fn is_idle(&self) -> bool {
        self.bytes == 0 && self.reserved == 0
    }

    fn room(&self) -> u32 {
        self.ring.as_ref().map_or(0, |ring| ring.bytes() - self.used - self.reserved)
    }

    /// Keeps room for the header of a reply to come.
    pub fn reserve(&mut self, bytes: u32) -> bool {
        let fits = self.room() >= bytes;
        if fits {
            self.reserved += bytes;
        }
        fits
    }

    /// Gives up reserved room; what follows may use it.
    pub fn unreserve(&mut self, bytes: u32) {
        assert!(self.reserved >= bytes, "room that was not reserved");
        self.reserved -= bytes;
    }

    /// Bytes that may be queued now beyond what is reserved.
    pub fn free(&self) -> u32 {
        self.room()
    }

    /// Queues header bytes.
    ///
    /// # Panics
    /// If there is no room: it was to be reserved.
    pub fn push_header(&mut self, memory: &Memory, bytes: &[u8]) {
        let count = bytes.len() as u32;
        assert!(count <= self.room(), "a header without room");
        let Some(span) = &mut self.ring else { return };
        let capacity = span.bytes();
        let start = (self.head + self.used) % capacity;
        let first = count.min(capacity - start) as usize;
        let ring = memory.slice_mut(span);
        ring[start as usize..start as usize + first].copy_from_slice(&bytes[..first]);
        ring[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.used += count;
        self.bytes += u64::from(count);
        match self.segments.back_mut() {
            Some(Segment::Ring { bytes }) => *bytes += count,
            _ => self.segments.push_back(Segment::Ring { bytes: count }),
        }
    }

    /// Queues `bytes` bytes of a span, from `skip` on.
    pub fn push_data(&mut self, loan: Loan, skip: u32, bytes: u32) {
        assert!(skip + bytes <= loan.span.bytes() && bytes > 0, "data out of its span");
        self.bytes += u64::from(bytes);
        self.segments.push_back(Segment::Data { loan, skip, bytes });
    }

    /// What to send next.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = self.head;
        for segment in &self.segments {
            if parts.len() + 2 > PARTS_MAX {
                break;
            }
            match (segment, &self.ring) {
                (Segment::Data { loan, skip, bytes }, _) => {
                    parts.push(loan.span.part().sub(*skip, *bytes));
                }
                (Segment::Ring { bytes }, Some(ring)) => {
                    let first = (*bytes).min(ring.bytes() - at);
                    parts.push(ring.part().sub(at, first));
                    if first < *bytes {
                        parts.push(ring.part().sub(0, bytes - first));
                    }
                    at = (at + bytes) % ring.bytes();
                }
                (Segment::Ring { .. }, None) => unreachable!("headers without a ring"),
            }
        }
        parts
    }

    /// So many bytes went out. Returns the spans that are done.
    pub fn sent(&mut self, mut count: u32, done: &mut Vec<Loan>) {
        self.bytes -= u64::from(count);
        while count > 0 {
            let Some(segment) = self.segments.front_mut() else {
                unreachable!("more was sent than queued")
            };
            let (Segment::Ring { bytes } | Segment::Data { bytes, .. }) = segment;
            let now = count.min(*bytes);
            *bytes -= now;
            count -= now;
            let finished = *bytes == 0;
            match segment {
                Segment::Data { skip, .. } => *skip += now,
                Segment::Ring { .. } => {
                    let capacity = self.ring.as_ref().map_or(1, Span::bytes);
                    self.head = (self.head + now) % capacity;
                    self.used -= now;
                }
            }
            if finished && let Some(Segment::Data { loan, .. }) = self.segments.pop_front() {
                done.push(loan);
            }
        }
    }
}
