//! What `egret check` says of imports that import nothing.

use std::collections::HashMap;

use super::super::{
    findings::Findings,
    host::{canonical, covers},
    registry::Registry,
    virtual_services::VirtualServices,
};
use crate::api::{Object, Objects, Severity, sidecar::Sidecar};

/// A host that something may be imported by.
struct Importable<'a> {
    namespace: &'a str,
    host: &'a str,
    /// Who has it, for messages.
    object: String,
    seen_by: Box<dyn Fn(&str) -> bool + 'a>,
}

pub fn check(objects: &Objects, registry: &Registry, services: &VirtualServices, root: &str, findings: &mut Findings) {
    if objects.sidecars.values().all(|sidecar| sidecar.spec.egress.is_empty()) {
        return;
    }
    let known = Known::new(registry, services);
    for sidecar in objects.sidecars.values() {
        let listeners = sidecar.spec.egress.iter().enumerate();
        let hosts = listeners.flat_map(|(listener, given)| given.hosts.iter().enumerate().map(move |h| (listener, h)));
        for (listener, (index, written)) in hosts {
            if let Some((severity, message)) = known.about(sidecar, root, written) {
                let field = format!("spec.egress[{listener}].hosts[{index}]");
                findings.add(sidecar, severity, &field, message);
            }
        }
    }
}

struct Known<'a> {
    all: Vec<Importable<'a>>,
    by_host: HashMap<&'a str, Vec<usize>>,
    by_namespace: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Known<'a> {
    fn new(registry: &'a Registry, services: &'a VirtualServices) -> Self {
        let entries = registry.entries.iter().map(|entry| Importable {
            namespace: &entry.namespace,
            host: &entry.host,
            object: entry.object.to_string(),
            seen_by: Box::new(|namespace| entry.body.visibility.holds(namespace)),
        });
        let routes = services.all.iter().flat_map(|service| {
            service.hosts.iter().map(|host| Importable {
                namespace: &service.object.meta.namespace,
                host,
                object: service.object.id.to_string(),
                seen_by: Box::new(|namespace| service.visibility.holds(namespace)),
            })
        });
        let all: Vec<_> = entries.chain(routes).collect();
        let (mut by_host, mut by_namespace) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for (at, known) in all.iter().enumerate() {
            by_host.entry(known.host).or_default().push(at);
            by_namespace.entry(known.namespace).or_default().push(at);
        }
        Self { all, by_host, by_namespace }
    }

    /// None: it imports something, or is meant to import nothing.
    fn about(&self, sidecar: &Object<Sidecar>, root: &str, written: &str) -> Option<(Severity, String)> {
        let (namespace, host) = written.split_once('/')?;
        let home = sidecar.meta.namespace.as_str();
        // That of the root namespace is for workloads anywhere: `.` is theirs.
        let everywhere = home == root && sidecar.spec.selector.is_empty();
        if namespace == "~" || (everywhere && namespace == ".") {
            return None;
        }
        let namespace = if namespace == "." { home } else { namespace };
        let host = canonical(host);
        let seen = |known: &Importable<'_>| everywhere || (known.seen_by)(home);
        let within = |at: &usize| {
            let known = &self.all[*at];
            (namespace == "*" || known.namespace == namespace) && covers(&host, known.host)
        };
        let candidates: Box<dyn Iterator<Item = usize>> = match (host.contains('*'), namespace) {
            (false, _) => Box::new(self.by_host.get(&*host).into_iter().flatten().copied()),
            (true, "*") => Box::new(0..self.all.len()),
            (true, _) => Box::new(self.by_namespace.get(namespace).into_iter().flatten().copied()),
        };
        let mut hidden = None;
        for at in candidates.filter(within) {
            if seen(&self.all[at]) {
                return None;
            }
            hidden = hidden.or(Some(&self.all[at]));
        }
        let elsewhere = || {
            let same = self.by_host.get(&*host).into_iter().flatten().map(|at| &self.all[*at]);
            same.filter(|known| seen(known)).min_by_key(|known| &known.object)
        };
        let whose = if namespace == "*" { String::new() } else { format!(" of namespace {namespace}") };
        let why = match (hidden, elsewhere()) {
            (Some(known), _) => format!("{} is not exported to namespace {home}", known.object),
            (None, Some(known)) => format!("{} is of namespace {}", known.object, known.namespace),
            (None, None) => format!("no ServiceEntry, Service or VirtualService{whose} has such a host"),
        };
        // A pattern may be there for what is still to come.
        let severity = if host.contains('*') { Severity::Info } else { Severity::Warning };
        Some((severity, format!("nothing is imported by this: {why}")))
    }
}
