//! What gateway pods serve: listeners by address and port, TLS servers by server name, route tables.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
};

use serde::Serialize;

use super::{
    authorization::Policies,
    host::authority_host,
    routing::{RouteTable, TunnelRoute},
    server_tls::ServerTlsSettings,
    table::{Cluster, Decision, HostMap, HttpDecision},
};
use crate::api::{ObjectId, gateway::ServerProtocol};

/// The listeners of one gateway pod.
#[derive(Debug, Default, Serialize)]
pub struct GatewayTable {
    #[serde(serialize_with = "as_list")]
    pub listeners: BTreeMap<ListenerId, Arc<Listener>>,
    pub policies: Arc<Policies>,
}

/// Where a listener is bound inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ListenerId {
    /// None: every address.
    pub bind: Option<IpAddr>,
    pub port: u16,
}

#[derive(Debug, Serialize)]
pub struct Listener {
    pub id: ListenerId,
    pub serves: Servers,
}

/// What is served in plain text, or behind TLS by SNI. Never both on one address.
#[derive(Debug, Serialize)]
pub enum Servers {
    /// Plain HTTP: `http.8080`.
    Http(Arc<RouteTable>),
    /// Plain TCP. None: no route, the connection is reset (`NR`).
    Tcp(Option<Arc<TunnelRoute>>),
    /// A server name that matches none gets no handshake: `NR filter_chain_not_found`.
    Tls(TlsServers),
}

/// The TLS servers of one listener, by the server names that lead to them.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct TlsServers {
    by_host: HostMap<Arc<TlsServer>>,
    /// By [`TlsServer::name`]: each request on a connection asks for the one that took it, of which there may be thousands.
    #[serde(skip)]
    by_name: HashMap<Arc<str>, Arc<TlsServer>>,
}

impl From<HostMap<Arc<TlsServer>>> for TlsServers {
    fn from(by_host: HostMap<Arc<TlsServer>>) -> Self {
        let by_name = by_host.values().map(|server| (server.name.clone(), server.clone())).collect();
        Self { by_host, by_name }
    }
}

impl Deref for TlsServers {
    type Target = HostMap<Arc<TlsServer>>;

    fn deref(&self) -> &Self::Target {
        &self.by_host
    }
}

/// One `servers` entry with TLS.
#[derive(Debug, Serialize)]
pub struct TlsServer {
    /// Unique within the listener, and the same over reloads.
    pub name: Arc<str>,
    /// The Gateway.
    pub source: ObjectId,
    pub hosts: Vec<String>,
    pub protocol: ServerProtocol,
    pub tls: DownstreamTls,
    pub serves: Behind,
}

/// What is done with the bytes, once TLS is taken off or passed through.
#[derive(Debug, Serialize)]
pub enum Behind {
    Http(Arc<RouteTable>),
    /// None: no route matches: the connection is reset (`NR`).
    Tunnel(Option<Arc<TunnelRoute>>),
}

/// What a server does about TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum DownstreamTls {
    /// SIMPLE, MUTUAL, OPTIONAL_MUTUAL.
    Terminate(Arc<ServerTlsSettings>),
    /// PASSTHROUGH, AUTO_PASSTHROUGH: the bytes go on as they are, by their server name.
    Passthrough,
    /// Mesh mTLS with the pod's own SPIFFE certificate; the client must show one of the mesh.
    IstioMutual,
    /// Cannot be honoured, for a reason: no handshake.
    Refuse(Arc<str>),
}

impl DownstreamTls {
    /// What TLS is taken off with, where it is, and not with the mesh's own certificate.
    #[must_use]
    pub fn settings(&self) -> Option<&Arc<ServerTlsSettings>> {
        match self {
            Self::Terminate(settings) => Some(settings),
            Self::Passthrough | Self::IstioMutual | Self::Refuse(_) => None,
        }
    }
}

impl TlsServer {
    /// What a client had to prove at this server, as it was when it let the client in, is what it would have to prove at
    /// `now`.
    #[must_use]
    pub fn asks_the_same(&self, now: &Self) -> bool {
        match (&self.tls, &now.tls) {
            (DownstreamTls::Terminate(then), DownstreamTls::Terminate(now)) => then.clients == now.clients,
            (then, now) => std::mem::discriminant(then) == std::mem::discriminant(now),
        }
    }
}

impl GatewayTable {
    /// What the routes say; [`super::Workload::at_gateway`] also asks the rules that guard hosts.
    #[must_use]
    pub fn http(&self, id: ListenerId, server: Option<&str>, authority: &str) -> HttpDecision {
        // A connection that was let in before a reload is not let on where a new one is refused.
        if let Some(DownstreamTls::Refuse(reason)) = self.server(id, server).map(|server| &server.tls) {
            return HttpDecision::Unmatched(Decision::Refuse(reason.clone()));
        }
        let found = self.routes(id, server).and_then(|table| table.hosts.get(authority_host(authority)));
        found.map_or(HttpDecision::NotFound, |host| HttpDecision::Host(host.clone()))
    }

    /// The servers that take TLS off, each with the Gateway that it is of.
    pub fn tls_servers(&self) -> impl Iterator<Item = (&ObjectId, &Arc<ServerTlsSettings>)> {
        let servers = self.listeners.values().filter_map(|listener| match &listener.serves {
            Servers::Tls(servers) => Some(servers.values()),
            Servers::Http(_) | Servers::Tcp(_) => None,
        });
        servers.flatten().filter_map(|server| Some((&server.source, server.tls.settings()?)))
    }

    /// Every cluster that some route leads to.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let listeners = self.listeners.values();
        listeners.flat_map(|listener| {
            let (tables, tunnels): (Vec<_>, Vec<_>) = match &listener.serves {
                Servers::Http(table) => (vec![table], Vec::new()),
                Servers::Tcp(route) => (Vec::new(), route.iter().collect()),
                Servers::Tls(servers) => {
                    let tables = servers.values().filter_map(|server| match &server.serves {
                        Behind::Http(table) => Some(table),
                        Behind::Tunnel(_) => None,
                    });
                    let tunnels = servers.values().filter_map(|server| match &server.serves {
                        Behind::Tunnel(route) => route.as_ref(),
                        Behind::Http(_) => None,
                    });
                    (tables.collect(), tunnels.collect())
                }
            };
            let tunnels = tunnels.into_iter().flat_map(|route| route.destinations.iter());
            let raw = tunnels.filter_map(|(to, _)| to.known());
            tables.into_iter().flat_map(|table| table.hosts.values()).flat_map(|host| host.clusters()).chain(raw)
        })
    }

    /// Those of them that no table of outbound connections has: what AUTO_PASSTHROUGH leads to.
    pub fn by_mesh_name(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters().filter(|cluster| cluster.name.starts_with("outbound_."))
    }

    /// The route table of a listener, or of one of its TLS servers.
    #[must_use]
    pub fn routes(&self, id: ListenerId, server: Option<&str>) -> Option<&Arc<RouteTable>> {
        match (&self.listeners.get(&id)?.serves, server) {
            (Servers::Http(table), None) => Some(table),
            _ => match &self.server(id, server)?.serves {
                Behind::Http(table) => Some(table),
                Behind::Tunnel(_) => None,
            },
        }
    }

    /// The TLS server that a client is led to which names this one, in its hello or in a request.
    #[must_use]
    pub fn named(&self, id: ListenerId, host: &str) -> Option<&Arc<TlsServer>> {
        match &self.listeners.get(&id)?.serves {
            Servers::Tls(servers) => servers.get(host),
            Servers::Http(_) | Servers::Tcp(_) => None,
        }
    }

    /// The TLS server of this name.
    #[must_use]
    pub fn server(&self, id: ListenerId, name: Option<&str>) -> Option<&Arc<TlsServer>> {
        match (&self.listeners.get(&id)?.serves, name) {
            (Servers::Tls(servers), Some(name)) => servers.by_name.get(name),
            _ => None,
        }
    }
}

fn as_list<S: serde::Serializer>(
    listeners: &BTreeMap<ListenerId, Arc<Listener>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(listeners.values())
}
