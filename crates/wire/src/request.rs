//! Requests: the 28 bytes of a header, and whether they ask for something that can be done.
//!
//! Judging never decides about the stream: [`RequestHeader::payload_bytes`] says how many bytes
//! follow, whatever the verdict, so the payload of a refused write is skipped exactly.

use crate::option::Reader;
use crate::values::{ErrorCode, REQUEST_MAGIC, command, command_flag};

/// Bytes of a request before its payload.
pub const REQUEST_BYTES: usize = 28;

/// Longest payload of a request or a reply, as advertised (Size constraints: "a maximum payload
/// size that is at least 2^25").
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 25;

/// The client's name of a request: "treating the cookie as an opaque field".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Type.
    pub kind: u16,
    /// The client's name for it.
    pub cookie: Cookie,
    /// First byte it is about.
    pub offset: u64,
    /// Number of bytes it is about.
    pub bytes: u32,
}

/// The stream is out of step; the session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request that begins with {0:#010x}, not with its magic")]
pub struct BadMagic(pub u32);

impl RequestHeader {
    /// Parses a header.
    ///
    /// # Errors
    /// If it does not begin with the magic.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<RequestHeader, BadMagic> {
        let mut reader = Reader(bytes);
        let magic = reader.u32().unwrap_or(0);
        let fields = (|| {
            Some(RequestHeader {
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: Cookie(reader.u64()?),
                offset: reader.u64()?,
                bytes: reader.u32()?,
            })
        })();
        match fields {
            Some(header) if magic == REQUEST_MAGIC => Ok(header),
            _ => Err(BadMagic(magic)),
        }
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.0.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    /// Bytes that follow the header: "*length* bytes of data if the request is of type
    /// NBD_CMD_WRITE".
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.kind == command::WRITE { self.bytes } else { 0 }
    }
}

/// A request that can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read {
        /// One content chunk at most (DF).
        whole: bool,
    },
    /// Write the payload.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// End the session.
    Disconnect,
    /// Make durable what was replied to.
    Flush,
    /// Discard.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Read ahead.
    Cache,
    /// Zero.
    WriteZeroes {
        /// Durable before the reply.
        fua: bool,
        /// Keep the range allocated (NO_HOLE).
        keep_allocated: bool,
        /// Fail unless it is faster than a write (FAST_ZERO).
        fast: bool,
    },
    /// Tell block states.
    BlockStatus {
        /// One extent only (REQ_ONE).
        one: bool,
    },
}

/// What a session may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the export.
    pub bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Smallest length and alignment.
    pub block_bytes_min: u32,
    /// Whether structured replies were agreed on.
    pub structured: bool,
    /// Whether `base:allocation` was selected.
    pub allocation: bool,
}

impl Limits {
    /// What a header asks for.
    ///
    /// # Errors
    /// The error value to answer with. Payload, if any, follows all the same.
    pub fn judge(&self, header: &RequestHeader) -> Result<Command, ErrorCode> {
        let command = self.command(header)?;
        match command {
            // "The values of the length and offset fields in a disconnect request MUST be zero":
            // a client that says good-bye is not argued with.
            Command::Disconnect => return Ok(command),
            // "For a flush request, length and offset are reserved, and MUST be set to all-zero".
            Command::Flush if header.offset != 0 || header.bytes != 0 => {
                return Err(ErrorCode::Invalid);
            }
            Command::Flush => return Ok(command),
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
                if self.read_only =>
            {
                // "SHOULD return NBD_EPERM if it receives a write or trim request on a read-only
                // export".
                return Err(ErrorCode::NotPermitted);
            }
            _ => {}
        }
        self.range(header, command)?;
        Ok(command)
    }

    /// Type and flags: "SHOULD return NBD_EINVAL if it receives an unknown command", and for "a
    /// flag not explicitly documented as applicable to the given request". FUA is accepted on all
    /// commands: "the server MUST accept all commands with this bit set (even by ignoring the
    /// bit)".
    fn command(&self, header: &RequestHeader) -> Result<Command, ErrorCode> {
        let has = |flag: u16| header.flags & flag != 0;
        let fua = has(command_flag::FUA);
        let df = if self.structured { command_flag::DF } else { 0 };
        let (command, applicable) = match header.kind {
            command::READ => (Command::Read { whole: has(command_flag::DF) }, df),
            command::WRITE => (Command::Write { fua }, 0),
            command::DISC => return Ok(Command::Disconnect),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim { fua }, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => {
                let keep_allocated = has(command_flag::NO_HOLE);
                let fast = has(command_flag::FAST_ZERO);
                let zeroes = Command::WriteZeroes { fua, keep_allocated, fast };
                (zeroes, command_flag::NO_HOLE | command_flag::FAST_ZERO)
            }
            // "Servers SHOULD reply with NBD_EINVAL to clients sending NBD_CMD_BLOCK_STATUS
            // without selecting at least one metadata context".
            command::BLOCK_STATUS if self.allocation => {
                let one = has(command_flag::REQ_ONE);
                (Command::BlockStatus { one }, command_flag::REQ_ONE)
            }
            _ => return Err(ErrorCode::Invalid),
        };
        if header.flags & !(applicable | command_flag::FUA) != 0 {
            return Err(ErrorCode::Invalid);
        }
        Ok(command)
    }

    fn range(&self, header: &RequestHeader, command: Command) -> Result<(), ErrorCode> {
        let end = header.offset.checked_add(u64::from(header.bytes));
        if end.is_none_or(|end| end > self.bytes) {
            // "SHOULD return NBD_ENOSPC if it receives a write request including one or more
            // sectors beyond the size of the device", NBD_EINVAL for the others.
            return Err(match command {
                Command::Write { .. } | Command::WriteZeroes { .. } => ErrorCode::NoSpace,
                _ => ErrorCode::Invalid,
            });
        }
        let block = u64::from(self.block_bytes_min.max(1));
        let aligned = |value: u64| value.is_multiple_of(block);
        if !aligned(header.offset) || !aligned(u64::from(header.bytes)) {
            // "or if a read or write request is not aligned to advertised minimum block sizes".
            return Err(ErrorCode::Invalid);
        }
        match command {
            Command::Write { .. } if header.bytes > PAYLOAD_BYTES_MAX => Err(ErrorCode::Invalid),
            // Structured: "permitted to reject large read requests up front with NBD_EOVERFLOW".
            Command::Read { .. } if header.bytes > PAYLOAD_BYTES_MAX => {
                Err(if self.structured { ErrorCode::Overflow } else { ErrorCode::Invalid })
            }
            // There is no extent of no length to answer with.
            Command::BlockStatus { .. } if header.bytes == 0 => Err(ErrorCode::Invalid),
            _ => Ok(()),
        }
    }
}
