//! READ: spans from the pages to the disk and from there to the socket.
//!
//! A reply that may be cut (structured, without DF) is streamed: each piece is a chunk of its own,
//! sent as soon as it was read, and a long read never holds more than a few of them. Its holes are
//! left out: a long read asks for the states of its range first and neither reads nor holds memory
//! for holes, a short one looks at the bytes it got. A write may come between the question and the
//! read; but then it came while the read was under way, and the read may tell the bytes before it.
//!
//! A reply that must not be cut is read as a whole before its header is sent, so an error can still
//! be told.

use std::collections::VecDeque;

use bowline_arena::{PAGE_BYTES, Span};
use bowline_disk::{ByteExtent, Disks, IoError, Volume};
use bowline_store::BlockState;
use bowline_wire::{RequestHeader, reply};

use crate::budget::{Lane, Loan, RUN_PAGES_MAX};
use crate::plan::Grant;
use crate::request::{CHUNK_BYTES, Kind, Piece, REPLY_BYTES, Read, Request, Run, STATUS_PIECE};
use crate::server::NbdServer;
use crate::session::Want;
use crate::slab::{Key, Slab};
use crate::transmission::Failure;

/// Reads from here on ask for block states first.
const SPARSE_BYTES_MIN: u32 = 64 << 10;

/// Most runs a read is cut into; what follows is read.
const RUNS_MAX: usize = 32;

impl NbdServer {
    pub(crate) fn read_begins<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        header: RequestHeader,
        undivided: bool,
    ) {
        let agreement = self.sessions.get(id).and_then(|session| session.agreement);
        let Some(agreement) = agreement else { return };
        let whole = undivided || !agreement.structured;
        let run = Run { offset: header.offset, bytes: header.bytes, hole: false };
        let read = Read {
            whole,
            plan: VecDeque::from([run]),
            pieces: Vec::new(),
            lane: if whole { Lane::of(header.bytes) } else { Lane::Small },
            failure: None,
            hole_bytes: 0,
        };
        let Some(key) = self.request(id, &header, Kind::Read(read), REPLY_BYTES) else { return };
        if !whole && header.bytes >= SPARSE_BYTES_MIN {
            let ticket = Slab::<Request>::ticket(self.options.ticket_class, key, STATUS_PIECE);
            if let Some(request) = self.requests.get_mut(key) {
                request.outstanding = 1;
            }
            let bytes = u64::from(header.bytes);
            let asked = disks.status(ticket, agreement.disk, header.offset, bytes, RUNS_MAX);
            if asked.is_err() {
                self.status_done(key, Ok(Vec::new()));
            }
            return;
        }
        self.want_read(id, key);
    }

    fn want_read(&mut self, id: Key, key: Key) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.wants.push_back(Want::Read(key));
        }
        self.wake(id);
    }

    /// The states of a read's range are known, as far as they are: what is not is read.
    pub(crate) fn read_planned(&mut self, key: Key, extents: Vec<ByteExtent>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let id = request.session;
        let (mut offset, mut left) = (request.offset, request.bytes);
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        read.plan.clear();
        for extent in extents.iter().take(RUNS_MAX) {
            let bytes = extent.bytes.min(u64::from(left)) as u32;
            let hole = extent.state != BlockState::Data;
            push_run(&mut read.plan, Run { offset, bytes, hole });
            offset += u64::from(bytes);
            left -= bytes;
        }
        push_run(&mut read.plan, Run { offset, bytes: left, hole: false });
        if self.sessions.get(id).is_none_or(|session| session.is_closing()) {
            return self.finish(key);
        }
        self.want_read(id, key);
    }

    /// Grants a read what it needs next.
    pub(crate) fn grant_read<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        key: Key,
        turn: Option<Lane>,
    ) -> Grant {
        let next = match self.requests.get(key).map(|request| &request.kind) {
            Some(Kind::Read(read)) => read.plan.front().map(|run| (*run, read.whole, read.lane)),
            _ => None,
        };
        let Some((run, whole, lane)) = next else {
            if let Some(session) = self.sessions.get_mut(id) {
                session.wants.pop_front();
            }
            return Grant::Served;
        };
        if run.hole {
            return self.grant_hole(id, key, run);
        }
        let bytes = if whole { covering(run) } else { covering(first_piece(run)) };
        let Some(session) = self.sessions.get(id) else { return Grant::Nothing };
        let held = session.reply_held_bytes;
        if held > 0 && held + u64::from(bytes) > self.options.reply_bytes_max {
            return Grant::Nothing;
        }
        if !whole && session.send.free() < CHUNK_BYTES {
            return Grant::Nothing;
        }
        if !self.may_take(lane, turn) {
            return Grant::Waits(lane);
        }
        let spans = if whole {
            self.budget.take(lane, bytes)
        } else {
            self.budget.take_run(lane, bytes).map(|span| vec![span])
        };
        let Some(spans) = spans else { return Grant::Waits(lane) };
        let piece = if whole { run } else { first_piece(run) };
        self.submit(disks, id, key, piece, spans);
        Grant::Served
    }

    /// A run that is known to be zeroes is sent as such.
    fn grant_hole(&mut self, id: Key, key: Key, run: Run) -> Grant {
        let Some(session) = self.sessions.get_mut(id) else { return Grant::Nothing };
        if session.send.free() < CHUNK_BYTES {
            return Grant::Nothing;
        }
        let Some(request) = self.requests.get_mut(key) else { return Grant::Nothing };
        let cookie = request.cookie;
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        read.plan.pop_front();
        read.hole_bytes += u64::from(run.bytes);
        let last = read.plan.is_empty() && request.outstanding == 0;
        self.push(id, |out| reply::offset_hole(out, cookie, last, run.offset, run.bytes));
        if last {
            self.read_succeeds(key);
        }
        Grant::Served
    }

    /// Hands the pieces of a run, one for each span, to the disk.
    fn submit<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        key: Key,
        run: Run,
        spans: Vec<Span>,
    ) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let disk = request.disk;
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        let whole = read.whole;
        take_from(&mut read.plan, run.bytes);
        let (mut offset, mut left) = (run.offset, run.bytes);
        let mut asked = Vec::with_capacity(spans.len());
        for span in spans {
            let skip = (offset % u64::from(PAGE_BYTES)) as u32;
            let bytes = left.min(span.bytes() - skip);
            read.pieces.push(Piece { offset, bytes, loan: None });
            asked.push((read.pieces.len() as u16 - 1, offset, bytes, span));
            offset += u64::from(bytes);
            left -= bytes;
        }
        assert_eq!(left, 0, "the spans of a read hold its blocks");
        request.outstanding += asked.len() as u32;
        if !whole {
            request.reserved += CHUNK_BYTES;
        }
        if let Some(session) = self.sessions.get_mut(id) {
            assert!(whole || session.send.reserve(CHUNK_BYTES), "a chunk without room");
            session.reply_held_bytes +=
                asked.iter().map(|(.., span)| u64::from(span.bytes())).sum::<u64>();
        }
        for (piece, offset, bytes, span) in asked {
            let ticket = Slab::<Request>::ticket(self.options.ticket_class, key, piece);
            if let Err((error, span)) = disks.read(ticket, disk, offset, bytes, span) {
                self.piece_done(key, piece, span, Err(error));
            }
        }
    }

    /// A piece was read, or could not be.
    pub(crate) fn piece_done(
        &mut self,
        key: Key,
        piece: u16,
        span: Span,
        result: Result<(), IoError>,
    ) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let id = request.session;
        assert!(request.outstanding > 0, "an answer to what was not asked");
        request.outstanding -= 1;
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        let lane = read.lane;
        let Some(place) = read.pieces.get_mut(piece as usize) else { panic!("no such piece") };
        if let Err(error) = result {
            let offset = place.offset;
            if read.failure.as_ref().is_none_or(|(_, first)| offset < *first) {
                read.failure = Some((error, offset));
            }
            // What was not asked for yet is left out.
            read.plan.clear();
            self.give_read(id, span, lane);
        } else if self.sessions.get(id).is_none_or(|session| session.is_closing()) {
            self.give_read(id, span, lane);
        } else if read.whole {
            place.loan = Some(Loan { span, lane });
        } else {
            self.chunk(key, piece, span);
        }
        self.read_goes_on(key);
    }

    /// Sends a piece of a streamed read.
    fn chunk(&mut self, key: Key, piece: u16, span: Span) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (id, cookie, total) = (request.session, request.cookie, request.bytes);
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        let Piece { offset, bytes, .. } = read.pieces[piece as usize];
        let last = read.plan.is_empty() && request.outstanding == 0 && read.failure.is_none();
        let lane = read.lane;
        request.reserved -= CHUNK_BYTES;
        let skip = (offset % u64::from(PAGE_BYTES)) as u32;
        let memory = self.budget.memory();
        let data = &memory.slice(&span)[skip as usize..(skip + bytes) as usize];
        let zero = total < SPARSE_BYTES_MIN && is_zero(data);
        if zero {
            read.hole_bytes += u64::from(bytes);
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.send.unreserve(CHUNK_BYTES);
        }
        if zero {
            self.push(id, |out| reply::offset_hole(out, cookie, last, offset, bytes));
            self.give_read(id, span, lane);
        } else {
            self.push(id, |out| reply::offset_data(out, cookie, last, offset, bytes));
            self.push_data(id, Loan { span, lane }, skip, bytes);
        }
    }

    /// Ends a read when nothing of it is outstanding.
    fn read_goes_on(&mut self, key: Key) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (id, cookie) = (request.session, request.cookie);
        let closing = self.sessions.get(id).is_none_or(|session| session.is_closing());
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        if request.outstanding > 0 || !(read.plan.is_empty() || closing) {
            return;
        }
        let loans: Vec<(u64, u32, Loan)> = read
            .pieces
            .drain(..)
            .filter_map(|piece| Some((piece.offset, piece.bytes, piece.loan?)))
            .collect();
        let (failure, whole) = (read.failure.take(), read.whole);
        let (offset, bytes) = (request.offset, request.bytes);
        if closing || failure.is_some() {
            for (_, _, Loan { span, lane }) in loans {
                self.give_read(id, span, lane);
            }
            self.finish(key);
            if let Some((error, at)) = failure {
                self.reply(id, cookie, Some(Failure::of(error, false, Some(at))));
            }
            return;
        }
        if !whole {
            return self.read_succeeds(key);
        }
        let session = self.sessions.get(id);
        let structured = session.and_then(|one| one.agreement).is_some_and(|it| it.structured);
        self.read_succeeds(key);
        if structured {
            self.push(id, |out| reply::offset_data(out, cookie, true, offset, bytes));
        } else {
            self.push(id, |out| reply::simple(out, cookie, None));
        }
        for (offset, bytes, loan) in loans {
            self.push_data(id, loan, (offset % u64::from(PAGE_BYTES)) as u32, bytes);
        }
    }

    fn read_succeeds(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let Kind::Read(read) = &request.kind else { panic!("{key:?} is no read") };
        let (bytes, hole_bytes) = (u64::from(request.bytes), read.hole_bytes);
        if let Some(session) = self.sessions.get_mut(request.session) {
            for counters in [&mut session.counters, &mut self.counters] {
                counters.read_bytes += bytes;
                counters.hole_bytes += hole_bytes;
            }
        }
        self.finish(key);
    }

    /// Queues data of a span, which the session holds until it was sent.
    fn push_data(&mut self, id: Key, loan: Loan, skip: u32, bytes: u32) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.send.push_data(loan, skip, bytes);
        self.touch(id);
    }
}

fn push_run(plan: &mut VecDeque<Run>, run: Run) {
    match plan.back_mut() {
        _ if run.bytes == 0 => {}
        Some(last) if last.hole == run.hole => last.bytes += run.bytes,
        _ => plan.push_back(run),
    }
}

/// Takes bytes off the front of a plan.
fn take_from(plan: &mut VecDeque<Run>, bytes: u32) {
    let Some(run) = plan.front_mut() else { return };
    run.offset += u64::from(bytes);
    run.bytes -= bytes;
    if run.bytes == 0 {
        plan.pop_front();
    }
}

/// Bytes of the whole blocks around a run.
fn covering(run: Run) -> u32 {
    let page = u64::from(PAGE_BYTES);
    let first = run.offset / page * page;
    ((run.offset + u64::from(run.bytes)).next_multiple_of(page) - first) as u32
}

/// As much of a run as is read into one span.
fn first_piece(run: Run) -> Run {
    let skip = (run.offset % u64::from(PAGE_BYTES)) as u32;
    Run { bytes: run.bytes.min(RUN_PAGES_MAX * PAGE_BYTES - skip), ..run }
}

/// Whether there are only zeroes. Data is told from them by its first bytes as a rule.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
