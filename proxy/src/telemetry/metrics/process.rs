//! What the process takes of the machine, in the names that every Prometheus client library uses.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Writes memory, descriptors, CPU time and start time; what cannot be read is left out.
pub fn encode(encoder: &mut DescriptorEncoder<'_>, started: SystemTime) -> fmt::Result {
    if let Some(bytes) = resident_bytes() {
        super::gauge(encoder, "process_resident_memory_bytes", "Resident memory.", bytes)?;
    }
    if let Some(count) = open_descriptors() {
        super::gauge(encoder, "process_open_fds", "Open file descriptors.", count)?;
    }
    if let Some(seconds) = cpu_seconds() {
        let help = "CPU time, user and system.";
        let out = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(seconds).encode(out)?;
    }
    let start = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the process started, in seconds since 1970.";
    let out = encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
    ConstGauge::new(start).encode(out)
}

/// `VmRSS` of /proc/self/status, which is in KiB whatever the page size.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn open_descriptors() -> Option<u64> {
    // The listing itself holds one.
    Some((std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

/// Fields 14 and 15 of /proc/self/stat, in ticks; USER_HZ is 100 on every architecture that the agent runs on.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / 100.0)
}
