//! Who is compared: the floors without any proxy, egret, and the peers behind Istio's redirect rules. Each is configured at
//! its best, for the same hosts, with the same checks of the server's certificate.

mod direct;
pub mod egret;
mod envoy;
mod haproxy;
mod nginx;
mod proof;

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Bench, hosts,
    hosts::Host,
    iptables::{OUTBOUND, Redirect},
    stage::{Cpus, Stage},
};
use crate::process::{Daemon, until};

/// One program, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No proxy, and no TLS.
    DirectHttp,
    /// No proxy: the client speaks TLS by itself.
    DirectHttps,
    Envoy,
    HAProxy,
    Nginx,
    Egret,
}

/// The access log of a proxy, always to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Log {
    #[default]
    Off,
    /// The proxy's usual text; Istio's for Envoy and egret.
    Text,
    Json,
}

/// How a peer is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub log: Log,
    /// Hosts that are configured beside those of the stage.
    pub more_hosts: usize,
    /// Clients speak HTTP/2 without TLS ("prior knowledge").
    pub h2: bool,
    /// For long bodies: larger buffers, where a peer has them small.
    pub bulk: bool,
    /// TLS sessions that a peer keeps for each host, where it is configurable; None: the peer's own default.
    pub session_keys: Option<u32>,
}

/// A peer that is ready to serve the pod. Dropped: the pod has direct access again.
pub struct Running<'a> {
    // In the order in which they must go: no connection is redirected to a peer that has ended.
    _redirect: Option<Redirect<'a>>,
    process: Option<Box<dyn Process>>,
    tls: bool,
    started: Duration,
}

/// A proxy's process.
pub trait Process {
    fn pid(&self) -> u32;

    /// Where it is egret.
    fn agent(&self) -> Option<&egret::Agent> {
        None
    }
}

impl Process for Daemon {
    fn pid(&self) -> u32 {
        Daemon::pid(self)
    }
}

impl Peer {
    pub const ALL: [Self; 6] =
        [Self::DirectHttp, Self::DirectHttps, Self::Envoy, Self::HAProxy, Self::Nginx, Self::Egret];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DirectHttp => "direct HTTP",
            Self::DirectHttps => "direct HTTPS",
            Self::Envoy => "Envoy",
            Self::HAProxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Egret => "egret",
        }
    }

    /// Starts it for the pod, on its CPU, and waits until it serves.
    pub fn start<'a>(self, bench: &'a Bench, setup: &Setup, cpus: Cpus) -> Result<Running<'a>> {
        let stage = &bench.stage;
        let running = match self {
            Self::DirectHttp => direct::plain(),
            Self::DirectHttps => direct::tls(),
            Self::Envoy => {
                let program = bench.options.envoy.as_deref().context("there is no Envoy here")?;
                envoy::start(stage, program, setup, cpus)?
            }
            Self::HAProxy => haproxy::start(stage, setup, cpus)?,
            Self::Nginx => nginx::start(stage, setup, cpus)?,
            Self::Egret => {
                let agent = egret::Agent::start(stage, &bench.options.egret, setup, cpus)?;
                let started = agent.started;
                Running { _redirect: None, process: Some(Box::new(agent)), tls: false, started }
            }
        };
        // nginx takes nothing but HTTP/2 then.
        if running.pid().is_some() && !setup.h2 {
            proof::originates_tls(stage)?;
        }
        Ok(running)
    }
}

impl Running<'_> {
    /// The proxy's process, whose children belong to it. None for the floors.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid())
    }

    /// From the start of the proxy's process until it served.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// The agent, where it is egret.
    #[must_use]
    pub fn agent(&self) -> Option<&egret::Agent> {
        self.process.as_ref().and_then(|process| process.agent())
    }

    /// What a client in the pod asks for.
    #[must_use]
    pub fn url(&self, host: &str, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{host}{path}")
    }
}

/// Starts a peer that listens on Istio's port, waits for it, and redirects the pod's connections to it. `apart`: port 443
/// goes to a listener of its own.
fn redirected<'a>(stage: &'a Stage, name: &str, room: &Path, command: Command, apart: bool) -> Result<Running<'a>> {
    // What it says goes to its room, so that an error shows nothing of its last turn.
    let start = Instant::now();
    let mut daemon = Daemon::start(name, command, room)?;
    let at = (std::net::Ipv4Addr::LOCALHOST, OUTBOUND).into();
    // Ten thousand hosts take some seconds, and a busy machine makes more of them.
    let listening = until(&format!("{name} to listen"), Duration::from_secs(120), || {
        if !daemon.alive() {
            return Some(false);
        }
        stage.pod.connect(at).is_ok().then_some(true)
    });
    let said = || daemon.stderr();
    ensure!(listening.with_context(said)?, "{name} ended at once: {}", said());
    let started = start.elapsed();
    let redirect = Redirect::new(stage, apart)?;
    Ok(Running { _redirect: Some(redirect), process: Some(Box::new(daemon)), tls: false, started })
}

/// The hosts that a peer is configured for.
fn configured(setup: &Setup) -> Vec<Host> {
    hosts::with_more(setup.more_hosts)
}

/// A file's path as configuration has it.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
