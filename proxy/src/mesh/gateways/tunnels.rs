//! Where the bytes of a server that speaks no HTTP go: the first `tcp` route that holds for it (Istio
//! `buildGatewayNetworkFiltersFromTCPRoutes`).

use std::sync::Arc;

use super::super::{
    findings::Findings,
    routing::TunnelRoute,
    virtual_services::{GatewayServer, Resolved, RouteContext, VirtualServices, common_hosts, gateways},
};
use crate::api::virtual_service::{L4Match, TcpDestination};

/// None: no VirtualService of the server's hosts has one.
pub fn tcp(
    services: &VirtualServices,
    server: &GatewayServer<'_>,
    context: &RouteContext<'_>,
    findings: &mut Findings,
) -> Option<Arc<TunnelRoute>> {
    let bound = services.bound(server.gateway, context.caller.namespace);
    let bound = bound.into_iter().map(|at| &services.all[at]);
    for service in bound.filter(|service| !common_hosts(service, server.hosts).is_empty()) {
        for (index, route) in service.object.spec.tcp.iter().enumerate() {
            let here = |wanted: &&L4Match| holds(wanted, service, server);
            let matched = route.matches.iter().enumerate().find(|(_, wanted)| here(wanted));
            if matched.is_none() && !route.matches.is_empty() {
                continue;
            }
            if let Some((at, wanted)) = matched {
                remark(service, &format!("spec.tcp[{index}].match[{at}]"), wanted, findings);
            }
            return Some(Arc::new(tunnel(service, &route.route, context)));
        }
    }
    None
}

fn holds(wanted: &L4Match, service: &Resolved, server: &GatewayServer<'_>) -> bool {
    let namespace = &service.object.meta.namespace;
    wanted.port.is_none_or(|port| port == server.port)
        && (wanted.gateways.is_empty() || gateways(&wanted.gateways, namespace).any(|name| name == server.gateway))
}

/// Matches that Istio does not look at for gateways.
fn remark(service: &Resolved, field: &str, wanted: &L4Match, findings: &mut Findings) {
    let ignored = [
        ("destinationSubnets", !wanted.destination_subnets.is_empty()),
        ("sourceLabels", !wanted.source_labels.is_empty()),
        ("sourceNamespace", wanted.source_namespace.is_some()),
    ];
    for (name, _) in ignored.iter().filter(|(_, given)| *given) {
        let message = "does not count at a gateway, as in Istio";
        findings.warn(&service.object, &format!("{field}.{name}"), message);
    }
}

fn tunnel(service: &Resolved, route: &[TcpDestination], context: &RouteContext<'_>) -> TunnelRoute {
    let destinations = route.iter().map(|to| {
        // A single destination takes all, whatever its weight.
        let weight = if route.len() == 1 { 1 } else { to.weight };
        (context.resolve(&to.destination, &service.object), weight)
    });
    TunnelRoute { source: Some(service.object.id.clone()), destinations: destinations.collect() }
}
