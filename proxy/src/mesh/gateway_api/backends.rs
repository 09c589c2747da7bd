//! `backendRefs`: what they lead to, and whether they may (Istio `buildDestination`).

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        host::canonical,
        names::{Visibility, service_host},
    },
    status::Fault,
};
use crate::api::{
    Objects,
    gateway_api::{BackendRef, GROUP},
    virtual_service::Destination,
};

/// Every ReferenceGrant.
#[derive(Debug, Default)]
pub struct Grants<'a> {
    /// Kind and namespace of this API group that may refer, and the group, kind and namespace referred to. The value
    /// holds names; None is every one.
    granted: HashMap<Key<'a>, HashSet<Option<&'a str>>>,
}

type Key<'a> = ((&'a str, &'a str), (&'a str, &'a str, &'a str));

impl<'a> Grants<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        let mut granted: HashMap<Key<'_>, HashSet<_>> = HashMap::new();
        for grant in objects.reference_grants.values() {
            for from in grant.spec.from.iter().filter(|from| from.group == GROUP) {
                for to in &grant.spec.to {
                    let to_key = (to.group.as_str(), to.kind.as_str(), grant.meta.namespace.as_str());
                    let names = granted.entry(((&from.kind, &from.namespace), to_key)).or_default();
                    names.insert(to.name.as_deref());
                }
            }
        }
        Self { granted }
    }

    /// Whether an object of this kind and namespace may refer to group, kind, namespace and name.
    pub fn allow(&self, from: (&str, &str), (group, kind, namespace, name): (&str, &str, &str, &str)) -> bool {
        self.granted
            .get(&(from, (group, kind, namespace)))
            .is_some_and(|names| names.contains(&None) || names.contains(&Some(name)))
    }
}

/// What routes may lead to.
pub struct Backends<'a> {
    objects: &'a Objects,
    grants: Grants<'a>,
    /// Ports of hosts that ServiceEntries define, and who sees them.
    declared: HashMap<String, Vec<(Visibility, HashSet<u16>)>>,
}

impl<'a> Backends<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        let mut declared: HashMap<String, Vec<_>> = HashMap::new();
        for entry in objects.service_entries.values() {
            let export_to = entry.spec.export_to.iter().map(String::as_str);
            let visibility = Visibility::new(export_to, &entry.meta.namespace);
            let ports: HashSet<u16> = entry.spec.ports.iter().map(|port| port.number).collect();
            for host in &entry.spec.hosts {
                let known = declared.entry(canonical(host).into_owned()).or_default();
                known.push((visibility.clone(), ports.clone()));
            }
        }
        Self { objects, grants: Grants::new(objects), declared }
    }

    /// Where a backend of a route, of this kind and namespace, is; `granted`: in another namespace it wants a
    /// ReferenceGrant.
    pub fn destination(
        &self,
        backend: &BackendRef,
        (kind, namespace): (&str, &str),
        granted: bool,
    ) -> Result<Destination, Fault> {
        let object = &backend.object;
        let (name, place) = (object.name.as_str(), object.namespace.as_deref().unwrap_or(namespace));
        let (host, found) = match (object.group.as_str(), object.kind.as_str()) {
            ("", "Service") => {
                let target = ("", "Service", place, name);
                if granted && place != namespace && !self.grants.allow((kind, namespace), target) {
                    let a = if kind.starts_with('H') { "an" } else { "a" };
                    let why = format!(
                        "no ReferenceGrant of namespace {place} lets {a} {kind} of namespace {namespace} use Service {name}"
                    );
                    return Err(Fault::new("RefNotPermitted", why));
                }
                let found = self.service_ports(place, name);
                (service_host(name, place), found)
            }
            ("networking.istio.io", "Hostname") => {
                let host = canonical(name).into_owned();
                let found = self.host_ports(&host, namespace);
                (host, found)
            }
            (group, kind) => {
                let group = if group.is_empty() { "core" } else { group };
                return Err(Fault::new("InvalidKind", format!("kind {kind} of group {group} is no backend")));
            }
        };
        let what = if object.kind == "Service" { format!("Service {place}/{name}") } else { name.to_owned() };
        let Some(ports) = found else {
            let why = match object.kind.as_str() {
                "Service" => format!("there is no {what}"),
                _ => format!("namespace {namespace} sees no ServiceEntry or Service for {what}"),
            };
            return Err(Fault::new("BackendNotFound", why));
        };
        if let Some(port) = backend.port.filter(|port| !ports.contains(port)) {
            return Err(Fault::new("BackendNotFound", format!("{what} has no port {port}")));
        }
        Ok(Destination { host, subset: None, port: backend.port })
    }

    fn service_ports(&self, namespace: &str, name: &str) -> Option<HashSet<u16>> {
        let service = self.objects.services.get(namespace, name)?;
        Some(service.spec.ports.iter().map(|port| port.port).collect())
    }

    /// None: nobody defines the host for this namespace.
    fn host_ports(&self, host: &str, namespace: &str) -> Option<HashSet<u16>> {
        let declared = self.declared.get(host).into_iter().flatten();
        let seen = declared.filter(|(visibility, _)| visibility.holds(namespace)).map(|(_, ports)| ports);
        let mut found: Option<HashSet<u16>> = None;
        seen.for_each(|ports| found.get_or_insert_default().extend(ports));
        // `name.namespace.svc.cluster.local` of a Service.
        let mut labels = host.splitn(3, '.');
        if let (Some(name), Some(place)) = (labels.next(), labels.next())
            && service_host(name, place) == host
            && let Some(ports) = self.service_ports(place, name)
        {
            found.get_or_insert_default().extend(ports);
        }
        found
    }
}
