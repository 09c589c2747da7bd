//! Objects by what others find them by. Kept up to date with each batch, so that those that a change of few concerns need not
//! be looked for among all.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{
    host::{canonical, covers},
    names::{rule_host, selects},
};
use crate::{
    api::{
        AnyObject, Object, ObjectMeta,
        core::Service,
        discovery::{EndpointSlice, SERVICE_NAME},
        istio::{DestinationRule, ServiceEntry},
    },
    source::Changed,
};

#[derive(Debug, Default)]
pub struct Index {
    hasher: RandomState,
    /// By each of their hosts.
    entries: Found<ServiceEntry>,
    /// By the full name of their host.
    rules: Found<DestinationRule>,
    /// Those whose hosts are patterns.
    wide: Vec<Arc<Object<DestinationRule>>>,
    /// By Service, and by the address and the pod of each endpoint.
    slices: Found<EndpointSlice>,
    /// By the first label of their selector.
    selecting: Found<Service>,
    claims: Claims,
    /// Services whose names are not as Kubernetes has them, so that their full names may be others' too.
    odd_services: usize,
    /// ServiceEntries that select pods.
    selecting_entries: usize,
}

#[derive(Hash)]
enum Key<'a> {
    Host(&'a str),
    Service(&'a str, &'a str),
    Address(IpAddr),
    Pod(&'a str, &'a str),
    Label(&'a str, &'a str, &'a str),
}

/// Objects of one kind, each with the hash of what it is found by. Where two keys have one hash, more is found than was asked
/// for, which only makes more to be looked at.
#[derive(Debug)]
struct Found<S>(HashTable<(u64, Arc<Object<S>>)>);

impl<S> Default for Found<S> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

impl<S> Found<S> {
    fn set(&mut self, hash: u64, object: &Arc<Object<S>>, there: bool) {
        if there {
            self.0.insert_unique(hash, (hash, object.clone()), |(hash, _)| *hash);
        } else if let Ok(found) = self.0.find_entry(hash, |(of, known)| *of == hash && Arc::ptr_eq(known, object)) {
            found.remove();
        }
    }

    fn get(&self, hash: u64) -> impl Iterator<Item = &Arc<Object<S>>> {
        self.0.iter_hash(hash).filter(move |(of, _)| *of == hash).map(|(_, object)| object)
    }
}

/// How often objects name each address as one by which, or at which, something is found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claims(HashMap<IpAddr, usize>);

impl Claims {
    pub fn of(&self, address: IpAddr) -> usize {
        self.0.get(&address.to_canonical()).copied().unwrap_or(0)
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    pub fn set(&mut self, object: &AnyObject, there: bool) {
        each_address(object, |address| {
            let address = address.to_canonical();
            let count = self.0.entry(address).or_insert(0);
            *count = if there { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.0.remove(&address);
            }
        });
    }
}

fn each_address(object: &AnyObject, note: impl FnMut(IpAddr)) {
    match object {
        AnyObject::Pod(pod) => pod.spec.ips.iter().copied().for_each(note),
        AnyObject::Service(service) => service.spec.cluster_ips.iter().copied().for_each(note),
        AnyObject::EndpointSlice(slice) => slice.spec.endpoints.iter().map(|endpoint| endpoint.address).for_each(note),
        AnyObject::ServiceEntry(entry) => {
            let endpoints = entry.spec.endpoints.iter().filter_map(|endpoint| endpoint.address.parse().ok());
            entry.spec.addresses.iter().map(|network| network.addr()).chain(endpoints).for_each(note);
        }
        _ => {}
    }
}

impl Index {
    /// A batch is in force in the objects.
    pub fn update(&mut self, changed: &[Changed]) {
        for Changed { before, after } in changed {
            before.iter().for_each(|object| self.set(object, false));
            after.iter().for_each(|object| self.set(object, true));
        }
    }

    fn set(&mut self, object: &AnyObject, there: bool) {
        let count = |number: &mut usize, counts: bool| match (counts, there) {
            (true, true) => *number += 1,
            (true, false) => *number = number.saturating_sub(1),
            (false, _) => {}
        };
        self.claims.set(object, there);
        match object {
            AnyObject::ServiceEntry(entry) => {
                count(&mut self.selecting_entries, entry.spec.workload_selector.is_some());
                for host in &entry.spec.hosts {
                    self.entries.set(self.hasher.hash_one(Key::Host(&canonical(host))), entry, there);
                }
            }
            AnyObject::DestinationRule(rule) => {
                let host = rule_host(&rule.spec.host, &rule.meta.namespace);
                match (host.contains('*'), there) {
                    (true, true) => self.wide.push(rule.clone()),
                    (true, false) => self.wide.retain(|known| !Arc::ptr_eq(known, rule)),
                    (false, _) => self.rules.set(self.hasher.hash_one(Key::Host(&host)), rule, there),
                }
            }
            AnyObject::EndpointSlice(slice) => {
                let namespace = slice.meta.namespace.as_str();
                let mut set = |key: Key<'_>| self.slices.set(self.hasher.hash_one(key), slice, there);
                if let Some(service) = slice.meta.labels.get(SERVICE_NAME) {
                    set(Key::Service(namespace, service));
                }
                for endpoint in &slice.spec.endpoints {
                    set(Key::Address(endpoint.address.to_canonical()));
                    if let Some((namespace, name)) = &endpoint.pod {
                        set(Key::Pod(namespace, name));
                    }
                }
            }
            AnyObject::Service(service) => {
                count(&mut self.odd_services, is_odd(&service.meta));
                if let Some((label, value)) = service.spec.selector.first_key_value() {
                    let key = Key::Label(&service.meta.namespace, label, value);
                    self.selecting.set(self.hasher.hash_one(key), service, there);
                }
            }
            _ => {}
        }
    }

    /// ServiceEntries that have this host.
    pub fn entries(&self, host: &str) -> impl Iterator<Item = &Arc<Object<ServiceEntry>>> {
        self.entries.get(self.hasher.hash_one(Key::Host(host)))
    }

    /// DestinationRules for this host, and no wider ones.
    pub fn rules(&self, host: &str) -> impl Iterator<Item = &Arc<Object<DestinationRule>>> {
        self.rules.get(self.hasher.hash_one(Key::Host(host)))
    }

    /// Some rule for a pattern is about this host.
    pub fn is_under_wide_rule(&self, host: &str) -> bool {
        self.wide.iter().any(|rule| covers(&canonical(&rule.spec.host), host))
    }

    pub fn slices_of_service(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Arc<Object<EndpointSlice>>> {
        self.slices.get(self.hasher.hash_one(Key::Service(namespace, name)))
    }

    pub fn slices_of_pod(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Arc<Object<EndpointSlice>>> {
        self.slices.get(self.hasher.hash_one(Key::Pod(namespace, name)))
    }

    pub fn slices_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Object<EndpointSlice>>> {
        self.slices.get(self.hasher.hash_one(Key::Address(address.to_canonical())))
    }

    /// The Services whose selectors a pod with this namespace and these labels meets.
    pub fn services_selecting<'a>(&'a self, pod: &'a ObjectMeta) -> impl Iterator<Item = &'a Arc<Object<Service>>> {
        let by_label = pod.labels.iter().flat_map(|(label, value)| {
            self.selecting.get(self.hasher.hash_one(Key::Label(&pod.namespace, label, value)))
        });
        by_label
            .filter(|service| service.meta.namespace == pod.namespace && selects(&service.spec.selector, &pod.labels))
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    pub fn has_odd_services(&self) -> bool {
        self.odd_services > 0
    }

    pub fn has_selecting_entries(&self) -> bool {
        self.selecting_entries > 0
    }
}

fn is_odd(service: &ObjectMeta) -> bool {
    let odd = |name: &str| name.is_empty() || name.contains('.') || *canonical(name) != *name;
    odd(&service.name) || odd(&service.namespace)
}
