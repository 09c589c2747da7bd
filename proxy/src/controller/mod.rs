//! `egret controller`: what a cluster needs once, beside the agents on its nodes.
//!
//! Several may run; a Lease says which one works. What it does is a set of tasks that live as long as it leads ([`lead`]):
//! [`authority`] keeps the mesh's CA and publishes its roots, [`signer`] answers the agents' requests for certificates,
//! [`gateways`] runs the pods of the Gateway API's Gateways and reports on them and their routes.
//! Nothing is kept in memory that a next leader would miss.

mod authority;
mod error;
pub mod gateways;
mod health;
mod judge;
mod lease;
mod metrics;
mod signer;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use self::{
    health::{Health, LEASE},
    lease::Lease,
};
use crate::{admin, source::kubernetes::client};

pub use error::ControllerError;

/// The service account that the agents of the nodes have, in the controller's namespace.
pub const AGENTS: &str = "egret-agent";

/// What `egret controller` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub admin: SocketAddr,
    /// Its own; None: POD_NAMESPACE, or that of its service account, or of the kubeconfig.
    pub namespace: Option<String>,
    pub gateways: gateways::Options,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: Options) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let health = Arc::new(Health::default());
    health.awaits(LEASE, Some("the API server: not reached yet".to_owned()));
    let _admin = admin::start_health(admin::listen(options.admin)?, health.clone())?;
    let client = client::connect().await?;
    let namespace = options.namespace.unwrap_or_else(|| client::namespace(&client));
    // The pod's name is for people; a container that was started anew in the same pod is another one.
    let pod = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
    let own = format!("{}_{}", pod.as_deref().unwrap_or("controller"), uuid::Uuid::new_v4());
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut lease = Lease::new(client.clone(), &namespace, own, health.clone());
    log::info!("controller {} of namespace {namespace}: waits for the lease", lease.own());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = work(&mut lease, &client, &namespace, &options.gateways, &health) => {}
    }
    lease.release().await;
    Ok(())
}

/// Leads whenever the lease is ours, for ever.
async fn work(lease: &mut Lease, client: &Client, namespace: &str, gateways: &gateways::Options, health: &Arc<Health>) {
    loop {
        lease.acquire().await;
        log::info!("leads now");
        health.metrics.leads(true);
        // Whatever is under way ends where it is: each write says which state it is for, so the next leader's win.
        let lost = tokio::select! {
            lost = lease.hold() => lost,
            () = lead(client, namespace, gateways, health) => "its tasks ended".to_owned(),
        };
        health.metrics.leads(false);
        health.follows();
        log::warn!("leads no more: {lost}");
    }
}

/// Everything that only one may do. Never returns.
async fn lead(client: &Client, namespace: &str, gateways: &gateways::Options, health: &Health) {
    let (issuing, issues) = watch::channel(None);
    tokio::join!(
        authority::keep(client.clone(), namespace, health, issuing),
        signer::run(client.clone(), namespace, &health.metrics, issues),
        gateways::run(client.clone(), gateways, &health.metrics),
    );
}
