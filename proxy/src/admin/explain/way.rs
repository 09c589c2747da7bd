//! The way itself: from the pod's socket to a cluster, and on through the gateways that the cluster leads to.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::{
    Steps,
    policies::Hop,
    receiver,
    target::{Kind, Target},
    tls::{protection, terminated, verdict},
};
use crate::{
    admin::{AdminState, tables},
    engine::Snapshot,
    limits::EXPLAINED_HOPS,
    mesh::{
        Behind, Cluster, Decision, Discovery, DownstreamTls, FirstBytes, HttpDecision, Listener, Outbound, Servers,
        UpstreamTls, Workload,
    },
};

pub struct Way<'a> {
    pub state: &'a dyn AdminState,
    pub snapshot: &'a Snapshot,
    /// What is asked for: as the client sends it, then as it is once TLS is taken off.
    pub target: Target,
    /// The client's TLS was taken off at a gateway.
    pub taken_off: bool,
    pub steps: Steps,
}

/// Where a hop leads: a cluster that it is sent to, or the end of the way.
pub(super) enum Turn {
    To(Arc<Cluster>),
    /// To the address dialled.
    Passed,
    End(String),
}

impl<'a> Way<'a> {
    /// To the end; answers with one sentence that sums it up.
    pub async fn walk(&mut self, workload: &'a Workload) -> String {
        let (mut at, mut dialled) = (workload, None);
        let (mut hop, mut turn) = match self.listener(workload) {
            Some(listener) => {
                self.steps.add("comes to", format!("pod {}", workload.id), "the gateway listens on this port");
                let hop = Hop::gateway(self.state, workload, &listener, None);
                (hop, self.arrive(workload, &listener, None))
            }
            None => {
                let address = self.dialled(workload).await;
                if address.ip().is_loopback() {
                    return "Not captured: loopback traffic never leaves the pod.".to_owned();
                }
                dialled = Some(address);
                (Hop::out(self.state, workload, address), self.leave(&workload.outbound, address))
            }
        };
        for _ in 0..EXPLAINED_HOPS {
            // What is inside TLS is known once the gateway has taken it off.
            if let Some(verdict) = hop.forbidden(self.snapshot, &self.target, None, &mut self.steps) {
                return verdict;
            }
            let cluster = match turn {
                Turn::End(verdict) => return verdict,
                Turn::Passed => {
                    let called =
                        receiver::Called { target: &self.target, tls: &UpstreamTls::Plain, addresses: &[], dialled };
                    let refused = called.receive(self.state, self.snapshot, &mut self.steps);
                    return refused.unwrap_or_else(|| "Passed on to the address dialled, as it is.".to_owned());
                }
                Turn::To(cluster) => cluster,
            };
            self.cluster(&cluster);
            if let Some(verdict) = hop.forbidden(self.snapshot, &self.target, Some(&cluster), &mut self.steps) {
                return verdict;
            }
            let protection = match protection(self.snapshot, at, &self.target, &cluster, &mut self.steps) {
                Ok(protection) => protection,
                Err(reason) => {
                    let reason = reason.trim_end_matches('.');
                    return format!("Refused: {reason}. Plain text is never sent instead.");
                }
            };
            let Some(addresses) = self.endpoints(at, &cluster).await else {
                return "Fails with 503 (no healthy upstream, UH): the service has no address now.".to_owned();
            };
            let called = receiver::Called { target: &self.target, tls: &cluster.tls, addresses: &addresses, dialled };
            if let Some(verdict) = called.receive(self.state, self.snapshot, &mut self.steps) {
                return verdict;
            }
            let Some((gateway, listener)) = self.gateway(&addresses) else {
                return verdict(&self.target, &cluster, &protection);
            };
            let id = gateway.id.to_string();
            self.steps.add("hop", format!("pod {id}"), "a gateway of this node; from here on it decides");
            hop = Hop::gateway(self.state, gateway, &listener, Some((&hop, &cluster)));
            turn = self.arrive(gateway, &listener, Some(&cluster));
            at = gateway;
        }
        "Followed no further: the way leads through too many gateways; do they send it round in a circle?".to_owned()
    }

    /// The address that the application would dial.
    async fn dialled(&mut self, workload: &Workload) -> SocketAddr {
        let target = self.target.clone();
        if let Ok(address) = target.host.parse() {
            let dialled = SocketAddr::new(address, target.port);
            self.steps.add("dials", dialled.to_string(), "");
            return dialled;
        }
        match self.state.resolve(&workload.id, &target.host).await {
            Ok(addresses) if !addresses.is_empty() => {
                let dialled = SocketAddr::new(addresses[0], target.port);
                let others = match addresses.len() - 1 {
                    0 => String::new(),
                    more => format!("; the first of {}", more + 1),
                };
                let why = format!("{} as the pod resolves it{others}", target.host);
                self.steps.add("dials", dialled.to_string(), why);
                dialled
            }
            answer => {
                let reason = answer.err().unwrap_or_else(|| format!("{} has no address", target.host));
                let why = format!("as the pod asks: {reason}");
                self.steps.add("dials", format!("port {}", target.port), why);
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), target.port)
            }
        }
    }

    /// The first hop: what the pod's own table says.
    fn leave(&mut self, outbound: &Outbound, dialled: SocketAddr) -> Turn {
        let (port, target) = (dialled.port(), self.target.clone());
        let decision = match (outbound.first_bytes(dialled), target.kind) {
            (FirstBytes::None, _) => {
                let why = "a TCP service claims this address, nothing is read first";
                self.steps.add("listener", format!("{dialled} ALL"), why);
                outbound.tcp(dialled)
            }
            (FirstBytes::Sniff, Kind::Http) => {
                let why = "the first bytes are an HTTP request; its Host decides";
                self.steps.add("listener", format!("0.0.0.0:{port} HTTP"), why);
                match outbound.http(dialled, &target.authority()) {
                    HttpDecision::Host(host) => return self.host(&host),
                    HttpDecision::NotFound => return Turn::End(NOT_FOUND.to_owned()),
                    HttpDecision::Unmatched(decision) => decision,
                }
            }
            (FirstBytes::Sniff, Kind::Https) => {
                let sni = target.host.parse::<IpAddr>().is_err().then_some(target.host.as_str());
                let value = sni.map_or_else(
                    || format!("0.0.0.0:{port} TLS without SNI"),
                    |sni| format!("0.0.0.0:{port} SNI: {sni}"),
                );
                let why = "the application brings its own TLS; it is passed through by SNI";
                self.steps.add("listener", value, why);
                outbound.tls(dialled, sni)
            }
            (FirstBytes::Sniff, Kind::Tcp) => {
                let why = "neither HTTP nor TLS; the address dialled decides";
                self.steps.add("listener", format!("0.0.0.0:{port} TCP"), why);
                outbound.tcp(dialled)
            }
        };
        if matches!(decision, Decision::Passthrough | Decision::Block)
            && let Some(why) = outbound.unimported(&target.host, port)
        {
            self.steps.add("not", &target.host, why);
        }
        self.decision(decision)
    }

    /// What a gateway's listener says to what comes from a cluster of another pod, or from a client of its own.
    fn arrive(&mut self, gateway: &Workload, listener: &Listener, from: Option<&Cluster>) -> Turn {
        let at =
            format!("{}:{}", listener.id.bind.map_or("0.0.0.0".to_owned(), |bind| bind.to_string()), listener.id.port);
        let (server, behind) = match &listener.serves {
            Servers::Http(_) => {
                self.steps.add("listener", format!("{at} HTTP"), "");
                (None, None)
            }
            Servers::Tcp(route) => {
                self.steps.add("listener", format!("{at} TCP"), "");
                return self.tunnel(route.as_ref());
            }
            Servers::Tls(servers) => {
                let sni = match from.map(|from| &from.tls) {
                    Some(UpstreamTls::Mesh(mesh)) => Some(mesh.sni.clone()),
                    Some(UpstreamTls::Originate(settings)) => {
                        Some(settings.sni.clone().unwrap_or_else(|| self.target.host.clone()))
                    }
                    _ if self.target.kind == Kind::Https => Some(self.target.host.clone()),
                    _ => None,
                };
                let Some(sni) = sni else {
                    self.steps.add("listener", format!("{at} TLS"), "it takes TLS only, and gets plain text");
                    return Turn::End("Reset (NR filter_chain_not_found): the gateway's port wants TLS.".to_owned());
                };
                let Some(server) = servers.get(&sni) else {
                    self.steps.add("listener", format!("{at} SNI: {sni}"), "no server of the gateway has this name");
                    return Turn::End("Reset (NR filter_chain_not_found): the gateway has no such SNI.".to_owned());
                };
                let place = self.place(&server.source);
                self.steps.add("listener", format!("{at} SNI: {sni}"), format!("{}{place}", server.source));
                match &server.tls {
                    DownstreamTls::Refuse(reason) => return Turn::End(format!("Refused by the gateway: {reason}.")),
                    DownstreamTls::Passthrough => {
                        self.steps.add("tls", "passed through", "by its server name, untouched")
                    }
                    DownstreamTls::IstioMutual => {}
                    DownstreamTls::Terminate(settings) => {
                        if let Err(reason) = terminated(self.snapshot, settings, &mut self.steps) {
                            return Turn::End(format!("Refused by the gateway: {reason}."));
                        }
                    }
                }
                let ends = !matches!(server.tls, DownstreamTls::Passthrough);
                if ends && self.target.kind == Kind::Https {
                    self.taken_off = true;
                    self.target.kind = if matches!(server.serves, Behind::Http(_)) { Kind::Http } else { Kind::Tcp };
                }
                (Some(&*server.name), Some(&server.serves))
            }
        };
        if let Some(Behind::Tunnel(route)) = behind {
            return self.tunnel(route.as_ref());
        }
        match gateway.at_gateway(listener.id, server, &self.target.authority()) {
            HttpDecision::Host(host) => self.host(&host),
            HttpDecision::Unmatched(decision) => self.decision(decision),
            _ => {
                self.steps.add("route", "-", format!("no virtual host here is called {}", self.target.host));
                Turn::End(NOT_FOUND.to_owned())
            }
        }
    }

    fn decision(&mut self, decision: Decision) -> Turn {
        match decision {
            Decision::Cluster(cluster) => Turn::To(cluster),
            Decision::Route(route) => self.tunnel(Some(&route)),
            Decision::Passthrough => {
                let why = "no service matches, and outboundTrafficPolicy is ALLOW_ANY";
                self.steps.add("cluster", "PassthroughCluster", why);
                Turn::Passed
            }
            Decision::Block => {
                let why = "no service matches, and outboundTrafficPolicy is REGISTRY_ONLY";
                self.steps.add("cluster", "BlackHoleCluster", why);
                let verdict = match self.target.kind {
                    Kind::Http => "Blocked: 502 with an empty body.",
                    Kind::Https | Kind::Tcp => "Blocked: the connection is reset.",
                };
                Turn::End(verdict.to_owned())
            }
            Decision::Refuse(reason) => {
                self.steps.add("refused", "a TLS rule names this destination", &*reason);
                let reason = reason.trim_end_matches('.');
                Turn::End(format!("Refused: {reason}. Plain text is never sent instead."))
            }
        }
    }

    fn cluster(&mut self, cluster: &Cluster) {
        let place = self.place(&cluster.service);
        self.steps.add("cluster", &cluster.name, format!("defined by {}{place}", cluster.service));
        match &cluster.destination_rule {
            Some(rule) => {
                let place = self.place(rule);
                self.steps.add("rule", format!("{}.{}", rule.name, rule.namespace), format!("{rule}{place}"));
            }
            None => self.steps.add("rule", "-", "no DestinationRule applies"),
        }
    }

    /// ` (file:line)` of an object.
    pub(super) fn place(&self, id: &crate::api::ObjectId) -> String {
        self.snapshot.mesh.origins.get(id).map_or_else(String::new, |location| format!(" ({location})"))
    }

    /// The addresses to go to, as far as they are known beforehand; None where there are none.
    async fn endpoints(&mut self, workload: &Workload, cluster: &Cluster) -> Option<Vec<String>> {
        match &cluster.discovery {
            Discovery::OriginalDestination { port } => {
                let port = port.unwrap_or(self.target.port);
                self.steps.add("endpoints", format!("the address dialled, port {port}"), "resolution NONE");
                return Some(Vec::new());
            }
            Discovery::Dynamic { port } => {
                let value = format!("{} as resolved, port {port}", self.target.host);
                self.steps.add("endpoints", value, "resolution DYNAMIC_DNS");
                return Some(Vec::new());
            }
            Discovery::Static(_) | Discovery::Dns { .. } | Discovery::Application(_) => {}
        }
        let (found, failed) = tables::addresses(self.state, workload, cluster).await;
        let value = if found.is_empty() { "-".to_owned() } else { found.join(", ") };
        self.steps.add("endpoints", value, failed.join("; "));
        (!found.is_empty()).then_some(found)
    }

    /// The listener of the gateway that the pod itself is, where the URL's port is one of its own.
    fn listener(&self, workload: &Workload) -> Option<Arc<Listener>> {
        let mut listeners = workload.gateway.as_ref()?.listeners.values();
        listeners.find(|listener| listener.id.port == self.target.port).cloned()
    }

    /// The gateway pod that one of these addresses is, and its listener there.
    fn gateway(&self, addresses: &[String]) -> Option<(&'a Workload, Arc<Listener>)> {
        let pods = self.state.status().pods;
        addresses.iter().filter_map(|address| address.parse::<SocketAddr>().ok()).find_map(|address| {
            let text = address.ip().to_string();
            let pod = pods.iter().find(|pod| pod.addresses.contains(&text))?;
            let workload = self.snapshot.mesh.workloads.values().find(|known| known.id.to_string() == pod.pod)?;
            let listeners = workload.gateway.as_ref()?.listeners.values();
            let mut here = listeners.filter(|listener| {
                listener.id.port == address.port() && listener.id.bind.is_none_or(|bind| bind == address.ip())
            });
            Some((&**workload, here.next()?.clone()))
        })
    }
}

pub(super) const NOT_FOUND: &str = "Answered 404 (NR route_not_found): no route matches.";
