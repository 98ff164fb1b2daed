//! The command line: one grammar, `noun verb`, and what each verb prints.
//!
//! Every verb takes `--json` and `--control`. Exit codes: 0 well, 1 usage, 2 "no" as an answer,
//! 3 degraded, 4 failed. Complaints go to standard error (with `--json`, as a document to standard
//! output): what happened, why, and what to do next.

mod ask;
mod disk;
mod manual;
mod output;
mod pool;
mod scrub;
mod serve;
mod status;

pub(crate) use serve::greet;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::control::api::{Complaint, Document, Kind, Problem};
use crate::control::client::Client;

/// Where the embedded pool is, from the folder the server was started in.
pub const EMBEDDED: &str = "bowline-data";

/// Virtual disks that are always consistent and outlive the processes that serve them.
#[derive(Debug, Parser)]
#[command(name = "bowline", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Bowline {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

const EXIT_CODES: &str = "\
Exit codes: 0 well, 1 usage, 2 the answer is no, 3 degraded, 4 failed.
Sizes: 512M, 10GiB (powers of 1024), 10GB (powers of 1000), or bytes.";

#[derive(Debug, Args)]
struct Common {
    /// The control socket of the server
    #[arg(long, global = true, value_name = "PATH", env = "BOWLINE_CONTROL")]
    control: Option<PathBuf>,
    /// Print one JSON document, versioned by its field output_version
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve a pool; without arguments an embedded one in ./bowline-data
    Serve(serve::Serve),
    /// Be a server of a family; its keeper starts it
    #[command(hide = true)]
    Server,
    /// Be the keeper of a family whose last one has died; the active server starts it
    #[command(hide = true)]
    Keeper,
    /// Pools: the file or device that disks live in
    #[command(subcommand)]
    Pool(pool::Pool),
    /// Disks
    #[command(subcommand)]
    Disk(disk::Disk),
    /// How the server, its pool and its disks are
    Status,
    /// Wait until the server is ready, or a scrub or a takeover is done
    Wait(status::Wait),
    /// Stop the server cleanly
    Stop,
    /// Print a completion script for a shell
    Completions(manual::Completions),
    /// Write manual pages and completions into a folder
    #[command(hide = true)]
    Manual(manual::Manual),
    /// Print the labels of the places where a test can make the server die
    #[command(hide = true)]
    FailPoints,
}

/// What a verb that ended without trouble has to say by its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Well,
    Degraded,
    Failed,
}

/// What a verb has to work with.
struct Context {
    client: Client,
    json: bool,
}

/// Reads the command line, carries it out, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let bowline = match Bowline::try_parse() {
        Ok(bowline) => bowline,
        Err(error) => {
            // Help and version are answers; everything else is a mistake of usage.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let common = bowline.common;
    let json = common.json;
    let context = Context { client: Client::new(control(common.control.as_deref())), json };
    match run(bowline.verb, common.control, &context) {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Degraded) => ExitCode::from(3),
        Ok(Outcome::Failed) => ExitCode::from(4),
        Err(problem) => {
            let code = problem.kind.exit_code();
            complain(problem, json);
            ExitCode::from(code)
        }
    }
}

fn run(verb: Verb, control: Option<PathBuf>, context: &Context) -> Result<Outcome, Problem> {
    match verb {
        Verb::Serve(serve) => serve.run(control),
        Verb::Server => serve::server(),
        Verb::Keeper => serve::keeper(),
        Verb::Pool(pool) => pool.run(context),
        Verb::Disk(disk) => disk.run(context),
        Verb::Status => status::status(context),
        Verb::Wait(wait) => wait.run(context),
        Verb::Stop => status::stop(context),
        Verb::Completions(completions) => completions.run(),
        Verb::Manual(manual) => manual.run(),
        Verb::FailPoints => fail_points(),
    }
}

/// What `BOWLINE_KILL_AT=LABEL:COUNT` may name.
fn fail_points() -> Result<Outcome, Problem> {
    let lines = bowline_arena::fail::labels().into_iter().map(|label| format!("{label}\n"));
    output::print(&lines.collect::<String>())?;
    Ok(Outcome::Well)
}

/// The socket that was named, or the embedded pool's, or the only one under /run/bowline.
fn control(named: Option<&std::path::Path>) -> PathBuf {
    if let Some(path) = named {
        return path.to_path_buf();
    }
    let embedded = PathBuf::from(EMBEDDED).join("control.sock");
    if embedded.exists() {
        return embedded;
    }
    let served = std::fs::read_dir("/run/bowline").into_iter().flatten().flatten();
    let mut sockets = served.map(|entry| entry.path().join("control.sock"));
    match (sockets.find(|socket| socket.exists()), sockets.any(|socket| socket.exists())) {
        (Some(only), false) => only,
        _ => embedded,
    }
}

fn complain(problem: Problem, json: bool) {
    if json {
        let _ = output::document(&Document::new(Complaint { error: problem }));
        return;
    }
    eprintln!("bowline: {problem}");
    if let Some(next) = &problem.next {
        eprintln!("  {next}");
    }
}

/// The problem of a command line that fits the grammar and makes no sense.
fn usage(what: impl Into<String>) -> Problem {
    Problem::new(Kind::Usage, what)
}
