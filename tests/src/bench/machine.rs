//! What a run ran on: the machine, and the version of every program.

use std::{collections::BTreeMap, path::Path, process::Command};

use super::{Options, results::Machine};
use crate::process::run_in;

/// The machine as the kernel tells it.
#[must_use]
pub fn machine() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    Machine {
        kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        cpu: value(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: memory.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
    }
}

/// Each program's own word on its version; one that is not there is left out.
#[must_use]
pub fn programs(options: &Options) -> BTreeMap<String, String> {
    let egret = options.egret.as_path();
    let mut wanted = vec![
        ("egret", egret, "--version"),
        ("nginx", Path::new("nginx"), "-v"),
        ("HAProxy", Path::new("haproxy"), "-v"),
        ("wrk", Path::new("wrk"), "-v"),
        ("h2load", Path::new("h2load"), "--version"),
        ("iptables", Path::new("iptables"), "--version"),
    ];
    if let Some(envoy) = &options.envoy {
        wanted.push(("Envoy", envoy, "--version"));
    }
    let said = |program: &Path, flag: &str| {
        let mut command = Command::new(program);
        command.arg(flag);
        let output = run_in(command, b"").ok()?;
        version(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
    };
    wanted.into_iter().filter_map(|(name, path, flag)| Some((name.to_owned(), said(path, flag)?))).collect()
}

/// The first word, or part of one between slashes, that looks like a version.
fn version(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || "/[](),".contains(c));
    let versions = words.map(|word| word.trim_start_matches('v'));
    versions
        .filter(|word| word.contains('.'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn finds_versions() {
        for (said, wanted) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12-1+deb12u4"),
            ("\n/x/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n", "1.40.0"),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright", "4.1.0-3+b2"),
            ("iptables v1.8.9 (nf_tables)", "1.8.9"),
            ("h2load nghttp2/1.52.0", "1.52.0"),
        ] {
            assert_eq!(version(said).as_deref(), Some(wanted));
        }
        assert_eq!(version("command not found"), None);
    }
}
