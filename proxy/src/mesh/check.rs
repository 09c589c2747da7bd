//! Findings that need all objects but no workload: what `egret check` says of rules that nobody uses yet.

mod mtls;

use std::collections::{BTreeMap, HashMap, HashSet};

use smol_str::SmolStr;

pub use mtls::conflicts;

use super::{
    findings::Findings,
    gateway_api::GATEWAY_NAME,
    host::covers,
    names::{rule_host, selects, words},
    registry::Registry,
    rules::{Rules, every_tls},
    table::Protocol,
    virtual_services::VirtualServices,
};
use crate::api::{Objects, istio::TlsMode};

pub fn check(registry: &Registry, rules: &Rules, services: &VirtualServices, findings: &mut Findings) {
    let routed = routed(services);
    let used = used(registry, rules, &routed, findings);
    let hosts: HashSet<&str> = routed.iter().map(|(host, _)| host.as_str()).collect();
    for (rule, used) in rules.all.iter().zip(used) {
        let object = &rule.object;
        let every = every_tls(&object.spec);
        if !used {
            let tls = every.iter().any(|(_, tls)| tls.encrypts());
            let host = &rule.host;
            let unknown =
                format!("no ServiceEntry or Service for {host} is visible from namespace {}", object.meta.namespace);
            match (tls, host.starts_with('*')) {
                (true, false) => findings.error(
                    object,
                    "spec.host",
                    format!("{unknown}: nothing can be encrypted as the rule asks, so plain text to it is refused"),
                ),
                (true, true) => {
                    findings.warn(object, "spec.host", format!("{unknown}: plain text to such hosts is refused"))
                }
                (false, _) => findings.warn(object, "spec.host", format!("{unknown}: the rule does nothing")),
            }
        }
        for (field, tls) in every {
            if tls.mode == TlsMode::IstioMutual && tls.insecure_skip_verify {
                let message = "ISTIO_MUTUAL always checks who answers: this is ignored";
                findings.warn(object, &format!("{field}.insecureSkipVerify"), message);
            }
            let credential = tls.credential_name.as_ref().is_some_and(|name| !name.is_empty());
            if credential && tls.originates() {
                let field = format!("{field}.credentialName");
                // At a gateway, where routes lead to the host, Istio honours it as it is.
                let at_gateway = match rule.host.contains('*') {
                    true => hosts.iter().any(|host| covers(&rule.host, host)),
                    false => hosts.contains(rule.host.as_str()),
                };
                if object.spec.workload_selector.is_none() && !at_gateway {
                    let message = "without workloadSelector Istio ignores this rule at sidecars and sends plain text; egret honours it";
                    findings.warn(object, &field, message);
                }
                let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates];
                if files.iter().any(|file| file.as_ref().is_some_and(|path| !path.is_empty())) {
                    findings.warn(object, &field, "certificate files beside credentialName are ignored");
                }
            }
            if tls.mode == TlsMode::Simple && tls.client_certificate.is_some() {
                let message = "mode SIMPLE presents no client certificate: use MUTUAL";
                findings.warn(object, &format!("{field}.clientCertificate"), message);
            }
        }
    }
}

type Labels = BTreeMap<String, String>;

/// Services of a namespace with pods, none of which is theirs.
pub fn selectors(objects: &Objects, findings: &mut Findings) {
    // A Gateway's own service has the Gateway's conditions, which tell it.
    let selecting = |labels: &Labels| !labels.is_empty() && !labels.contains_key(GATEWAY_NAME);
    // By label: thousands of services would else look through thousands of pods each.
    let mut namespaces: HashSet<&str> = HashSet::new();
    let mut bearing: HashMap<(&str, &str, &str), Vec<&Labels>> = HashMap::new();
    for meta in objects.pods.values().map(|pod| &pod.meta) {
        namespaces.insert(&meta.namespace);
        for (key, value) in &meta.labels {
            bearing.entry((&meta.namespace, key, value)).or_default().push(&meta.labels);
        }
    }
    for service in objects.services.values().filter(|service| selecting(&service.spec.selector)) {
        let namespace = &service.meta.namespace;
        let selector = &service.spec.selector;
        let pods = selector.iter().map(|(key, value)| bearing.get(&(namespace.as_str(), key.as_str(), value.as_str())));
        let mut rarest = pods.min_by_key(|pods| pods.map_or(0, Vec::len)).flatten().into_iter().flatten();
        // Where no pod is told of at all, they are told of elsewhere.
        if namespaces.contains(namespace.as_str()) && !rarest.any(|labels| selects(selector, labels)) {
            let labels = words(&service.spec.selector);
            let message = format!("no pod of namespace {namespace} bears {labels}: requests get 503 (UH)");
            findings.warn(service, "spec.selector", message);
        }
    }
}

/// Hosts and ports that HTTP routes lead to.
fn routed(services: &VirtualServices) -> HashSet<(SmolStr, u16)> {
    let rules = services.all.iter().flat_map(|service| &service.http);
    let ports = rules.flat_map(|rule| {
        let namespace = &rule.object.meta.namespace;
        let destinations = rule.rule().route.iter().map(|to| &to.destination);
        destinations.filter_map(|to| Some((rule_host(&to.host, namespace).into(), to.port?))).collect::<Vec<_>>()
    });
    ports.collect()
}

/// Which rules match some service, telling on the way where TLS would be wrapped in TLS.
fn used(registry: &Registry, rules: &Rules, routed: &HashSet<(SmolStr, u16)>, findings: &mut Findings) -> Vec<bool> {
    let mut used = vec![false; rules.all.len()];
    for entry in &registry.entries {
        for index in rules.naming(&entry.host, |namespace| entry.body.visibility.holds(namespace)) {
            used[index] = true;
            let object = &rules.all[index].object;
            let wrapped =
                entry.body.ports.iter().filter(|port| matches!(port.protocol, Protocol::Https | Protocol::Tls));
            // Where HTTP is routed to the port, as egress gateways do, the rule's TLS is the only one.
            for port in wrapped.filter(|port| !routed.contains(&(entry.host.clone(), port.number))) {
                let Some(merged) = rules.merge(&[index], &mut Findings::default()) else { continue };
                let policy = merged.policy(port.number, None);
                // Mesh mTLS goes round whatever the application speaks.
                if let Some(tls) = policy.tls.filter(|tls| tls.settings.originates()) {
                    let message = format!(
                        "port {} of {} is TLS already: the application's own TLS will be wrapped in a second one",
                        port.number, entry.object
                    );
                    findings.warn(object, &tls.field, message);
                }
            }
        }
    }
    used
}
