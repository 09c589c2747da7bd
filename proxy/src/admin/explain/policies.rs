//! What AuthorizationPolicies say of what is explained.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::HeaderMap;

use super::{Kind, Steps, Target};
use crate::{
    admin::AdminState,
    engine::{
        Snapshot,
        accept::{Arrival, ConnectionInfo},
        authorize,
    },
    mesh::{Cluster, Listener, RequestHead, UpstreamTls, Verdict, Workload},
};

/// What is known of the connection at a hop.
pub struct Hop<'a> {
    pub workload: &'a Workload,
    pub info: ConnectionInfo,
}

impl<'a> Hop<'a> {
    /// Leaving the pod itself.
    pub fn out(state: &dyn AdminState, workload: &'a Workload, dialled: SocketAddr) -> Self {
        Self { workload, info: ConnectionInfo::new(Arrival::Outbound, dialled, address(state, workload)) }
    }

    /// At a gateway's listener; from a pod, by a cluster, or from somebody of whom nothing is known.
    pub fn gateway(
        state: &dyn AdminState,
        workload: &'a Workload,
        listener: &Listener,
        from: Option<(&Self, &Cluster)>,
    ) -> Self {
        let (arrival, at) = (Arrival::Gateway { listener: listener.id, server: None }, address(state, workload));
        let at = SocketAddr::new(at.ip(), listener.id.port);
        let peer = from.map_or(NOWHERE, |(hop, _)| address(state, hop.workload));
        let mut info = ConnectionInfo::new(arrival, at, peer);
        if let Some((hop, Cluster { tls: UpstreamTls::Mesh(_), .. })) = from {
            info.identity = Some(hop.workload.identity.clone());
        }
        Self { workload, info }
    }

    /// How it ends here, where a policy of the gateway or, with a cluster, one about the service forbids it.
    pub fn forbidden(
        &self,
        snapshot: &Snapshot,
        target: &Target,
        cluster: Option<&Cluster>,
        steps: &mut Steps,
    ) -> Option<String> {
        let (authority, headers) = (target.authority(), HeaderMap::new());
        let head = RequestHead {
            method: "GET",
            scheme: "http",
            authority: &authority,
            path: &target.path,
            query: target.query.as_deref(),
            headers: &headers,
        };
        let http = target.kind == Kind::Http;
        let request = http.then_some(&head);
        let mut info = self.info.clone();
        if target.kind == Kind::Https {
            info.sni = Some(target.host.as_str().into());
        }
        let verdict = match cluster {
            None => authorize::entering(snapshot, &self.workload.id, &info, request),
            Some(cluster) => authorize::leaving(snapshot, &self.workload.id, &info, cluster, request),
        };
        let Verdict::Denied(details) = verdict else { return None };
        let who = match info.identity.as_deref() {
            _ if info.arrival == Arrival::Outbound => &*self.workload.identity,
            Some(identity) => identity,
            None => "nobody that it knows",
        };
        let why = if http { format!("a GET without headers of its own by {who}") } else { format!("from {who}") };
        steps.add("policy", details.clone(), why);
        let denied = authorize::DENIED;
        Some(if http { format!("Answered 403 ({denied}): {details}.") } else { format!("Closed: {details}.") })
    }
}

/// An address of the pod, on no port.
fn address(state: &dyn AdminState, workload: &Workload) -> SocketAddr {
    let (name, pods) = (workload.id.to_string(), state.status().pods);
    let own = pods.iter().find(|pod| pod.pod == name).and_then(|pod| pod.addresses.first()?.parse().ok());
    SocketAddr::new(own.unwrap_or(NOWHERE.ip()), 0)
}

/// Not known.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
