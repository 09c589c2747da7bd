//! What a Sidecar's `egress` imports: which services its workloads see, and which VirtualServices count, on which ports.
//! What is not imported is as if it were not there, except that no guard is lifted: the rules of the namespace guard what
//! it hides as well.

mod check;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use smol_str::SmolStr;

pub use self::check::check;
use super::{
    clusters::Workshop,
    guard,
    host::covers,
    names::rule_host,
    registry::Entry,
    rules::Client,
    table::{AddressMap, Guard, GuardedAddress, HostMap},
    unimported::{KnownServices, Unimported},
    view::{Scope, Selected, Selection},
    virtual_services::{Heard, MESH, Resolved, every_destination},
};
use crate::api::{Object, sidecar::Sidecar};

/// The egress listeners of a Sidecar, as its workloads in one namespace mean them.
pub struct Imports<'a> {
    pub sidecar: &'a Arc<Object<Sidecar>>,
    client: &'a str,
    listeners: Vec<Listener>,
}

struct Listener {
    /// None: every port that has no listener of its own.
    port: Option<u16>,
    /// Patterns by namespace; `*` is any.
    hosts: HashMap<String, HostMap<()>>,
}

/// What a namespace sees where no Sidecar narrows it, and what guards it: the same under all its Sidecars.
pub struct Everything {
    selection: Selection,
    /// Places in the selection by full name.
    by_host: HashMap<SmolStr, Vec<usize>>,
    pub own_guards: Arc<HostMap<Guard>>,
    pub names: Arc<HostMap<Guard>>,
    pub addresses: Arc<AddressMap<Vec<GuardedAddress>>>,
    pub raw: Arc<AddressMap<Vec<GuardedAddress>>>,
}

/// What is left of it under a Sidecar.
pub struct Narrowed {
    pub selection: Selection,
    pub everything: Arc<Everything>,
    pub unimported: Arc<Unimported>,
}

impl<'a> Imports<'a> {
    /// None: everything is imported, as without a Sidecar.
    pub fn new(sidecar: &'a Arc<Object<Sidecar>>, client: &'a str) -> Option<Self> {
        let listeners = sidecar.spec.egress.iter().map(|given| {
            let mut hosts: HashMap<String, HostMap<()>> = HashMap::new();
            for (namespace, host) in given.hosts.iter().filter_map(|host| host.split_once('/')) {
                let namespace = if namespace == "." { client } else { namespace };
                hosts.entry(namespace.to_owned()).or_default().insert(host, ());
            }
            Listener { port: given.port.as_ref().map(|port| port.number), hosts }
        });
        let listeners: Vec<Listener> = listeners.collect();
        let all =
            |listener: &Listener| listener.port.is_none() && listener.hosts.get("*").is_some_and(|h| h.any.is_some());
        let everything = matches!(listeners.as_slice(), []) || matches!(listeners.as_slice(), [only] if all(only));
        (!everything).then_some(Self { sidecar, client, listeners })
    }

    pub fn narrow(&self, everything: &Arc<Everything>, scope: Scope<'_>, known: &Arc<KnownServices>) -> Narrowed {
        let by_port = self.listeners.iter().any(|listener| listener.port.is_some());
        Narrowed {
            selection: self.select(everything, scope),
            everything: everything.clone(),
            unimported: Arc::new(Unimported::new(
                self.sidecar.id.clone(),
                self.client.to_owned(),
                by_port,
                known.clone(),
            )),
        }
    }

    /// Services with a place of their own first, then those that only routes lead to, then those that only guard.
    fn select(&self, everything: &Everything, scope: Scope<'_>) -> Selection {
        let all = &everything.selection.entries;
        let mut found = Found::default();
        for (at, selected) in all.iter().enumerate() {
            let entry = &scope.registry.entries[selected.entry];
            let importing = self.listeners.iter().map(|listener| listener.imports(&entry.namespace, &entry.host));
            let importing: Vec<bool> = importing.collect();
            if !importing.contains(&true) {
                continue;
            }
            let rest = self.serving(None).is_some_and(|listener| importing[listener]);
            for (index, port) in entry.body.ports.iter().enumerate() {
                let place = self.serving(Some(port.number)).is_some_and(|listener| importing[listener]);
                if place {
                    found.placed.entry(at).or_default().insert(index);
                } else if rest {
                    found.reached.entry(at).or_default().insert(index);
                }
            }
        }
        let heard: Vec<Vec<usize>> = self.heard(scope);
        self.reach_destinations(everything, scope, &heard, &mut found);
        Selection { entries: found.entries(all, scope), heard: self.by_port(scope, heard) }
    }

    /// Services that imported VirtualServices lead to are known as well (Istio `collectImportedServices`): of one namespace,
    /// the client's where it has one, and never in the place of what is imported by name.
    fn reach_destinations(&self, everything: &Everything, scope: Scope<'_>, heard: &[Vec<usize>], found: &mut Found) {
        let namespace = |at: usize| scope.registry.entries[everything.selection.entries[at].entry].namespace.as_str();
        let entry = |at: usize| -> &Entry { &scope.registry.entries[everything.selection.entries[at].entry] };
        let named: BTreeSet<usize> = found.placed.keys().chain(found.reached.keys()).copied().collect();
        for (listener, services) in self.listeners.iter().zip(heard) {
            for (object, to) in services.iter().flat_map(|at| every_destination(&scope.services.all[*at])) {
                let host = rule_host(&to.host, &object.meta.namespace);
                let Some(places) = everything.by_host.get(host.as_str()) else { continue };
                let home = places.iter().copied().find(|at| named.contains(at)).map(namespace);
                let home = home.or_else(|| places.iter().copied().map(namespace).find(|home| *home == self.client));
                let home = home.or_else(|| places.iter().copied().map(namespace).min());
                let wanted = listener.port.or(to.port);
                for at in places.iter().copied().filter(|at| Some(namespace(*at)) == home) {
                    let ports = entry(at).body.ports.iter().enumerate();
                    let ports = ports.filter(|(_, port)| wanted.is_none_or(|wanted| wanted == port.number));
                    for (index, _) in
                        ports.filter(|(index, _)| !found.placed.get(&at).is_some_and(|p| p.contains(index)))
                    {
                        found.reached.entry(at).or_default().insert(index);
                    }
                }
            }
        }
    }

    /// The VirtualServices that each listener imports.
    fn heard(&self, scope: Scope<'_>) -> Vec<Vec<usize>> {
        let bound = scope.services.bound(MESH, self.client);
        let imported = self.listeners.iter().map(|listener| {
            let imported = bound.iter().copied().filter(|at| listener.imports_routes(&scope.services.all[*at]));
            imported.collect()
        });
        imported.collect()
    }

    fn by_port(&self, scope: Scope<'_>, heard: Vec<Vec<usize>>) -> Heard {
        let any: BTreeSet<usize> = heard.iter().flatten().copied().collect();
        let all = scope.services.bound(MESH, self.client).into_iter().filter(|at| any.contains(at)).collect();
        let mut ports = BTreeMap::new();
        let mut others = BTreeSet::new();
        for (at, (listener, heard)) in self.listeners.iter().zip(heard).enumerate() {
            match listener.port {
                Some(port) => drop(ports.entry(port).or_insert_with(|| heard.into_iter().collect())),
                None if self.serving(None) == Some(at) => others = heard.into_iter().collect(),
                None => {}
            }
        }
        Heard::narrowed(all, ports, others)
    }

    /// The listener for a port (by index): its own, else the one without.
    fn serving(&self, port: Option<u16>) -> Option<usize> {
        let own = port.and_then(|port| self.listeners.iter().position(|listener| listener.port == Some(port)));
        own.or_else(|| self.listeners.iter().position(|listener| listener.port.is_none()))
    }
}

impl Listener {
    fn of(&self, namespace: &str) -> impl Iterator<Item = &HostMap<()>> {
        [namespace, "*"].into_iter().filter_map(|namespace| self.hosts.get(namespace))
    }

    /// A wildcard service is imported by its own pattern and by wider ones.
    fn imports(&self, namespace: &str, host: &str) -> bool {
        self.of(namespace).any(|hosts| hosts.get(host).is_some())
    }

    /// Any of its hosts is enough; one that is a wildcard is met from below too, other than with routes of the Gateway API
    /// (Istio `VSMatches`).
    fn imports_routes(&self, service: &Resolved) -> bool {
        let namespace = &service.object.meta.namespace;
        service.hosts.iter().any(|host| {
            let below = || {
                let wide = host.contains('*') && !service.is_gateway_api();
                wide && self.of(namespace).any(|hosts| hosts.iter().any(|(pattern, ())| covers(host, &pattern)))
            };
            self.imports(namespace, host) || below()
        })
    }
}

/// Ports (by index) of services, by their places in the selection of everything.
#[derive(Default)]
struct Found {
    placed: BTreeMap<usize, BTreeSet<usize>>,
    reached: BTreeMap<usize, BTreeSet<usize>>,
}

impl Found {
    fn entries(self, all: &[Selected], scope: Scope<'_>) -> Vec<Selected> {
        let hidden = |at: &usize| !self.placed.contains_key(at) && !self.reached.contains_key(at);
        let varying = all.iter().enumerate().filter(|(at, selected)| selected.varies && hidden(at));
        let varying: Vec<Selected> = varying.map(|(_, selected)| selected.narrowed(false, Vec::new())).collect();
        let part = |placed: bool, (at, ports): (usize, BTreeSet<usize>)| {
            let every = scope.registry.entries[all[at].entry].body.ports.len() == ports.len();
            if placed && every { all[at].clone() } else { all[at].narrowed(placed, ports.into_iter().collect()) }
        };
        let placed = self.placed.into_iter().map(|found| part(true, found));
        let reached = self.reached.into_iter().map(|found| part(false, found));
        placed.chain(reached).chain(varying).collect()
    }
}

impl Everything {
    pub fn new(workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>) -> Self {
        let selection = Selection::new(workshop, scope, client);
        let mut by_host: HashMap<SmolStr, Vec<usize>> = HashMap::new();
        for (at, selected) in selection.entries.iter().enumerate() {
            by_host.entry(scope.registry.entries[selected.entry].host.clone()).or_default().push(at);
        }
        let own_guards = Arc::new(guard::own(workshop, client));
        let addresses = guard::addresses(scope.registry, &selection.entries);
        let names = guard::names(scope.registry, &selection.entries, client.namespace, scope.root);
        let raw = guard::raw(scope.registry, &selection.entries);
        Self {
            selection,
            by_host,
            own_guards,
            names: Arc::new(names),
            addresses: Arc::new(addresses),
            raw: Arc::new(raw),
        }
    }

    /// The namespace that serves a host where nothing is hidden.
    pub fn home<'s>(&self, scope: Scope<'s>, host: &str) -> Option<&'s str> {
        let at = *self.by_host.get(host)?.first()?;
        Some(&scope.registry.entries[self.selection.entries[at].entry].namespace)
    }
}
