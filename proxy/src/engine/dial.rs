//! From a cluster to an upstream connection: addresses found, one chosen, TCP and TLS within one time limit.
//!
//! [`pick`] and [`dial`] are apart so that HTTP can look for a pooled connection in between.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Instant,
};

use rustls_pki_types::ServerName;
use tokio::time::timeout_at;

pub use super::dial_error::DialError;
use super::{
    Engine, Snapshot,
    balance::{ClusterState, Counted},
    pod::Pod,
    stream::{Socket, UpstreamIo},
};
use crate::{
    limits,
    mesh::{Cluster, Discovery, Endpoint, EndpointAddress, LoadBalancer, Pool, Protocol, UpstreamTls},
    tls::{ClientContext, UpstreamName, alpn_is_h2},
};

pub const PASSTHROUGH: &str = "PassthroughCluster";
pub const BLACK_HOLE: &str = "BlackHoleCluster";

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub cluster: &'a Arc<Cluster>,
    /// The address the client dialled.
    pub original: SocketAddr,
    /// Host (HTTP, with or without port) or SNI asked for. None: the client named nothing.
    pub host: Option<&'a str>,
    /// What `consistentHash` makes of the request; None: nothing to hash.
    pub hash: Option<u64>,
}

/// A chosen endpoint; counted as in use until dropped. HTTP keeps it for the request, TCP for the connection.
#[derive(Debug)]
pub struct Picked {
    pub endpoint: Endpoint,
    /// Others of the same cluster, tried within the same attempt where the kernel has no route to `endpoint`.
    alternatives: Vec<Endpoint>,
    _guard: Counted,
    state: Arc<ClusterState>,
}

/// What two requests must have in common to share an upstream connection, besides pod and address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsKey {
    /// Changes whenever the rule, its certificates or its CA change; 0 for plain text.
    pub context_id: u64,
    /// The name sent (or the address checked); None for plain text.
    pub name: Option<ServerName<'static>>,
}

/// An upstream connection, TLS done. Counted against `maxConnections` until dropped.
pub struct Upstream {
    pub io: UpstreamIo,
    /// Where it leads, which may be an alternative to what was picked.
    pub address: EndpointAddress,
    pub local: Option<SocketAddr>,
    /// ALPN chose h2.
    pub h2: bool,
    pub tls: bool,
    pub key: TlsKey,
    pub guard: Counted,
}

/// An endpoint as the access log shows it.
pub fn address_text(address: &EndpointAddress) -> String {
    struct Shown<'a>(&'a EndpointAddress);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                EndpointAddress::Ip(address) => address.fmt(f),
                EndpointAddress::Unix(path) => path.display().fmt(f),
            }
        }
    }
    Shown(address).to_string()
}

/// Host without port, brackets and trailing dot: `[::1]:80` → `::1`, `a.example.:80` → `a.example`.
pub fn host_name(host: &str) -> &str {
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        // More than one colon and no bracket is a bare IPv6 address.
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or(host),
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// The limits of a cluster without DestinationRule.
pub fn default_pool() -> Pool {
    Pool {
        connect_timeout: limits::CONNECT_TIMEOUT,
        max_connections: None,
        max_pending_requests: None,
        max_requests: None,
        max_requests_per_connection: None,
        max_retries: None,
        max_connection_duration: None,
        http_idle_timeout: limits::IDLE_TIMEOUT,
        tcp_idle_timeout: limits::IDLE_TIMEOUT,
        h2_upgrade: false,
        use_client_protocol: false,
        max_concurrent_streams: None,
        tcp_keepalive: None,
    }
}

/// The cluster of traffic that no service claims: to the address dialled, untouched. Not part of any table; logs name
/// it and bear no cluster.
pub fn passthrough() -> &'static Arc<Cluster> {
    static CLUSTER: LazyLock<Arc<Cluster>> = LazyLock::new(|| {
        Arc::new(Cluster {
            name: PASSTHROUGH.to_owned(),
            host: String::new(),
            port: 0,
            subset: String::new(),
            protocol: Protocol::Auto,
            discovery: Discovery::OriginalDestination { port: None },
            load_balancer: LoadBalancer::Passthrough,
            hash: None,
            locality: None,
            warmup: None,
            outlier: None,
            pool: default_pool(),
            tls: UpstreamTls::Plain,
            mesh_external: true,
            service: crate::api::ObjectId {
                kind: "ServiceEntry",
                namespace: String::new(),
                name: PASSTHROUGH.to_owned(),
            },
            destination_rule: None,
        })
    });
    &CLUSTER
}

/// Finds the endpoints and chooses one by the cluster's policy, not among `tried` where another is left.
pub async fn pick(
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
    tried: &[EndpointAddress],
) -> Result<Picked, DialError> {
    let cluster = target.cluster;
    let mut candidates = endpoints(snapshot, pod, target).await?;
    if candidates.iter().any(|candidate| pod.families.usable(&candidate.address)) {
        candidates.retain(|candidate| pod.families.usable(&candidate.address));
    }
    let state = pod.cluster(cluster);
    let endpoint = state.choose(cluster.load_balancer, &candidates, tried).ok_or(DialError::NoEndpoints)?.clone();
    let guard = state.use_endpoint(&endpoint.address);
    candidates.retain(|other| other.address != endpoint.address);
    Ok(Picked { endpoint, alternatives: candidates, _guard: guard, state })
}

/// What a pooled connection to `endpoint` must match; fails where the cluster's TLS rule cannot be honoured.
pub fn tls_key(snapshot: &Snapshot, pod: &Pod, target: &Target<'_>, endpoint: &Endpoint) -> Result<TlsKey, DialError> {
    let context = context(snapshot, pod, target.cluster, endpoint)?;
    key(context.as_deref(), target)
}

fn key(context: Option<&ClientContext>, target: &Target<'_>) -> Result<TlsKey, DialError> {
    let Some(context) = context else { return Ok(TlsKey { context_id: 0, name: None }) };
    let name = context.server_name(upstream_name(target)).map_err(refused)?;
    Ok(TlsKey { context_id: context.id, name: Some(name) })
}

/// The TLS context of the cluster; None where it has no TLS rule, and only there.
fn context(
    snapshot: &Snapshot,
    pod: &Pod,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Option<Arc<ClientContext>>, DialError> {
    match &cluster.tls {
        UpstreamTls::Plain => Ok(None),
        UpstreamTls::Mesh(mesh) if !mesh.required && !endpoint.peer.as_ref().is_some_and(|peer| peer.captured) => {
            Ok(None)
        }
        UpstreamTls::Mesh(mesh) => {
            let Some(workload) = snapshot.mesh.workloads.get(&pod.id) else {
                return Err(DialError::Refused(format!("{} is not enrolled any more", pod.id).into()));
            };
            snapshot.tls.mesh_client(&workload.identity, mesh, endpoint.peer.as_deref()).map(Some).map_err(refused)
        }
        UpstreamTls::Refuse(reason) => Err(DialError::Refused(reason.clone())),
        UpstreamTls::Originate(settings) => snapshot.tls.get(settings).map(Some).map_err(refused),
    }
}

fn refused(error: impl fmt::Display) -> DialError {
    DialError::Refused(error.to_string().into())
}

/// The Host asked for (HTTP); else the service's own name, which a wildcard does not have.
fn upstream_name<'a>(target: &Target<'a>) -> UpstreamName<'a> {
    let service = || Some(target.cluster.host.as_str()).filter(|host| !host.is_empty() && !host.contains('*'));
    UpstreamName { host: target.host.map(host_name).filter(|host| !host.is_empty()).or_else(service) }
}

/// Connects to what was picked, TLS included, within the cluster's connect timeout.
pub async fn dial(
    engine: &Engine,
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
    picked: &Picked,
) -> Result<Upstream, DialError> {
    let cluster = target.cluster;
    // Before anything is dialled: a rule that cannot be honoured opens no connection.
    tls_key(snapshot, pod, target, &picked.endpoint)?;
    let guard = picked.state.connection(&cluster.pool).ok_or(DialError::Overflow("maxConnections"))?;
    let deadline = tokio::time::Instant::now() + cluster.pool.connect_timeout;
    let (socket, endpoint) = connect(pod, picked, deadline).await?;
    let address = endpoint.address.clone();
    let context = context(snapshot, pod, cluster, endpoint)?;
    let key = key(context.as_deref(), target)?;
    let local = socket.local();
    let Some(context) = context else {
        return Ok(Upstream { io: UpstreamIo::Plain(socket), address, local, h2: false, tls: false, key, guard });
    };
    let begun = Instant::now();
    let handshake = timeout_at(deadline, context.connect(upstream_name(target), socket)).await;
    let text = || address_text(&address);
    let result = match handshake {
        Err(_) => Err(DialError::Timeout { address: text() }),
        Ok(Err(error)) => Err(DialError::Tls { address: text(), reason: error.to_string().into() }),
        Ok(Ok(stream)) => Ok(stream),
    };
    let told = result.as_ref().map(|_| ()).map_err(ToString::to_string);
    engine.sink().handshake(&pod.id, cluster, told.as_ref().copied().map_err(String::as_str), begun.elapsed());
    let stream = result?;
    let h2 = alpn_is_h2(&stream);
    Ok(Upstream { io: UpstreamIo::Tls(Box::new(stream)), address, local, h2, tls: true, key, guard })
}

/// TCP (or unix) to the address picked; where the kernel has no route, to the next.
async fn connect<'p>(
    pod: &Pod,
    picked: &'p Picked,
    deadline: tokio::time::Instant,
) -> Result<(Socket, &'p Endpoint), DialError> {
    let mut failure = None;
    for endpoint in std::iter::once(&picked.endpoint).chain(&picked.alternatives) {
        let address = &endpoint.address;
        let text = || address_text(address);
        let attempt = async {
            match address {
                EndpointAddress::Unix(path) => pod.sockets.unix(path).map(Socket::Unix),
                EndpointAddress::Ip(remote) => {
                    let stream = pod.sockets.tcp(*remote)?.connect(*remote).await?;
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(stream))
                }
            }
        };
        if let EndpointAddress::Ip(remote) = address
            && pod.is_listener(*remote)
        {
            return Err(DialError::Myself(*remote));
        }
        match timeout_at(deadline, attempt).await {
            Err(_) => return Err(DialError::Timeout { address: text() }),
            Ok(Ok(socket)) => {
                if let EndpointAddress::Ip(remote) = address {
                    pod.families.reachable(*remote);
                }
                return Ok((socket, endpoint));
            }
            Ok(Err(error)) => {
                let no_route = no_route(&error);
                if no_route && let EndpointAddress::Ip(remote) = address {
                    pod.families.unreachable(*remote);
                }
                failure.get_or_insert(DialError::Connect { address: text(), source: Arc::new(error) });
                if !no_route {
                    break;
                }
            }
        }
    }
    Err(failure.unwrap_or(DialError::NoEndpoints))
}

/// The kernel's ways of saying at once that an address cannot be reached from here.
fn no_route(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

/// Every endpoint of the cluster, names resolved as the pod would.
async fn endpoints(snapshot: &Snapshot, pod: &Pod, target: &Target<'_>) -> Result<Vec<Endpoint>, DialError> {
    let one = |address: SocketAddr| {
        let peer = snapshot.mesh.peers.get(&address.ip().to_canonical()).filter(|_| !target.cluster.mesh_external);
        vec![Endpoint { peer: peer.cloned(), ..Endpoint::new(EndpointAddress::Ip(address), 1) }]
    };
    if target.cluster.load_balancer == LoadBalancer::Passthrough {
        let port = match target.cluster.discovery {
            Discovery::OriginalDestination { port: Some(port) } => port,
            _ => target.original.port(),
        };
        return Ok(one(SocketAddr::new(target.original.ip(), port)));
    }
    match &target.cluster.discovery {
        Discovery::Static(endpoints) => Ok(endpoints.clone()),
        Discovery::OriginalDestination { port } => {
            Ok(one(SocketAddr::new(target.original.ip(), port.unwrap_or(target.original.port()))))
        }
        Discovery::Dynamic { port } => {
            let host = target.host.map(host_name).ok_or(DialError::NoEndpoints)?;
            let addresses = resolve(pod, host).await?;
            Ok(addresses.iter().flat_map(|ip| one(SocketAddr::new(*ip, *port))).collect())
        }
        Discovery::Dns { targets, one_at_a_time } => {
            let answers = futures_util::future::join_all(targets.iter().map(|t| resolve(pod, &t.name))).await;
            let mut candidates = Vec::new();
            let mut failure = None;
            for (target, answer) in targets.iter().zip(answers) {
                match answer {
                    Ok(addresses) => {
                        let mut all = addresses.iter().map(|ip| {
                            Endpoint::new(EndpointAddress::Ip(SocketAddr::new(*ip, target.port)), target.weight)
                        });
                        if *one_at_a_time {
                            // The first that leads anywhere from this pod.
                            let first = all.clone().find(|c| pod.families.usable(&c.address)).or_else(|| all.next());
                            candidates.extend(first);
                        } else {
                            candidates.extend(all);
                        }
                    }
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                Some(error) if candidates.is_empty() => Err(error),
                _ => Ok(candidates),
            }
        }
    }
}

/// An address written as such, or the resolver's answer.
async fn resolve(pod: &Pod, name: &str) -> Result<Arc<[IpAddr]>, DialError> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Ok(Arc::from([ip])),
        Err(_) => Ok(pod.resolver.lookup(name).await?),
    }
}
