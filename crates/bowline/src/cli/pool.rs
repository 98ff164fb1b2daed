//! `bowline pool ...`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Context, Outcome, ask, output, scrub, usage};
use crate::control::api::{
    CheckReport, Finding, GrowPool, PoolState, PoolStatus, Problem, Resume, Verdict,
};
use crate::control::client::Method;
use crate::offline;
use crate::size::Size;

#[derive(Debug, Subcommand)]
pub enum Pool {
    /// Make a pool in a file or on a raw device
    Create(Create),
    /// Read a pool that nobody serves through to the last block, and give a verdict
    Check(Check),
    /// How the pool is and where its space went
    Status,
    /// Verify every block while the pool is in use
    Scrub(scrub::Scrub),
    /// Use more space: what the file or device has now, or a new size for the file
    Grow(Grow),
    /// Write again after an error of the medium was dealt with
    Resume(ResumeArguments),
    /// Say what a repair would do; with --yes, do it
    Repair(RepairArguments),
}

#[derive(Debug, Args)]
pub struct Create {
    /// The file or device
    path: PathBuf,
    /// The size of the file; a device is used whole
    #[arg(long)]
    size: Option<Size>,
    /// Take the space of the file now, not as it is written
    #[arg(long)]
    preallocate: bool,
    /// Overwrite without asking what is there
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub struct Check {
    /// The file or device
    path: PathBuf,
}

#[derive(Debug, Args)]
pub struct Grow {
    /// The new size of the file
    #[arg(long)]
    size: Option<Size>,
}

#[derive(Debug, Args)]
pub struct ResumeArguments {
    /// Go on although acknowledged writes were lost
    #[arg(long)]
    accept_loss: bool,
}

#[derive(Debug, Args)]
pub struct RepairArguments {
    /// The file or device of a pool that nobody serves
    path: PathBuf,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Go on although acknowledged writes were lost with the arena
    #[arg(long)]
    accept_loss: bool,
}

impl Pool {
    pub fn run(self, context: &Context) -> Result<Outcome, Problem> {
        let client = &context.client;
        let status: PoolStatus = match self {
            Pool::Create(create) => return create.run(context),
            Pool::Check(check) => return check.run(context),
            Pool::Repair(repair) => return repair.run(context),
            Pool::Status => client.get("/v1/pool")?,
            Pool::Scrub(arguments) => return arguments.run(context),
            Pool::Grow(arguments) => {
                let order = GrowPool { size_bytes: arguments.size.map(|size| size.0) };
                client.request(Method::Post, "/v1/pool/grow", &order)?
            }
            Pool::Resume(arguments) => {
                let order = Resume { accept_loss: arguments.accept_loss };
                client.request(Method::Post, "/v1/pool/resume", &order)?
            }
        };
        let outcome = outcome(status.state);
        output::answer(context.json, status, words)?;
        Ok(outcome)
    }
}

/// The exit code that goes with a state.
pub fn outcome(state: PoolState) -> Outcome {
    if state == PoolState::Well { Outcome::Well } else { Outcome::Degraded }
}

/// A pool in words.
pub fn words(pool: &PoolStatus) -> String {
    let space = &pool.space;
    let share = output::percent(space.physical_bytes, pool.size_bytes);
    let taken = format!("{} of {} ({share})", Size(space.physical_bytes), Size(pool.size_bytes));
    let mut text = output::fields(&[
        ("pool", pool.path.clone()),
        ("state", pool.state.word().into()),
        ("allocation", pool.allocation.word().into()),
        ("physical", taken),
        ("logical", Size(space.logical_bytes).to_string()),
        ("mapped", Size(space.mapped_bytes).to_string()),
        ("shared", Size(space.shared_bytes).to_string()),
        ("reclaimable", Size(space.reclaimable_bytes).to_string()),
        ("pending free", Size(space.pending_free_bytes).to_string()),
        ("tables", Size(pool.tables_bytes).to_string()),
        ("scrub", scrub::words(&pool.scrub)),
    ]);
    text.push_str(&scrub::findings(&pool.scrub));
    text.push_str(&output::conditions(&pool.conditions));
    text
}

impl Create {
    fn run(self, context: &Context) -> Result<Outcome, Problem> {
        let path = self.path.display();
        offline::must_not_be_in_use(&self.path)?;
        if let Some(found) = offline::signature(&self.path)? {
            let what = format!("{path} holds {found}, which would be overwritten");
            let word = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
            ask::typed(&what, &word, self.yes)?;
        }
        let is_device = offline::is_device(&self.path);
        if self.size.is_some() && is_device {
            return Err(usage("a device is used whole").next("leave --size out"));
        }
        if self.size.is_none() && !is_device && !self.path.exists() {
            return Err(usage(format!("how large is {path} to be?")).next("add --size 10G"));
        }
        let order = offline::Create {
            path: self.path,
            size_bytes: self.size.map(|size| size.0),
            preallocate: self.preallocate,
        };
        let created = offline::create(&order)?;
        output::answer(context.json, created, |created| {
            let size = Size(created.size_bytes);
            format!("{} is a pool of {size}\nbowline serve --pool {0}\n", created.path)
        })?;
        Ok(Outcome::Well)
    }
}

impl Check {
    fn run(self, context: &Context) -> Result<Outcome, Problem> {
        offline::must_not_be_in_use(&self.path)?;
        let report = offline::check(&self.path)?;
        let outcome = match report.verdict {
            Verdict::Sound => Outcome::Well,
            Verdict::Repairable => Outcome::Degraded,
            Verdict::Damaged => Outcome::Failed,
        };
        output::answer(context.json, report, report_words)?;
        Ok(outcome)
    }
}

fn report_words(report: &CheckReport) -> String {
    let verdict = match report.verdict {
        Verdict::Sound => "sound: every block is what was written",
        Verdict::Repairable => "repairable: all data is there, something beside it needs repair",
        Verdict::Damaged => "damaged: data is missing or wrong",
    };
    let mut text = findings(&report.findings);
    text.push_str(&output::fields(&[
        ("pool", report.path.clone()),
        ("looked at", format!("{} slots, {} segments", report.slots, report.segments)),
        ("disks", report.disks.to_string()),
        ("verified", Size(report.verified_bytes).to_string()),
        ("last write", report.sequence_last.to_string()),
        (
            "closed",
            if report.is_clean { "in good order" } else { "not; its log is replayed" }.into(),
        ),
        ("verdict", verdict.into()),
    ]));
    text
}

fn findings(findings: &[Finding]) -> String {
    let line =
        |finding: &Finding| format!("{}: {}\n  {}\n", finding.place, finding.what, finding.remedy);
    findings.iter().map(line).collect()
}

impl RepairArguments {
    fn run(self, context: &Context) -> Result<Outcome, Problem> {
        offline::must_not_be_in_use(&self.path)?;
        let order = offline::Repair { apply: self.yes, accept_loss: self.accept_loss };
        let report = offline::repair(&self.path, order)?;
        output::answer(context.json, report, |report| {
            let end = match (report.findings.is_empty(), report.applied) {
                (true, _) => "nothing can be repaired, or needs to be\n",
                (false, true) => "repaired\n",
                (false, false) => "nothing was changed; --yes does it\n",
            };
            findings(&report.findings) + end
        })?;
        Ok(Outcome::Well)
    }
}
