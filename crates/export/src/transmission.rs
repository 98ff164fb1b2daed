//! Requests: parsed in the order of the stream, started, answered.

use bowline_disk::{Disks, IoError, IoErrorKind, Submitted, Volume};
use bowline_store::{BLOCK_BYTES, BlockState, DiskId};
use bowline_wire::values::{STATE_HOLE, STATE_ZERO};
use bowline_wire::{Command, Cookie, ErrorCode, Limits, REQUEST_BYTES, RequestHeader, reply};

use crate::handshake::BLOCK_BYTES_MIN;
use crate::interface::CloseCause;
use crate::request::{EXTENTS_MAX, Kind, REPLY_BYTES, Request, STATUS_BYTES, STATUS_PIECE};
use crate::server::NbdServer;
use crate::session::{Parked, Phase};
use crate::slab::{Key, Slab};

/// Payloads from here on are received where they stay; shorter ones fit the receive ring.
pub(crate) const LONG_PAYLOAD_BYTES: u32 = 64 << 10;

/// Most wants of one session: further reads are not parsed before one was granted.
const WANTS_MAX: usize = 32;

/// Why a request failed, as its client is told.
pub(crate) struct Failure {
    pub code: ErrorCode,
    /// The byte it is about.
    pub offset: Option<u64>,
    pub text: String,
}

impl Failure {
    pub fn of(error: IoError, writes: bool, offset: Option<u64>) -> Failure {
        let code = match error.kind {
            IoErrorKind::OutOfRange if writes => ErrorCode::NoSpace,
            IoErrorKind::Invalid | IoErrorKind::OutOfRange => ErrorCode::Invalid,
            IoErrorKind::NoSpace => ErrorCode::NoSpace,
            IoErrorKind::ReadOnly => ErrorCode::NotPermitted,
            _ => ErrorCode::Io,
        };
        Failure { code, offset, text: error.text }
    }

    fn new(code: ErrorCode, text: &str) -> Failure {
        Failure { code, offset: None, text: text.to_string() }
    }
}

fn refusal_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NotPermitted => "the export is read-only",
        ErrorCode::NoSpace => "the request reaches past the end of the disk",
        ErrorCode::Overflow => "a read of more than 32 MiB",
        ErrorCode::Shutdown => "the disk is no longer offered",
        _ => "the request is malformed, unaligned or out of bounds",
    }
}

impl NbdServer {
    /// Takes at most one request. Returns whether there may be more to do.
    pub(crate) fn transmission<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.skip_bytes > 0 {
            let skipped = session.skip_bytes.min(session.ring.used());
            session.ring.consume(skipped);
            session.skip_bytes -= skipped;
            return session.skip_bytes == 0;
        }
        if let Some(incoming) = &session.incoming {
            return incoming.filled == incoming.header.bytes && self.payload_ends(disks, id);
        }
        let Some(bytes) = session.ring.peek::<REQUEST_BYTES>(self.budget.memory()) else {
            return false;
        };
        let header = match RequestHeader::decode(&bytes) {
            Ok(header) => header,
            Err(bad) => {
                self.abort(id, CloseCause::Magic(bad));
                return false;
            }
        };
        session.after_long = header.payload_bytes() >= LONG_PAYLOAD_BYTES;
        if session.wants.len() >= WANTS_MAX || session.send.free() < STATUS_BYTES {
            session.parked = Parked::Drain;
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

    fn judge<V: Volume>(
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
            Command::Read { .. }
            | Command::Cache
            | Command::Trim { .. }
            | Command::WriteZeroes { .. }
                if header.bytes == 0 =>
            {
                self.take_header(id, &header);
                self.answer(id, header.cookie, command, None);
            }
            // The next read brings the same bytes in no less time: there is nothing to do ahead.
            Command::Cache => {
                self.take_header(id, &header);
                self.answer(id, header.cookie, command, None);
            }
            Command::Read { whole } => {
                self.take_header(id, &header);
                self.read_begins(disks, id, header, whole);
            }
            Command::BlockStatus { one } => {
                self.take_header(id, &header);
                self.status_begins(disks, id, header, one);
            }
            Command::WriteZeroes { fast: true, .. } if !holds_a_block(&header) => {
                // Bytes inside of a block are merged into it, which is what a write does.
                self.take_header(id, &header);
                let text = "zeroing less than a block is no faster than writing";
                let failure = Failure::new(ErrorCode::NotSupported, text);
                self.answer(id, header.cookie, command, Some(failure));
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
        let writes = matches!(command, Command::WriteZeroes { .. });
        let Some(key) = self.request(id, &header, Kind::Plain { writes }, REPLY_BYTES) else {
            return false;
        };
        let ticket = Slab::<Request>::ticket(self.options.ticket_class, key, 0);
        let disk = self.disk_of(key);
        let (offset, bytes) = (header.offset, u64::from(header.bytes));
        let submitted = match command {
            Command::Trim { fua } => disks.discard(ticket, disk, offset, bytes, fua),
            Command::WriteZeroes { fua, keep_allocated, .. } => {
                disks.zero(ticket, disk, offset, bytes, keep_allocated, fua)
            }
            _ => disks.flush(ticket, disk),
        };
        if !self.submitted(id, key, submitted) {
            return false;
        }
        self.take_header(id, &header);
        true
    }

    /// What the disk said to a request. Returns whether it was taken.
    pub(crate) fn submitted(&mut self, id: Key, key: Key, submitted: Submitted) -> bool {
        match submitted {
            Submitted::Done(result) => self.plain_done_at(key, result, true),
            Submitted::Pending => {
                if let Some(request) = self.requests.get_mut(key) {
                    request.outstanding = 1;
                }
            }
            Submitted::Busy => {
                self.finish(key);
                self.counters.busy += 1;
                if let Some(session) = self.sessions.get_mut(id) {
                    session.counters.busy += 1;
                    session.parked = Parked::Busy;
                    self.busy.push_back(id);
                }
                return false;
            }
        }
        true
    }

    /// The answer to a request that the disk had taken.
    pub(crate) fn plain_done(&mut self, key: Key, result: Result<(), IoError>) {
        self.plain_done_at(key, result, false);
    }

    fn plain_done_at(&mut self, key: Key, result: Result<(), IoError>, at_once: bool) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let Kind::Plain { writes } = request.kind else { panic!("{key:?} is no plain request") };
        assert!(at_once || request.outstanding == 1, "an answer to what was not asked");
        request.outstanding = 0;
        let (id, cookie) = (request.session, request.cookie);
        let (offset, bytes) = (request.offset, request.bytes);
        self.finish(key);
        // A chunk of type ERROR_OFFSET is no reply to a flush, which is about no range.
        let at = (bytes > 0).then_some(offset);
        let failure = result.err().map(|error| Failure::of(error, writes, at));
        self.reply(id, cookie, failure);
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
        let extents_max = if one { 1 } else { EXTENTS_MAX };
        let ticket = Slab::<Request>::ticket(self.options.ticket_class, key, STATUS_PIECE);
        if let Some(request) = self.requests.get_mut(key) {
            request.outstanding = 1;
        }
        let (disk, bytes) = (self.disk_of(key), u64::from(header.bytes));
        if let Err(error) = disks.status(ticket, disk, header.offset, bytes, extents_max) {
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
        let (id, cookie, offset, bytes) =
            (request.session, request.cookie, request.offset, request.bytes);
        let one = match &request.kind {
            Kind::Status { one } => *one,
            Kind::Read(_) => return self.read_planned(key, result.unwrap_or_default()),
            Kind::Plain { .. } => panic!("{key:?} asked for no state"),
        };
        self.finish(key);
        let extents = match result {
            Ok(extents) => extents,
            Err(error) => {
                return self.reply(id, cookie, Some(Failure::of(error, false, Some(offset))));
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
        self.push(id, |out| reply::block_status(out, cookie, &described));
    }

    /// Registers a request, with room for its reply. None if the session is gone.
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
        session.requests += 1;
        let RequestHeader { cookie, offset, bytes, .. } = *header;
        let request =
            Request { session: id, disk, cookie, offset, bytes, kind, reserved, outstanding: 0 };
        Some(self.requests.insert(request))
    }

    pub(crate) fn disk_of(&self, key: Key) -> DiskId {
        self.requests.get(key).map_or(DiskId(0), |request| request.disk)
    }

    /// The header of a request is used up, and counted.
    pub(crate) fn take_header(&mut self, id: Key, header: &RequestHeader) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.ring.consume(REQUEST_BYTES as u32);
        session.counters.request(header.kind);
        self.counters.request(header.kind);
    }

    /// Answers a request that is not to be tried; its payload is skipped.
    fn refuse(&mut self, id: Key, header: RequestHeader, code: ErrorCode) {
        self.take_header(id, &header);
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.skip_bytes = header.payload_bytes();
        session.after_long = false;
        let is_read = header.kind == bowline_wire::values::command::READ;
        let failure = Failure::new(code, refusal_text(code));
        self.answer_kind(id, header.cookie, is_read, Some(failure));
    }

    fn answer(&mut self, id: Key, cookie: Cookie, command: Command, failure: Option<Failure>) {
        self.answer_kind(id, cookie, matches!(command, Command::Read { .. }), failure);
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
