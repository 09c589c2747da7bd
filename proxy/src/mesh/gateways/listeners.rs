//! What a gateway pod serves on each of its listeners.

use std::sync::Arc;

use super::{
    super::{
        findings::Findings,
        listeners::{Behind, DownstreamTls, GatewayTable, Listener, ListenerId, Servers, TlsServer},
        routing::{RouteTable, TunnelRoute},
        table::HostMap,
        virtual_services::{Caller, Destinations, GatewayServer, VirtualServices, for_gateway, gateway_tcp},
    },
    placement::{Kind, Placed, Slot, slots},
};
use crate::api::{
    Object, Objects,
    core::Pod,
    gateway::{Gateway, ServerProtocol, ServerTls, ServerTlsMode},
};

/// What the listeners of one pod are made from.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub objects: &'a Objects,
    pub services: &'a VirtualServices,
    pub pod: &'a Object<Pod>,
    /// What the pod itself sees.
    pub destinations: &'a dyn Destinations,
}

/// The listeners of a pod that `gateways` select.
pub fn table(site: Site<'_>, gateways: &[&Arc<Object<Gateway>>], findings: &mut Findings) -> GatewayTable {
    let mut table = GatewayTable::default();
    for (id, slot) in slots(site.objects, site.pod, gateways, findings) {
        let serves = match slot.kind {
            Kind::Http => Servers::Http(site.http(&http_name(id), &slot.servers, findings)),
            Kind::Tcp => Servers::Tcp(slot.servers.first().and_then(|server| site.tunnel(server))),
            Kind::Tls => Servers::Tls(site.tls(&slot, findings)),
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

    fn tls(self, slot: &Slot<'_>, findings: &mut Findings) -> HostMap<Arc<TlsServer>> {
        let mut servers = HostMap::default();
        for placed in &slot.servers {
            let made = Arc::new(self.tls_server(placed, findings));
            for host in &placed.hosts {
                servers.insert_new(&host.host, made.clone());
            }
        }
        servers
    }

    fn tls_server(self, placed: &Placed<'_>, findings: &mut Findings) -> TlsServer {
        let (port, meta) = (&placed.server.port, &placed.gateway.meta);
        let http = port.protocol == ServerProtocol::Https && !placed.server.tls.as_ref().is_some_and(passes_through);
        let protocol = if http { "https" } else { "tls" };
        let name = format!("{protocol}.{}.{}.{}.{}", port.number, port.name, meta.name, meta.namespace);
        TlsServer {
            source: placed.gateway.id.clone(),
            hosts: placed.hosts.iter().map(|host| host.host.clone()).collect(),
            protocol: port.protocol,
            tls: downstream_tls(placed, findings),
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

    fn caller(&self) -> Caller<'_> {
        // Each server names its own gateway.
        Caller { namespace: &self.pod.meta.namespace, labels: &self.pod.meta.labels, gateway: "" }
    }
}

fn server<'a>(placed: &'a Placed<'_>, gateway: &'a str) -> GatewayServer<'a> {
    let https_redirect = placed.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
    GatewayServer { gateway, hosts: &placed.hosts, port: placed.server.port.number, https_redirect }
}

/// As in protobuf, no mode is the first one.
fn mode(tls: &ServerTls) -> ServerTlsMode {
    tls.mode.unwrap_or(ServerTlsMode::Passthrough)
}

fn passes_through(tls: &ServerTls) -> bool {
    matches!(mode(tls), ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)
}

fn downstream_tls(placed: &Placed<'_>, findings: &mut Findings) -> DownstreamTls {
    let Some(tls) = &placed.server.tls else { return DownstreamTls::Refuse(Arc::from("no `tls`")) };
    let refused = match mode(tls) {
        ServerTlsMode::IstioMutual => mesh_refusal(tls),
        ServerTlsMode::Passthrough => Some(("mode", "PASSTHROUGH is not honoured yet")),
        ServerTlsMode::AutoPassthrough => Some(("mode", "AUTO_PASSTHROUGH is not honoured yet")),
        ServerTlsMode::Simple => Some(("mode", "SIMPLE is not honoured yet")),
        ServerTlsMode::Mutual => Some(("mode", "MUTUAL is not honoured yet")),
        ServerTlsMode::OptionalMutual => Some(("mode", "OPTIONAL_MUTUAL is not honoured yet")),
    };
    if let Some((field, why)) = refused {
        let field = placed.field(&format!("tls.{field}"));
        findings.error(placed.gateway, &field, format!("{why}: connections to this server are refused"));
        return DownstreamTls::Refuse(Arc::from(format!("{}: {field}: {why}", placed.gateway.id)));
    }
    let ignored = [
        ("minProtocolVersion", tls.min_version.is_some()),
        ("maxProtocolVersion", tls.max_version.is_some()),
        ("cipherSuites", !tls.cipher_suites.is_empty()),
        ("caCrl", tls.ca_crl.is_some()),
    ];
    for (name, _) in ignored.iter().filter(|(_, given)| *given) {
        let message = "with ISTIO_MUTUAL the mesh's own settings count: this field is ignored";
        findings.warn(placed.gateway, &placed.field(&format!("tls.{name}")), message);
    }
    DownstreamTls::IstioMutual
}

/// What would let in whom the author of an ISTIO_MUTUAL server keeps out, were it ignored.
fn mesh_refusal(tls: &ServerTls) -> Option<(&'static str, &'static str)> {
    let restrictions = [
        ("subjectAltNames", &tls.subject_alt_names),
        ("verifyCertificateSpki", &tls.verify_certificate_spki),
        ("verifyCertificateHash", &tls.verify_certificate_hash),
    ];
    let given = restrictions.iter().find(|(_, list)| !list.is_empty());
    given.map(|(name, _)| (*name, "is not honoured with ISTIO_MUTUAL yet"))
}
