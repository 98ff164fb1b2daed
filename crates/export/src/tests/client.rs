//! What a client makes of the stream.

use std::collections::BTreeMap;

use bowline_disk::Volume;
use bowline_store::BLOCK_BYTES;
use bowline_wire::client::{self, ChunkBody, OptionReply, ReplyHead};
use bowline_wire::reply::Extent;
use bowline_wire::values::option;
use bowline_wire::{Cookie, ErrorCode, RequestHeader};

use super::rig::Rig;
use crate::SessionId;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    pub error: Option<ErrorCode>,
    pub message: String,
    pub error_offset: Option<u64>,
    /// Bytes read, by offset on the disk.
    pub data: BTreeMap<u64, Vec<u8>>,
    pub chunks: usize,
    pub hole_bytes: u64,
    pub extents: Vec<Extent>,
    pub done: bool,
}

impl Outcome {
    /// The bytes of a read, side by side.
    pub fn bytes(&self) -> Vec<u8> {
        let mut next = None;
        for (offset, bytes) in &self.data {
            assert!(next.is_none_or(|next| next == *offset), "a gap or an overlap");
            next = Some(offset + bytes.len() as u64);
        }
        self.data.values().flatten().copied().collect()
    }
}

pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, bytes: u32) -> Vec<u8> {
    RequestHeader { flags, kind, cookie: Cookie(cookie), offset, bytes }.encode().to_vec()
}

/// Everything up to the transmission phase.
pub fn opening(name: &str, structured: bool) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    if structured {
        client::option(&mut bytes, option::STRUCTURED_REPLY, &[]);
        let contexts = client::context_data(name, &["base:allocation"]);
        client::option(&mut bytes, option::SET_META_CONTEXT, &contexts);
    }
    client::option(&mut bytes, option::GO, &client::info_data(name, &[3]));
    bytes
}

/// Takes the greeting and all answers to options off the stream.
pub fn take_opening(incoming: &mut Vec<u8>) -> Vec<OptionReply> {
    let (_, greeting) = client::decode_greeting(incoming).unwrap().unwrap();
    let (mut at, mut replies) = (greeting, Vec::new());
    while incoming.len() >= at + 8
        && incoming[at..at + 8] == bowline_wire::values::OPTION_REPLY_MAGIC.to_be_bytes()
    {
        let Some(((_, reply), bytes)) = client::decode_option_reply(&incoming[at..]).unwrap()
        else {
            break;
        };
        replies.push(reply);
        at += bytes;
    }
    incoming.drain(..at);
    replies
}

/// A session in the transmission phase.
pub fn connect<V: Volume>(rig: &mut Rig<V>, name: &str, structured: bool) -> SessionId {
    let id = rig.accept();
    rig.send(id, &opening(name, structured));
    rig.settle();
    let replies = take_opening(&mut rig.at(id).incoming);
    assert_eq!(replies.last(), Some(&OptionReply::Ack));
    assert!(rig.at(id).incoming.is_empty() && rig.at(id).closed.is_none());
    id
}

/// All whole replies of a stream. `reads` are the lengths of reads, for simple replies.
pub fn parse(stream: &[u8], reads: &BTreeMap<u64, (u64, u32)>) -> BTreeMap<u64, Outcome> {
    let mut outcomes: BTreeMap<u64, Outcome> = BTreeMap::new();
    let mut rest = stream;
    while let Some((head, bytes)) = client::decode_reply_head(rest).unwrap() {
        let body = &rest[bytes..];
        let used = match head {
            ReplyHead::Simple { error, cookie } => {
                let outcome = outcomes.entry(cookie.0).or_default();
                assert!(!outcome.done, "a second reply to {cookie:?}");
                (outcome.error, outcome.done) = (error, true);
                match reads.get(&cookie.0) {
                    Some((offset, bytes)) if error.is_none() => {
                        let Some(data) = body.get(..*bytes as usize) else { break };
                        outcome.data.insert(*offset, data.to_vec());
                        data.len()
                    }
                    _ => 0,
                }
            }
            ReplyHead::Chunk { cookie, kind, done, payload_bytes } => {
                let Some(payload) = body.get(..payload_bytes as usize) else { break };
                let outcome = outcomes.entry(cookie.0).or_default();
                assert!(!outcome.done, "a chunk after the last of {cookie:?}");
                outcome.done = done;
                outcome.chunks += 1;
                add(outcome, client::decode_chunk(kind, payload).unwrap());
                payload.len()
            }
        };
        rest = &rest[bytes + used..];
    }
    outcomes
}

fn add(outcome: &mut Outcome, body: ChunkBody<'_>) {
    match body {
        ChunkBody::None => {}
        ChunkBody::Data { offset, data } => {
            assert!(outcome.data.insert(offset, data.to_vec()).is_none(), "an overlap");
        }
        ChunkBody::Hole { offset, bytes } => {
            outcome.hole_bytes += u64::from(bytes);
            assert!(outcome.data.insert(offset, vec![0; bytes as usize]).is_none(), "an overlap");
        }
        ChunkBody::BlockStatus { context, extents } => {
            assert_eq!(context, 1);
            outcome.extents = extents;
        }
        ChunkBody::Error { code, message, offset } => {
            (outcome.error, outcome.message, outcome.error_offset) = (Some(code), message, offset);
        }
    }
}

/// Sends requests, waits, and returns what became of them by cookie. The stream is used up.
pub fn ask<V: Volume>(rig: &mut Rig<V>, id: SessionId, stream: &[u8]) -> BTreeMap<u64, Outcome> {
    rig.send(id, stream);
    rig.settle();
    let reads = reads_of(stream);
    let incoming = std::mem::take(&mut rig.at(id).incoming);
    parse(&incoming, &reads)
}

/// Offsets and lengths of the reads in a stream of requests.
pub fn reads_of(mut stream: &[u8]) -> BTreeMap<u64, (u64, u32)> {
    let mut reads = BTreeMap::new();
    while let Some(Ok(header)) = stream.first_chunk().map(RequestHeader::decode) {
        if header.kind == 0 {
            reads.insert(header.cookie.0, (header.offset, header.bytes));
        }
        let next = 28 + header.payload_bytes() as usize;
        stream = stream.get(next..).unwrap_or_default();
    }
    reads
}

/// One request, one outcome.
pub fn one<V: Volume>(rig: &mut Rig<V>, id: SessionId, stream: &[u8]) -> Outcome {
    let outcomes = ask(rig, id, stream);
    assert_eq!(outcomes.len(), 1, "one reply");
    let outcome = outcomes.into_values().next().unwrap();
    assert!(outcome.done);
    outcome
}

pub fn write<V: Volume>(rig: &mut Rig<V>, id: SessionId, offset: u64, bytes: &[u8]) -> Outcome {
    let mut stream = request(1, 0, 1, offset, bytes.len() as u32);
    stream.extend_from_slice(bytes);
    one(rig, id, &stream)
}

pub fn read<V: Volume>(rig: &mut Rig<V>, id: SessionId, offset: u64, bytes: u32) -> Outcome {
    one(rig, id, &request(0, 0, 2, offset, bytes))
}

/// A block's first byte.
pub fn block(number: u64) -> u64 {
    number * BLOCK_BYTES
}
