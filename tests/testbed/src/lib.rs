//! What the tests and the demo share.
//!
//! - [`server`] starts Bowline or one of its peers, and kills it as a crash would;
//! - [`nbd`] is a client of our own, small enough to be trusted as a judge;
//! - [`history`] remembers what clients were told, and judges what is found afterwards;
//! - [`device`] gives raw devices;
//! - [`guest`] boots Linux in QEMU and runs commands in it;
//! - [`replay`] rebuilds crash states of a pool that a guest worked on, and judges them;
//! - [`story`] is the demo: a guest that lives through the death of its disk server;
//! - [`tool`] runs foreign programs;
//! - [`writer`] is a client that remembers what it was told.

pub mod device;
pub mod guest;
pub mod history;
pub mod nbd;
pub mod replay;
pub mod server;
pub mod story;
pub mod tool;
pub mod writer;

/// What can go wrong here is for a person to read.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The root of the repository.
#[must_use]
pub fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
