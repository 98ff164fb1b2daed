//! WRITE: short payloads from the receive ring, long ones in spans of their own.

use bowline_arena::{Memory, Span};
use bowline_disk::{Disks, Submitted, Volume};
use bowline_store::{BLOCK_BYTES, Payload};
use bowline_wire::{REQUEST_BYTES, RequestHeader};

use crate::budget::{Lane, Loan};
use crate::request::{Kind, REPLY_BYTES, Request};
use crate::server::NbdServer;
use crate::session::{Incoming, Parked, Want};
use crate::slab::{Key, Slab};
use crate::transmission::LONG_PAYLOAD_BYTES;

impl NbdServer {
    /// A write is next. Returns whether it was taken.
    pub(crate) fn write_begins<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        header: RequestHeader,
        fua: bool,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if header.bytes >= LONG_PAYLOAD_BYTES {
            session.wants.push_back(Want::Payload { header, fua });
            session.parked = Parked::Memory;
            self.wake(id);
            return false;
        }
        if session.ring.used() < REQUEST_BYTES as u32 + header.bytes {
            return false;
        }
        if header.bytes == 0 {
            self.take_header(id, &header);
            self.reply(id, header.cookie, None);
            return true;
        }
        let Some(key) = self.request(id, &header, Kind::Plain { writes: true }, REPLY_BYTES) else {
            return false;
        };
        let ticket = Slab::<Request>::ticket(self.options.ticket_class, key, 0);
        let disk = self.disk_of(key);
        let Some(session) = self.sessions.get_mut(id) else { return false };
        let memory = self.budget.memory();
        let slices = session.ring.slices(memory, REQUEST_BYTES as u32, header.bytes);
        let count = if slices[1].is_empty() { 1 } else { 2 };
        let mut payload = Payload::Copied(&slices[..count]);
        let submitted = disks.write(ticket, disk, header.offset, &mut payload, fua);
        let written = u64::from(header.bytes);
        self.count_write(id, &submitted, written, false);
        if !self.submitted(id, key, submitted) {
            return false;
        }
        self.take_header(id, &header);
        if let Some(session) = self.sessions.get_mut(id) {
            session.ring.consume(header.bytes);
        }
        true
    }

    /// There is memory for a long payload: what of it is in the receive ring is moved over.
    pub(crate) fn payload_begins(
        &mut self,
        id: Key,
        header: RequestHeader,
        fua: bool,
        mut spans: Vec<Span>,
        lane: Lane,
    ) {
        self.take_header(id, &header);
        let memory = self.budget.memory();
        let Some(session) = self.sessions.get_mut(id) else { return };
        let count = session.ring.used().min(header.bytes);
        let [first, second] = session.ring.slices(memory, 0, count);
        let mut at = 0;
        for slice in [first, second] {
            put(memory, &mut spans, at, slice);
            at += slice.len();
        }
        session.ring.consume(count);
        session.counters.copied_bytes += u64::from(count);
        self.counters.copied_bytes += u64::from(count);
        session.incoming = Some(Incoming { header, fua, spans, lane, filled: count });
        session.parked = Parked::No;
    }

    /// A long payload is here as a whole. Returns whether it was taken.
    pub(crate) fn payload_ends<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.send.free() < REPLY_BYTES {
            session.parked = Parked::Drain;
            return false;
        }
        let Some(incoming) = session.incoming.take() else { return false };
        let Incoming { header, fua, spans, lane, filled } = incoming;
        // Between the header and now the disk may have become smaller or read-only: it says so.
        let Some(key) = self.request(id, &header, Kind::Plain { writes: true }, REPLY_BYTES) else {
            return false;
        };
        let ticket = Slab::<Request>::ticket(self.options.ticket_class, key, 0);
        let disk = self.disk_of(key);
        let lent: u32 = spans.iter().map(Span::bytes).sum();
        let whole = header.offset.is_multiple_of(BLOCK_BYTES)
            && u64::from(header.bytes).is_multiple_of(BLOCK_BYTES);
        let (submitted, spans) = if whole {
            let mut payload = Payload::Owned(spans);
            let submitted = disks.write(ticket, disk, header.offset, &mut payload, fua);
            let Payload::Owned(left) = payload else { unreachable!("a payload changed its kind") };
            (submitted, left)
        } else {
            let memory = self.budget.memory();
            let mut left = header.bytes as usize;
            let slices: Vec<&[u8]> = spans
                .iter()
                .map(|span| {
                    let slice = memory.slice(span);
                    let count = left.min(slice.len());
                    left -= count;
                    &slice[..count]
                })
                .collect();
            let mut payload = Payload::Copied(&slices);
            (disks.write(ticket, disk, header.offset, &mut payload, fua), spans)
        };
        self.count_write(id, &submitted, u64::from(header.bytes), whole);
        let kept: u32 = spans.iter().map(Span::bytes).sum();
        self.budget.taken(lane, lent - kept);
        self.freed |= lent > kept;
        if let Submitted::Busy = submitted {
            let incoming = Incoming { header, fua, spans, lane, filled };
            if let Some(session) = self.sessions.get_mut(id) {
                session.incoming = Some(incoming);
            }
        } else {
            for span in spans {
                self.budget.give(Loan { span, lane });
                self.freed = true;
            }
        }
        self.submitted(id, key, submitted)
    }

    fn count_write(&mut self, id: Key, submitted: &Submitted, bytes: u64, owned: bool) {
        if matches!(submitted, Submitted::Busy | Submitted::Done(Err(_))) {
            return;
        }
        bowline_arena::fail_point!("export.write.admitted");
        let Some(session) = self.sessions.get_mut(id) else { return };
        for counters in [&mut session.counters, &mut self.counters] {
            counters.write_bytes += bytes;
            if owned {
                counters.owned_bytes += bytes;
            } else {
                counters.copied_bytes += bytes;
            }
        }
    }
}

/// Copies bytes to `at` in spans that follow each other.
fn put(memory: &Memory, spans: &mut [Span], mut at: usize, mut bytes: &[u8]) {
    for span in spans {
        let room = (span.bytes() as usize).saturating_sub(at);
        let (now, later) = bytes.split_at(bytes.len().min(room));
        if !now.is_empty() {
            memory.slice_mut(span)[at..at + now.len()].copy_from_slice(now);
        }
        at = at.saturating_sub(span.bytes() as usize);
        bytes = later;
    }
}
