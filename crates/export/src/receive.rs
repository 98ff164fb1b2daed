//! The ring that a session's bytes are received into.
//!
//! Bytes are parsed where they arrived; a payload that wraps around is two slices. Behind what is
//! parsed lie the payloads of short writes that wait at their disk: they are kept until answered,
//! for a successor to try them again. An idle session has no ring: what it had of a header (less
//! than a whole one) is carried over.

use bowline_arena::{Memory, Part, Span};
use bowline_wire::REQUEST_BYTES;

#[derive(Default)]
pub(crate) struct ReceiveRing {
    span: Option<Span>,
    head: u32,
    used: u32,
    /// Bytes before the head that are kept.
    kept: u32,
    carried: [u8; REQUEST_BYTES],
}

impl ReceiveRing {
    /// The ring of a dead process.
    pub fn adopted(span: Option<Span>, head: u32, used: u32, carried: [u8; REQUEST_BYTES]) -> Self {
        ReceiveRing { span, head, used, kept: 0, carried }
    }

    /// The first byte that is not consumed.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// What is carried over without a ring.
    pub fn carried(&self) -> [u8; REQUEST_BYTES] {
        self.carried
    }

    /// How many bytes lie between a place that is kept and the first that is not consumed.
    pub fn behind(&self, begins: u32) -> u32 {
        let capacity = self.span.as_ref().map_or(1, Span::bytes);
        // Where nothing would lie between, everything does.
        (self.head + capacity - 1 - begins) % capacity + 1
    }

    /// So many consumed bytes are kept.
    pub fn keep(&mut self, bytes: u32) {
        let capacity = self.span.as_ref().map_or(self.used, Span::bytes);
        let used = self.used;
        assert!(used + bytes <= capacity, "{bytes} bytes are kept beside {used}, more than fit");
        self.kept = bytes;
    }

    /// Kept bytes, from so many before the head on, in two slices.
    pub fn kept_slices<'a>(&'a self, memory: &'a Memory, back: u32, bytes: u32) -> [&'a [u8]; 2] {
        assert!(back <= self.kept && bytes <= back, "bytes that are not kept");
        let Some(span) = &self.span else { return [&[], &[]] };
        let ring = memory.slice(span);
        let start = (self.head as usize + ring.len() - back as usize) % ring.len();
        let first = (bytes as usize).min(ring.len() - start);
        [&ring[start..start + first], &ring[..bytes as usize - first]]
    }

    /// Bytes received and not consumed.
    pub fn used(&self) -> u32 {
        self.used
    }

    pub fn is_attached(&self) -> bool {
        self.span.is_some()
    }

    /// Whether the ring can be detached: less than a header is in it.
    pub fn is_light(&self) -> bool {
        (self.used as usize) < REQUEST_BYTES
    }

    /// Gets memory; what was carried over goes first.
    pub fn attach(&mut self, memory: &Memory, mut span: Span) {
        assert!(self.span.is_none(), "a ring with two memories");
        memory.write(&mut span, 0, &self.carried[..self.used as usize]);
        self.head = 0;
        self.span = Some(span);
    }

    /// Gives the memory up, and carries over what is in it.
    pub fn detach(&mut self, memory: &Memory) -> Option<Span> {
        assert!(self.is_light() && self.kept == 0, "a ring with requests in it is given up");
        let mut carried = [0; REQUEST_BYTES];
        let mut at = 0;
        for slice in self.slices(memory, 0, self.used) {
            carried[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        (self.carried, self.head) = (carried, 0);
        self.span.take()
    }

    /// Gives the memory up and forgets what is in it.
    pub fn discard(&mut self) -> Option<Span> {
        (self.used, self.kept) = (0, 0);
        self.span.take()
    }

    /// The first `N` bytes, if they are there.
    pub fn peek<const N: usize>(&self, memory: &Memory) -> Option<[u8; N]> {
        if (self.used as usize) < N || self.span.is_none() {
            return None;
        }
        let [first, second] = self.slices(memory, 0, N as u32);
        let mut bytes = [0; N];
        bytes[..first.len()].copy_from_slice(first);
        bytes[first.len()..].copy_from_slice(second);
        Some(bytes)
    }

    /// `bytes` bytes after the first `skip`, in two slices.
    pub fn slices<'a>(&'a self, memory: &'a Memory, skip: u32, bytes: u32) -> [&'a [u8]; 2] {
        assert!(skip + bytes <= self.used, "bytes that were not received");
        let Some(span) = &self.span else { return [&[], &[]] };
        let ring = memory.slice(span);
        let start = (self.head + skip) as usize % ring.len();
        let first = (bytes as usize).min(ring.len() - start);
        [&ring[start..start + first], &ring[..bytes as usize - first]]
    }

    pub fn consume(&mut self, bytes: u32) {
        assert!(bytes <= self.used, "more is consumed than was received");
        self.used -= bytes;
        let capacity = self.span.as_ref().map_or(1, Span::bytes);
        self.head = (self.head + bytes) % capacity;
    }

    /// Where the next bytes go, at most `limit` of them. No receive may be under way.
    pub fn free_parts(&mut self, limit: u32) -> Vec<Part> {
        let Some(span) = &self.span else { return Vec::new() };
        if self.used == 0 && self.kept == 0 {
            self.head = 0;
        }
        let capacity = span.bytes();
        let free = (capacity - self.used - self.kept).min(limit);
        let start = (self.head + self.used) % capacity;
        let first = free.min(capacity - start);
        let parts = [span.part().sub(start, first), span.part().sub(0, free - first)];
        parts.into_iter().filter(|part| part.bytes > 0).collect()
    }

    /// So many bytes arrived where [`free_parts`](ReceiveRing::free_parts) said.
    pub fn received(&mut self, bytes: u32) {
        self.used += bytes;
        let capacity = self.span.as_ref().map_or(0, Span::bytes);
        assert!(self.used + self.kept <= capacity, "more was received than fits");
    }
}
