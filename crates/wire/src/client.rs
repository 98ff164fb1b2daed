//! The client's side of the codec: what to send, and what came back.
//!
//! Decoders take the bytes received so far and return what was decoded with its length, or none
//! if the bytes are not enough yet. A server that breaks the protocol is a [`Violation`].

use crate::option::Reader;
use crate::values::{
    CHUNK_MAGIC, ErrorCode, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, SIMPLE_REPLY_MAGIC,
    chunk, info, option_reply,
};
use crate::{Cookie, reply::Extent};

/// The server sent something that the protocol does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server breaks the protocol: {0}")]
pub struct Violation(pub &'static str);

type Decoded<T> = Result<Option<(T, usize)>, Violation>;

/// The handshake flags of a greeting.
///
/// # Errors
/// If it is not the greeting of a newstyle server.
pub fn decode_greeting(input: &[u8]) -> Decoded<u16> {
    let mut reader = Reader(input);
    let (Some(first), Some(second), Some(flags)) = (reader.u64(), reader.u64(), reader.u16())
    else {
        return Ok(None);
    };
    if first != GREETING_MAGIC || second != OPTION_MAGIC {
        return Err(Violation("its greeting is not newstyle"));
    }
    Ok(Some((flags, 18)))
}

/// An option with its data.
pub fn option(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// The data of INFO and GO.
#[must_use]
pub fn info_data(name: &str, items: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(items.len() as u16).to_be_bytes());
    items.iter().for_each(|item| data.extend_from_slice(&item.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[must_use]
pub fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply {
    /// Done.
    Ack,
    /// An export of the list.
    Server {
        /// Its name.
        name: String,
        /// A line for people.
        description: String,
    },
    /// Size and transmission flags.
    Export {
        /// Size of the export.
        bytes: u64,
        /// Transmission flags.
        flags: u16,
    },
    /// The canonical name.
    Name(String),
    /// A line for people.
    Description(String),
    /// Size constraints.
    BlockSize {
        /// Smallest length and alignment.
        min: u32,
        /// Preferred length and alignment.
        preferred: u32,
        /// Longest payload.
        payload_max: u32,
    },
    /// An information item that is not known.
    OtherInfo(u16),
    /// A metadata context.
    MetaContext {
        /// Its id on this connection.
        id: u32,
        /// Its name.
        name: String,
    },
    /// The option failed.
    Error {
        /// One of [`option_reply`].
        kind: u32,
        /// A line for people.
        message: String,
    },
}

/// The next reply and the option it answers.
///
/// # Errors
/// If the reply is malformed.
pub fn decode_option_reply(input: &[u8]) -> Decoded<(u32, OptionReply)> {
    let mut reader = Reader(input);
    let (Some(magic), Some(code), Some(kind)) = (reader.u64(), reader.u32(), reader.u32()) else {
        return Ok(None);
    };
    if magic != OPTION_REPLY_MAGIC {
        return Err(Violation("an option reply without its magic"));
    }
    let Some(data) = reader.string() else { return Ok(None) };
    let reply = option_reply_body(kind, data).ok_or(Violation("a malformed option reply"))?;
    Ok(Some(((code, reply), 20 + data.len())))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn option_reply_body(kind: u32, data: &[u8]) -> Option<OptionReply> {
    let mut reader = Reader(data);
    Some(match kind {
        option_reply::ACK => OptionReply::Ack,
        option_reply::SERVER => {
            let name = text(reader.string()?);
            OptionReply::Server { name, description: text(reader.0) }
        }
        option_reply::INFO => match reader.u16()? {
            info::EXPORT => OptionReply::Export { bytes: reader.u64()?, flags: reader.u16()? },
            info::NAME => OptionReply::Name(text(reader.0)),
            info::DESCRIPTION => OptionReply::Description(text(reader.0)),
            info::BLOCK_SIZE => OptionReply::BlockSize {
                min: reader.u32()?,
                preferred: reader.u32()?,
                payload_max: reader.u32()?,
            },
            other => OptionReply::OtherInfo(other),
        },
        option_reply::META_CONTEXT => {
            OptionReply::MetaContext { id: reader.u32()?, name: text(reader.0) }
        }
        _ if kind & (1 << 31) != 0 => OptionReply::Error { kind, message: text(data) },
        _ => return None,
    })
}

/// The head of a reply of the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply; the data of a successful read follows.
    Simple {
        /// None for success.
        error: Option<ErrorCode>,
        /// Which request.
        cookie: Cookie,
    },
    /// A chunk of a structured reply; its payload follows.
    Chunk {
        /// Which request.
        cookie: Cookie,
        /// One of [`chunk`].
        kind: u16,
        /// Whether it is the last of its reply.
        done: bool,
        /// Length of the payload.
        payload_bytes: u32,
    },
}

/// The next head.
///
/// # Errors
/// If it begins with no magic of a reply.
pub fn decode_reply_head(input: &[u8]) -> Decoded<ReplyHead> {
    let mut reader = Reader(input);
    match reader.u32() {
        None => Ok(None),
        Some(SIMPLE_REPLY_MAGIC) => Ok((|| {
            let error = ErrorCode::from_value(reader.u32()?);
            Some((ReplyHead::Simple { error, cookie: Cookie(reader.u64()?) }, 16))
        })()),
        Some(CHUNK_MAGIC) => Ok((|| {
            let flags = reader.u16()?;
            let kind = reader.u16()?;
            let cookie = Cookie(reader.u64()?);
            let payload_bytes = reader.u32()?;
            let done = flags & chunk::FLAG_DONE != 0;
            Some((ReplyHead::Chunk { cookie, kind, done, payload_bytes }, 20))
        })()),
        Some(_) => Err(Violation("a reply without its magic")),
    }
}

/// The payload of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkBody<'a> {
    /// Nothing.
    None,
    /// Data.
    Data {
        /// Where on the export.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Zeroes.
    Hole {
        /// Where on the export.
        offset: u64,
        /// How many.
        bytes: u32,
    },
    /// Extents.
    BlockStatus {
        /// Id of the metadata context.
        context: u32,
        /// The extents, side by side from the offset of the request.
        extents: Vec<Extent>,
    },
    /// An error.
    Error {
        /// Which.
        code: ErrorCode,
        /// A line for people.
        message: String,
        /// Where, if the server says.
        offset: Option<u64>,
    },
}

/// What a chunk of that kind says.
///
/// # Errors
/// If the payload does not fit the kind.
pub fn decode_chunk(kind: u16, payload: &[u8]) -> Result<ChunkBody<'_>, Violation> {
    let mut reader = Reader(payload);
    let body = chunk_body(kind, &mut reader).ok_or(Violation("a malformed chunk"))?;
    if reader.is_empty() { Ok(body) } else { Err(Violation("a chunk longer than its content")) }
}

fn chunk_body<'a>(kind: u16, reader: &mut Reader<'a>) -> Option<ChunkBody<'a>> {
    Some(match kind {
        chunk::NONE => ChunkBody::None,
        chunk::OFFSET_DATA => {
            let offset = reader.u64()?;
            let data = reader.bytes(reader.0.len())?;
            (!data.is_empty()).then_some(ChunkBody::Data { offset, data })?
        }
        chunk::OFFSET_HOLE => {
            let (offset, bytes) = (reader.u64()?, reader.u32()?);
            (bytes > 0).then_some(ChunkBody::Hole { offset, bytes })?
        }
        chunk::BLOCK_STATUS => {
            let context = reader.u32()?;
            let mut extents = Vec::new();
            while !reader.is_empty() {
                extents.push(Extent { bytes: reader.u32()?, flags: reader.u32()? });
            }
            let whole = !extents.is_empty() && extents.iter().all(|extent| extent.bytes > 0);
            whole.then_some(ChunkBody::BlockStatus { context, extents })?
        }
        _ if kind & (1 << 15) != 0 => {
            let code = ErrorCode::from_value(reader.u32()?)?;
            let bytes = reader.u16()?;
            let message = text(reader.bytes(usize::from(bytes))?);
            let at_offset = kind == chunk::ERROR_OFFSET;
            let offset = if at_offset { Some(reader.u64()?) } else { None };
            if !at_offset {
                reader.0 = &[];
            }
            ChunkBody::Error { code, message, offset }
        }
        _ => return None,
    })
}
