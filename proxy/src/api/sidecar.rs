//! networking.istio.io Sidecar.

use std::{collections::BTreeMap, net::IpAddr, net::SocketAddr, path::PathBuf};

use super::{
    gateway::ServerTls,
    istio::{ConnectionPool, Port},
};

/// networking.istio.io Sidecar: what one workload, or all of a namespace, may reach and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sidecar {
    /// `workloadSelector.labels`; empty: every workload of the namespace (of the mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    pub ingress: Vec<IngressListener>,
    /// Empty: everything that the namespace may see.
    pub egress: Vec<EgressListener>,
    /// `outboundTrafficPolicy.mode`: true where it is REGISTRY_ONLY; None: the mesh's.
    pub registry_only: Option<bool>,
    /// `inboundConnectionPool`, for ingress listeners that have none of their own.
    pub inbound_pool: Option<ConnectionPool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressListener {
    pub port: Port,
    /// An address to listen on instead of all.
    pub bind: Option<IpAddr>,
    /// None: the same port of the application.
    pub default_endpoint: Option<DefaultEndpoint>,
    /// Counts only where PeerAuthentication disables mesh mTLS on the port.
    pub tls: Option<ServerTls>,
    pub connection_pool: Option<ConnectionPool>,
}

/// `defaultEndpoint`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultEndpoint {
    /// `127.0.0.1:PORT` or `[::1]:PORT`
    Loopback(SocketAddr),
    /// `0.0.0.0:PORT` or `[::]:PORT`: the pod's own address.
    Own(u16),
    /// `unix:///path`
    Unix(PathBuf),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressListener {
    /// None: every port.
    pub port: Option<Port>,
    /// As written: `namespace/host`, where namespace may be `.`, `*` or `~` (nothing at all).
    pub hosts: Vec<String>,
}
