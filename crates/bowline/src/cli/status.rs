//! `bowline status`, `wait` and `stop`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::{Context, Outcome, disk, output, pool};
use crate::control::api::{Kind, PoolState, Problem, Process, ScrubState, ServerStatus, Stopped};
use crate::control::client::Method;
use crate::size::{Size, duration};

pub fn status(context: &Context) -> Result<Outcome, Problem> {
    let status: ServerStatus = context.client.get("/v1/status")?;
    let outcome = pool::outcome(status.state);
    output::answer(context.json, status, words)?;
    Ok(outcome)
}

fn words(status: &ServerStatus) -> String {
    let pid = |process: Option<Process>| {
        process.map_or_else(|| "none".to_string(), |process| process.pid.to_string())
    };
    let processes = &status.processes;
    let ready = if status.takeover.ready {
        "ready".to_string()
    } else {
        format!("not ready: {}", status.takeover.reason)
    };
    let mut text = output::fields(&[
        ("bowline", format!("{}, up {} s", status.version, status.uptime_seconds)),
        ("state", status.state.word().into()),
        ("active", pid(processes.active)),
        ("passive", pid(processes.passive)),
        ("keeper", pid(processes.keeper)),
        ("takeover", ready),
        ("medium by", status.medium.clone()),
        ("sockets by", status.sockets.clone()),
        ("memory", Size(status.memory_bytes).to_string()),
    ]);
    text.push_str(&output::conditions(&status.conditions));
    text.push('\n');
    text.push_str(&pool::words(&status.pool));
    text.push('\n');
    text.push_str(&disk::table(&status.disks));
    text
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// The server answers and takes writes
    Ready,
    /// No scrub runs
    Scrub,
    /// Another process can take over
    Takeover,
}

#[derive(Debug, Args)]
pub struct Wait {
    /// What to wait for
    #[arg(value_enum, default_value = "ready")]
    until: Until,
    /// For how long; the exit code is 2 if it was not long enough
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

impl Wait {
    /// Asks again and again: a server that is not there yet cannot call back.
    pub fn run(self, context: &Context) -> Result<Outcome, Problem> {
        let started = Instant::now();
        loop {
            let answer = context.client.get::<ServerStatus>("/v1/status");
            if let Ok(status) = &answer
                && self.is_over(status)
            {
                output::answer(context.json, answer?, |_| String::new())?;
                return Ok(Outcome::Well);
            }
            if self.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
                return Err(self.given_up(answer));
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn is_over(&self, status: &ServerStatus) -> bool {
        match self.until {
            Until::Ready => matches!(status.pool.state, PoolState::Well | PoolState::Degraded),
            Until::Scrub => {
                !matches!(status.pool.scrub.state, ScrubState::Running | ScrubState::Paused)
            }
            Until::Takeover => status.takeover.ready,
        }
    }

    fn given_up(&self, answer: Result<ServerStatus, Problem>) -> Problem {
        let why = match answer {
            Err(problem) => problem.to_string(),
            Ok(status) if self.until == Until::Takeover => status.takeover.reason,
            Ok(status) => format!("the pool is {}", status.pool.state.word()),
        };
        Problem::new(Kind::No, "the time is over").why(why)
    }
}

pub fn stop(context: &Context) -> Result<Outcome, Problem> {
    let nothing = serde_json::Map::new();
    let stopped: Stopped = context.client.request(Method::Post, "/v1/stop", &nothing)?;
    output::answer(context.json, stopped, |_| "stopped\n".into())?;
    Ok(Outcome::Well)
}
