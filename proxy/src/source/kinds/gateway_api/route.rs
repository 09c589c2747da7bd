//! HTTPRoute.

use std::time::Duration;

use super::{
    super::super::decode::{Field, Fields},
    GATEWAY, backend_ref,
    filters::{Filters, filters},
    hostname, matches, object_ref, section_name,
};
use crate::api::{
    gateway_api::{HttpBackend, HttpRoute, HttpRule, ParentRef, Retry},
    virtual_service::{HttpMatch, PathChange, StringMatch},
};

/// Reads an HTTPRoute.
pub fn http_route(root: &Fields<'_>) -> Option<HttpRoute> {
    let read = &["parentRefs", "hostnames", "rules"];
    let fields = root.require("spec")?.fields(read, &[], &["useDefaultGateways"])?;
    if fields.items("parentRefs").is_empty() {
        fields.field.warn("without `parentRefs` the route is attached to nothing");
    }
    let mut route = HttpRoute {
        parents: fields.each("parentRefs", parent),
        hostnames: fields.each("hostnames", |field| hostname(field, true)),
        rules: Vec::new(),
    };
    for field in fields.items("rules") {
        let Some(rule) = rule(&field) else { continue };
        if rule.name.is_some() && route.rules.iter().any(|other| other.name == rule.name) {
            field.error(format!("rule \"{}\" is given twice", rule.name.as_deref().unwrap_or_default()));
        }
        route.rules.push(rule);
    }
    if fields.get("rules").is_none() {
        // As the definition's default has it: one rule that takes everything and has no backend.
        route.rules.push(HttpRule::default());
    }
    Some(route)
}

pub fn parent(field: &Field<'_>) -> Option<ParentRef> {
    let read = &["group", "kind", "namespace", "name", "sectionName", "port"];
    let fields = field.fields(read, &[], &[])?;
    Some(ParentRef {
        object: object_ref(&fields, GATEWAY)?,
        section: fields.get("sectionName").filter(|f| f.node.text() != Some("")).and_then(|field| section_name(&field)),
        port: fields.get("port").and_then(|field| field.port()),
    })
}

fn rule(field: &Field<'_>) -> Option<HttpRule> {
    let read = &["name", "matches", "filters", "backendRefs", "timeouts", "retry"];
    let fields = field.fields(read, &[], &["sessionPersistence"])?;
    let Filters { headers, redirect, rewrite, mirrors } = filters(&fields, false);
    let (request_timeout, backend_timeout) =
        fields.get("timeouts").map_or((None, None), |field| timeouts(&field).unwrap_or_default());
    let rule = HttpRule {
        name: fields.get("name").and_then(|field| section_name(&field)),
        matches: fields.each("matches", matches::http_match),
        headers,
        redirect,
        rewrite,
        mirrors,
        request_timeout,
        backend_timeout,
        retry: fields.get("retry").and_then(|field| retry(&field)),
        backends: fields.each("backendRefs", backend),
    };
    check(&rule, &fields);
    Some(rule)
}

/// What fields must not say together.
fn check(rule: &HttpRule, fields: &Fields<'_>) {
    let at = |name: &str| fields.get(name).unwrap_or_else(|| fields.field.clone());
    if rule.redirect.is_some() && !rule.backends.is_empty() {
        at("backendRefs").error("filter RequestRedirect answers by itself: it takes no backends");
    }
    let replaces = |path: Option<&PathChange>| matches!(path, Some(PathChange::Prefix(_)));
    let prefix = replaces(rule.rewrite.as_ref().map(|rewrite| &rewrite.path))
        || replaces(rule.redirect.as_ref().map(|redirect| &redirect.path));
    let by_prefix = |one: &HttpMatch| matches!(one.uri, Some(StringMatch::PathPrefix(_)));
    // No match at all is the prefix `/`.
    if prefix && (rule.matches.len() > 1 || !rule.matches.iter().all(by_prefix)) {
        at("filters").error("replacePrefixMatch wants exactly one match, with a path of type PathPrefix");
    }
}

fn timeouts(field: &Field<'_>) -> Option<(Option<Duration>, Option<Duration>)> {
    let fields = field.fields(&["request", "backendRequest"], &[], &[])?;
    // Zero means no limit.
    let time = |name: &str| fields.get(name)?.duration_or_zero().filter(|time| !time.is_zero());
    let (request, backend) = (time("request"), time("backendRequest"));
    if let (Some(request), Some(backend), Some(field)) = (request, backend, fields.get("backendRequest"))
        && backend > request
    {
        field.error("must not be longer than `request`");
    }
    Some((request, backend))
}

fn retry(field: &Field<'_>) -> Option<Retry> {
    let fields = field.fields(&["codes", "attempts", "backoff"], &[], &[])?;
    let codes = fields.items("codes").into_iter().filter_map(|field| u16::try_from(field.number(400, 599)?).ok());
    Some(Retry {
        codes: codes.collect(),
        attempts: fields.get("attempts").and_then(|field| field.number(0, u32::from(u8::MAX))),
        backoff: fields.get("backoff").and_then(|field| field.duration()),
    })
}

fn backend(field: &Field<'_>) -> Option<HttpBackend> {
    let fields = field.fields(&["group", "kind", "namespace", "name", "port", "weight", "filters"], &[], &[])?;
    Some(HttpBackend {
        backend: backend_ref(&fields)?,
        weight: fields.get("weight").map_or(Some(1), |field| field.number(0, 1_000_000))?,
        headers: filters(&fields, true).headers,
    })
}
