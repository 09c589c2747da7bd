//! The endpoints of a cluster at one moment: listed, resolved, or the address dialled.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

use super::{
    Snapshot,
    dial::{DialError, Target, host_name},
    pod::Pod,
};
use crate::mesh::{Application, Cluster, Discovery, Endpoint, EndpointAddress, LoadBalancer, covers};

/// Candidates for a request.
#[derive(Debug)]
pub enum Endpoints {
    /// Those that the table lists: nothing is copied for a request.
    Listed(Arc<Cluster>),
    Found(Vec<Endpoint>),
}

impl Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        match self {
            Self::Found(endpoints) => endpoints,
            Self::Listed(cluster) => match &cluster.discovery {
                Discovery::Static(endpoints) => endpoints,
                _ => &[],
            },
        }
    }
}

/// The endpoint at this address, as far as the table tells of it. Where a client dials endpoints by itself (headless
/// services), a pod of the mesh may be there.
pub fn endpoint_at(snapshot: &Snapshot, cluster: &Cluster, address: EndpointAddress) -> Endpoint {
    let dialled = matches!(cluster.discovery, Discovery::OriginalDestination { .. } | Discovery::Dynamic { .. })
        || cluster.load_balancer == LoadBalancer::Passthrough;
    match &address {
        EndpointAddress::Ip(ip) if dialled => {
            let peer = snapshot.mesh.peers.get(&ip.ip().to_canonical()).filter(|_| !cluster.mesh_external);
            Endpoint { peer: peer.cloned(), ..Endpoint::new(address, 1) }
        }
        _ => cluster.endpoint(&address),
    }
}

/// Every endpoint of the cluster, names resolved as the pod would.
pub async fn endpoints(snapshot: &Snapshot, pod: &Pod, target: &Target<'_>) -> Result<Endpoints, DialError> {
    let cluster = target.cluster;
    if matches!(cluster.discovery, Discovery::Static(_)) && cluster.load_balancer != LoadBalancer::Passthrough {
        return Ok(Endpoints::Listed(cluster.clone()));
    }
    // Boxed: who has a list need not bring the room for a question to a name server.
    Box::pin(found(snapshot, pod, target)).await.map(Endpoints::Found)
}

/// Those that the table does not list.
async fn found(snapshot: &Snapshot, pod: &Pod, target: &Target<'_>) -> Result<Vec<Endpoint>, DialError> {
    let one = |address| endpoint_at(snapshot, target.cluster, EndpointAddress::Ip(address));
    let dialled = |port: Option<u16>| {
        let address = SocketAddr::new(target.original.ip(), port.unwrap_or(target.original.port()));
        // What a gateway's client dialled is the gateway: round and round.
        if pod.is_gateway(address) { Err(DialError::Myself(address)) } else { Ok(vec![one(address)]) }
    };
    match &target.cluster.discovery {
        Discovery::OriginalDestination { port } => dialled(*port),
        _ if target.cluster.load_balancer == LoadBalancer::Passthrough => dialled(None),
        Discovery::Static(endpoints) => Ok(endpoints.clone()),
        Discovery::Application(at) => Ok(vec![Endpoint::new(application(at, target.original), 1)]),
        Discovery::Dynamic { port } => {
            // A route may lead here whatever the request is called: were names resolved that are none of the service's, a
            // gateway's client could have any address dialled.
            let named = target.host.map(host_name).filter(|host| covers(&target.cluster.host, host));
            let host = named.ok_or(DialError::NoEndpoints)?;
            let addresses = resolve(pod, host).await?;
            Ok(addresses.iter().map(|ip| one(SocketAddr::new(*ip, *port))).collect())
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

/// Where the pod's own application is, for a client that dialled `original`.
fn application(at: &Application, original: SocketAddr) -> EndpointAddress {
    match at {
        Application::Dialled => EndpointAddress::Ip(original),
        Application::Own(port) => {
            // A link-local address keeps its interface.
            let mut own = original;
            own.set_port(*port);
            EndpointAddress::Ip(own)
        }
        Application::Loopback(address) => EndpointAddress::Ip(*address),
        Application::Unix(path) => EndpointAddress::Unix(path.clone()),
    }
}

/// An address written as such, or the resolver's answer.
async fn resolve(pod: &Pod, name: &str) -> Result<Arc<[IpAddr]>, DialError> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Ok(Arc::from([ip])),
        Err(_) => Ok(pod.resolver.lookup(name).await?),
    }
}
