//! networking.istio.io VirtualService, checked as Istio's own validation does.

mod actions;
mod l4;
mod matches;

pub use actions::retries;

use super::{
    super::{
        decode::{Field, Fields},
        values,
    },
    service_entry::export_to,
};
use crate::api::virtual_service::{Destination, HttpDestination, HttpRoute, VirtualService};

const ROUTE_READ: &[&str] = &[
    "name",
    "match",
    "route",
    "redirect",
    "directResponse",
    "delegate",
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirrorPercent",
    "mirrorPercentage",
    "corsPolicy",
    "headers",
];

/// Reads a VirtualService. One without hosts is a delegate.
pub fn virtual_service(root: &Fields<'_>) -> Option<VirtualService> {
    let fields = root.require("spec")?.fields(&["hosts", "gateways", "http", "tls", "tcp", "exportTo"], &[], &[])?;
    let gateways = fields.strings("gateways");
    for field in fields.items("gateways") {
        gateway_name(&field);
    }
    let mesh = gateways.is_empty() || gateways.iter().any(|name| name == "mesh");
    let host_fields = fields.items("hosts");
    let mut hosts: Vec<String> = Vec::new();
    for field in &host_fields {
        let Some(name) = field.string() else { continue };
        let name = name.to_ascii_lowercase();
        if name == "*" && mesh {
            field.error("`*` goes with gateways only: in the mesh it would take every host");
        } else if name.parse::<std::net::IpAddr>().is_err()
            && let Err(reason) = values::host_pattern(&name)
        {
            field.error(format!("\"{name}\" {reason}"));
        }
        if hosts.contains(&name) {
            field.error(format!("\"{name}\" is given twice"));
        }
        hosts.push(name);
    }
    hosts.shrink_to_fit();
    let delegate = hosts.is_empty();
    if delegate && !gateways.is_empty() {
        fields.field.error("without `hosts` it is a delegate, whose gateways are those of who delegates to it");
    }
    let http = fields.each("http", http_route);
    let tls = fields.each("tls", |field| l4::tls_route(field, &hosts));
    let tcp = fields.each("tcp", l4::tcp_route);
    if http.is_empty() && tls.is_empty() && tcp.is_empty() {
        fields.field.error("one of `http`, `tls` and `tcp` must have a route");
    }
    if delegate {
        for name in ["tls", "tcp"] {
            if let Some(field) = fields.get(name) {
                field.error("a delegate (a VirtualService without hosts) has `http` routes only");
            }
        }
        for (field, _) in fields.items("http").iter().zip(&http).filter(|(_, route)| route.delegate.is_some()) {
            field.error("a delegate cannot delegate any further");
        }
    }
    Some(VirtualService { hosts, gateways, http, tls, tcp, export_to: export_to(&fields), ..VirtualService::default() })
}

/// `mesh`, `name` or `namespace/name`.
fn gateway_name(field: &Field<'_>) {
    let Some(name) = field.string() else { return };
    let parts: Vec<_> = name.split('/').collect();
    let known = match parts.as_slice() {
        [name] => values::dns_label(name) || values::dns_name(name).is_ok(),
        [namespace, name] => (values::dns_label(namespace) || *namespace == ".") && values::dns_name(name).is_ok(),
        _ => false,
    };
    if !known {
        field.error(format!("\"{name}\" is neither `mesh` nor the name of a Gateway (`name` or `namespace/name`)"));
    }
}

fn http_route(field: &Field<'_>) -> Option<HttpRoute> {
    let fields = field.fields(ROUTE_READ, &[], &[])?;
    let mut route = fields.each("route", http_destination);
    if let [only] = route.as_mut_slice() {
        // A single destination takes all, whatever its weight.
        only.weight = only.weight.max(1);
    }
    if route.len() > 1 && route.iter().all(|to| to.weight == 0) {
        fields.field.error("the weights of `route` are all 0: no destination gets anything");
    }
    let actions: Vec<_> = ["route", "redirect", "directResponse", "delegate"]
        .into_iter()
        .filter(|name| fields.get(name).is_some_and(|f| !f.node.is_empty_list()))
        .collect();
    match actions.as_slice() {
        [_] => {}
        [] => fields.field.error("says nothing to do: give `route`, `redirect`, `directResponse` or `delegate`"),
        [first, rest @ ..] => {
            fields.field.error(format!("`{first}` and `{}` exclude each other", rest.join("`, `")));
        }
    }
    let elsewhere = fields.get("redirect").is_some() || fields.get("directResponse").is_some();
    // Beside `delegate` they are what routes of the delegate have where they say nothing themselves.
    for name in ["rewrite", "retries", "timeout", "mirror", "mirrors"] {
        if let Some(field) = fields.get(name).filter(|_| elsewhere) {
            let message = format!("goes with `route`; beside `{}` it does nothing", actions.last().unwrap_or(&""));
            if name == "rewrite" { field.error(message) } else { field.warn(message) }
        }
    }
    Some(HttpRoute {
        name: fields.string("name").unwrap_or_default(),
        matches: fields.each("match", matches::http_match),
        route,
        redirect: fields.get("redirect").and_then(|f| actions::redirect(&f)),
        direct_response: fields.get("directResponse").and_then(|f| actions::direct_response(&f)),
        delegate: fields.get("delegate").and_then(|f| actions::delegate(&f)),
        rewrite: fields.get("rewrite").and_then(|f| actions::rewrite(&f)),
        // Zero switches the limit off.
        timeout: fields.get("timeout").and_then(|f| f.duration_or_zero()).filter(|time| !time.is_zero()),
        retries: fields.get("retries").and_then(|f| actions::retries(&f)),
        fault: fields.get("fault").and_then(|f| actions::fault(&f)),
        mirrors: actions::mirrors(&fields),
        cors_policy: fields.get("corsPolicy").and_then(|f| actions::cors(&f)),
        headers: fields.get("headers").map(|f| actions::headers(&f)).unwrap_or_default(),
        ..HttpRoute::default()
    })
}

fn http_destination(field: &Field<'_>) -> Option<HttpDestination> {
    let fields = field.fields(&["destination", "weight", "headers"], &[], &[])?;
    Some(HttpDestination {
        destination: destination(&fields.require("destination")?)?,
        weight: weight(&fields),
        headers: fields.get("headers").map(|f| actions::headers(&f)).unwrap_or_default(),
        invalid: None,
    })
}

fn weight(fields: &Fields<'_>) -> u32 {
    fields.get("weight").and_then(|f| f.number(0, i32::MAX.unsigned_abs())).unwrap_or_default()
}

fn destination(field: &Field<'_>) -> Option<Destination> {
    let fields = field.fields(&["host", "subset", "port"], &[], &[])?;
    let host = fields.require("host")?;
    let name = host.string()?.to_ascii_lowercase();
    if name.contains('*') {
        host.error("a destination is one service: no wildcard");
    } else if name.parse::<std::net::IpAddr>().is_err()
        && let Err(reason) = values::dns_name(&name)
    {
        host.error(format!("\"{name}\" {reason}"));
    }
    let subset = fields.string("subset");
    if let (Some(at), Some(name)) = (fields.get("subset"), &subset)
        && !values::dns_label(name)
    {
        at.error(format!("\"{name}\" is not a subset name: letters, digits and `-`, 63 at most"));
    }
    let port = fields.get("port").and_then(|f| f.fields(&["number"], &[], &[])?.require("number")?.port());
    Some(Destination { host: name, subset, port })
}
