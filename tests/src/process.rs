//! Commands bounded in time, and daemons that end with the value that stands for them.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// No command of a lab has reason to take longer.
const COMMAND_TIME: Duration = Duration::from_secs(30);
/// How long a daemon has to end after SIGTERM before it is killed.
const STOP_TIME: Duration = Duration::from_secs(3);

/// Asks `probe` until it answers, at most for `limit`; the error says what was awaited.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        ensure!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a peer has to say, at most `chunk`; 0 is its end. Goes on where this process was stopped for a moment: by that a read
/// with a timeout ends, too (signal(7)).
pub fn read(peer: &mut impl Read, chunk: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match peer.read(chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The next line of a peer, without its end; what came of it where the peer ends, or says nothing for too long.
pub fn line(peer: &mut impl Read) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\n") && peer.read_exact(&mut byte).is_ok() {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// Runs a command to its end and hands its output back, whatever its exit status; killed after 30 s.
pub fn run_in(mut command: Command, input: &[u8]) -> Result<Output> {
    let shown = format!("{command:?}");
    // A group of its own: Ctrl-C at a demo reaches the demo, which then tidies up with commands like this one.
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}; `cargo xtask setup` installs what is missing"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that ends before it has read everything is no error of ours.
        let _ = stdin.write_all(&input);
    });
    let pid = pid_of(&child)?;
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = ended.recv_timeout(COMMAND_TIME) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = kill_process(pid, Signal::KILL);
        }
        late
    });
    let output = child.wait_with_output();
    drop(done);
    let late = watchdog.join().unwrap_or(false);
    let _ = writer.join();
    ensure!(!late, "{shown} did not end within {COMMAND_TIME:?}");
    output.with_context(|| shown)
}

/// Runs a command that must succeed, and hands back what it printed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    let output = run_in(command, b"")?;
    if !output.status.success() {
        bail!("{program} {}: {}\n{}", args.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Namespaces and programs of the kernel are root's.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn pid_of(child: &Child) -> Result<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child without a pid")
}

/// A process that runs in the background, with its output in files, until the value is dropped.
pub struct Daemon {
    child: Child,
    name: String,
    out: PathBuf,
    err: PathBuf,
}

impl Daemon {
    /// Starts `command`; its output is appended to `<dir>/<name>.out` and `.err`.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        let child =
            command
                .process_group(0)
                .stdin(Stdio::null())
                .stdout(append(&out)?)
                .stderr(append(&err)?)
                .spawn()
                .with_context(|| format!("cannot start {command:?}; `cargo xtask setup` installs what is missing"))?;
        // For the sweep of a later lab, should this process be killed.
        std::fs::write(dir.join(format!("{name}.pid")), child.id().to_string())?;
        Ok(Self { child, name: name.to_owned(), out, err })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.out)
    }

    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.err)
    }

    /// True while the process lives.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends one signal, and waits for nothing.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(pid_of(&self.child)?, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for the end of the process; `None` in the status' code means a signal ended it.
    pub fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let name = self.name.clone();
        until(&format!("the end of {name}"), limit, || self.child.try_wait().ok().flatten())
    }

    /// Waits until standard error or output holds `text`; fails at once where the process ends first.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let name = self.name.clone();
        let found = until(&format!("{name} to say {text:?}"), limit, || {
            if self.stderr().contains(text) || self.stdout().contains(text) {
                return Some(true);
            }
            (!self.alive()).then_some(false)
        })
        .with_context(|| self.stderr())?;
        ensure!(found, "{name} ended before it said {text:?}: {}", self.stderr());
        Ok(())
    }

    pub fn stop(&mut self) {
        if self.alive() {
            let _ = self.signal(Signal::TERM);
            if self.wait(STOP_TIME).is_err() {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn read_lossy(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
