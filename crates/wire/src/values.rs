//! The numbers of the protocol (section "Values").

/// First magic of the greeting, ASCII "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second magic of the greeting and magic of every option, ASCII "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Magic of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: fixed newstyle.
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: the 124 zeroes after EXPORT_NAME can be left out.
pub const HANDSHAKE_NO_ZEROES: u16 = 1 << 1;
/// Client flag: fixed newstyle.
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client flag: leave the 124 zeroes out.
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// The options of the handshake.
pub mod option {
    /// Choose an export and go, without error replies.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Switch to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and go.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// The types of replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// An information item.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Option unknown.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// Option known, forbidden.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// Option malformed.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is being shut down.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// Option or its reply too large.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// The information items of INFO and GO.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Size constraints.
    pub const BLOCK_SIZE: u16 = 3;
}

/// The transmission flags of an export.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag works.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// The types of requests.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Read ahead.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask for block states.
    pub const BLOCK_STATUS: u16 = 7;
}

/// The flags of requests.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One content chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail unless faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// The types of chunks of structured replies, and their one flag.
pub mod chunk {
    /// Flag: the last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing; the end.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// The one metadata context of the server.
pub const ALLOCATION_CONTEXT: &str = "base:allocation";
/// Its id on every connection.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;
/// `base:allocation`: writing here may need new space.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// The error values of replies (Error values: "the allowed values for the error field have been
/// restricted").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// `NBD_EPERM`: the export is read-only.
    NotPermitted = 1,
    /// `NBD_EIO`: the medium or the pool failed.
    Io = 5,
    /// `NBD_ENOMEM`: never sent by this server ("SHOULD NOT return NBD_ENOMEM if at all possible").
    NoMemory = 12,
    /// `NBD_EINVAL`: the request is malformed or out of bounds.
    Invalid = 22,
    /// `NBD_ENOSPC`: no space, or a write beyond the end.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`: too long to be read at once.
    Overflow = 75,
    /// `NBD_ENOTSUP`: not faster than a write.
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`: the server is being shut down.
    Shutdown = 108,
}

impl ErrorCode {
    /// The value on the wire.
    #[must_use]
    pub fn value(self) -> u32 {
        self as u32
    }

    /// What a client makes of a value (Error values: "The client SHOULD treat an unexpected error
    /// value as if it had been NBD_EINVAL"); none for zero, which is success.
    #[must_use]
    pub fn from_value(value: u32) -> Option<ErrorCode> {
        Some(match value {
            0 => return None,
            1 => ErrorCode::NotPermitted,
            5 => ErrorCode::Io,
            12 => ErrorCode::NoMemory,
            28 => ErrorCode::NoSpace,
            75 => ErrorCode::Overflow,
            95 => ErrorCode::NotSupported,
            108 => ErrorCode::Shutdown,
            _ => ErrorCode::Invalid,
        })
    }
}
