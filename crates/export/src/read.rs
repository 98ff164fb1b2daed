//! READ: spans from the pages to the disk and from there to the socket.
//!
//! A reply that may be cut (structured, without DF) is streamed: each piece is a chunk of its own,
//! sent in order as soon as it was read, and a long read never holds more than a few of them. So
//! how far a read has come is one number, and a successor goes on from there. Its holes are
//! left out: a long read asks for the states of its range first and neither reads nor holds memory
//! for holes, a short one looks at the bytes it got. A write may come between the question and the
//! read; but then it came while the read was under way, and the read may tell the bytes before it.
//!
//! A reply that must not be cut is read as a whole before its header is sent, so an error can still
//! be told.

use std::collections::VecDeque;

use bowline_arena::{PAGE_BYTES, Span};
use bowline_disk::{ByteExtent, Disks, IoError, SECTOR_BYTES, Volume};
use bowline_store::BlockState;
use bowline_wire::{RequestHeader, reply};

use crate::budget::{Lane, Loan, RUN_PAGES_MAX};
use crate::failure::Failure;
use crate::plan::Grant;
use crate::records::DONE;
use crate::request::{CHUNK_BYTES, Kind, Piece, PieceState, REPLY_BYTES, Read, Run, STATUS_PIECE};
use crate::send::Pieces;
use crate::server::NbdServer;
use crate::session::Want;
use crate::slab::Key;

const SECTOR: u32 = SECTOR_BYTES as u32;

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
        let read = Read::new(whole, (header.offset, header.bytes));
        let Some(key) = self.request(id, &header, Kind::Read(read), REPLY_BYTES) else { return };
        self.take_request(id, key, &header);
        self.read_goes(disks, id, key);
    }

    /// Has a read look for holes first, or read at once.
    pub(crate) fn read_goes<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key, key: Key) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let disk = request.disk;
        let Kind::Read(read) = &request.kind else { panic!("{key:?} is no read") };
        let Some(run) = read.plan.front().copied() else { return };
        if read.whole || run.bytes < SPARSE_BYTES_MIN {
            return self.want_read(id, key);
        }
        request.outstanding = 1;
        let ticket = self.ticket(key, STATUS_PIECE);
        let asked = disks.status(ticket, disk, run.offset, u64::from(run.bytes), RUNS_MAX);
        if asked.is_err() {
            self.status_done(key, Ok(Vec::new()));
        }
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
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        let Some(run) = read.plan.pop_front() else { return };
        let (mut offset, mut left) = (run.offset, run.bytes);
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
        let has_room = whole || session.send.free() >= CHUNK_BYTES;
        if !has_room || session.send.replies_free() == 0 {
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

    /// A run that is known to be zeroes is sent as such, when it is its turn.
    fn grant_hole(&mut self, id: Key, key: Key, run: Run) -> Grant {
        let Some(session) = self.sessions.get_mut(id) else { return Grant::Nothing };
        if !session.send.reserve(CHUNK_BYTES) {
            return Grant::Nothing;
        }
        let Some(request) = self.requests.get_mut(key) else { return Grant::Nothing };
        request.reserved += CHUNK_BYTES;
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        read.plan.pop_front();
        let Run { offset, bytes, .. } = run;
        read.pieces.push(Piece { offset, bytes, state: PieceState::Hole });
        self.chunks(key);
        self.read_goes_on(key);
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
            read.pieces.push(Piece { offset, bytes, state: PieceState::Asked });
            asked.push((read.pieces.len() as u16 - 1, offset, bytes, span));
            offset += u64::from(bytes);
            left -= bytes;
        }
        assert_eq!(left, 0, "the spans of a read hold its blocks");
        request.outstanding += asked.len() as u32;
        request.replies_reserved += 1;
        if !whole {
            request.reserved += CHUNK_BYTES;
        }
        if let Some(session) = self.sessions.get_mut(id) {
            assert!(whole || session.send.reserve(CHUNK_BYTES), "a chunk without room");
            session.send.reserve_reply();
            session.reply_held_bytes +=
                asked.iter().map(|(.., span)| u64::from(span.bytes())).sum::<u64>();
        }
        for (piece, offset, bytes, span) in asked {
            let ticket = self.ticket(key, piece);
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
        let closing = self.sessions.get(id).is_none_or(|session| session.is_closing());
        if let Err(error) = result {
            let offset = place.offset;
            place.state = PieceState::Gone;
            if read.failure.as_ref().is_none_or(|(_, first)| offset < *first) {
                read.failure = Some((error, offset));
            }
            // What was not asked for yet is left out.
            read.plan.clear();
            self.give_read(id, span, lane);
        } else if closing {
            place.state = PieceState::Gone;
            self.give_read(id, span, lane);
        } else {
            place.state = PieceState::Here(Loan { span, lane });
        }
        self.chunks(key);
        self.read_goes_on(key);
    }

    /// Sends the pieces of a streamed read whose turn it is.
    fn chunks(&mut self, key: Key) {
        loop {
            let Some(request) = self.requests.get_mut(key) else { return };
            let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
            let Some(piece) = read.pieces.get_mut(read.next).filter(|_| !read.whole) else {
                return;
            };
            let (offset, bytes) = (piece.offset, piece.bytes);
            let loan = match std::mem::replace(&mut piece.state, PieceState::Gone) {
                PieceState::Here(loan) => Some(loan),
                PieceState::Hole => None,
                // Behind a piece that cannot be read, nothing is sent but the error.
                PieceState::Gone => return,
                PieceState::Asked => {
                    piece.state = PieceState::Asked;
                    return;
                }
            };
            read.next += 1;
            self.chunk(key, offset, bytes, loan);
        }
    }

    /// Sends a piece of a streamed read; a piece that was not read is a hole.
    fn chunk(&mut self, key: Key, offset: u64, bytes: u32, loan: Option<Loan>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (id, cookie, total) = (request.session, request.cookie, request.bytes);
        let end = (offset + u64::from(bytes) - request.offset) as u32;
        let was_read = loan.is_some();
        request.reserved -= CHUNK_BYTES;
        request.replies_reserved -= u32::from(was_read);
        let skip = (offset % u64::from(PAGE_BYTES)) as u32;
        let zero = loan.as_ref().is_none_or(|loan| {
            let data = self.budget.memory().slice(&loan.span);
            total < SPARSE_BYTES_MIN && is_zero(&data[skip as usize..(skip + bytes) as usize])
        });
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        let last = end == total;
        if zero {
            read.hole_bytes += u64::from(bytes);
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.send.unreserve(CHUNK_BYTES);
        session.send.unreserve_replies(u32::from(was_read));
        self.step(key, if last { DONE } else { end / SECTOR });
        let spent = if zero {
            self.push(id, |out| reply::offset_hole(out, cookie, last, offset, bytes));
            loan
        } else {
            self.push(id, |out| reply::offset_data(out, cookie, last, offset, bytes));
            self.push_data(id, loan.into_iter().map(|loan| (loan, skip, bytes)));
            None
        };
        if let Some(Loan { span, lane }) = spent {
            self.give_read(id, span, lane);
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
        let (failure, whole) = (read.failure.take(), read.whole);
        if closing || failure.is_some() {
            return self.read_fails(key, failure);
        }
        if !whole {
            // The last chunk was the reply.
            return self.read_succeeds(key);
        }
        let loans: Pieces = read
            .pieces
            .drain(..)
            .filter_map(|piece| match piece.state {
                PieceState::Here(loan) => {
                    Some((loan, (piece.offset % u64::from(PAGE_BYTES)) as u32, piece.bytes))
                }
                _ => None,
            })
            .collect();
        let (offset, bytes) = (request.offset, request.bytes);
        let session = self.sessions.get(id);
        let structured = session.and_then(|one| one.agreement).is_some_and(|it| it.structured);
        self.count_read(key);
        self.conclude_soon(key, |server, id| {
            if structured {
                server.push(id, |out| reply::offset_data(out, cookie, true, offset, bytes));
            } else {
                server.push(id, |out| reply::simple(out, cookie, None));
            }
            server.push_data(id, loans);
        });
    }

    /// Ends a read whose session is closing, or that cannot be read on.
    fn read_fails(&mut self, key: Key, failure: Option<(IoError, u64)>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (id, cookie) = (request.session, request.cookie);
        let Kind::Read(read) = &mut request.kind else { panic!("{key:?} is no read") };
        let held = read.pieces.drain(..).filter_map(|piece| match piece.state {
            PieceState::Here(loan) => Some(loan),
            _ => None,
        });
        let held: Vec<Loan> = held.collect();
        let failure = failure.map(|(error, at)| Failure::of(error, false, Some(at)));
        match failure {
            Some(failure) => {
                self.conclude_soon(key, |server, id| server.reply(id, cookie, Some(failure)));
            }
            None => self.finish(key),
        }
        for Loan { span, lane } in held {
            self.give_read(id, span, lane);
        }
    }

    fn read_succeeds(&mut self, key: Key) {
        self.count_read(key);
        self.end_soon(key);
    }

    fn count_read(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let Kind::Read(read) = &request.kind else { panic!("{key:?} is no read") };
        let (bytes, hole_bytes) = (u64::from(request.bytes), read.hole_bytes);
        if let Some(session) = self.sessions.get_mut(request.session) {
            for counters in [&mut session.counters, &mut self.counters] {
                counters.read_bytes += bytes;
                counters.hole_bytes += hole_bytes;
            }
        }
    }

    /// Queues data of spans as one reply; the session holds them until it was sent.
    pub(crate) fn push_data(
        &mut self,
        id: Key,
        pieces: impl IntoIterator<Item = (Loan, u32, u32)>,
    ) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.send.push_data(self.budget.memory(), &mut self.links, id.slot, pieces);
        session.is_unpublished = true;
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
