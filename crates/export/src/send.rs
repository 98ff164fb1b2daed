//! What a session has to send, in order: headers in a small ring, data in the spans it was read
//! into.
//!
//! Invariants: the room for every header of a started request is reserved before the request is
//! started, so a reply can always be queued; bytes that were queued are neither moved nor changed
//! until they were sent; data that was queued together is given back together, so the record that
//! names it stays true until then.

use std::collections::VecDeque;

use bowline_arena::{Memory, Part, Span};

use crate::budget::Loan;
use crate::records::{Links, Owner, REPLIES_MAX, ReplyRecord, Stream, store_reply};

/// Most parts in one send.
pub(crate) const PARTS_MAX: usize = 64;

enum Segment {
    /// The next bytes of the ring.
    Ring { bytes: u32 },
    /// Bytes of a span. Those of one reply go back once the last of them was sent.
    Data { loan: Loan, skip: u32, bytes: u32, is_last: bool },
}

/// Data of one reply: the spans, and what of each is sent.
pub(crate) type Pieces = Vec<(Loan, u32, u32)>;

#[derive(Default)]
pub(crate) struct SendQueue {
    ring: Option<Span>,
    replies: Option<Span>,
    /// First unsent byte of the ring, and how many follow.
    head: u32,
    used: u32,
    reserved: u32,
    /// Reply records made since there are buffers, in use, and reserved.
    replies_made: u32,
    replies_used: u32,
    replies_reserved: u32,
    segments: VecDeque<Segment>,
    /// Sent spans of a reply that was not sent as a whole.
    spent: Vec<Loan>,
    queued: u64,
    sent: u64,
}

impl SendQueue {
    /// The queue of a dead process, with the data it had not sent: each reply's position and
    /// pieces.
    pub fn adopted(
        stream: &Stream,
        ring: Option<Span>,
        page: Option<Span>,
        replies: Vec<(u64, Pieces)>,
    ) -> SendQueue {
        let mut queue = SendQueue {
            ring,
            replies: page,
            head: u32::from(stream.send_head),
            used: u32::from(stream.send_used),
            replies_made: stream.replies,
            replies_used: replies.len() as u32,
            queued: stream.queued,
            sent: stream.sent,
            ..SendQueue::default()
        };
        let mut at = stream.sent;
        for (position, pieces) in replies {
            queue.push_ring(position.saturating_sub(at) as u32);
            let (mut begins, count) = (position, pieces.len());
            for (index, (loan, skip, bytes)) in pieces.into_iter().enumerate() {
                let is_sent = stream.sent.saturating_sub(begins).min(u64::from(bytes)) as u32;
                begins += u64::from(bytes);
                if is_sent == bytes {
                    queue.spent.push(loan);
                    continue;
                }
                let (skip, bytes) = (skip + is_sent, bytes - is_sent);
                let is_last = index + 1 == count;
                queue.segments.push_back(Segment::Data { loan, skip, bytes, is_last });
            }
            at = begins;
        }
        queue.push_ring((stream.queued - at) as u32);
        queue
    }

    pub fn attach(&mut self, ring: Span, replies: Span) {
        assert!(self.ring.is_none(), "a send ring with two memories");
        (self.head, self.replies_made) = (0, 0);
        (self.ring, self.replies) = (Some(ring), Some(replies));
    }

    pub fn detach(&mut self) -> [Option<Span>; 2] {
        assert!(self.is_idle(), "a send ring with replies in it is given up");
        [self.ring.take(), self.replies.take()]
    }

    /// Drops everything. Returns the memory and the data.
    pub fn discard(&mut self) -> ([Option<Span>; 2], Vec<Loan>) {
        let mut loans = std::mem::take(&mut self.spent);
        loans.extend(std::mem::take(&mut self.segments).into_iter().filter_map(|segment| {
            if let Segment::Data { loan, .. } = segment { Some(loan) } else { None }
        }));
        (self.used, self.reserved, self.replies_used, self.replies_reserved) = (0, 0, 0, 0);
        self.queued = self.sent;
        ([self.ring.take(), self.replies.take()], loans)
    }

    /// Bytes queued since the beginning: where the next one goes in the stream.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes that went out since the beginning.
    pub fn sent_total(&self) -> u64 {
        self.sent
    }

    /// First unsent byte of the ring, how many follow, and reply records made.
    pub fn places(&self) -> (u32, u32, u32) {
        (self.head, self.used, self.replies_made)
    }

    /// Bytes queued and not sent.
    pub fn bytes(&self) -> u64 {
        self.queued - self.sent
    }

    pub fn is_empty(&self) -> bool {
        self.queued == self.sent
    }

    /// Nothing to send now or later.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.reserved == 0
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

    /// Replies with data that may be queued now beyond those reserved.
    pub fn replies_free(&self) -> u32 {
        REPLIES_MAX - self.replies_used - self.replies_reserved
    }

    /// Keeps a place for the data of a reply to come.
    pub fn reserve_reply(&mut self) {
        assert!(self.replies_free() > 0, "a reply without a record");
        self.replies_reserved += 1;
    }

    /// Gives reserved places up; what follows may use them.
    pub fn unreserve_replies(&mut self, count: u32) {
        assert!(self.replies_reserved >= count, "records that were not reserved");
        self.replies_reserved -= count;
    }

    fn push_ring(&mut self, count: u32) {
        match self.segments.back_mut() {
            _ if count == 0 => {}
            Some(Segment::Ring { bytes }) => *bytes += count,
            _ => self.segments.push_back(Segment::Ring { bytes: count }),
        }
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
        let (first, second) = bytes.split_at(count.min(capacity - start) as usize);
        memory.write(span, start, first);
        if !second.is_empty() {
            memory.write(span, 0, second);
        }
        self.used += count;
        self.queued += u64::from(count);
        self.push_ring(count);
    }

    /// Queues data of spans, from so many bytes of each on, as one reply of a session.
    ///
    /// # Panics
    /// If there is no record left for it: it was to be reserved.
    pub fn push_data(
        &mut self,
        memory: &Memory,
        links: &mut Links,
        session: u32,
        pieces: impl IntoIterator<Item = (Loan, u32, u32)>,
    ) {
        let (start, position) = (self.segments.len(), self.queued);
        for (loan, skip, bytes) in pieces {
            assert!(skip + bytes <= loan.span.bytes() && bytes > 0, "data out of its span");
            self.queued += u64::from(bytes);
            self.segments.push_back(Segment::Data { loan, skip, bytes, is_last: false });
        }
        let Some(Segment::Data { is_last, .. }) = self.segments.back_mut() else {
            panic!("a reply without data")
        };
        *is_last = true;
        let Some(Segment::Data { loan, skip, .. }) = self.segments.get(start) else {
            panic!("a reply without data")
        };
        let (skip, lane, number) = (*skip as u16, loan.lane, self.replies_made);
        assert!(self.replies_free() > 0, "a reply without a record");
        let parts = self.segments.range(start..).filter_map(|segment| match segment {
            Segment::Data { loan, .. } => Some(loan.span.part()),
            Segment::Ring { .. } => None,
        });
        let first = links.store(Owner::Reply(session, number), parts);
        let bytes = (self.queued - position) as u32;
        let record = ReplyRecord { position, first, bytes, skip, lane };
        if let Some(page) = &mut self.replies {
            store_reply(memory, page, session, number, &record);
        }
        self.replies_made = number.wrapping_add(1);
        self.replies_used += 1;
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
                (Segment::Data { loan, skip, bytes, .. }, _) => {
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

    /// So many bytes went out. Returns the spans that are done; they may be given back once the
    /// stream that says so is published.
    pub fn sent(&mut self, mut count: u32, done: &mut Vec<Loan>) {
        self.sent += u64::from(count);
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
            if finished && let Some(Segment::Data { loan, is_last, .. }) = self.segments.pop_front()
            {
                self.spent.push(loan);
                if is_last {
                    self.replies_used -= 1;
                    done.append(&mut self.spent);
                }
            }
        }
    }
}
