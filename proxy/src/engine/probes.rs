//! The kubelet's probes: what it asks of a pod whose ports take mesh mTLS only, or whose policies know no kubelet.
//!
//! Istio writes the probes of a pod with a sidecar so that they come to the sidecar's own agent, which asks the application
//! in the kubelet's place. Here pods stay as they are, so that the kubelet comes to the port itself, in plain text and
//! without an identity. What it may then do is the one request that the pod's own document names, and nothing else; neither
//! the port's mode nor an AuthorizationPolicy is asked about that, as in Istio.
//!
//! Who it is tells no address, for a node lends its own to others (a NodePort's clients are masqueraded), but the kernel: see
//! [`super::ports::OriginalDestination::is_of_node`]. Other processes of the node's own network are not told from the
//! kubelet: pods with `hostNetwork`, and proxies that run there.

use std::{os::fd::BorrowedFd, sync::Arc};

use http::{Method, Request, Version, header::UPGRADE};
use http_body::Body;

use super::{Snapshot, accept::ConnectionInfo, authorize, pod::Pod};
use crate::{
    api::core::ProbeRequest,
    mesh::{InboundTable, Protocol, Takes, Verdict, VirtualHost},
};

/// `grpc.health.v1`, of which the kubelet calls this only.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// What the access log says of other requests on a connection that is there for probes only.
pub const NO_PROBE: &str = "not_a_probe";

/// Whether a connection may bring a probe that would be refused if anybody else had sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probing {
    #[default]
    No,
    Possible,
    /// It was let in for nothing else.
    Only,
}

/// What to expect of a connection to one of the pod's own ports. Costs nothing where no probe is named, or nothing forbidden.
pub(super) fn expected(
    snapshot: &Snapshot,
    pod: &Pod,
    table: &InboundTable,
    info: &ConnectionInfo,
    accepted: BorrowedFd<'_>,
) -> Probing {
    let port = info.original.port();
    let open = match table.takes(port) {
        Takes::Anything { .. } => true,
        Takes::MeshMtls | Takes::Tls(_) => false,
        Takes::Nothing(_) => return Probing::No,
    };
    if !table.probes.contains_key(&port) || (open && table.policies.is_empty()) {
        return Probing::No;
    }
    match pod.capture.is_of_node(accepted) {
        Ok(true) => {}
        Ok(false) => return Probing::No,
        Err(error) => {
            log::warn!("{}: whether {} is a process of this node cannot be told: {error}", pod.id, info.peer);
            return Probing::No;
        }
    }
    if !open || !table.port(port).is_raw() {
        return Probing::Possible;
    }
    // Nothing of what comes would be looked at. It is only where it may not come as it is.
    match authorize::entering(snapshot, &pod.id, info, None) {
        Verdict::Allowed => Probing::No,
        Verdict::Denied(_) => Probing::Only,
    }
}

/// Where a request goes that is a probe of the pod as it is by now; None: it is none.
pub(super) fn asked<B: Body>(
    snapshot: &Snapshot,
    pod: &Pod,
    info: &ConnectionInfo,
    request: &Request<B>,
) -> Option<Arc<VirtualHost>> {
    if info.probing == Probing::No {
        return None;
    }
    let table = snapshot.mesh.workloads.get(&pod.id)?.inbound.as_ref()?;
    let number = info.original.port();
    let h2 = request.version() == Version::HTTP_2;
    let is = |probe: &ProbeRequest| match probe {
        ProbeRequest::HttpGet { https, target } => {
            // What an upgrade makes of a connection is no probe any more.
            let bare = request.body().is_end_stream() && !request.headers().contains_key(UPGRADE);
            let path = request.uri().path_and_query().is_some_and(|own| own.as_str() == target);
            request.method() == Method::GET && *https == info.tls && path && bare
        }
        ProbeRequest::Grpc => {
            request.method() == Method::POST && h2 && !info.tls && request.uri().path() == HEALTH_CHECK
        }
    };
    if !table.probes.get(&number)?.iter().any(is) {
        return None;
    }
    let port = table.port(number);
    // gRPC to a port that is declared to speak something else: the application, which is asked for it, knows better.
    let speaks_h2 = matches!(port.protocol, Protocol::Auto | Protocol::Http2 | Protocol::Grpc);
    Some(if h2 && !speaks_h2 { table.any.host.clone() } else { port.host.clone() })
}
