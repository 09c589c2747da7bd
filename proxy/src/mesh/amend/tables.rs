//! Puts what was compiled anew into the tables in force.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::super::{
    guard::guards,
    table::{HostMap, NamespaceGuards, Outbound, PortTable},
};

/// Tables amended so far: workloads share them.
#[derive(Default)]
pub struct Tables {
    made: HashMap<[*const Outbound; 3], Arc<Outbound>>,
    others: HashMap<[*const Vec<NamespaceGuards>; 3], Arc<Vec<NamespaceGuards>>>,
}

impl Tables {
    /// `table` with what `is` has in place of what `was` had.
    pub fn table(&mut self, table: &Arc<Outbound>, was: &Arc<Outbound>, is: &Arc<Outbound>) -> Option<Arc<Outbound>> {
        let key = [table, was, is].map(Arc::as_ptr);
        if let Some(made) = self.made.get(&key) {
            return Some(made.clone());
        }
        // Nothing of what changed differs from workload to workload. Services behind guarded addresses are known by where they
        // were among all.
        if was.base.is_some() || is.base.is_some() || was.guards.addresses != is.guards.addresses {
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
        for (port, there) in &was.ports {
            let table = new.ports.get_mut(port)?;
            there.http.exact.keys().for_each(|name| drop(table.http.exact.remove(name)));
            there.tls.exact.keys().for_each(|name| drop(table.tls.exact.remove(name)));
            there.tcp.single.keys().for_each(|address| drop(table.tcp.single.remove(address)));
            there.tls_addresses.single.keys().for_each(|address| drop(table.tls_addresses.single.remove(address)));
        }
        for (port, there) in &is.ports {
            let table = new.ports.entry(*port).or_default();
            table.http.exact.extend(there.http.exact.iter().map(|(host, to)| (host.clone(), to.clone())));
            table.tls.exact.extend(there.tls.exact.iter().map(|(host, to)| (host.clone(), to.clone())));
            table.tcp.single.extend(there.tcp.single.iter().map(|(address, to)| (*address, to.clone())));
            let addresses = there.tls_addresses.single.iter();
            table.tls_addresses.single.extend(addresses.map(|(address, to)| (*address, to.clone())));
        }
        for port in was.ports.keys().filter(|port| !is.ports.contains_key(port)) {
            if new.ports.get(port).is_some_and(PortTable::is_empty) {
                new.ports.remove(port);
            }
        }
        was.clusters.keys().for_each(|name| drop(new.clusters.remove(name)));
        new.clusters.extend(is.clusters.iter().map(|(name, cluster)| (name.clone(), cluster.clone())));
        was.services.keys().for_each(|host| drop(new.services.remove(host)));
        new.services.extend(is.services.iter().map(|(host, ports)| (host.clone(), ports.clone())));
        if *was.guards.own != *is.guards.own {
            exchange(Arc::make_mut(&mut new.guards.own), &was.guards.own, &is.guards.own);
        }
        if *was.guards.others != *is.guards.others {
            let key = [&new.guards.others, &was.guards.others, &is.guards.others].map(Arc::as_ptr);
            new.guards.others = match self.others.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let made = Arc::new(others(&new.guards.others, &was.guards.others, &is.guards.others));
                    self.others.insert(key, made.clone());
                    made
                }
            };
        }
        Some(())
    }
}

fn others(all: &[NamespaceGuards], was: &[NamespaceGuards], is: &[NamespaceGuards]) -> Vec<NamespaceGuards> {
    fn of<'a>(all: &'a [NamespaceGuards], namespace: &str) -> Option<&'a NamespaceGuards> {
        all.iter().find(|guards| &*guards.namespace == namespace)
    }
    let (mut all, nothing) = (all.to_vec(), HostMap::default());
    let touched: BTreeSet<&str> = was.iter().chain(is).map(|guards| &*guards.namespace).collect();
    for namespace in touched {
        let at = match all.binary_search_by(|guards| (*guards.namespace).cmp(namespace)) {
            Ok(at) => at,
            Err(at) => {
                all.insert(at, NamespaceGuards { namespace: namespace.into(), hosts: HostMap::default() });
                at
            }
        };
        let [was, is] = [was, is].map(|all| of(all, namespace).map_or(&nothing, |guards| &guards.hosts));
        exchange(&mut all[at].hosts, was, is);
    }
    all.retain(|of| of.hosts.values().any(guards));
    all
}

fn exchange<T: Clone>(map: &mut HostMap<T>, was: &HostMap<T>, is: &HostMap<T>) {
    was.exact.keys().for_each(|host| drop(map.exact.remove(host)));
    map.exact.extend(is.exact.iter().map(|(host, value)| (host.clone(), value.clone())));
}
