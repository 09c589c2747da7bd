//! networking.istio.io Sidecar, checked as Istio's own validation does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use super::{
    super::{
        decode::{Field, Fields},
        values,
    },
    gateway::{bind, tls},
    security::labels,
    service_entry::PROTOCOLS,
    traffic_policy::connection_pool,
};
use crate::api::{
    gateway::{ServerTls, ServerTlsMode},
    istio::Port,
    sidecar::{DefaultEndpoint, EgressListener, IngressListener, Sidecar},
};

/// Reads a Sidecar.
pub fn sidecar(root: &Fields<'_>) -> Option<Sidecar> {
    let read = &["workloadSelector", "ingress", "egress", "outboundTrafficPolicy", "inboundConnectionPool"];
    let fields = root.require("spec")?.fields(read, &[], &[])?;
    if read[1..].iter().all(|name| fields.get(name).is_none_or(|field| field.node.is_empty_list())) {
        fields.field.error(format!("says nothing: give one of {}", read[1..].join(", ")));
    }
    let mut taken = BTreeSet::new();
    let ingress = fields.each("ingress", |field| {
        let listener = ingress(field)?;
        if !taken.insert(listener.port.number) {
            field.error(format!("port {} is given twice", listener.port.number));
        }
        Some(listener)
    });
    Some(Sidecar {
        selector: fields.get("workloadSelector").and_then(|f| selector(&f)).unwrap_or_default(),
        ingress,
        egress: egress(&fields),
        registry_only: match fields.get("outboundTrafficPolicy") {
            // An unknown mode must not read as another one: the error refuses the whole object.
            Some(field) => policy(&field)?,
            None => None,
        },
        inbound_pool: fields.get("inboundConnectionPool").and_then(|f| connection_pool(&f)),
    })
}

fn selector(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let labels = field.fields(&["labels"], &[], &[])?.get("labels").map(|field| labels(&field)).unwrap_or_default();
    if labels.is_empty() {
        field.warn("without labels it is for every workload of the namespace");
    }
    Some(labels)
}

fn ingress(field: &Field<'_>) -> Option<IngressListener> {
    let read = &["port", "bind", "captureMode", "defaultEndpoint", "tls", "connectionPool"];
    let fields = field.fields(read, &[], &[])?;
    captured(&fields);
    let port = fields.require("port").and_then(|f| port(&f));
    let tls = match fields.get("tls") {
        // What cannot be read must not pass for no TLS at all.
        Some(field) => ingress_tls(&field, port.as_ref())?,
        None => None,
    };
    let default_endpoint = match fields.get("defaultEndpoint").filter(|f| f.node.text() != Some("")) {
        Some(field) => Some(default_endpoint(&field)?),
        None => None,
    };
    Some(IngressListener {
        port: port?,
        bind: fields.get("bind").filter(|f| f.node.text() != Some("")).and_then(|f| bind(&f)),
        default_endpoint,
        tls,
        connection_pool: fields.get("connectionPool").and_then(|f| connection_pool(&f)),
    })
}

/// None where TLS is left to the application.
fn ingress_tls(field: &Field<'_>, port: Option<&Port>) -> Option<Option<ServerTls>> {
    let tls = tls(field)?;
    if tls.https_redirect {
        field.error("`httpsRedirect` is for gateways");
    }
    let ends_here = |port: &Port| matches!(port.protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS");
    if let Some(port) = port.filter(|port| !ends_here(port)) {
        field.error(format!("TLS wants protocol HTTPS or TLS, not {}", port.protocol));
    }
    match tls.mode {
        Some(ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) => Some(Some(tls)),
        None | Some(ServerTlsMode::Passthrough) => {
            field.warn("mode PASSTHROUGH leaves TLS to the application, as no `tls` does");
            Some(None)
        }
        Some(ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough) => {
            field.error("an ingress ends TLS as SIMPLE, MUTUAL or OPTIONAL_MUTUAL; mesh mTLS is PeerAuthentication's");
            None
        }
    }
}

/// A SidecarPort. Its name means nothing to traffic.
fn port(field: &Field<'_>) -> Option<Port> {
    let fields = field.fields(&["number", "protocol", "name", "targetPort"], &[], &[])?;
    let number = fields.require("number").and_then(|f| f.port());
    let protocol = fields.string("protocol").unwrap_or_default();
    if let (Some(f), false) = (fields.get("protocol"), protocol.is_empty())
        && !PROTOCOLS.contains(&protocol.to_ascii_uppercase().as_str())
    {
        f.error(format!("\"{}\" is not one of {}", protocol.escape_debug(), PROTOCOLS.join(", ")));
    }
    let name = fields.string("name").unwrap_or_default();
    if let (Some(f), false) = (fields.get("name"), name.is_empty() || values::dns_label(&name)) {
        f.error(format!("\"{}\" is not a port name: letters, digits and `-`, 63 at most", name.escape_debug()));
    }
    if let Some(f) = fields.get("targetPort").filter(|f| f.node.text() != Some("0")) {
        f.error("means nothing in a Sidecar: `defaultEndpoint` says where the application is");
    }
    Some(Port { number: number?, name: name.into(), protocol: protocol.into(), target_port: None })
}

/// Every port is captured: there is no listener of the pod's own to choose instead.
fn captured(fields: &Fields<'_>) {
    let modes = ["DEFAULT", "IPTABLES", "NONE"].map(|name| (name, name));
    if let Some(field) = fields.get("captureMode")
        && field.choice(&modes) == Some("NONE")
    {
        field.warn("not honoured: traffic is captured all the same, so that no listener of its own is needed");
    }
}

/// `127.0.0.1:PORT`, `[::1]:PORT`, `0.0.0.0:PORT`, `[::]:PORT`, `unix:///path`; `:PORT` is 127.0.0.1.
fn default_endpoint(field: &Field<'_>) -> Option<DefaultEndpoint> {
    let text = field.string()?;
    if let Some(path) = text.strip_prefix("unix://") {
        if path.starts_with('/') && path.len() > 1 && !path.contains('\0') {
            return Some(DefaultEndpoint::Unix(PathBuf::from(path)));
        }
        field.error(format!("\"{}\" must hold an absolute path: unix:///path", text.escape_debug()));
        return None;
    }
    let own = text.strip_prefix(':').and_then(|port| port.parse().ok());
    let parsed = own.map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).or_else(|| text.parse().ok());
    let known = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    match parsed.filter(|to: &SocketAddr| to.port() != 0) {
        Some(to) if to.ip().is_unspecified() => Some(DefaultEndpoint::Own(to.port())),
        Some(to) if known.contains(&to.ip()) => Some(DefaultEndpoint::Loopback(to)),
        _ => {
            let forms = "127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT, unix:///path";
            field.error(format!("\"{}\" is not one of {forms}", text.escape_debug()));
            None
        }
    }
}

fn egress(fields: &Fields<'_>) -> Vec<EgressListener> {
    let items = fields.items("egress");
    let mut taken = BTreeSet::new();
    let mut listeners = Vec::with_capacity(items.len());
    for (at, field) in items.iter().enumerate() {
        let Some(given) = field.fields(&["port", "bind", "captureMode", "hosts"], &[], &[]) else { continue };
        captured(&given);
        if let Some(f) = given.get("bind").filter(|f| f.node.text() != Some("")) {
            match f.node.text().is_some_and(|text| text.starts_with("unix://")) {
                true => f.error("a Unix socket cannot be listened on"),
                false => f.warn("not honoured: what the pod sends to the port is captured, whatever its address"),
            }
        }
        let port = given.get("port").and_then(|f| port(&f));
        match &port {
            Some(port) if !taken.insert(port.number) => field.error(format!("port {} is given twice", port.number)),
            None if given.get("port").is_none() && at + 1 < items.len() => {
                field.error("without `port` it is for all others, so it must be the last one");
            }
            _ => {}
        }
        listeners.push(EgressListener { port, hosts: hosts(&given) });
    }
    listeners
}

fn hosts(fields: &Fields<'_>) -> Vec<String> {
    let items = fields.items("hosts");
    if items.is_empty() {
        fields.field.error("`hosts` must name at least one: `./*`, `*/*`, `~/*`, namespace/host");
    }
    let mut hosts: Vec<String> = Vec::with_capacity(items.len());
    for field in &items {
        let Some(text) = field.string() else { continue };
        let text = text.to_ascii_lowercase();
        let Some((namespace, name)) = text.split_once('/') else {
            field
                .error(format!("\"{}\" must be namespace/host: `./{0}` is one of this namespace", text.escape_debug()));
            continue;
        };
        if !matches!(namespace, "." | "*" | "~") && !values::dns_label(namespace) {
            let namespace = namespace.escape_debug();
            field.error(format!("\"{namespace}\" is neither `.`, `*`, `~` nor the name of a namespace"));
        }
        if let Err(reason) = values::host_pattern(name) {
            field.error(format!("\"{}\" {reason}", name.escape_debug()));
        }
        if hosts.contains(&text) {
            field.warn(format!("\"{text}\" is given twice"));
        }
        hosts.push(text);
    }
    hosts
}

/// `outboundTrafficPolicy.mode`. As in Istio, one without `mode` is REGISTRY_ONLY, which is the first of the enumeration.
fn policy(field: &Field<'_>) -> Option<Option<bool>> {
    let fields = field.fields(&["mode", "egressProxy"], &[], &[])?;
    let mode = match fields.get("mode") {
        Some(f) => f.choice(&[("REGISTRY_ONLY", true), ("ALLOW_ANY", false)])?,
        None => true,
    };
    let Some(proxy) = fields.get("egressProxy") else { return Some(Some(mode)) };
    match mode {
        true => proxy.error("goes with mode ALLOW_ANY only"),
        // Letting it out past the proxy is what its author does not want.
        false => proxy.warn("not honoured yet: what no service matches is blocked, as REGISTRY_ONLY does"),
    }
    Some(Some(true))
}
