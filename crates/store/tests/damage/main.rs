//! Damaged pools: never a panic, never wrong data, never silently cut off, and a clear verdict.

#![allow(clippy::unwrap_used)]

mod fixture;
mod hostile;
mod maintenance;
mod recoveries;
mod regions;
mod repairs;
mod scrubs;
mod space;
mod targets;
mod versions;
mod world;
