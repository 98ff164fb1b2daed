use std::collections::BTreeMap;

use bowline_wire::values::command_flag;
use proptest::prelude::*;

use super::Random;
use super::client::{Outcome, connect, opening, parse, reads_of, request, take_opening};
use super::rig::Rig;

/// Requests whose outcomes do not depend on their order: writes go to blocks of their own, reads
/// to what was written before.
fn program(random: &mut Random, count: u64) -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    for cookie in 0..count {
        let offset = random.below(400) * 512;
        let bytes = [512, 4096, 8704, 66_048, 300_032, 1_500_160][random.below(6) as usize];
        requests.push(match random.below(10) {
            0..4 => request(0, 0, cookie, offset, bytes),
            4..7 => {
                let offset = (8 << 20) + cookie * (2 << 20) + offset % 4096;
                let mut stream = request(1, 0, cookie, offset, bytes);
                stream.extend(random.bytes(bytes as usize));
                stream
            }
            7 => request(3, 0, cookie, 0, 0),
            8 => request(6, command_flag::NO_HOLE, cookie, (100 << 20) + offset, bytes),
            _ => request(0, 0, cookie, u64::MAX - offset, bytes),
        });
    }
    requests
}

/// A disk with some data, holes and zeroes at its start.
fn prepared(structured: bool) -> (Rig, crate::SessionId) {
    let mut rig = Rig::roomy();
    let id = connect(&mut rig, "one", structured);
    for (offset, bytes) in [(0, 20_480), (65_536, 512), (81_920, 102_400)] {
        let data = Random(offset).bytes(bytes);
        super::client::write(&mut rig, id, offset, &data);
    }
    (rig, id)
}

/// All at once, in pieces: what became of each request.
fn pipelined(structured: bool, requests: &[Vec<u8>], piece: u64) -> BTreeMap<u64, Outcome> {
    let (mut rig, id) = prepared(structured);
    rig.piece_bytes_max = piece;
    let stream = requests.concat();
    rig.send(id, &stream);
    rig.settle();
    let outcomes = parse(&rig.at(id).incoming, &reads_of(&stream));
    rig.pass(3_000_000);
    assert!(rig.is_clean());
    outcomes
}

/// One after the other, in pieces: the stream of replies, from the greeting on.
fn stepwise(structured: bool, requests: &[Vec<u8>], piece: u64) -> Vec<u8> {
    let (mut rig, _) = prepared(structured);
    rig.piece_bytes_max = piece;
    let id = rig.accept();
    rig.settle();
    rig.send(id, &opening("one", structured));
    rig.settle();
    for stream in requests {
        rig.send(id, stream);
        rig.settle();
    }
    assert_eq!(
        take_opening(&mut rig.at(id).incoming.clone()).len(),
        if structured { 6 } else { 3 }
    );
    std::mem::take(&mut rig.at(id).incoming)
}

fn simplified(outcomes: &BTreeMap<u64, Outcome>) -> Vec<(u64, bool, Option<u32>, Vec<u8>)> {
    let one = |(cookie, outcome): (&u64, &Outcome)| {
        (*cookie, outcome.done, outcome.error.map(|code| code.value()), outcome.bytes())
    };
    outcomes.iter().map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pieces_change_no_outcome(seed: u64, structured: bool, piece in 1u64..40_000) {
        let requests = program(&mut Random(seed), 20);
        let whole = simplified(&pipelined(structured, &requests, u64::MAX));
        prop_assert_eq!(whole.len(), requests.len());
        let pieces = simplified(&pipelined(structured, &requests, piece.max(200)));
        prop_assert!(whole == pieces);
    }

    #[test]
    fn pieces_change_no_byte_of_the_replies(seed: u64, structured: bool, piece in 1u64..9000) {
        let requests = program(&mut Random(seed), 6);
        let whole = stepwise(structured, &requests, u64::MAX);
        prop_assert!(whole == stepwise(structured, &requests, piece.max(100)));
    }
}

#[test]
fn single_bytes_change_nothing() {
    let mut requests = vec![request(0, 0, 1, 512, 4608), request(3, 0, 2, 0, 0)];
    requests.push([request(1, 0, 3, 8 << 20, 512), vec![7; 512]].concat());
    requests.push([request(1, 0, 4, 16 << 20, 65_536), vec![7; 65_536]].concat());
    for structured in [false, true] {
        assert!(stepwise(structured, &requests, u64::MAX) == stepwise(structured, &requests, 1));
    }
}
