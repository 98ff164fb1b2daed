//! The server: one data thread that opens a pool, listens, and turns requests into I/O.
//!
//! - [`config`] is what it is started with, [`command`] what the control plane asks of it;
//! - `open` brings it up, `data` is its loop, `answers` what the loop says to the control plane;
//! - `sockets` carries out what sessions want, by the ring or, where that is refused, by `poll`.

mod answers;
pub mod command;
pub mod config;
mod data;
mod listen;
mod open;
mod poll_sockets;
pub mod pool;
mod ring_sockets;
mod scrub;
mod sockets;
mod spin;
mod status;
mod tuning;
mod watch;

use crate::control::api::Problem;
use command::Commands;
use config::ServeConfig;
use data::{Data, End};

/// A pool that is open, adopted and listened for, ready to run.
pub struct Server {
    data: Data,
}

impl Server {
    /// Opens the pool, takes its lock, adopts its arena and binds its listeners.
    ///
    /// # Errors
    /// What is in the way, as a [`Problem`] for the operator; a pool that another server serves
    /// names its owner.
    pub fn open(config: ServeConfig) -> Result<Server, Problem> {
        let opened = open::open(&config)?;
        Ok(Server { data: Data::new(config, opened)? })
    }

    /// Serves until it is told to stop, or until something fails that no state can express.
    ///
    /// # Errors
    /// What failed.
    pub fn run(self, commands: Commands) -> Result<(), Problem> {
        let mut data = self.data;
        loop {
            let End::Reopen(mut config, reply) = data.run(&commands)? else { return Ok(()) };
            config.accept_loss = true;
            match open::open(&config).and_then(|opened| Data::new(*config, opened)) {
                Ok(opened) => data = opened,
                Err(problem) => {
                    reply.send(Err(problem.clone()));
                    return Err(problem);
                }
            }
            reply.send(Ok(data.pool_status()));
        }
    }
}
