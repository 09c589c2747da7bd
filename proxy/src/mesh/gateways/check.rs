//! VirtualServices that speak of Gateways in vain.

use super::super::{
    findings::Findings,
    virtual_services::{MESH, Resolved, ServerHost, VirtualServices, common_hosts, gateway_name},
};
use crate::api::{Objects, virtual_service::L4Match};

pub fn check(objects: &Objects, services: &VirtualServices, findings: &mut Findings) {
    // What is made from the Gateway API has conditions that say it.
    for service in services.all.iter().filter(|service| !service.object.spec.gateway_api) {
        let spec = &service.object.spec;
        for (index, written) in spec.gateways.iter().enumerate() {
            if let Some((severe, why)) = in_vain(objects, service, written) {
                let field = format!("spec.gateways[{index}]");
                if severe {
                    findings.error(&service.object, &field, why);
                } else {
                    findings.warn(&service.object, &field, why);
                }
            }
        }
        let http = spec.http.iter().enumerate().flat_map(|(rule, route)| {
            let matches = route.matches.iter().enumerate();
            matches.map(move |(at, given)| (format!("spec.http[{rule}].match[{at}]"), &given.gateways))
        });
        let tcp = spec.tcp.iter().enumerate().flat_map(|(rule, route)| {
            let matches = route.matches.iter().enumerate();
            matches.map(move |(at, given)| (format!("spec.tcp[{rule}].match[{at}]"), given))
        });
        let tls = spec.tls.iter().enumerate().flat_map(|(rule, route)| {
            let matches = route.matches.iter().enumerate();
            matches.map(move |(at, given)| (format!("spec.tls[{rule}].match[{at}]"), &given.l4))
        });
        let l4 = tls.chain(tcp);
        let l4_gateways = l4.clone().map(|(field, given)| (field, &given.gateways));
        for (field, gateways) in http.chain(l4_gateways) {
            for (at, written) in gateways.iter().enumerate() {
                if !bound(service, written) {
                    let message =
                        format!("{written} is not among the gateways of the VirtualService: this matches nothing");
                    findings.warn(&service.object, &format!("{field}.gateways[{at}]"), message);
                }
            }
        }
        let at_gateways_only = !spec.gateways.is_empty() && !bound(service, MESH);
        for (field, given) in l4.filter(|_| at_gateways_only) {
            for name in ignored_at_gateways(given) {
                findings.warn(&service.object, &format!("{field}.{name}"), "does not count at a gateway, as in Istio");
            }
        }
    }
}

/// An error, or a warning, with the reason.
fn in_vain(objects: &Objects, service: &Resolved, written: &str) -> Option<(bool, String)> {
    let name = gateway_name(written, &service.object.meta.namespace);
    if name == MESH {
        return None;
    }
    let key = name.split_once('/');
    let Some(gateway) = key.and_then(|(namespace, name)| objects.gateways.get(namespace, name)) else {
        let written = objects.gateways.values().filter(|other| other.spec.pods_of.is_none());
        let elsewhere = key.and_then(|(_, name)| written.into_iter().find(|other| *name == other.meta.name));
        let hint = elsewhere.map_or_else(String::new, |other| {
            let (namespace, name) = (&other.meta.namespace, &other.meta.name);
            format!("; one of that name is in {namespace}: write {namespace}/{name}")
        });
        return Some((true, format!("there is no Gateway {name}: nothing comes to these routes through it{hint}")));
    };
    let hosts = |host: &String| ServerHost::parse(host, &gateway.meta.namespace);
    let all: Vec<_> = gateway.spec.servers.iter().flat_map(|server| &server.hosts).map(hosts).collect();
    common_hosts(service, &all)
        .is_empty()
        .then(|| (false, format!("no server of {} lets in any of these hosts from this namespace", gateway.id)))
}

fn bound(service: &Resolved, written: &str) -> bool {
    let (namespace, own) = (&service.object.meta.namespace, &service.object.spec.gateways);
    let name = gateway_name(written, namespace);
    if own.is_empty() { name == MESH } else { own.iter().any(|own| gateway_name(own, namespace) == name) }
}

fn ignored_at_gateways(given: &L4Match) -> impl Iterator<Item = &'static str> {
    let fields = [
        ("destinationSubnets", !given.destination_subnets.is_empty()),
        ("sourceLabels", !given.source_labels.is_empty()),
        ("sourceNamespace", given.source_namespace.is_some()),
    ];
    fields.into_iter().filter(|(_, given)| *given).map(|(name, _)| name)
}
