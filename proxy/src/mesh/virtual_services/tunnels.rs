//! `tls` and `tcp` routes: raw connections, told apart by server name and address.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    super::routing::{ClusterRef, TunnelMatch, TunnelRoute},
    Caller, Destinations, GatewayServer, Resolved, RouteContext, VirtualServices, common_hosts,
    gateway::common_names,
    gateway_name,
};
use crate::api::virtual_service::{L4Match, TcpDestination};

/// Where a gateway sends the connections of a TCP server, or what was inside its TLS: the first route for its port and
/// the Gateway, whoever calls (Istio `l4MultiMatch`).
#[must_use]
pub fn gateway_tcp(
    services: &VirtualServices,
    server: GatewayServer<'_>,
    workload: Caller<'_>,
    destinations: &dyn Destinations,
) -> Option<Arc<TunnelRoute>> {
    let context =
        RouteContext { caller: Caller { gateway: server.gateway, ..workload }, port: server.port, destinations };
    let bound = services.bound(server.gateway, workload.namespace).into_iter().map(|at| &services.all[at]);
    let mut routes = bound.filter(|service| !common_hosts(service, server.hosts).is_empty()).flat_map(|service| {
        let meant = move |rule: &L4Match| server.means(rule, &service.object.meta.namespace);
        let rules = service.object.spec.tcp.iter();
        rules.filter(move |rule| rule.matches.is_empty() || rule.matches.iter().any(meant)).map(move |r| (service, r))
    });
    routes.next().map(|(service, rule)| route(service, &rule.route, &context))
}

/// Where a gateway passes TLS on to, by server names (or patterns of them) within the server's hosts; of equal ones the
/// first counts (Istio `l4SingleMatch`).
#[must_use]
pub fn gateway_tls(
    services: &VirtualServices,
    server: GatewayServer<'_>,
    workload: Caller<'_>,
    destinations: &dyn Destinations,
) -> Vec<(String, Arc<TunnelRoute>)> {
    let context =
        RouteContext { caller: Caller { gateway: server.gateway, ..workload }, port: server.port, destinations };
    let mut tunnels = Vec::new();
    for service in services.bound(server.gateway, workload.namespace).into_iter().map(|at| &services.all[at]) {
        let namespace = &service.object.meta.namespace;
        for rule in &service.object.spec.tls {
            let meant = rule.matches.iter().filter(|given| server.means(&given.l4, namespace));
            let names: Vec<String> =
                meant.flat_map(|given| common_names(&given.sni_hosts, namespace, server.hosts)).collect();
            if !names.is_empty() {
                let route = route(service, &rule.route, &context);
                tunnels.extend(names.into_iter().map(|name| (name, route.clone())));
            }
        }
    }
    tunnels
}

impl GatewayServer<'_> {
    /// Of a match only port and Gateway count.
    fn means(&self, rule: &L4Match, namespace: &str) -> bool {
        rule.port.is_none_or(|port| port == self.port) && names(rule, self.gateway, namespace)
    }
}

/// Server names (or patterns of them) and where their connections go, in order.
pub fn tls_tunnels(service: &Resolved, context: &RouteContext<'_>) -> Vec<(String, TunnelMatch)> {
    let mut tunnels = Vec::new();
    for rule in &service.object.spec.tls {
        let mut made = None;
        for given in rule.matches.iter().filter(|given| may_match(service, context, &given.l4)) {
            let route = made.get_or_insert_with(|| route(service, &rule.route, context));
            let found = TunnelMatch { subnets: given.l4.destination_subnets.clone(), route: route.clone() };
            tunnels.extend(given.sni_hosts.iter().map(|sni| (sni.clone(), found.clone())));
        }
    }
    tunnels
}

/// Subnets and where connections to them go, in order; ends with the first for all (without subnets).
pub fn tcp_tunnels(service: &Resolved, context: &RouteContext<'_>) -> Vec<TunnelMatch> {
    let mut tunnels = Vec::new();
    for rule in &service.object.spec.tcp {
        let mut subnets: Vec<IpNet> = Vec::new();
        let mut all = rule.matches.is_empty();
        for given in rule.matches.iter().filter(|given| may_match(service, context, given)) {
            all |= given.destination_subnets.is_empty();
            subnets.extend(&given.destination_subnets);
        }
        if all {
            tunnels.push(TunnelMatch { subnets: Vec::new(), route: route(service, &rule.route, context) });
            break;
        }
        if !subnets.is_empty() {
            tunnels.push(TunnelMatch { subnets, route: route(service, &rule.route, context) });
        }
    }
    tunnels
}

/// Everything static must hold, whatever gateways it names (Istio `matchTLS`, `matchTCP`; HTTP differs).
fn may_match(service: &Resolved, context: &RouteContext<'_>, rule: &L4Match) -> bool {
    let caller = context.caller;
    rule.port.is_none_or(|port| port == context.port)
        && names(rule, caller.gateway, &service.object.meta.namespace)
        && caller.bears(&rule.source_labels)
        && caller.is_in(rule.source_namespace.as_deref())
}

fn names(rule: &L4Match, gateway: &str, namespace: &str) -> bool {
    rule.gateways.is_empty() || rule.gateways.iter().any(|name| gateway_name(name, namespace) == gateway)
}

fn route(service: &Resolved, route: &[TcpDestination], context: &RouteContext<'_>) -> Arc<TunnelRoute> {
    let object = &service.object;
    let weighted = route.iter().any(|to| to.weight > 0);
    let counts = route.iter().filter(|to| to.weight > 0 || !weighted);
    let mut destinations: Vec<(ClusterRef, u32)> = counts
        .map(|to| {
            let cluster = match &to.invalid {
                Some(why) => ClusterRef::Invalid { why: why.as_str().into() },
                None => context.resolve(&to.destination, object),
            };
            (cluster, if route.len() == 1 { 1 } else { to.weight })
        })
        .collect();
    if destinations.is_empty() {
        let why = format!("{}: the route has no destination", object.id);
        destinations.push((ClusterRef::Invalid { why: why.into() }, 1));
    }
    Arc::new(TunnelRoute { source: Some(object.id.clone()), destinations })
}
