use std::collections::BTreeMap;

use bowline_wire::values::{command, command_flag};

use super::client::{ask, block, connect, one, parse, read, request, write};
use super::rig::{DISK, Rig};
use crate::{CloseCause, ExportedDisk, Options};

const JUMBO: u32 = 32 << 20;

#[test]
fn a_thousand_idle_sessions_hold_no_pages() {
    let mut rig = Rig::roomy();
    let ids: Vec<_> = (0..1000).map(|_| connect(&mut rig, "one", true)).collect();
    assert!(rig.server.held_bytes() <= Options::default().buffer_bytes_max);
    assert!(rig.cancelled > 0, "rings go round");
    rig.pass(2_000_000);
    assert!(rig.is_clean());
    assert_eq!(rig.server.due(), None, "nothing to wake up for");
    for id in ids.into_iter().step_by(7) {
        assert_eq!(read(&mut rig, id, 0, 4096).error, None);
    }
    rig.pass(2_000_000);
    assert!(rig.is_clean());
}

#[test]
fn a_thousand_sessions_that_come_at_once_are_all_served() {
    let mut rig = Rig::roomy();
    let ids: Vec<_> = (0..1000).map(|_| rig.accept()).collect();
    for id in &ids {
        rig.send(*id, &super::client::opening("one", false));
        rig.send(*id, &request(command::READ, 0, 1, 0, 512));
    }
    rig.settle();
    for id in ids {
        assert!(rig.at(id).incoming.ends_with(&[0; 512]));
    }
}

#[test]
fn a_header_in_two_parts_survives_the_loss_of_its_ring() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", false);
    let bytes = request(command::READ, 0, 1, 0, 512);
    rig.send(id, &bytes[..11]);
    rig.pass(2_000_000);
    assert!(rig.is_clean(), "eleven bytes are no reason to hold pages");
    rig.send(id, &bytes[11..]);
    rig.settle();
    assert_eq!(rig.at(id).incoming.len(), 16 + 512);
}

#[test]
fn the_longest_write_and_read_go_through_at_once() {
    for structured in [false, true] {
        let mut rig = Rig::roomy();
        rig.delay(3);
        let writers = [(); 3].map(|()| connect(&mut rig, "one", structured));
        let readers = [(); 3].map(|()| connect(&mut rig, "one", structured));
        let small = connect(&mut rig, "one", structured);
        let data = rig.random.bytes(JUMBO as usize);
        let mut stream = request(command::WRITE, 0, 1, 0, JUMBO);
        stream.extend_from_slice(&data);
        writers.iter().for_each(|id| rig.send(*id, &stream));
        for id in readers {
            // At the end of the disk, and not at a block: one page more than it is long.
            rig.send(id, &request(command::READ, 0, 1, (90 << 20) + 512, JUMBO));
            rig.send(id, &request(command::READ, command_flag::FUA, 2, 0, 512));
        }
        for cookie in 0..40 {
            rig.send(small, &request(command::READ, 0, cookie, 0, 4096));
            for _ in 0..5 {
                rig.turn();
            }
        }
        let reads = (0..40).map(|cookie| (cookie, (0, 4096))).collect();
        let answered = parse(&rig.at(small).incoming, &reads).len();
        assert!(answered > 35, "long requests hold short ones up: {answered} answered");
        rig.settle();
        for id in writers {
            let incoming = std::mem::take(&mut rig.at(id).incoming);
            assert!(parse(&incoming, &BTreeMap::new())[&1].error.is_none());
        }
        let reads = BTreeMap::from([(1, ((90 << 20) + 512, JUMBO)), (2, (0, 512))]);
        for id in readers {
            let incoming = std::mem::take(&mut rig.at(id).incoming);
            let outcomes = parse(&incoming, &reads);
            assert_eq!(outcomes[&1].bytes().len(), JUMBO as usize);
            assert!(outcomes[&1].done && outcomes[&2].done);
        }
        let outcome = read(&mut rig, writers[0], 0, JUMBO);
        assert!(outcome.bytes() == data);
        rig.pass(2_000_000);
        assert!(rig.is_clean());
    }
}

#[test]
fn long_payloads_are_not_copied() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", false);
    let mut stream = Vec::new();
    for number in 0..16u64 {
        stream.extend(request(command::WRITE, 0, number, number << 20, 1 << 20));
        stream.extend(rig.random.bytes(1 << 20));
    }
    let outcomes = ask(&mut rig, id, &stream);
    assert_eq!(outcomes.len(), 16);
    let counters = rig.server.counters();
    assert_eq!(counters.owned_bytes, 16 << 20);
    // What had come along with the first header, and nothing after it.
    assert!(counters.copied_bytes < 68 << 10);
    assert!(
        read(&mut rig, id, 5 << 20, 1 << 20).bytes()
            == stream[28 + 5 * (28 + (1 << 20))..][..1 << 20]
    );
    // Short ones are copied once.
    write(&mut rig, id, 0, &[1; 4096]);
    assert_eq!(rig.server.counters().copied_bytes, counters.copied_bytes + 4096);
}

#[test]
fn a_client_that_takes_no_replies_holds_a_bounded_part() {
    for structured in [false, true] {
        let mut rig = Rig::roomy();
        let deaf = connect(&mut rig, "one", structured);
        let data = rig.random.bytes(1 << 20);
        assert_eq!(write(&mut rig, deaf, 0, &data).error, None);
        rig.at(deaf).deaf = true;
        for cookie in 0..200 {
            rig.send(deaf, &request(command::READ, 0, cookie, 0, 256 << 10));
        }
        rig.settle();
        let bound = Options::default().reply_bytes_max + u64::from(crate::session::BUFFER_BYTES);
        assert!(rig.server.held_bytes() <= bound);
        let other = connect(&mut rig, "one", structured);
        assert_eq!(read(&mut rig, other, 0, 1 << 20).bytes().len(), 1 << 20);
        rig.at(deaf).deaf = false;
        let reads = (0..200).map(|cookie| (cookie, (0, 256 << 10))).collect();
        rig.settle();
        let incoming = std::mem::take(&mut rig.at(deaf).incoming);
        let outcomes = parse(&incoming, &reads);
        assert_eq!(outcomes.len(), 200);
        assert!(outcomes.values().all(|one| one.done && one.bytes() == data[..256 << 10]));
    }
}

#[test]
fn a_client_that_stops_while_others_wait_is_closed() {
    let mut rig = Rig::roomy();
    let stopped = connect(&mut rig, "one", false);
    let waiting = connect(&mut rig, "one", false);
    rig.send(stopped, &request(command::WRITE, 0, 1, 0, JUMBO));
    rig.settle();
    // Nobody waits: it may stop for as long as it likes.
    rig.pass(60_000_000);
    assert_eq!(rig.at(stopped).closed, None);
    rig.send(waiting, &request(command::READ, 0, 1, 0, JUMBO));
    rig.settle();
    assert!(rig.at(waiting).incoming.is_empty());
    // Short requests stand in another lane.
    let short = connect(&mut rig, "one", false);
    assert_eq!(read(&mut rig, short, 0, 4096).bytes().len(), 4096);
    rig.pass(9_000_000);
    assert_eq!(rig.at(stopped).closed, None);
    rig.pass(2_000_000);
    assert_eq!(rig.at(stopped).closed, Some(CloseCause::Stalled));
    assert_eq!(rig.at(waiting).incoming.len(), 16 + JUMBO as usize);
}

#[test]
fn a_handshake_has_its_time() {
    let mut rig = Rig::roomy();
    let silent = rig.accept();
    let id = connect(&mut rig, "one", false);
    rig.pass(11_000_000);
    assert_eq!(rig.at(silent).closed, Some(CloseCause::HandshakeTime));
    assert_eq!(rig.at(id).closed, None);
}

#[test]
fn there_are_only_so_many_sessions() {
    let mut rig = Rig::new(48 << 8, Options { sessions_max: 2, ..Options::default() });
    let first = connect(&mut rig, "one", false);
    connect(&mut rig, "one", false);
    assert!(rig.server.accepted(0).is_err());
    rig.at(first).ended = true;
    rig.settle();
    assert!(rig.server.accepted(0).is_ok());
}

#[test]
fn whoever_waits_for_a_record_is_served_though_one_before_it_has_left() {
    let mut rig = Rig::new(900, Options { requests_max: 1, ..Options::default() });
    rig.delay(5);
    let ids: Vec<_> = (0..4).map(|_| connect(&mut rig, "one", false)).collect();
    for id in &ids {
        rig.send(*id, &[request(command::WRITE, 0, 1, 512, 512), vec![1; 512]].concat());
    }
    for _ in 0..2 {
        rig.turn();
    }
    assert_eq!(rig.server.recordless.len(), 3, "one has the record");
    rig.server.abort(ids[1].0, CloseCause::Stalled);
    rig.settle();
    assert_eq!(rig.at(ids[1]).closed, Some(CloseCause::Stalled));
    for id in [ids[0], ids[2], ids[3]] {
        let outcomes = parse(&rig.at(id).incoming, &BTreeMap::new());
        assert!(outcomes[&1].done && outcomes[&1].error.is_none());
    }
}

#[test]
fn a_catalogue_longer_than_the_send_ring_is_listed() {
    let mut rig = Rig::roomy();
    let exported = (0..2000).map(|number| ExportedDisk {
        disk: DISK,
        name: format!("disk-number-{number}"),
        description: "one of many".to_string(),
        read_only: false,
    });
    rig.server.set_exports(exported.collect());
    let id = rig.accept();
    let mut stream = 3u32.to_be_bytes().to_vec();
    bowline_wire::client::option(&mut stream, 3, &[]);
    bowline_wire::client::option(&mut stream, 2, &[]);
    rig.send(id, &stream);
    rig.settle();
    let replies = super::client::take_opening(&mut rig.at(id).incoming);
    assert_eq!(replies.len(), 2002);
    assert!(rig.at(id).closed.is_some() && rig.is_clean());
}

#[test]
fn pages_that_others_hold_are_waited_for() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", true);
    let data = rig.random.bytes(128 << 10);
    write(&mut rig, id, 0, &data);
    let taken: Vec<_> = std::iter::from_fn(|| rig.pages.borrow_mut().take(1)).collect();
    rig.send(id, &request(command::READ, 0, 1, block(1), 64 << 10));
    rig.settle();
    assert!(rig.at(id).incoming.is_empty());
    taken.into_iter().for_each(|span| rig.pages.borrow_mut().give(span));
    let outcome = parse(&ask_stream(&mut rig, id), &BTreeMap::new());
    assert!(outcome[&1].bytes() == data[4096..][..64 << 10]);
    assert!(one(&mut rig, id, &request(command::FLUSH, 0, 1, 0, 0)).done);
}

fn ask_stream(rig: &mut Rig, id: crate::SessionId) -> Vec<u8> {
    rig.settle();
    std::mem::take(&mut rig.at(id).incoming)
}
