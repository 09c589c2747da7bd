//! What VirtualServices said to one namespace, for others to share: thousands of routes are the same for everybody who
//! sees the same destinations, however different the rest of their tables is.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    super::routing::{ClusterRef, Route, TunnelMatch, VirtualHost},
    Resolved, RouteContext,
};
use crate::api::{
    Object,
    virtual_service::{Destination, VirtualService},
};

/// What one VirtualService says on one port.
#[derive(Debug, Default)]
pub struct Said {
    pub http: Vec<Arc<Route>>,
    pub tls: Vec<(String, TunnelMatch)>,
    pub tcp: Vec<TunnelMatch>,
    /// Names of all clusters it leads to, be they there or not.
    pub clusters: HashSet<String>,
    /// Guards decide about some route of it.
    pub guarded: bool,
}

/// Index of the VirtualService, port, and which of its conditions hold for the caller's labels.
pub type Key = (usize, u16, Vec<usize>);

#[derive(Debug, Default)]
pub struct Spoken {
    /// As first made, with what its destinations meant there.
    said: HashMap<Key, (Vec<ClusterRef>, Arc<Said>)>,
    /// The same for whole hosts, by title.
    hosts: HashMap<String, Arc<VirtualHost>>,
}

impl Spoken {
    /// The same as was said before, where it means the same here.
    pub fn said(&self, key: &Key, service: &Resolved, context: &RouteContext<'_>) -> Option<Arc<Said>> {
        let (meant, said) = self.said.get(key)?;
        let mut meant = meant.iter();
        let same = every_destination(service)
            .all(|(object, to)| meant.next().is_some_and(|meant| is_same(meant, &context.resolve(to, object))));
        same.then(|| said.clone())
    }

    pub fn add(&mut self, key: Key, service: &Resolved, context: &RouteContext<'_>, said: &Arc<Said>) {
        // Namespaces differ in their guards, and are told apart by `sourceNamespace`.
        if !said.guarded && !service.asks_namespace {
            let meant = every_destination(service).map(|(object, to)| context.resolve(to, object)).collect();
            self.said.entry(key).or_insert_with(|| (meant, said.clone()));
        }
    }

    /// The host with these routes.
    pub fn host(&mut self, title: &str, routes: Vec<Arc<Route>>) -> Arc<VirtualHost> {
        let known = self.hosts.get(title);
        let same = |known: &&Arc<VirtualHost>| {
            known.routes.len() == routes.len() && known.routes.iter().zip(&routes).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        if let Some(known) = known.filter(same) {
            return known.clone();
        }
        let made = Arc::new(VirtualHost { name: title.to_owned(), routes: routes.into(), require_tls: false });
        self.hosts.entry(title.to_owned()).or_insert_with(|| made.clone());
        made
    }
}

/// Every destination with the object that names it, always in the same order.
pub fn every_destination(service: &Resolved) -> impl Iterator<Item = (&Object<VirtualService>, &Destination)> {
    let http = service.http.iter().flat_map(|entry| {
        let rule = entry.rule();
        let mirrors = rule.mirrors.iter().map(|mirror| &mirror.destination);
        let all = rule.route.iter().map(|to| &to.destination).chain(mirrors);
        all.map(|to| (&*entry.object, to))
    });
    let spec = &service.object.spec;
    let raw = spec.tls.iter().flat_map(|rule| &rule.route).chain(spec.tcp.iter().flat_map(|rule| &rule.route));
    http.chain(raw.map(|to| (&*service.object, &to.destination)))
}

fn is_same(a: &ClusterRef, b: &ClusterRef) -> bool {
    match (a, b) {
        (ClusterRef::Known(a), ClusterRef::Known(b)) => Arc::ptr_eq(a, b),
        (ClusterRef::Unknown { name: a, why: c }, ClusterRef::Unknown { name: b, why: d }) => a == b && c == d,
        _ => false,
    }
}
