//! Listeners: what routes attach to, and the server that each becomes (Istio `buildListener`).

use std::{collections::BTreeSet, sync::Arc};

use super::{
    super::{
        findings::Findings,
        table::{About, Condition},
    },
    backends::Grants,
    namespaces::Allowed,
    status::{Fault, condition, conflicted, joined},
    tls::{References, server_tls},
};
use crate::api::{
    Object, Objects,
    gateway::{Server, ServerPort, ServerProtocol, ServerTls, ServerTlsMode},
    gateway_api::{GROUP, Gateway, Listener, ListenerProtocol, ListenerTls},
};

const NO_TCP: &str = "TCPRoutes are not honoured yet: connections are refused";

/// A listener as routes see it.
#[derive(Debug)]
pub struct Parent {
    pub name: String,
    pub port: u16,
    pub protocol: ListenerProtocol,
    /// None: every host.
    pub hostname: Option<String>,
    pub allowed: Allowed,
    /// The kind of the routes that may attach; None: none.
    pub takes: Option<&'static str>,
    /// TLS is passed through, not terminated.
    pub passthrough: bool,
    /// Hosts whose TLS is taken off for a TLSRoute.
    pub terminated: BTreeSet<String>,
    /// `namespace/name` of the Gateway of Istio's that it becomes.
    pub gateway: String,
    pub server: Option<Server>,
    /// It conflicts with an earlier one: not served.
    pub refused: Option<Fault>,
    /// References or kinds that it has and that lead nowhere.
    references: Option<Fault>,
    /// There is no CA to check clients with.
    no_ca: Option<Fault>,
    /// Routes attached.
    pub attached: usize,
}

/// The listeners of a Gateway, in order. `here`: pods of this node serve it.
pub fn parents(
    object: &Arc<Object<Gateway>>,
    objects: &Objects,
    grants: &Grants<'_>,
    here: bool,
    findings: &mut Findings,
) -> Vec<Parent> {
    let mut parents: Vec<Parent> = Vec::new();
    for (at, listener) in object.spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{at}]");
        let mut parent = Parent::new(object, listener, objects);
        parent.refused =
            parents.iter().filter(|other| other.refused.is_none()).find_map(|other| other.conflict(&parent));
        if let Some(fault) = &parent.refused {
            findings.warn(object, &field, format!("{}: this listener is not served", fault.message));
        }
        let mut faults = Vec::new();
        let kinds = listener.allowed_routes.kinds.iter().enumerate();
        for (at, (_, kind)) in kinds.filter(|(_, (group, kind))| !parent.knows(group, kind)) {
            let why = format!("routes of kind {kind} are not honoured on this listener");
            findings.warn(object, &format!("{field}.allowedRoutes.kinds[{at}]"), &*why);
            faults.push(Fault::new("InvalidRouteKinds", why));
        }
        if parent.protocol == ListenerProtocol::Tcp {
            findings.warn(object, &format!("{field}.protocol"), NO_TCP);
        }
        let mut tls = None;
        if let Some(given) = &listener.tls {
            let references = References { objects, grants, namespace: &object.meta.namespace, here };
            let made = server_tls(given, is_multi_network(object, listener), references);
            for (at, fault) in made.faults {
                let at = if at.starts_with("spec.") { at } else { format!("{field}.{at}") };
                findings.error(object, &at, &*fault.message);
                faults.push(fault);
            }
            only_first_ca(object, given, findings);
            parent.no_ca = made.no_ca;
            tls = Some(made.tls);
        }
        parent.references = joined(&faults);
        parent.server = Some(parent.server(tls));
        parents.push(parent);
    }
    parents
}

/// The listener by which workloads of other networks come in, as Istio knows it (`IsAutoPassthrough`).
fn is_multi_network(object: &Object<Gateway>, listener: &Listener) -> bool {
    let labels = &object.meta.labels;
    let port = labels.get("networking.istio.io/gatewayPort").map_or("15443", String::as_str);
    labels.contains_key("topology.istio.io/network") && port == listener.port.to_string()
}

fn only_first_ca(object: &Object<Gateway>, tls: &ListenerTls, findings: &mut Findings) {
    let Some(clients) = tls.clients.as_ref().filter(|clients| clients.cas.len() > 1) else { return };
    findings.warn(object, &clients.field, "only the first CA counts, as in Istio: clients of the others are refused");
}

impl Parent {
    fn new(object: &Object<Gateway>, listener: &Listener, objects: &Objects) -> Self {
        let kinds = &listener.allowed_routes.kinds;
        let takes = match listener.protocol {
            ListenerProtocol::Http | ListenerProtocol::Https => Some("HTTPRoute"),
            ListenerProtocol::Tls => Some("TLSRoute"),
            ListenerProtocol::Tcp => None,
        };
        let wanted = |own: &&str| kinds.is_empty() || kinds.iter().any(|(group, kind)| group == GROUP && kind == own);
        let mut parent = Self {
            name: listener.name.clone(),
            port: listener.port,
            protocol: listener.protocol,
            hostname: listener.hostname.clone(),
            allowed: Allowed::new(&listener.allowed_routes.from, &object.meta.namespace, objects),
            takes: takes.filter(wanted),
            passthrough: listener.tls.as_ref().is_some_and(|tls| tls.passthrough),
            terminated: BTreeSet::new(),
            gateway: String::new(),
            server: None,
            refused: None,
            references: None,
            no_ca: None,
            attached: 0,
        };
        parent.gateway = format!("{}/{}", object.meta.namespace, parent.gateway_name(&object.meta.name));
        parent
    }

    /// The name of the Gateway of Istio's (Istio `InternalGatewayName`).
    pub fn gateway_name(&self, gateway: &str) -> String {
        format!("{gateway}-istio-autogenerated-k8s-gateway-{}", self.name)
    }

    /// What is spoken once the mesh's own TLS is taken off, as `appProtocol` of the Service.
    pub fn application(&self) -> &'static str {
        let mesh =
            |server: &Server| server.tls.as_ref().is_some_and(|tls| tls.mode == Some(ServerTlsMode::IstioMutual));
        match self.protocol {
            ListenerProtocol::Http => "http",
            ListenerProtocol::Https if self.server.as_ref().is_some_and(mesh) => "http",
            ListenerProtocol::Https => "https",
            ListenerProtocol::Tls => "tls",
            ListenerProtocol::Tcp => "tcp",
        }
    }

    pub fn is_valid(&self) -> bool {
        self.refused.is_none() && self.references.is_none()
    }

    fn knows(&self, group: &str, kind: &str) -> bool {
        let own = match self.protocol {
            ListenerProtocol::Http | ListenerProtocol::Https => "HTTPRoute",
            ListenerProtocol::Tls => "TLSRoute",
            ListenerProtocol::Tcp => return false,
        };
        group == GROUP && kind == own
    }

    /// Why `later` cannot be served beside this one.
    fn conflict(&self, later: &Self) -> Option<Fault> {
        if self.port != later.port {
            return None;
        }
        let tls = |protocol| matches!(protocol, ListenerProtocol::Https | ListenerProtocol::Tls);
        let apart = tls(self.protocol) && tls(later.protocol) || self.protocol == later.protocol;
        let (name, port) = (&self.name, self.port);
        if !apart {
            return Some(Fault::new(
                "ProtocolConflict",
                format!("listener {name} has another protocol on port {port}"),
            ));
        }
        // TLS is told apart by the server name alone, TCP by nothing.
        let same = self.hostname == later.hostname || self.protocol == ListenerProtocol::Tcp;
        same.then(|| Fault::new("HostnameConflict", format!("listener {name} has the same host on port {port}")))
    }

    fn server(&self, tls: Option<ServerTls>) -> Server {
        let protocol = match self.protocol {
            ListenerProtocol::Http => ServerProtocol::Http,
            ListenerProtocol::Https => ServerProtocol::Https,
            ListenerProtocol::Tls => ServerProtocol::Tls,
            ListenerProtocol::Tcp => ServerProtocol::Tcp,
        };
        Server {
            name: self.name.clone(),
            // One server in each Gateway: Istio calls them all the same.
            port: ServerPort { number: self.port, name: "default".to_owned(), protocol },
            bind: None,
            hosts: self.allowed.server_hosts(self.hostname.as_deref().unwrap_or("*")),
            tls,
        }
    }

    pub fn about(&self) -> About {
        About::Listener { name: self.name.clone(), kinds: self.takes.into_iter().collect(), attached: self.attached }
    }

    /// Conditions; `pending`: why nothing of the Gateway is served.
    pub fn status(&self, pending: Option<&Fault>) -> Vec<Condition> {
        let attached = match self.attached {
            1 => "1 route attached".to_owned(),
            count => format!("{count} routes attached"),
        };
        let invalid = self.references.as_ref().filter(|fault| fault.reason != "InvalidRouteKinds");
        let invalid = invalid.map(|fault| Fault::new("Invalid", &*fault.message));
        let conflict = self.refused.as_ref().map(|fault| Fault::new("Invalid", &*fault.message));
        let tcp = (self.protocol == ListenerProtocol::Tcp).then(|| Fault::new("UnsupportedProtocol", NO_TCP));
        let accepted = self.refused.as_ref().or(self.no_ca.as_ref()).or(tcp.as_ref());
        vec![
            condition("Accepted", attached, accepted),
            condition("Programmed", "served", conflict.as_ref().or(invalid.as_ref()).or(pending)),
            condition("ResolvedRefs", "all references resolved", self.references.as_ref()),
            conflicted(self.refused.as_ref()),
        ]
    }
}
