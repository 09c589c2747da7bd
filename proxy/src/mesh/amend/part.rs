//! The objects that a change concerns: those that meet at the hosts of what has changed, with all that they are made of.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use super::super::{
    clusters::takes_credentials,
    enrol::NETNS,
    guard::short_forms,
    host::canonical,
    index::Index,
    names::{CLUSTER_DOMAIN, rule_host, selects, service_host},
    protocol,
    table::{Mesh, Protocol, WorkloadId},
};

use crate::{
    api::{
        AnyObject, Object, Objects,
        core::{Pod, Service},
        discovery::{EndpointSlice, SERVICE_NAME},
        istio::{DestinationRule, ServiceEntry},
    },
    limits,
    source::Changed,
};
use smol_str::SmolStr;

/// What is compiled in place of all objects, as it was and as it is.
pub struct Part {
    pub before: Objects,
    pub after: Objects,
}

impl Part {
    /// None where other kinds have a say in what becomes of hosts, or wildcards, addresses, credentials or selectors reach
    /// beyond them, or the pods of this node themselves have changed.
    pub fn of(objects: &Objects, index: &Index, previous: &Mesh, changed: &[Changed]) -> Option<Self> {
        if changed.len() > limits::AMENDED_OBJECTS || !only_services_and_rules(objects) {
            return None;
        }
        let mut gathering = Gathering {
            objects,
            index,
            after: beside(objects),
            hosts: HashSet::new(),
            services: HashSet::new(),
            by_endpoints: HashSet::new(),
            by_selector: HashSet::new(),
            hosts_to_do: Vec::new(),
            services_to_do: Vec::new(),
        };
        for id in previous.workloads.keys() {
            gathering.pod(&id.namespace, &id.name);
        }
        for one in changed {
            gathering.changed(one, previous)?;
        }
        gathering.close()?;
        let Gathering { mut after, hosts, .. } = gathering;
        witnesses(objects, changed, &mut after);
        let mut before = after.clone();
        for Changed { before: was, after: is } in changed {
            is.iter().for_each(|object| before.remove(object));
            was.iter().for_each(|object| before.insert(object.clone()));
        }
        let plain = hosts.iter().all(|host| is_plain(host) && !index.is_under_wide_rule(host));
        let both = || [&before, &after].into_iter();
        let plain = plain
            && both().flat_map(|part| part.service_entries.values()).all(|entry| is_by_name(entry))
            && both().flat_map(|part| part.destination_rules.values()).all(|rule| is_for_all(rule));
        plain.then_some(Self { before, after })
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

/// All but pods, services and rules. Each kind by name, so that a new one is not forgotten.
fn beside(objects: &Objects) -> Objects {
    Objects {
        pods: Default::default(),
        services: Default::default(),
        endpoint_slices: Default::default(),
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

/// The part as it grows, from what has changed to all that meets it.
struct Gathering<'a> {
    objects: &'a Objects,
    index: &'a Index,
    after: Objects,
    hosts: HashSet<String>,
    /// Namespaces and names, whether or not they are there.
    services: HashSet<(SmolStr, SmolStr)>,
    /// Of these those that had no addresses, and those of which slices came or went.
    by_endpoints: HashSet<(SmolStr, SmolStr)>,
    by_selector: HashSet<(SmolStr, SmolStr)>,
    hosts_to_do: Vec<String>,
    services_to_do: Vec<(SmolStr, SmolStr)>,
}

impl Gathering<'_> {
    fn changed(&mut self, changed: &Changed, previous: &Mesh) -> Option<()> {
        for object in changed.before.iter().chain(&changed.after) {
            match object {
                AnyObject::ServiceEntry(entry) => self.hosts_of(entry),
                AnyObject::DestinationRule(rule) => self.host(host_of(rule)),
                AnyObject::Service(service) => {
                    if self.index.has_odd_services() || serves_here(service, previous) {
                        return None;
                    }
                    if service.spec.cluster_ips.is_empty() {
                        self.by_endpoints.insert((service.meta.namespace.clone(), service.meta.name.clone()));
                    }
                    self.service(&service.meta.namespace, &service.meta.name);
                    self.selected_by(service, service.spec.cluster_ips.is_empty());
                }
                AnyObject::EndpointSlice(slice) => {
                    self.slice(slice);
                    self.others_at(slice);
                }
                AnyObject::Pod(pod) => {
                    if is_here(pod, self.objects) || self.index.has_selecting_entries() {
                        return None;
                    }
                    self.services_of(pod);
                }
                _ => return None,
            }
        }
        let [was, is] = [&changed.before, &changed.after].map(|object| service_of_slice(object.as_ref()));
        if was != is {
            self.by_selector.extend(was.into_iter().chain(is));
        }
        match &changed.after {
            Some(AnyObject::EndpointSlice(slice)) => drop(self.after.endpoint_slices.insert(slice.clone())),
            Some(AnyObject::Pod(pod)) => drop(self.after.pods.insert(pod.clone())),
            _ => {}
        }
        // That a selector selects nobody is told with the policy, by all pods of its namespace.
        let labelled = match (&changed.before, &changed.after) {
            (Some(AnyObject::Pod(was)), Some(AnyObject::Pod(is))) => (was.meta.labels != is.meta.labels).then_some(is),
            (Some(AnyObject::Pod(pod)), None) | (None, Some(AnyObject::Pod(pod))) => Some(pod),
            _ => None,
        };
        let mut policies = self.objects.peer_authentications.values().filter(|policy| !policy.spec.selector.is_empty());
        let told = labelled.is_some_and(|pod| policies.any(|policy| policy.meta.namespace == pod.meta.namespace));
        (!told).then_some(())
    }

    fn host(&mut self, host: String) {
        if !self.hosts.contains(&host) {
            self.hosts.insert(host.clone());
            self.hosts_to_do.push(host);
        }
    }

    fn hosts_of(&mut self, entry: &Object<ServiceEntry>) {
        for host in &entry.spec.hosts {
            self.host(canonical(host).into_owned());
        }
    }

    fn service(&mut self, namespace: &str, name: &str) {
        let key = (SmolStr::from(namespace), SmolStr::from(name));
        if self.services.insert(key.clone()) {
            self.services_to_do.push(key);
            self.host(service_host(&canonical(name), namespace));
        }
    }

    fn slice(&mut self, slice: &Object<EndpointSlice>) {
        if let Some(service) = slice.meta.labels.get(SERVICE_NAME) {
            self.service(&slice.meta.namespace, service);
        }
        for (namespace, name) in slice.spec.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
            self.pod(namespace, name);
        }
    }

    fn pod(&mut self, namespace: &str, name: &str) {
        if let Some(pod) = self.objects.pods.get(namespace, name) {
            self.after.pods.insert(pod.clone());
        }
    }

    /// Those whose endpoint a pod is, or would be where nobody kept slices.
    fn services_of(&mut self, pod: &Object<Pod>) {
        let index = self.index;
        index.slices_of_pod(&pod.meta.namespace, &pod.meta.name).for_each(|slice| self.slice(slice));
        pod.spec.ips.iter().for_each(|address| self.services_at(*address));
        index
            .services_selecting(&pod.meta)
            .for_each(|service| self.service(&service.meta.namespace, &service.meta.name));
    }

    fn services_at(&mut self, address: IpAddr) {
        let index = self.index;
        index.slices_at(address).for_each(|slice| self.slice(slice));
    }

    /// Adds what meets at the hosts and services so far, until no others come in. None: too much does.
    fn close(&mut self) -> Option<()> {
        loop {
            if let Some((namespace, name)) = self.services_to_do.pop() {
                self.endpoints_of(&namespace, &name);
            } else if let Some(host) = self.hosts_to_do.pop() {
                self.objects_of(&host)?;
            } else {
                return Some(());
            }
            let Objects { services, service_entries, destination_rules, .. } = &self.after;
            if services.len() + service_entries.len() + destination_rules.len() > 2 * limits::AMENDED_OBJECTS {
                return None;
            }
        }
    }

    fn objects_of(&mut self, host: &str) -> Option<()> {
        let index = self.index;
        for entry in index.entries(host) {
            if self.after.service_entries.insert(entry.clone()).is_none() {
                self.hosts_of(entry);
            }
        }
        self.after.destination_rules.extend(index.rules(host).cloned());
        if let Some((name, namespace)) = service_of(host) {
            if index.has_odd_services() {
                return None;
            }
            self.service(namespace, name);
        }
        Some(())
    }

    fn endpoints_of(&mut self, namespace: &str, name: &str) {
        let (index, objects, key) = (self.index, self.objects, (SmolStr::from(namespace), SmolStr::from(name)));
        let service = objects.services.get(namespace, name);
        self.after.services.extend(service.cloned());
        // Of a Service without addresses the endpoints' own are used, by which others may be known as well.
        let by_endpoints =
            self.by_endpoints.contains(&key) || service.is_some_and(|service| service.spec.cluster_ips.is_empty());
        let mut kept = false;
        for slice in index.slices_of_service(namespace, name) {
            kept = true;
            self.after.endpoint_slices.insert(slice.clone());
            self.slice(slice);
            if by_endpoints {
                self.others_at(slice);
            }
        }
        if let Some(service) = service.filter(|_| !kept || self.by_selector.contains(&key)) {
            self.selected_by(service, by_endpoints);
        }
    }

    /// Services by whose endpoints, too, those of a slice are found.
    fn others_at(&mut self, slice: &Object<EndpointSlice>) {
        for endpoint in &slice.spec.endpoints {
            self.services_at(endpoint.address);
            let pod = endpoint.pod.as_ref().and_then(|(namespace, name)| self.objects.pods.get(namespace, name));
            pod.into_iter().for_each(|pod| self.services_of(pod));
        }
    }

    /// The pods that a Service selects, which are its endpoints where nobody keeps slices.
    fn selected_by(&mut self, service: &Object<Service>, by_endpoints: bool) {
        for pod in selected(self.objects, service) {
            self.after.pods.insert(pod.clone());
            if by_endpoints {
                self.services_of(pod);
            }
        }
    }
}

fn service_of_slice(object: Option<&AnyObject>) -> Option<(SmolStr, SmolStr)> {
    match object {
        Some(AnyObject::EndpointSlice(slice)) => {
            Some((slice.meta.namespace.clone(), slice.meta.labels.get(SERVICE_NAME)?.into()))
        }
        _ => None,
    }
}

fn selected<'a>(objects: &'a Objects, service: &'a Object<Service>) -> impl Iterator<Item = &'a Arc<Object<Pod>>> {
    let selector = &service.spec.selector;
    let pods = objects.pods.of_namespace(&service.meta.namespace).filter(|_| !selector.is_empty());
    pods.filter(move |pod| selects(selector, &pod.meta.labels))
}

/// For each Service a pod that it selects, and for each namespace a pod of it, where there are any that have not changed: what
/// is told of a Service that selects nobody is told by all pods.
fn witnesses(objects: &Objects, changed: &[Changed], after: &mut Objects) {
    let ids = changed.iter().flat_map(|changed| changed.before.iter().chain(&changed.after)).map(AnyObject::id);
    let touched: HashSet<WorkloadId> = ids
        .filter(|id| id.kind == "Pod")
        .map(|id| WorkloadId { namespace: id.namespace.clone(), name: id.name.clone() })
        .collect();
    let stays = |pod: &&Arc<Object<Pod>>| {
        let id = WorkloadId { namespace: pod.meta.namespace.clone(), name: pod.meta.name.clone() };
        touched.is_empty() || !touched.contains(&id)
    };
    let before = changed.iter().filter_map(|changed| match &changed.before {
        Some(AnyObject::Service(service)) => Some(service),
        _ => None,
    });
    let services: Vec<_> = after.services.values().chain(before).cloned().collect();
    let mut namespaces: HashSet<&str> = HashSet::new();
    for service in &services {
        let namespace = service.meta.namespace.as_str();
        if namespaces.insert(namespace) {
            after.pods.extend(objects.pods.of_namespace(namespace).find(stays).cloned());
        }
        // Most have one among their endpoints.
        if selected(after, service).find(stays).is_none() {
            after.pods.extend(selected(objects, service).find(stays).cloned());
        }
    }
}

fn host_of(rule: &Object<DestinationRule>) -> String {
    rule_host(&rule.spec.host, &rule.meta.namespace)
}

/// Name and namespace of the Service whose full name this is.
pub fn service_of(host: &str) -> Option<(&str, &str)> {
    let short = host.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".svc.")?;
    short.split_once('.').filter(|(name, namespace)| !name.is_empty() && !namespace.contains('.'))
}

/// A whole name: no pattern, no address, and of a Service its full one.
fn is_plain(host: &str) -> bool {
    let service = host.ends_with(CLUSTER_DOMAIN) || host.ends_with(".svc");
    let whole = !service || !short_forms(host, "").is_empty();
    host.contains('.') && !host.contains(['*', ':']) && whole && host.parse::<IpAddr>().is_err()
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

/// It selects a pod that this agent serves, whose own ports are then as it says.
fn serves_here(service: &Object<Service>, previous: &Mesh) -> bool {
    let selector = &service.spec.selector;
    let near = previous.workloads.values().filter(|workload| workload.id.namespace == service.meta.namespace);
    !selector.is_empty() && near.into_iter().any(|workload| selects(selector, &workload.labels))
}

/// The pod is of this node, or (of a single host) says that it is served here.
fn is_here(pod: &Object<Pod>, objects: &Objects) -> bool {
    match objects.node.as_deref() {
        Some(node) => pod.spec.node_name == node,
        None => pod.meta.annotations.contains_key(NETNS),
    }
}
