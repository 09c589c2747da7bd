//! Destinations that must not get plain text: what TLS rules name, whether or not a service for it is left.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    clusters::{MergedRule, Workshop},
    names::CLUSTER_DOMAIN,
    registry::{Entry, Registry},
    rules::{Chosen, Client, Merged},
    table::{AddressMap, Guard, GuardedAddress, HostMap, NamespaceGuards, Protocol, Reason},
    view::Selected,
};

/// What a rule forbids for the hosts it names. A rule without TLS forbids nothing, but ends the search for wider ones.
pub fn guard(rule: &Merged) -> Guard {
    let encrypts = |port: u16| rule.policy(port, None).tls.is_some_and(|tls| tls.settings.encrypts());
    let top = rule.top_tls().is_some_and(|tls| tls.encrypts());
    let (on, off): (Vec<u16>, Vec<u16>) = rule.ports().partition(|port| encrypts(*port));
    Guard {
        ports: if top { None } else { Some(on) },
        except: if top { off } else { Vec::new() },
        reason: Reason(Some(rule.object.clone())),
    }
}

impl Guard {
    /// Forbids nothing.
    pub fn nothing() -> Self {
        Self { ports: Some(Vec::new()), except: Vec::new(), reason: Reason::default() }
    }
}

/// True where the guard ever refuses.
pub fn guards(guard: &Guard) -> bool {
    guard.ports.as_ref().is_none_or(|ports| !ports.is_empty())
}

/// The rules of the client's own namespace.
pub fn own(workshop: &mut Workshop<'_>, client: Client<'_>) -> HostMap<Guard> {
    let rules = workshop.rules;
    hosts(workshop, client, client.namespace, rules, |_| true)
}

/// The guards that are other than `own`, which are those of the namespace at large, because rules with a
/// workloadSelector select the client.
pub fn selected(workshop: &mut Workshop<'_>, client: Client<'_>, own: &HostMap<Guard>) -> HostMap<Guard> {
    let rules = workshop.rules;
    let mut map = HostMap::default();
    for (host, chosen) in rules.hosts_selected(client) {
        let made = of_chosen(workshop, chosen);
        let there = own.pattern(&host);
        if there == Some(&made) {
            continue;
        }
        for alias in short_forms(&host, client.namespace) {
            // A rule for that very name goes first.
            if own.pattern(&alias) == there {
                map.insert_new(&alias, made.clone());
            }
        }
        map.insert(&host, made);
    }
    map
}

/// The rules of every other namespace that this client sees. `home` says whether a namespace serves a host, or nobody
/// does: rules of a third namespace never apply to what the client sees.
pub fn others(
    workshop: &mut Workshop<'_>,
    client: Client<'_>,
    root: &str,
    home: impl Fn(&str, &str) -> bool,
) -> Vec<NamespaceGuards> {
    let rules = workshop.rules;
    let namespaces: Vec<&str> = rules.namespaces().filter(|namespace| *namespace != client.namespace).collect();
    let maps = namespaces.into_iter().map(|namespace| {
        let hosts = hosts(workshop, client, namespace, rules, |host| {
            // `*` names no host: elsewhere than in the root namespace it is about that namespace's own services.
            namespace == root || (host != "*" && home(host, namespace))
        });
        NamespaceGuards { namespace: namespace.into(), hosts }
    });
    maps.filter(|of| of.hosts.values().any(guards)).collect()
}

fn hosts(
    workshop: &mut Workshop<'_>,
    client: Client<'_>,
    namespace: &str,
    rules: &super::rules::Rules,
    counts: impl Fn(&str) -> bool,
) -> HostMap<Guard> {
    let mut map = HostMap::default();
    let mut aliases = Vec::new();
    for (host, chosen) in rules.hosts(client, namespace) {
        if !counts(&host) {
            continue;
        }
        let made = of_chosen(workshop, chosen);
        aliases.extend(short_forms(&host, client.namespace).into_iter().map(|alias| (alias, made.clone())));
        map.insert(&host, made);
    }
    for (alias, guard) in aliases {
        map.insert_new(&alias, guard);
    }
    map
}

fn of_chosen(workshop: &mut Workshop<'_>, chosen: Option<Chosen>) -> Guard {
    match chosen.and_then(|chosen| workshop.merged(&chosen)) {
        Some(merged) => merged.guard,
        // Only rules for other workloads: nothing applies, and wider rules do not either.
        None => Guard::nothing(),
    }
}

/// The virtual addresses of services under rules that guard them.
pub fn addresses(registry: &Registry, services: &[Selected]) -> AddressMap<Vec<GuardedAddress>> {
    let mut map = AddressMap::default();
    for selected in services {
        let guard = selected.rule.as_ref().map(|rule| &rule.guard).filter(|guard| guards(guard));
        if let Some(guard) = guard {
            guard_addresses(&mut map, (selected.entry, &registry.entries[selected.entry]), guard);
        }
    }
    map
}

pub fn guard_addresses(map: &mut AddressMap<Vec<GuardedAddress>>, (service, entry): (usize, &Entry), guard: &Guard) {
    for address in &entry.body.addresses {
        insert(map, *address, GuardedAddress { service, guard: guard.clone() });
    }
}

/// The hosts of services under a rule for `*`, which names none: the rule is of their namespace and not of the client's.
pub fn names(registry: &Registry, services: &[Selected], client: &str, root: &str) -> HostMap<Guard> {
    let mut map = HostMap::default();
    for selected in services {
        let nameless = selected.rule.as_ref().filter(|found| {
            let object = &found.rule.object;
            object.spec.host == "*" && ![client, root].contains(&object.meta.namespace.as_str())
        });
        if let Some(found) = nameless.filter(|found| guards(&found.guard)) {
            map.insert_new(&registry.entries[selected.entry].host, found.guard.clone());
        }
    }
    map
}

/// What raw connections are known by to be for services under such rules: for where a Sidecar hides the service that would
/// have encrypted them.
pub fn raw(registry: &Registry, services: &[Selected]) -> AddressMap<Vec<GuardedAddress>> {
    let mut map = AddressMap::default();
    for selected in services {
        let entry = &registry.entries[selected.entry];
        guard_raw(&mut map, (selected.entry, entry), selected.rule.as_ref(), false);
    }
    map
}

/// `always`: what forbids nothing is entered as well, so that it counts instead of what lies beneath.
pub fn guard_raw(
    map: &mut AddressMap<Vec<GuardedAddress>>,
    (service, entry): (usize, &Entry),
    rule: Option<&MergedRule>,
    always: bool,
) {
    let raw = entry.body.ports.iter().filter(|port| matches!(port.protocol, Protocol::Tcp | Protocol::Auto));
    for port in raw {
        let covers = rule.is_some_and(|rule| rule.guard.covers(port.number));
        if !covers && !always {
            continue;
        }
        let guard = match rule.filter(|_| covers) {
            Some(rule) => Guard { ports: Some(vec![port.number]), except: Vec::new(), ..rule.guard.clone() },
            None => Guard::nothing(),
        };
        let mut addresses = entry.raw_addresses(port);
        // Without addresses it would take whatever nobody else takes.
        if entry.body.addresses.is_empty() && !entry.kubernetes {
            addresses.extend([IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())]);
        }
        for address in addresses {
            insert(map, address, GuardedAddress { service, guard: guard.clone() });
        }
    }
}

fn insert(map: &mut AddressMap<Vec<GuardedAddress>>, network: IpNet, guarded: GuardedAddress) {
    match map.network_mut(network) {
        Some(known) => known.push(guarded),
        None => drop(map.insert_new(network, vec![guarded])),
    }
}

/// The shorter names of a Kubernetes Service as a client writes them; `name` alone only within its namespace.
pub fn short_forms(host: &str, client_namespace: &str) -> Vec<String> {
    let Some(short) = host.strip_suffix(CLUSTER_DOMAIN).and_then(|rest| rest.strip_suffix(".svc.")) else {
        return Vec::new();
    };
    let mut parts = short.split('.');
    let (Some(name), Some(namespace), None) = (parts.next(), parts.next(), parts.next()) else { return Vec::new() };
    if name.starts_with('*') {
        return Vec::new();
    }
    let mut forms = vec![format!("{name}.{namespace}.svc"), format!("{name}.{namespace}")];
    if namespace == client_namespace {
        forms.push(name.to_owned());
    }
    forms
}
