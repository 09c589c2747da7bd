//! A table after a change of few services, without compiling the many others anew.
//!
//! What is compiled is the changed objects with those that speak of the same hosts and everything that is not about hosts, once
//! as they were and once as they are. The first tells what of the table in force came from them, the second what takes its
//! place. That is right only where nothing else meets at these hosts: see [`Part::of`], which says no where in doubt; then
//! everything is compiled.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use super::{
    clusters::takes_credentials,
    compile::{compile, origins},
    guard::guards,
    host::{canonical, covers},
    names::{CLUSTER_DOMAIN, rule_host},
    protocol,
    table::{HostMap, Mesh, NamespaceGuards, Outbound, PodAddresses, PortTable, Protocol, Workload},
};
use crate::{
    api::{
        AnyObject, Diagnostic, Object, Objects,
        istio::{DestinationRule, ServiceEntry},
    },
    limits,
    source::Changed,
};

/// What [`compile`] would make of `objects`, out of what it made (`previous`) before `changed` were changed, with the same pod
/// `addresses`. None: it must be asked itself. `moved`: documents lie on other lines of their files.
#[must_use]
pub fn amend(
    previous: &Mesh,
    (objects, addresses): (&Objects, &PodAddresses),
    changed: &[Changed],
    moved: bool,
) -> Option<Mesh> {
    let part = Part::of(objects, changed)?;
    let (before, after) = (compile(&part.before, addresses), compile(&part.after, addresses));
    // A finding about what has only moved is still in its old place.
    if moved && !(previous.diagnostics.is_empty() && before.diagnostics.is_empty()) {
        return None;
    }
    let mut tables = Tables { hosts: &part.hosts, made: HashMap::new(), others: HashMap::new() };
    let mut workloads = previous.workloads.clone();
    for (id, workload) in &mut workloads {
        let (was, is) = (before.workloads.get(id)?, after.workloads.get(id)?);
        let outbound = tables.table(&workload.outbound, &was.outbound, &is.outbound)?;
        *workload = Arc::new(Workload { outbound, ..(**workload).clone() });
    }
    let tls = OnceLock::new();
    if same_contexts(&before, &after) {
        let _ = tls.set(previous.tls_settings().to_vec());
    }
    let there = |id| previous.origins.contains_key(id);
    let same = !moved && changed.iter().all(|changed| changed.is_in_place()) && part.ids().all(there);
    Some(Mesh {
        settings: previous.settings.clone(),
        workloads,
        diagnostics: findings(previous, &before, after.diagnostics),
        origins: if same { previous.origins.clone() } else { Arc::new(origins(objects)) },
        peers: previous.peers.clone(),
        statuses: previous.statuses.clone(),
        tls,
    })
}

/// The changed part leads to the same TLS contexts as before.
fn same_contexts(before: &Mesh, after: &Mesh) -> bool {
    let [before, after] = [before, after].map(|mesh| {
        let contexts = mesh.tls_settings().iter().map(|settings| &*settings.context);
        contexts.collect::<HashSet<_>>()
    });
    before == after
}

/// Those of before, but for what was said of the changed part and is not said any more.
fn findings(previous: &Mesh, before: &Mesh, after: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let gone = |said: &Diagnostic| before.diagnostics.contains(said) && !after.contains(said);
    let mut all: Vec<_> = previous.diagnostics.iter().filter(|said| !gone(said)).cloned().collect();
    all.extend(after.iter().filter(|said| !before.diagnostics.contains(said)).cloned());
    super::findings::sort(&mut all);
    all
}

impl Changed {
    /// The same object at the same place.
    fn is_in_place(&self) -> bool {
        let place = |object: &AnyObject| (object.origin().file.clone(), object.origin().start.get().0);
        self.before.as_ref().map(place) == self.after.as_ref().map(place)
    }
}

/// The objects that meet at some hosts, with all that are not about hosts.
struct Part {
    hosts: HashSet<String>,
    before: Objects,
    after: Objects,
}

impl Part {
    /// None where more than ServiceEntries and DestinationRules has a say, or wildcards, addresses, credentials or selectors
    /// do: these reach beyond their hosts.
    fn of(objects: &Objects, changed: &[Changed]) -> Option<Self> {
        if changed.len() > limits::AMENDED_OBJECTS || !only_services_and_rules(objects) {
            return None;
        }
        let mut hosts = HashSet::new();
        for object in changed.iter().flat_map(|changed| changed.before.iter().chain(&changed.after)) {
            match object {
                AnyObject::ServiceEntry(entry) => hosts.extend(entry_hosts(entry)),
                AnyObject::DestinationRule(rule) => drop(hosts.insert(host_of(rule))),
                _ => return None,
            }
        }
        let mut after = apart(objects);
        // A ServiceEntry has several hosts, each of which may be another one's too.
        loop {
            let (known, named) = (after.service_entries.len(), hosts.len());
            for (key, entry) in &objects.service_entries {
                let meets = entry.spec.hosts.iter().any(|host| hosts.contains(&*canonical(host)));
                if meets && !after.service_entries.contains_key(key) {
                    hosts.extend(entry_hosts(entry));
                    after.service_entries.insert(key.clone(), entry.clone());
                }
            }
            // To look at all of them takes milliseconds: again only where there are hosts which the first did not meet.
            if hosts.len() == named {
                break;
            }
            if known > limits::AMENDED_OBJECTS {
                return None;
            }
        }
        for (key, rule) in &objects.destination_rules {
            let host = canonical(&rule.spec.host);
            if host.starts_with('*') && hosts.iter().any(|name| covers(&host, name)) {
                return None;
            }
            if hosts.contains(&*host) {
                after.destination_rules.insert(key.clone(), rule.clone());
            }
        }
        let mut before = after.clone();
        for Changed { before: was, after: is } in changed {
            is.iter().for_each(|object| before.remove(object));
            was.iter().for_each(|object| before.insert(object.clone()));
        }
        let entries = before.service_entries.values().chain(after.service_entries.values());
        let rules = before.destination_rules.values().chain(after.destination_rules.values());
        let count = before.destination_rules.len() + after.destination_rules.len();
        let plain = hosts.iter().all(|host| is_plain(host))
            && entries.into_iter().all(|entry| is_by_name(entry))
            && rules.into_iter().all(|rule| is_for_all(rule))
            && count <= 2 * limits::AMENDED_OBJECTS;
        plain.then_some(Self { hosts, before, after })
    }

    /// Of what is there now.
    fn ids(&self) -> impl Iterator<Item = &crate::api::ObjectId> {
        let entries = self.after.service_entries.values().map(|entry| &entry.id);
        entries.chain(self.after.destination_rules.values().map(|rule| &rule.id))
    }
}

/// Nobody else speaks of the hosts of services.
fn only_services_and_rules(objects: &Objects) -> bool {
    objects.virtual_services.is_empty()
        && objects.gateways.is_empty()
        && objects.sidecars.is_empty()
        && objects.kube_gateways.is_empty()
        && objects.http_routes.is_empty()
        && objects.tls_routes.is_empty()
        && objects.backend_tls_policies.is_empty()
}

/// All but ServiceEntries and DestinationRules. Each kind by name, so that a new one is not forgotten.
fn apart(objects: &Objects) -> Objects {
    Objects {
        pods: objects.pods.clone(),
        services: objects.services.clone(),
        endpoint_slices: objects.endpoint_slices.clone(),
        namespaces: objects.namespaces.clone(),
        secrets: objects.secrets.clone(),
        service_entries: Default::default(),
        destination_rules: Default::default(),
        virtual_services: objects.virtual_services.clone(),
        gateways: objects.gateways.clone(),
        gateway_classes: objects.gateway_classes.clone(),
        kube_gateways: objects.kube_gateways.clone(),
        http_routes: objects.http_routes.clone(),
        reference_grants: objects.reference_grants.clone(),
        config_maps: objects.config_maps.clone(),
        tls_routes: objects.tls_routes.clone(),
        backend_tls_policies: objects.backend_tls_policies.clone(),
        peer_authentications: objects.peer_authentications.clone(),
        authorization_policies: objects.authorization_policies.clone(),
        sidecars: objects.sidecars.clone(),
        mesh_configs: objects.mesh_configs.clone(),
        node: objects.node.clone(),
        controllers: objects.controllers,
        asked: objects.asked.clone(),
    }
}

fn entry_hosts(entry: &Object<ServiceEntry>) -> impl Iterator<Item = String> {
    entry.spec.hosts.iter().map(|host| canonical(host).into_owned())
}

fn host_of(rule: &Object<DestinationRule>) -> String {
    rule_host(&rule.spec.host, &rule.meta.namespace)
}

/// A whole name of the world: no pattern, no address, and no Service's, which has shorter forms.
fn is_plain(host: &str) -> bool {
    let service = host.ends_with(CLUSTER_DOMAIN) || host.ends_with(".svc");
    host.contains('.') && !host.contains(['*', ':']) && !service && host.parse::<IpAddr>().is_err()
}

/// Found by its name only: nothing without a name is ever for it. Nor does it say what the own ports of pods speak.
fn is_by_name(entry: &Object<ServiceEntry>) -> bool {
    let named = |port: &crate::api::istio::Port| {
        let protocol = protocol::of_entry(&port.protocol, &port.name, port.number);
        !matches!(protocol, Protocol::Tcp | Protocol::Auto)
    };
    entry.spec.addresses.is_empty() && entry.spec.workload_selector.is_none() && entry.spec.ports.iter().all(named)
}

/// It means the same to every workload of a namespace, and to every namespace that sees it.
fn is_for_all(rule: &Object<DestinationRule>) -> bool {
    rule.spec.workload_selector.is_none() && !takes_credentials(&rule.spec)
}

/// Tables amended so far: workloads share them.
struct Tables<'a> {
    hosts: &'a HashSet<String>,
    made: HashMap<[*const Outbound; 3], Arc<Outbound>>,
    others: HashMap<[*const Vec<NamespaceGuards>; 2], Arc<Vec<NamespaceGuards>>>,
}

impl Tables<'_> {
    /// `table` with what `is` has in place of what `was` had.
    fn table(&mut self, table: &Arc<Outbound>, was: &Arc<Outbound>, is: &Arc<Outbound>) -> Option<Arc<Outbound>> {
        let key = [table, was, is].map(Arc::as_ptr);
        if let Some(made) = self.made.get(&key) {
            return Some(made.clone());
        }
        // Nothing of what changed differs from workload to workload.
        if was.base.is_some() || is.base.is_some() {
            return None;
        }
        let mut new = (**table).clone();
        if let Some(base) = &table.base {
            let base = self.table(base, was, is)?;
            (new.guards.own, new.guards.others) = (base.guards.own.clone(), base.guards.others.clone());
            new.base = Some(base);
        } else {
            self.replace(&mut new, was, is)?;
        }
        let new = Arc::new(new);
        self.made.insert(key, new.clone());
        Some(new)
    }

    fn replace(&mut self, new: &mut Outbound, was: &Outbound, is: &Outbound) -> Option<()> {
        for port in was.ports.keys() {
            let table = new.ports.get_mut(port)?;
            for host in self.hosts {
                table.http.exact.remove(host);
                table.tls.exact.remove(host);
            }
        }
        for (port, there) in &is.ports {
            let table = new.ports.entry(*port).or_default();
            table.http.exact.extend(there.http.exact.iter().map(|(host, to)| (host.clone(), to.clone())));
            table.tls.exact.extend(there.tls.exact.iter().map(|(host, to)| (host.clone(), to.clone())));
        }
        for port in was.ports.keys().filter(|port| !is.ports.contains_key(port)) {
            if new.ports.get(port).is_some_and(PortTable::is_empty) {
                new.ports.remove(port);
            }
        }
        was.clusters.keys().for_each(|name| drop(new.clusters.remove(name)));
        new.clusters.extend(is.clusters.iter().map(|(name, cluster)| (name.clone(), cluster.clone())));
        self.hosts.iter().for_each(|host| drop(new.services.remove(host)));
        new.services.extend(is.services.iter().map(|(host, ports)| (host.clone(), ports.clone())));
        if *was.guards.own != *is.guards.own {
            let mut own = (*new.guards.own).clone();
            self.exchange(&mut own, &is.guards.own);
            new.guards.own = Arc::new(own);
        }
        if *was.guards.others != *is.guards.others {
            let key = [Arc::as_ptr(&new.guards.others), Arc::as_ptr(&is.guards.others)];
            new.guards.others = match self.others.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let made = Arc::new(self.others(&new.guards.others, &was.guards.others, &is.guards.others));
                    self.others.insert(key, made.clone());
                    made
                }
            };
        }
        Some(())
    }

    fn others(&self, all: &[NamespaceGuards], was: &[NamespaceGuards], is: &[NamespaceGuards]) -> Vec<NamespaceGuards> {
        let mut all = all.to_vec();
        let touched: BTreeSet<&str> = was.iter().chain(is).map(|guards| &*guards.namespace).collect();
        for namespace in touched {
            let nothing = HostMap::default();
            let now = is.iter().find(|guards| &*guards.namespace == namespace).map_or(&nothing, |guards| &guards.hosts);
            let at = match all.binary_search_by(|guards| (*guards.namespace).cmp(namespace)) {
                Ok(at) => at,
                Err(at) => {
                    all.insert(at, NamespaceGuards { namespace: namespace.into(), hosts: HostMap::default() });
                    at
                }
            };
            self.exchange(&mut all[at].hosts, now);
        }
        all.retain(|of| of.hosts.values().any(guards));
        all
    }

    fn exchange<T: Clone>(&self, map: &mut HostMap<T>, now: &HostMap<T>) {
        self.hosts.iter().for_each(|host| drop(map.exact.remove(host)));
        map.exact.extend(now.exact.iter().map(|(host, value)| (host.clone(), value.clone())));
    }
}
