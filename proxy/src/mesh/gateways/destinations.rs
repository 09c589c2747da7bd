//! What the routes of a gateway lead to: the services that its pod sees, by their endpoints and never by an address dialled.

use std::{collections::HashMap, sync::Arc};

use super::super::{
    clusters::Workshop,
    host::covers,
    table::{Cluster, Discovery, Guard, Outbound, Protocol, UpstreamTls},
    virtual_services::{Destinations, ServerHost},
};

pub struct AtGateway<'a> {
    outbound: &'a Outbound,
    /// What a gateway needs otherwise than its pod, by name.
    own: HashMap<&'a str, Arc<Cluster>>,
}

impl<'a> AtGateway<'a> {
    pub fn new(workshop: &mut Workshop<'_>, outbound: &'a Outbound) -> Self {
        let made = outbound.all_clusters().map(|cluster| (cluster, workshop.at_gateway(cluster)));
        let own = made.filter(|(cluster, own)| !Arc::ptr_eq(cluster, own));
        Self { outbound, own: own.map(|(cluster, own)| (cluster.name.as_str(), own)).collect() }
    }

    /// Services of the mesh (and their subsets) under one of `hosts`, each as a cluster of the name that mesh mTLS has for it:
    /// `outbound_.80_.v1_.web.default.svc.cluster.local`. It passes TLS on that is there already.
    pub fn by_mesh_name(&self, hosts: &[ServerHost]) -> impl Iterator<Item = Arc<Cluster>> {
        let all = self.outbound.all_clusters().map(|cluster| self.own.get(cluster.name.as_str()).unwrap_or(cluster));
        let meant = all.filter(|cluster| {
            let named = !cluster.host.starts_with('*') && !matches!(cluster.discovery, Discovery::Dynamic { .. });
            named && !cluster.mesh_external && hosts.iter().any(|host| covers(&host.host, &cluster.host))
        });
        meant.map(|cluster| {
            let Cluster { port, subset, host, .. } = &**cluster;
            Arc::new(Cluster {
                name: format!("outbound_.{port}_.{subset}_.{host}"),
                protocol: Protocol::Tcp,
                tls: UpstreamTls::Plain,
                ..(**cluster).clone()
            })
        })
    }
}

impl Destinations for AtGateway<'_> {
    fn ports(&self, host: &str) -> &[u16] {
        self.outbound.ports(host)
    }

    fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.own.get(name).or_else(|| self.outbound.cluster(name))
    }

    fn guard_host(&self, host: &str, port: u16) -> Option<&Guard> {
        self.outbound.guard_host(host, port)
    }
}
