//! The admin endpoints: health, metrics, what is in force, and the answers that the command line prints.
//!
//! They run on a thread and a small runtime of their own, so that they answer even where the data path is busy or
//! stuck. What they tell they ask of [`AdminState`], which the agent implements.

mod dump;
mod explain;
pub mod inbound;
mod listeners;
mod routes;
pub mod rows;
mod server;
mod tables;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

pub use server::{Access, Admin, AdminError, candidates, encode, listen, listen_everywhere, start, start_health};

/// Where the admin endpoints are, unless `--admin` says other: Istio's proxies have theirs there. A test keeps the chart's ports
/// equal to these.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// Where an agent in a cluster answers at the node's address, read only: with [`ADDRESS`] it is 15020, where Istio's agents show
/// their metrics.
#[must_use]
pub const fn read_only_port(admin: SocketAddr) -> u16 {
    admin.port().saturating_add(20)
}

use crate::{
    api::Diagnostic,
    engine::Snapshot,
    mesh::{EndpointAddress, WorkloadId},
};

/// An answer that takes a while.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What probes and scrapers ask of a process without a data path.
pub trait HealthState: Send + Sync + 'static {
    /// What is awaited, one sentence each. Empty: ready.
    fn readiness(&self) -> Vec<String>;
    /// All metrics, see [`crate::telemetry::metrics::CONTENT_TYPE`].
    fn metrics(&self) -> Result<String, fmt::Error>;
}

/// What the admin endpoints ask of the agent. Called from the admin thread: nothing here may block for long.
pub trait AdminState: Send + Sync + 'static {
    /// The table and the TLS contexts in force.
    fn snapshot(&self) -> Arc<Snapshot>;
    /// What is awaited before the agent is ready, one sentence each: `pod default/sleep: listener not bound yet`. Empty:
    /// ready.
    fn readiness(&self) -> Vec<String>;
    /// The agent at a glance.
    fn status(&self) -> rows::Status;
    /// Findings about the configuration that hold now: what is refused, and warnings.
    fn diagnostics(&self) -> Vec<Diagnostic>;
    /// The addresses of `name` as this pod resolves it, from its cache where it is there. Sockets must be driven by the
    /// agent's runtime, not by the one that polls this.
    fn resolve<'a>(&'a self, workload: &'a WorkloadId, name: &'a str) -> Later<'a, Result<Vec<IpAddr>, String>>;
    /// True while outlier detection keeps this endpoint of the cluster from this pod.
    fn is_ejected(&self, workload: &WorkloadId, cluster: &str, address: &EndpointAddress) -> bool;
    /// All metrics, see [`crate::telemetry::metrics::CONTENT_TYPE`].
    fn metrics(&self) -> Result<String, fmt::Error>;
    /// Begins to drain, as SIGTERM does. Returns at once.
    fn drain(&self);
}
