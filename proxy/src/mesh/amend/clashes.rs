//! Whether anything besides the compiled part would be found by the names and addresses by which what is in the part is found:
//! then which of them is found is not for the part alone to tell.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    super::{
        index::{Claims, Index},
        names::service_host,
        table::{AddressMap, HostMap, Mesh, Outbound, Peer, PodAddresses},
    },
    part::{Part, service_of},
};
use crate::api::Objects;

type Peers = HashMap<IpAddr, Arc<Peer>>;

/// `peers` is who is at which address now, `previous` the table in force; `before` and `after` were made from the part.
pub fn are_there(
    part: &Part,
    (objects, index, addresses): (&Objects, &Index, &PodAddresses),
    (previous, peers): (&Mesh, &Peers),
    (before, after): (&Mesh, &Mesh),
) -> bool {
    let mut names = HashSet::new();
    let tables = before.workloads.values().chain(after.workloads.values()).map(|workload| &workload.outbound);
    let mut seen = HashSet::new();
    for table in tables.filter(|table| seen.insert(Arc::as_ptr(table))) {
        if !is_exact(table) {
            return true;
        }
        names.extend(names_in(table));
    }
    let [claimed_before, claimed] = [&part.before, &part.after].map(claims);
    let same =
        |a: &Peers, b: &Peers, claims: &Claims| claims.addresses().all(|address| a.get(&address) == b.get(&address));
    if !same(&previous.peers, &before.peers, &claimed_before) || !same(peers, &after.peers, &claimed) {
        return true;
    }
    let elsewhere = |address: IpAddr| {
        index.claims().of(address) != claimed.of(address) || is_borne_unsaid(address, objects, addresses)
    };
    let moved = before.peers.iter().chain(after.peers.iter()).map(|(address, _)| *address);
    if moved.filter(|address| before.peers.get(address) != after.peers.get(address)).any(elsewhere) {
        return true;
    }
    names.iter().any(|name| match name.parse::<IpAddr>() {
        Ok(address) => elsewhere(address) || is_named_outside(name, part, (objects, index)),
        Err(_) => is_named_outside(name, part, (objects, index)),
    })
}

fn claims(objects: &Objects) -> Claims {
    let mut claims = Claims::default();
    objects.all().for_each(|object| claims.set(&object, true));
    claims
}

/// Everything in it is found by whole names and single addresses.
fn is_exact(table: &Outbound) -> bool {
    fn names<T>(map: &HostMap<T>) -> bool {
        map.suffix.is_empty() && map.any.is_none()
    }
    fn addresses<T>(map: &AddressMap<T>) -> bool {
        map.networks.is_empty()
    }
    let guards = &table.guards;
    table.base.is_none()
        && names(&guards.own)
        && guards.others.iter().all(|of| names(&of.hosts))
        && table.ports.values().all(|port| {
            let routes = port.tcp_routes.is_empty() && port.tls_routes.is_empty() && port.tcp_any.is_none();
            routes && names(&port.http) && names(&port.tls) && addresses(&port.tcp) && addresses(&port.tls_addresses)
        })
}

/// The names by which something in it is found, and addresses as text.
fn names_in(table: &Outbound) -> impl Iterator<Item = Arc<str>> {
    let guards = std::iter::once(&*table.guards.own).chain(table.guards.others.iter().map(|of| &of.hosts));
    let ports = table.ports.values();
    let named = ports.clone().flat_map(|port| port.http.exact.keys().chain(port.tls.exact.keys()));
    let addresses = ports.flat_map(|port| port.tcp.single.keys().chain(port.tls_addresses.single.keys()));
    let addresses = addresses.map(|address| Arc::from(address.to_string()));
    guards.flat_map(|map| map.exact.keys()).chain(named).cloned().chain(addresses)
}

/// Some object that is not in the part goes by this name, as a host, or as a shorter form of it.
fn is_named_outside(name: &str, part: &Part, (objects, index): (&Objects, &Index)) -> bool {
    let is_entry = |host: &str| {
        let known = &part.after.service_entries;
        index.entries(host).any(|entry| !known.contains(&entry.meta.namespace, &entry.meta.name))
    };
    let is_rule = |host: &str| {
        let known = &part.after.destination_rules;
        index.rules(host).any(|rule| !known.contains(&rule.meta.namespace, &rule.meta.name))
    };
    let short = name.strip_suffix(".svc").unwrap_or(name).split_once('.');
    let service = service_of(name).or(short.filter(|(_, namespace)| !namespace.contains('.')));
    let is_service = service.is_some_and(|(name, namespace)| {
        let outside = objects.services.contains(namespace, name) && !part.after.services.contains(namespace, name);
        outside || is_rule(&service_host(name, namespace))
    });
    is_entry(name) || is_rule(name) || is_service
}

/// A pod of this node bears an address of which its object does not tell.
fn is_borne_unsaid(address: IpAddr, objects: &Objects, addresses: &PodAddresses) -> bool {
    addresses
        .iter()
        .filter(|(_, own)| own.contains(&address))
        .any(|(id, _)| objects.pods.get(&id.namespace, &id.name).is_none_or(|pod| !pod.spec.ips.contains(&address)))
}
