//! Findings about VirtualServices that need all objects but no workload.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    super::{
        findings::Findings,
        names::rule_host,
        origination::NO_LABELS,
        registry::{Entry, Registry},
        rules::{Rules, every_tls},
        table::{Cluster, Guard, Protocol},
    },
    Caller, Destinations, MESH, Resolved, RouteContext, VirtualServices,
    delegates::found,
    gateway_name,
    http::check_routes,
    matches::request_match,
};
use crate::api::{
    Object, Objects,
    virtual_service::{Destination, HttpMatch, VirtualService},
};

pub fn check(
    services: &VirtualServices,
    objects: &Objects,
    registry: &Registry,
    rules: &Rules,
    findings: &mut Findings,
) {
    let mut known = Known { hosts: HashMap::new(), rules };
    for entry in &registry.entries {
        known.hosts.entry(&entry.host).or_default().push(entry);
    }
    // Those made of HTTPRoutes say what is wrong in the conditions of their own status.
    for service in services.all.iter().filter(|service| !service.is_gateway_api()) {
        let caller = Caller { namespace: &service.object.meta.namespace, labels: &NO_LABELS, gateway: MESH };
        check_routes(service, &RouteContext { caller, port: 80, destinations: &Nowhere }, findings);
        without_service(service, &known, findings);
        unreached(service, findings);
        for (object, field, to) in destinations(service) {
            known.check(object, &field, to, findings);
        }
        for rule in &service.http {
            for (at, to) in rule.rule().route.iter().enumerate() {
                known.plain(&rule.object, &rule.field(&format!("route[{at}].destination")), &to.destination, findings);
            }
        }
    }
    conflicts(services, objects, findings);
    delegates(objects, findings);
}

/// No services at all.
struct Nowhere;

impl Destinations for Nowhere {
    fn ports(&self, _: &str) -> &[u16] {
        &[]
    }

    fn cluster(&self, _: &str) -> Option<&Arc<Cluster>> {
        None
    }

    fn guard_host(&self, _: &str, _: u16) -> Option<&Guard> {
        None
    }
}

struct Known<'a> {
    hosts: HashMap<&'a str, Vec<&'a Entry>>,
    rules: &'a Rules,
}

impl Known<'_> {
    fn check(&self, object: &Object<VirtualService>, field: &str, to: &Destination, findings: &mut Findings) {
        let namespace = &object.meta.namespace;
        let host = rule_host(&to.host, namespace);
        let Some(entries) = self.hosts.get(host.as_str()) else {
            let message = format!("there is no ServiceEntry or Service {host}: requests get 503 (NC)");
            return findings.error(object, &format!("{field}.host"), message);
        };
        if let Some(hidden) = entries.first().filter(|_| !entries.iter().any(|e| e.body.visibility.holds(namespace))) {
            let message = format!("{} is not exported to namespace {namespace}", hidden.object);
            findings.warn(object, &format!("{field}.host"), message);
        }
        let ports: BTreeSet<u16> = entries.iter().flat_map(|e| e.body.ports.iter().map(|port| port.number)).collect();
        if let Some(port) = to.port.filter(|port| !ports.contains(port)) {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            let message = format!("{host} has no port {port} (it has {}): requests get 503 (NC)", ports.join(", "));
            findings.error(object, &format!("{field}.port.number"), message);
        }
        if let Some(subset) = to.subset.as_deref().filter(|subset| !subset.is_empty()) {
            let mut naming = self.rules.naming(&host, |_| true);
            if !naming.any(|at| self.rules.all[at].object.spec.subsets.iter().any(|known| known.name == subset)) {
                let message = format!("no DestinationRule gives {host} a subset {subset}: requests get 503 (NC)");
                findings.error(object, &format!("{field}.subset"), message);
            }
        }
    }
}

impl Known<'_> {
    /// HTTP to a port whose servers want TLS, with no rule that makes it so.
    fn plain(&self, object: &Object<VirtualService>, field: &str, to: &Destination, findings: &mut Findings) {
        let host = rule_host(&to.host, &object.meta.namespace);
        let entry = self.hosts.get(host.as_str()).and_then(|entries| entries.first());
        let tls_port = entry.and_then(|entry| {
            let number = to.port.or_else(|| entry.body.ports.first().map(|port| port.number))?;
            let port = entry.body.ports.iter().find(|port| port.number == number)?;
            matches!(port.protocol, Protocol::Https | Protocol::Tls).then_some((number, &entry.object))
        });
        let Some((number, service)) = tls_port else { return };
        let mut naming = self.rules.naming(&host, |_| true);
        if !naming.any(|at| every_tls(&self.rules.all[at].object.spec).iter().any(|(_, tls)| tls.encrypts())) {
            let message = format!(
                "port {number} of {service} is TLS, and no DestinationRule originates it for {host}: it gets plain HTTP"
            );
            findings.warn(object, field, message);
        }
    }
}

/// Every destination with where it is written.
fn destinations(service: &Resolved) -> Vec<(&Object<VirtualService>, String, &Destination)> {
    let mut all: Vec<(&Object<VirtualService>, String, &Destination)> = Vec::new();
    for rule in &service.http {
        for (at, to) in rule.rule().route.iter().enumerate() {
            all.push((&rule.object, rule.field(&format!("route[{at}].destination")), &to.destination));
        }
        for (at, mirror) in rule.rule().mirrors.iter().enumerate() {
            let single = rule.field("mirror");
            let is_single = rule.object.origin.positions.get(&single).is_some();
            let field = if is_single { single } else { rule.field(&format!("mirrors[{at}].destination")) };
            all.push((&rule.object, field, &mirror.destination));
        }
    }
    let spec = &service.object.spec;
    let tls = spec.tls.iter().map(|rule| &rule.route).enumerate().map(|(at, route)| ("tls", at, route));
    let tcp = spec.tcp.iter().map(|rule| &rule.route).enumerate().map(|(at, route)| ("tcp", at, route));
    for (kind, index, route) in tls.chain(tcp) {
        for (at, to) in route.iter().enumerate() {
            all.push((&service.object, format!("spec.{kind}[{index}].route[{at}].destination"), &to.destination));
        }
    }
    all
}

/// Hosts of the mesh that no service has.
fn without_service(service: &Resolved, known: &Known<'_>, findings: &mut Findings) {
    let object = &service.object;
    let (written, namespace) = (&object.spec.gateways, &object.meta.namespace);
    if !written.is_empty() && !written.iter().any(|name| gateway_name(name, namespace) == MESH) {
        return;
    }
    for (at, host) in service.hosts.iter().enumerate() {
        if !host.contains('*') && !known.hosts.contains_key(host.as_str()) {
            let message = "no ServiceEntry or Service has this host: in the mesh it is served on port 80 only";
            findings.warn(object, &format!("spec.hosts[{at}]"), message);
        }
    }
}

/// Routes after one that takes every request of every client.
fn unreached(service: &Resolved, findings: &mut Findings) {
    let http = &service.object.spec.http;
    let takes_all = |given: &HttpMatch| {
        let everywhere = given.port.is_none() && given.gateways.is_empty();
        let everybody = given.source_labels.is_empty() && given.source_namespace.is_none();
        everywhere && everybody && request_match(given, &mut Vec::new()).takes_all()
    };
    let last = http
        .iter()
        .position(|rule| rule.delegate.is_none() && (rule.matches.is_empty() || rule.matches.iter().any(takes_all)));
    let Some(last) = last else { return };
    for at in last + 1..http.len() {
        let message = format!("never reached: spec.http[{last}] takes every request");
        findings.warn(&service.object, &format!("spec.http[{at}]"), message);
    }
}

/// VirtualServices of the mesh for a host that another one has.
fn conflicts(services: &VirtualServices, objects: &Objects, findings: &mut Findings) {
    let own = services.all.iter().map(|service| service.object.meta.namespace.as_str());
    let mut namespaces: BTreeSet<&str> = own.chain(objects.pods.keys().map(|(namespace, _)| namespace)).collect();
    // Few hosts have more than one anywhere: each namespace then need not be asked about the others.
    let mut times: HashMap<&str, usize> = HashMap::new();
    for host in services.all.iter().flat_map(|service| &service.hosts) {
        *times.entry(host).or_default() += 1;
    }
    times.retain(|_, times| *times > 1);
    if times.is_empty() {
        namespaces.clear();
    }
    for namespace in namespaces {
        let mut first: HashMap<&str, &Resolved> = HashMap::new();
        for service in services.bound(MESH, namespace).into_iter().map(|at| &services.all[at]) {
            let shared = service.hosts.iter().enumerate().filter(|(_, host)| times.contains_key(host.as_str()));
            for (at, host) in shared {
                let known = *first.entry(host).or_insert(service);
                let joined = known.is_gateway_api() && service.is_gateway_api();
                if !std::ptr::eq(known, service) && !joined {
                    let message = format!(
                        "{} goes first for this host, and in the mesh there is no merging: this one counts only where that has no route",
                        known.object.id
                    );
                    findings.warn(&service.object, &format!("spec.hosts[{at}]"), message);
                }
            }
        }
    }
}

/// Delegates that nobody delegates to.
fn delegates(objects: &Objects, findings: &mut Findings) {
    let all = objects.virtual_services.values();
    let used = all.clone().flat_map(|object| {
        object.spec.http.iter().filter_map(|rule| found(object, rule, objects)?.ok()).map(|used| &used.id)
    });
    let used: BTreeSet<_> = used.collect();
    for object in all.filter(|object| object.spec.hosts.is_empty() && !used.contains(&object.id)) {
        let message = "without hosts it is a delegate, and no VirtualService delegates to it: it does nothing";
        findings.warn(object, "spec", message);
    }
}
