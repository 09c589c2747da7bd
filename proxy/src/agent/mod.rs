//! Wires the parts together: reads configuration, enrols pods, serves, drains.

mod configuration;
mod fleet;
mod shared;
mod source;
mod state_dir;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};

use self::{configuration::Configuration, fleet::Fleet, shared::Shared, source::Source, state_dir::StateDir};
use crate::{
    admin::{self, Access},
    capture::{self, Capture, Removed},
    engine::{Engine, workers::Workers},
    identity::Identities,
    limits,
    node::Node,
    source::{FileChange, kubernetes::client},
    telemetry::Telemetry,
};

pub use source::Input;
pub use state_dir::{DEFAULT as DEFAULT_STATE_DIR, instance};

/// What `egret run` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub input: Input,
    pub admin: SocketAddr,
    pub state_dir: PathBuf,
    pub drain_timeout: Duration,
}

/// Detaches and removes what outlives the agent with this state folder.
pub fn uninstall(state_dir: &Path) -> anyhow::Result<Removed> {
    // The cgroup of an agent that runs in a container is found by nobody else: its lock tells that it runs.
    let lock = state_dir.exists().then(|| StateDir::lock(state_dir)).transpose();
    let _lock = lock.context("an agent is still running")?;
    Ok(capture::uninstall(&instance(state_dir))?)
}

/// Runs the agent until it is told to stop: SIGTERM, SIGINT or `POST /drain`, then what is in flight has
/// `drain_timeout`; a second signal ends at once. Capture stays: enrolled pods are refused until the next agent, or
/// `egret uninstall`.
pub fn run(options: Options) -> anyhow::Result<()> {
    // Before anything that would fail with a riddle for want of the same rights.
    Capture::preflight()?;
    // Held for the life of the process: two agents on one state would fight over the same pins.
    let _lock = StateDir::lock(&options.state_dir)?;
    // Traffic has threads of its own: a reload, which may take this one a second, holds up no connection. Those that outlived
    // the drain are cut, not waited for.
    let (workers, _ending) = Workers::start().context("cannot start the threads that serve traffic")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(serve(&options, workers))
}

async fn serve(options: &Options, workers: Workers) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let (mut source, first) = Source::open(&options.input).await?;
    let admin = admin::listen(options.admin)?;
    let capture = Arc::new(Capture::start(&crate::capture::Options {
        instance: instance(&options.state_dir),
        debug: log::log_enabled!(log::Level::Debug),
    })?);
    let telemetry = Telemetry::new();
    let identities = match source.client() {
        // No node has a CA's key: who has one can be anybody in the mesh.
        Some(client) => Identities::of_cluster(client.clone(), &client::namespace(&client)),
        None => Identities::new(&options.state_dir),
    };
    let engine = Engine::new(Configuration::empty(&identities), telemetry.clone()).with_workers(workers.clone());
    let engine = Arc::new(engine);
    let shared = Shared::new(engine.clone(), telemetry.clone(), capture.clone(), workers, identities.clone());
    let _admin = admin::start(admin, Access::Full, shared.clone())?;
    // What other machines ask comes through the API server, which reaches the node's address.
    let _read_only = match &options.input {
        Input::Files(_) => None,
        Input::Kubernetes(_) => {
            let port = options.admin.port().saturating_add(admin::READ_ONLY_OFFSET);
            Some(admin::start(admin::listen_everywhere(port)?, Access::Read, shared.clone())?)
        }
    };

    let node = match &options.input {
        Input::Files(_) => None,
        Input::Kubernetes(node) => Some(node),
    };
    let mut fleet = Fleet::new(capture.clone(), engine.clone(), node.map(|node| Node::new(&node.cgroup_root)));
    shared.watches(source.health());
    let name = node.map(|node| node.name.as_str());
    let mut configuration =
        Configuration::new(engine.clone(), telemetry.clone(), shared.clone(), identities.clone(), name);
    if let Some(first) = first {
        apply(first, &mut configuration, &mut fleet, &mut source).await;
    }

    let mut debug = log::log_enabled!(log::Level::Debug);
    let mut check = interval(limits::POD_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewal = interval(limits::IDENTITY_CHECK);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changes = source.next() => apply(changes, &mut configuration, &mut fleet, &mut source).await,
            () = fleet.woken() => configuration.look_for_pods(&mut fleet, &mut source).await,
            _ = check.tick() => {
                if !configuration.is_empty() {
                    configuration.check_pods(&mut fleet, &mut source).await;
                }
                follow_level(&capture, &mut debug);
            }
            _ = renewal.tick(), if !configuration.is_empty() => {
                configuration.renew_identities(&mut fleet, &mut source).await;
            }
            () = identities.arrived(), if !configuration.is_empty() => {
                configuration.renew_identities(&mut fleet, &mut source).await;
            }
            event = signals.next() => match event {
                Event::Stop => break,
                Event::Reopen => telemetry.reopen(),
            },
            () = shared.drain_asked() => break,
        }
    }
    drain(options, &engine, &shared, &mut fleet, &mut signals).await;
    fleet.close();
    telemetry.flush(limits::LOG_FLUSH);
    Ok(())
}

async fn apply(changes: Vec<FileChange>, configuration: &mut Configuration, fleet: &mut Fleet, source: &mut Source) {
    let begins = configuration.is_empty();
    configuration.apply(changes, fleet, source).await;
    fleet.forget_strangers(configuration.is_whole());
    source.watch_files(configuration.files());
    if begins {
        log::info!("serving {}", fleet.summary());
    }
}

/// The kernel half says what it does only where somebody listens (`POST /logging?level=debug`).
fn follow_level(capture: &Capture, debug: &mut bool) {
    let wanted = log::log_enabled!(log::Level::Debug);
    if wanted != *debug {
        *debug = wanted;
        if let Err(error) = capture.set_debug(wanted) {
            log::warn!("{error}");
        }
    }
}

/// No new connections; what is in flight ends by itself, or at the deadline, or at a second signal.
///
/// Gateways listen until what pods have under way is done: a request on its first hop may still have to dial its second one.
async fn drain(options: &Options, engine: &Arc<Engine>, shared: &Shared, fleet: &mut Fleet, signals: &mut Signals) {
    log::info!("draining {} connections, {} s at most", engine.in_flight(), options.drain_timeout.as_secs());
    shared.set_draining();
    fleet.stop_inbound();
    engine.drain();
    let deadline = Instant::now() + options.drain_timeout;
    let done = async {
        let _ = tokio::time::timeout_at(deadline, engine.ending(false).cancelled()).await;
        fleet.stop_gateways();
        engine.idle(deadline).await
    };
    tokio::select! {
        left = done => match left {
            0 => log::info!("drained"),
            left => log::warn!("{left} connections were still open after {} s and are cut", options.drain_timeout.as_secs()),
        },
        () = signals.stop() => log::warn!("told to stop a second time: cutting {} connections", engine.in_flight()),
    }
}

enum Event {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGUSR1: log files were rotated.
    Reopen,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            reopen: listen(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.reopen.recv() => Event::Reopen,
        }
    }

    async fn stop(&mut self) {
        while !matches!(self.next().await, Event::Stop) {}
    }
}
