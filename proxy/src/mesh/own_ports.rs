//! What a pod's own ports take and where they lead: PeerAuthentication, the Services that select the pod, its Sidecar.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use super::{
    cluster::{Cluster, Discovery, LoadBalancer, Pool, Protocol, UpstreamTls},
    inbound::{Application, InboundPort, InboundTable, MtlsModes},
    routing::VirtualHost,
};
use crate::api::{Object, ObjectId, core::Pod};

/// Ports that nothing declares.
const PASSTHROUGH: &str = "InboundPassthroughCluster";

/// The inbound side of a pod.
pub fn table(pod: &Object<Pod>, modes: Arc<MtlsModes>) -> InboundTable {
    let _ = pod;
    InboundTable { modes, ..InboundTable::default() }
}

impl Default for InboundTable {
    /// Nothing declares a port, and nothing speaks of mesh mTLS.
    fn default() -> Self {
        Self {
            modes: Arc::default(),
            ports: BTreeMap::new(),
            any: undeclared().clone(),
            policies: Arc::default(),
            original_source: false,
        }
    }
}

fn undeclared() -> &'static Arc<InboundPort> {
    static PORT: LazyLock<Arc<InboundPort>> = LazyLock::new(|| {
        let cluster = Arc::new(cluster(PASSTHROUGH.to_owned(), 0, Protocol::Auto, Application::Dialled));
        let host = VirtualHost::of_cluster(PASSTHROUGH.to_owned(), cluster.clone());
        Arc::new(InboundPort { protocol: Protocol::Auto, cluster, host: Arc::new(host), tls: None, ingress: None })
    });
    &PORT
}

fn cluster(name: String, port: u16, protocol: Protocol, application: Application) -> Cluster {
    Cluster {
        name,
        host: String::new(),
        port,
        subset: String::new(),
        protocol,
        discovery: Discovery::Application(application),
        load_balancer: LoadBalancer::RoundRobin,
        hash: None,
        locality: None,
        warmup: None,
        outlier: None,
        pool: Pool { use_client_protocol: true, ..Pool::default() },
        tls: UpstreamTls::Plain,
        mesh_external: false,
        service: ObjectId { kind: "Pod", namespace: String::new(), name: String::new() },
        destination_rule: None,
        policies: None,
    }
}
