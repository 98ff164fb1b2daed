//! The ban on I/O, clocks, threads and randomness in the core bites: clippy, run with the core's
//! configuration over a sample that does everything banned, complains about every path, and the
//! lines of `clippy-core.toml` and of the sample match one to one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn banned_paths() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("clippy-core.toml")).unwrap();
    let paths = text.lines().filter_map(|line| line.trim().strip_prefix("{ path = \""));
    paths.map(|rest| rest.split('"').next().unwrap().to_string()).collect()
}

/// What clippy says about the sample, and whether it was content.
fn clippy(configuration: Option<&Path>) -> (bool, String) {
    let target = if configuration.is_some() { "canary-free" } else { "canary" };
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["clippy", "--quiet", "--offline", "--", "-D", "warnings"])
        .args(["-A", "missing_docs", "-A", "clippy::let_unit_value"])
        .current_dir(root().join("tests/canary/sample"))
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join(target))
        .env_remove("RUSTFLAGS");
    if let Some(directory) = configuration {
        command.env("CLIPPY_CONF_DIR", directory);
    }
    let output = command.output().expect("cargo clippy starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_banned_path_is_caught() {
    let (content, said) = clippy(None);
    assert!(!content, "clippy passed the sample");
    let banned = banned_paths();
    assert!(banned.len() > 30, "only {} bans were read from clippy-core.toml", banned.len());
    for path in banned {
        let complaint = [format!("method `{path}`"), format!("type `{path}`")];
        assert!(complaint.iter().any(|c| said.contains(c)), "no complaint about {path}:\n{said}");
    }
}

#[test]
fn without_the_ban_the_sample_passes() {
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("clippy.toml"), "").unwrap();
    let (content, said) = clippy(Some(empty.path()));
    assert!(content, "the sample fails for another reason than the ban:\n{said}");
}
