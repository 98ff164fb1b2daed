//! Requests: parsed in the order of the stream, started, answered.

use bowline_disk::{Disks, IoError, Submitted, Volume};
use bowline_store::{BLOCK_BYTES, BlockState, DiskId, Seq};
use bowline_wire::values::{self, STATE_HOLE, STATE_ZERO};
use bowline_wire::{Command, Cookie, ErrorCode, Limits, REQUEST_BYTES, RequestHeader, reply};

use crate::budget::Lane;
use crate::failure::{Failure, failure_of, refusal_text};
use crate::handshake::BLOCK_BYTES_MIN;
use crate::interface::CloseCause;
use crate::records::{Executing, RequestState};
use crate::request::{EXTENTS_MAX, Kind, REPLY_BYTES, Request, STATUS_BYTES, STATUS_PIECE};
use crate::server::NbdServer;
use crate::session::{Parked, Phase, Session};
use crate::slab::Key;

/// Payloads from here on are received where they stay; shorter ones fit the receive ring.
pub(crate) const LONG_PAYLOAD_BYTES: u32 = 64 << 10;

/// Most wants of one session: further reads are not parsed before one was granted.
const WANTS_MAX: usize = 32;

impl NbdServer {
    /// Takes at most one request. Returns whether there may be more to do.
    pub(crate) fn transmission<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.skip_bytes > 0 {
            let skipped = session.skip_bytes.min(session.ring.used());
            session.skip_bytes -= skipped;
            session.consume(skipped);
            return session.skip_bytes == 0;
        }
        if let Some(incoming) = &session.incoming {
            return incoming.filled == incoming.header.bytes && self.payload_ends(disks, id);
        }
        let Some(bytes) = session.ring.peek::<REQUEST_BYTES>(self.budget.memory()) else {
            return false;
        };
        if session.owes_stream {
            self.publish(id);
        }
        self.records.execute(Executing::Session(id.slot));
        let header = match RequestHeader::decode(&bytes) {
            Ok(header) => header,
            Err(bad) => {
                self.abort(id, CloseCause::Magic(bad));
                return false;
            }
        };
        let Some(session) = self.sessions.get_mut(id) else { return false };
        session.after_long = header.payload_bytes() >= LONG_PAYLOAD_BYTES;
        let has_room = session.send.free() >= STATUS_BYTES && session.send.replies_free() > 0;
        if session.wants.len() >= WANTS_MAX || !has_room {
            session.parked = Parked::Drain;
            return false;
        }
        if session.attempts.saturating_add(1) >= self.options.attempts_max {
            self.note_poison(id, &header);
            self.refuse(id, header, ErrorCode::Io);
            return true;
        }
        if !self.has_record(id) {
            return false;
        }
        match self.judge(disks, id, &header) {
            Ok(command) => self.start(disks, id, header, command),
            Err(code) => {
                self.refuse(id, header, code);
                true
            }
        }
    }

    pub(crate) fn judge<V: Volume>(
        &self,
        disks: &Disks<V>,
        id: Key,
        header: &RequestHeader,
    ) -> Result<Command, ErrorCode> {
        let agreement = self.sessions.get(id).and_then(|session| session.agreement);
        let found = agreement.and_then(|agreement| {
            let at = self.exported.binary_search_by_key(&agreement.disk, |one| one.disk).ok()?;
            let exported = self.exported.get(at)?;
            Some((agreement, exported, disks.store().disk(agreement.disk)?))
        });
        let Some((agreement, exported, disk)) = found else { return Err(ErrorCode::Shutdown) };
        let limits = Limits {
            bytes: disk.bytes,
            read_only: exported.read_only || disk.read_only,
            block_bytes_min: BLOCK_BYTES_MIN,
            structured: agreement.structured,
            allocation: agreement.allocation,
        };
        limits.judge(header)
    }

    /// Starts a request. Returns whether the next may be looked at.
    fn start<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        header: RequestHeader,
        command: Command,
    ) -> bool {
        match command {
            Command::Write { fua } => return self.write_begins(disks, id, header, fua),
            Command::Disconnect => {
                let Some(session) = self.sessions.get_mut(id) else { return false };
                session.phase = Phase::Draining;
                self.touch(id);
                return false;
            }
            Command::Read { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
                if header.bytes == 0 =>
            {
                self.answer_at_once(id, &header, command, None);
            }
            // The next read brings the same bytes in no less time: there is nothing to do ahead.
            Command::Cache => self.answer_at_once(id, &header, command, None),
            Command::Read { whole } => self.read_begins(disks, id, header, whole),
            Command::BlockStatus { one } => self.status_begins(disks, id, header, one),
            Command::WriteZeroes { fast: true, .. } if !holds_a_block(&header) => {
                // Bytes inside of a block are merged into it, which is what a write does.
                let text = "zeroing less than a block is no faster than writing";
                let failure = Failure::new(ErrorCode::NotSupported, text);
                self.answer_at_once(id, &header, command, Some(failure));
            }
            Command::Flush | Command::Trim { .. } | Command::WriteZeroes { .. } => {
                return self.plain(disks, id, header, command);
            }
        }
        true
    }

    /// FLUSH, TRIM, WRITE_ZEROES: one call of the disk.
    fn plain<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        header: RequestHeader,
        command: Command,
    ) -> bool {
        let Some(key) = self.try_begins(id, &header, command) else { return false };
        let submitted = self.try_plain(disks, key, &header, command);
        self.submitted(id, key, header, submitted)
    }

    /// A request that is tried at once: it is known before it is.
    pub(crate) fn try_begins(
        &mut self,
        id: Key,
        header: &RequestHeader,
        command: Command,
    ) -> Option<Key> {
        let writes = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
        if let Some((key, _)) = self.sessions.get(id)?.in_doubt {
            return Some(key);
        }
        let key = self.request(id, header, Kind::Plain { writes }, REPLY_BYTES)?;
        let session = self.sessions.get(id)?;
        let (arrival, begins) = (session.consumed(), session.ring.head());
        self.publish_request(key, *header, arrival, begins, RequestState::Started);
        Some(key)
    }

    /// Has the disk do what a request asks for, unless a dead process has.
    pub(crate) fn try_plain<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        key: Key,
        header: &RequestHeader,
        command: Command,
    ) -> Submitted {
        let (ticket, disk) = (self.ticket(key, 0), self.disk_of(key));
        let (offset, bytes) = (header.offset, u64::from(header.bytes));
        if let Some(seq) = self.take_doubt(key) {
            let fua = matches!(
                command,
                Command::Trim { fua: true } | Command::WriteZeroes { fua: true, .. }
            );
            return disks.admitted(ticket, disk, seq, BLOCK_BYTES, fua);
        }
        match command {
            Command::Trim { fua } => disks.discard(ticket, disk, offset, bytes, fua),
            Command::WriteZeroes { fua, keep_allocated, .. } => {
                disks.zero(ticket, disk, offset, bytes, keep_allocated, fua)
            }
            _ => disks.flush(ticket, disk),
        }
    }

    /// The number a dead process's change has, if this is the request it was made for.
    pub(crate) fn take_doubt(&mut self, key: Key) -> Option<Seq> {
        let id = self.requests.get(key)?.session;
        let session = self.sessions.get_mut(id)?;
        let (_, seq) = session.in_doubt.take_if(|(other, _)| *other == key)?;
        Some(seq)
    }

    /// What the disk said to a request that is next in the stream. Returns whether it was taken.
    pub(crate) fn submitted(
        &mut self,
        id: Key,
        key: Key,
        header: RequestHeader,
        submitted: Submitted,
    ) -> bool {
        let short_bytes = header.payload_bytes();
        match submitted {
            Submitted::Done(result) => self.conclude_soon(key, |server, id| {
                server.reply_plain(id, &header, result);
                server.take_header(id, &header);
                if let Some(session) = server.sessions.get_mut(id) {
                    session.consume(short_bytes);
                }
            }),
            Submitted::Pending => {
                let is_kept = short_bytes > 0 && !self.is_admitted(key);
                self.set_state(key, RequestState::Pending);
                if let Some(request) = self.requests.get_mut(key) {
                    (request.outstanding, request.is_taken) = (1, true);
                }
                if let Some(session) = self.sessions.get_mut(id).filter(|_| is_kept) {
                    session.kept.push_back((Some(key), session.ring.head()));
                }
                self.take_header(id, &header);
                if let Some(session) = self.sessions.get_mut(id) {
                    session.consume(short_bytes);
                    session.owes_stream = true;
                }
            }
            Submitted::Busy => {
                self.finish(key);
                self.park_busy(id);
                return false;
            }
        }
        true
    }

    /// A session tries again when the disk has room.
    pub(crate) fn park_busy(&mut self, id: Key) {
        self.counters.busy += 1;
        if let Some(session) = self.sessions.get_mut(id) {
            session.counters.busy += 1;
            session.parked = Parked::Busy;
            self.busy.push_back(id);
        }
    }

    /// The answer to a request that the disk had taken.
    pub(crate) fn plain_done(&mut self, key: Key, result: Result<(), IoError>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let Kind::Plain { writes } = request.kind else { panic!("{key:?} is no plain request") };
        assert!(request.outstanding == 1, "an answer to what was not asked");
        request.outstanding = 0;
        let (id, cookie, bytes) = (request.session, request.cookie, request.bytes);
        let failure = failure_of(result, writes, request.offset, bytes);
        let payload = std::mem::take(&mut request.payload);
        self.conclude_soon(key, |server, id| server.reply(id, cookie, failure));
        if !payload.is_empty() {
            // The record names these pages until the stream has said that it is over.
            self.publish_news(id);
            self.give_payload(Lane::of(bytes), payload);
        }
    }

    fn reply_plain(&mut self, id: Key, header: &RequestHeader, result: Result<(), IoError>) {
        let writes = matches!(header.kind, values::command::WRITE | values::command::WRITE_ZEROES);
        let failure = failure_of(result, writes, header.offset, header.bytes);
        self.reply(id, header.cookie, failure);
    }

    fn status_begins<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        header: RequestHeader,
        one: bool,
    ) {
        let Some(key) = self.request(id, &header, Kind::Status { one }, STATUS_BYTES) else {
            return;
        };
        self.take_request(id, key, &header);
        self.ask_status(disks, key);
    }

    /// Takes a request out of the stream that changes nothing: it can be tried again at any time.
    pub(crate) fn take_request(&mut self, id: Key, key: Key, header: &RequestHeader) {
        let arrival = self.sessions.get(id).map_or(0, Session::consumed);
        self.publish_request(key, *header, arrival, 0, RequestState::Pending);
        if let Some(request) = self.requests.get_mut(key) {
            request.is_taken = true;
        }
        self.take_header(id, header);
        if let Some(session) = self.sessions.get_mut(id) {
            session.owes_stream = true;
        }
    }

    /// Asks for the states of a request's range.
    pub(crate) fn ask_status<V: Volume>(&mut self, disks: &mut Disks<V>, key: Key) {
        let ticket = self.ticket(key, STATUS_PIECE);
        let Some(request) = self.requests.get_mut(key) else { return };
        request.outstanding = 1;
        let (disk, offset, bytes) = (request.disk, request.offset, u64::from(request.bytes));
        let one = matches!(request.kind, Kind::Status { one: true });
        let extents_max = if one { 1 } else { EXTENTS_MAX };
        if let Err(error) = disks.status(ticket, disk, offset, bytes, extents_max) {
            self.status_done(key, Err(error));
        }
    }

    /// The states of a range, for BLOCK_STATUS or for a read that leaves holes out.
    pub(crate) fn status_done(
        &mut self,
        key: Key,
        result: Result<Vec<bowline_disk::ByteExtent>, IoError>,
    ) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.outstanding = 0;
        let (cookie, offset, bytes) = (request.cookie, request.offset, request.bytes);
        let one = match &request.kind {
            Kind::Status { one } => *one,
            Kind::Read(_) => return self.read_planned(key, result.unwrap_or_default()),
            Kind::Plain { .. } => panic!("{key:?} asked for no state"),
        };
        let extents = match result {
            Ok(extents) => extents,
            Err(error) => {
                let failure = Some(Failure::of(error, false, Some(offset)));
                return self.conclude_soon(key, |server, id| server.reply(id, cookie, failure));
            }
        };
        let mut left = bytes;
        let mut described = Vec::new();
        for extent in extents.iter().take(if one { 1 } else { EXTENTS_MAX }) {
            // "the sum of the length fields of the first N-1 extents MUST be less than the
            // requested length": nothing beyond the request is told.
            let bytes = extent.bytes.min(u64::from(left)) as u32;
            left -= bytes;
            if bytes > 0 {
                described.push(reply::Extent { bytes, flags: flags_of(extent.state) });
            }
        }
        if described.is_empty() {
            // "a server MAY always safely report a status of 0 for any block".
            described.push(reply::Extent { bytes, flags: 0 });
        }
        self.conclude_soon(key, |server, id| {
            server.push(id, |out| reply::block_status(out, cookie, &described));
        });
    }

    /// Registers a request, with room for its reply; without room it is not started yet. None if
    /// the session is gone.
    pub(crate) fn request(
        &mut self,
        id: Key,
        header: &RequestHeader,
        kind: Kind,
        reserved: u32,
    ) -> Option<Key> {
        let session = self.sessions.get_mut(id)?;
        let disk = session.agreement?.disk;
        assert!(session.send.reserve(reserved), "a request without room for its reply");
        let is_started = reserved > 0;
        session.requests += u32::from(is_started);
        let RequestHeader { cookie, offset, bytes, .. } = *header;
        let request = Request {
            session: id,
            disk,
            cookie,
            offset,
            bytes,
            kind,
            reserved,
            replies_reserved: 0,
            outstanding: 0,
            is_started,
            is_known: false,
            is_taken: false,
            steps: 0,
            step_stream: None,
            attempts: 0,
            payload: Vec::new(),
        };
        Some(self.requests.insert(request))
    }

    pub(crate) fn disk_of(&self, key: Key) -> DiskId {
        self.requests.get(key).map_or(DiskId(0), |request| request.disk)
    }

    /// The header of a request is used up, and counted.
    pub(crate) fn take_header(&mut self, id: Key, header: &RequestHeader) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.consume(REQUEST_BYTES as u32);
        session.counters.request(header.kind);
        self.counters.request(header.kind);
    }

    /// Answers a request that is not to be tried; its payload is skipped.
    fn refuse(&mut self, id: Key, header: RequestHeader, code: ErrorCode) {
        // Whatever a dead process did of it, this is its answer.
        let in_doubt = self.sessions.get_mut(id).and_then(|session| session.in_doubt.take());
        let is_read = header.kind == values::command::READ;
        let failure = Failure::new(code, refusal_text(code));
        self.answer_kind(id, header.cookie, is_read, Some(failure));
        self.take_header(id, &header);
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.skip_bytes = header.payload_bytes();
        session.after_long = false;
        self.publish(id);
        if let Some((key, _)) = in_doubt {
            self.finish(key);
        }
    }

    fn answer_at_once(
        &mut self,
        id: Key,
        header: &RequestHeader,
        command: Command,
        failure: Option<Failure>,
    ) {
        self.answer_kind(id, header.cookie, matches!(command, Command::Read { .. }), failure);
        self.take_header(id, header);
        self.publish(id);
    }

    fn answer_kind(&mut self, id: Key, cookie: Cookie, is_read: bool, failure: Option<Failure>) {
        let session = self.sessions.get(id);
        let structured = session.and_then(|one| one.agreement).is_some_and(|it| it.structured);
        // "MUST NOT use a simple reply for NBD_CMD_READ", not even for one of no bytes.
        if is_read && structured && failure.is_none() {
            return self.push(id, |out| reply::none(out, cookie));
        }
        self.reply(id, cookie, failure);
    }

    /// Answers without data: success by a simple reply, an error as a chunk where it can be one.
    pub(crate) fn reply(&mut self, id: Key, cookie: Cookie, failure: Option<Failure>) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let structured = session.agreement.is_some_and(|agreement| agreement.structured);
        let room = session.send.free() as usize;
        let Some(failure) = failure else {
            return self.push(id, |out| reply::simple(out, cookie, None));
        };
        session.counters.errors += 1;
        self.counters.errors += 1;
        if !structured {
            return self.push(id, |out| reply::simple(out, cookie, Some(failure.code)));
        }
        let overhead = reply::CHUNK_HEADER_BYTES + 6 + 8;
        let mut end = failure.text.len().min(room.saturating_sub(overhead));
        while !failure.text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &failure.text[..end];
        self.push(id, |out| reply::error(out, cookie, failure.code, failure.offset, text));
    }

    /// Queues header bytes.
    pub(crate) fn push(&mut self, id: Key, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.is_closing() {
            return;
        }
        self.scratch.clear();
        encode(&mut self.scratch);
        session.send.push_header(self.budget.memory(), &self.scratch);
        session.is_unpublished = true;
        self.touch(id);
    }
}

/// Whether a range has a whole block in it.
fn holds_a_block(header: &RequestHeader) -> bool {
    let first = header.offset.next_multiple_of(BLOCK_BYTES);
    first + BLOCK_BYTES <= header.offset + u64::from(header.bytes)
}

/// `base:allocation`: zeros that keep their reservation are no hole.
fn flags_of(state: BlockState) -> u32 {
    match state {
        BlockState::Hole => STATE_HOLE | STATE_ZERO,
        BlockState::Zero => STATE_ZERO,
        BlockState::Data => 0,
    }
}
