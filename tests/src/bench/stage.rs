//! Where it happens: a pod and an outside, two namespaces joined by one veth pair and nothing else, and an nginx outside
//! that every peer calls.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{hosts, upstream};
use crate::{
    lab::fresh_id,
    netns::Netns,
    pki::Pki,
    process::{Daemon, read_lossy, run, until},
};

/// Address of the pod.
pub const POD: &str = "10.97.0.2";
/// The outside's address on the wire to the pod.
pub const OUTSIDE: &str = "10.97.0.1";
/// The user that the peers run as: Istio's, whose connections its rules let pass.
pub const PROXY_USER: u32 = 1337;
/// Descriptors of each program: 10,000 connections and their upstreams. A machine may allow less, also to root.
const DESCRIPTORS: u64 = 65_536;

/// Which CPU each part is pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    pub proxy: usize,
    /// Client and server.
    pub others: usize,
}

/// Both namespaces and the upstream. Everything that a peer makes must be dropped before it.
pub struct Stage {
    // In the order in which they must go.
    upstream: Daemon,
    pub pod: Netns,
    pub outside: Netns,
    pub pki: Pki,
    dir: tempfile::TempDir,
    /// The first and the last CPU that this process may use.
    cpus: (usize, usize),
}

impl Stage {
    pub fn new() -> Result<Self> {
        let id = fresh_id();
        let dir = tempfile::Builder::new().prefix(&format!("{id}-")).tempdir()?;
        // The peers run as another user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let pki = certificates(&dir.path().join("pki"))?;
        let outside = Netns::new(&format!("{id}-out"))?;
        let pod = named(&format!("{id}-pod"))?;
        join(&outside, &pod)?;
        let cpus = allowed_cpus()?;
        let upstream = upstream::start(&outside, &pki, dir.path())?;
        let stage = Self { upstream, pod, outside, pki, dir, cpus };
        let first = format!("{}:{}", hosts::hosts()[0].address, hosts::TLS).parse()?;
        until("the upstream to listen", Duration::from_secs(5), || stage.pod.connect(first).ok())
            .with_context(|| read_lossy(&stage.dir().join("upstream.err")))?;
        Ok(stage)
    }

    /// Everything of the stage that is a file.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new, empty folder that a peer may write to.
    pub fn room(&self, name: &str) -> Result<PathBuf> {
        let room = self.dir().join(name);
        let _ = fs::remove_dir_all(&room);
        fs::create_dir(&room)?;
        chown(&room, Some(PROXY_USER), Some(PROXY_USER))?;
        Ok(room)
    }

    /// The proxy on a CPU of its own, client and server on another; one and the same where the machine has one only.
    #[must_use]
    pub fn apart(&self) -> Cpus {
        Cpus { proxy: self.cpus.1, others: self.cpus.0 }
    }

    /// Everything on one CPU: then no wake-up crosses from one to another.
    #[must_use]
    pub fn together(&self) -> Cpus {
        Cpus { proxy: self.cpus.1, others: self.cpus.1 }
    }

    /// The upstream's process.
    #[must_use]
    pub fn server(&self) -> u32 {
        self.upstream.pid()
    }

    /// Moves the upstream to the CPU that it has in this placement.
    pub fn place_server(&self, cpus: Cpus) -> Result<()> {
        for pid in super::cpu::family(self.server()) {
            run("taskset", &["-acp", &cpus.others.to_string(), &pid.to_string()])?;
        }
        Ok(())
    }

    /// A program in the pod, on one CPU.
    #[must_use]
    pub fn in_pod(&self, program: &str, cpu: usize) -> Command {
        let mut command = self.pod.command("taskset");
        let cpu = cpu.to_string();
        command.args(["-c", &cpu, "prlimit", &limit(), program]);
        command
    }

    /// A peer in the pod, as the user that Istio's rules let pass.
    #[must_use]
    pub fn peer_in_pod(&self, program: &str, cpu: usize) -> Command {
        let mut command = self.in_pod("setpriv", cpu);
        let user = PROXY_USER.to_string();
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", program]);
        command
    }
}

/// A pod's namespace, in which names are found in its own hosts file.
fn named(name: &str) -> Result<Netns> {
    let etc = Path::new("/etc/netns").join(name);
    fs::create_dir_all(&etc)?;
    let lines: String = hosts::hosts().iter().map(|host| format!("{} {}\n", host.address, host.name)).collect();
    fs::write(etc.join("hosts"), lines)?;
    // Nobody is asked: all names are in the file.
    fs::write(etc.join("resolv.conf"), format!("nameserver {OUTSIDE}\noptions timeout:1 attempts:1\n"))?;
    Netns::new(name)
}

fn join(outside: &Netns, pod: &Netns) -> Result<()> {
    let mut lines = format!(
        "link add veth0 type veth peer name eth0 netns {}\nlink set veth0 up\naddress add {OUTSIDE}/24 dev veth0\n",
        pod.name()
    );
    for host in hosts::hosts() {
        lines.push_str(&format!("address add {}/32 dev lo\n", host.address));
    }
    outside.batch(&lines)?;
    pod.batch(&format!("link set eth0 up\naddress add {POD}/24 dev eth0\nroute add default via {OUTSIDE}\n"))?;
    // A connection for each request needs more than the usual 28,000 ports.
    pod.inside(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535"))?;
    pod.inside(|| fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "15001-15443"))?;
    pod.inside(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))?;
    for namespace in [outside, pod] {
        namespace.inside(|| fs::write("/proc/sys/net/core/somaxconn", "4096"))?;
    }
    Ok(())
}

fn certificates(dir: &Path) -> Result<Pki> {
    let pki = Pki::empty(dir)?;
    pki.authority("ca", "/O=Egret Bench/CN=Bench Root")?;
    let san = "DNS:*.bench.test";
    pki.rsa_leaf("rsa", "ca", "/CN=bench.test", san)?;
    pki.leaf("p256", "ca", "/CN=bench.test", Some(san))?;
    pki.leaf("client", "ca", "/CN=client.bench.test", Some("DNS:client.bench.test"))?;
    // HAProxy wants both in one file.
    let both = [fs::read(pki.crt("client"))?, fs::read(pki.key("client"))?].concat();
    fs::write(dir.join("client.pem"), both)?;
    for entry in fs::read_dir(dir)? {
        chown(entry?.path(), Some(PROXY_USER), Some(PROXY_USER))?;
    }
    Ok(pki)
}

/// `prlimit`'s argument for as many descriptors as are wanted and allowed.
pub(super) fn limit() -> String {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let number = most.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    format!("--nofile={number}:{number}")
}

fn allowed_cpus() -> Result<(usize, usize)> {
    let set = rustix::thread::sched_getaffinity(None)?;
    let mut allowed = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    let first = allowed.next().context("no CPU at all")?;
    Ok((first, allowed.next_back().unwrap_or(first)))
}
