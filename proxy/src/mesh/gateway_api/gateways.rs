//! Gateways of the Gateway API: a Gateway of Istio's for each listener, and the Service that clients know it by.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    super::{
        enrol::{Enrolled, enrolled},
        findings::Findings,
        names::{CLUSTER_DOMAIN, selects},
        table::{About, Condition, ObjectStatus},
    },
    CONTROLLER, GATEWAY_NAME, Implied, NAME_OVERRIDE,
    backends::Grants,
    controller, key,
    listeners::{Parent, parents},
    made,
    status::{Fault, condition},
    written,
};
use crate::api::{
    Object, ObjectId, ObjectMeta, Objects, Severity,
    core::{Service, ServicePort, TargetPort},
    gateway,
    gateway_api::{self, GROUP, ParentRef},
};

/// The Gateways that routes may name.
#[derive(Debug, Default)]
pub struct Gateways {
    /// Those that egret serves, by namespace and name.
    pub served: BTreeMap<(String, String), Served>,
    /// Those of other controllers.
    pub foreign: BTreeSet<(String, String)>,
}

#[derive(Debug)]
pub struct Served {
    object: Arc<Object<gateway_api::Gateway>>,
    controller: &'static str,
    pub listeners: Vec<Parent>,
    /// Labels of the pods that serve it.
    selector: BTreeMap<String, String>,
    /// Enrolled pods that serve it.
    pods: Vec<String>,
    /// It wants addresses that there are not.
    address: Option<Fault>,
}

/// The Gateways, and what they imply.
pub fn convert(objects: &Objects, findings: &mut Findings) -> (Gateways, Vec<Implied>) {
    let mut gateways = Gateways::default();
    let mut implied = Vec::new();
    let grants = Grants::new(objects);
    let pods = enrolled(objects, &mut Findings::default());
    for object in objects.kube_gateways.values() {
        let name = key(&object.meta.namespace, &object.meta.name);
        let controller = match controller(objects, &object.spec.class) {
            Ok(controller) => controller,
            Err(why) => {
                findings.add(object, Severity::Info, "spec.gatewayClassName", format!("{why}: left alone"));
                gateways.foreign.insert(name);
                continue;
            }
        };
        let mut served = Served::new(object, controller);
        let address = by_address(object, objects, findings);
        match &address {
            Some(Ok(service)) => served.selector = service.spec.selector.clone(),
            Some(Err(fault)) => served.address = Some(fault.clone()),
            None => {}
        }
        // A controller sees pods before they run.
        let runs = |one: &&Enrolled<'_>| objects.controllers.is_none() || !one.pod.spec.ips.is_empty();
        let serves = |one: &&Enrolled<'_>| {
            one.id.namespace == object.meta.namespace && selects(&served.selector, &one.pod.meta.labels)
        };
        let pods: Vec<_> = pods.iter().filter(serves).filter(runs).collect();
        // On a single host all there is is here, and to a controller no node is nearer than another.
        let here = objects.node.is_none() || pods.iter().any(|one| one.netns.is_some());
        served.pods = pods.iter().map(|one| one.id.name.to_string()).collect();
        served.listeners = parents(object, objects, &grants, here, findings);
        let own = address.is_none().then(|| service(object, service_name(object), &served, objects));
        let given = address.into_iter().flatten().map(|service| service.meta.name.to_string());
        implied.push(Implied {
            gateway: object.id.clone(),
            class: object.spec.class.clone(),
            controller,
            addressed_by: own.iter().map(|service| service.meta.name.to_string()).chain(given).collect(),
            service: own,
        });
        gateways.served.insert(name, served);
    }
    (gateways, implied)
}

/// The Service that a controller would make for the Gateway (Istio `getDefaultName`).
fn service_name(object: &Object<gateway_api::Gateway>) -> String {
    let given = object.meta.annotations.get(NAME_OVERRIDE).filter(|name| !name.is_empty());
    given.cloned().unwrap_or_else(|| format!("{}-{}", object.meta.name, object.spec.class))
}

/// An address of type Hostname names a Service, whose pods serve the Gateway then. None: there is no such address.
fn by_address(
    object: &Object<gateway_api::Gateway>,
    objects: &Objects,
    findings: &mut Findings,
) -> Option<Result<Arc<Object<Service>>, Fault>> {
    let namespace = &object.meta.namespace;
    let mut found = None;
    for (at, address) in object.spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{at}]");
        if address.kind != "Hostname" {
            let message = "not honoured: the Gateway is served on the addresses of its pods";
            findings.warn(object, &field, message);
            continue;
        }
        let name = match address.value.split_once('.') {
            None => Some(address.value.as_str()),
            Some((name, rest)) => (rest == format!("{namespace}.svc.{CLUSTER_DOMAIN}")).then_some(name),
        };
        let service = name.and_then(|name| objects.services.get(namespace, name));
        match service.filter(|service| !service.spec.selector.is_empty()) {
            Some(service) => drop(found.get_or_insert_with(|| Ok(service.clone()))),
            None => {
                let why = format!("namespace {namespace} has no Service {} with a selector", address.value);
                findings.error(object, &field, format!("{why}: nobody serves this Gateway"));
                found.get_or_insert_with(|| Err(Fault::new("AddressNotUsable", why)));
            }
        }
    }
    found
}

/// What a controller would make on Kubernetes: the Gateway's ports, to the same ports of its pods.
fn service(
    object: &Arc<Object<gateway_api::Gateway>>,
    name: String,
    served: &Served,
    objects: &Objects,
) -> Arc<Object<Service>> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for listener in &served.listeners {
        if ports.iter().all(|port| port.port != listener.port) {
            ports.push(ServicePort {
                name: Some(listener.name.clone()),
                port: listener.port,
                protocol: None,
                app_protocol: Some(listener.application().to_owned()),
                target_port: translated(objects, object, served, listener.port),
            });
        }
    }
    let spec =
        Service { type_: "ClusterIP".to_owned(), selector: served.selector.clone(), ports, ..Service::default() };
    let meta = ObjectMeta { name: name.as_str().into(), ..object.meta.clone() };
    let mut made = made(object, meta, spec, [("spec".to_owned(), written(&**object, "spec.listeners"))]);
    // Its own name: what is shown of a cluster is its Service.
    if let Some(made) = Arc::get_mut(&mut made) {
        made.id = ObjectId::new("Service", object.meta.namespace.as_str(), name);
    }
    made
}

/// Where another Service of the Gateway's pods sends the port: the listener is bound there.
fn translated(
    objects: &Objects,
    object: &Object<gateway_api::Gateway>,
    served: &Served,
    port: u16,
) -> Option<TargetPort> {
    let pods = objects
        .pods
        .values()
        .filter(|pod| pod.meta.namespace == object.meta.namespace && selects(&served.selector, &pod.meta.labels));
    let pods: Vec<_> = pods.collect();
    let services = objects.services.values().filter(|service| {
        let selector = &service.spec.selector;
        service.meta.namespace == object.meta.namespace
            && !selector.is_empty()
            && pods.iter().any(|pod| selects(selector, &pod.meta.labels))
    });
    let mut ports = services.flat_map(|service| &service.spec.ports).filter(|other| other.port == port);
    ports.find_map(|port| port.target_port.clone())
}

impl Served {
    fn new(object: &Arc<Object<gateway_api::Gateway>>, controller: &'static str) -> Self {
        let selector = BTreeMap::from([(GATEWAY_NAME.to_owned(), object.meta.name.to_string())]);
        Self { object: object.clone(), controller, listeners: Vec::new(), selector, pods: Vec::new(), address: None }
    }

    /// The Gateways that a listener becomes: one, and one for each host whose TLS it takes off for a TLSRoute.
    fn made(&self, at: usize, listener: &Parent) -> Vec<Arc<Object<gateway::Gateway>>> {
        let Some(server) = listener.server.clone().filter(|_| listener.refused.is_none()) else { return Vec::new() };
        let own = listener.hostname.as_deref().unwrap_or("*");
        let name = listener.gateway_name(&self.object.meta.name);
        let whole = (!listener.terminated.contains(own)).then(|| (name.clone(), server.clone()));
        let parts = listener.terminated.iter().map(|host| {
            let hosts = listener.allowed.server_hosts(host);
            (format!("{name}~{host}"), gateway::Server { hosts, ..server.clone() })
        });
        whole.into_iter().chain(parts).map(|(name, server)| self.made_as(at, name, server)).collect()
    }

    fn made_as(&self, at: usize, name: String, server: gateway::Server) -> Arc<Object<gateway::Gateway>> {
        let object = &self.object;
        let meta = ObjectMeta { name: name.into(), ..object.meta.clone() };
        let own = |field: &str| written(&**object, field);
        let of = |field: &str| own(&format!("spec.listeners[{at}]{field}"));
        let fields = [
            ("spec.selector", own("metadata.name")),
            ("spec.servers", of("")),
            ("spec.servers[0]", of("")),
            ("spec.servers[0].port", of(".port")),
            ("spec.servers[0].port.number", of(".port")),
            ("spec.servers[0].port.protocol", of(".protocol")),
            ("spec.servers[0].hosts", of(".hostname")),
            ("spec.servers[0].tls", of(".tls")),
            ("spec.servers[0].tls.mode", of(".tls")),
            ("spec.servers[0].tls.serverCertificate", of(".tls")),
            ("spec.servers[0].tls.caCertCredentialName", of(".tls")),
            ("spec.servers[0].tls.cipherSuites", of(".tls.options")),
            ("spec.servers[0].tls.credentialName", of(".tls.certificateRefs")),
            ("spec.servers[0].tls.credentialNames", of(".tls.certificateRefs")),
        ];
        let spec = gateway::Gateway {
            selector: self.selector.clone(),
            pods_of: Some(object.meta.namespace.to_string()),
            servers: vec![server],
        };
        made(object, meta, spec, fields.map(|(field, written)| (field.to_owned(), written)))
    }

    fn status(&self) -> Vec<ObjectStatus> {
        let status = |about: About, conditions: Vec<Condition>| ObjectStatus {
            object: self.object.id.clone(),
            controller: Some(self.controller),
            about,
            conditions,
        };
        let pending = self.pods.is_empty().then(|| {
            let labels: Vec<_> = self.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let namespace = &self.object.meta.namespace;
            Fault::new("Pending", format!("no enrolled pod of namespace {namespace} bears {}", labels.join(",")))
        });
        let fault = self.address.as_ref().or(pending.as_ref());
        let invalid: Vec<_> = self.listeners.iter().filter(|l| !l.is_valid()).map(|l| l.name.as_str()).collect();
        let mut accepted = condition("Accepted", "accepted", None);
        if !invalid.is_empty() {
            accepted.reason = "ListenersNotValid";
            accepted.message = format!("not valid: {}", invalid.join(", "));
        }
        let programmed = format!("served by {}", self.pods.join(", "));
        let own = status(About::Itself, vec![accepted, condition("Programmed", programmed, fault)]);
        let listeners = self.listeners.iter().map(|listener| status(listener.about(), listener.status(fault)));
        std::iter::once(own).chain(listeners).collect()
    }
}

impl Gateways {
    /// Istio's Gateways for all listeners.
    pub fn made(&self) -> Vec<Arc<Object<gateway::Gateway>>> {
        let listeners = self.served.values().flat_map(|served| {
            served.listeners.iter().enumerate().flat_map(|(at, listener)| served.made(at, listener))
        });
        listeners.collect()
    }

    pub fn statuses(&self) -> Vec<ObjectStatus> {
        self.served.values().flat_map(Served::status).collect()
    }

    /// The `controllerName` under which the conditions of a route of `namespace` at one of its parents are reported.
    pub fn controller(&self, parent: &ParentRef, namespace: &str) -> Option<&'static str> {
        let object = &parent.object;
        match (object.group.as_str(), object.kind.as_str()) {
            (GROUP, "Gateway") => {
                let namespace = object.namespace.as_deref().unwrap_or(namespace);
                self.served.get(&key(namespace, &object.name)).map(|served| served.controller)
            }
            // In the mesh every route is egret's.
            _ => Some(CONTROLLER),
        }
    }

    /// `Gateway default/gw`
    pub fn name(namespace: &str, name: &str) -> String {
        let (kind, namespace, name) = (gateway_api::GATEWAY, namespace.to_owned(), name.to_owned());
        ObjectId::new(kind, namespace, name).to_string()
    }
}
