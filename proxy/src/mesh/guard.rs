//! Destinations that must not get plain text: what TLS rules name, whether or not a service for it is left.

use std::sync::Arc;

use super::{
    clusters::Workshop,
    names::CLUSTER_DOMAIN,
    rules::{Chosen, Client, Merged},
    table::{Guard, HostMap},
};

/// What a rule forbids for the hosts it names. A rule without TLS forbids nothing, but ends the search for wider ones.
pub fn guard(rule: &Merged) -> Guard {
    let encrypts = |port: u16| rule.policy(port, None).tls.is_some_and(|tls| tls.settings.encrypts());
    let top = rule.top_tls().is_some_and(|tls| tls.encrypts());
    let (on, off): (Vec<u16>, Vec<u16>) = rule.ports().partition(|port| encrypts(*port));
    let reason = format!(
        "{} asks for TLS to {}, and no service that this workload sees takes this as HTTP to encrypt it: plain text is refused",
        rule.object.id, rule.object.spec.host
    );
    Guard {
        ports: if top { None } else { Some(on) },
        except: if top { off } else { Vec::new() },
        reason: Arc::from(reason),
    }
}

impl Guard {
    /// Forbids nothing.
    pub fn nothing() -> Self {
        Self { ports: Some(Vec::new()), except: Vec::new(), reason: Arc::from("") }
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

/// The rules of every other namespace that this client sees. `serves` says in which namespace a host that the client
/// sees is served: rules of a third namespace never apply to it.
pub fn others<'s>(
    workshop: &mut Workshop<'_>,
    client: Client<'_>,
    root: &str,
    serves: impl Fn(&str) -> Option<&'s str>,
) -> Vec<HostMap<Guard>> {
    let rules = workshop.rules;
    let namespaces: Vec<&str> = rules.namespaces().filter(|namespace| *namespace != client.namespace).collect();
    let maps = namespaces.into_iter().map(|namespace| {
        hosts(workshop, client, namespace, rules, |host| {
            // `*` names no host: elsewhere than in the root namespace it is about that namespace's own services.
            namespace == root || (host != "*" && serves(host).is_none_or(|home| home == namespace))
        })
    });
    maps.filter(|map| map.iter().any(|(_, guard)| guards(guard))).collect()
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
