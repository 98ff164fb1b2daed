//! A job that fsyncs: it appends a record, makes it durable, acknowledges it, and starts again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};

use crate::{acknowledge, raw::mix};

fn record(number: u64) -> String {
    format!("record {number:012} {:016x}{:016x}\n", mix(number), mix(!number))
}

/// Appends for ever, from where the file ends.
pub fn run(path: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let first = file.metadata()?.len() / record(0).len() as u64 + 1;
    for number in first.. {
        file.write_all(record(number).as_bytes())?;
        file.sync_data()?;
        acknowledge(number)?;
    }
    Ok(())
}

/// Every record up to `through` is there, in order, and nothing else is before it.
pub fn check(path: &str, through: u64) -> io::Result<()> {
    let mut found = 0;
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let expected = record(found + 1);
        if line != expected.trim_end().as_bytes() {
            break;
        }
        found += 1;
    }
    if found < through {
        let what = format!("{path}: record {} is missing, {through} were acknowledged", found + 1);
        return Err(io::Error::other(what));
    }
    println!("{found}");
    Ok(())
}
