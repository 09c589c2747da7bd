//! What the servers of a Gateway route, out of the VirtualServices that are bound to it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    super::{
        findings::Findings,
        host::{canonical, covers},
        routing::{Route, VirtualHost},
        table::HostMap,
    },
    Caller, Destinations, Resolved, RouteContext, VirtualServices,
    guards::guard,
    http_routes,
};

/// One server whose routes go into a table.
#[derive(Clone, Copy, Debug)]
pub struct GatewayServer<'a> {
    /// `namespace/name` of the Gateway.
    pub gateway: &'a str,
    pub hosts: &'a [ServerHost],
    /// `port.number`
    pub port: u16,
    /// `tls.httpsRedirect`
    pub https_redirect: bool,
}

/// `hosts[]` of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerHost {
    /// Only VirtualServices of this namespace; None: of any.
    pub namespace: Option<String>,
    /// As tables keep names; may be a wildcard.
    pub host: String,
}

impl ServerHost {
    /// `host`, `namespace/host`, `*/host`, or `./host` for the namespace of the Gateway.
    pub fn parse(written: &str, gateway_namespace: &str) -> Self {
        let (namespace, host) = match written.split_once('/') {
            Some(("*", host)) => (None, host),
            Some((".", host)) => (Some(gateway_namespace.to_owned()), host),
            Some((namespace, host)) => (Some(namespace.to_owned()), host),
            None => (None, written),
        };
        Self { namespace, host: canonical(host).into_owned() }
    }
}

/// The virtual hosts of a route table that `servers` share: of each host of a VirtualService and each of a server that
/// have something in common, the narrower one. VirtualServices for one host concatenate, what takes every request last.
/// With `httpsRedirect`, hosts without routes are there too.
pub fn for_gateway(
    services: &VirtualServices,
    servers: &[GatewayServer<'_>],
    workload: Caller<'_>,
    destinations: &dyn Destinations,
    findings: &mut Findings,
) -> HostMap<Arc<VirtualHost>> {
    let mut hosts: BTreeMap<String, VirtualHost> = BTreeMap::new();
    let mut known = HashSet::new();
    for server in servers {
        let caller = Caller { gateway: server.gateway, ..workload };
        let context = RouteContext { caller, port: server.port, destinations };
        let redirecting = server.hosts.iter().filter(|_| server.https_redirect);
        for host in redirecting {
            named(&mut hosts, &host.host, server.port).require_tls = true;
        }
        for at in services.bound(server.gateway, workload.namespace) {
            let service = &services.all[at];
            let common = common_hosts(service, server.hosts);
            if common.is_empty() {
                continue;
            }
            let mut routes = http_routes(service, &context, findings);
            for route in &mut routes {
                guard(route, destinations);
            }
            if routes.is_empty() {
                continue;
            }
            for host in common {
                let made = named(&mut hosts, &host, server.port);
                made.require_tls |= server.https_redirect;
                // Two servers of one Gateway may both let this one in.
                if known.insert((host, at, server.gateway)) {
                    made.routes.extend(routes.iter().cloned());
                }
            }
        }
    }
    let mut map = HostMap::default();
    for (name, mut host) in hosts {
        catch_alls_last(&mut host.routes);
        map.insert(&name, Arc::new(host));
    }
    map
}

fn named<'a>(hosts: &'a mut BTreeMap<String, VirtualHost>, host: &str, port: u16) -> &'a mut VirtualHost {
    hosts.entry(host.to_owned()).or_insert_with(|| VirtualHost {
        name: format!("{host}:{port}"),
        routes: Vec::new().into(),
        require_tls: false,
    })
}

/// Hosts that the VirtualService and the server have in common, each once.
pub fn common_hosts(service: &Resolved, server: &[ServerHost]) -> Vec<String> {
    common_names(&service.hosts, &service.object.meta.namespace, server)
}

/// The same for any names that an object of `namespace` speaks of.
pub fn common_names(names: &[String], namespace: &str, server: &[ServerHost]) -> Vec<String> {
    let mut common: Vec<String> = Vec::new();
    for own in names {
        for other in server {
            let seen = other.namespace.as_ref().is_none_or(|only| only == namespace);
            let narrower = match (seen, covers(&other.host, own), covers(own, &other.host)) {
                (true, true, _) => own,
                (true, _, true) => &other.host,
                _ => continue,
            };
            if !common.contains(narrower) {
                common.push(narrower.clone());
            }
        }
    }
    common
}

/// Istio `SortVHostRoutes`.
pub fn catch_alls_last(routes: &mut [Arc<Route>]) {
    routes.sort_by_key(|route| route.matches.takes_all());
}
