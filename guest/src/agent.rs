//! The first process: runs what the host asks for.
//!
//! Host to guest: `ID COMMAND`. Guest to host: `ready` once, `ID> LINE` for every line the command
//! says, `ID= STATUS` when it has ended. Commands run side by side.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

type Console = Arc<Mutex<File>>;

/// Serves the host for ever.
pub fn run(path: &str) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let console: Console = Arc::new(Mutex::new(file.try_clone()?));
    // Kept open from here on, so the setting stays: no echo, nothing translated.
    Command::new("/bin/stty").args(["-F", path, "raw", "-echo"]).status()?;
    say(&console, "ready")?;
    for line in BufReader::new(file).lines() {
        let line = line?;
        let Some((id, command)) = line.split_once(' ') else { continue };
        let (id, command, console) = (id.to_string(), command.to_string(), console.clone());
        thread::spawn(move || {
            let status = execute(&id, &command, &console)
                .unwrap_or_else(|error| format!("could not start: {error}"));
            say(&console, &format!("{id}= {status}"))
        });
    }
    Ok(())
}

fn execute(id: &str, command: &str, console: &Console) -> io::Result<String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).split(b'\n') {
            say(console, &format!("{id}> {}", String::from_utf8_lossy(&line?)))?;
        }
    }
    let status = child.wait()?;
    Ok(status.code().map_or_else(|| "killed".to_string(), |code| code.to_string()))
}

/// One line is one write under one lock: lines of several commands never mix.
fn say(console: &Console, line: &str) -> io::Result<()> {
    let mut console = console.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    console.write_all(format!("{line}\n").as_bytes())
}
