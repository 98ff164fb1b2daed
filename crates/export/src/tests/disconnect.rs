use bowline_wire::values::command;

use super::client::{connect, opening, request};
use super::rig::Rig;
use crate::CloseCause;

/// A handshake, and one of each kind of request.
fn stream() -> Vec<u8> {
    let mut stream = opening("one", true);
    stream.extend(request(command::READ, 0, 1, 0, 8192));
    stream.extend(request(command::WRITE, 0, 2, 512, 512));
    stream.extend([1; 512]);
    stream.extend(request(command::FLUSH, 0, 3, 0, 0));
    stream.extend(request(command::READ, 0, 4, 0, 300_032));
    stream.extend(request(command::WRITE, 0, 5, 4096, 70_144));
    stream.extend(vec![2; 70_144]);
    stream.extend(request(command::WRITE_ZEROES, 0, 6, 0, 1 << 20));
    stream.extend(request(command::BLOCK_STATUS, 0, 7, 0, 1 << 20));
    stream.extend(request(command::READ, 4, 8, 0, 2 << 20));
    stream.extend(request(command::WRITE, 0, 9, 1, 100_000));
    stream.extend(vec![3; 100_000]);
    stream
}

/// Every byte of the headers and of short payloads, and some of the long ones.
fn cuts(bytes: usize) -> impl Iterator<Item = usize> {
    let is_dense = move |at: &usize| *at < 900 || at.is_multiple_of(1009) || bytes - at < 70;
    (0..=bytes).filter(is_dense)
}

#[test]
fn the_end_of_the_stream_is_clean_at_every_byte() {
    let stream = stream();
    let mut rig = Rig::roomy();
    rig.delay(3);
    for cut in cuts(stream.len()) {
        let id = rig.accept();
        rig.send(id, &stream[..cut]);
        rig.at(id).ended = true;
        rig.settle();
        assert_eq!(rig.at(id).closed, Some(CloseCause::Client), "after {cut} bytes");
        assert!(rig.is_clean() && rig.server.sessions_open() == 0, "after {cut} bytes");
        rig.connections.remove(&id);
    }
}

#[test]
fn a_broken_connection_is_clean_at_every_byte() {
    let stream = stream();
    let mut rig = Rig::roomy();
    rig.delay(3);
    for (turn, cut) in cuts(stream.len()).enumerate() {
        let id = rig.accept();
        rig.send(id, &stream[..cut]);
        // Some break with requests at the disk and replies half sent.
        rig.at(id).deaf = turn % 2 == 0;
        for _ in 0..turn % 9 {
            rig.turn();
        }
        rig.at(id).reset = true;
        rig.settle();
        assert!(matches!(rig.at(id).closed, Some(CloseCause::Socket(_))), "after {cut} bytes");
        assert!(rig.is_clean() && rig.server.sessions_open() == 0, "after {cut} bytes");
        rig.connections.remove(&id);
    }
}

#[test]
fn replies_are_sent_after_the_client_ended_its_stream() {
    let mut rig = Rig::roomy();
    rig.delay(10);
    let id = rig.accept();
    rig.send(id, &opening("one", false));
    rig.send(id, &request(command::READ, 0, 1, 0, 4096));
    rig.at(id).ended = true;
    rig.settle();
    let incoming = std::mem::take(&mut rig.at(id).incoming);
    assert!(incoming.ends_with(&[&[0, 0, 0, 1][..], &[0; 4096]].concat()));
    assert_eq!(rig.at(id).closed, Some(CloseCause::Client));
}

#[test]
fn the_place_of_a_session_is_not_anothers_before_the_loop_has_closed_it() {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", true);
    rig.server.received(&mut rig.disks, id, Ok(0));
    let next = rig.server.accepted(7).unwrap();
    assert_ne!(next.slot(), id.slot(), "it has not been told to close it");
}
