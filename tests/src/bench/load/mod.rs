//! Load generators: what they are told to do, and what they say came of it.

mod curl;
mod h2load;
mod wrk;

use std::{
    fs::File,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

pub use curl::Curl;
pub use h2load::H2load;
pub use wrk::Wrk;

use super::{Bench, cpu};
use crate::process::read_lossy;

/// How much longer than its own duration a generator may take, to connect and to drain.
const GRACE: Duration = Duration::from_secs(20);

/// What a generator counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Answers that came whole, good or bad.
    pub requests: u64,
    /// Those with a status of 400 and more, and failures to connect, read and write.
    pub errors: u64,
    /// Bytes read.
    pub bytes: u64,
    pub seconds: f64,
    /// Latency in µs.
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// Runs a generator to its end: what it printed, and the CPU time it used. Ends it where somebody wants to stop.
pub fn generate(bench: &Bench, mut command: Command, duration: Duration) -> Result<(String, Duration)> {
    let shown = format!("{command:?}");
    let (out, err) = (bench.stage.dir().join("load.out"), bench.stage.dir().join("load.err"));
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child without a pid")?;
    let start = Instant::now();
    // It is looked at before it is waited for: only then its CPU time can still be read.
    let ended = loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::Pid(pid), options) {
            Ok(Some(_)) => break Ok(cpu::of_process(child.id())?),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => break Err(error.into()),
        }
        if let Err(stop) = bench.go_on() {
            break Err(stop);
        }
        if start.elapsed() > duration + GRACE {
            break Err(anyhow::anyhow!("{shown} did not end in time"));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if ended.is_err() {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    let used = ended?;
    if !status.success() {
        bail!("{shown}: {status}\n{}{}", read_lossy(&out), read_lossy(&err));
    }
    Ok((read_lossy(&out), used))
}

impl Load {
    /// An error where nothing at all was answered.
    fn checked(self, text: &str) -> Result<Self> {
        ensure!(self.requests > 0, "no request was answered:\n{text}");
        Ok(self)
    }
}
