use proptest::prelude::*;

use super::exports;
use crate::client;
use crate::values::option;
use crate::{Negotiation, OPTION_DATA_BYTES_MAX, OPTION_HEADER_BYTES, Progress};

/// Feeds `stream` in the given pieces, through a record between any two steps; returns what was
/// answered, how it ended, and how many bytes were left for the transmission phase.
fn run(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Progress, usize) {
    let exports = exports(&["a", "b"]);
    let (mut negotiation, mut out, mut held) = (Negotiation::new(), Vec::new(), Vec::new());
    let mut progress = Progress::NeedMore(4);
    let mut rest = stream;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().copied().unwrap_or(1).clamp(1, rest.len());
        held.extend_from_slice(&rest[..cut]);
        rest = &rest[cut..];
        loop {
            let step = negotiation.advance(&held, &exports, &mut out);
            held.drain(..step.consumed);
            progress = step.progress;
            negotiation = Negotiation::from_record(&negotiation.to_record()).unwrap();
            match progress {
                Progress::Taken => {}
                Progress::NeedMore(bytes) => {
                    assert!(bytes > held.len(), "it has what it asks for");
                    assert!(bytes <= OPTION_HEADER_BYTES + OPTION_DATA_BYTES_MAX);
                    break;
                }
                Progress::Transmission(_) | Progress::Close(_) => {
                    return (out, progress, held.len() + rest.len());
                }
            }
        }
    }
    (out, progress, held.len())
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_string()), Just("b".to_string()), Just(String::new()), "[a-z]{1,9}"]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let contexts = proptest::collection::vec(
        prop_oneof![Just("base:"), Just("base:allocation"), Just("qemu:x"), Just("nonsense")],
        0..4,
    );
    let data = prop_oneof![
        (name(), proptest::collection::vec(0u16..6, 0..4))
            .prop_map(|(name, items)| client::info_data(&name, &items)),
        (name(), contexts).prop_map(|(name, queries)| client::context_data(&name, &queries)),
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(vec![]),
        Just(vec![0; OPTION_DATA_BYTES_MAX + 5]),
    ];
    let code = prop_oneof![
        8 => 3u32..12,
        1 => Just(option::EXPORT_NAME),
        1 => Just(option::ABORT),
        1 => any::<u32>(),
    ];
    (code, data).prop_map(|(code, data)| {
        let mut bytes = Vec::new();
        client::option(&mut bytes, code, &data);
        bytes
    })
}

proptest! {
    #[test]
    fn any_fragmentation_gives_the_same_answers(
        messages in proptest::collection::vec(message(), 0..12),
        cuts in proptest::collection::vec(1usize..60, 1..20),
    ) {
        let mut stream = 3u32.to_be_bytes().to_vec();
        stream.extend(messages.concat());
        let whole = run(&stream, &[usize::MAX]);
        prop_assert_eq!(&run(&stream, &cuts), &whole);
        if stream.len() < 2000 {
            prop_assert_eq!(&run(&stream, &[1]), &whole);
        }
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        cuts in proptest::collection::vec(1usize..60, 1..5),
        flags in 0u32..8,
        code in 0u32..12,
    ) {
        run(&bytes, &cuts);
        let mut stream = flags.to_be_bytes().to_vec();
        client::option(&mut stream, code, &bytes);
        run(&stream, &cuts);
        let mut stream = 3u32.to_be_bytes().to_vec();
        client::option(&mut stream, code, &[]);
        stream.extend(bytes);
        run(&stream, &cuts);
    }
}
