//! The house rules that no compiler checks, over every file of the repository. A new rule is a
//! function in `rules.rs` with a sample that breaks it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod project;
mod rules;

use std::path::{Path, PathBuf};
use std::process::Command;

use rules::{File, Problem, RULES};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All text files that are, or are about to be, in the repository.
fn files() -> Vec<File> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is needed to list the files of the repository");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    let mut files = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty() && *name != "Cargo.lock") {
        // A file that is listed and gone is a deletion not yet committed; pictures are not text.
        let Ok(bytes) = std::fs::read(root().join(name)) else { continue };
        if name.ends_with(".png") || name.ends_with(".bin") {
            continue;
        }
        files.push(File { name: name.to_string(), text: String::from_utf8_lossy(&bytes).into() });
    }
    assert!(files.len() > 20, "only {} files were found", files.len());
    files
}

fn complain(problems: &[Problem]) {
    let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{} problems:\n{}\n", text.len(), text.join("\n"));
}

#[test]
fn the_repository_keeps_the_house_rules() {
    let mut problems = Vec::new();
    for file in files() {
        for rule in RULES {
            (rule.check)(&file, &mut problems);
        }
    }
    complain(&problems);
}

#[test]
fn every_rule_catches_its_sample() {
    for rule in RULES {
        let (name, text) = (rule.broken)();
        let mut problems = Vec::new();
        (rule.check)(&File { name: name.into(), text }, &mut problems);
        assert!(!problems.is_empty(), "rule \"{}\" did not catch its sample", rule.name);
    }
}

#[test]
fn no_source_file_is_dead() {
    complain(&project::dead_files(&files()));
    let orphan = File { name: "crates/x/src/orphan.rs".into(), text: String::new() };
    let head = File { name: "crates/x/src/lib.rs".into(), text: "mod other;\n".into() };
    assert_eq!(project::dead_files(&[orphan, head]).len(), 1);
}

#[test]
fn the_core_keeps_its_bans_and_its_dependencies() {
    complain(&project::core(&root(), &files()));
    let text = "[dependencies]\nrand = \"1\"\n".to_string();
    let bad = File { name: "crates/wire/Cargo.toml".into(), text };
    let problems = project::core(&root(), &[bad]);
    assert!(problems.iter().any(|problem| problem.what.contains("`rand`")));
}
