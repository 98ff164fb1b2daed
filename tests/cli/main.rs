//! The command line as a user and as a script see it: what it prints, its documents, its exit
//! codes. The real program runs against a control plane whose data thread only pretends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::fs::File;
use std::os::unix::fs::FileExt;

use bowline::control::api::PoolState;
use fake::{Fake, lost_writes, program, said, well};

#[test]
fn status_of_a_server_that_is_well() {
    let fake = Fake::start(well());
    let said = fake.bowline(&["status"]);
    assert_eq!(said.code, 0, "{said:?}");
    for part in ["state:", "well", "disk0", "8.0 GiB", "no partner is running", "10%"] {
        assert!(said.out.contains(part), "{part:?} is not in\n{}", said.out);
    }
    let (code, document) = fake.json(&["status"]);
    assert_eq!(code, 0);
    assert_eq!(document["state"], "well");
    assert_eq!(document["takeover"]["ready"], false);
    assert_eq!(document["processes"]["passive"], serde_json::Value::Null);
    assert_eq!(document["pool"]["space"]["physical_bytes"], 1u64 << 30);
}

#[test]
fn a_state_that_is_not_well_says_what_it_means_and_what_to_do() {
    let fake = Fake::start(lost_writes());
    let said = fake.bowline(&["pool", "status"]);
    assert_eq!(said.code, 3, "{said:?}");
    for part in ["lost-writes", "means", "bowline does", "you do", "--accept-loss"] {
        assert!(said.out.contains(part), "{part:?} is not in\n{}", said.out);
    }
    let (code, document) = fake.json(&["pool", "resume"]);
    assert_eq!((code, &document["error"]["kind"]), (3, &"degraded".into()));
    assert_eq!(fake.bowline(&["pool", "resume", "--accept-loss"]).code, 0);
}

#[test]
fn disks_are_made_shown_changed_and_destroyed() {
    let fake = Fake::start(well());
    let made = fake.bowline(&["disk", "create", "db", "--size", "1.5G", "--durability", "ordered"]);
    assert_eq!(made.code, 0, "{made:?}");
    let (_, document) = fake.json(&["disk", "show", "db"]);
    assert_eq!(document["size_bytes"], 3u64 << 29);
    assert_eq!(document["durability"], "ordered");
    assert_eq!(fake.bowline(&["disk", "resize", "db", "--size", "2G"]).code, 0);
    assert_eq!(fake.bowline(&["disk", "set", "db", "--read-only", "on"]).code, 0);
    let list = fake.bowline(&["disk", "list"]).out;
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.contains("read-only") && list.contains("2.0 GiB"), "{list}");
    assert_eq!(fake.bowline(&["disk", "destroy", "db", "--yes"]).code, 0);
    assert_eq!(fake.bowline(&["disk", "show", "db"]).code, 2);
}

#[test]
fn without_a_terminal_destroy_needs_yes() {
    let fake = Fake::start(well());
    let said = fake.bowline(&["disk", "destroy", "disk0"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("--yes"), "{said:?}");
    assert_eq!(fake.bowline(&["disk", "show", "disk0"]).code, 0, "the disk is still there");
}

#[test]
fn complaints_come_by_kind() {
    let fake = Fake::start(well());
    for (arguments, code, part) in [
        (vec!["disk", "create", "disk0", "--size", "1G"], 4, "already"),
        (vec!["disk", "create", "../etc", "--size", "1G"], 1, "cannot be the name"),
        (vec!["disk", "create", "odd", "--size", "1000"], 1, "multiple of 512"),
        (vec!["disk", "create", "x", "--size", "1X"], 1, "is not a size"),
        (vec!["disk", "show", "none"], 2, "there is no disk"),
        (vec!["disk", "set", "disk0"], 1, "required"),
        (vec!["nonsense"], 1, "nonsense"),
        (vec!["wait", "takeover", "--timeout", "1ms"], 2, "no partner"),
    ] {
        let said = fake.bowline(&arguments);
        assert_eq!(said.code, code, "{arguments:?}: {said:?}");
        assert!(said.err.contains(part), "{arguments:?}: {said:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for arguments in [["--help"], ["--version"]] {
        let said = said(&program().args(arguments).output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
    }
}

#[test]
fn no_server_is_a_failure_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.current_dir(folder.path()).arg("status");
    let words = said(&command.output().unwrap());
    assert_eq!(words.code, 4, "{words:?}");
    assert!(words.err.contains("bowline serve"), "{words:?}");
}

#[test]
fn a_scrub_is_started_and_waited_for() {
    let fake = Fake::start(well());
    assert_eq!(fake.bowline(&["wait", "scrub"]).code, 0, "none runs");
    assert!(fake.bowline(&["pool", "scrub"]).out.contains("running"));
    assert_eq!(fake.bowline(&["wait", "scrub", "--timeout", "10ms"]).code, 2);
    assert!(fake.bowline(&["pool", "scrub", "stop"]).out.contains("stopped early"));
    assert_eq!(fake.bowline(&["wait", "scrub"]).code, 0);
}

#[test]
fn every_state_has_an_exit_code() {
    for state in PoolState::ALL {
        let mut status = well();
        (status.state, status.pool.state) = (state, state);
        let fake = Fake::start(status);
        let expected = if state == PoolState::Well { 0 } else { 3 };
        let (code, document) = fake.json(&["status"]);
        assert_eq!((code, document["state"].as_str().unwrap()), (expected, state.word()));
    }
}

#[test]
fn what_lies_on_a_file_is_not_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"XFSB", 0).unwrap();
    let words = said(&program().args(["pool", "create"]).arg(&path).output().unwrap());
    assert_eq!(words.code, 1, "{words:?}");
    assert!(words.err.contains("an XFS file system"), "{words:?}");
    let mut start = [0; 4];
    File::open(&path).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"XFSB");
}

#[test]
fn the_manual_has_a_page_for_every_verb() {
    let folder = tempfile::tempdir().unwrap();
    let words = said(&program().arg("manual").arg(folder.path()).output().unwrap());
    assert_eq!(words.code, 0, "{words:?}");
    for page in ["bowline", "bowline-serve", "bowline-disk-create", "bowline-pool-check"] {
        let text = std::fs::read_to_string(folder.path().join(format!("man/{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(&page.replace('-', "\\-")), "{text}");
    }
    assert!(folder.path().join("completions/bowline.bash").exists());
}

#[test]
fn http_speaks_json_and_metrics() {
    let fake = Fake::start(well());
    for (request, status, part) in [
        ("GET /metrics HTTP/1.1", "200", "bowline_disk_size_bytes{disk=\"disk0\"} 8589934592"),
        ("GET /v1/disks/none HTTP/1.1", "404", "\"output_version\":1"),
        ("GET /v2/anything HTTP/1.1", "404", "not-found"),
        ("POST /v1/pool/scrub HTTP/1.1", "400", "not understood"),
    ] {
        let answer = exchange(&fake, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains(part), "{request}: {answer}");
    }
    assert!(fake.folder().join("control.sock").exists());
}

fn exchange(fake: &Fake, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(fake.socket()).unwrap();
    write!(stream, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
