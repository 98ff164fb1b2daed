//! Rules over one file at a time.

use std::fmt;

/// A file of the repository.
pub struct File {
    /// Its path from the root.
    pub name: String,
    /// What is in it.
    pub text: String,
}

impl File {
    fn is(&self, ends: &[&str]) -> bool {
        ends.iter().any(|end| self.name.ends_with(end))
    }

    fn is_code(&self) -> bool {
        self.is(&[".rs", ".sh", ".py", "Makefile", ".ci/run", ".c"]) || self.text.starts_with("#!")
    }

    fn problem(&self, line: usize, what: impl Into<String>) -> Problem {
        Problem { name: self.name.clone(), line: line + 1, what: what.into() }
    }
}

/// A rule broken somewhere.
pub struct Problem {
    pub name: String,
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.name, self.line, self.what)
    }
}

type Check = fn(&File, &mut Vec<Problem>);

/// A rule, and a file that breaks it.
pub struct Rule {
    pub name: &'static str,
    pub check: Check,
    pub broken: fn() -> (&'static str, String),
}

pub const RULES: &[Rule] = &[
    Rule { name: "ascii", check: ascii, broken: || ("a.md", "caf\u{e9}".into()) },
    Rule { name: "line length", check: lines, broken: || ("a.rs", "x".repeat(101)) },
    Rule { name: "white space", check: space, broken: || ("a.rs", "let x; \n".into()) },
    Rule { name: "file length", check: file_length, broken: || ("a.rs", "//\n".repeat(601)) },
    Rule { name: "function length", check: functions, broken: long_function },
    Rule {
        name: "unsafe",
        check: unsafe_code,
        broken: || ("crates/wire/src/a.rs", unsafe_sample()),
    },
    Rule {
        name: "words",
        check: words,
        broken: || ("a.rs", concat!("// TO", "DO: later\n").into()),
    },
    Rule { name: "places", check: places, broken: || ("a.rs", concat!("\"/ho", "me/me\"").into()) },
    Rule { name: "module head", check: head, broken: || ("crates/a/src/a.rs", "mod x;\n".into()) },
    Rule {
        name: "ignored tests",
        check: ignored,
        broken: || ("a.rs", concat!("#[ig", "nore]").into()),
    },
];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

/// Functions that may be longer, each with the reason.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

fn ascii(file: &File, problems: &mut Vec<Problem>) {
    for (at, line) in file.text.lines().enumerate() {
        if let Some(bad) = line.chars().find(|c| !c.is_ascii()) {
            problems.push(file.problem(at, format!("{bad:?} is not ASCII")));
        }
    }
}

fn lines(file: &File, problems: &mut Vec<Problem>) {
    if !file.is_code() {
        return;
    }
    for (at, line) in file.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > 100 {
            problems.push(file.problem(at, format!("{columns} columns, at most 100")));
        }
    }
}

fn space(file: &File, problems: &mut Vec<Problem>) {
    for (at, line) in file.text.lines().enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            problems.push(file.problem(at, "white space at the end of the line"));
        }
        if line.starts_with('\t') && !file.is(&["Makefile"]) {
            problems.push(file.problem(at, "indented with a tab"));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        problems.push(file.problem(file.text.lines().count() - 1, "no newline at the end"));
    }
}

fn file_length(file: &File, problems: &mut Vec<Problem>) {
    let count = file.text.lines().count();
    let excused = LONG_FILES.iter().any(|(name, _)| *name == file.name);
    if file.is(&[".rs", ".sh", ".py", ".c"]) && count > FILE_LINES_MAX && !excused {
        problems.push(file.problem(count - 1, format!("{count} lines, at most {FILE_LINES_MAX}")));
    }
    if excused && count <= FILE_LINES_MAX {
        problems.push(file.problem(0, "is short now: take it off LONG_FILES"));
    }
}

/// The name of the function that starts on this line, if one does.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    for word in ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe ", "extern "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let rest = rest.strip_prefix("\"C\" ").unwrap_or(rest).strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

/// Formatted code ends a function with a brace as far in as its first line; so no parser is needed.
fn functions(file: &File, problems: &mut Vec<Problem>) {
    if !file.is(&[".rs"]) {
        return;
    }
    let lines: Vec<&str> = file.text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let close = format!("{indent}}}");
        let end = lines[start..].iter().position(|l| {
            *l == close
                || l.ends_with(';') && l.starts_with(indent) && !l[indent.len()..].starts_with(' ')
        });
        let count = end.unwrap_or(0) + 1;
        let excused = LONG_FUNCTIONS.iter().any(|(f, n, _)| *f == file.name && *n == name);
        if count > FUNCTION_LINES_MAX && !excused {
            let what = format!("`{name}` has {count} lines, at most {FUNCTION_LINES_MAX}");
            problems.push(file.problem(start, what));
        }
        if excused && count <= FUNCTION_LINES_MAX {
            problems.push(file.problem(start, format!("`{name}`: take it off LONG_FUNCTIONS")));
        }
    }
}

fn long_function() -> (&'static str, String) {
    ("a.rs", format!("    pub fn long() {{\n{}    }}\n", "        x();\n".repeat(70)))
}

/// Where `unsafe` may be: the shared memory and the wrappers of system calls.
const UNSAFE_PLACES: &[&str] = &["crates/arena/", "crates/media/"];

fn unsafe_code(file: &File, problems: &mut Vec<Problem>) {
    if !file.is(&[".rs"]) || file.name.starts_with("tests/tidy/") {
        return;
    }
    let allowed = UNSAFE_PLACES.iter().any(|place| file.name.starts_with(place));
    let lines: Vec<&str> = file.text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let opens = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"];
        let Some(opened) = opens.iter().find(|open| code.contains(*open)) else { continue };
        if !allowed {
            problems.push(file.problem(at, "unsafe belongs into crates/arena and crates/media"));
        }
        let before = &lines[at.saturating_sub(10)..=at];
        let reasons = ["SAFETY:", "# Safety"];
        if !before.iter().any(|l| reasons.iter().any(|r| l.contains(r))) {
            problems.push(file.problem(at, format!("`{opened}` without its SAFETY: reason")));
        }
    }
}

fn unsafe_sample() -> String {
    "fn f() {\n    // SAFETY: none\n    unsafe { g() }\n}\n".into()
}

/// Words of unfinished work.
const WORDS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("for ", "now"),
    concat!("place", "holder"),
    concat!("un", "implemented!"),
    concat!("lorem ", "ipsum"),
];

fn words(file: &File, problems: &mut Vec<Problem>) {
    find(file, WORDS, "a word of unfinished work", problems);
}

/// Places that exist on one machine only, and hosts that a build must not name.
const PLACES: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/tmp/", "bl"),
    concat!("crates", ".io"),
    concat!("deb.deb", "ian.org"),
    concat!("static.rust", "-lang"),
];

fn places(file: &File, problems: &mut Vec<Problem>) {
    find(file, PLACES, "a place of one machine, or a registry's host", problems);
}

fn find(file: &File, list: &[&str], why: &str, problems: &mut Vec<Problem>) {
    for (at, line) in file.text.lines().enumerate() {
        for bad in list.iter().filter(|bad| holds(line, bad)) {
            problems.push(file.problem(at, format!("`{bad}`: {why}")));
        }
    }
}

/// Whether the line holds the word, not as a part of a longer one.
fn holds(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let letters = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        let longer_before = word.starts_with(char::is_alphabetic) && letters(before);
        let longer_after = word.ends_with(char::is_alphabetic) && letters(after);
        !longer_before && !longer_after
    })
}

fn head(file: &File, problems: &mut Vec<Problem>) {
    let tests = file.name.contains("/tests/") || file.is(&["tests.rs"]);
    if file.is(&[".rs"]) && !tests && !file.text.starts_with("//!") {
        problems.push(file.problem(0, "no module head: say the purpose and the invariants"));
    }
}

fn ignored(file: &File, problems: &mut Vec<Problem>) {
    let ignore = concat!("#[ig", "nore");
    for (at, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with(ignore) {
            problems.push(file.problem(at, "a test that is skipped proves nothing"));
        }
    }
}
