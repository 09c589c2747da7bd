//! Where AuthorizationPolicies are asked: when a connection or request has come, and when it leaves for a service.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{
    Snapshot,
    accept::{Arrival, ConnectionInfo},
};
use crate::mesh::{Attributes, Cluster, Discovery, Policies, RequestHead, Verdict, WorkloadId};

/// What a client is told.
pub const DENIED: &str = "RBAC: access denied";

/// Those who come to a place that is no longer in the table.
const UNKNOWN: &str = "rbac_access_denied_matched_policy[none]";

impl Snapshot {
    /// The policies of the place that a connection has come to: the pod's own ports, or its gateway. None where there is
    /// none: on the way out, each service has its own.
    pub fn policies(&self, pod: &WorkloadId, arrival: &Arrival) -> Option<&Policies> {
        let workload = || self.mesh.workloads.get(pod);
        match arrival {
            Arrival::Outbound => None,
            Arrival::Gateway { .. } => workload()?.gateway.as_ref().map(|table| &*table.policies),
            Arrival::Inbound => workload()?.inbound.as_ref().map(|table| &*table.policies),
        }
    }
}

/// Whether what has come may enter. `request`: None for a connection that is not HTTP.
pub fn entering(
    snapshot: &Snapshot,
    pod: &WorkloadId,
    info: &ConnectionInfo,
    request: Option<&RequestHead<'_>>,
) -> Verdict {
    let Some(policies) = snapshot.policies(pod, &info.arrival) else {
        return match info.arrival {
            Arrival::Outbound => Verdict::Allowed,
            Arrival::Inbound | Arrival::Gateway { .. } => Verdict::Denied(UNKNOWN.to_owned()),
        };
    };
    policies.check(&Attributes {
        principal: info.identity.as_deref(),
        source: info.peer.ip(),
        remote: info.peer.ip(),
        destination: info.original,
        sni: info.sni.as_deref(),
        request,
    })
}

/// Whether it may go on to a service.
pub fn leaving(
    snapshot: &Snapshot,
    pod: &WorkloadId,
    info: &ConnectionInfo,
    cluster: &Cluster,
    request: Option<&RequestHead<'_>>,
) -> Verdict {
    let Some(policies) = &cluster.policies else { return Verdict::Allowed };
    // Where it goes is what was dialled only where nothing else decides that.
    let dialled =
        info.arrival == Arrival::Outbound && matches!(cluster.discovery, Discovery::OriginalDestination { .. });
    let address = if dialled { info.original.ip() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let workload = snapshot.mesh.workloads.get(pod);
    // A gateway speaks for those who call it to a service outside; inside the mesh it has its own name.
    let own = info.arrival == Arrival::Outbound || cluster.service.kind != "ServiceEntry";
    let principal = match workload {
        Some(workload) if own => Some(&*workload.identity),
        _ => info.identity.as_deref(),
    };
    policies.check(&Attributes {
        principal,
        source: info.peer.ip(),
        remote: info.peer.ip(),
        destination: SocketAddr::new(address, cluster.port),
        sni: info.sni.as_deref(),
        request,
    })
}
