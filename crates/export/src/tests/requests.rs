use std::collections::BTreeMap;

use bowline_wire::ErrorCode;
use bowline_wire::reply::Extent;
use bowline_wire::values::{command, command_flag};

use super::client::{ask, block, connect, one, parse, read, request, write};
use super::rig::{DISK, DISK_BYTES, Rig};
use crate::CloseCause;

#[test]
fn what_was_written_is_read() {
    for structured in [false, true] {
        let mut rig = Rig::roomy();
        let id = connect(&mut rig, "one", structured);
        let lengths = [512u32, 4096, 4608, 65_024, 65_536, 66_048, 1 << 20, (1 << 20) + 512];
        for (index, bytes) in lengths.into_iter().enumerate() {
            for shift in [0, 512, 3584] {
                let offset = block(index as u64 * 300) + shift;
                let data = rig.random.bytes(bytes as usize);
                assert_eq!(write(&mut rig, id, offset, &data).error, None);
                let outcome = read(&mut rig, id, offset, bytes);
                assert_eq!(outcome.error, None);
                assert!(outcome.bytes() == data, "{bytes} bytes at {offset}");
            }
        }
        rig.pass(2_000_000);
        assert!(rig.is_clean());
    }
}

#[test]
fn flush_and_fua_wait_for_the_store() {
    let mut rig = Rig::roomy();
    rig.delay(20);
    let id = connect(&mut rig, "one", true);
    let mut stream = request(command::WRITE, 0, 1, 0, 4096);
    stream.extend([1; 4096]);
    stream.extend(request(command::FLUSH, 0, 2, 0, 0));
    rig.send(id, &stream);
    for _ in 0..10 {
        rig.turn();
    }
    let early = parse(&rig.at(id).incoming, &BTreeMap::new());
    assert!(early[&1].done && !early.contains_key(&2), "the flush was not waited for");
    let outcomes = ask(&mut rig, id, &[]);
    assert!(outcomes[&2].done);
    assert_eq!(rig.disks.counters().flushes, 1);
    let mut stream = request(command::WRITE, command_flag::FUA, 3, 4096, 4096);
    stream.extend([1; 4096]);
    assert_eq!(one(&mut rig, id, &stream).error, None);
    assert_eq!(rig.disks.counters().flushes, 2);
}

#[test]
fn reads_leave_holes_out_unless_told_not_to() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", true);
    let data = rig.random.bytes(8192);
    assert_eq!(write(&mut rig, id, block(10), &data).error, None);
    // Hole, data, hole; long enough to ask for states.
    let outcome = read(&mut rig, id, 0, 1 << 20);
    let mut expected = vec![0; 1 << 20];
    expected[block(10) as usize..block(12) as usize].copy_from_slice(&data);
    assert!(outcome.bytes() == expected);
    assert_eq!((outcome.chunks, outcome.hole_bytes), (3, (1 << 20) - 8192));
    // Short: zeroes are recognised.
    let outcome = read(&mut rig, id, block(100), 4096);
    assert_eq!((outcome.chunks, outcome.hole_bytes), (1, 4096));
    // Not to be cut: one chunk with everything in it.
    let whole = one(&mut rig, id, &request(command::READ, command_flag::DF, 9, 0, 1 << 20));
    assert!(whole.bytes() == expected);
    assert_eq!((whole.chunks, whole.hole_bytes), (1, 0));
    // A hole of 32 MiB takes no memory to speak of.
    let outcome = read(&mut rig, id, 1 << 20, 32 << 20);
    assert_eq!((outcome.chunks, outcome.hole_bytes), (1, 32 << 20));
    let counters = rig.server.counters();
    assert_eq!(counters.hole_bytes, (1 << 20) - 8192 + 4096 + (32 << 20));
}

#[test]
fn zeroes_trims_and_states() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", true);
    let data = rig.random.bytes(40 << 10);
    assert_eq!(write(&mut rig, id, 0, &data).error, None);
    let flags = command_flag::NO_HOLE | command_flag::FAST_ZERO;
    let zero = request(command::WRITE_ZEROES, flags, 1, block(2), 8192);
    assert_eq!(one(&mut rig, id, &zero).error, None);
    assert_eq!(one(&mut rig, id, &request(command::TRIM, 0, 1, block(6), 8192)).error, None);
    let states = |rig: &mut Rig, flags, offset, bytes| {
        let asked = request(command::BLOCK_STATUS, flags, 1, offset, bytes);
        let outcome = one(rig, id, &asked);
        outcome.extents.iter().map(|Extent { bytes, flags }| (*bytes, *flags)).collect::<Vec<_>>()
    };
    let all = [(8192, 0), (8192, 2), (8192, 0), (8192, 3), (8192, 0), (24 << 10, 3)];
    assert_eq!(states(&mut rig, 0, 0, 64 << 10), all);
    assert_eq!(states(&mut rig, command_flag::REQ_ONE, 512, 64 << 10), [(7680, 0)]);
    assert_eq!(states(&mut rig, command_flag::REQ_ONE, 512, 512), [(512, 0)]);
    assert_eq!(states(&mut rig, 0, DISK_BYTES - 512, 512), [(512, 3)]);
    let small = request(command::WRITE_ZEROES, command_flag::FAST_ZERO, 1, 512, 4096);
    assert_eq!(one(&mut rig, id, &small).error, Some(ErrorCode::NotSupported));
    assert_eq!(one(&mut rig, id, &request(command::WRITE_ZEROES, 0, 1, 512, 512)).error, None);
    let mut expected = data[..4096].to_vec();
    expected[512..1024].fill(0);
    assert!(read(&mut rig, id, 0, 4096).bytes() == expected);
    assert_eq!(one(&mut rig, id, &request(command::CACHE, 0, 1, 0, 1 << 20)).error, None);
}

#[test]
fn malformed_requests_are_answered_and_skipped() {
    for structured in [false, true] {
        let mut rig = Rig::roomy();
        let id = connect(&mut rig, "one", structured);
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        let mut add = |kind, flags, offset, bytes: u32, code| {
            let cookie = expected.len() as u64;
            stream.extend(request(kind, flags, cookie, offset, bytes));
            if kind == command::WRITE {
                // What looks like a request in a skipped payload is not one.
                let lure = request(command::DISC, 0, 0, 0, 0);
                stream.extend(lure.iter().cycle().take(bytes as usize));
            }
            expected.push(code);
        };
        let long = if structured { ErrorCode::Overflow } else { ErrorCode::Invalid };
        add(command::WRITE, 0, DISK_BYTES, 4096, ErrorCode::NoSpace);
        add(command::WRITE, 0, u64::MAX, 512, ErrorCode::NoSpace);
        add(command::WRITE, 0, 1, 512, ErrorCode::Invalid);
        add(command::WRITE, 0x8000, 0, 200_000, ErrorCode::Invalid);
        add(command::WRITE, 0, 0, (32 << 20) + 512, ErrorCode::Invalid);
        add(command::WRITE_ZEROES, 0, DISK_BYTES, 512, ErrorCode::NoSpace);
        add(command::READ, 0, DISK_BYTES, 512, ErrorCode::Invalid);
        add(command::READ, 0, 0, 64 << 20, long);
        add(command::READ, 0, 0, 100, ErrorCode::Invalid);
        add(command::TRIM, 0, DISK_BYTES, 512, ErrorCode::Invalid);
        add(command::FLUSH, 0, 0, 512, ErrorCode::Invalid);
        add(77, 0, 0, 512, ErrorCode::Invalid);
        add(command::BLOCK_STATUS, 0, 0, 0, ErrorCode::Invalid);
        let outcomes = ask(&mut rig, id, &stream);
        for (cookie, code) in expected.iter().enumerate() {
            let outcome = &outcomes[&(cookie as u64)];
            assert_eq!(outcome.error, Some(*code), "request {cookie}");
            assert!(outcome.done && outcome.data.is_empty());
            assert_eq!(outcome.message.is_empty(), !structured);
        }
        assert_eq!(rig.server.counters().errors, expected.len() as u64);
        // Requests of no bytes succeed, and the stream is in step.
        let nothing = [0, 1, 4, 5, 6].map(|kind| request(kind, 0, u64::from(kind), 0, 0)).concat();
        let outcomes = ask(&mut rig, id, &nothing);
        assert!(
            outcomes.len() == 5 && outcomes.values().all(|one| one.done && one.error.is_none())
        );
        assert!(rig.at(id).closed.is_none());
    }
}

#[test]
fn a_read_only_export_takes_no_writes() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "frozen", true);
    let mut stream = request(command::WRITE, 0, 1, 0, 100 << 10);
    stream.extend(vec![1; 100 << 10]);
    for kind in [command::TRIM, command::WRITE_ZEROES] {
        stream.extend(request(kind, 0, u64::from(kind), 0, 4096));
    }
    let outcomes = ask(&mut rig, id, &stream);
    assert_eq!(outcomes.len(), 3);
    assert!(outcomes.values().all(|one| one.error == Some(ErrorCode::NotPermitted)));
    assert_eq!(read(&mut rig, id, 0, 4096).error, None);
}

#[test]
fn a_request_without_magic_ends_the_session() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", true);
    let mut bytes = request(command::READ, 0, 1, 0, 512);
    bytes[0] ^= 1;
    rig.send(id, &bytes);
    rig.settle();
    assert!(matches!(rig.at(id).closed, Some(CloseCause::Magic(_))));
    assert!(rig.is_clean() && rig.server.sessions_open() == 0);
}

#[test]
fn a_block_that_cannot_be_read_is_an_error_and_never_data() {
    for (structured, flags) in [(false, 0), (true, 0), (true, command_flag::DF)] {
        let mut rig = Rig::roomy();
        let id = connect(&mut rig, "one", structured);
        let data = rig.random.bytes(2 << 20);
        assert_eq!(write(&mut rig, id, 0, &data).error, None);
        rig.disks.store_mut().bad.insert(100);
        for (offset, bytes) in [(block(100), 4096), (0, 2 << 20), (block(99), 8192)] {
            let outcome = one(&mut rig, id, &request(command::READ, flags, 1, offset, bytes));
            assert_eq!(outcome.error, Some(ErrorCode::Io));
            if structured {
                let at = outcome.error_offset.unwrap();
                assert!(at >= offset && at <= block(100) && outcome.message.contains("100"));
            }
            for (at, bytes) in &outcome.data {
                let end = at + bytes.len() as u64;
                assert!(end <= block(100) || *at >= block(101), "the bad block was sent");
                assert!(bytes[..] == data[*at as usize..end as usize]);
            }
        }
        assert!(read(&mut rig, id, 0, 4096).bytes() == data[..4096]);
        rig.pass(2_000_000);
        assert!(rig.is_clean());
    }
}

#[test]
fn a_busy_disk_delays_and_reorders_nothing() {
    let mut rig = Rig::roomy();
    rig.disks.store_mut().busy_every = 3;
    let id = connect(&mut rig, "one", false);
    let mut stream = Vec::new();
    let bytes = 70_000 / 512 * 512;
    for round in 1..=60u8 {
        // Overlapping, short and long: the last in the stream is the one that stays.
        let bytes = if round % 7 == 0 { bytes } else { 4096 };
        stream.extend(request(command::WRITE, 0, u64::from(round), 0, bytes));
        stream.extend(vec![round; bytes as usize]);
    }
    stream.extend(request(command::TRIM, 0, 99, block(50), 4096));
    let outcomes = ask(&mut rig, id, &stream);
    assert_eq!(outcomes.len(), 61);
    assert!(outcomes.values().all(|one| one.done && one.error.is_none()));
    assert!(rig.server.counters().busy > 10);
    let data = read(&mut rig, id, 0, bytes).bytes();
    assert!(data[..4096].iter().all(|byte| *byte == 60));
    assert!(data[4096..].iter().all(|byte| *byte == 56));
}

#[test]
fn errors_of_the_store_reach_the_client() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", true);
    rig.disks.store_mut().is_full = true;
    for bytes in [4096, 128 << 10] {
        let outcome = write(&mut rig, id, 0, &vec![1; bytes]);
        assert_eq!(outcome.error, Some(ErrorCode::NoSpace));
        assert!(!outcome.message.is_empty());
    }
    rig.disks.store_mut().is_full = false;
    rig.disks.store_mut().disks.remove(&DISK);
    assert_eq!(read(&mut rig, id, 0, 512).error, Some(ErrorCode::Shutdown));
    assert_eq!(write(&mut rig, id, 0, &[1; 512]).error, Some(ErrorCode::Shutdown));
    rig.pass(2_000_000);
    assert!(rig.is_clean());
}

#[test]
fn a_disconnect_waits_for_replies() {
    let mut rig = Rig::roomy();
    rig.delay(50);
    let id = connect(&mut rig, "one", false);
    let mut stream = Vec::new();
    for cookie in 0..20 {
        stream.extend(request(command::READ, 0, cookie, cookie * 8192, 8192));
    }
    stream.extend(request(command::DISC, 0, 0, 0, 0));
    let outcomes = ask(&mut rig, id, &stream);
    assert!(outcomes.len() == 20 && outcomes.values().all(|one| one.bytes().len() == 8192));
    assert_eq!(rig.at(id).closed, Some(CloseCause::Client));
    assert!(rig.is_clean() && rig.server.sessions_open() == 0);
}

#[test]
fn a_server_that_is_shut_down_answers_first() {
    let mut rig = Rig::roomy();
    rig.delay(5);
    let id = connect(&mut rig, "one", true);
    let idle = connect(&mut rig, "one", true);
    let fresh = rig.accept();
    rig.send(id, &request(command::READ, 0, 1, 0, 4096));
    rig.turn();
    rig.turn();
    rig.server.close_all();
    let outcomes = ask(&mut rig, id, &[]);
    assert!(outcomes[&1].done);
    for session in [id, idle, fresh] {
        assert_eq!(rig.at(session).closed, Some(CloseCause::Shutdown));
    }
    assert!(rig.is_clean() && rig.server.sessions_open() == 0);
}
