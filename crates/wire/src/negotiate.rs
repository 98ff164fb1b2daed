//! The server's side of the handshake, fixed newstyle.
//!
//! The caller keeps the received bytes side by side and calls [`Negotiation::advance`] with what
//! it has; one call takes at most one message (the client flags or one option) and says how many
//! bytes it consumed. What is left to know between two calls is [`Negotiation`], plain data: it
//! can be stored after each option and taken up by another process
//! ([`Negotiation::to_record`], [`Negotiation::from_record`]).
//!
//! Invariants: an option that is refused or not understood is skipped exactly, so the next one is
//! parsed ("MUST NOT fail to parse the next message received"); at most
//! [`OPTION_DATA_BYTES_MAX`] bytes of data are looked at together.

use crate::export::{Export, ExportId, find_export};
use crate::option::{ContextQuery, InfoQuery, Reader};
use crate::request::PAYLOAD_BYTES_MAX;
use crate::values::{
    ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES,
    GREETING_MAGIC, HANDSHAKE_FIXED_NEWSTYLE, HANDSHAKE_NO_ZEROES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, info, option, option_reply,
};
use crate::{OPTION_DATA_BYTES_MAX, OPTION_HEADER_BYTES};

/// Bytes of a [`Negotiation`] stored by [`Negotiation::to_record`].
pub const NEGOTIATION_RECORD_BYTES: usize = 16;

/// Longest option that is skipped; a longer one is "deemed a denial of service attack"
/// (Size constraints: payloads up to 2^25 "SHOULD NOT be considered" one).
const SKIP_BYTES_MAX: u32 = 1 << 25;

/// Preferred size and alignment: the block of the store.
const BLOCK_BYTES_PREFERRED: u32 = 4096;

/// The greeting: the server speaks first.
#[must_use]
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    let flags = HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES;
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// What client and server agreed on when the transmission phase begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The export.
    pub export: ExportId,
    /// Whether reads are answered by structured replies.
    pub structured: bool,
    /// Whether block states (`base:allocation`) may be asked for.
    pub allocation: bool,
}

/// Why the server ends a session during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client said so (NBD_OPT_ABORT).
    #[error("the client ended the handshake")]
    Abort,
    /// "the server MUST drop the TCP connection if the client sets an unknown flag".
    #[error("client flags {0:#x} are not known")]
    ClientFlags(u32),
    /// An option that does not begin with its magic.
    #[error("an option without its magic")]
    Magic,
    /// NBD_OPT_EXPORT_NAME: "If the chosen export does not exist [...] the server MUST terminate
    /// the session".
    #[error("no such export, and the client's way of asking knows no error")]
    UnknownExport,
    /// An option so long that skipping it would be work for nothing.
    #[error("an option of {0} bytes")]
    TooLong(u32),
}

/// Where the handshake stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A message was taken; there may be another.
    Taken,
    /// The next message is not here as a whole; it has at least so many bytes.
    NeedMore(usize),
    /// The transmission phase begins with the next byte.
    Transmission(Agreed),
    /// Send what was answered so far, then close.
    Close(CloseReason),
}

/// What one call of [`Negotiation::advance`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are used up.
    pub consumed: usize,
    /// Where the handshake stands.
    pub progress: Progress,
}

/// A stored negotiation that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the record of a negotiation")]
pub struct RecordError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    ClientFlags,
    Options,
    /// Data of a refused option is still to come.
    Skip(u32),
    Transmission(ExportId),
    Closed,
}

/// Everything the handshake remembers between two messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiation {
    phase: Phase,
    no_zeroes: bool,
    structured: bool,
    /// The export that `base:allocation` was selected for.
    context: Option<ExportId>,
}

impl Default for Negotiation {
    fn default() -> Negotiation {
        Negotiation::new()
    }
}

impl Negotiation {
    /// The state after the [`greeting`] was sent.
    #[must_use]
    pub fn new() -> Negotiation {
        Negotiation {
            phase: Phase::ClientFlags,
            no_zeroes: false,
            structured: false,
            context: None,
        }
    }

    /// Takes at most one message from the front of `input`; appends what it is answered to `out`.
    pub fn advance(&mut self, input: &[u8], exports: &[Export], out: &mut Vec<u8>) -> Step {
        match self.phase {
            Phase::ClientFlags => self.client_flags(input),
            Phase::Options => self.option(input, exports, out),
            Phase::Skip(left) => self.skip(input, left),
            Phase::Transmission(export) => step(0, Progress::Transmission(self.agreed(export))),
            Phase::Closed => step(0, Progress::Close(CloseReason::Abort)),
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Step {
        let Some(flags) = Reader(input).u32() else { return step(0, Progress::NeedMore(4)) };
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return self.close(4, CloseReason::ClientFlags(flags));
        }
        // A client that did not say fixed newstyle is served all the same ("Servers MAY choose to
        // honour fixed newstyle from clients that didn't set this bit").
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        self.phase = Phase::Options;
        step(4, Progress::Taken)
    }

    fn skip(&mut self, input: &[u8], left: u32) -> Step {
        let skipped = input.len().min(left as usize);
        let left = left - skipped as u32;
        self.phase = if left == 0 { Phase::Options } else { Phase::Skip(left) };
        let progress = if left == 0 { Progress::Taken } else { Progress::NeedMore(1) };
        step(skipped, progress)
    }

    fn option(&mut self, input: &[u8], exports: &[Export], out: &mut Vec<u8>) -> Step {
        let mut reader = Reader(input);
        let (Some(magic), Some(code), Some(bytes)) = (reader.u64(), reader.u32(), reader.u32())
        else {
            return step(0, Progress::NeedMore(OPTION_HEADER_BYTES));
        };
        if magic != OPTION_MAGIC {
            return self.close(OPTION_HEADER_BYTES, CloseReason::Magic);
        }
        match code {
            option::ABORT => {
                // "a server SHOULD ignore any data sent by the client"; nothing follows anyway.
                reply(out, code, option_reply::ACK, &[]);
                return self.close(OPTION_HEADER_BYTES, CloseReason::Abort);
            }
            option::EXPORT_NAME if bytes as usize > OPTION_DATA_BYTES_MAX => {
                return self.close(OPTION_HEADER_BYTES, CloseReason::UnknownExport);
            }
            _ if bytes > SKIP_BYTES_MAX => {
                return self.close(OPTION_HEADER_BYTES, CloseReason::TooLong(bytes));
            }
            _ => {}
        }
        if let Some(refusal) = refusal(code, bytes) {
            self.replaced_contexts(code);
            let (kind, text) = refusal;
            reply(out, code, kind, text.as_bytes());
            self.phase = if bytes == 0 { Phase::Options } else { Phase::Skip(bytes) };
            return step(OPTION_HEADER_BYTES, Progress::Taken);
        }
        let Some(data) = reader.bytes(bytes as usize) else {
            return step(0, Progress::NeedMore(OPTION_HEADER_BYTES + bytes as usize));
        };
        let progress = self.known_option(code, data, exports, out);
        step(OPTION_HEADER_BYTES + data.len(), progress)
    }

    fn known_option(
        &mut self,
        code: u32,
        data: &[u8],
        exports: &[Export],
        out: &mut Vec<u8>,
    ) -> Progress {
        match code {
            option::EXPORT_NAME => return self.export_name(data, exports, out),
            option::LIST => {
                for export in exports {
                    let mut body = length_of(export.name.as_bytes());
                    body.extend_from_slice(export.name.as_bytes());
                    body.extend_from_slice(export.description.as_bytes());
                    reply(out, code, option_reply::SERVER, &body);
                }
                reply(out, code, option_reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                reply(out, code, option_reply::ACK, &[]);
            }
            option::INFO | option::GO => return self.info(code, data, exports, out),
            option::LIST_META_CONTEXT => list_contexts(data, exports, out),
            option::SET_META_CONTEXT => self.set_contexts(data, exports, out),
            _ => reply(out, code, option_reply::ERR_UNSUP, &[]),
        }
        Progress::Taken
    }

    /// EXPORT_NAME: size, flags, "124 bytes, zeroes (reserved) (unless NBD_FLAG_C_NO_ZEROES was
    /// negotiated by the client)".
    fn export_name(&mut self, name: &[u8], exports: &[Export], out: &mut Vec<u8>) -> Progress {
        let Some(export) = find_export(exports, name) else {
            self.phase = Phase::Closed;
            return Progress::Close(CloseReason::UnknownExport);
        };
        out.extend_from_slice(&export.bytes.to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        self.phase = Phase::Transmission(export.id);
        Progress::Transmission(self.agreed(export.id))
    }

    fn info(&mut self, code: u32, data: &[u8], exports: &[Export], out: &mut Vec<u8>) -> Progress {
        let Some(query) = InfoQuery::parse(data) else {
            reply(out, code, option_reply::ERR_INVALID, b"malformed request for information");
            return Progress::Taken;
        };
        let Some(export) = find_export(exports, query.name) else {
            reply(out, code, option_reply::ERR_UNKNOWN, unknown_export(exports).as_bytes());
            return Progress::Taken;
        };
        let mut item = |kind: u16, parts: &[&[u8]]| {
            let mut body = kind.to_be_bytes().to_vec();
            parts.iter().for_each(|part| body.extend_from_slice(part));
            reply(out, code, option_reply::INFO, &body);
        };
        let flags = export.transmission_flags(self.structured);
        item(info::EXPORT, &[&export.bytes.to_be_bytes(), &flags.to_be_bytes()]);
        if query.wants(info::NAME) {
            item(info::NAME, &[export.name.as_bytes()]);
        }
        if query.wants(info::DESCRIPTION) && !export.description.is_empty() {
            item(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        // Sent unasked too: "A server with size constraints other than the default [...] MUST do
        // so unless it has agreed on size constraints via out of band means".
        let sizes = [export.block_bytes_min, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX];
        let [min, preferred, max] = sizes.map(u32::to_be_bytes);
        item(info::BLOCK_SIZE, &[&min, &preferred, &max]);
        // "The server MUST NOT send any zero padding bytes after the NBD_REP_ACK data".
        reply(out, code, option_reply::ACK, &[]);
        if code == option::INFO {
            return Progress::Taken;
        }
        self.phase = Phase::Transmission(export.id);
        Progress::Transmission(self.agreed(export.id))
    }

    /// SET_META_CONTEXT: "replaces all previously-set metadata contexts (including when this
    /// command fails)".
    fn set_contexts(&mut self, data: &[u8], exports: &[Export], out: &mut Vec<u8>) {
        let code = option::SET_META_CONTEXT;
        self.replaced_contexts(code);
        let Some(query) = ContextQuery::parse(data) else {
            return reply(out, code, option_reply::ERR_INVALID, b"malformed context query");
        };
        // "MUST NOT be requested unless structured replies have been negotiated first. If a client
        // attempts to do so, a server SHOULD send NBD_REP_ERR_INVALID".
        if !self.structured {
            let text = b"structured replies must be negotiated first";
            return reply(out, code, option_reply::ERR_INVALID, text);
        }
        let Some(export) = find_export(exports, query.name) else {
            return reply(out, code, option_reply::ERR_UNKNOWN, unknown_export(exports).as_bytes());
        };
        // The wildcard `base:` "the server MUST ignore [...] during NBD_OPT_SET_META_CONTEXT";
        // unknown contexts and namespaces are ignored as well.
        if query.queries.contains(&ALLOCATION_CONTEXT.as_bytes()) {
            self.context = Some(export.id);
            context_reply(out, code, ALLOCATION_CONTEXT_ID);
        }
        reply(out, code, option_reply::ACK, &[]);
    }

    fn replaced_contexts(&mut self, code: u32) {
        if code == option::SET_META_CONTEXT {
            self.context = None;
        }
    }

    fn close(&mut self, consumed: usize, reason: CloseReason) -> Step {
        self.phase = Phase::Closed;
        step(consumed, Progress::Close(reason))
    }

    /// Block states may be asked for if the context was selected for "the same export name that
    /// was ultimately selected for transmission phase".
    fn agreed(&self, export: ExportId) -> Agreed {
        let allocation = self.context == Some(export);
        Agreed { export, structured: self.structured, allocation }
    }

    /// The state as bytes, for a successor.
    #[must_use]
    pub fn to_record(self) -> [u8; NEGOTIATION_RECORD_BYTES] {
        let (phase, number) = match self.phase {
            Phase::ClientFlags => (1, 0),
            Phase::Options => (2, 0),
            Phase::Skip(left) => (3, left),
            Phase::Transmission(export) => (4, export.0),
            Phase::Closed => (5, 0),
        };
        let flags = u8::from(self.no_zeroes)
            | u8::from(self.structured) << 1
            | u8::from(self.context.is_some()) << 2;
        let mut record = [0; NEGOTIATION_RECORD_BYTES];
        record[0] = phase;
        record[1] = flags;
        record[4..8].copy_from_slice(&number.to_le_bytes());
        let context = self.context.map_or(0, |export| export.0);
        record[8..12].copy_from_slice(&context.to_le_bytes());
        record
    }

    /// The state that [`Negotiation::to_record`] stored.
    ///
    /// # Errors
    /// If the bytes are no record.
    pub fn from_record(
        record: &[u8; NEGOTIATION_RECORD_BYTES],
    ) -> Result<Negotiation, RecordError> {
        let [phase, flags, 0, 0, a, b, c, d, e, f, g, h, 0, 0, 0, 0] = *record else {
            return Err(RecordError);
        };
        let number = u32::from_le_bytes([a, b, c, d]);
        let context = u32::from_le_bytes([e, f, g, h]);
        let phase = match (phase, number) {
            (1, 0) => Phase::ClientFlags,
            (2, 0) => Phase::Options,
            (3, 1..=SKIP_BYTES_MAX) => Phase::Skip(number),
            (4, _) => Phase::Transmission(ExportId(number)),
            (5, 0) => Phase::Closed,
            _ => return Err(RecordError),
        };
        if flags >= 8 || (flags & 4 == 0 && context != 0) {
            return Err(RecordError);
        }
        Ok(Negotiation {
            phase,
            no_zeroes: flags & 1 != 0,
            structured: flags & 2 != 0,
            context: (flags & 4 != 0).then_some(ExportId(context)),
        })
    }
}

fn step(consumed: usize, progress: Progress) -> Step {
    Step { consumed, progress }
}

/// How an option is refused by its header alone, if it is.
fn refusal(code: u32, bytes: u32) -> Option<(u32, &'static str)> {
    match code {
        option::EXPORT_NAME => None,
        // "The client MUST NOT send any additional data with the option, and the server SHOULD
        // reject a request that includes data with NBD_REP_ERR_INVALID".
        option::LIST | option::STRUCTURED_REPLY => {
            (bytes > 0).then_some((option_reply::ERR_INVALID, "the option takes no data"))
        }
        option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            (bytes as usize > OPTION_DATA_BYTES_MAX)
                .then_some((option_reply::ERR_TOO_BIG, "the option is too long"))
        }
        // NOTLS mode: "NBD_REP_ERR_UNSUP (if it does not support the NBD_OPT_STARTTLS option at
        // all)".
        option::STARTTLS => Some((option_reply::ERR_UNSUP, "this server has no TLS")),
        _ => Some((option_reply::ERR_UNSUP, "the option is not known")),
    }
}

/// LIST_META_CONTEXT: "If zero queries are sent, then the server MUST return all the metadata
/// contexts"; `base:` is a wildcard; "the server MUST ignore query strings belonging to an unknown
/// namespace".
fn list_contexts(data: &[u8], exports: &[Export], out: &mut Vec<u8>) {
    let code = option::LIST_META_CONTEXT;
    let Some(query) = ContextQuery::parse(data) else {
        return reply(out, code, option_reply::ERR_INVALID, b"malformed context query");
    };
    if find_export(exports, query.name).is_none() {
        return reply(out, code, option_reply::ERR_UNKNOWN, unknown_export(exports).as_bytes());
    }
    let matches = |query: &&[u8]| *query == b"base:" || *query == ALLOCATION_CONTEXT.as_bytes();
    if query.queries.is_empty() || query.queries.iter().any(matches) {
        // "The metadata context ID in these replies is reserved and SHOULD be set to zero".
        context_reply(out, code, 0);
    }
    reply(out, code, option_reply::ACK, &[]);
}

fn context_reply(out: &mut Vec<u8>, code: u32, id: u32) {
    let mut body = id.to_be_bytes().to_vec();
    body.extend_from_slice(ALLOCATION_CONTEXT.as_bytes());
    reply(out, code, option_reply::META_CONTEXT, &body);
}

fn unknown_export(exports: &[Export]) -> String {
    match exports {
        [] => "no disk is exported".to_string(),
        _ => "no disk of that name is exported".to_string(),
    }
}

fn length_of(bytes: &[u8]) -> Vec<u8> {
    (bytes.len() as u32).to_be_bytes().to_vec()
}

/// A reply to an option: magic, the option, the type, the length, the data.
fn reply(out: &mut Vec<u8>, code: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length_of(data));
    out.extend_from_slice(data);
}
