//! What Prometheus reads: the same numbers as `status --json`, under names that stay.
//!
//! Names are `bowline_<noun>_<what>_<unit>`, counters end in `_total`. The text is made anew from
//! one status for every scrape; nothing is counted here.

use std::fmt::Write;

use crate::control::api::{DiskStatus, Latency, PoolState, ScrubState, ScrubStatus, ServerStatus};

/// The type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Classes of a histogram, always as many: up to a minute.
const LATENCY_CLASSES: u32 = 27;

#[derive(Clone, Copy)]
enum Shape {
    Gauge,
    Counter,
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP bowline_{name} {help}");
        let _ = writeln!(self.0, "# TYPE bowline_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.0, "bowline_{name}");
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn one(&mut self, shape: Shape, name: &str, help: &str, value: u64) {
        self.head(name, shape.word(), help);
        self.sample(name, &[], value);
    }

    fn disks(
        &mut self,
        (shape, name, help): (Shape, &str, &str),
        disks: &[DiskStatus],
        value: impl Fn(&DiskStatus) -> u64,
    ) {
        self.head(name, shape.word(), help);
        for disk in disks {
            self.sample(name, &[("disk", &disk.name)], value(disk));
        }
    }

    fn latency(
        &mut self,
        (name, help): (&str, &str),
        disks: &[DiskStatus],
        value: impl Fn(&DiskStatus) -> &Latency,
    ) {
        self.head(name, "histogram", help);
        for disk in disks {
            let (latency, mut count) = (value(disk), 0);
            let mut numbers = latency.below_power_of_two_us.iter();
            for power in 0..LATENCY_CLASSES {
                count += numbers.next().copied().unwrap_or_default();
                let below = (1u64 << power) as f64 / 1e6;
                let labels = [("disk", disk.name.as_str()), ("le", &below.to_string())];
                self.sample(&format!("{name}_bucket"), &labels, count);
            }
            count += numbers.sum::<u64>();
            let all = [("disk", disk.name.as_str()), ("le", "+Inf")];
            self.sample(&format!("{name}_bucket"), &all, count);
            let seconds = latency.sum_us as f64 / 1e6;
            self.sample(&format!("{name}_sum"), &all[..1], seconds);
            self.sample(&format!("{name}_count"), &all[..1], count);
        }
    }
}

impl Shape {
    fn word(self) -> &'static str {
        match self {
            Shape::Gauge => "gauge",
            Shape::Counter => "counter",
        }
    }
}

use Shape::{Counter, Gauge};

/// The page for one status.
#[must_use]
pub fn text(status: &ServerStatus) -> String {
    let mut page = Page(String::with_capacity(8192));
    server(&mut page, status);
    pool(&mut page, status);
    disks(&mut page, &status.disks);
    page.0
}

fn server(page: &mut Page, status: &ServerStatus) {
    page.head("server_version_info", "gauge", "The program's version; always 1.");
    page.sample("server_version_info", &[("version", &status.version)], 1);
    let uptime = status.uptime_seconds;
    page.one(Gauge, "server_uptime_seconds", "Seconds since the server started.", uptime);
    let memory = status.memory_bytes;
    page.one(Gauge, "server_memory_bytes", "Memory of all processes.", memory);
    let buffers = status.buffers;
    page.one(Gauge, "server_buffers_bytes", "Buffers in the arena.", buffers.bytes);
    page.one(Gauge, "server_buffers_used_bytes", "Those in use.", buffers.used_bytes);
    let help = "Those that connections hold.";
    page.one(Gauge, "server_buffers_connections_bytes", help, buffers.connections_bytes);
    let stall = status.stall_max_us as f64 / 1e6;
    page.head("server_stall_max_seconds", "gauge", "Longest stall of the data thread.");
    page.sample("server_stall_max_seconds", &[], stall);
    let help = "Turns of the data thread's loop.";
    page.one(Counter, "server_loop_operations_total", help, status.turns);
    let ready = u64::from(status.takeover.ready);
    page.one(Gauge, "takeover_ready_info", "1 if another process can take over at once.", ready);
    page.head("export_connections_count", "gauge", "Connections now.");
    for export in &status.exports {
        let labels = [("protocol", export.protocol.as_str()), ("address", &export.address)];
        page.sample("export_connections_count", &labels, export.connections);
    }
    page.head("export_connections_opened_count_total", "counter", "Connections ever opened.");
    for export in &status.exports {
        let labels = [("protocol", export.protocol.as_str()), ("address", &export.address)];
        page.sample("export_connections_opened_count_total", &labels, export.connections_opened);
    }
}

fn pool(page: &mut Page, status: &ServerStatus) {
    let (pool, space, count) = (&status.pool, &status.pool.space, &status.pool.counters);
    page.head("pool_state_info", "gauge", "1 for the state that the pool is in.");
    for state in PoolState::ALL {
        let labels = [("state", state.word())];
        page.sample("pool_state_info", &labels, u64::from(pool.state == state));
    }
    page.one(Gauge, "pool_size_bytes", "Size of the file or device.", pool.size_bytes);
    for (name, help, value) in [
        ("pool_logical_bytes", "Sum of the sizes of the disks.", space.logical_bytes),
        ("pool_mapped_bytes", "What the disks hold.", space.mapped_bytes),
        ("pool_shared_bytes", "Stored once for several.", space.shared_bytes),
        ("pool_physical_bytes", "Taken on the medium.", space.physical_bytes),
        ("pool_reclaimable_bytes", "What compaction can give back.", space.reclaimable_bytes),
        ("pool_pending_free_bytes", "Free after a checkpoint.", space.pending_free_bytes),
        ("pool_tables_bytes", "Memory for live bits and directories.", pool.tables_bytes),
        ("scrub_done_bytes", "Verified by the present scrub.", pool.scrub.done_bytes),
        ("scrub_to_verify_bytes", "To verify in all.", pool.scrub.total_bytes),
        ("scrub_bad_blocks", "Blocks that are not what was written.", pool.scrub.bad_blocks),
        ("scrub_rate_bytes", "Verified a second.", pool.scrub.rate_bytes_per_second),
        ("scrub_run_seconds", "How long it runs, or ran.", pool.scrub.elapsed_seconds),
    ] {
        page.one(Gauge, name, help, value);
    }
    scrub(page, &pool.scrub);
    for (name, help, value) in [
        ("log_batches_operations_total", "Batches written to the log.", count.log_batches),
        ("log_written_bytes_total", "Written to the log.", count.log_bytes),
        ("map_written_bytes_total", "Map pages and tables written.", count.map_bytes),
        ("compaction_moved_bytes_total", "Moved by compaction.", count.compaction_bytes),
        ("checkpoint_written_operations_total", "Checkpoints written.", count.checkpoints),
        ("media_flush_operations_total", "Flushes of the medium.", count.media_flushes),
        ("media_error_operations_total", "Failed by the medium.", count.media_errors),
        ("checksum_error_blocks_total", "Not what was written.", count.checksum_errors),
    ] {
        page.one(Counter, name, help, value);
    }
}

fn scrub(page: &mut Page, scrub: &ScrubStatus) {
    page.head("scrub_state_info", "gauge", "1 for the state that the scrub is in.");
    for state in ScrubState::ALL {
        let is_in = u64::from(scrub.state == state);
        page.sample("scrub_state_info", &[("state", state.word())], is_in);
    }
    page.head("scrub_findings_count", "gauge", "What the scrub found, by what it costs.");
    let counts = [("lost", scrub.lost), ("harmless", scrub.harmless), ("repaired", scrub.repaired)];
    for (severity, count) in counts {
        page.sample("scrub_findings_count", &[("severity", severity)], count);
    }
    if let Some(ended) = scrub.ended_at_seconds {
        let help = "When the last scrub ended, in seconds since 1970.";
        page.one(Gauge, "scrub_ended_time_seconds", help, ended);
    }
}

fn disks(page: &mut Page, disks: &[DiskStatus]) {
    page.disks((Gauge, "disk_size_bytes", "Size."), disks, |d| d.size_bytes);
    page.head("disk_mapped_bytes", "gauge", "Data it held at the last checkpoint.");
    for (disk, bytes) in disks.iter().filter_map(|disk| Some((disk, disk.mapped_bytes?))) {
        page.sample("disk_mapped_bytes", &[("disk", &disk.name)], bytes);
    }
    let help = "Written since that checkpoint, new or not.";
    page.disks((Gauge, "disk_changed_bytes", help), disks, |d| d.changed_bytes);
    let help = "Acknowledged and not durable.";
    page.disks((Gauge, "disk_unflushed_bytes", help), disks, |d| d.loss.unflushed_bytes);
    type Field = fn(&DiskStatus) -> u64;
    let counters: [(&str, &str, Field); 10] = [
        ("disk_read_operations_total", "Reads answered.", |d| d.counters.read_operations),
        ("disk_read_bytes_total", "Read.", |d| d.counters.read_bytes),
        ("disk_write_operations_total", "Writes answered.", |d| d.counters.write_operations),
        ("disk_write_bytes_total", "Written.", |d| d.counters.write_bytes),
        ("disk_discard_operations_total", "Discards answered.", |d| d.counters.discard_operations),
        ("disk_discard_bytes_total", "Discarded.", |d| d.counters.discard_bytes),
        ("disk_zero_operations_total", "Zeroings answered.", |d| d.counters.zero_operations),
        ("disk_zero_bytes_total", "Zeroed.", |d| d.counters.zero_bytes),
        ("disk_flush_operations_total", "Flushes answered.", |d| d.counters.flush_operations),
        ("disk_error_operations_total", "Ended with an error.", |d| d.counters.error_operations),
    ];
    for (name, help, value) in counters {
        page.disks((Counter, name, help), disks, value);
    }
    let (read, write) = ("disk_read_latency_seconds", "disk_write_latency_seconds");
    page.latency((read, "How long reads took."), disks, |d| &d.counters.read_latency);
    page.latency((write, "How long writes took."), disks, |d| &d.counters.write_latency);
    let flush = "disk_flush_latency_seconds";
    page.latency((flush, "How long flushes took."), disks, |d| &d.counters.flush_latency);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::DiskCounters;

    const UNITS: [&str; 7] = ["bytes", "seconds", "operations", "blocks", "count", "info", "ratio"];

    fn page() -> String {
        let read_latency = Latency { below_power_of_two_us: vec![1, 0, 4], sum_us: 9 };
        let counters = DiskCounters { read_latency, read_operations: 5, ..Default::default() };
        let disk = DiskStatus { name: "a\"b".into(), counters, ..Default::default() };
        text(&ServerStatus { disks: vec![disk], ..Default::default() })
    }

    #[test]
    fn every_name_follows_the_rule() {
        let page = page();
        let mut seen = 0;
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let base = name.strip_suffix("_total").unwrap_or(name);
            assert!(base.starts_with("bowline_"), "{name}");
            assert!(UNITS.iter().any(|unit| base.ends_with(&format!("_{unit}"))), "{name}");
            assert!(base.split('_').count() >= 4, "{name}: noun, what, unit");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            seen += 1;
        }
        assert!(seen > 30, "only {seen} metrics");
    }

    #[test]
    fn buckets_add_up_and_labels_are_quoted() {
        let page = page();
        for line in [
            r#"bowline_disk_read_operations_total{disk="a\"b"} 5"#,
            r#"bowline_disk_read_latency_seconds_bucket{disk="a\"b",le="0.000004"} 5"#,
            r#"bowline_disk_read_latency_seconds_bucket{disk="a\"b",le="+Inf"} 5"#,
            r#"bowline_disk_read_latency_seconds_sum{disk="a\"b"} 0.000009"#,
            r#"bowline_disk_read_latency_seconds_count{disk="a\"b"} 5"#,
            r#"bowline_pool_state_info{state="well"} 1"#,
            r#"bowline_pool_state_info{state="stopped"} 0"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
