//! WRITE: short payloads from the receive ring, long ones in spans of their own.

use bowline_arena::{Memory, Span};
use bowline_disk::{Disks, Submitted, Volume};
use bowline_store::{BLOCK_BYTES, Payload};
use bowline_wire::{Command, ErrorCode, REQUEST_BYTES, RequestHeader};

use crate::budget::{Lane, Loan};
use crate::failure::Failure;
use crate::records::{Executing, Owner, RequestState};
use crate::request::{Kind, REPLY_BYTES};
use crate::server::NbdServer;
use crate::session::{Incoming, Parked, Want};
use crate::slab::Key;
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
        if header.bytes >= LONG_PAYLOAD_BYTES {
            let Some(key) = self.request(id, &header, Kind::Plain { writes: true }, 0) else {
                return false;
            };
            let Some(session) = self.sessions.get_mut(id) else { return false };
            session.wants.push_back(Want::Payload { header, fua, key });
            session.parked = Parked::Memory;
            self.wake(id);
            return false;
        }
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.ring.used() < REQUEST_BYTES as u32 + header.bytes {
            return false;
        }
        if header.bytes == 0 {
            self.reply(id, header.cookie, None);
            self.take_header(id, &header);
            self.publish(id);
            return true;
        }
        let Some(key) = self.try_begins(id, &header, Command::Write { fua }) else { return false };
        let submitted = self.try_short(disks, id, key, &header, fua);
        self.submitted(id, key, header, submitted)
    }

    /// Has the disk write a payload that lies in the receive ring, unless a dead process has.
    fn try_short<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        key: Key,
        header: &RequestHeader,
        fua: bool,
    ) -> Submitted {
        let (ticket, disk) = (self.ticket(key, 0), self.disk_of(key));
        if let Some(seq) = self.take_doubt(key) {
            return disks.admitted(ticket, disk, seq, u64::from(header.bytes), fua);
        }
        let memory = self.budget.memory();
        let Some(session) = self.sessions.get(id) else { return Submitted::Busy };
        let slices = session.ring.slices(memory, REQUEST_BYTES as u32, header.bytes);
        let count = if slices[1].is_empty() { 1 } else { 2 };
        let mut payload = Payload::Copied(&slices[..count]);
        let submitted = disks.write(ticket, disk, header.offset, &mut payload, fua);
        self.count_write(id, &submitted, u64::from(header.bytes), false);
        submitted
    }

    /// There is memory for a long payload: what of it is in the receive ring is moved over.
    pub(crate) fn payload_begins(
        &mut self,
        id: Key,
        want: (Key, RequestHeader, bool),
        mut spans: Vec<Span>,
        lane: Lane,
    ) {
        let (key, header, fua) = want;
        let memory = self.budget.memory();
        let Some(session) = self.sessions.get_mut(id) else { return };
        let arrival = session.consumed();
        let here = session.ring.used() - REQUEST_BYTES as u32;
        let count = here.min(header.bytes);
        let [first, second] = session.ring.slices(memory, REQUEST_BYTES as u32, count);
        let at = place_of(&header) as usize;
        put(memory, &mut spans, at, first);
        put(memory, &mut spans, at + first.len(), second);
        session.counters.copied_bytes += u64::from(count);
        self.counters.copied_bytes += u64::from(count);
        let owner = Owner::Request(key.slot, u32::from(key.generation as u16));
        let first = self.links.store(owner, spans.iter().map(Span::part));
        self.publish_request(key, header, arrival, first, RequestState::Receiving);
        if let Some(request) = self.requests.get_mut(key) {
            request.is_taken = true;
        }
        self.take_header(id, &header);
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.consume(count);
        session.incoming = Some(Incoming { key, arrival, header, fua, spans, lane, filled: count });
        session.parked = Parked::No;
        self.publish(id);
        bowline_arena::fail_point!("export.payload.begun");
    }

    /// A long payload is here as a whole. Returns whether it was taken.
    pub(crate) fn payload_ends<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) -> bool {
        // Whoever finds the request tried, or at its disk, finds its payload received.
        self.publish_news(id);
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.send.free() < REPLY_BYTES {
            session.parked = Parked::Drain;
            return false;
        }
        let Some(incoming) = session.incoming.take() else { return false };
        let Incoming { key, arrival, header, fua, spans, lane, filled } = incoming;
        let Some(request) = self.requests.get_mut(key) else { return false };
        assert!(session.send.reserve(REPLY_BYTES), "room was looked for");
        session.requests += 1;
        (request.reserved, request.is_started) = (REPLY_BYTES, true);
        self.records.execute(Executing::Request(key.slot));
        if request.attempts.saturating_add(1) >= self.options.attempts_max {
            self.note_poison(id, &header);
            self.fail_taken(key);
            self.give_payload(lane, spans);
            return true;
        }
        // Between the header and now the disk may have become smaller or read-only: it says so.
        self.set_state(key, RequestState::Started);
        let (submitted, left) = self.try_long(disks, key, &header, fua, spans);
        if submitted == Submitted::Busy {
            self.set_state(key, RequestState::Receiving);
            self.unstart(key);
            if let Some(session) = self.sessions.get_mut(id) {
                let spans = left;
                session.incoming =
                    Some(Incoming { key, arrival, header, fua, spans, lane, filled });
            }
            self.park_busy(id);
            return false;
        }
        self.taken(key, submitted, lane, left);
        true
    }

    /// Has the disk write a payload in spans of its own. Returns those it has not taken.
    pub(crate) fn try_long<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        key: Key,
        header: &RequestHeader,
        fua: bool,
        spans: Vec<Span>,
    ) -> (Submitted, Vec<Span>) {
        let (ticket, disk) = (self.ticket(key, 0), self.disk_of(key));
        let lent: u32 = spans.iter().map(Span::bytes).sum();
        let (mut left, range) = (spans, (header.offset, u64::from(header.bytes)));
        let submitted = disks.write_in_place(ticket, disk, range, &mut left, fua);
        let id = self.requests.get(key).map(|request| request.session);
        if let Some(id) = id {
            self.count_write(id, &submitted, u64::from(header.bytes), true);
        }
        let kept: u32 = left.iter().map(Span::bytes).sum();
        self.budget.taken(Lane::of(header.bytes), lent - kept);
        self.freed |= lent > kept;
        (submitted, left)
    }

    /// What the disk said to a request that is out of the stream, and what it left of the payload.
    pub(crate) fn taken(&mut self, key: Key, submitted: Submitted, lane: Lane, left: Vec<Span>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.outstanding = 1;
        match submitted {
            Submitted::Done(result) => {
                let id = request.session;
                self.plain_done(key, result);
                if !left.is_empty() {
                    // The record names these pages until the stream has said that it is over.
                    self.publish_news(id);
                    self.give_payload(lane, left);
                }
            }
            Submitted::Pending => {
                self.set_state(key, RequestState::Pending);
                if self.is_admitted(key) {
                    self.give_payload(lane, left);
                } else if let Some(request) = self.requests.get_mut(key) {
                    request.payload = left;
                }
            }
            Submitted::Busy => unreachable!("who is busy has taken nothing"),
        }
    }

    pub(crate) fn give_payload(&mut self, lane: Lane, spans: Vec<Span>) {
        for span in spans {
            self.budget.give(Loan { span, lane });
            self.freed = true;
        }
    }

    /// A request that is out of the stream is not tried (again).
    pub(crate) fn fail_taken(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let cookie = request.cookie;
        let failure = Failure::new(ErrorCode::Io, "the request was cut off and cannot be repeated");
        self.conclude(key, |server, id| server.reply(id, cookie, Some(failure)));
    }

    /// A request that was about to be carried out is not: it is tried again.
    fn unstart(&mut self, key: Key) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let reserved = std::mem::take(&mut request.reserved);
        request.is_started = false;
        if let Some(session) = self.sessions.get_mut(request.session) {
            session.send.unreserve(reserved);
            session.requests -= 1;
        }
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

/// Where in its spans a long payload begins: where it will in the blocks of its disk.
pub(crate) fn place_of(header: &RequestHeader) -> u32 {
    (header.offset % BLOCK_BYTES) as u32
}

/// Copies bytes to `at` in spans that follow each other.
fn put(memory: &Memory, spans: &mut [Span], mut at: usize, mut bytes: &[u8]) {
    for span in spans {
        let room = (span.bytes() as usize).saturating_sub(at);
        let (now, later) = bytes.split_at(bytes.len().min(room));
        if !now.is_empty() {
            memory.write(span, at as u32, now);
        }
        at = at.saturating_sub(span.bytes() as usize);
        bytes = later;
    }
}
