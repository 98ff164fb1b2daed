//! A job that churns a folder: each operation makes, replaces or removes a small file, makes that
//! durable as careful programs do (fsync of a new file, rename, fsync of the folder), acknowledges
//! it, and starts the next.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{acknowledge, raw::mix};

/// Names the job works on; each is used many times.
const NAMES: u64 = 40;
const BYTES_MAX: u64 = 24 << 10;
/// Operations that may have been acknowledged without the host having heard of it yet.
const UNHEARD: u64 = 32;

fn name(number: u64) -> u64 {
    mix(number) % NAMES
}

/// Every fourth operation removes.
fn removes(number: u64) -> bool {
    (mix(number) >> 32).is_multiple_of(4)
}

/// What operation `number` puts into its file: the number, and bytes that only it writes.
fn content(number: u64) -> Vec<u8> {
    let bytes = 8 + (mix(number) >> 16) % BYTES_MAX;
    let words =
        (0..bytes.div_ceil(8)).map(|at| if at == 0 { number } else { mix(number << 20 ^ at) });
    let mut content: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    content.truncate(bytes as usize);
    content
}

fn place(folder: &str, name: u64) -> PathBuf {
    Path::new(folder).join(format!("{:02}", name % 8)).join(format!("file-{name}"))
}

/// Works for ever, from the beginning.
pub fn run(folder: &str) -> io::Result<()> {
    for at in 0..8 {
        fs::create_dir_all(Path::new(folder).join(format!("{at:02}")))?;
    }
    File::open(folder)?.sync_all()?;
    for number in 1.. {
        let path = place(folder, name(number));
        let home = path.parent().map(Path::to_path_buf).unwrap_or_default();
        if removes(number) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else {
            let draft = home.join("draft");
            let mut file = File::create(&draft)?;
            file.write_all(&content(number))?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
        }
        File::open(&home)?.sync_all()?;
        acknowledge(number)?;
    }
    Ok(())
}

/// The operation whose file this is, if it is whole; `None` if there is no file.
fn holds(path: &Path) -> io::Result<Option<u64>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let number = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    if bytes != content(number) || removes(number) || place("", name(number)) != place_of(path) {
        return Err(io::Error::other(format!("{}: holds what nobody put there", path.display())));
    }
    Ok(Some(number))
}

/// The last two components, as [`place`] makes them.
fn place_of(path: &Path) -> PathBuf {
    let leaf = path.file_name().map(PathBuf::from).unwrap_or_default();
    let home = path.parent().and_then(Path::file_name).map(PathBuf::from).unwrap_or_default();
    home.join(leaf)
}

/// Every name holds what the last operation up to `through` left, or what a later one left.
pub fn check(folder: &str, through: u64) -> io::Result<()> {
    let last: BTreeMap<u64, u64> = (1..=through).map(|number| (name(number), number)).collect();
    let mut files = 0;
    for name in 0..NAMES {
        let last = last.get(&name).copied().unwrap_or(0);
        let found = holds(&place(folder, name))?;
        let is_right = match found {
            Some(number) => number > through || number == last,
            None => last == 0 || removes(last) || is_removed_soon(name, through),
        };
        if !is_right {
            let what = format!("{folder}: name {name} holds {found:?}, operation {last} is lost");
            return Err(io::Error::other(what));
        }
        files += u64::from(found.is_some());
    }
    println!("{files}");
    Ok(())
}

/// Whether one of the operations that may have been on their way removes this name.
fn is_removed_soon(of: u64, through: u64) -> bool {
    (through + 1..=through + UNHEARD).any(|number| removes(number) && name(number) == of)
}
