//! `match` of an http route, and StringMatch wherever one stands.

use std::collections::BTreeMap;

use super::{
    super::super::decode::{Field, Fields},
    gateway_name,
};
use crate::{
    api::virtual_service::{HttpMatch, StringMatch},
    mesh::Pattern,
};

const READ: &[&str] = &[
    "name",
    "uri",
    "scheme",
    "method",
    "authority",
    "headers",
    "port",
    "sourceLabels",
    "gateways",
    "queryParams",
    "ignoreUriCase",
    "withoutHeaders",
    "sourceNamespace",
];

/// Reads an HTTPMatchRequest.
pub fn http_match(field: &Field<'_>) -> Option<HttpMatch> {
    let fields = field.fields(READ, &[], &["statPrefix"])?;
    let text = |name: &str| fields.get(name).and_then(|f| string_match(&f));
    fields.items("gateways").iter().for_each(gateway_name);
    let uri = text("uri");
    let ignore_uri_case = fields.get("ignoreUriCase").and_then(|f| f.boolean()).unwrap_or_default();
    if let (Some(at), Some(StringMatch::Regex(_)), true) = (fields.get("ignoreUriCase"), &uri, ignore_uri_case) {
        at.warn("does nothing to a regex: write (?i) in it");
    }
    Some(HttpMatch {
        name: fields.string("name").unwrap_or_default(),
        uri,
        ignore_uri_case,
        scheme: text("scheme"),
        method: text("method"),
        authority: text("authority"),
        headers: header_matches(&fields, "headers"),
        without_headers: header_matches(&fields, "withoutHeaders"),
        query_params: string_matches(&fields, "queryParams").into_iter().collect(),
        port: fields.get("port").and_then(|f| f.port()),
        gateways: fields.strings("gateways"),
        source_labels: fields.string_map("sourceLabels"),
        source_namespace: fields.string("sourceNamespace"),
    })
}

/// `{exact: …}`, `{prefix: …}` or `{regex: …}`; an empty one holds for any value.
pub fn string_match(field: &Field<'_>) -> Option<StringMatch> {
    let fields = field.fields(&["exact", "prefix", "regex"], &[], &[])?;
    let given: Vec<_> =
        ["exact", "prefix", "regex"].into_iter().filter_map(|name| Some((name, fields.get(name)?))).collect();
    let (name, value) = match given.as_slice() {
        [] => return Some(StringMatch::Present),
        [one] => one,
        _ => {
            field.error("must have one of `exact`, `prefix` and `regex`");
            return None;
        }
    };
    let text = value.string()?;
    Some(match *name {
        "exact" => StringMatch::Exact(text),
        "prefix" => StringMatch::Prefix(text),
        _ => {
            if let Err(why) = Pattern::new(&text) {
                value.error(format!("is not a regular expression (RE2): {why}"));
            }
            StringMatch::Regex(text)
        }
    })
}

fn string_matches(fields: &Fields<'_>, name: &str) -> Vec<(String, StringMatch)> {
    let entries = fields.get(name).map(|f| f.entries()).unwrap_or_default();
    let read = entries.into_iter().filter_map(|(key, value)| {
        // `x-token:` with nothing behind it: the header must be there.
        let matches = if value.node.is_null() { Some(StringMatch::Present) } else { string_match(&value) };
        Some((key.to_owned(), matches?))
    });
    read.collect()
}

/// Header names are compared in lower case; those of HTTP/2's pseudo-headers have fields of their own.
fn header_matches(fields: &Fields<'_>, name: &str) -> BTreeMap<String, StringMatch> {
    let mut found = BTreeMap::new();
    for (key, value) in string_matches(fields, name) {
        let lower = key.to_ascii_lowercase();
        if lower.starts_with(':') || http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
            if let Some(field) = fields.get(name) {
                field.error(format!("\"{}\" is not the name of a header", key.escape_debug()));
            }
            continue;
        }
        found.insert(lower, value);
    }
    found
}
