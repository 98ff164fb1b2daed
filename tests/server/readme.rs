//! What the README shows, done as it is written there.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use bowline_testbed::tool::{self, until};

const README: &str = include_str!("../../README.md");

/// The fenced blocks, without the language.
fn blocks() -> Vec<&'static str> {
    README.split("```").skip(1).step_by(2).map(str::trim).collect()
}

/// The block with a word in it.
fn block(word: &str) -> &'static str {
    let found = blocks().into_iter().find(|block| block.contains(word));
    found.unwrap_or_else(|| panic!("the README shows no {word}"))
}

/// Everything the README tells to `make`.
fn made() -> Vec<&'static str> {
    let mut all: Vec<&str> = README
        .split("make ")
        .skip(1)
        .zip(README.split("make "))
        .filter(|(_, before)| before.ends_with(['`', '\n']))
        .map(|(after, _)| after.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next())
        .map(Option::unwrap_or_default)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What `make TARGET` would run.
fn recipe(target: &str) -> String {
    let root = bowline_testbed::root();
    tool::run("make", &["-n", "-C", &root.to_string_lossy(), target]).unwrap()
}

/// What follows a word, up to the end of its line.
fn rest<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.split_once(word)).unwrap().1;
    line.split_whitespace().collect()
}

/// A folder as that of a clone after `make run`: the program lies where the README says.
fn clone_of(program: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let release = folder.path().join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    std::os::unix::fs::symlink(program, release.join("bowline")).unwrap();
    folder
}

fn shell(folder: &Path, line: &str) -> String {
    let mut command = tool::command("timeout");
    command.args(["90", "sh", "-c", line]).current_dir(folder);
    let output = command.output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{out}{err}");
    out.into_owned()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `make run`, as far as it is not the build.
fn make_run(folder: &Path, runtime: &Path) -> Running {
    let recipe = recipe("run");
    let mut command = Command::new(folder.join("target/release/bowline"));
    command.args(rest(&recipe, " -- ")).current_dir(folder).env("XDG_RUNTIME_DIR", runtime);
    let server = Running(command.stderr(std::process::Stdio::null()).spawn().unwrap());
    until("it serves", Duration::from_secs(60), || {
        let wait = Command::new(folder.join("target/release/bowline"))
            .args(["wait", "--timeout", "0s"])
            .current_dir(folder)
            .output();
        wait.unwrap().status.success()
    })
    .unwrap();
    server
}

#[test]
fn what_the_readme_shows_is_done() {
    let folder = clone_of(Path::new(env!("CARGO_BIN_EXE_bowline")));
    let folder = folder.path();
    let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = folder.join("debian.img");
    let bytes: Vec<u8> = (0..1u64 << 20).flat_map(u64::to_le_bytes).collect();
    std::fs::write(&image, &bytes).unwrap();
    let mut server = make_run(folder, runtime.path());
    let shown = block("nbdinfo");
    let said: Vec<String> = shown.lines().map(|line| shell(folder, line)).collect();
    assert!(said.len() >= 4, "{shown}");
    assert!(said[0].contains("export-size: 8589934592"), "{}", said[0]);
    assert!(said[1].contains("disk0") && said[1].contains("well"), "{}", said[1]);
    assert_eq!(README.matches("target/release/bowline").count(), 2, "all of them are tried here");
    shell(folder, "target/release/bowline stop");
    server.0.wait().unwrap();
    // "Start it again: everything is there."
    let _server = make_run(folder, runtime.path());
    let compared = shell(folder, "qemu-img compare -f raw debian.img nbd://127.0.0.1/db");
    assert!(compared.contains("identical"), "{compared}");
}

#[test]
fn what_the_readme_makes_is_there() {
    assert_eq!(made(), ["bench", "bench-limits", "demo", "man", "run", "test", "tools"]);
    for target in made() {
        assert!(!recipe(target).is_empty(), "{target}");
    }
    assert!(recipe("demo").contains("bowline-testbed --bin demo"), "as the guest tests do");
}

/// Every verb of the command line that the README lists.
#[test]
fn every_verb_of_the_readme_exists() {
    let mut verbs = 0;
    for line in block("bowline serve [").lines() {
        let line = line.strip_prefix("bowline ").unwrap();
        let (noun, rest) = match line.split_once(' ') {
            Some((noun @ ("pool" | "disk"), rest)) => (Some(noun), rest),
            _ => (None, line),
        };
        for verb in rest.split(" | ") {
            let verb = verb.split_whitespace().next().unwrap();
            let words: Vec<&str> = noun.into_iter().chain([verb, "--help"]).collect();
            tool::run(env!("CARGO_BIN_EXE_bowline"), &words).unwrap();
            verbs += 1;
        }
    }
    assert!(verbs >= 16, "only {verbs}");
}
