//! `parentRefs`: which listeners and services a route is attached to, and for which hosts (Istio `referenceAllowed`).

use super::{
    super::{
        host::{canonical, covers},
        names::service_host,
    },
    gateways::Gateways,
    key,
    listeners::Parent,
    status::{Fault, joined},
};
use crate::api::{
    Objects,
    gateway_api::{GROUP, ListenerProtocol, ParentRef},
};

/// Where routes count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `namespace/name` of the Gateway of Istio's that the listener becomes.
    Gateway(String),
    /// For clients of the mesh: of this namespace, and of others where the service is of this namespace too (a producer's
    /// route; one in another namespace than the service's is its clients').
    Mesh { namespace: String, producer: bool },
}

#[derive(Clone, Debug)]
pub struct Attachment {
    pub scope: Scope,
    /// As tables keep names.
    pub hosts: Vec<String>,
    /// Of a service; None: every port.
    pub port: Option<u16>,
    /// TLS is taken off there.
    pub terminated: bool,
}

#[derive(Debug)]
pub enum Outcome {
    Attached(Vec<Attachment>),
    Refused(Fault),
    /// Another controller's parent.
    Foreign(String),
}

/// What of a route decides where it is attached.
#[derive(Clone, Copy, Debug)]
pub struct Attaching<'a> {
    /// `HTTPRoute` or `TLSRoute`.
    pub kind: &'static str,
    pub namespace: &'a str,
    pub hostnames: &'a [String],
}

pub fn attach(route: Attaching<'_>, parent: &ParentRef, objects: &Objects, gateways: &mut Gateways) -> Outcome {
    let object = &parent.object;
    let namespace = object.namespace.as_deref().unwrap_or(route.namespace);
    let at = key(namespace, &object.name);
    let missing = |what: &str| {
        let why = format!("there is no {what} {namespace}/{}", object.name);
        Outcome::Refused(Fault::new("NoMatchingParent", why))
    };
    match (object.group.as_str(), object.kind.as_str()) {
        (GROUP, "Gateway") => match gateways.served.get_mut(&at) {
            Some(served) => to_listeners(route, parent, &mut served.listeners),
            None if gateways.foreign.contains(&at) => {
                Outcome::Foreign(format!("{} is another controller's", Gateways::name(namespace, &object.name)))
            }
            None => missing("Gateway"),
        },
        ("", "Service") => {
            let Some(service) = objects.services.get(namespace, &object.name) else { return missing("Service") };
            let host = service_host(&canonical(&object.name), namespace);
            let ports = service.spec.ports.iter().map(|port| (port.port, port.name.as_deref()));
            to_service(route, parent, namespace, vec![host], ports)
        }
        ("networking.istio.io", "ServiceEntry") => {
            let Some(entry) = objects.service_entries.get(namespace, &object.name) else {
                return missing("ServiceEntry");
            };
            let hosts = entry.spec.hosts.iter().map(|host| canonical(host).into_owned());
            let ports = entry.spec.ports.iter().map(|port| (port.number, Some(port.name.as_str())));
            to_service(route, parent, namespace, hosts.collect(), ports)
        }
        (group, kind) => Outcome::Foreign(format!("a parent of kind {kind} (group {group}) is another controller's")),
    }
}

fn to_service<'a>(
    route: Attaching<'_>,
    parent: &ParentRef,
    namespace: &str,
    hosts: Vec<String>,
    mut ports: impl Iterator<Item = (u16, Option<&'a str>)>,
) -> Outcome {
    let mut port = parent.port;
    if parent.port.is_some() || parent.section.is_some() {
        let wanted = |(number, name): &(u16, Option<&str>)| {
            parent.port.is_none_or(|port| port == *number)
                && parent.section.as_deref().is_none_or(|section| *name == Some(section))
        };
        let Some((found, _)) = ports.find(wanted) else {
            let why = format!("{} {namespace}/{} has no such port", parent.object.kind, parent.object.name);
            return Outcome::Refused(Fault::new("NoMatchingParent", why));
        };
        port = Some(found);
    }
    let own = route.namespace.to_owned();
    let scope = Scope::Mesh { producer: own == namespace, namespace: own };
    Outcome::Attached(vec![Attachment { scope, hosts, port, terminated: false }])
}

/// One listener that takes the route is enough.
fn to_listeners(route: Attaching<'_>, parent: &ParentRef, listeners: &mut [Parent]) -> Outcome {
    let mut attached = Vec::new();
    let mut faults = Vec::new();
    for at in 0..listeners.len() {
        match allowed(route, parent, at, listeners) {
            Ok(hosts) => {
                listeners[at].attached += 1;
                let listener = &mut listeners[at];
                let terminated = listener.protocol == ListenerProtocol::Tls && !listener.passthrough;
                if !terminated {
                    let scope = Scope::Gateway(listener.gateway.clone());
                    attached.push(Attachment { scope, hosts, port: None, terminated });
                    continue;
                }
                // Once TLS is off, no server name tells connections apart: each host is a server of its own.
                for host in hosts {
                    let scope = Scope::Gateway(format!("{}~{host}", listener.gateway));
                    listener.terminated.insert(host.clone());
                    attached.push(Attachment { scope, hosts: vec![host], port: None, terminated });
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    if !attached.is_empty() {
        return Outcome::Attached(attached);
    }
    // What came closest to taking it says most.
    let order = ["NotAllowedByListeners", "NoMatchingListenerHostname", "NoMatchingParent"];
    let nearest = order.iter().find(|reason| faults.iter().any(|fault| fault.reason == **reason));
    let said = joined(faults.iter().filter(|fault| Some(&fault.reason) == nearest));
    Outcome::Refused(said.unwrap_or_else(|| Fault::new("NoMatchingParent", "the Gateway has no listener")))
}

/// The hosts for which a listener takes the route.
fn allowed(route: Attaching<'_>, parent: &ParentRef, at: usize, listeners: &[Parent]) -> Result<Vec<String>, Fault> {
    let listener = &listeners[at];
    let name = &listener.name;
    if let Some(section) = parent.section.as_ref().filter(|section| *section != name) {
        return Err(Fault::new("NoMatchingParent", format!("there is no listener {section}")));
    }
    if let Some(port) = parent.port.filter(|port| *port != listener.port) {
        return Err(Fault::new("NoMatchingParent", format!("there is no listener on port {port}")));
    }
    if let Some(fault) = &listener.refused {
        return Err(Fault::new("NoMatchingParent", format!("listener {name} is not served: {}", fault.message)));
    }
    if listener.takes != Some(route.kind) {
        return Err(Fault::new("NotAllowedByListeners", format!("listener {name} takes no {}s", route.kind)));
    }
    let own = listener.hostname.as_deref();
    let hosts = common(own, route.hostnames);
    if hosts.is_empty() {
        let why = format!("no hostname of the route is one of listener {name} ({})", own.unwrap_or("*"));
        return Err(Fault::new("NoMatchingListenerHostname", why));
    }
    let namespace = route.namespace;
    if !listener.allowed.holds(namespace) {
        let why = format!("listener {name} takes no routes of namespace {namespace}");
        return Err(Fault::new("NotAllowedByListeners", why));
    }
    let free: Vec<String> = hosts.into_iter().filter(|host| !taken(host, at, listeners)).collect();
    if free.is_empty() {
        let why = format!("other listeners on port {} take these hosts before {name}", listener.port);
        return Err(Fault::new("NoMatchingListenerHostname", why));
    }
    Ok(free)
}

/// Of each hostname of the route and that of the listener the narrower one, where they have something in common.
fn common(listener: Option<&str>, route: &[String]) -> Vec<String> {
    let own = listener.unwrap_or("*");
    if route.is_empty() {
        return vec![own.to_owned()];
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in route {
        let narrower = match (covers(own, host), covers(host, own)) {
            (true, _) => host.as_str(),
            (false, true) => own,
            (false, false) => continue,
        };
        if !hosts.iter().any(|known| known == narrower) {
            hosts.push(narrower.to_owned());
        }
    }
    hosts
}

/// What tells connections apart is their server name, whatever is inside.
fn by_sni(listener: &Parent) -> bool {
    matches!(listener.protocol, ListenerProtocol::Https | ListenerProtocol::Tls)
}

/// A listener on the same port whose hostname is narrower takes the host alone (Istio `hostnameAllowedByIsolation`).
fn taken(host: &str, at: usize, listeners: &[Parent]) -> bool {
    let own = &listeners[at];
    let wider = own.hostname.as_deref().unwrap_or("*");
    let others = listeners.iter().filter(|other| {
        let alike = other.protocol == own.protocol || (by_sni(other) && by_sni(own));
        other.refused.is_none() && other.port == own.port && alike && other.name != own.name
    });
    others
        .filter_map(|other| other.hostname.as_deref())
        .any(|other| other != wider && covers(wider, other) && covers(other, host))
}
