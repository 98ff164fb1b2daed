//! Foreign programs: run to their end, with everything they said in the error if they failed.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// A command that finds Debian's tools first: some need Debian's own Python.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}"));
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program and gives its standard output.
///
/// # Errors
/// If it cannot be started (it is missing) or does not end with 0.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = output(program, arguments)?;
    if !output.status.success() {
        return Err(failure(program, arguments, &output).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, however it ends.
///
/// # Errors
/// If it cannot be started.
pub fn output(program: &str, arguments: &[&str]) -> Result<Output> {
    let run = command(program).args(arguments).output();
    run.map_err(|error| format!("{program}: {error}; `make tools` installs what is missing").into())
}

fn failure(program: &str, arguments: &[&str], output: &Output) -> String {
    format!(
        "{program} {} ended with {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Asks again and again until something is so.
///
/// # Errors
/// If it is not so within the limit, which is only there to end a broken run.
pub fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !is_so() {
        if started.elapsed() > limit {
            return Err(format!("{what}: not within {limit:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
