//! curl: one long download over one connection.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;

/// One download.
pub struct Curl<'a> {
    pub url: &'a str,
    /// Of the body, from its beginning.
    pub bytes: u64,
}

impl Curl<'_> {
    /// The command that runs in the pod, on one CPU.
    pub fn command(&self, bench: &Bench, cpu: usize) -> Command {
        let mut command = bench.stage.in_pod("curl", cpu);
        // What the server's certificate is worth is not curl's question here.
        command.args(["-sS", "-k", "--http1.1", "-o", "/dev/null", "-r", &format!("0-{}", self.bytes - 1)]);
        command.args(["-w", "%{http_code} %{size_download} %{time_total}\n", self.url]);
        command
    }

    /// How long it took, in seconds; an error where anything else came than was asked for.
    pub fn parse(&self, text: &str) -> Result<f64> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [status, bytes, seconds] = words[..] else { anyhow::bail!("not what curl was to print: {text}") };
        ensure!(status == "206" && bytes.parse() == Ok(self.bytes), "status {status}, {bytes} bytes of {}", self.bytes);
        seconds.parse().context(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_was_asked_for_is_a_failure() {
        let curl = Curl { url: "http://a/b", bytes: 1000 };
        assert_eq!(curl.parse("206 1000 1.250000\n").unwrap(), 1.25);
        assert!(curl.parse("206 999 1.25\n").is_err());
        assert!(curl.parse("503 1000 1.25\n").is_err());
        assert!(curl.parse("").is_err());
    }
}
