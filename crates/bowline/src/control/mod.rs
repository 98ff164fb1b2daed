//! The control plane: HTTP over a Unix socket, JSON in and out, metrics for Prometheus.
//!
//! [`api`] is the vocabulary, the same for HTTP, command line and metrics; [`service`] is the
//! server's side, on a thread of its own; [`client`] is the asking side.

pub mod api;
pub mod client;
pub mod service;
