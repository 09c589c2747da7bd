//! A pod's own ports in istioctl's words: what `proxy-config` shows of connections from outside.

use std::{net::SocketAddr, sync::Arc};

use super::{
    AdminState,
    rows::{ClusterRow, EndpointRow, ListenerRow, RouteRow},
    tables,
};
use crate::{
    limits::INBOUND_PORT,
    mesh::{Application, Cluster, Discovery, DownstreamTls, InboundPort, InboundTable, MtlsMode, Protocol, Workload},
};

/// What clients of the mesh offer, on ports whose protocol is declared.
const MESH: &str = "Trans: tls; App: istio,istio-peer-exchange,istio-http/1.0,istio-http/1.1,istio-h2";
const MESH_HTTP: &str = "Trans: tls; App: istio-http/1.0,istio-http/1.1,istio-h2";
const MESH_TCP: &str = "Trans: tls; App: TCP TLS";
const PLAIN: &str = "Trans: raw_buffer";
const PLAIN_HTTP: &str = "Trans: raw_buffer; App: http/1.1,h2c";
const TLS: &str = "Trans: tls";

/// Ports that nothing declares first, then those declared; the port that is dialled is in `Addr`.
pub fn listeners(table: &InboundTable) -> Vec<ListenerRow> {
    let mut rows = vec![row("Addr: *:15006".to_owned(), "Non-HTTP/Non-TCP".to_owned())];
    let mut add = |address: &str, port: &InboundPort, mode: MtlsMode| {
        for matches in matches(port, mode) {
            let matches = if matches.is_empty() { address.to_owned() } else { format!("{matches}; {address}") };
            rows.push(row(matches, destination(port)));
        }
    };
    add("Addr: 0.0.0.0/0", &table.any, table.modes.any);
    // PeerAuthentication may speak of a port that nothing declares.
    for (port, mode) in table.modes.ports.iter().filter(|(port, _)| !table.ports.contains_key(port)) {
        add(&format!("Addr: *:{port}"), &table.any, *mode);
    }
    for (port, declared) in &table.ports {
        add(&format!("Addr: *:{port}"), declared, table.modes.of(*port));
    }
    rows
}

fn row(matches: String, destination: String) -> ListenerRow {
    ListenerRow { addresses: "0.0.0.0".to_owned(), port: INBOUND_PORT, matches, destination }
}

fn destination(port: &InboundPort) -> String {
    match &port.tls {
        Some(DownstreamTls::Refuse(reason)) => format!("Refused: {reason}"),
        _ if port.cluster.name.starts_with("inbound|") => format!("Cluster: {}", port.cluster.name),
        _ => port.cluster.name.clone(),
    }
}

/// What may come, by what it begins with (Istio `getFilterChainMatchOptions`); empty: whatever it is.
fn matches(port: &InboundPort, mode: MtlsMode) -> &'static [&'static str] {
    let http = matches!(port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc);
    let open = port.protocol == Protocol::Auto;
    match mode {
        MtlsMode::Strict if open => &[MESH_HTTP, TLS],
        MtlsMode::Strict => &[TLS],
        MtlsMode::Permissive if open => &[MESH_HTTP, PLAIN_HTTP, MESH_TCP, PLAIN, TLS],
        MtlsMode::Permissive if http => &[MESH, PLAIN],
        MtlsMode::Permissive => &[MESH, TLS, PLAIN],
        MtlsMode::Disable if port.tls.is_some() => &[TLS],
        MtlsMode::Disable if open => &[PLAIN_HTTP, ""],
        MtlsMode::Disable => &[""],
    }
}

pub fn routes(table: &InboundTable) -> impl Iterator<Item = RouteRow> {
    all(table).filter(|port| speaks_http(port)).map(|port| RouteRow {
        name: port.cluster.name.clone(),
        virtual_host: port.host.name.clone(),
        domains: "*".to_owned(),
        matches: "/*".to_owned(),
        virtual_service: String::new(),
    })
}

fn speaks_http(port: &InboundPort) -> bool {
    matches!(port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Auto)
}

pub fn clusters(table: &InboundTable) -> impl Iterator<Item = ClusterRow> {
    all(table).map(|port| {
        let declared = port.cluster.port != 0;
        ClusterRow {
            name: port.cluster.name.clone(),
            // As in Istio, an inbound cluster bears no name of a service: several may lead there.
            service: if declared { String::new() } else { port.cluster.name.clone() },
            port: declared.then_some(port.cluster.port),
            subset: String::new(),
            direction: if declared { "inbound" } else { "" }.to_owned(),
            kind: tables::discovery(&port.cluster.discovery).to_owned(),
            destination_rule: String::new(),
        }
    })
}

/// The application where a Sidecar says where it is; else it is at whatever address was dialled.
pub fn endpoints(state: &dyn AdminState, workload: &Workload) -> Vec<EndpointRow> {
    let Some(table) = &workload.inbound else { return Vec::new() };
    let pods = state.status().pods;
    let own = pods.iter().find(|pod| pod.pod == workload.id.to_string()).and_then(|pod| pod.addresses.first());
    let endpoint = |cluster: &Cluster| match &cluster.discovery {
        Discovery::Application(Application::Own(port)) => Some(SocketAddr::new(own?.parse().ok()?, *port).to_string()),
        Discovery::Application(Application::Loopback(address)) => Some(address.to_string()),
        Discovery::Application(Application::Unix(path)) => Some(format!("unix://{}", path.display())),
        _ => None,
    };
    let rows = table.ports.values().filter_map(|port| {
        Some(EndpointRow {
            endpoint: endpoint(&port.cluster)?,
            status: "HEALTHY".to_owned(),
            outlier_check: "OK".to_owned(),
            cluster: port.cluster.name.clone(),
        })
    });
    rows.collect()
}

fn all(table: &InboundTable) -> impl Iterator<Item = &Arc<InboundPort>> {
    std::iter::once(&table.any).chain(table.ports.values())
}

/// What PeerAuthentication makes of the pod's ports, for `egret status`: `STRICT, 9080 DISABLE`. None: the default.
pub fn modes(table: &InboundTable) -> Option<String> {
    if table.modes.any == MtlsMode::default() && table.modes.ports.is_empty() {
        return None;
    }
    let ports = table.modes.ports.iter().map(|(port, mode)| format!("{port} {}", mode.name()));
    Some(std::iter::once(table.modes.any.name().to_owned()).chain(ports).collect::<Vec<_>>().join(", "))
}
