//! Scrubs of a served pool: started, stopped, told of.

use std::time::{SystemTime, UNIX_EPOCH};

use bowline_store::{ScrubFinding, ScrubSeverity, ScrubState};

use super::data::Data;
use crate::control::api::{self, Kind, PoolStatus, Problem, Scrub, ScrubAction, ScrubStatus};

/// Bytes a second at most, if nobody says otherwise; a quarter of it while clients are at work.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// What has been told of scrubs, and when they were.
#[derive(Default)]
pub(super) struct ScrubNews {
    state: ScrubState,
    findings: u64,
    begun_at_seconds: Option<u64>,
    ended_at_seconds: Option<u64>,
}

fn seconds_now() -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.ok().map(|now| now.as_secs())
}

impl Data {
    pub(super) fn order_scrub(&mut self, order: Scrub) -> Result<PoolStatus, Problem> {
        let is_under_way = matches!(self.scrub.state, ScrubState::Running | ScrubState::Paused);
        let store = self.disks.store_mut();
        match order.action {
            ScrubAction::Start => {
                if order.rate_bytes_per_second == Some(0) {
                    let problem = Problem::new(Kind::Usage, "a scrub at rate 0 would never end");
                    return Err(problem.next("bowline pool scrub pause"));
                }
                store.start_scrub(order.rate_bytes_per_second.unwrap_or(BYTES_PER_SECOND));
            }
            _ if !is_under_way => return Err(Problem::new(Kind::No, "no scrub is under way")),
            ScrubAction::Pause => store.pause_scrub(),
            ScrubAction::Stop => store.stop_scrub(),
        }
        self.watch_scrub();
        Ok(self.pool_status())
    }

    /// Writes down what a scrub has found, and how it ended.
    pub(super) fn watch_scrub(&mut self) {
        let (state, findings) = self.disks.store().scrub_news();
        if (state, findings) == (self.scrub.state, self.scrub.findings) {
            return;
        }
        let status = self.disks.store().scrub();
        if findings < self.scrub.findings || self.scrub.begun_at_seconds.is_none() {
            self.scrub.findings = 0;
        }
        for found in status.findings.iter().skip(self.scrub.findings as usize) {
            let (severity, place) = (severity(found.severity).word(), self.place_of(found));
            let (what, remedy) = (&found.what, &found.remedy);
            tracing::warn!(severity, place, what, remedy, "a scrub found something");
        }
        if state != self.scrub.state {
            let was_paused = self.scrub.state == ScrubState::Paused;
            match state {
                ScrubState::Running if was_paused => tracing::info!("the scrub goes on"),
                ScrubState::Running => {
                    let rate = status.bytes_per_second_max;
                    tracing::info!(bytes_per_second_max = rate, "a scrub begins");
                }
                ScrubState::Paused => tracing::info!("the scrub is paused"),
                ScrubState::Stopped | ScrubState::Finished | ScrubState::Never => {
                    let word = scrub_state(state).word();
                    let (bytes, lost) = (status.verified_bytes, status.lost);
                    let seconds = status.elapsed_micros / 1_000_000;
                    tracing::info!(verified_bytes = bytes, findings, lost, seconds, "scrub {word}");
                }
            }
            match state {
                ScrubState::Running if was_paused => {}
                ScrubState::Running => {
                    self.scrub.begun_at_seconds = seconds_now();
                    self.scrub.ended_at_seconds = None;
                }
                ScrubState::Stopped | ScrubState::Finished => {
                    self.scrub.ended_at_seconds = seconds_now();
                }
                ScrubState::Paused | ScrubState::Never => {}
            }
        }
        (self.scrub.state, self.scrub.findings) = (state, findings);
    }

    /// Where a finding is, in words.
    fn place_of(&self, found: &ScrubFinding) -> String {
        let disk = found.disk.and_then(|id| self.disks.store().disk(id));
        let mut place = match (disk, found.lba) {
            (Some(disk), Some(lba)) => format!("disk {:?} block {lba}, ", disk.name),
            _ => String::new(),
        };
        if let Some(segment) = found.segment {
            place.push_str(&format!("segment {segment}, "));
        }
        match found.slot {
            Some(slot) => place.push_str(&format!("slot {slot}, block {}", found.block)),
            None => place.push_str(&format!("block {} of the pool", found.block)),
        }
        place
    }

    pub(super) fn scrub_status(&self) -> ScrubStatus {
        let status = self.disks.store().scrub();
        let finding = |found: &ScrubFinding| {
            let disk = found.disk.and_then(|id| self.disks.store().disk(id));
            api::ScrubFinding {
                severity: severity(found.severity),
                disk: disk.map(|disk| disk.name.clone()),
                offset_bytes: found.lba.map(|lba| lba.0 * bowline_store::BLOCK_BYTES),
                place: self.place_of(found),
                what: found.what.clone(),
                remedy: found.remedy.clone(),
            }
        };
        ScrubStatus {
            state: scrub_state(status.state),
            done_bytes: status.verified_bytes,
            total_bytes: status.verified_bytes + status.left_bytes,
            rate_bytes_per_second: status.bytes_per_second,
            rate_max_bytes_per_second: status.bytes_per_second_max,
            begun_at_seconds: self.scrub.begun_at_seconds,
            ended_at_seconds: self.scrub.ended_at_seconds,
            elapsed_seconds: status.elapsed_micros / 1_000_000,
            bad_blocks: status.findings_total(),
            lost: status.lost,
            harmless: status.harmless,
            repaired: status.repaired,
            findings: status.findings.iter().map(finding).collect(),
        }
    }
}

fn scrub_state(state: ScrubState) -> api::ScrubState {
    match state {
        ScrubState::Never => api::ScrubState::Never,
        ScrubState::Running => api::ScrubState::Running,
        ScrubState::Paused => api::ScrubState::Paused,
        ScrubState::Stopped => api::ScrubState::Cancelled,
        ScrubState::Finished => api::ScrubState::Finished,
    }
}

fn severity(severity: ScrubSeverity) -> api::ScrubSeverity {
    match severity {
        ScrubSeverity::Lost => api::ScrubSeverity::Lost,
        ScrubSeverity::Harmless => api::ScrubSeverity::Harmless,
        ScrubSeverity::Repaired => api::ScrubSeverity::Repaired,
    }
}
