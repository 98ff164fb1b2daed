//! `bowline pool scrub`

use std::io::{IsTerminal, Write};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::{Context, Outcome, output, usage};
use crate::control::api::{self, Kind, PoolStatus, Problem, ScrubAction, ScrubState, ScrubStatus};
use crate::control::client::Method;
use crate::size::Size;

/// How often a scrub that is waited for is asked about.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How often its progress is told where no terminal is.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Findings printed; `--json` has a hundred.
const FINDINGS_SHOWN: usize = 10;

#[derive(Debug, Args)]
pub struct Scrub {
    /// What to do
    #[arg(value_enum, default_value = "start")]
    action: ScrubAction,
    /// Bytes a second at most; while clients are at work a quarter of it (64M)
    #[arg(long, value_name = "SIZE")]
    rate: Option<Size>,
    /// Wait for its end and say how far it is; the exit code is 0 if nothing was found, 3 if
    /// nothing is lost by what was found, 4 if data is, and 2 if it was stopped
    #[arg(long)]
    wait: bool,
}

impl Scrub {
    pub fn run(self, context: &Context) -> Result<Outcome, Problem> {
        if self.wait && self.action != ScrubAction::Start {
            return Err(usage("only a scrub that is started can be waited for"));
        }
        let rate_bytes_per_second = self.rate.map(|rate| rate.0);
        let order = api::Scrub { action: self.action, rate_bytes_per_second };
        let path = "/v1/pool/scrub";
        let mut pool: PoolStatus = context.client.request(Method::Post, path, &order)?;
        if self.wait {
            pool = wait(context, pool)?;
        }
        let outcome = if self.wait { outcome(&pool.scrub)? } else { Outcome::Well };
        output::answer(context.json, pool, |pool| {
            format!("scrub: {}\n{}", words(&pool.scrub), findings(&pool.scrub))
        })?;
        Ok(outcome)
    }
}

/// Asks again and again until the scrub is over, and tells how far it is.
fn wait(context: &Context, mut pool: PoolStatus) -> Result<PoolStatus, Problem> {
    let is_terminal = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    while matches!(pool.scrub.state, ScrubState::Running | ScrubState::Paused) {
        if is_terminal {
            eprint!("\r\x1b[K{}", words(&pool.scrub));
            let _ = std::io::stderr().flush();
        } else if told.elapsed() >= TELL_AGAIN {
            told = Instant::now();
            eprintln!("{}", words(&pool.scrub));
        }
        sleep(ASK_AGAIN);
        pool = context.client.get("/v1/pool")?;
    }
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    Ok(pool)
}

fn outcome(scrub: &ScrubStatus) -> Result<Outcome, Problem> {
    match (scrub.state, scrub.lost, scrub.bad_blocks) {
        (ScrubState::Finished, 0, 0) => Ok(Outcome::Well),
        (ScrubState::Finished, 0, _) => Ok(Outcome::Degraded),
        (ScrubState::Finished, ..) => Ok(Outcome::Failed),
        _ => {
            let problem = Problem::new(Kind::No, "the scrub was stopped before its end");
            Err(problem.next("bowline pool scrub --wait begins a new one"))
        }
    }
}

/// A scrub in words: what is done of what, how fast, and until when if that can be told.
pub fn words(scrub: &ScrubStatus) -> String {
    let state = match scrub.state {
        ScrubState::Never => return "none since the server started".into(),
        ScrubState::Running => "running",
        ScrubState::Paused => "paused",
        ScrubState::Cancelled => "stopped early",
        ScrubState::Finished => "finished",
    };
    let mut text = format!(
        "{state}, {} of {} ({}), {} bad blocks",
        Size(scrub.done_bytes),
        Size(scrub.total_bytes),
        output::percent(scrub.done_bytes, scrub.total_bytes),
        scrub.bad_blocks
    );
    if scrub.bad_blocks > 0 {
        let (lost, harmless, repaired) = (scrub.lost, scrub.harmless, scrub.repaired);
        text.push_str(&format!(" ({lost} lost, {harmless} harmless, {repaired} repaired)"));
    }
    match scrub.state {
        ScrubState::Running => {
            let left = scrub.total_bytes.saturating_sub(scrub.done_bytes);
            let eta = match left.checked_div(scrub.rate_bytes_per_second) {
                Some(seconds) => format!("about {}", coarse(seconds)),
                None => "unknown".into(),
            };
            let rate = Size(scrub.rate_bytes_per_second);
            text.push_str(&format!(", {rate}/s, time left: {eta}"));
        }
        ScrubState::Finished | ScrubState::Cancelled => {
            text.push_str(&format!(", after {}", coarse(scrub.elapsed_seconds)));
            if let Some(passed) = scrub.ended_at_seconds.and_then(seconds_since) {
                text.push_str(&format!(", {} ago", coarse(passed)));
            }
        }
        ScrubState::Never | ScrubState::Paused => {}
    }
    text
}

/// What was found, the first of it.
pub fn findings(scrub: &ScrubStatus) -> String {
    let mut text = String::new();
    for found in scrub.findings.iter().take(FINDINGS_SHOWN) {
        let (word, place) = (found.severity.word(), &found.place);
        let (what, remedy) = (&found.what, &found.remedy);
        text.push_str(&format!("  {word}: {place}: {what}\n    {remedy}\n"));
    }
    let more = scrub.bad_blocks.saturating_sub(FINDINGS_SHOWN as u64);
    if more > 0 {
        text.push_str(&format!("  and {more} more; --json lists up to a hundred\n"));
    }
    text
}

fn seconds_since(then: u64) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.as_secs().checked_sub(then)
}

fn coarse(seconds: u64) -> String {
    match seconds {
        0..=90 => format!("{seconds} s"),
        91..=5400 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}
