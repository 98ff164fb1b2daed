//! The server: one data thread that opens a pool, listens, and turns requests into I/O.
//!
//! [`config`] is what it is started with, [`command`] what the control plane asks of it.

pub mod command;
pub mod config;

use crate::control::api::{Kind, Problem};
use command::Commands;
use config::ServeConfig;

/// A pool that is open, adopted and listened for, ready to run.
pub struct Server {
    _config: ServeConfig,
}

impl Server {
    /// Opens the pool, takes its lock, adopts its arena and binds its listeners.
    ///
    /// # Errors
    /// What is in the way, as a [`Problem`] for the operator; a pool that another server serves
    /// names its owner.
    pub fn open(config: ServeConfig) -> Result<Server, Problem> {
        let problem = Problem::new(Kind::Failed, "this build cannot serve")
            .why("its data thread is not part of it");
        let _ = config;
        Err(problem)
    }

    /// Serves until it is told to stop, or until something fails that no state can express.
    ///
    /// # Errors
    /// What failed.
    pub fn run(self, commands: Commands) -> Result<(), Problem> {
        drop(commands);
        Ok(())
    }
}
