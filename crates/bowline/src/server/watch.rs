//! Writes down when the pool is not well, and when it is again: who reads the log has not asked for
//! the status.

use bowline_store::{Counters, Micros};

use super::data::Data;
use crate::control::api::Condition;

/// How long after something has happened the pool is looked at.
const INTERVAL_US: u64 = 1_000_000;

/// What has been written down.
#[derive(Default)]
pub(super) struct Watch {
    names: Vec<String>,
    counters: Counters,
    /// When to look again; none while nothing happens.
    pub due: Option<Micros>,
}

impl Data {
    /// Begins with what is so now, which whoever starts the server tells.
    pub(super) fn begin_watch(&mut self) {
        let status = self.disks.store().status();
        let (_, conditions) = self.conditions(&status);
        self.watch.names = conditions.into_iter().map(|one| one.name).collect();
        self.watch.counters = status.counters;
    }

    /// Looks at the pool if it is time, and writes down what is new.
    pub(super) fn watch_conditions(&mut self, was_active: bool, now: Micros) {
        match self.watch.due {
            None if was_active => self.watch.due = Some(Micros(now.0 + INTERVAL_US)),
            Some(due) if due <= now => {
                self.watch.due = None;
                let status = self.disks.store().status();
                let (_, conditions) = self.conditions(&status);
                self.watch.tell(&conditions);
                self.watch.tell_failures(status.counters);
            }
            _ => {}
        }
    }
}

impl Watch {
    fn tell(&mut self, conditions: &[Condition]) {
        let is_told = |name: &String| self.names.contains(name);
        for condition in conditions.iter().filter(|one| !is_told(&one.name)) {
            let Condition { name, meaning, doing, remedy } = condition;
            tracing::warn!(name, meaning, doing, remedy, "not well");
        }
        let is_there = |name: &&String| conditions.iter().any(|one| one.name == **name);
        for name in self.names.iter().filter(|name| !is_there(name)) {
            tracing::info!(name, "well again");
        }
        self.names = conditions.iter().map(|one| one.name.clone()).collect();
    }

    /// Failures of the medium that the pool has dealt with: they are no state, and still no good
    /// sign.
    fn tell_failures(&mut self, counters: Counters) {
        let before = std::mem::replace(&mut self.counters, counters);
        let unreadable = counters.read_errors - before.read_errors;
        let changed = counters.checksum_errors - before.checksum_errors;
        if unreadable + changed > 0 {
            let remedy = "run bowline pool scrub to learn which blocks of which disks";
            tracing::warn!(unreadable, changed, remedy, "reads of the medium failed");
        }
        let (retried, moved) =
            (counters.write_retries - before.write_retries, counters.heals - before.heals);
        if retried + moved > 0 {
            let remedy = "nothing was lost; look into the system's log for errors of the device";
            tracing::warn!(retried, moved, remedy, "writes of the log failed, and were repeated");
        }
    }
}
