//! TLSRoute, in all its versions: later ones only forbid more.

use super::{
    super::super::decode::{Field, Fields},
    backend_ref, hostname,
    route::parent,
    section_name,
};
use crate::api::gateway_api::{TlsBackend, TlsRoute, TlsRule};

/// Reads a TLSRoute.
pub fn tls_route(root: &Fields<'_>) -> Option<TlsRoute> {
    let read = &["parentRefs", "hostnames", "rules"];
    let fields = root.require("spec")?.fields(read, &[], &["useDefaultGateways"])?;
    if fields.items("parentRefs").is_empty() {
        fields.field.warn("without `parentRefs` the route is attached to nothing");
    }
    let route = TlsRoute {
        parents: fields.each("parentRefs", parent),
        hostnames: fields.each("hostnames", |field| hostname(field, true)),
        rules: fields.each("rules", rule),
    };
    match fields.items("rules").as_slice() {
        [] => fields.field.error("`rules` must have at least one entry"),
        [_] => {}
        [_, second, ..] => {
            second.warn("every rule of a TLSRoute takes the same connections: only the first one counts")
        }
    }
    Some(route)
}

fn rule(field: &Field<'_>) -> Option<TlsRule> {
    let fields = field.fields(&["name", "backendRefs"], &[], &[])?;
    if fields.items("backendRefs").is_empty() {
        fields.field.warn("without `backendRefs` connections are reset");
    }
    Some(TlsRule {
        name: fields.get("name").and_then(|field| section_name(&field)),
        backends: fields.each("backendRefs", backend),
    })
}

fn backend(field: &Field<'_>) -> Option<TlsBackend> {
    let fields = field.fields(&["group", "kind", "namespace", "name", "port", "weight"], &[], &[])?;
    Some(TlsBackend {
        backend: backend_ref(&fields)?,
        weight: fields.get("weight").map_or(Some(1), |field| field.number(0, 1_000_000))?,
    })
}
