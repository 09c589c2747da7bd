//! Which VirtualServices of the mesh are candidates for a service.

use std::collections::HashMap;

use super::{
    super::{registry::Entry, table::HostMap},
    Heard, Resolved, View,
};

/// The VirtualServices that a client sees, by the hosts that they are for.
pub struct Bound<'a> {
    pub view: View<'a>,
    pub heard: &'a Heard,
    /// By host, in order.
    pub by_host: HostMap<Vec<usize>>,
    /// Places in that order.
    pub ranks: HashMap<usize, usize>,
}

impl<'a> Bound<'a> {
    pub fn new(view: View<'a>, heard: &'a Heard) -> Self {
        let mut by_host: HostMap<Vec<usize>> = HostMap::default();
        for at in &heard.all {
            let service = &view.services.all[*at];
            // A wildcard of the Gateway API names no service.
            for host in service.hosts.iter().filter(|host| !(service.is_gateway_api() && host.contains('*'))) {
                match by_host.pattern_mut(host) {
                    Some(bound) if bound.last() == Some(at) => {}
                    Some(bound) => bound.push(*at),
                    None => drop(by_host.insert(host, vec![*at])),
                }
            }
        }
        Self { view, heard, by_host, ranks: heard.all.iter().enumerate().map(|(rank, at)| (*at, rank)).collect() }
    }

    /// The VirtualServices for a service: those of the most specific host.
    pub fn candidates(&self, entry: &Entry, port: u16) -> Vec<usize> {
        let mut bound = self.by_host.matches(&entry.host).map(|(_, bound)| self.counting(bound, entry, port));
        bound.find(|bound| !bound.is_empty()).unwrap_or_default()
    }

    /// A route of the Gateway API counts for services of its own namespace, or for clients of it; theirs go first.
    fn counting(&self, bound: &[usize], entry: &Entry, port: u16) -> Vec<usize> {
        let all = &self.view.services.all;
        let namespace = |at: &usize| all[*at].object.meta.namespace.as_str();
        let bound = || bound.iter().filter(|at| self.heard.counts(**at, port));
        let consumers = bound().any(|at| all[*at].is_gateway_api() && namespace(at) == self.view.caller.namespace);
        let home = if consumers { self.view.caller.namespace } else { &entry.namespace };
        bound().copied().filter(|at| !all[*at].is_gateway_api() || namespace(at) == home).collect()
    }

    /// `tls` and `tcp` routes count in every VirtualService that has the host, however wide (Istio `getConfigsForHost`).
    pub fn all_candidates(&self, entry: &Entry, port: u16, has: fn(&Resolved) -> bool) -> Vec<usize> {
        let bound = self.by_host.matches(&entry.host).flat_map(|(_, bound)| bound.iter().copied());
        let counts = |at: &usize| has(&self.view.services.all[*at]) && self.heard.counts(*at, port);
        let mut bound: Vec<usize> = bound.filter(counts).collect();
        bound.sort_by_key(|at| self.ranks.get(at));
        bound.dedup();
        bound
    }
}
