//! The pure parts of a request's way, one by one, for `examples/instructions.rs` to count their instructions.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
};

use http::{HeaderMap, Request, Response};

use super::{Connection, head_rules, headers, log::RequestLog, routes};
use crate::{
    engine::{
        Engine, Sink, Snapshot,
        accept::{Arrival, ConnectionInfo},
        host_sockets::{Destinations, HostSockets},
        pod::Pod,
        resolve::{Resolver, ResolverFiles},
    },
    mesh::{Cluster, EndpointAddress, HeaderRules, Mesh, WorkloadId},
    tls::Contexts,
};

/// Whether a request's head, as it came, is in order.
pub fn check_head(head: &[u8]) -> bool {
    head_rules::head_end(head, 0) == Some(head.len()) && head_rules::check(head).is_ok()
}

/// Removes the headers of one hop.
pub fn strip(headers: &mut HeaderMap) {
    headers::strip(headers);
}

/// Applies a route's rules.
pub fn apply(rules: &HeaderRules, headers: &mut HeaderMap) {
    routes::apply(rules, headers);
}

/// A client's connection that is none: no byte comes or goes.
pub struct Client {
    connection: Arc<Connection>,
    snapshot: Snapshot,
}

impl Client {
    pub fn new(mesh: Arc<Mesh>, workload: WorkloadId, sink: Arc<dyn Sink>, original: SocketAddr) -> Self {
        let snapshot = || Snapshot { mesh: mesh.clone(), tls: Arc::new(Contexts::default()), generation: 1 };
        let sockets = Arc::new(HostSockets);
        let resolver = Resolver::new(sockets.clone(), ResolverFiles::default());
        let pod = Pod::new(Arc::new(workload), sockets, Arc::new(Destinations::default()), resolver, Vec::new(), 15001);
        let info = ConnectionInfo::new(Arrival::Outbound, original, SocketAddr::from(([10, 0, 0, 2], 39998)));
        let engine = Arc::new(Engine::new(snapshot(), sink));
        let connection = Connection::new(engine, Arc::new(pod), info, None, Arc::new(AtomicBool::new(false)));
        Self { connection: Arc::new(connection), snapshot: snapshot() }
    }

    /// What the table says of a request for `authority`, and whether anything forbids it: true where it may go on.
    pub fn look_up(&self, authority: &str) -> bool {
        let Connection { pod, info, .. } = &*self.connection;
        !self.snapshot.misdirected(&pod.id, info, authority)
            && self.snapshot.policies(&pod.id, &info.arrival).is_none()
            && self.snapshot.http(&pod.id, info, authority).is_some()
    }

    /// What is noted of one request from its head to its last byte, in the order in which it becomes known.
    pub fn exchange<B>(&self, request: &Request<()>, cluster: &Arc<Cluster>, at: &Upstream, response: &Response<B>) {
        let mut log = RequestLog::new(&self.connection, request);
        log.with(|record| record.authority = Some(cluster.host.to_string().into()));
        log.route(&at.route, None, "");
        log.route(&at.route, Some(cluster), &cluster.name);
        log.with(|record| {
            record.upstream_host = Some((&at.address).into());
            record.upstream_local_address = Some(at.local);
            record.upstream_tls = true;
        });
        log.sending();
        log.details("via_upstream");
        log.response(response);
        log.finish(1024);
    }
}

/// Where the request went.
pub struct Upstream {
    pub route: Arc<str>,
    pub address: EndpointAddress,
    pub local: SocketAddr,
}
