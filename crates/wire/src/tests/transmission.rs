use proptest::prelude::*;

use crate::client::{self, ChunkBody, ReplyHead};
use crate::reply::{self, Extent};
use crate::values::{command, command_flag};
use crate::{
    BadMagic, Command, Cookie, ErrorCode, Limits, PAYLOAD_BYTES_MAX, REQUEST_BYTES, RequestHeader,
};

const DISK: Limits = Limits {
    bytes: 1 << 30,
    read_only: false,
    block_bytes_min: 512,
    structured: true,
    allocation: true,
};

fn request(kind: u16, flags: u16, offset: u64, bytes: u32) -> RequestHeader {
    RequestHeader { flags, kind, cookie: Cookie(1), offset, bytes }
}

fn judge(kind: u16, flags: u16, offset: u64, bytes: u32) -> Result<Command, ErrorCode> {
    DISK.judge(&request(kind, flags, offset, bytes))
}

#[test]
fn every_command_is_understood() {
    use command_flag as flag;
    let cases = [
        (command::READ, 0, Command::Read { whole: false }),
        (command::READ, flag::DF, Command::Read { whole: true }),
        (command::WRITE, flag::FUA, Command::Write { fua: true }),
        (command::TRIM, 0, Command::Trim { fua: false }),
        (command::CACHE, 0, Command::Cache),
        (
            command::WRITE_ZEROES,
            flag::NO_HOLE | flag::FAST_ZERO,
            Command::WriteZeroes { fua: false, keep_allocated: true, fast: true },
        ),
        (command::BLOCK_STATUS, flag::REQ_ONE, Command::BlockStatus { one: true }),
    ];
    for (kind, flags, expected) in cases {
        assert_eq!(judge(kind, flags, 4096, 8192), Ok(expected));
    }
    assert_eq!(judge(command::FLUSH, 0, 0, 0), Ok(Command::Flush));
    assert_eq!(judge(command::DISC, 0xffff, 9, 9), Ok(Command::Disconnect));
}

#[test]
fn fua_is_accepted_on_every_command() {
    let fua = command_flag::FUA;
    for kind in [0, 1, 4, 5, 6, 7] {
        assert!(judge(kind, fua, 0, 512).is_ok(), "command {kind}");
    }
    assert_eq!(judge(command::FLUSH, fua, 0, 0), Ok(Command::Flush));
}

#[test]
fn unknown_commands_and_flags_are_invalid() {
    for kind in [8, 9, 100, 0xffff] {
        assert_eq!(judge(kind, 0, 0, 512), Err(ErrorCode::Invalid));
    }
    use command_flag as flag;
    let applicable =
        [flag::DF, 0, u16::MAX, 0, 0, 0, flag::NO_HOLE | flag::FAST_ZERO, flag::REQ_ONE];
    for (kind, allowed) in applicable.into_iter().enumerate() {
        let bytes = if kind == 3 { 0 } else { 512 };
        for bit in 0..16 {
            let accepted = judge(kind as u16, 1 << bit, 0, bytes).is_ok();
            let expected = 1 << bit == flag::FUA || allowed & (1 << bit) != 0;
            assert_eq!(accepted, expected, "command {kind}, flag bit {bit}");
        }
    }
    let simple = Limits { structured: false, allocation: false, ..DISK };
    let df = request(command::READ, flag::DF, 0, 512);
    assert_eq!(simple.judge(&df), Err(ErrorCode::Invalid));
    let status = request(command::BLOCK_STATUS, 0, 0, 512);
    assert_eq!(simple.judge(&status), Err(ErrorCode::Invalid));
}

#[test]
fn ranges_stay_inside_the_export() {
    let beyond =
        [(1u64 << 30, 512u32), ((1 << 30) - 512, 1024), (u64::MAX - 511, 512), (u64::MAX, 1)];
    for (offset, bytes) in beyond {
        for kind in [command::WRITE, command::WRITE_ZEROES] {
            assert_eq!(judge(kind, 0, offset, bytes), Err(ErrorCode::NoSpace));
        }
        for kind in [command::READ, command::TRIM, command::CACHE, command::BLOCK_STATUS] {
            assert_eq!(judge(kind, 0, offset, bytes), Err(ErrorCode::Invalid));
        }
    }
    assert!(judge(command::WRITE, 0, (1 << 30) - 512, 512).is_ok());
    assert_eq!(judge(command::FLUSH, 0, 0, 512), Err(ErrorCode::Invalid));
    assert_eq!(judge(command::FLUSH, 0, 512, 0), Err(ErrorCode::Invalid));
}

#[test]
fn unaligned_and_oversized_requests_are_refused() {
    for (offset, bytes) in [(1, 512), (0, 511), (511, 1)] {
        for kind in [0, 1, 4, 5, 6, 7] {
            assert_eq!(judge(kind, 0, offset, bytes), Err(ErrorCode::Invalid), "command {kind}");
        }
    }
    let long = PAYLOAD_BYTES_MAX + 512;
    assert!(judge(command::READ, 0, 0, PAYLOAD_BYTES_MAX).is_ok());
    assert!(judge(command::WRITE, 0, 0, PAYLOAD_BYTES_MAX).is_ok());
    assert_eq!(judge(command::READ, 0, 0, long), Err(ErrorCode::Overflow));
    assert_eq!(judge(command::WRITE, 0, 0, long), Err(ErrorCode::Invalid));
    let simple = Limits { structured: false, allocation: false, ..DISK };
    assert_eq!(simple.judge(&request(command::READ, 0, 0, long)), Err(ErrorCode::Invalid));
    // "the client MAY request an effect length larger than the maximum payload size".
    for kind in [command::TRIM, command::CACHE, command::WRITE_ZEROES, command::BLOCK_STATUS] {
        assert!(judge(kind, 0, 0, long).is_ok());
    }
}

#[test]
fn requests_of_no_length_are_harmless() {
    for kind in [0, 1, 4, 5, 6] {
        assert!(judge(kind, 0, 1 << 30, 0).is_ok(), "command {kind}");
    }
    assert_eq!(judge(command::BLOCK_STATUS, 0, 0, 0), Err(ErrorCode::Invalid));
}

#[test]
fn read_only_exports_refuse_writes() {
    let frozen = Limits { read_only: true, ..DISK };
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(frozen.judge(&request(kind, 0, 0, 512)), Err(ErrorCode::NotPermitted));
    }
    for kind in [command::READ, command::CACHE, command::BLOCK_STATUS] {
        assert!(frozen.judge(&request(kind, 0, 0, 512)).is_ok());
    }
    assert!(frozen.judge(&request(command::FLUSH, 0, 0, 0)).is_ok());
}

#[test]
fn the_payload_of_a_refused_write_is_known() {
    let refused = request(command::WRITE, 0xff00, u64::MAX, 12345);
    assert!(DISK.judge(&refused).is_err());
    assert_eq!(refused.payload_bytes(), 12345);
    assert_eq!(request(99, 0, 0, 12345).payload_bytes(), 0);
}

fn body(bytes: &[u8]) -> (bool, ChunkBody<'_>) {
    let Some((ReplyHead::Chunk { cookie, kind, done, payload_bytes }, head)) =
        client::decode_reply_head(bytes).unwrap()
    else {
        panic!("no chunk");
    };
    assert_eq!(cookie, Cookie(5));
    assert_eq!(bytes.len(), head + payload_bytes as usize);
    (done, client::decode_chunk(kind, &bytes[head..]).unwrap())
}

#[test]
fn replies_say_what_they_should() {
    let cookie = Cookie(5);
    let mut out = Vec::new();
    reply::simple(&mut out, cookie, Some(ErrorCode::NoSpace));
    let head = ReplyHead::Simple { error: Some(ErrorCode::NoSpace), cookie };
    assert_eq!(client::decode_reply_head(&out), Ok(Some((head, reply::SIMPLE_REPLY_BYTES))));

    let mut out = Vec::new();
    reply::none(&mut out, cookie);
    assert_eq!(body(&out), (true, ChunkBody::None));

    let mut out = Vec::new();
    reply::offset_data(&mut out, cookie, false, 77, 3);
    assert_eq!(out.len(), reply::OFFSET_DATA_BYTES);
    out.extend_from_slice(b"abc");
    assert_eq!(body(&out), (false, ChunkBody::Data { offset: 77, data: b"abc" }));

    let mut out = Vec::new();
    reply::offset_hole(&mut out, cookie, true, 77, 3);
    assert_eq!(out.len(), reply::OFFSET_HOLE_BYTES);
    assert_eq!(body(&out), (true, ChunkBody::Hole { offset: 77, bytes: 3 }));

    let mut out = Vec::new();
    let extents = [Extent { bytes: 512, flags: 3 }, Extent { bytes: 9, flags: 0 }];
    reply::block_status(&mut out, cookie, &extents);
    let expected = ChunkBody::BlockStatus { context: 1, extents: extents.to_vec() };
    assert_eq!(body(&out), (true, expected));

    for offset in [None, Some(99)] {
        let mut out = Vec::new();
        reply::error(&mut out, cookie, ErrorCode::Io, offset, "no");
        let message = "no".to_string();
        let expected = ChunkBody::Error { code: ErrorCode::Io, message, offset };
        assert_eq!(body(&out), (true, expected));
    }
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let mut out = Vec::new();
    let message = "\u{e9}".repeat(reply::ERROR_MESSAGE_BYTES_MAX);
    reply::error(&mut out, Cookie(5), ErrorCode::Io, None, &format!("x{message}"));
    match body(&out).1 {
        ChunkBody::Error { message, .. } => {
            assert_eq!(message.len(), reply::ERROR_MESSAGE_BYTES_MAX - 1);
            assert!(!message.contains('\u{fffd}'));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn error_values_survive_the_wire() {
    for value in [1, 5, 12, 22, 28, 75, 95, 108] {
        assert_eq!(ErrorCode::from_value(value).map(ErrorCode::value), Some(value));
    }
    assert_eq!(ErrorCode::from_value(0), None);
    assert_eq!(ErrorCode::from_value(4711), Some(ErrorCode::Invalid));
}

proptest! {
    #[test]
    fn headers_survive_the_wire(flags: u16, kind: u16, cookie: u64, offset: u64, bytes: u32) {
        let header = RequestHeader { flags, kind, cookie: Cookie(cookie), offset, bytes };
        prop_assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_header_without_magic_is_refused(bytes: [u8; REQUEST_BYTES]) {
        let magic = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        prop_assume!(magic != crate::values::REQUEST_MAGIC);
        prop_assert_eq!(RequestHeader::decode(&bytes), Err(BadMagic(magic)));
    }

    #[test]
    fn what_is_accepted_is_in_bounds(
        flags in 0u16..32, kind in 0u16..9, offset: u64, bytes: u32, near_end: bool,
        size in (0u64..1 << 40).prop_map(|bytes| bytes / 512 * 512), read_only: bool,
    ) {
        let limits = Limits { bytes: size, read_only, ..DISK };
        let offset = if near_end { size.wrapping_sub(offset % 8192) } else { offset };
        let header = request(kind, flags, offset / 512 * 512, bytes / 512 * 512);
        match limits.judge(&header) {
            Ok(Command::Flush | Command::Disconnect) => {}
            Ok(command) => {
                let end = header.offset.checked_add(u64::from(header.bytes));
                prop_assert!(end.is_some_and(|end| end <= size));
                let writes = matches!(
                    command,
                    Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
                );
                prop_assert!(!(writes && read_only));
            }
            Err(_) => {}
        }
    }

    #[test]
    fn random_replies_never_panic(bytes: Vec<u8>, kind: u16) {
        let _ = client::decode_reply_head(&bytes);
        let _ = client::decode_option_reply(&bytes);
        let _ = client::decode_greeting(&bytes);
        let _ = client::decode_chunk(kind, &bytes);
        for kind in [0, 1, 2, 5, 0x8001, 0x8002] {
            let _ = client::decode_chunk(kind, &bytes);
        }
    }
}
