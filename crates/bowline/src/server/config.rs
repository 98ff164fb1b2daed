//! What a server is started with, every default decided.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where NBD clients are expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// A TCP address: a host, by name or number, and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        let wrong = || format!("{text:?} is neither tcp:HOST:PORT nor unix:PATH");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Listen::Unix(path.into())),
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let port = port.parse().map_err(|_| wrong())?;
                if host.is_empty() { Err(wrong()) } else { Ok(Listen::Tcp(host.into(), port)) }
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Listen, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        listen.to_string()
    }
}

impl Listen {
    /// The URI of an export that is reached here.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Listen::Tcp(host, port) if host.contains(':') => {
                format!("nbd://[{host}]:{port}/{export}")
            }
            Listen::Tcp(host, port) => format!("nbd://{host}:{port}/{export}"),
            Listen::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Listen::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A pool that is made if it is not there, with one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embedded {
    /// The size of the pool's file, which is sparse.
    pub pool_bytes: u64,
    /// The name of its disk.
    pub disk: String,
    /// The size of its disk.
    pub disk_bytes: u64,
}

impl Default for Embedded {
    fn default() -> Embedded {
        Embedded { pool_bytes: 10 << 30, disk: "disk0".into(), disk_bytes: 8 << 30 }
    }
}

/// What a server is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeConfig {
    /// The pool: a file or a raw device.
    pub pool: PathBuf,
    /// How to make the pool if it is not there; `None`: it must be there.
    pub embedded: Option<Embedded>,
    /// Where NBD clients are expected.
    pub nbd: Vec<Listen>,
    /// The control socket.
    pub control: PathBuf,
    /// The folder of the arena; on tmpfs, so that it outlives the process and not the host.
    pub arena: PathBuf,
    /// How much memory the server uses, all processes together.
    pub memory_bytes: u64,
    /// Filters between the store and the medium, outermost first, as they were given.
    pub media_filters: Vec<String>,
    /// Whether to go on although acknowledged writes were lost.
    pub accept_loss: bool,
}

/// Default for [`ServeConfig::memory_bytes`].
pub const MEMORY_BYTES: u64 = 200 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_printed_and_named() {
        for (text, uri) in [
            ("tcp:127.0.0.1:10809", "nbd://127.0.0.1:10809/d"),
            ("tcp:[::1]:10809", "nbd://[::1]:10809/d"),
            ("tcp:localhost:1", "nbd://localhost:1/d"),
            ("unix:a/b.sock", "nbd+unix:///d?socket=a/b.sock"),
        ] {
            let listen: Listen = text.parse().unwrap();
            assert_eq!(listen.to_string(), text);
            assert_eq!(listen.uri("d"), uri);
        }
        for text in ["", "tcp:", "tcp:1", "tcp::10809", "tcp:a:b", "unix:", "udp:a:1", "a.sock"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
