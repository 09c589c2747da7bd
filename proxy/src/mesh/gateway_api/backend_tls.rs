//! BackendTLSPolicies to DestinationRules, as in Istio, for every client of the mesh. Plain text never leaves for what a
//! policy names: rules that authors wrote for the same hosts get its TLS wherever they have none of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use smol_str::{SmolStr, format_smolstr};

use super::{
    super::{
        enrol::enrolled,
        findings::Findings,
        host::{canonical, covers},
        names::{rule_host, service_host},
        table::{About, ObjectStatus},
    },
    CONTROLLER,
    backends::Grants,
    credentials::authority,
    made,
    status::{Fault, condition},
    tls::References,
    written,
};
use crate::api::{
    Object, ObjectId, ObjectMeta, Objects,
    gateway_api::{BackendTlsPolicy, BackendTlsTarget, GATEWAY, ObjectRef},
    istio::{ClientTls, DestinationRule, TlsMode, TrafficPolicy},
};

type Policy = Arc<Object<BackendTlsPolicy>>;

/// What policies say about one host.
struct Secured {
    /// The first that names it, for the rule that is made.
    policy: Policy,
    /// For ports that have nothing of their own.
    whole: Option<ClientTls>,
    ports: BTreeMap<u16, ClientTls>,
}

/// Enters the rules into `objects`; gives the conditions of the policies.
pub fn convert(objects: &mut Objects, routes: &[ObjectStatus], findings: &mut Findings) -> Vec<ObjectStatus> {
    if objects.backend_tls_policies.is_empty() {
        return Vec::new();
    }
    let given = objects.clone();
    let led = led_to(&given, routes);
    let grants = Grants::new(&given);
    // A node without enrolled pods calls none of the targets. On others any of them may.
    let calls = || enrolled(&given, &mut Findings::default()).iter().any(|one| one.netns.is_some());
    let here = given.node.is_none() || calls();
    let mut sorted: Vec<&Policy> = given.backend_tls_policies.values().collect();
    sorted.sort_by_key(|policy| (&policy.meta.creation_timestamp, &policy.meta.namespace, &policy.meta.name));
    let mut hosts: BTreeMap<(SmolStr, String), Secured> = BTreeMap::new();
    // Who named a target first.
    let mut taken: BTreeMap<(SmolStr, BackendTlsTargetKey), String> = BTreeMap::new();
    let mut statuses = Vec::new();
    for policy in sorted {
        let references = References { objects: &given, grants: &grants, namespace: &policy.meta.namespace, here };
        let (tls, broken) = client_tls(policy, references, findings);
        for (at, target) in policy.spec.targets.iter().enumerate() {
            let field = format!("spec.targetRefs[{at}]");
            let of_target = (policy.meta.namespace.clone(), target_key(target));
            let found = self::target(&given, &policy.meta.namespace, target);
            let names = found.as_ref().map(|(names, _)| names.as_slice()).unwrap_or_default();
            let gateways = names.iter().filter_map(|name| led.get(name)).flatten().cloned().collect();
            let found = match taken.get(&of_target) {
                Some(first) => Err(Fault::new("Conflicted", format!("{first} is about the same target already"))),
                None => found,
            };
            let refused =
                match found {
                    Ok((names, port)) => {
                        taken.insert(of_target, policy.id.to_string());
                        for host in names {
                            let secured = hosts.entry((policy.meta.namespace.clone(), host)).or_insert_with(|| {
                                Secured { policy: policy.clone(), whole: None, ports: BTreeMap::new() }
                            });
                            match port {
                                Some(port) => drop(secured.ports.entry(port).or_insert_with(|| tls.clone())),
                                None => drop(secured.whole.get_or_insert_with(|| tls.clone())),
                            }
                        }
                        broken.as_ref().map(|fault| Fault::new("NoValidCACertificate", &*fault.message))
                    }
                    Err(fault) => {
                        findings.error(&**policy, &field, format!("{}: the policy does nothing there", fault.message));
                        Some(fault)
                    }
                };
            let about = About::Target { object: target.object.clone(), section: target.section.clone(), gateways };
            let conditions = vec![
                condition("Accepted", "accepted", refused.as_ref()),
                condition("ResolvedRefs", "all references resolved", broken.as_ref()),
            ];
            statuses.push(ObjectStatus { object: policy.id.clone(), controller: Some(CONTROLLER), about, conditions });
        }
    }
    for ((namespace, host), secured) in &hosts {
        secure(objects, &given, namespace, host, secured);
    }
    statuses
}

/// Gateways and the `controllerName`s of their classes, by host.
type Led = BTreeMap<String, BTreeSet<(ObjectId, &'static str)>>;

/// Which Gateways' routes lead to a host; `routes`: what is said of all routes.
fn led_to(objects: &Objects, routes: &[ObjectStatus]) -> Led {
    let mut led = Led::new();
    for status in routes {
        let About::Parent { parent, namespace } = &status.about else { continue };
        let accepted = status.conditions.iter().any(|condition| condition.kind == "Accepted" && condition.status);
        let Some(controller) = status.controller.filter(|_| accepted && parent.object.kind == "Gateway") else {
            continue;
        };
        let gateway = ObjectId::new(GATEWAY, namespace.as_str(), parent.object.name.as_str());
        let (place, name) = (&status.object.namespace, &status.object.name);
        let backends: Vec<&ObjectRef> = match status.object.kind {
            "HTTPRoute" => {
                let rules = objects.http_routes.get(place, name).into_iter().flat_map(|route| &route.spec.rules);
                rules.flat_map(|rule| &rule.backends).map(|backend| &backend.backend.object).collect()
            }
            _ => {
                let rules = objects.tls_routes.get(place, name).into_iter().flat_map(|route| &route.spec.rules);
                rules.flat_map(|rule| &rule.backends).map(|backend| &backend.backend.object).collect()
            }
        };
        for backend in backends {
            let place = backend.namespace.as_ref().unwrap_or(&status.object.namespace);
            let host = match backend.kind.as_str() {
                "Service" => service_host(&canonical(&backend.name), place),
                _ => canonical(&backend.name).into_owned(),
            };
            led.entry(host).or_default().insert((gateway.clone(), controller));
        }
    }
    led
}

type BackendTlsTargetKey = (String, String, SmolStr, Option<String>);

fn target_key(target: &BackendTlsTarget) -> BackendTlsTargetKey {
    let object = &target.object;
    (object.group.clone(), object.kind.clone(), object.name.clone(), target.section.clone())
}

/// The settings of a policy, which refuse where its CA is not there.
fn client_tls(policy: &Policy, references: References<'_>, findings: &mut Findings) -> (ClientTls, Option<Fault>) {
    let spec = &policy.spec;
    let names =
        if spec.subject_alt_names.is_empty() { vec![spec.hostname.clone()] } else { spec.subject_alt_names.clone() };
    let mut tls = ClientTls {
        mode: TlsMode::Simple,
        sni: Some(spec.hostname.clone()),
        subject_alt_names: names,
        ..ClientTls::default()
    };
    let Some(reference) = spec.cas.first() else { return (tls, None) };
    match authority(reference, "BackendTLSPolicy", references) {
        Ok(ca) => {
            tls.ca = Some(ca);
            (tls, None)
        }
        Err(fault) => {
            let message = format!("{}: calls to its targets are refused", fault.message);
            findings.error(&**policy, "spec.validation.caCertificateRefs[0]", message);
            tls.refused = Some(format!("{}: {}", policy.id, fault.message));
            (tls, Some(fault))
        }
    }
}

/// Hosts and port that a target means.
fn target(objects: &Objects, namespace: &str, target: &BackendTlsTarget) -> Result<(Vec<String>, Option<u16>), Fault> {
    let object = &target.object;
    let missing = |what: String| Fault::new("TargetNotFound", what);
    let (hosts, ports): (Vec<String>, Vec<(u16, Option<&str>)>) = match (object.group.as_str(), object.kind.as_str()) {
        ("", "Service") => {
            let service = objects.services.get(namespace, &object.name);
            let service = service.ok_or_else(|| missing(format!("there is no Service {namespace}/{}", object.name)))?;
            let ports = service.spec.ports.iter().map(|port| (port.port, port.name.as_deref()));
            (vec![service_host(&canonical(&object.name), namespace)], ports.collect())
        }
        ("networking.istio.io", "ServiceEntry") => {
            let entry = objects.service_entries.get(namespace, &object.name);
            let entry =
                entry.ok_or_else(|| missing(format!("there is no ServiceEntry {namespace}/{}", object.name)))?;
            let hosts = entry.spec.hosts.iter().map(|host| canonical(host).into_owned());
            (hosts.collect(), entry.spec.ports.iter().map(|port| (port.number, Some(port.name.as_str()))).collect())
        }
        (_, kind) => {
            return Err(Fault::new("Invalid", format!("kind {kind} is no target: a Service is, or a ServiceEntry")));
        }
    };
    let Some(section) = &target.section else { return Ok((hosts, None)) };
    let port = ports.iter().find(|(_, name)| *name == Some(section)).map(|(port, _)| *port);
    let port = port.ok_or_else(|| missing(format!("{} {} has no port {section}", object.kind, object.name)))?;
    Ok((hosts, Some(port)))
}

/// Lets no rule for `host` lead to plain text, and makes one for those of whom no rule speaks.
fn secure(objects: &mut Objects, given: &Objects, namespace: &str, host: &str, secured: &Secured) {
    let mut everybody = false;
    // Where only rules with a selector speak of the host, the others would go by none.
    let mut selective: BTreeMap<&str, bool> = BTreeMap::new();
    for rule in given.destination_rules.values() {
        let named = rule_host(&rule.spec.host, &rule.meta.namespace);
        if !covers(&named, host) {
            continue;
        }
        let exported = rule.spec.export_to.iter().all(|to| to == "*");
        let selects = rule.spec.workload_selector.is_some();
        everybody |= rule.meta.namespace == namespace && exported && !selects;
        *selective.entry(&rule.meta.namespace).or_insert(true) &= selects;
        // A wider rule is left to the other hosts that it names.
        let exact = named == host;
        let own = &rule.meta.name;
        let name = if exact { own.clone() } else { format_smolstr!("{own}~{host}") };
        let known = objects.destination_rules.get(&rule.meta.namespace, &name).unwrap_or(rule);
        let mut made: Object<DestinationRule> = (**known).clone();
        made.spec.host = host.into();
        made.meta.name = name;
        secured.enter(made.spec.traffic_policy.get_or_insert_default());
        for policy in made.spec.subsets.iter_mut().filter_map(|subset| subset.traffic_policy.as_mut()) {
            if policy.tls.is_some() || !policy.port_level_settings.is_empty() {
                secured.enter(policy);
            }
        }
        enter(objects, Arc::new(made));
    }
    for (place, _) in selective.iter().filter(|(place, only)| **only && **place != namespace) {
        enter(objects, secured.rule(host, place, vec![".".to_owned()]));
    }
    if !everybody {
        enter(objects, secured.rule(host, namespace, Vec::new()));
    }
}

fn enter(objects: &mut Objects, made: Arc<Object<DestinationRule>>) {
    objects.destination_rules.insert(made);
}

impl Secured {
    /// A rule of its own for clients of whom no other speaks.
    fn rule(&self, host: &str, namespace: &str, export_to: Vec<String>) -> Arc<Object<DestinationRule>> {
        let policy = &*self.policy;
        let mut spec = DestinationRule { host: host.into(), export_to, ..DestinationRule::default() };
        self.enter(spec.traffic_policy.get_or_insert_default());
        // No name that an object can bear.
        let name = format!("~{host}~backend-tls");
        let meta = ObjectMeta { name: name.into(), namespace: namespace.into(), ..policy.meta.clone() };
        let fields = [
            ("spec".to_owned(), written(policy, "spec")),
            ("spec.host".to_owned(), written(policy, "spec.targetRefs")),
            ("spec.trafficPolicy".to_owned(), written(policy, "spec.validation")),
        ];
        made(policy, meta, spec, fields)
    }

    /// TLS of an author's own stays.
    fn enter(&self, policy: &mut TrafficPolicy) {
        let bare = |tls: &Option<Box<ClientTls>>| tls.as_ref().is_none_or(|tls| tls.mode == TlsMode::Disable);
        for (port, level) in &mut policy.port_level_settings {
            if let Some(tls) = self.ports.get(port).or(self.whole.as_ref()).filter(|_| bare(&level.tls)) {
                level.tls = Some(Box::new(tls.clone()));
            }
        }
        for (port, tls) in &self.ports {
            if policy.port_level_settings.iter().all(|(other, _)| other != port) && bare(&policy.tls) {
                // A port level stands for itself: it takes what the rule says for all ports along.
                let tls = Some(Box::new(tls.clone()));
                let level = TrafficPolicy { tls, port_level_settings: Vec::new(), ..policy.clone() };
                policy.port_level_settings.push((*port, level));
            }
        }
        if let Some(tls) = self.whole.as_ref().filter(|_| bare(&policy.tls)) {
            policy.tls = Some(Box::new(tls.clone()));
        }
    }
}
