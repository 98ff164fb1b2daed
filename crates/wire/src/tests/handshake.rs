use super::exports;
use crate::client::{self, OptionReply};
use crate::values::{info, option, option_reply, transmission};
use crate::{
    Agreed, CloseReason, Export, ExportId, Negotiation, OPTION_DATA_BYTES_MAX, PAYLOAD_BYTES_MAX,
    Progress, greeting,
};

/// A handshake with everything that was answered.
struct Talk {
    negotiation: Negotiation,
    exports: Vec<Export>,
    input: Vec<u8>,
    out: Vec<u8>,
    progress: Progress,
}

impl Talk {
    fn new(names: &[&str], flags: u32) -> Talk {
        let mut talk = Talk {
            negotiation: Negotiation::new(),
            exports: exports(names),
            input: Vec::new(),
            out: Vec::new(),
            progress: Progress::NeedMore(4),
        };
        talk.send(&flags.to_be_bytes());
        talk
    }

    fn send(&mut self, bytes: &[u8]) -> &mut Talk {
        self.input.extend_from_slice(bytes);
        loop {
            let step = self.negotiation.advance(&self.input, &self.exports, &mut self.out);
            self.input.drain(..step.consumed);
            self.progress = step.progress;
            if step.progress != Progress::Taken {
                return self;
            }
        }
    }

    fn option(&mut self, code: u32, data: &[u8]) -> Vec<OptionReply> {
        let mut message = Vec::new();
        client::option(&mut message, code, data);
        self.send(&message);
        self.replies(code)
    }

    fn replies(&mut self, code: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        while let Some(((answered, reply), bytes)) = client::decode_option_reply(&self.out).unwrap()
        {
            assert_eq!(answered, code);
            self.out.drain(..bytes);
            replies.push(reply);
        }
        assert!(self.out.is_empty());
        replies
    }

    /// Whether the next option still works: nothing was lost or left in the stream.
    fn in_step(&mut self) {
        assert_eq!(self.option(option::STRUCTURED_REPLY, &[]), [OptionReply::Ack]);
    }
}

fn kind(replies: &[OptionReply]) -> u32 {
    match replies {
        [OptionReply::Error { kind, message }] => {
            assert!(!message.is_empty(), "an error says why");
            *kind
        }
        other => panic!("not one error: {other:?}"),
    }
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_zeroes() {
    assert_eq!(client::decode_greeting(&greeting()), Ok(Some((3, 18))));
    assert_eq!(client::decode_greeting(&greeting()[..17]), Ok(None));
    assert!(client::decode_greeting(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0").is_err());
}

#[test]
fn unknown_client_flags_end_the_session() {
    assert_eq!(Talk::new(&["a"], 4).progress, Progress::Close(CloseReason::ClientFlags(4)));
    assert_eq!(Talk::new(&["a"], 3).progress, Progress::NeedMore(16));
}

#[test]
fn export_name_sends_zeroes_unless_they_were_declined() {
    for (flags, bytes) in [(1, 134), (3, 10), (0, 134)] {
        let mut talk = Talk::new(&["a"], flags);
        let mut message = Vec::new();
        client::option(&mut message, option::EXPORT_NAME, b"a");
        talk.send(&message);
        let agreed = Agreed { export: ExportId(7), structured: false, allocation: false };
        assert_eq!(talk.progress, Progress::Transmission(agreed));
        assert_eq!(talk.out.len(), bytes);
        assert_eq!(talk.out[..8], (1u64 << 30).to_be_bytes());
        assert!(talk.out[10..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn export_name_of_nothing_ends_the_session() {
    let mut talk = Talk::new(&["a"], 3);
    assert!(talk.option(option::EXPORT_NAME, b"b").is_empty());
    assert_eq!(talk.progress, Progress::Close(CloseReason::UnknownExport));
    let mut talk = Talk::new(&["a"], 3);
    assert!(talk.option(option::EXPORT_NAME, &vec![b'a'; OPTION_DATA_BYTES_MAX + 1]).is_empty());
    assert_eq!(talk.progress, Progress::Close(CloseReason::UnknownExport));
}

#[test]
fn the_empty_name_is_the_only_disk() {
    let go = client::info_data("", &[info::NAME]);
    let replies = Talk::new(&["a"], 3).option(option::GO, &go);
    assert!(replies.contains(&OptionReply::Name("a".to_string())));
    for names in [&["a", "b"][..], &[]] {
        let mut talk = Talk::new(names, 3);
        assert_eq!(kind(&talk.option(option::GO, &go)), option_reply::ERR_UNKNOWN);
        talk.in_step();
    }
}

#[test]
fn abort_is_acknowledged_and_its_data_ignored() {
    for data in [&b""[..], b"data"] {
        let mut talk = Talk::new(&["a"], 3);
        assert_eq!(talk.option(option::ABORT, data), [OptionReply::Ack]);
        assert_eq!(talk.progress, Progress::Close(CloseReason::Abort));
    }
}

#[test]
fn list_names_every_export() {
    let mut talk = Talk::new(&["a", "frozen"], 3);
    let server = |name: &str| OptionReply::Server {
        name: name.to_string(),
        description: format!("disk {name}"),
    };
    let replies = talk.option(option::LIST, &[]);
    assert_eq!(replies, [server("a"), server("frozen"), OptionReply::Ack]);
    assert_eq!(kind(&talk.option(option::LIST, b"x")), option_reply::ERR_INVALID);
    talk.in_step();
}

#[test]
fn tls_and_unknown_options_are_unsupported_and_skipped() {
    let mut talk = Talk::new(&["a"], 3);
    // PEEK_EXPORT, STARTTLS, EXTENDED_HEADERS, nothing at all; with and without data.
    for code in [4, option::STARTTLS, 11, 0xffff_ffff, 0] {
        for data in [&b""[..], &[7; 100_000]] {
            assert_eq!(kind(&talk.option(code, data)), option_reply::ERR_UNSUP);
            talk.in_step();
        }
    }
}

#[test]
fn oversized_options_are_too_big_and_skipped() {
    let mut talk = Talk::new(&["a"], 3);
    for code in [option::INFO, option::GO, option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let data = vec![0; OPTION_DATA_BYTES_MAX + 1];
        assert_eq!(kind(&talk.option(code, &data)), option_reply::ERR_TOO_BIG);
        talk.in_step();
    }
}

#[test]
fn an_absurdly_long_option_ends_the_session() {
    let mut talk = Talk::new(&["a"], 3);
    let mut message = Vec::new();
    client::option(&mut message, 99, &[]);
    message[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    talk.send(&message);
    assert_eq!(talk.progress, Progress::Close(CloseReason::TooLong(u32::MAX)));
}

#[test]
fn an_option_without_magic_ends_the_session() {
    let mut talk = Talk::new(&["a"], 3);
    talk.send(&[0x25; 16]);
    assert_eq!(talk.progress, Progress::Close(CloseReason::Magic));
}

#[test]
fn info_describes_and_go_goes() {
    let mut talk = Talk::new(&["a", "frozen"], 3);
    let items = [info::BLOCK_SIZE, info::DESCRIPTION, info::NAME, 999];
    let data = client::info_data("frozen", &items);
    let described = talk.option(option::INFO, &data);
    assert_eq!(talk.progress, Progress::NeedMore(16));
    let flags = transmission::HAS_FLAGS
        | transmission::READ_ONLY
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::CAN_MULTI_CONN
        | transmission::SEND_CACHE;
    let expected = [
        OptionReply::Export { bytes: 1 << 30, flags },
        OptionReply::Name("frozen".to_string()),
        OptionReply::Description("disk frozen".to_string()),
        OptionReply::BlockSize { min: 512, preferred: 4096, payload_max: PAYLOAD_BYTES_MAX },
        OptionReply::Ack,
    ];
    assert_eq!(described, expected);
    // "the server MUST reply with the same set of information".
    assert_eq!(talk.option(option::GO, &data), expected);
    let agreed = Agreed { export: ExportId(8), structured: false, allocation: false };
    assert_eq!(talk.progress, Progress::Transmission(agreed));
}

#[test]
fn flags_follow_what_was_negotiated() {
    let export = &exports(&["a"])[0];
    assert_eq!(export.transmission_flags(false) & transmission::SEND_DF, 0);
    assert_ne!(export.transmission_flags(true) & transmission::SEND_DF, 0);
    let writable =
        transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO;
    assert_eq!(export.transmission_flags(false) & writable, writable);
    assert_eq!(exports(&["frozen"])[0].transmission_flags(true) & writable, 0);
}

#[test]
fn malformed_data_is_invalid() {
    let mut talk = Talk::new(&["a"], 3);
    talk.in_step();
    let mut long_name = client::info_data("a", &[]);
    long_name[3] = 200;
    let mut many_items = client::info_data("a", &[1]);
    many_items[6] = 9;
    let mut trailing = client::info_data("a", &[]);
    trailing.push(0);
    for data in [&long_name, &many_items, &trailing, &vec![], &vec![0; 5]] {
        for code in [option::INFO, option::GO] {
            assert_eq!(kind(&talk.option(code, data)), option_reply::ERR_INVALID);
        }
    }
    let mut query = client::context_data("a", &["base:allocation"]);
    *query.last_mut().unwrap() = 0;
    query.truncate(query.len() - 1);
    let mut count = client::context_data("a", &[]);
    count[5..].copy_from_slice(&u32::MAX.to_be_bytes());
    for data in [&query, &count, &vec![]] {
        for code in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            assert_eq!(kind(&talk.option(code, data)), option_reply::ERR_INVALID);
        }
    }
    talk.in_step();
}

fn allocation(id: u32) -> OptionReply {
    OptionReply::MetaContext { id, name: "base:allocation".to_string() }
}

#[test]
fn contexts_are_listed_by_name_wildcard_or_all() {
    let mut talk = Talk::new(&["a"], 3);
    talk.in_step();
    for (queries, found) in [
        (&[][..], true),
        (&["base:"], true),
        (&["qemu:dirty-bitmap:x", "base:allocation"], true),
        (&["base:", "base:allocation"], true),
        (&["base:other"], false),
        (&["qemu:"], false),
    ] {
        let replies = talk.option(option::LIST_META_CONTEXT, &client::context_data("a", queries));
        let expected =
            if found { vec![allocation(0), OptionReply::Ack] } else { vec![OptionReply::Ack] };
        assert_eq!(replies, expected, "{queries:?}");
    }
    let unknown = talk.option(option::LIST_META_CONTEXT, &client::context_data("b", &[]));
    assert_eq!(kind(&unknown), option_reply::ERR_UNKNOWN);
}

#[test]
fn contexts_are_set_only_by_name_and_replaced_by_each_request() {
    let set = |talk: &mut Talk, name: &str, queries: &[&str]| {
        talk.option(option::SET_META_CONTEXT, &client::context_data(name, queries))
    };
    let go = |mut talk: Talk, name: &str| {
        talk.option(option::GO, &client::info_data(name, &[]));
        match talk.progress {
            Progress::Transmission(agreed) => agreed.allocation,
            other => panic!("{other:?}"),
        }
    };
    let mut talk = Talk::new(&["a", "b"], 3);
    let early = set(&mut talk, "a", &["base:allocation"]);
    assert_eq!(kind(&early), option_reply::ERR_INVALID);
    talk.in_step();
    // A wildcard and unknown contexts select nothing.
    for queries in [&[][..], &["base:"], &["base:other", "qemu:allocation-depth", "nonsense"]] {
        assert_eq!(set(&mut talk, "a", queries), [OptionReply::Ack]);
    }
    let selected = set(&mut talk, "a", &["base:allocation", "x-y:z", "base:allocation"]);
    assert_eq!(selected, [allocation(1), OptionReply::Ack]);
    let again = || Talk {
        negotiation: talk.negotiation,
        exports: exports(&["a", "b"]),
        input: Vec::new(),
        out: Vec::new(),
        progress: Progress::Taken,
    };
    assert!(go(again(), "a"));
    assert!(!go(again(), "b"), "selected for another export");
    let mut failed = again();
    assert_eq!(kind(&set(&mut failed, "c", &["base:allocation"])), option_reply::ERR_UNKNOWN);
    assert!(!go(failed, "a"), "a failed request replaces too");
    let mut too_big = again();
    let data = vec![0; OPTION_DATA_BYTES_MAX + 1];
    let replies = too_big.option(option::SET_META_CONTEXT, &data);
    assert_eq!(kind(&replies), option_reply::ERR_TOO_BIG);
    assert!(!go(too_big, "a"));
}

#[test]
fn the_state_survives_as_a_record() {
    let mut talk = Talk::new(&["a"], 3);
    talk.in_step();
    talk.option(option::SET_META_CONTEXT, &client::context_data("a", &["base:allocation"]));
    let record = talk.negotiation.to_record();
    let mut successor = Talk::new(&["a"], 0);
    successor.negotiation = Negotiation::from_record(&record).unwrap();
    assert_eq!(successor.negotiation, talk.negotiation);
    successor.option(option::GO, &client::info_data("a", &[]));
    let agreed = Agreed { export: ExportId(7), structured: true, allocation: true };
    assert_eq!(successor.progress, Progress::Transmission(agreed));
    let record = successor.negotiation.to_record();
    assert_eq!(Negotiation::from_record(&record), Ok(successor.negotiation));
    for bad in [[0; 16], [0xff; 16], [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(Negotiation::from_record(&bad).is_err());
    }
}
