//! The Bowline program: server, control plane and command line.
//!
//! - [`cli`] is the grammar and what each verb prints;
//! - [`control`] is the way from the command line, or any HTTP client, to a running server;
//! - [`server`] is the data thread and its border: what it is started with, what it is asked;
//! - [`offline`] is what is done to a pool that nobody serves.

pub mod cli;
pub mod control;
mod family;
pub mod logging;
pub mod metrics;
pub mod offline;
pub mod server;
pub mod size;
