//! Destinations of routes to clusters.

use std::sync::Arc;

use super::{
    super::{
        names::rule_host,
        routing::ClusterRef,
        table::{Cluster, Guard, Outbound},
    },
    RouteContext,
};
use crate::api::{
    Object,
    virtual_service::{Destination, VirtualService},
};

/// The services that a client sees, as far as routes ask.
pub trait Destinations {
    /// The ports of the service of this full name; none: there is no such service.
    fn ports(&self, host: &str) -> &[u16];

    /// The cluster of this name, `outbound|<port>|<subset>|<host>`.
    fn cluster(&self, name: &str) -> Option<&Arc<Cluster>>;

    /// The rule that keeps plain text for `host` on `port` back.
    fn guard_host(&self, host: &str, port: u16) -> Option<&Guard>;
}

impl Destinations for Outbound {
    fn ports(&self, host: &str) -> &[u16] {
        let services = self.base.as_ref().map_or(&self.services, |base| &base.services);
        services.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        Self::cluster(self, name)
    }

    fn guard_host(&self, host: &str, port: u16) -> Option<&Guard> {
        Self::guard_host(self, host, port)
    }
}

impl RouteContext<'_> {
    /// The cluster that a destination in `object` means: a name without a dot is a Service of its namespace, the port is
    /// the one given, else the only one of the service, else the one dialled.
    pub fn resolve(&self, destination: &Destination, object: &Object<VirtualService>) -> ClusterRef {
        let host = rule_host(&destination.host, &object.meta.namespace);
        let ports = self.destinations.ports(&host);
        let only = match ports {
            [only] => Some(*only),
            _ => None,
        };
        let port = destination.port.or(only).unwrap_or(self.port);
        let subset = destination.subset.as_deref().unwrap_or_default();
        let name = format!("outbound|{port}|{subset}|{host}");
        if let Some(cluster) = self.destinations.cluster(&name) {
            return ClusterRef::Known(cluster.clone());
        }
        let missing = if ports.is_empty() {
            "this workload sees no ServiceEntry or Service of this name".to_owned()
        } else if !ports.contains(&port) {
            format!("it has no port {port}")
        } else {
            format!("no DestinationRule that applies has a subset {subset}")
        };
        let why = format!("{} routes to {host}: {missing}", object.id);
        ClusterRef::Unknown { name: name.into(), why: why.into() }
    }
}
