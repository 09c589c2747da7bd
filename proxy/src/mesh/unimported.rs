//! Why nobody takes a host that is known: a Sidecar does not import it.

use std::sync::Arc;

use smol_str::SmolStr;

use super::{
    names::{CLUSTER_DOMAIN, service_host},
    registry::{Body, Registry},
    table::{Cluster, HostMap},
};
use crate::api::ObjectId;

/// What a Sidecar's workloads would see without it; for messages only, nothing is sent anywhere by it.
#[derive(Debug)]
pub struct Unimported {
    sidecar: ObjectId,
    /// Of the workloads.
    namespace: String,
    /// It has listeners for single ports.
    by_port: bool,
    known: Arc<KnownServices>,
}

/// Every service there is; one for all tables.
#[derive(Debug, Default)]
pub struct KnownServices {
    /// As in the registry.
    all: Vec<Known>,
    by_host: HostMap<Vec<usize>>,
}

#[derive(Debug)]
struct Known {
    object: ObjectId,
    host: SmolStr,
    body: Arc<Body>,
}

impl KnownServices {
    pub fn new(registry: &Registry) -> Self {
        let mut by_host: HostMap<Vec<usize>> = HostMap::default();
        for (at, entry) in registry.entries.iter().enumerate() {
            match by_host.pattern_mut(&entry.host) {
                Some(same) => same.push(at),
                None => drop(by_host.insert(&entry.host, vec![at])),
            }
        }
        let all = registry.entries.iter().map(|entry| {
            let (object, host) = (entry.object.clone(), entry.host.clone());
            Known { object, host, body: entry.body.clone() }
        });
        Self { all: all.collect(), by_host }
    }
}

impl Unimported {
    pub fn new(sidecar: ObjectId, namespace: String, by_port: bool, known: Arc<KnownServices>) -> Self {
        Self { sidecar, namespace, by_port, known }
    }

    /// Of a host that nobody takes on this port: the service that would, were it imported. `cluster` knows those that are.
    pub fn host<'c>(
        &self,
        host: &str,
        port: u16,
        cluster: impl Fn(&str) -> Option<&'c Arc<Cluster>>,
    ) -> Option<String> {
        let said = |at: &usize| self.service(*at, port, &cluster);
        if let Some(found) = self.known.by_host.matches(host).flat_map(|(_, at)| at).find_map(said) {
            return Some(found);
        }
        // As clients write the names of Kubernetes Services.
        let forms = [
            service_host(host, &self.namespace),
            format!("{host}.svc.{CLUSTER_DOMAIN}"),
            format!("{host}.{CLUSTER_DOMAIN}"),
        ];
        forms.iter().filter_map(|name| self.known.by_host.pattern(name)).flatten().find_map(said)
    }

    /// The same of a service, by its index in the registry.
    pub fn service<'c>(
        &self,
        at: usize,
        port: u16,
        cluster: impl Fn(&str) -> Option<&'c Arc<Cluster>>,
    ) -> Option<String> {
        let Known { object, host, body } = self.known.all.get(at)?;
        let seen = body.visibility.holds(&self.namespace) && body.ports.iter().any(|known| known.number == port);
        let here = || cluster(&format!("outbound|{port}||{host}")).is_some_and(|known| known.service == *object);
        if !seen || here() {
            return None;
        }
        let on = if self.by_port { format!(" on port {port}") } else { String::new() };
        Some(format!("{object} is not imported by {}{on}", self.sidecar))
    }
}
