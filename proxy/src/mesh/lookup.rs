//! What the data path asks of a table: which cluster a connection or request goes to, or why it goes nowhere.
//! The name that the client gave decides, not the address it dialled; where no service matches, a destination that a
//! TLS rule names is refused before the outbound policy is asked.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    host::authority_host,
    listeners::ListenerId,
    routing::{TunnelMatch, VirtualHost},
    server_tls::ServerTlsSettings,
    table::{
        AddressMap, Cluster, Decision, Discovery, FirstBytes, HostMap, HttpDecision, Outbound, OutboundPolicy,
        PortTable, Protocol, TlsSettings, UpstreamTls,
    },
};
use crate::api::ObjectId;

impl Outbound {
    /// What must be read of a connection to `dst` before it can be decided.
    #[must_use]
    pub fn first_bytes(&self, dst: SocketAddr) -> FirstBytes {
        let declared = match self.address(dst, |table| &table.tcp) {
            Some(cluster) => cluster.protocol == Protocol::Tcp,
            None => {
                let open = self
                    .layers(dst.port())
                    .any(|table| !table.http.is_empty() || !table.tls.is_empty() || !table.tls_addresses.is_empty());
                let routed =
                    || self.any_route(dst.port()).into_iter().flat_map(|found| found.route.destinations.iter());
                let mut routed_to = routed().filter_map(|(to, _)| to.known());
                !open
                    && self.tcp_any(dst.port()).is_some_and(|cluster| !self.may_pass_a_guard(cluster, dst.port()))
                    && !routed_to.any(|cluster| self.may_pass_a_guard(cluster, dst.port()))
            }
        };
        if declared { FirstBytes::None } else { FirstBytes::Sniff }
    }

    /// For a request with this authority (`host` or `host:port`; empty for HTTP/1.0 without Host) on a connection that
    /// arrived in plain text.
    #[must_use]
    pub fn http(&self, dst: SocketAddr, authority: &str) -> HttpDecision {
        let host = authority_host(authority);
        if let Some(found) = self.virtual_host(dst.port(), host) {
            return self.unless_guarded(found, host);
        }
        let refused = self.refused_host(host, dst.port());
        let refused = refused.or_else(|| self.refused_address(host.parse().ok()?, dst.port()));
        if let Some(refused) = refused {
            return HttpDecision::Unmatched(refused);
        }
        HttpDecision::Unmatched(match self.tcp_any(dst.port()) {
            Some(cluster) if cluster.protocol == Protocol::Tcp => {
                let refused = self.refused_raw(dst, Some(0));
                refused.unwrap_or_else(|| match self.any_route(dst.port()) {
                    Some(found) => self.unnamed_route(dst, found),
                    None => self.unnamed(dst, cluster),
                })
            }
            _ => self.unmatched_plain(dst),
        })
    }

    /// For a connection that began with a ClientHello: encrypted already, so guards do not apply.
    #[must_use]
    pub fn tls(&self, dst: SocketAddr, sni: Option<&str>) -> Decision {
        let routed = sni.and_then(|sni| best_named(self.routing(dst.port()), sni, |table| &table.tls_routes));
        if let Some(found) = routed.and_then(|routes| first_for(routes, dst.ip())) {
            return Decision::Route(found.route.clone());
        }
        let named = sni.and_then(|sni| self.named(dst.port(), sni, |table| &table.tls));
        let cluster = match named.or_else(|| self.address(dst, |table| &table.tls_addresses)) {
            Some(cluster) => cluster,
            None => match self.by_address(dst) {
                Some((_, ByAddress::Route(found))) => return Decision::Route(found.route.clone()),
                Some((_, ByAddress::Cluster(cluster))) => cluster,
                None => return self.by_policy(),
            },
        };
        // A sniffed service with a rule wants plain text encrypted; what is encrypted already is left alone.
        if cluster.protocol == Protocol::Auto && cluster.tls.encrypts() { self.by_policy() } else { tunnel(cluster) }
    }

    /// For a connection that is neither HTTP nor TLS, or that is declared TCP.
    #[must_use]
    pub fn tcp(&self, dst: SocketAddr) -> Decision {
        let found = self.by_address(dst);
        if let Some(refused) = self.refused_raw(dst, found.as_ref().map(|(length, _)| *length)) {
            return refused;
        }
        match found.map(|(_, found)| found) {
            Some(ByAddress::Route(found)) => self.unnamed_route(dst, found),
            Some(ByAddress::Cluster(cluster)) => self.unnamed(dst, cluster),
            None => self.unmatched_plain(dst),
        }
    }

    /// Refused where some route of the virtual host could send a request for `host`, which a rule guards, in plain text.
    #[must_use]
    pub fn unless_guarded(&self, found: &Arc<VirtualHost>, host: &str) -> HttpDecision {
        let mut open = found.clusters().filter(|cluster| cluster.is_open());
        match open.find_map(|cluster| self.refused_host(host, cluster.port)) {
            Some(refused) => HttpDecision::Unmatched(refused),
            None => HttpDecision::Host(found.clone()),
        }
    }

    /// The virtual host that a name falls under on a port.
    #[must_use]
    pub fn virtual_host(&self, port: u16, host: &str) -> Option<&Arc<VirtualHost>> {
        self.named(port, host, |table| &table.http)
    }

    /// The cluster of this name, e.g. `outbound|80||edition.cnn.com`.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        let beneath = || self.base.as_ref()?.clusters.get(name).filter(|_| !self.hidden.contains(name));
        self.clusters.get(name).or_else(beneath)
    }

    /// Every cluster in force, each once; this table's own first.
    pub fn all_clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let beneath = self.base.iter().flat_map(|base| base.clusters.values());
        self.clusters.values().chain(beneath.filter(|cluster| !self.replaces(&cluster.name)))
    }

    /// The cluster of this name that lies beneath is not in force here.
    fn replaces(&self, name: &str) -> bool {
        self.clusters.contains_key(name) || self.hidden.contains(name)
    }

    /// Every port that some service serves.
    #[must_use]
    pub fn all_ports(&self) -> BTreeSet<u16> {
        let beneath = self.base.iter().flat_map(|base| base.ports.keys());
        self.ports.keys().chain(beneath).copied().collect()
    }

    /// The tables of a port: this workload's own, then the shared one beneath.
    pub fn layers(&self, port: u16) -> impl Iterator<Item = &PortTable> {
        let beneath = self.base.as_ref().and_then(|base| base.ports.get(&port));
        self.ports.get(&port).into_iter().chain(beneath)
    }

    /// Those of them whose `tls` and `tcp` routes count.
    pub fn routing(&self, port: u16) -> impl Iterator<Item = &PortTable> {
        let all = self.ports.get(&port).is_some_and(|table| table.routes_are_all);
        self.layers(port).take(if all { 1 } else { 2 })
    }

    /// True where some rule wants plain text on this port encrypted, be there a service for it or not.
    #[must_use]
    pub fn wants_tls_on(&self, port: u16) -> bool {
        let layer = |table: &Outbound| {
            let encrypts =
                |services: &PortTable| services.http.values().any(|host| host.clusters().any(|c| c.tls.encrypts()));
            table.guards_port(port) || table.ports.get(&port).is_some_and(encrypts)
        };
        layer(self) || self.base.as_deref().is_some_and(layer)
    }

    /// Whom an address on a port belongs to: the longest prefix of routes and services (of equals, the route), then the
    /// route for whatever address, then the service without addresses. With the length of the prefix.
    fn by_address(&self, dst: SocketAddr) -> Option<(u8, ByAddress<'_>)> {
        let address = dst.ip().to_canonical();
        let length = |found: &TunnelMatch| {
            let held = found.subnets.iter().filter(|net| net.contains(&address));
            held.map(|net| if net.prefix_len() == net.max_prefix_len() { u8::MAX } else { net.prefix_len() }).max()
        };
        let routes = self.routing(dst.port()).flat_map(|table| &table.tcp_routes);
        let routes = routes.filter_map(|found| Some((length(found)?, found)));
        let route = routes.reduce(|first, next| if next.0 > first.0 { next } else { first });
        let served = self.layers(dst.port()).filter_map(|table| table.tcp.matches(dst.ip()).next());
        let served = served.reduce(|upper, lower| if lower.0 > upper.0 { lower } else { upper });
        match (route, served) {
            (Some((route, found)), served) if served.is_none_or(|(served, _)| served <= route) => {
                Some((route, ByAddress::Route(found)))
            }
            (_, Some((length, cluster))) => Some((length, ByAddress::Cluster(cluster))),
            _ => {
                let route = self.any_route(dst.port()).map(ByAddress::Route);
                let any = route.or_else(|| self.tcp_any(dst.port()).map(ByAddress::Cluster));
                any.map(|any| (0, any))
            }
        }
    }

    /// The TCP route for connections to whatever address.
    fn any_route(&self, port: u16) -> Option<&TunnelMatch> {
        self.routing(port).find_map(|table| table.tcp_routes.iter().find(|found| found.subnets.is_empty()))
    }

    /// A route chosen by address alone: as for [`Self::unnamed`], none of its clusters may lead past a guard.
    fn unnamed_route(&self, dst: SocketAddr, found: &TunnelMatch) -> Decision {
        let clusters = found.route.destinations.iter().filter_map(|(to, _)| to.known());
        let mut decided = clusters.map(|cluster| self.unnamed(dst, cluster));
        let refused = decided.find(|decision| matches!(decision, Decision::Refuse(_)));
        refused.unwrap_or_else(|| Decision::Route(found.route.clone()))
    }

    /// To a cluster chosen by address alone; one that leads back to the address dialled must not lead past a guard.
    fn unnamed(&self, dst: SocketAddr, cluster: &Arc<Cluster>) -> Decision {
        let leads_back = matches!(cluster.discovery, Discovery::OriginalDestination { .. });
        let past_guards = leads_back && !cluster.tls.encrypts();
        let refused = past_guards.then(|| self.refused_address(dst.ip(), dst.port())).flatten();
        refused.unwrap_or_else(|| tunnel(cluster))
    }

    /// True where plain bytes that go to the address dialled could be a request for a host that a rule guards: then even
    /// a declared TCP port is read first.
    fn may_pass_a_guard(&self, cluster: &Cluster, port: u16) -> bool {
        matches!(cluster.discovery, Discovery::OriginalDestination { .. })
            && !cluster.tls.encrypts()
            && self.guards_port(port)
    }

    fn unmatched_plain(&self, dst: SocketAddr) -> Decision {
        self.refused_address(dst.ip(), dst.port()).unwrap_or_else(|| self.by_policy())
    }

    fn by_policy(&self) -> Decision {
        match self.policy {
            OutboundPolicy::AllowAny => Decision::Passthrough,
            OutboundPolicy::RegistryOnly => Decision::Block,
        }
    }

    /// The service that takes raw connections which nobody else takes.
    pub fn tcp_any(&self, port: u16) -> Option<&Arc<Cluster>> {
        // That of a layer may be there only to hide the one beneath, which another rule encrypts.
        let first = self.layers(port).find_map(|table| table.tcp_any.as_ref());
        first.filter(|cluster| cluster.protocol == Protocol::Tcp || cluster.tls.encrypts())
    }

    /// The most specific match of both layers; of equals, the upper one's.
    fn named<'s, T>(&'s self, port: u16, name: &str, map: impl Fn(&PortTable) -> &HostMap<T>) -> Option<&'s T> {
        best_named(self.layers(port), name, map)
    }

    fn address<T>(&self, dst: SocketAddr, map: impl Fn(&PortTable) -> &AddressMap<T>) -> Option<&T> {
        let found = self.layers(dst.port()).filter_map(|table| map(table).matches(dst.ip()).next());
        found.reduce(|upper, lower| if lower.0 > upper.0 { lower } else { upper }).map(|(_, value)| value)
    }
}

/// The most specific match of both layers; of equals, the upper one's.
fn best_named<'s, T: 's>(
    layers: impl Iterator<Item = &'s PortTable>,
    name: &str,
    map: impl Fn(&PortTable) -> &HostMap<T>,
) -> Option<&'s T> {
    let found = layers.filter_map(|table| map(table).matches(name).next());
    found.reduce(|upper, lower| if lower.0 > upper.0 { lower } else { upper }).map(|(_, value)| value)
}

/// Who takes a connection that bears no name.
enum ByAddress<'a> {
    Route(&'a TunnelMatch),
    Cluster(&'a Arc<Cluster>),
}

fn tunnel(cluster: &Arc<Cluster>) -> Decision {
    Decision::Cluster(cluster.clone())
}

/// The first route whose subnets hold the address dialled.
fn first_for(routes: &[TunnelMatch], address: IpAddr) -> Option<&TunnelMatch> {
    let address = address.to_canonical();
    routes.iter().find(|route| route.subnets.is_empty() || route.subnets.iter().any(|net| net.contains(&address)))
}

impl Cluster {
    /// It takes requests in plain text for hosts that a rule may speak of without speaking of this service: a wildcard
    /// service does for one of its hosts, a ServiceEntry for `web` for `web` (which in a rule means a Service).
    #[must_use]
    pub fn is_open(&self) -> bool {
        (self.host.starts_with('*') || !self.host.contains('.')) && !self.tls.encrypts()
    }
}

impl super::table::Workload {
    /// The cluster of this name, of what the pod calls or of what comes to it.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.outbound.cluster(name).or_else(|| self.inbound.as_ref()?.cluster(name))
    }

    /// For a request with this authority to a listener of the gateway that this pod is; `server` names the TLS server that
    /// took the connection.
    #[must_use]
    pub fn at_gateway(&self, listener: ListenerId, server: Option<&str>, authority: &str) -> HttpDecision {
        match self.gateway.as_ref().map(|gateway| gateway.http(listener, server, authority)) {
            Some(HttpDecision::Host(found)) => self.outbound.unless_guarded(&found, authority_host(authority)),
            // A listener that a reload has removed has no host.
            found => found.unwrap_or(HttpDecision::NotFound),
        }
    }

    /// The servers of this pod that take TLS off, each with the Gateway or Sidecar that declares it.
    pub fn tls_servers(&self) -> impl Iterator<Item = (&ObjectId, &Arc<ServerTlsSettings>)> {
        let listeners = self.gateway.iter().flat_map(|gateway| gateway.tls_servers());
        let ports = self.inbound.iter().flat_map(|inbound| inbound.ports.values());
        listeners.chain(ports.filter_map(|port| Some((port.ingress.as_ref()?, port.tls.as_ref()?.settings()?))))
    }
}

impl UpstreamTls {
    /// A rule wants this traffic encrypted, be it honoured or refused. Auto mTLS is nobody's rule.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        match self {
            Self::Plain => false,
            Self::Mesh(mesh) => mesh.required,
            Self::Originate(_) | Self::Refuse(_) => true,
        }
    }
}

/// A shared table, and the names that every table above it replaces; None where a workload uses it as it is.
type Shared<'a> = (&'a Outbound, Option<HashSet<&'a str>>);

impl super::Mesh {
    /// Every cluster that some workload uses, each once however many do.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        // What every table above a shared one replaces is in nobody's use: its files may not even exist.
        let mut replaced: HashMap<*const Outbound, Shared<'_>> = HashMap::new();
        for workload in self.workloads.values() {
            let table = &workload.outbound;
            match &table.base {
                None => drop(replaced.insert(Arc::as_ptr(table), (table, None))),
                Some(base) => {
                    let own =
                        || table.clusters.keys().map(|name| &**name).chain(table.hidden.iter().map(String::as_str));
                    let known = replaced.entry(Arc::as_ptr(base)).or_insert_with(|| (base, Some(own().collect())));
                    if let Some(names) = &mut known.1 {
                        names.retain(|name| table.replaces(name));
                    }
                }
            }
        }
        let shared = replaced.into_values().flat_map(|(table, names)| {
            let used = move |name: &str| names.as_ref().is_none_or(|names| !names.contains(name));
            table.clusters.iter().filter(move |(name, _)| used(name)).map(|(_, cluster)| cluster)
        });
        let layers = self.workloads.values().map(|workload| &workload.outbound).filter(|table| table.base.is_some());
        let mut seen = HashSet::new();
        let all = layers.flat_map(|table| table.clusters.values()).chain(shared);
        all.filter(move |cluster| seen.insert(Arc::as_ptr(cluster)))
    }

    /// The clusters that gateways' routes lead to and that originate TLS with settings which `usable` approves of, or
    /// refuse because they cannot.
    pub fn gateways_originate<'m>(
        &'m self,
        usable: impl Fn(&TlsSettings) -> bool + 'm,
    ) -> impl Iterator<Item = &'m Arc<Cluster>> + 'm {
        let gateways = self.workloads.values().filter_map(|workload| workload.gateway.as_ref());
        gateways.flat_map(|gateway| gateway.clusters()).filter(move |cluster| match &cluster.tls {
            UpstreamTls::Originate(settings) => usable(settings),
            UpstreamTls::Refuse(_) => true,
            UpstreamTls::Plain | UpstreamTls::Mesh(_) => false,
        })
    }

    /// Every setting that TLS of clients is taken off with, each once.
    #[must_use]
    pub fn server_tls_settings(&self) -> Vec<Arc<ServerTlsSettings>> {
        let mut seen = HashSet::new();
        let all = self.workloads.values().flat_map(|workload| workload.tls_servers());
        all.map(|(_, settings)| settings).filter(|settings| seen.insert((*settings).clone())).cloned().collect()
    }

    /// Every TLS setting in use, one for each context that [`crate::tls`] builds.
    #[must_use]
    pub fn tls_settings(&self) -> &[Arc<TlsSettings>] {
        self.tls.get_or_init(|| self.find_tls_settings())
    }

    fn find_tls_settings(&self) -> Vec<Arc<TlsSettings>> {
        // Most clusters share what they have: looked at once, not compared each.
        let (mut met, mut seen) = (HashSet::new(), HashSet::new());
        let settings = self.clusters().filter_map(|cluster| match &cluster.tls {
            UpstreamTls::Originate(settings) => Some(settings.clone()),
            UpstreamTls::Plain | UpstreamTls::Mesh(_) | UpstreamTls::Refuse(_) => None,
        });
        settings
            .filter(|settings| met.insert(Arc::as_ptr(&settings.context)) && seen.insert(settings.context.clone()))
            .collect()
    }
}
