//! Wires the parts together: reads configuration, enrols pods, serves, drains.

mod configuration;
mod ending;
mod fleet;
mod handover;
mod place;
mod shared;
mod signals;
mod source;
mod state_dir;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::{
    configuration::Configuration,
    ending::Parts,
    fleet::Fleet,
    handover::{Offer, Wish},
    place::Place,
    shared::Shared,
    signals::{Event, Signals},
    source::Source,
    state_dir::StateDir,
};
use crate::{
    admin::{self, Access, Admin},
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
    /// Take the place of an agent that runs on this state folder already.
    pub take_over: bool,
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
/// `egret uninstall`. An agent that takes over before then refuses nobody.
pub fn run(options: Options) -> anyhow::Result<()> {
    // Before anything that would fail with a riddle for want of the same rights.
    Capture::preflight()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    // The lock is held for the life of the process: two agents on one state would fight over the same pins.
    let place = runtime.block_on(Place::find(&options))?;
    // Traffic has threads of its own: a reload, which may take this one a second, holds up no connection. Those that outlived
    // the drain are cut, not waited for.
    let (workers, _ending) = Workers::start().context("cannot start the threads that serve traffic")?;
    let _lock = runtime.block_on(serve(&options, workers, place))?;
    Ok(())
}

/// Answers the lock, where nobody else got it.
async fn serve(options: &Options, workers: Workers, place: Place) -> anyhow::Result<Option<StateDir>> {
    let mut signals = Signals::new()?;
    let (mut source, first) = Source::open(&options.input).await?;
    // Where another agent serves, its endpoints answer until it has handed over.
    let listeners = matches!(place, Place::Own(_)).then(|| admin_listeners(options)).transpose()?;
    let capture = Arc::new(Capture::start(&crate::capture::Options {
        instance: instance(&options.state_dir),
        debug: log::log_enabled!(log::Level::Debug),
        takes_over: matches!(place, Place::After(..)),
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
    let mut endpoints = match listeners {
        Some(listeners) => serve_admin(listeners, &shared)?,
        None => Vec::new(),
    };

    let node = match &options.input {
        Input::Files(_) => None,
        Input::Kubernetes(node) => Some(node),
    };
    let mut fleet = Fleet::new(capture.clone(), engine.clone(), node.map(|node| Node::new(&node.cgroup_root)));
    shared.watches(source.health());
    let name = node.map(|node| node.name.as_str());
    let mut configuration =
        Configuration::new(engine.clone(), telemetry.clone(), shared.clone(), identities.clone(), name, place);

    let mut debug = log::log_enabled!(log::Level::Debug);
    let mut check = interval(limits::POD_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewal = interval(limits::IDENTITY_CHECK);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = first;
    let mut offer = None;
    // Told to stop while a next agent prepares itself: served on until then.
    let mut patience = None;
    let next = loop {
        tokio::select! {
            changes = changes(&mut first, &mut source) => {
                let begins = configuration.is_empty();
                configuration.apply(changes, &mut fleet, &mut source).await?;
                source.watch_files(configuration.files());
                if begins {
                    if endpoints.is_empty() {
                        endpoints = serve_admin(admin_listeners(options)?, &shared)?;
                    }
                    offer = Offer::open(&options.state_dir).inspect_err(|error| log::warn!("{error}")).ok();
                    log::info!("serving {}", fleet.summary());
                }
            }
            () = fleet.woken() => configuration.look_for_pods(&mut fleet, &mut source).await?,
            _ = check.tick() => {
                if !configuration.is_empty() {
                    configuration.check_pods(&mut fleet, &mut source).await?;
                }
                follow_level(&capture, &mut debug);
            }
            _ = renewal.tick(), if !configuration.is_empty() => {
                configuration.renew_identities(&mut fleet, &mut source).await?;
            }
            () = identities.arrived(), if !configuration.is_empty() => {
                configuration.renew_identities(&mut fleet, &mut source).await?;
            }
            event = signals.next() => match event {
                Event::Stop if patience.is_none() && offer.as_ref().is_some_and(Offer::is_wanted) => {
                    log::info!("serving on until the next agent takes over, {} s at most", limits::HANDOVER_WAIT.as_secs());
                    patience = Some(Instant::now() + limits::HANDOVER_WAIT);
                }
                Event::Stop => break None,
                Event::Reopen => telemetry.reopen(),
            },
            wish = wish(&mut offer) => match wish {
                Wish::Asked(next) => break Some(next),
                Wish::Changed => {
                    let wanted = offer.as_ref().is_some_and(Offer::is_wanted);
                    shared.set_succeeded(wanted);
                    if patience.is_some() && !wanted {
                        break None;
                    }
                }
            },
            () = until(patience) => break None,
            () = shared.drain_asked() => break None,
        }
    };
    drop(offer);
    let mut lock = configuration.into_lock();
    let mut parts = Parts { options, engine: &engine, shared: &shared, fleet: &mut fleet, signals: &mut signals };
    match (next, lock.take()) {
        (Some(next), Some(held)) => {
            // Their addresses are the next one's now.
            endpoints.clear();
            parts.hand_over(next, held).await.context("cannot hand over to the next agent")?;
        }
        (_, held) => {
            parts.drain().await;
            lock = held;
        }
    }
    fleet.close();
    telemetry.flush(limits::LOG_FLUSH);
    Ok(lock)
}

/// What was read at the start, and then what changes.
async fn changes(first: &mut Option<Vec<FileChange>>, source: &mut Source) -> Vec<FileChange> {
    match first.take() {
        Some(first) => first,
        None => source.next().await,
    }
}

async fn wish(offer: &mut Option<Offer>) -> Wish {
    match offer {
        Some(offer) => offer.wish().await,
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Bound before anything is changed that a taken port would leave half-made.
fn admin_listeners(options: &Options) -> anyhow::Result<Vec<(TcpListener, Access)>> {
    let mut listeners = vec![(admin::listen(options.admin)?, Access::Full)];
    // What other machines ask comes through the API server, which reaches the node's address.
    if matches!(options.input, Input::Kubernetes(_)) {
        let port = admin::read_only_port(options.admin);
        listeners.push((admin::listen_everywhere(port)?, Access::Read));
    }
    Ok(listeners)
}

fn serve_admin(listeners: Vec<(TcpListener, Access)>, shared: &Arc<Shared>) -> anyhow::Result<Vec<Admin>> {
    let start = |(listener, access)| Ok(admin::start(listener, access, shared.clone())?);
    listeners.into_iter().map(start).collect()
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
