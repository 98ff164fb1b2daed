//! Rules over the repository as a whole.

use std::path::Path;

use crate::rules::{File, Problem};

fn problem(name: &str, what: String) -> Problem {
    Problem { name: name.to_string(), line: 1, what }
}

/// Source files that no other file names as a module.
pub fn dead_files(files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.name.ends_with(".rs")) {
        let (directory, leaf) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
        if ["lib.rs", "main.rs", "build.rs"].contains(&leaf) || is_target_folder(directory) {
            continue;
        }
        let (module, home) = if leaf == "mod.rs" {
            directory.rsplit_once('/').map(|(home, module)| (module, home)).unwrap_or_default()
        } else {
            (leaf.trim_end_matches(".rs"), directory)
        };
        let parents = ["lib.rs", "main.rs", "mod.rs"].map(|name| format!("{home}/{name}"));
        let declared = files.iter().any(|parent| {
            (parents.contains(&parent.name) || parent.name == format!("{home}.rs"))
                && parent.text.lines().any(|line| declares(line, module))
        });
        let named = format!("#[path = \"{leaf}\"]");
        let is_named = files
            .iter()
            .any(|parent| parent.name.starts_with(directory) && parent.text.contains(&named));
        let is_target = files
            .iter()
            .any(|manifest| manifest.name.ends_with("Cargo.toml") && manifest.text.contains(leaf));
        if !declared && !is_named && !is_target {
            problems.push(problem(&file.name, "no file declares this module".into()));
        }
    }
    problems
}

/// Every file in such a folder is a program of its own.
fn is_target_folder(directory: &str) -> bool {
    let ends = ["src/bin", "/benches", "/examples"];
    let crate_tests = directory.starts_with("crates/") && !directory.contains("/src/");
    ends.iter().any(|end| directory.ends_with(end)) || crate_tests && directory.ends_with("/tests")
}

fn declares(line: &str, module: &str) -> bool {
    let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
    line.strip_prefix("mod ").is_some_and(|rest| rest.trim_end_matches([';', '{', ' ']) == module)
}

/// The crates that do no I/O, and all that each may use outside its tests.
const CORE: &[(&str, &[&str])] = &[
    ("wire", &["thiserror", "zerocopy"]),
    ("store", &["bowline-arena", "thiserror", "twox-hash", "zerocopy"]),
    ("disk", &["bowline-arena", "bowline-store", "thiserror"]),
    (
        "export",
        &[
            "bowline-arena",
            "bowline-disk",
            "bowline-store",
            "bowline-wire",
            "thiserror",
            "twox-hash",
            "zerocopy",
        ],
    ),
    ("sim", &["bowline-arena", "bowline-disk", "bowline-store", "thiserror", "twox-hash"]),
];

/// The core crates have the ban on I/O, and use nothing that could do it for them.
pub fn core(root: &Path, files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let ban = std::fs::read(root.join("clippy-core.toml")).expect("clippy-core.toml is there");
    for (name, allowed) in CORE {
        let link = format!("crates/{name}/clippy.toml");
        if std::fs::read(root.join(&link)).ok().as_ref() != Some(&ban) {
            problems.push(problem(&link, "is not the core's clippy.toml".into()));
        }
        let manifest = format!("crates/{name}/Cargo.toml");
        let Some(file) = files.iter().find(|file| file.name == manifest) else { continue };
        for dependency in dependencies(&file.text) {
            if !allowed.contains(&dependency) {
                let what = format!("`{dependency}` is not among what {name} may use: {allowed:?}");
                problems.push(problem(&manifest, what));
            }
        }
    }
    problems
}

fn dependencies(manifest: &str) -> Vec<&str> {
    let after = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let section = after.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).collect()
}
