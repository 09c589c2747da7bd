//! What a gateway pod serves on each of its listeners.

use std::sync::Arc;

use super::{
    super::{
        findings::Findings,
        listeners::{Behind, GatewayTable, Listener, ListenerId, Servers, TlsServer},
        origination::Holder,
        routing::{RouteTable, TunnelRoute},
        table::HostMap,
        virtual_services::{Caller, GatewayServer, VirtualServices, for_gateway, gateway_tcp},
    },
    AtGateway,
    placement::{Kind, Placed, Slot, slots},
    tls::{Shared, downstream, passes_through},
};
use crate::api::{
    Object, Objects,
    core::Pod,
    gateway::{Gateway, ServerProtocol},
};

/// What the listeners of one pod are made from.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub objects: &'a Objects,
    pub services: &'a VirtualServices,
    pub pod: &'a Object<Pod>,
    /// What the pod itself sees.
    pub destinations: &'a AtGateway<'a>,
    /// Its Secrets and files.
    pub holder: Holder<'a>,
}

/// The listeners of a pod that `gateways` select.
pub fn table(
    site: Site<'_>,
    gateways: &[&Arc<Object<Gateway>>],
    shared: &mut Shared,
    findings: &mut Findings,
) -> GatewayTable {
    let mut table = GatewayTable::default();
    for (id, slot) in slots(site.objects, site.pod, gateways, findings) {
        let serves = match slot.kind {
            Kind::Http => Servers::Http(site.http(&http_name(id), &slot.servers, findings)),
            Kind::Tcp => Servers::Tcp(slot.servers.first().and_then(|server| site.tunnel(server))),
            Kind::Tls => Servers::Tls(site.tls(&slot, shared, findings).into()),
        };
        table.listeners.insert(id, Arc::new(Listener { id, serves }));
    }
    table
}

/// Istio's names for route tables (`gatewayRDSRouteName`).
fn http_name(id: ListenerId) -> String {
    match id.bind {
        None => format!("http.{}", id.port),
        Some(bind) => format!("http.{}.{bind}", id.port),
    }
}

impl Site<'_> {
    fn http(self, name: &str, servers: &[Placed<'_>], findings: &mut Findings) -> Arc<RouteTable> {
        let names: Vec<String> = servers.iter().map(Placed::gateway_name).collect();
        let servers: Vec<_> = servers.iter().zip(&names).map(|(placed, name)| server(placed, name)).collect();
        let hosts = for_gateway(self.services, &servers, self.caller(), self.destinations, findings);
        Arc::new(RouteTable { name: name.to_owned(), hosts })
    }

    fn tls(self, slot: &Slot<'_>, shared: &mut Shared, findings: &mut Findings) -> HostMap<Arc<TlsServer>> {
        let mut servers = HostMap::default();
        // Where TLS is taken off at a host, no wider server passes it on.
        let (passing, ending): (Vec<_>, Vec<_>) = slot.servers.iter().partition(|placed| passes_through(placed));
        for placed in ending {
            let made = Arc::new(self.tls_server(placed, shared, findings));
            for host in &placed.hosts {
                servers.insert_new(&host.host, made.clone());
            }
        }
        for placed in passing {
            downstream(self.holder, placed, shared, findings);
            let name = server_name(placed, "tls");
            for (sni, route) in self.passed_on(placed, findings) {
                servers.insert_new(&sni, Arc::new(self.passing(placed, &name, &sni, route)));
            }
        }
        servers
    }

    /// One that takes TLS off.
    fn tls_server(self, placed: &Placed<'_>, shared: &mut Shared, findings: &mut Findings) -> TlsServer {
        let protocol = placed.server.port.protocol;
        let http = protocol == ServerProtocol::Https;
        let name = server_name(placed, if http { "https" } else { "tls" });
        TlsServer {
            source: placed.gateway.id.clone(),
            hosts: placed.hosts.iter().map(|host| host.host.clone()).collect(),
            protocol,
            tls: downstream(self.holder, placed, shared, findings),
            serves: if http {
                Behind::Http(self.http(&name, std::slice::from_ref(placed), findings))
            } else {
                Behind::Tunnel(self.tunnel(placed))
            },
            name: Arc::from(name),
        }
    }

    fn tunnel(self, placed: &Placed<'_>) -> Option<Arc<TunnelRoute>> {
        gateway_tcp(self.services, server(placed, &placed.gateway_name()), self.caller(), self.destinations)
    }

    pub fn caller(&self) -> Caller<'_> {
        // Each server names its own gateway.
        Caller { namespace: &self.pod.meta.namespace, labels: &self.pod.meta.labels, gateway: "" }
    }
}

fn server_name(placed: &Placed<'_>, protocol: &str) -> String {
    let (port, meta) = (&placed.server.port, &placed.gateway.meta);
    format!("{protocol}.{}.{}.{}.{}", port.number, port.name, meta.name, meta.namespace)
}

pub fn server<'a>(placed: &'a Placed<'_>, gateway: &'a str) -> GatewayServer<'a> {
    let https_redirect = placed.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
    GatewayServer { gateway, hosts: &placed.hosts, port: placed.server.port.number, https_redirect }
}
