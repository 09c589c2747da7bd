//! From a cluster to an upstream connection: addresses found, one chosen, TCP and TLS within one time limit.
//!
//! [`pick`] and [`dial`] are apart so that HTTP can look for a pooled connection in between.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Instant,
};

use smol_str::SmolStr;

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpSocket, time::timeout_at};

pub use super::dial_error::DialError;
use super::{
    Engine, Snapshot, application,
    balance::{ClusterState, Counted, From, Observed, Wish, hash_of},
    endpoints::{self, Endpoints},
    pod::Pod,
    stream::{Socket, UpstreamIo},
};
use crate::{
    mesh::{
        Cluster, Discovery, Endpoint, EndpointAddress, HashKey, Keepalive, LoadBalancer, Protocol, UpstreamTls,
        authority_host,
    },
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
    /// Who connects, where the application is to see it; else it sees its own address.
    pub client: Option<IpAddr>,
}

/// A chosen endpoint; counted as in use until dropped. HTTP keeps it for the request, TCP for the connection.
#[derive(Debug)]
pub struct Picked {
    pub endpoint: Endpoint,
    /// All of the cluster: others are tried within the same attempt where the kernel has no route to `endpoint`.
    candidates: Endpoints,
    cluster: Arc<Cluster>,
    _guard: Counted,
    state: Arc<ClusterState>,
}

impl Picked {
    /// Takes note of how the endpoint did, for `outlierDetection`.
    pub fn observe(&self, observed: Observed) {
        self.observe_at(&self.endpoint.address, observed);
    }

    fn observe_at(&self, address: &EndpointAddress, observed: Observed) {
        if let Some(settings) = &self.cluster.outlier {
            self.state.observe(settings, address, observed);
        }
    }
}

/// What two requests must have in common to share an upstream connection, besides pod and address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsKey {
    /// Changes whenever the rule, its certificates or its CA change; 0 for plain text.
    pub context_id: u64,
    /// The name sent (or the address checked), as text; None for plain text.
    pub name: Option<Box<str>>,
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
    let host = authority_host(host);
    host.strip_suffix('.').unwrap_or(host)
}

/// The cluster of traffic that no service claims: to the address dialled, untouched. Not part of any table; logs name
/// it and bear no cluster.
pub fn passthrough() -> &'static Arc<Cluster> {
    static CLUSTER: LazyLock<Arc<Cluster>> = LazyLock::new(|| {
        Arc::new(Cluster {
            name: PASSTHROUGH.to_owned(),
            host: SmolStr::default(),
            port: 0,
            subset: String::new(),
            protocol: Protocol::Auto,
            discovery: Discovery::OriginalDestination { port: None },
            load_balancer: LoadBalancer::Passthrough,
            hash: None,
            locality: None,
            warmup: None,
            outlier: None,
            pool: Arc::default(),
            tls: UpstreamTls::Plain,
            mesh_external: true,
            service: crate::api::ObjectId::new("ServiceEntry", "", PASSTHROUGH),
            destination_rule: None,
            policies: None,
        })
    });
    &CLUSTER
}

/// The hash of a raw connection, where the cluster's rule is `useSourceIp`: such a connection has nothing else to hash.
pub fn source_hash(cluster: &Cluster, peer: SocketAddr) -> Option<u64> {
    let hashed = cluster.hash.as_ref()?;
    matches!(hashed.key, HashKey::SourceIp).then(|| hash_of(peer.ip().to_canonical().to_string().as_bytes()))
}

/// Finds the endpoints and chooses one by the cluster's policy, not among `tried` where another is left.
pub async fn pick(
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
    tried: &[EndpointAddress],
) -> Result<Picked, DialError> {
    pick_by(&pod.cluster(target.cluster), snapshot, pod, target, tried).await
}

/// The same where the cluster's counters are at hand.
pub async fn pick_by(
    state: &Arc<ClusterState>,
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
    tried: &[EndpointAddress],
) -> Result<Picked, DialError> {
    let cluster = target.cluster;
    let candidates = endpoints::endpoints(snapshot, pod, target).await?;
    let workload = cluster.locality.as_ref().and_then(|_| snapshot.mesh.workloads.get(&pod.id));
    let from = workload.map(|workload| From { locality: &workload.locality, labels: &workload.labels });
    let wish = Wish { cluster, from, hash: target.hash, tried, families: &pod.families };
    let chosen = state.choose(&wish, &candidates).and_then(|index| candidates.get(index));
    let endpoint = chosen.ok_or(DialError::NoEndpoints)?.clone();
    let guard = state.use_endpoint(&endpoint.address);
    Ok(Picked { endpoint, candidates, cluster: cluster.clone(), _guard: guard, state: state.clone() })
}

/// What a pooled connection to `endpoint` must match; fails where the cluster's TLS rule cannot be honoured.
pub fn tls_key(snapshot: &Snapshot, pod: &Pod, target: &Target<'_>, endpoint: &Endpoint) -> Result<TlsKey, DialError> {
    let context = context(snapshot, pod, target.cluster, endpoint)?;
    key(context.as_deref(), target)
}

fn key(context: Option<&ClientContext>, target: &Target<'_>) -> Result<TlsKey, DialError> {
    let Some(context) = context else { return Ok(TlsKey { context_id: 0, name: None }) };
    let name = context.server_name(upstream_name(target)).map_err(refused)?;
    Ok(TlsKey { context_id: context.id, name: Some(name.to_str().into()) })
}

/// The TLS context of the cluster; None where it has no TLS rule, and only there.
pub(super) fn context(
    snapshot: &Snapshot,
    pod: &Pod,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Option<Arc<ClientContext>>, DialError> {
    match &cluster.tls {
        UpstreamTls::Plain => Ok(None),
        UpstreamTls::Mesh(mesh) if !mesh.required && endpoint.mtls_peer().is_none() => Ok(None),
        UpstreamTls::Mesh(_) if is_itself(pod, endpoint) => Ok(None),
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

/// A pod that calls itself through a service: its inbound is captured from outside only, so the application would get the
/// bytes of the handshake. They never leave the pod, so it gets plain text.
fn is_itself(pod: &Pod, endpoint: &Endpoint) -> bool {
    let captured = endpoint.peer.as_ref().is_some_and(|peer| peer.captured.is_some());
    captured && matches!(&endpoint.address, EndpointAddress::Ip(address) if pod.is_own(address.ip()))
}

pub(super) fn refused(error: impl fmt::Display) -> DialError {
    DialError::Refused(error.to_string().into())
}

/// The name that the rule gives; else the Host asked for (HTTP); else the service's own name, which a wildcard does not have.
pub(super) fn upstream_name<'a>(target: &Target<'a>) -> UpstreamName<'a> {
    if let UpstreamTls::Originate(settings) = &target.cluster.tls
        && let Some(sni) = &settings.sni
    {
        return UpstreamName { host: Some(sni) };
    }
    let service = || Some(target.cluster.host.as_str()).filter(|host| !host.is_empty() && !host.contains('*'));
    UpstreamName { host: target.host.map(host_name).filter(|host| !host.is_empty()).or_else(service) }
}

/// Connects to what was picked, TLS included, within the cluster's connect timeout. `may_h2`: ALPN may choose h2.
pub async fn dial(
    engine: &Engine,
    snapshot: &Snapshot,
    pod: &Pod,
    target: &Target<'_>,
    picked: &Picked,
    may_h2: bool,
) -> Result<Upstream, DialError> {
    let cluster = target.cluster;
    // Before anything is dialled: a rule that cannot be honoured opens no connection.
    tls_key(snapshot, pod, target, &picked.endpoint)?;
    let guard = picked.state.connection(&cluster.pool).ok_or(DialError::Overflow("maxConnections"))?;
    let deadline = tokio::time::Instant::now() + cluster.pool.connect_timeout;
    let (socket, endpoint) = connect(pod, target, picked, deadline).await?;
    let address = endpoint.address.clone();
    let context = context(snapshot, pod, cluster, endpoint)?;
    let key = key(context.as_deref(), target)?;
    let local = socket.local();
    let Some(context) = context else {
        picked.observe_at(&address, Observed::Connected);
        return Ok(Upstream { io: UpstreamIo::Plain(socket), address, local, h2: false, tls: false, key, guard });
    };
    let begun = Instant::now();
    let name = upstream_name(target);
    let handshake = timeout_at(deadline, async {
        if may_h2 { context.connect(name, socket).await } else { context.connect_without_h2(name, socket).await }
    })
    .await;
    let text = || address_text(&address);
    let result = match handshake {
        Err(_) => Err(DialError::Timeout { address: text() }),
        Ok(Err(error)) => Err(DialError::Tls { address: text(), reason: error.to_string().into() }),
        Ok(Ok(stream)) => Ok(stream),
    };
    let told = result.as_ref().map(|_| ()).map_err(ToString::to_string);
    engine.sink().handshake(&pod.id, cluster, told.as_ref().copied().map_err(String::as_str), begun.elapsed());
    picked.observe_at(&address, if result.is_ok() { Observed::Connected } else { Observed::Failed });
    let stream = result?;
    let h2 = alpn_is_h2(&stream);
    Ok(Upstream { io: UpstreamIo::Tls(Box::new(stream)), address, local, h2, tls: true, key, guard })
}

/// TCP (or unix) to the address picked; where the kernel has no route, to the next.
async fn connect<'p>(
    pod: &Pod,
    target: &Target<'_>,
    picked: &'p Picked,
    deadline: tokio::time::Instant,
) -> Result<(Socket, &'p Endpoint), DialError> {
    let mut failure = None;
    let own = matches!(target.cluster.discovery, Discovery::Application(_));
    let others = picked.candidates.iter().filter(|other| other.address != picked.endpoint.address);
    for endpoint in std::iter::once(&picked.endpoint).chain(others) {
        let address = &endpoint.address;
        let text = || address_text(address);
        let attempt = async {
            match address {
                EndpointAddress::Unix(path) => pod.sockets.unix(path).map(Socket::Unix),
                EndpointAddress::Ip(remote) => {
                    let keepalive = picked.cluster.pool.tcp_keepalive.as_ref();
                    if own {
                        return application::connect(pod, *remote, target.client, keepalive).await.map(Socket::Tcp);
                    }
                    let socket = pod.sockets.tcp(*remote)?;
                    if let Some(keepalive) = keepalive {
                        keep_alive(&socket, keepalive)?;
                    }
                    socket.connect(*remote).await.map(Socket::Tcp)
                }
            }
        };
        if let EndpointAddress::Ip(remote) = address
            && pod.is_listener(*remote)
        {
            return Err(DialError::Myself(*remote));
        }
        match timeout_at(deadline, attempt).await {
            Err(_) => {
                picked.observe_at(address, Observed::Failed);
                return Err(DialError::Timeout { address: text() });
            }
            Ok(Ok(socket)) => {
                if !own && let EndpointAddress::Ip(remote) = address {
                    pod.families.reachable(*remote);
                }
                return Ok((socket, endpoint));
            }
            Ok(Err(error)) => {
                // The pod itself says nothing of the ways that lead out of it.
                let no_route = !own && no_route(&error);
                if no_route && let EndpointAddress::Ip(remote) = address {
                    pod.families.unreachable(*remote);
                }
                picked.observe_at(address, Observed::Failed);
                failure.get_or_insert(DialError::Connect { address: text(), source: Arc::new(error) });
                if !no_route {
                    break;
                }
            }
        }
    }
    Err(failure.unwrap_or(DialError::NoEndpoints))
}

/// `tcpKeepalive`; what it leaves out is the kernel's default.
pub(super) fn keep_alive(socket: &TcpSocket, wanted: &Keepalive) -> io::Result<()> {
    let mut settings = TcpKeepalive::new();
    if let Some(time) = wanted.time {
        settings = settings.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        settings = settings.with_interval(interval);
    }
    if let Some(probes) = wanted.probes {
        settings = settings.with_retries(probes);
    }
    SockRef::from(socket).set_tcp_keepalive(&settings)
}

/// The kernel's ways of saying at once that an address cannot be reached from here.
fn no_route(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keep_alive_is_set_as_far_as_it_is_given() {
        let socket = TcpSocket::new_v4().unwrap();
        let reference = SockRef::from(&socket);
        let before = (reference.tcp_keepalive_interval().unwrap(), reference.tcp_keepalive_retries().unwrap());
        keep_alive(&socket, &Keepalive { time: Some(Duration::from_secs(17)), probes: None, interval: None }).unwrap();
        assert!(reference.keepalive().unwrap());
        assert_eq!(reference.tcp_keepalive_time().unwrap(), Duration::from_secs(17));
        let after = (reference.tcp_keepalive_interval().unwrap(), reference.tcp_keepalive_retries().unwrap());
        assert_eq!(before, after);
        let all = Keepalive { time: None, probes: Some(3), interval: Some(Duration::from_secs(5)) };
        keep_alive(&socket, &all).unwrap();
        let after = (reference.tcp_keepalive_interval().unwrap(), reference.tcp_keepalive_retries().unwrap());
        assert_eq!(after, (Duration::from_secs(5), 3));
    }
}
