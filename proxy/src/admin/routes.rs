//! `proxy-config route`: virtual hosts and their routes, in istioctl's words.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{inbound, rows::RouteRow};
use crate::mesh::{
    Behind, Outbound, OutboundPolicy, RequestMatch, RouteTable, Servers, TextMatch, VirtualHost, Workload,
};

/// The gateway's own route tables first, then what the pod calls, and its own ports.
pub fn routes(workload: &Workload) -> Vec<RouteRow> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for listener in workload.gateway.iter().flat_map(|gateway| gateway.listeners.values()) {
        let mut tables: Vec<&Arc<RouteTable>> = match &listener.serves {
            Servers::Http(table) => vec![table],
            Servers::Tcp(_) => Vec::new(),
            Servers::Tls(servers) => {
                let behind = servers.values().filter_map(|server| match &server.serves {
                    Behind::Http(table) => Some(table),
                    Behind::Tunnel(_) => None,
                });
                behind.collect()
            }
        };
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        for table in tables.into_iter().filter(|table| seen.insert(table.name.clone())) {
            let hosts: BTreeMap<_, _> = table.hosts.iter().collect();
            for (domain, host) in hosts {
                all.extend(host_rows(&table.name, &domain, host));
            }
        }
    }
    all.extend(outbound(&workload.outbound));
    all.extend(workload.inbound.iter().flat_map(|table| inbound::routes(table)));
    all
}

fn outbound(outbound: &Outbound) -> Vec<RouteRow> {
    let mut hosts = BTreeMap::new();
    for port in outbound.all_ports() {
        for table in outbound.layers(port) {
            for (domain, host) in table.http.iter() {
                // A workload's own table comes before the one beneath.
                hosts.entry((port, domain.into_owned())).or_insert(host);
            }
        }
    }
    let mut rows = Vec::new();
    let mut last = None;
    for ((port, domain), host) in hosts {
        if let Some(done) = last.filter(|last| *last != port) {
            rows.extend(block_all(outbound, done));
        }
        rows.extend(host_rows(&port.to_string(), &domain, host));
        last = Some(port);
    }
    rows.extend(last.and_then(|port| block_all(outbound, port)));
    rows
}

/// What REGISTRY_ONLY has for hosts that it does not know.
fn block_all(outbound: &Outbound, port: u16) -> Option<RouteRow> {
    (outbound.policy == OutboundPolicy::RegistryOnly).then(|| RouteRow {
        name: port.to_string(),
        virtual_host: "block_all".to_owned(),
        domains: "*".to_owned(),
        matches: "/*".to_owned(),
        virtual_service: "404".to_owned(),
    })
}

fn host_rows(name: &str, domain: &str, host: &VirtualHost) -> Vec<RouteRow> {
    let row = |matches: String, virtual_service: String| RouteRow {
        name: name.to_owned(),
        virtual_host: host.name.clone(),
        domains: domain.to_owned(),
        matches,
        virtual_service,
    };
    if host.routes.is_empty() {
        return vec![row("/*".to_owned(), "404".to_owned())];
    }
    let rows = host.routes.iter().map(|route| {
        let source = route.source.as_ref().map(|source| format!("{}.{}", source.name, source.namespace));
        row(path(&route.matches), source.unwrap_or_default())
    });
    rows.collect()
}

/// As istioctl describes a match: by its path alone.
pub fn path(matches: &RequestMatch) -> String {
    match &matches.path {
        None | Some(TextMatch::Present) => "/*".to_owned(),
        Some(TextMatch::Exact(path)) => path.clone(),
        Some(TextMatch::Prefix(prefix)) => format!("{prefix}*"),
        Some(TextMatch::PathPrefix(prefix)) if prefix.is_empty() => "/*".to_owned(),
        Some(TextMatch::PathPrefix(prefix)) => format!("PathPrefix:{prefix}"),
        Some(TextMatch::Regex(pattern)) => format!("regex {}", pattern.as_str()),
    }
}
