//! networking.istio.io ServiceEntry, checked as Istio's own validation does.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::super::{
    decode::{Field, Fields},
    values,
};
use crate::api::istio::{Location, Port, Resolution, ServiceEntry, WorkloadEntry};

const READ: &[&str] = &[
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
];
const LOCATIONS: &[(&str, Location)] =
    &[("MESH_EXTERNAL", Location::MeshExternal), ("MESH_INTERNAL", Location::MeshInternal)];
const RESOLUTIONS: &[(&str, Resolution)] = &[
    ("NONE", Resolution::None),
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::DnsRoundRobin),
    ("DYNAMIC_DNS", Resolution::DynamicDns),
];
/// Protocols that Istio knows, in upper case.
pub const PROTOCOLS: &[&str] = &[
    "HTTP",
    "HTTP2",
    "HTTP_PROXY",
    "GRPC",
    "GRPC-WEB",
    "HTTPS",
    "TLS",
    "TCP",
    "MONGO",
    "MYSQL",
    "REDIS",
    "UDP",
    "HBONE",
];

/// Reads a ServiceEntry.
pub fn service_entry(root: &Fields<'_>) -> Option<ServiceEntry> {
    let fields = root.require("spec")?.fields(READ, &[], &[])?;
    let hosts_field = fields.require("hosts");
    let host_fields = hosts_field.as_ref().map(Field::items).unwrap_or_default();
    if hosts_field.is_some_and(|f| f.node.is_empty_list()) {
        fields.field.error("`hosts` must name at least one host");
    }
    let resolution_field = fields.get("resolution");
    let resolution = match &resolution_field {
        Some(field) => field.choice(RESOLUTIONS)?,
        None => Resolution::None,
    };
    let entry = ServiceEntry {
        hosts: fields.each("hosts", |f| Some(host(f)?.to_ascii_lowercase().into())),
        addresses: fields.each("addresses", |f| address(f, resolution)),
        ports: ports(&fields),
        location: fields.get("location").and_then(|f| f.choice(LOCATIONS)).unwrap_or_default(),
        resolution,
        endpoints: fields.each("endpoints", workload_entry),
        workload_selector: fields
            .get("workloadSelector")
            .and_then(|f| Some(f.fields(&["labels"], &[], &[])?.string_map("labels"))),
        export_to: export_to(&fields),
        subject_alt_names: fields.strings("subjectAltNames"),
    };
    let blame = resolution_field.as_ref().unwrap_or(&fields.field);
    combination(&entry, &fields, &host_fields, blame);
    Some(entry)
}

fn host(field: &Field<'_>) -> Option<String> {
    let host = field.string()?;
    if host == "*" {
        field.error("`*` alone would take every host of the mesh; name a domain, such as *.example.com");
        return None;
    }
    if let Err(reason) = values::host_pattern(&host) {
        field.error(format!("\"{host}\" {reason}"));
        return None;
    }
    if !host.contains('.') {
        field.warn(format!("\"{host}\" has no dot: it matches that very name only"));
    }
    Some(host)
}

/// An address or a CIDR; one address is a network of its full length.
fn address(field: &Field<'_>, resolution: Resolution) -> Option<IpNet> {
    let text = field.string()?;
    if let Ok(ip) = text.parse::<std::net::IpAddr>() {
        return Some(IpNet::from(ip));
    }
    let Ok(net) = text.parse::<IpNet>() else {
        field.error(format!("\"{text}\" is neither an IP address nor a CIDR block"));
        return None;
    };
    if !matches!(resolution, Resolution::None | Resolution::Static) {
        field.error("a CIDR block goes with resolution NONE or STATIC only");
        return None;
    }
    Some(net.trunc())
}

fn ports(fields: &Fields<'_>) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for field in fields.items("ports") {
        let Some(given) = field.fields(&["number", "name", "protocol", "targetPort"], &[], &[]) else { continue };
        let number = given.require("number").and_then(|f| f.port());
        let name = given.require("name").and_then(|f| f.string());
        let protocol = given.string("protocol").unwrap_or_default();
        if let (Some(f), false) = (given.get("protocol"), protocol.is_empty()) {
            if !PROTOCOLS.contains(&protocol.to_ascii_uppercase().as_str()) {
                f.error(format!("\"{protocol}\" is not one of {}", PROTOCOLS.join(", ")));
            } else if protocol.eq_ignore_ascii_case("UDP") {
                f.warn("UDP is not captured: it leaves the pod as it is");
            }
        }
        let target_port = given.get("targetPort").filter(|f| f.node.text() != Some("0")).and_then(|f| f.port());
        let (Some(number), Some(name)) = (number, name) else { continue };
        if let (Some(f), false) = (given.get("name"), values::dns_label(&name)) {
            f.error(format!("\"{name}\" is not a port name: letters, digits and `-`, 63 at most"));
        }
        if let (Some(f), true) = (given.get("number"), ports.iter().any(|p| p.number == number)) {
            f.error(format!("port {number} is given twice"));
        }
        if let (Some(f), true) = (given.get("name"), ports.iter().any(|p| p.name == name)) {
            f.error(format!("port name \"{name}\" is given twice"));
        }
        ports.push(Port { number, name: name.into(), protocol: protocol.into(), target_port });
    }
    ports.shrink_to_fit();
    ports
}

/// Reads an endpoint (Istio WorkloadEntry).
fn workload_entry(field: &Field<'_>) -> Option<WorkloadEntry> {
    let read = &["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"];
    let fields = field.fields(read, &[], &[])?;
    let mut ports = BTreeMap::new();
    for (name, port) in fields.get("ports").map(|f| f.entries()).unwrap_or_default() {
        ports.extend(port.port().map(|number| (name.to_owned(), number)));
    }
    if let Some(field) = fields.get("network") {
        field.warn("not honoured yet");
    }
    Some(WorkloadEntry {
        address: fields.require("address")?.string()?,
        ports,
        labels: fields.string_map("labels"),
        network: fields.string("network").unwrap_or_default(),
        locality: fields.string("locality").unwrap_or_default(),
        weight: fields.get("weight").and_then(|f| f.number(0, u32::MAX)).unwrap_or_default(),
        service_account: fields.string("serviceAccount").unwrap_or_default(),
    })
}

/// `exportTo`: `.`, `*`, `~` or names of namespaces.
pub fn export_to(fields: &Fields<'_>) -> Vec<String> {
    let items = fields.items("exportTo");
    for field in &items {
        let known = |text: &&str| matches!(*text, "." | "*" | "~") || values::dns_label(text);
        if let Some(text) = field.node.text().filter(|text| !known(text)) {
            field.error(format!("\"{text}\" is neither `.`, `*`, `~` nor the name of a namespace"));
        }
    }
    if items.len() > 1 && items.iter().any(|f| f.node.text() == Some("~")) {
        fields.field.error("`exportTo: ~` means nobody and stands alone");
    }
    items.iter().filter_map(Field::string).collect()
}

/// What `resolution` asks of hosts, endpoints and ports.
fn combination(entry: &ServiceEntry, fields: &Fields<'_>, hosts: &[Field<'_>], blame: &Field<'_>) {
    let endpoint_fields = fields.items("endpoints");
    if let (Some(field), false) = (fields.get("workloadSelector"), endpoint_fields.is_empty()) {
        field.error("goes without `endpoints`: give one of the two");
    }
    match entry.resolution {
        Resolution::None => {
            if let (Some(field), false) = (fields.get("endpoints"), endpoint_fields.is_empty()) {
                field.error("resolution NONE goes to the address dialled: it takes no endpoints");
            }
        }
        Resolution::Static => {
            if endpoint_fields.is_empty() && entry.workload_selector.is_none() {
                blame.warn("resolution STATIC without endpoints or workloadSelector: nothing can be reached");
            }
            endpoint_fields.iter().for_each(|field| endpoint(field, entry, true));
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if endpoint_fields.is_empty() && entry.workload_selector.is_none() {
                for field in hosts.iter().filter(|f| f.node.text().is_some_and(|host| host.contains('*'))) {
                    let host = field.node.text().unwrap_or_default();
                    field
                        .error(format!("\"{host}\" cannot be resolved: resolution DNS wants full names, or endpoints"));
                }
            }
            if let (Resolution::DnsRoundRobin, Some(field)) = (entry.resolution, endpoint_fields.get(1)) {
                field.error("resolution DNS_ROUND_ROBIN takes one endpoint at most");
            }
            endpoint_fields.iter().for_each(|field| endpoint(field, entry, false));
        }
        Resolution::DynamicDns => {
            if let (Some(field), false) = (fields.get("endpoints"), endpoint_fields.is_empty()) {
                field.error("resolution DYNAMIC_DNS resolves the name asked for: it takes no endpoints");
            }
            for field in hosts.iter().filter(|f| f.node.text().is_some_and(|host| !host.starts_with("*."))) {
                field.error("resolution DYNAMIC_DNS is for wildcard hosts; use DNS for a full name");
            }
        }
    }
    let by_name = |port: &Port| {
        !matches!(port.protocol.to_ascii_uppercase().as_str(), "TCP" | "MONGO" | "MYSQL" | "REDIS" | "UDP")
    };
    let tcp = |port: &&Port| !port.protocol.is_empty() && !by_name(port);
    if entry.resolution != Resolution::None && entry.hosts.len() > 1 && entry.ports.iter().any(|p| tcp(&p)) {
        fields
            .field
            .error("several hosts on a TCP port cannot be told apart: only HTTP, HTTPS and TLS name their host");
    }
}

/// An endpoint's address and ports against its ServiceEntry.
fn endpoint(field: &Field<'_>, entry: &ServiceEntry, addresses_only: bool) {
    let Some(address) = field.node.get("address").and_then(|n| n.text()) else { return };
    let at = field.child("address", field.node.get("address").unwrap_or(field.node));
    if let Some(path) = address.strip_prefix("unix://") {
        if !addresses_only {
            at.error("a Unix socket is an endpoint of resolution STATIC only");
        } else if !path.starts_with('/') {
            at.error(format!("\"{address}\" must hold an absolute path"));
        } else if entry.ports.len() != 1 {
            at.error("a Unix socket is an endpoint of a ServiceEntry with exactly one port");
        }
        if field.node.get("ports").is_some() {
            at.error("a Unix socket has no ports");
        }
        return;
    }
    if address.parse::<std::net::IpAddr>().is_err() {
        if addresses_only {
            at.error(format!("\"{address}\" is not an IP address: resolution STATIC does not look names up"));
        } else if let Err(reason) = values::dns_name(address) {
            at.error(format!("\"{address}\" {reason}"));
        }
    }
    if let Some(ports) = field.node.get("ports") {
        let ports = field.child("ports", ports);
        for (name, port) in ports.entries() {
            if !entry.ports.iter().any(|p| p.name == name) {
                port.error(format!("the ServiceEntry has no port named \"{name}\""));
            }
        }
    }
}
