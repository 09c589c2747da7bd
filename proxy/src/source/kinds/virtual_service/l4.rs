//! `tls` and `tcp` routes.

use ipnet::IpNet;

use super::{
    super::super::{
        decode::{Field, Fields},
        values,
    },
    destination, gateway_name, weight,
};
use crate::{
    api::virtual_service::{L4Match, TcpDestination, TcpRoute, TlsMatch, TlsRoute},
    mesh::covers,
};

const L4: &[&str] = &["destinationSubnets", "port", "sourceLabels", "gateways", "sourceNamespace"];

/// Reads a TLSRoute; `hosts` are those of the VirtualService, which its server names must fall under.
pub fn tls_route(field: &Field<'_>, hosts: &[String]) -> Option<TlsRoute> {
    let fields = field.fields(&["match", "route"], &[], &[])?;
    let given = fields.items("match");
    if given.is_empty() {
        fields.field.error("`match` with `sniHosts` is missing");
    }
    let mut matches = Vec::new();
    for field in given {
        let read = [&["sniHosts"], L4].concat();
        let Some(given) = field.fields(&read, &[], &[]) else { continue };
        let mut sni_hosts = Vec::new();
        for field in given.items("sniHosts") {
            let Some(name) = field.string() else { continue };
            let name = name.to_ascii_lowercase();
            if let Err(reason) = values::host_pattern(&name) {
                field.error(format!("\"{name}\" {reason}"));
            } else if !hosts.iter().any(|host| covers(host, &name)) {
                field.error(format!("\"{name}\" is not among `hosts` of this VirtualService"));
            }
            sni_hosts.push(name);
        }
        if sni_hosts.is_empty() {
            given.field.error("`sniHosts` must name at least one host");
        }
        matches.push(TlsMatch { sni_hosts, l4: l4_match(&given) });
    }
    Some(TlsRoute { matches, route: destinations(&fields) })
}

/// Reads a TCPRoute.
pub fn tcp_route(field: &Field<'_>) -> Option<TcpRoute> {
    let fields = field.fields(&["match", "route"], &[], &[])?;
    let read = |field: &Field<'_>| Some(l4_match(&field.fields(L4, &[], &["sourceSubnet"])?));
    Some(TcpRoute { matches: fields.each("match", read), route: destinations(&fields) })
}

fn l4_match(fields: &Fields<'_>) -> L4Match {
    fields.items("gateways").iter().for_each(gateway_name);
    L4Match {
        destination_subnets: fields.each("destinationSubnets", subnet),
        port: fields.get("port").and_then(|f| f.port()),
        source_labels: fields.string_map("sourceLabels"),
        gateways: fields.strings("gateways"),
        source_namespace: fields.string("sourceNamespace"),
    }
}

fn subnet(field: &Field<'_>) -> Option<IpNet> {
    let text = field.string()?;
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    if parsed.is_err() {
        field.error(format!("\"{text}\" is neither an IP address nor a CIDR block"));
    }
    parsed.ok()
}

fn destinations(fields: &Fields<'_>) -> Vec<TcpDestination> {
    let mut found: Vec<_> = fields
        .items("route")
        .iter()
        .filter_map(|field| {
            let given = field.fields(&["destination", "weight"], &[], &[])?;
            let destination = destination(&given.require("destination")?)?;
            Some(TcpDestination { destination, weight: weight(&given), invalid: None })
        })
        .collect();
    match found.as_mut_slice() {
        [] => fields.field.error("`route` must name at least one destination"),
        [only] => only.weight = only.weight.max(1),
        several if several.iter().all(|to| to.weight == 0) => {
            fields.field.error("the weights of `route` are all 0: no destination gets anything");
        }
        _ => {}
    }
    found
}
