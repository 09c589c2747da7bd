//! `proxy-config listener`: where a pod's connections are matched, in istioctl's words.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use ipnet::IpNet;

use super::{inbound, rows::ListenerRow, tables::unmatched};
use crate::{
    limits::OUTBOUND_PORT,
    mesh::{Behind, Cluster, DownstreamTls, Listener, Outbound, PortTable, Servers, TunnelRoute, Workload},
};

/// The gateway's own listeners or the pod's own ports first, then what the pod calls.
pub fn listeners(workload: &Workload) -> Vec<ListenerRow> {
    let mut all = Vec::new();
    for listener in workload.gateway.iter().flat_map(|gateway| gateway.listeners.values()) {
        gateway_rows(listener, &mut all);
    }
    if let Some(table) = &workload.inbound {
        all.extend(inbound::listeners(table));
    }
    all.extend(outbound(&workload.outbound));
    all
}

fn gateway_rows(listener: &Listener, all: &mut Vec<ListenerRow>) {
    let addresses = listener.id.bind.map_or_else(|| "0.0.0.0".to_owned(), |bind| bind.to_string());
    let mut add = |matches: &str, destination: String| {
        let (addresses, matches) = (addresses.clone(), matches.to_owned());
        all.push(ListenerRow { addresses, port: listener.id.port, matches, destination });
    };
    match &listener.serves {
        Servers::Http(table) => add("ALL", format!("Route: {}", table.name)),
        Servers::Tcp(route) => add("ALL", to_route(route.as_ref())),
        Servers::Tls(servers) => {
            let mut rows: Vec<_> = servers.iter().map(|(host, server)| (host.into_owned(), server)).collect();
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            for (host, server) in rows {
                let destination = match (&server.tls, &server.serves) {
                    (DownstreamTls::Refuse(reason), _) => format!("Refused: {reason}"),
                    (_, Behind::Http(table)) => format!("Route: {}", table.name),
                    (_, Behind::Tunnel(route)) => to_route(route.as_ref()),
                };
                add(&format!("SNI: {host}"), destination);
            }
        }
    }
}

/// One cluster, or several with their weights; istioctl shows a connection that leads nowhere as a cluster of this name.
fn to_route(route: Option<&Arc<TunnelRoute>>) -> String {
    let Some(route) = route else { return "BlackHoleCluster".to_owned() };
    match route.destinations.as_slice() {
        [(one, _)] => format!("Cluster: {}", one.name()),
        several => {
            let shares: Vec<_> = several.iter().map(|(to, weight)| format!("{} ({weight})", to.name())).collect();
            format!("Clusters: {}", shares.join(", "))
        }
    }
}

/// Rows by what tells them apart; what was put in first stays: a workload's own table before the one beneath.
type Rows = BTreeMap<(u16, Rank, String, String), String>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Address,
    Sni,
    Http,
    All,
}

fn outbound(outbound: &Outbound) -> impl Iterator<Item = ListenerRow> {
    let mut rows = Rows::new();
    for port in outbound.all_ports() {
        let routing = outbound.routing(port).count();
        for (at, table) in outbound.layers(port).enumerate() {
            port_rows(port, table, at < routing, &mut rows);
        }
        add(&mut rows, port, "0.0.0.0", Rank::All, "ALL", unmatched(outbound.policy));
    }
    add(&mut rows, OUTBOUND_PORT, "0.0.0.0", Rank::All, "ALL", unmatched(outbound.policy));
    rows.into_iter().map(|((port, _, addresses, matches), destination)| ListenerRow {
        addresses,
        port,
        matches,
        destination,
    })
}

fn add(rows: &mut Rows, port: u16, address: &str, rank: Rank, matches: &str, destination: impl Display) {
    rows.entry((port, rank, address.to_owned(), matches.to_owned())).or_insert_with(|| destination.to_string());
}

/// `routing`: the table's `tls` and `tcp` routes count.
fn port_rows(port: u16, table: &PortTable, routing: bool, rows: &mut Rows) {
    let to = |cluster: &Arc<Cluster>| format!("Cluster: {}", cluster.name);
    for (host, routes) in table.tls_routes.iter().filter(|_| routing) {
        for found in routes {
            for address in addresses(&found.subnets) {
                add(rows, port, &address, Rank::Sni, &format!("SNI: {host}"), to_route(Some(&found.route)));
            }
        }
    }
    for (host, cluster) in table.tls.iter() {
        add(rows, port, "0.0.0.0", Rank::Sni, &format!("SNI: {host}"), to(cluster));
    }
    if !table.http.is_empty() {
        let matches = "Trans: raw_buffer; App: http/1.1,h2c";
        add(rows, port, "0.0.0.0", Rank::Http, matches, format!("Route: {port}"));
    }
    for (network, cluster) in table.tls_addresses.iter() {
        add(rows, port, &address(network), Rank::Address, "Trans: tls", to(cluster));
    }
    for found in table.tcp_routes.iter().filter(|_| routing) {
        let rank = if found.subnets.is_empty() { Rank::All } else { Rank::Address };
        for address in addresses(&found.subnets) {
            add(rows, port, &address, rank, "ALL", to_route(Some(&found.route)));
        }
    }
    for (network, cluster) in table.tcp.iter() {
        add(rows, port, &address(network), Rank::Address, "ALL", to(cluster));
    }
    if let Some(cluster) = &table.tcp_any {
        add(rows, port, "0.0.0.0", Rank::All, "ALL", to(cluster));
    }
}

fn addresses(subnets: &[IpNet]) -> Vec<String> {
    if subnets.is_empty() { vec!["0.0.0.0".to_owned()] } else { subnets.iter().copied().map(address).collect() }
}

/// A single address without its prefix length.
fn address(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}
