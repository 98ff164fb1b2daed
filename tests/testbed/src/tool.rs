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

/// Runs a program to its end, however it ends. A tool that hangs ends the test, with its name.
///
/// # Errors
/// If it cannot be started, or does not end.
pub fn output(program: &str, arguments: &[&str]) -> Result<Output> {
    let mut timed = command("timeout");
    timed.args(["--kill-after=5", &LIMIT_SECONDS.to_string(), program]);
    let output = timed.args(arguments).output()?;
    match output.status.code() {
        Some(124 | 137) => {
            Err(format!("{program} {} hangs: not done in {LIMIT_SECONDS} s", arguments.join(" "))
                .into())
        }
        Some(126 | 127) => {
            Err(format!("{program} cannot be run; `make tools` installs what is missing").into())
        }
        _ => Ok(output),
    }
}

/// Far more than any tool takes here.
const LIMIT_SECONDS: u32 = 90;

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
