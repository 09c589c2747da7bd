//! Which servers share which listener of a pod, and which are in the way of each other. As Istio merges Gateways
//! (`model.mergeGateways`): in object order, and who comes later gives way.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::super::{findings::Findings, listeners::ListenerId, names::selects, virtual_services::ServerHost};
use crate::{
    api::{
        Object, Objects,
        core::{Pod, TargetPort},
        gateway::{Gateway, Server, ServerProtocol},
    },
    limits,
};

/// With this label a Service's `targetPort` does not count for Gateways (Istio `DisableGatewayPortTranslationLabel`).
const NO_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// The servers that share one address and port.
#[derive(Debug)]
pub struct Slot<'a> {
    pub kind: Kind,
    pub servers: Vec<Placed<'a>>,
}

/// What the first bytes on a listener are. Never two of these on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Tcp,
    Tls,
}

/// One of `servers` of a Gateway.
#[derive(Debug)]
pub struct Placed<'a> {
    pub gateway: &'a Arc<Object<Gateway>>,
    pub index: usize,
    pub server: &'a Server,
    pub hosts: Vec<ServerHost>,
}

impl Placed<'_> {
    /// Path of a field of the server, for messages.
    pub fn field(&self, field: &str) -> String {
        format!("spec.servers[{}].{field}", self.index)
    }

    /// `namespace/name` of the Gateway.
    pub fn gateway_name(&self) -> String {
        format!("{}/{}", self.gateway.meta.namespace, self.gateway.meta.name)
    }

    /// What other servers must differ in: for TLS the server name alone tells them apart, for HTTP also whose
    /// VirtualServices are let in.
    fn claims(&self, kind: Kind) -> impl Iterator<Item = ServerHost> + '_ {
        let namespace = move |host: &ServerHost| host.namespace.clone().filter(|_| kind == Kind::Http);
        self.hosts.iter().map(move |host| ServerHost { namespace: namespace(host), host: host.host.clone() })
    }
}

/// The servers of `gateways` by the listener that they get in `pod`.
pub fn slots<'a>(
    objects: &Objects,
    pod: &Object<Pod>,
    gateways: &[&'a Arc<Object<Gateway>>],
    findings: &mut Findings,
) -> BTreeMap<ListenerId, Slot<'a>> {
    let ports = TargetPorts::new(objects, pod);
    let mut slots: BTreeMap<ListenerId, Slot<'a>> = BTreeMap::new();
    // Which Gateway has a host on a listener.
    let mut taken: HashMap<(ListenerId, ServerHost), String> = HashMap::new();
    for gateway in gateways {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let hosts = server.hosts.iter().map(|host| ServerHost::parse(host, &gateway.meta.namespace)).collect();
            let placed = Placed { gateway, index, server, hosts };
            let Some(kind) = kind(&placed, findings) else { continue };
            let port = ports.of(server.port.number);
            if matches!(port, limits::OUTBOUND_PORT | limits::INBOUND_PORT) {
                let message = format!("egret itself listens on port {port} of every pod: this server is not opened");
                findings.error(*gateway, &placed.field("port.number"), message);
                continue;
            }
            let id = ListenerId { bind: server.bind, port };
            let claims: Vec<_> = placed.claims(kind).map(|claim| (id, claim)).collect();
            if let Some(why) = slots.get(&id).and_then(|slot| conflict(slot, kind, &placed, &claims, &taken)) {
                let message = format!("{why} on port {port}: this server is skipped");
                findings.warn(*gateway, &format!("spec.servers[{index}]"), message);
                continue;
            }
            taken.extend(claims.into_iter().map(|claim| (claim, gateway.id.to_string())));
            slots.entry(id).or_insert_with(|| Slot { kind, servers: Vec::new() }).servers.push(placed);
        }
    }
    slots
}

/// Why `placed` cannot join those that are there.
fn conflict(
    slot: &Slot<'_>,
    kind: Kind,
    placed: &Placed<'_>,
    claims: &[(ListenerId, ServerHost)],
    taken: &HashMap<(ListenerId, ServerHost), String>,
) -> Option<String> {
    let first = slot.servers.first()?;
    if slot.kind != kind || kind == Kind::Tcp {
        let what = |kind| match kind {
            Kind::Http => "plain HTTP",
            Kind::Tcp => "plain TCP",
            Kind::Tls => "TLS",
        };
        return Some(format!(
            "{} serves {} there, {} cannot be served beside it",
            first.gateway.id,
            what(slot.kind),
            what(kind)
        ));
    }
    let again = claims.iter().find_map(|claim| Some((&claim.1.host, taken.get(claim)?)));
    if let Some((host, whose)) = again {
        return Some(format!("{whose} serves {host} there already"));
    }
    let same_name = |other: &&Placed<'_>| {
        // By name: listeners of one Gateway of the Gateway API are Gateways of their own here.
        other.gateway_name() == placed.gateway_name() && other.server.port.name == placed.server.port.name
    };
    let twin = slot.servers.iter().find(same_name).filter(|_| kind == Kind::Tls);
    twin.map(|_| format!("the port name \"{}\" tells no two TLS servers of one Gateway apart", placed.server.port.name))
}

/// None: protocol and TLS do not go together, which is said.
fn kind(placed: &Placed<'_>, findings: &mut Findings) -> Option<Kind> {
    let mode = placed.server.tls.as_ref().map(|tls| tls.mode);
    match (placed.server.port.protocol, mode) {
        (ServerProtocol::Http | ServerProtocol::Http2 | ServerProtocol::Grpc, None | Some(None)) => Some(Kind::Http),
        (ServerProtocol::Http | ServerProtocol::Http2 | ServerProtocol::Grpc, Some(Some(_))) => {
            let message =
                "a plain HTTP port takes `httpsRedirect` only, TLS wants protocol HTTPS: this server is skipped";
            findings.error(placed.gateway, &placed.field("tls.mode"), message);
            None
        }
        (ServerProtocol::Tcp, None) => Some(Kind::Tcp),
        (ServerProtocol::Https | ServerProtocol::Tls, None) => {
            let message = "protocols HTTPS and TLS want `tls`: this server is skipped";
            findings.error(placed.gateway, &placed.field("tls"), message);
            None
        }
        (ServerProtocol::Https | ServerProtocol::Tls | ServerProtocol::Tcp, Some(_)) => Some(Kind::Tls),
    }
}

/// From ports of the Services that select a pod to those that it listens on.
struct TargetPorts(HashMap<u16, u16>);

impl TargetPorts {
    fn new(objects: &Objects, pod: &Object<Pod>) -> Self {
        let mut ports = HashMap::new();
        let near = objects.services.values().filter(|service| service.meta.namespace == pod.meta.namespace);
        let selecting = near
            .filter(|service| !service.spec.selector.is_empty() && selects(&service.spec.selector, &pod.meta.labels));
        for service in selecting {
            for port in &service.spec.ports {
                let target = match &port.target_port {
                    _ if service.meta.labels.contains_key(NO_TRANSLATION) => Some(port.port),
                    None => Some(port.port),
                    Some(TargetPort::Number(number)) => Some(*number),
                    Some(TargetPort::Name(name)) => {
                        let named = pod.spec.ports.iter().find(|port| port.name.as_ref() == Some(name));
                        named.map(|port| port.port)
                    }
                };
                if let Some(target) = target {
                    ports.entry(port.port).or_insert(target);
                }
            }
        }
        Self(ports)
    }

    /// A port that no Service has is listened on itself.
    fn of(&self, number: u16) -> u16 {
        self.0.get(&number).copied().unwrap_or(number)
    }
}
