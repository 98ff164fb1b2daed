//! What the server tells: to a person on a terminal in words, to anything else as JSON lines.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

/// Sends events to standard error from here on. `BOWLINE_LOG` sets the level: error, warn, info
/// (the default), debug or trace.
pub fn start() {
    let asked = std::env::var("BOWLINE_LOG").ok();
    let level = asked.as_deref().map_or(Ok(LevelFilter::INFO), str::parse);
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(*level.as_ref().unwrap_or(&LevelFilter::INFO))
        .with_target(false);
    let started = if std::io::stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    if started.is_ok() && level.is_err() {
        tracing::warn!(asked, "BOWLINE_LOG is not a level; using info");
    }
}
