//! h2load: HTTP/2 with prior knowledge, several streams a connection; gRPC-shaped calls too.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Load, generate};
use crate::bench::Bench;

/// One run of h2load.
pub struct H2load<'a> {
    pub url: &'a str,
    pub connections: usize,
    /// Streams that each connection has open at a time.
    pub streams: usize,
    /// POSTs a message, as a unary gRPC call does.
    pub grpc: bool,
}

impl H2load<'_> {
    fn log(bench: &Bench) -> PathBuf {
        bench.stage.dir().join("h2load.log")
    }

    /// Runs it in the pod, on one CPU: what it counted, and the CPU time it used.
    pub fn run(&self, bench: &Bench, cpu: usize, duration: Duration) -> Result<(Load, Duration)> {
        let (text, used) = generate(bench, self.command(bench, cpu, duration)?, duration)?;
        let log = fs::read_to_string(Self::log(bench)).context("h2load's log")?;
        Ok((parse(&text, &log)?, used))
    }

    fn command(&self, bench: &Bench, cpu: usize, duration: Duration) -> Result<Command> {
        // It appends.
        let _ = fs::remove_file(Self::log(bench));
        let mut command = bench.stage.in_pod("h2load", cpu);
        command.args(["-t1", "-c", &self.connections.to_string(), "-m", &self.streams.to_string()]);
        command.args(["-D", &format!("{}", duration.as_secs().max(1)), "--log-file"]).arg(Self::log(bench));
        if self.grpc {
            let message = bench.stage.dir().join("message");
            // One uncompressed message of 64 bytes.
            fs::write(&message, [&[0, 0, 0, 0, 64][..], &[b'm'; 64]].concat())?;
            command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"]).arg(message);
        }
        command.arg(self.url);
        Ok(command)
    }
}

fn parse(text: &str, log: &str) -> Result<Load> {
    let counts = |start: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(start)).with_context(|| text.to_owned())?;
        let pairs = line.split(',').filter_map(|part| part.trim().split_once(' '));
        anyhow::Ok(pairs.filter_map(|(n, what)| Some((what.to_owned(), n.parse().ok()?))).collect::<BTreeMap<_, u64>>())
    };
    let (requests, codes) = (counts("requests: ")?, counts("status codes: ")?);
    let of = |map: &BTreeMap<String, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let bytes = text.lines().find_map(|line| line.strip_prefix("traffic: ")?.split(['(', ')']).nth(1)?.parse().ok());
    // Lines of start in µs, status, duration in µs. A request that failed has no status.
    let lines = log.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, status, took) = (fields.next()?, fields.next()?, fields.next()?);
        Some((start.parse::<f64>().ok()?, status.parse::<i32>().ok()?, took.parse::<f64>().ok()?))
    });
    let mut latencies = Vec::new();
    let (mut first, mut last) = (f64::MAX, 0.0_f64);
    for (start, _, took) in lines.filter(|(_, status, _)| *status > 0) {
        first = first.min(start);
        last = last.max(start + took);
        latencies.push(took);
    }
    ensure!(!latencies.is_empty(), "h2load logged no answer:\n{text}");
    latencies.sort_by(f64::total_cmp);
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    let load = Load {
        requests: of(&requests, "done"),
        errors: of(&requests, "failed") + of(&codes, "4xx") + of(&codes, "5xx"),
        bytes: bytes.unwrap_or(0),
        seconds: (last - first) / 1e6,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
    };
    load.checked(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "starting benchmark...\nfinished in 1.00s, 9000.00 req/s, 9.50MB/s\n\
        requests: 9000 total, 9010 started, 9000 done, 8990 succeeded, 10 failed, 0 errored, 0 timeout\n\
        status codes: 8988 2xx, 0 3xx, 1 4xx, 1 5xx\ntraffic: 9.50MB (9961472) total, 90.00KB (92160) headers\n";

    #[test]
    fn reads_report_and_log() {
        let log = "1700000000000000\t200\t100\n1700000000500000\t200\t300\n1700000000999800\t200\t200\n1700000000999900\t-1\t9999\n";
        let load = parse(SAID, log).unwrap();
        assert_eq!((load.requests, load.errors, load.bytes), (9000, 12, 9_961_472));
        assert_eq!((load.p50, load.p99), (200.0, 200.0));
        assert!((load.seconds - 1.0).abs() < 1e-6);
    }

    #[test]
    fn silence_is_a_failure() {
        assert!(parse(SAID, "").is_err());
        assert!(parse("", "1\t200\t1\n").is_err());
    }
}
