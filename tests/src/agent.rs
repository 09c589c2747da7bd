//! The agent under test: the real binary, in the host's namespaces, as an operator starts it.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::{
    lab::{Lab, fresh_id},
    process::{Daemon, run_in, until},
};

/// The namespace in a cluster of the controller and the agents.
pub const NAMESPACE: &str = "egret-system";
/// From start to ready: programs loaded, listeners bound.
const READY_TIME: Duration = Duration::from_secs(20);

/// The agent's binary: `EGRET_BIN`, else the newest that cargo has built in this workspace.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRET_BIN") {
        return Ok(path.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let built = |profile: &str| {
        let path = target.join(profile).join("egret");
        let age = path.metadata().ok()?.modified().ok()?;
        Some((age, path))
    };
    match [built("debug"), built("release")].into_iter().flatten().max() {
        Some((_, path)) => Ok(path),
        None => bail!("there is no egret binary yet: `cargo xtask test` builds it and runs these tests"),
    }
}

/// Runs `egret uninstall` for the state folder of an agent whose binary may no longer be known.
pub(crate) fn uninstall(state: &Path) {
    if let Ok(binary) = agent_binary() {
        uninstall_with(&binary, state);
    }
}

pub(crate) fn uninstall_with(binary: &Path, state: &Path) {
    let mut command = Command::new(binary);
    command.arg("uninstall").arg("--state-dir").arg(state);
    match run_in(command, b"") {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("egret uninstall: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => eprintln!("egret uninstall: {error:#}"),
    }
}

/// A running agent. Dropped: SIGTERM, then `egret uninstall`.
pub struct Agent {
    daemon: Daemon,
    binary: PathBuf,
    admin: SocketAddr,
    dir: PathBuf,
    input: Input,
    system_ca: PathBuf,
    state: PathBuf,
    more: Vec<String>,
}

/// Where its objects come from.
enum Input {
    Config(PathBuf),
    Cluster { kubeconfig: PathBuf, node: String },
}

impl Agent {
    /// Starts the agent on the lab's configuration folder, and waits until it is ready.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_with(lab, &[])
    }

    /// The same with more flags for `egret run`.
    pub fn start_with(lab: &Lab, more: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(lab, more)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// The same with a certain binary.
    pub fn start_from(lab: &Lab, binary: &Path, more: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn_from(lab, binary, more)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent and waits for nothing.
    pub fn spawn(lab: &Lab, more: &[&str]) -> Result<Self> {
        Self::spawn_from(lab, &agent_binary()?, more)
    }

    /// Starts the agent of a cluster's node, and waits for nothing. It meets no pods but those below `--cgroup-root`: on this
    /// machine there may be those of other tests' nodes.
    pub fn spawn_in_cluster(lab: &Lab, kubeconfig: &Path, node: &str, more: &[&str]) -> Result<Self> {
        let input = Input::Cluster { kubeconfig: kubeconfig.to_owned(), node: node.to_owned() };
        let nowhere = fresh_id();
        let apart = if more.contains(&"--cgroup-root") { vec![] } else { vec!["--cgroup-root", &nowhere] };
        Self::spawn_on(lab, &agent_binary()?, input, &[more, &apart].concat())
    }

    /// The same, and waits until it is ready.
    pub fn start_in_cluster(lab: &Lab, kubeconfig: &Path, node: &str, more: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn_in_cluster(lab, kubeconfig, node, more)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    fn spawn_from(lab: &Lab, binary: &Path, more: &[&str]) -> Result<Self> {
        Self::spawn_on(lab, binary, Input::Config(lab.config_dir()), more)
    }

    fn spawn_on(lab: &Lab, binary: &Path, input: Input, more: &[&str]) -> Result<Self> {
        let dir = lab.dir().to_owned();
        let more: Vec<_> = more.iter().map(|flag| (*flag).to_owned()).collect();
        let admin = free_port()?;
        let (binary, system_ca) = (binary.to_owned(), lab.pki.crt("system"));
        let state = dir.join(format!("state-{}", admin.port()));
        let daemon = launch(&binary, &input, &system_ca, &state, admin, &more, &dir)?;
        Ok(Self { daemon, binary, admin, dir, input, system_ca, state, more })
    }

    /// Starts it again after its end, with the same state folder.
    pub fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.wait_ready()
    }

    /// The same, and waits for nothing.
    pub fn relaunch(&mut self) -> Result<()> {
        self.daemon = self.launch(&[])?;
        Ok(())
    }

    /// One more process with the same flags and these.
    pub fn launch(&self, more: &[&str]) -> Result<Daemon> {
        let more: Vec<_> = self.more.iter().cloned().chain(more.iter().map(|flag| (*flag).to_owned())).collect();
        launch(&self.binary, &self.input, &self.system_ca, &self.state, self.admin, &more, &self.dir)
    }

    /// Starts a next one on the same state folder, which takes this one's place; from here on this is the next one. Answers the
    /// one before.
    pub fn spawn_next(&mut self) -> Result<Daemon> {
        let next = self.launch(&["--take-over"])?;
        Ok(std::mem::replace(&mut self.daemon, next))
    }

    /// The same, and waits until it serves.
    pub fn take_over(&mut self) -> Result<Daemon> {
        let before = self.spawn_next()?;
        let pid = self.pid();
        until("the next agent to serve", READY_TIME, || (self.serving_pid()? == u64::from(pid)).then_some(()))
            .with_context(|| format!("{}--- the agent before ---\n{}", self.stderr(), before.stderr()))?;
        self.wait_ready()?;
        Ok(before)
    }

    /// The process that answers at the admin address.
    #[must_use]
    pub fn serving_pid(&self) -> Option<u64> {
        let (_, status) = self.admin("GET", "/status").ok()?;
        serde_json::from_str::<serde_json::Value>(&status).ok()?["pid"].as_u64()
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let mut last = String::new();
        let (admin, daemon) = (self.admin, &mut self.daemon);
        let ready = until("the agent to be ready", READY_TIME, || {
            if !daemon.alive() {
                return Some(false);
            }
            let (status, body) = request(admin, "GET", "/healthz/ready").ok()?;
            last = body;
            (status == 200).then_some(true)
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the agent ended at once:\n{}", self.stderr()),
            Err(error) => Err(error.context(format!("it says {last:?}; its log:\n{}", self.stderr()))),
        }
    }

    /// As `kill -9` does: nothing of the agent runs any more.
    pub fn kill9(&mut self) -> Result<()> {
        self.daemon.signal(Signal::KILL)?;
        self.daemon.wait(Duration::from_secs(5)).map(drop)
    }

    pub fn terminate(&self) -> Result<()> {
        self.daemon.signal(Signal::TERM)
    }

    pub fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.daemon.wait(limit)
    }

    pub fn alive(&mut self) -> bool {
        self.daemon.alive()
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The folder given as `--state-dir`.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The access log, and nothing else.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.daemon.stdout()
    }

    /// The agent's own messages.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.daemon.stderr()
    }

    /// The first access-log line that holds `text`.
    pub fn log_line(&self, text: &str) -> Result<String> {
        until(&format!("an access-log line with {text:?}"), Duration::from_secs(3), || {
            self.stdout().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .with_context(|| format!("the access log is:\n{}", self.stdout()))
    }

    /// Where it serves its admin endpoints.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// One request to an admin endpoint: status and body.
    pub fn admin(&self, method: &str, path: &str) -> Result<(u16, String)> {
        request(self.admin, method, path)
    }

    /// The value of a metric: of its series whose text holds every one of `labels`, summed up.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        metric(&self.admin("GET", "/metrics")?.1, name, labels)
    }

    /// Waits until a metric is at least `least`.
    pub fn await_metric(&self, name: &str, labels: &[&str], least: f64) -> Result<()> {
        until(&format!("{name}{labels:?} to be {least}"), Duration::from_secs(5), || {
            self.metric(name, labels).ok().filter(|value| *value >= least)
        })
        .map(drop)
        .with_context(|| self.stderr())
    }

    /// Waits for one more reload than there were when `before` was taken with [`Agent::reloads`].
    pub fn await_reload(&self, before: f64) -> Result<()> {
        until("a reload", Duration::from_secs(5), || Some(self.reloads()).filter(|now| *now > before))
            .map(drop)
            .with_context(|| self.stderr())
    }

    /// How many batches have been taken in, good or bad.
    #[must_use]
    pub fn reloads(&self) -> f64 {
        self.metric("egret_config_reloads_total", &[]).unwrap_or(0.0)
    }

    /// Runs `change`, and waits until the agent has taken it in.
    pub fn reload(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.reloads();
        change()?;
        self.await_reload(before)
    }

    /// An `egret` command against this agent: exit code, standard output, standard error.
    pub fn egret(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let admin = self.admin.to_string();
        egret_from(&self.binary, &[args, &["--admin", &admin]].concat())
    }

    /// Ends the agent and removes what outlives it, as the last drop does.
    pub fn end(&mut self) {
        self.daemon.stop();
        uninstall_with(&self.binary, &self.state);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}--- access log ---\n{}", self.stderr(), self.stdout());
        }
        self.end();
    }
}

/// Any `egret` command: exit code, standard output, standard error.
pub fn egret(args: &[&str]) -> Result<(i32, String, String)> {
    egret_from(&agent_binary()?, args)
}

fn egret_from(binary: &Path, args: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(binary);
    command.args(args);
    let output = run_in(command, b"")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

fn launch(
    binary: &Path,
    input: &Input,
    system_ca: &Path,
    state: &Path,
    admin: SocketAddr,
    more: &[String],
    dir: &Path,
) -> Result<Daemon> {
    let mut command = Command::new(binary);
    command.arg("run");
    match input {
        Input::Config(path) => command.arg("--config").arg(path),
        Input::Cluster { kubeconfig, node } => {
            command.arg("--kubernetes").env("KUBECONFIG", kubeconfig).env("NODE_NAME", node);
            command.env("POD_NAMESPACE", NAMESPACE)
        }
    };
    command.arg("--state-dir").arg(state);
    command.arg("--admin").arg(admin.to_string()).args(more);
    command.env("SSL_CERT_FILE", system_ca).env_remove("SSL_CERT_DIR").env("RUST_BACKTRACE", "1");
    Daemon::start(&format!("agent-{}", admin.port()), command, dir)
}

/// The value of a metric in the text of a scrape: of its series whose text holds every one of `labels`, summed up.
pub(crate) fn metric(text: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
        .collect();
    ensure!(!values.is_empty(), "no metric {name} with {labels:?} in:\n{text}");
    Ok(values.iter().sum())
}

/// A port of the loopback that nobody has at this moment.
pub(crate) fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A bare HTTP/1.1 request; the connection closes after the answer.
pub(crate) fn request(to: SocketAddr, method: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { dechunk(body) } else { body.to_owned() }))
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Some(chunk) = usize::from_str_radix(size.trim(), 16).ok().and_then(|size| rest.get(..size)) else { break };
        if chunk.is_empty() {
            break;
        }
        whole.push_str(chunk);
        body = rest[chunk.len()..].trim_start_matches("\r\n");
    }
    whole
}
