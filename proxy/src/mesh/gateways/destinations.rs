//! What the routes of a gateway lead to: the services that its pod sees, by their endpoints and never by an address dialled.

use std::{collections::HashMap, sync::Arc};

use super::super::{
    clusters::Workshop,
    table::{Cluster, Guard, Outbound},
    virtual_services::Destinations,
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
