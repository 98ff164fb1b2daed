//! What is wrong, for a person and for a script: what, why, and what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of trouble, by what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// The request makes no sense as it stands.
    Usage,
    /// There is no such thing.
    NotFound,
    /// There is one already.
    Exists,
    /// Somebody else has it, or it is not the time.
    Busy,
    /// The answer is no.
    No,
    /// It works with restrictions.
    Degraded,
    /// It failed.
    Failed,
}

impl Kind {
    /// The exit code of a command that ends with it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 1,
            Kind::No | Kind::NotFound => 2,
            Kind::Degraded => 3,
            Kind::Exists | Kind::Busy | Kind::Failed => 4,
        }
    }

    /// The status of an HTTP answer that carries it.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Kind::Usage => 400,
            Kind::NotFound => 404,
            Kind::Exists | Kind::Busy | Kind::No => 409,
            Kind::Degraded => 503,
            Kind::Failed => 500,
        }
    }
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The kind.
    pub kind: Kind,
    /// What happened, with the object's name.
    pub what: String,
    /// The cause, if it is known.
    pub why: Option<String>,
    /// What to do next, if something can be done.
    pub next: Option<String>,
}

impl Problem {
    /// A problem without cause and remedy.
    pub fn new(kind: Kind, what: impl Into<String>) -> Problem {
        Problem { kind, what: what.into(), why: None, next: None }
    }

    /// The same with its cause.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Problem {
        self.why = Some(why.into());
        self
    }

    /// The same with its remedy.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Problem {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// A state that is not well: what it means, what is being done, what is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// A stable word, for scripts: `space-low`, `takeover-not-ready`, `lost-writes`, ...
    pub name: String,
    /// What it means for the guests.
    pub meaning: String,
    /// What the system is doing about it.
    pub doing: String,
    /// What the operator must do; empty if nothing.
    pub remedy: String,
}
