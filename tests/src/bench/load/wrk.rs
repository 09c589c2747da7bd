//! wrk: HTTP/1.1 in a closed loop, from one thread.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{Load, generate};
use crate::bench::Bench;

/// One run of wrk.
pub struct Wrk<'a> {
    pub url: &'a str,
    pub connections: usize,
    /// Asks for a new connection after each request.
    pub close: bool,
}

/// Prints wrk's own numbers, which its report rounds. A script with no other function costs nothing for each request.
const SCRIPT: &str = r#"done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("figures %d %d %d %d %.0f %.0f %.0f %.0f %.0f\n", summary.requests, summary.bytes, summary.duration,
    e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max, latency.min))
end
"#;

impl Wrk<'_> {
    /// Runs it in the pod, on one CPU: what it counted, and the CPU time it used.
    pub fn run(&self, bench: &Bench, cpu: usize, duration: Duration) -> Result<(Load, Duration)> {
        let (text, used) = generate(bench, self.command(bench, cpu, duration)?, duration)?;
        Ok((parse(&text)?, used))
    }

    fn command(&self, bench: &Bench, cpu: usize, duration: Duration) -> Result<Command> {
        let script = bench.stage.dir().join("figures.lua");
        std::fs::write(&script, SCRIPT)?;
        let mut command = bench.stage.in_pod("wrk", cpu);
        command.args(["-t1", "-c", &self.connections.to_string(), "-d", &format!("{}s", whole_seconds(duration))]);
        command.args(["--timeout", "10s", "-s"]).arg(script);
        if self.close {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(self.url);
        Ok(command)
    }
}

/// wrk takes nothing else.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs_f64().ceil().max(1.0) as u64
}

fn parse(text: &str) -> Result<Load> {
    let line = text.lines().find_map(|line| line.strip_prefix("figures ")).with_context(|| text.to_owned())?;
    let numbers: Vec<f64> =
        line.split_whitespace().map(str::parse).collect::<Result<_, _>>().context(line.to_owned())?;
    let [requests, bytes, micros, errors, p50, p90, p99, ..] = numbers[..] else {
        anyhow::bail!("too few figures: {line}")
    };
    let load = Load {
        requests: requests as u64,
        errors: errors as u64,
        bytes: bytes as u64,
        seconds: micros / 1e6,
        p50,
        p90,
        p99,
    };
    load.checked(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 1s test @ http://rsa.bench.test/1k\n  1 threads and 64 connections\n  Thread Stats   Avg      \
         Stdev     Max   +/- Stdev\n    Latency     2.01ms    1.0ms  17.00ms   90.10%\n  40710 requests in 1.01s, 46.71MB read\n\
         Requests/sec:  40306.93\nTransfer/sec:     46.25MB\nfigures 40710 48978329 1010001 3 1523 2048 4096 17000 120\n";

    #[test]
    fn reads_what_the_script_prints() {
        let load = parse(SAID).unwrap();
        assert_eq!((load.requests, load.errors, load.bytes), (40710, 3, 48_978_329));
        assert_eq!((load.seconds, load.p50, load.p90, load.p99), (1.010_001, 1523.0, 2048.0, 4096.0));
    }

    #[test]
    fn no_answer_is_a_failure() {
        assert!(parse("figures 0 0 1000000 64 0 0 0 0 0\n").is_err());
        assert!(parse("unable to connect to rsa.bench.test:80 Connection refused\n").is_err());
        assert!(parse("figures 1 2 x\n").is_err());
    }
}
