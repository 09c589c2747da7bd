//! egret, from the host's namespaces as in production: eBPF captures what the pod connects to.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Log, Process, Setup, configured, shown};
use crate::{
    agent::{free_port, request, uninstall_with},
    bench::{
        hosts::{Host, TLS},
        stage::{Cpus, Stage},
    },
    objects::{documents, entry_with, mesh, port_rule},
    process::{Daemon, until},
};

/// From start to ready, with 10,000 hosts.
const READY_TIME: Duration = Duration::from_secs(120);
/// The file with the objects of all hosts.
pub const HOSTS: &str = "hosts.yaml";
const SECRET: &str = "bench-client";

/// A running agent with the pod enrolled. Dropped: it ends, and nothing of it is left in the kernel.
pub struct Agent {
    daemon: Daemon,
    binary: PathBuf,
    admin: SocketAddr,
    /// From the start of its process until it was ready.
    pub started: Duration,
    /// The folder that it was started on.
    pub config: PathBuf,
    state: PathBuf,
}

impl Agent {
    pub fn start(stage: &Stage, binary: &Path, setup: &Setup, cpus: Cpus) -> Result<Self> {
        let room = stage.room("egret")?;
        let (config, state, admin) = (room.join("config"), stage.dir().join("state-egret"), free_port()?);
        fs::create_dir(&config)?;
        for (name, text) in files(stage, setup, &room)? {
            fs::write(config.join(name), text)?;
        }
        let mut command = Command::new("taskset");
        command.args(["-c", &cpus.proxy.to_string()]).arg(binary).arg("run").arg("--config").arg(&config);
        command.arg("--state-dir").arg(&state).args(["--admin", &admin.to_string()]);
        command.env("SSL_CERT_FILE", stage.pki.crt("ca")).env_remove("SSL_CERT_DIR");
        let start = Instant::now();
        let daemon = Daemon::start("egret", command, stage.dir())?;
        let mut agent = Self { daemon, binary: binary.to_owned(), admin, started: Duration::ZERO, config, state };
        agent.wait_ready()?;
        agent.started = start.elapsed();
        Ok(agent)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = until("egret to be ready", READY_TIME, || {
            if !self.daemon.alive() {
                return Some(false);
            }
            request(self.admin, "GET", "/healthz/ready").is_ok_and(|(status, _)| status == 200).then_some(true)
        });
        ensure!(ready.with_context(|| self.daemon.stderr())?, "egret ended at once: {}", self.daemon.stderr());
        Ok(())
    }
}

impl Agent {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Changes the configuration's folder, and asks at most so often until what it holds then is in force: how long that took.
    pub fn reload(&self, ask: Duration, change: impl FnOnce(&Path) -> Result<()>) -> Result<Duration> {
        let before = self.reloads()?;
        let start = Instant::now();
        change(&self.config)?;
        loop {
            if self.reloads()? > before {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < READY_TIME, "no reload: {}", self.daemon.stderr());
            // To 2 %: each question takes time from the one who is asked.
            std::thread::sleep(ask.max(start.elapsed() / 50));
        }
    }

    /// Batches of changes that were taken in, and were good.
    fn reloads(&self) -> Result<f64> {
        self.metric("egret_config_reloads_total{result=\"accepted\"}")
    }

    /// The value of a metric, given with its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = request(self.admin, "GET", "/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).with_context(|| format!("egret has no {name}"))
    }
}

impl Process for Agent {
    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    fn agent(&self) -> Option<&Agent> {
        Some(self)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.daemon.stop();
        uninstall_with(&self.binary, &self.state);
    }
}

/// The configuration, in several files so that a workload can change one: `pod.yaml`, `mesh.yaml`, `secret.yaml`,
/// `hosts.yaml`.
fn files(stage: &Stage, setup: &Setup, room: &Path) -> Result<Vec<(&'static str, String)>> {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bench\n  labels: {{app: bench}}\n  annotations:\n    \
         egret.dev/netns: {}\nspec: {{serviceAccountName: bench}}\n",
        stage.pod.name()
    );
    let entries =
        [("tls.key", stage.pki.key("client")), ("tls.crt", stage.pki.crt("client")), ("ca.crt", stage.pki.crt("ca"))];
    Ok(vec![
        ("pod.yaml", pod),
        ("mesh.yaml", mesh(&settings(setup, room).iter().map(String::as_str).collect::<Vec<_>>())),
        ("secret.yaml", stage.pki.secret(SECRET, &entries)?),
        (HOSTS, document(&configured(setup))),
    ])
}

fn settings(setup: &Setup, room: &Path) -> Vec<String> {
    let file = format!("accessLogFile: {}", shown(&room.join("access.log")));
    match setup.log {
        Log::Off => vec!["accessLogFile: \"\"".to_owned()],
        Log::Text => vec![file],
        Log::Json => vec![file, "accessLogEncoding: JSON".to_owned()],
    }
}

/// What [`HOSTS`] holds for these.
#[must_use]
pub fn document(hosts: &[Host]) -> String {
    documents(&hosts.iter().flat_map(objects).collect::<Vec<_>>())
}

/// The objects of one host, as Istio's tasks for egress have them.
fn objects(host: &Host) -> [String; 2] {
    let protocol = if host.h2 { "GRPC" } else { "HTTP" };
    let ports = [format!("80 {protocol} {TLS}"), "443 TLS".to_owned()];
    let rest =
        format!("  location: MESH_EXTERNAL\n  resolution: STATIC\n  endpoints: [{{address: {}}}]\n", host.address);
    let mode = if host.mutual { format!("mode: MUTUAL, credentialName: {SECRET}") } else { "mode: SIMPLE".to_owned() };
    let mut rule = port_rule(&host.name, 80, &format!("{mode}, sni: {}", host.name));
    if host.mutual {
        rule = rule.replacen("spec:\n", "spec:\n  workloadSelector: {matchLabels: {app: bench}}\n", 1);
    }
    [entry_with(&host.name, &[&ports[0], &ports[1]], &rest), rule]
}
