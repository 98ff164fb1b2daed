//! The server: one data thread that opens a pool, listens, and turns requests into I/O.
//!
//! - [`config`] is what it is started with, [`command`] what the control plane asks of it;
//! - `open` brings it up, `data` is its loop, `answers` what the loop says to the control plane;
//! - `sockets` carries out what sessions want, by the ring or, where that is refused, by `poll`.

mod adopt;
mod answers;
pub mod command;
pub mod config;
mod data;
pub(crate) mod listen;
pub(crate) mod open;
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

use crate::family::Membership;

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
        let opened = open::open(&config, None)?;
        Ok(Server { data: Data::new(config, opened, None).map_err(|(problem, _)| problem)? })
    }

    /// Opens the pool as the active of a family: anew, or by taking over from the one before.
    ///
    /// # Errors
    /// As [`Server::open`], with the membership.
    pub(crate) fn open_in(
        config: ServeConfig,
        membership: Box<Membership>,
    ) -> Result<Server, (Problem, Option<Box<Membership>>)> {
        match open::open(&config, Some(&membership)) {
            Ok(opened) => Ok(Server { data: Data::new(config, opened, Some(membership))? }),
            Err(problem) => Err((problem, Some(membership))),
        }
    }

    /// Serves until it is told to stop, or until something fails that no state can express.
    ///
    /// # Errors
    /// What failed.
    pub fn run(self, commands: Commands) -> Result<(), Problem> {
        let mut data = self.data;
        loop {
            let (mut config, reply, mut membership) = match data.run(&commands)? {
                End::Stopped => return Ok(()),
                End::Reopen(config, reply, membership) => (config, reply, membership),
            };
            config.accept_loss = true;
            if let Some(membership) = &mut membership {
                membership.takes_over_since = None;
            }
            let opened = open::open(&config, membership.as_deref());
            let opened = opened.and_then(|opened| {
                Data::new(*config, opened, membership).map_err(|(problem, _)| problem)
            });
            match opened {
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
