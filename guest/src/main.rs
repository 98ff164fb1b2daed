//! What runs inside a test guest.
//!
//! - `agent CONSOLE` is the first process: it runs the host's commands and says what they said.
//! - `journal FILE`, `churn FOLDER` and `raw DEVICE` work for ever and print the number of each
//!   record that was acknowledged; `journal-check`, `churn-check` and `raw-check` say whether every
//!   record to a number is there.
//! - `sql` prints one transaction after the other, each followed by its number, for `sqlite3`.
//!
//! It depends on nothing, so that it can be built static for any guest.

mod agent;
mod churn;
mod journal;
mod raw;

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["agent", console] => agent::run(console),
        ["journal", file] => journal::run(file),
        ["journal-check", file, through] => number(through).and_then(|n| journal::check(file, n)),
        ["churn", folder] => churn::run(folder),
        ["churn-check", folder, through] => number(through).and_then(|n| churn::check(folder, n)),
        ["raw", device] => raw::run(device),
        ["raw-check", device, through] => number(through).and_then(|n| raw::check(device, n)),
        ["sql"] => sql(),
        _ => {
            Err(io::Error::other("agent|journal|churn|raw|journal-check|churn-check|raw-check|sql"))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bowline-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::Error::other(format!("{text:?} is not a number")))
}

/// Says that everything up to `number` is acknowledged. The line leaves before the next record
/// starts, so what the host has read is never ahead of what the disk has answered.
fn acknowledge(number: u64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{number}")?;
    out.flush()
}

fn sql() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")?;
    writeln!(out, "CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, body TEXT);")?;
    for n in 1u64.. {
        writeln!(out, "INSERT INTO account VALUES ({n}, hex(randomblob(200)));")?;
        writeln!(out, "SELECT {n};")?;
        out.flush()?;
    }
    Ok(())
}
