//! Filters as people write them.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Kind, Which};

/// A filter to be put on a medium.
#[derive(Debug, Clone, PartialEq)]
pub enum FilterSpec {
    /// [`delay`](super::delay).
    Delay {
        /// All kinds if none.
        kind: Option<Kind>,
        /// By how much.
        delay: Duration,
    },
    /// [`Errors`](super::Errors).
    Error {
        /// All kinds if none.
        kind: Option<Kind>,
        /// Which of them.
        which: Which,
    },
    /// [`rate`](super::rate).
    Rate {
        /// Bytes a second.
        bytes_per_second: u64,
    },
    /// [`Log`](super::Log).
    Log {
        /// The file.
        path: PathBuf,
    },
    /// [`StatisticsFilter`](super::StatisticsFilter).
    Statistics,
    /// [`Volatile`](super::Volatile).
    Volatile,
    /// [`DataLess`](super::DataLess).
    DataLess {
        /// The file of what stands for blocks.
        path: PathBuf,
    },
}

/// Why a filter cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// There is no such filter.
    #[error(
        "there is no media filter called {0}; there are delay, flush-delay, error, rate, log, \
         statistics, volatile and data-less"
    )]
    Unknown(String),
    /// What stands behind the name makes no sense.
    #[error("media filter {filter}: {value} is not {wanted}")]
    Value {
        /// The filter.
        filter: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        wanted: &'static str,
    },
    /// The log cannot be opened.
    #[error("media filter log: cannot open {path}: {cause}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file of a filter `data-less` cannot be opened.
    #[error("media filter data-less: cannot open {path}: {cause}")]
    DataLess {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Memory is short.
    #[error("media filter volatile: no page is free")]
    NoPage,
}

impl FromStr for FilterSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<FilterSpec, SpecError> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match name {
            "delay" => {
                let (kind, time) = kind_of(value);
                Ok(FilterSpec::Delay { kind, delay: duration("delay", time)? })
            }
            "flush-delay" => {
                let delay = duration("flush-delay", value)?;
                Ok(FilterSpec::Delay { kind: Some(Kind::Flush), delay })
            }
            "error" => {
                let (kind, which) = kind_of(value);
                Ok(FilterSpec::Error { kind, which: which_of(which)? })
            }
            "rate" => Ok(FilterSpec::Rate { bytes_per_second: rate(value)? }),
            "log" if !value.is_empty() => Ok(FilterSpec::Log { path: PathBuf::from(value) }),
            "log" => Err(wrong("log", value, "the name of a file")),
            "data-less" if !value.is_empty() => {
                Ok(FilterSpec::DataLess { path: PathBuf::from(value) })
            }
            "data-less" => Err(wrong("data-less", value, "the name of a file")),
            "statistics" if value.is_empty() => Ok(FilterSpec::Statistics),
            "volatile" if value.is_empty() => Ok(FilterSpec::Volatile),
            _ => Err(SpecError::Unknown(text.to_owned())),
        }
    }
}

fn wrong(filter: &'static str, value: &str, wanted: &'static str) -> SpecError {
    SpecError::Value { filter, value: value.to_owned(), wanted }
}

/// Splits `KIND:rest`; what names no kind is all rest.
fn kind_of(value: &str) -> (Option<Kind>, &str) {
    let named = value.split_once(':').and_then(|(name, rest)| {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name)?;
        Some((Some(kind), rest))
    });
    named.unwrap_or((None, value))
}

/// Splits a number from its unit.
fn number_of(value: &str) -> Option<(f64, &str)> {
    let end = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let number = value[..end].parse::<f64>().ok()?;
    Some((number, &value[end..]))
}

fn duration(filter: &'static str, value: &str) -> Result<Duration, SpecError> {
    let seconds = number_of(value).and_then(|(number, unit)| match unit {
        "us" => Some(number / 1e6),
        "ms" => Some(number / 1e3),
        "s" => Some(number),
        _ => None,
    });
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| wrong(filter, value, "a time such as 200us, 2ms or 1s"))
}

fn rate(value: &str) -> Result<u64, SpecError> {
    let bytes = number_of(value).and_then(|(number, unit)| match unit {
        "" => Some(number),
        "K" => Some(number * 1024.0),
        "M" => Some(number * 1024.0 * 1024.0),
        "G" => Some(number * 1024.0 * 1024.0 * 1024.0),
        _ => None,
    });
    match bytes.map(|bytes| bytes as u64) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(wrong("rate", value, "a number of bytes a second such as 500K, 100M or 1G")),
    }
}

fn which_of(value: &str) -> Result<Which, SpecError> {
    let error = || wrong("error", value, "a part such as 0.01 or 0.01@7, or a number such as #3");
    if let Some(number) = value.strip_prefix('#') {
        let number = number.parse().ok().filter(|number| *number > 0);
        return number.map(Which::Number).ok_or_else(error);
    }
    let (part, seed) = value.split_once('@').unwrap_or((value, "0"));
    let part = part.parse().ok().filter(|part| (0.0..=1.0).contains(part)).ok_or_else(error)?;
    Ok(Which::Part { part, seed: seed.parse().map_err(|_| error())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_understood() {
        let ms = |ms| Duration::from_millis(ms);
        let cases = [
            ("flush-delay=2ms", FilterSpec::Delay { kind: Some(Kind::Flush), delay: ms(2) }),
            ("delay=read:1ms", FilterSpec::Delay { kind: Some(Kind::Read), delay: ms(1) }),
            ("delay=0.5s", FilterSpec::Delay { kind: None, delay: ms(500) }),
            ("delay=3000us", FilterSpec::Delay { kind: None, delay: ms(3) }),
            (
                "error=write:0.01",
                FilterSpec::Error {
                    kind: Some(Kind::Write),
                    which: Which::Part { part: 0.01, seed: 0 },
                },
            ),
            (
                "error=1@7",
                FilterSpec::Error { kind: None, which: Which::Part { part: 1.0, seed: 7 } },
            ),
            (
                "error=flush:#3",
                FilterSpec::Error { kind: Some(Kind::Flush), which: Which::Number(3) },
            ),
            ("rate=1.5K", FilterSpec::Rate { bytes_per_second: 1536 }),
            ("rate=100M", FilterSpec::Rate { bytes_per_second: 100 << 20 }),
            ("log=some/file", FilterSpec::Log { path: PathBuf::from("some/file") }),
            ("statistics", FilterSpec::Statistics),
            ("volatile", FilterSpec::Volatile),
            ("data-less=some/file", FilterSpec::DataLess { path: PathBuf::from("some/file") }),
        ];
        for (text, spec) in cases {
            assert_eq!(text.parse::<FilterSpec>().ok(), Some(spec), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_remedy() {
        let cases = [
            ("", "there are delay"),
            ("lag=1ms", "there are delay"),
            ("volatile=1", "there are delay"),
            ("delay=", "a time such as"),
            ("delay=5", "a time such as"),
            ("delay=wriet:5ms", "a time such as"),
            ("delay=9999999999999999999999s", "a time such as"),
            ("error=2", "a part such as"),
            ("error=NaN", "a part such as"),
            ("error=#0", "a part such as"),
            ("error=0.1@x", "a part such as"),
            ("rate=0", "a number of bytes"),
            ("rate=1Q", "a number of bytes"),
            ("log=", "the name of a file"),
            ("data-less", "the name of a file"),
        ];
        for (text, remedy) in cases {
            let message = text.parse::<FilterSpec>().err().map(|error| error.to_string());
            assert!(message.as_ref().is_some_and(|m| m.contains(remedy)), "{text}: {message:?}");
        }
    }
}
