//! `matches` of a rule of an HTTPRoute.

use std::collections::BTreeMap;

use super::super::super::decode::{Field, Fields};
use crate::api::virtual_service::{HttpMatch, StringMatch};

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

#[derive(Clone, Copy)]
enum PathType {
    Exact,
    Prefix,
    Regex,
}

/// One match; a path that is not given is the prefix `/`.
pub fn http_match(field: &Field<'_>) -> Option<HttpMatch> {
    let fields = field.fields(&["path", "headers", "queryParams", "method"], &[], &[])?;
    let methods: Vec<_> = METHODS.iter().map(|name| (*name, *name)).collect();
    let method = fields.get("method").and_then(|field| field.choice(&methods));
    let headers = values(&fields, "headers", |field, name| {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            field.error(format!("\"{}\" is not a header name", name.escape_debug()));
        }
        name.to_ascii_lowercase()
    });
    Some(HttpMatch {
        uri: match fields.get("path") {
            Some(field) => path(&field),
            None => Some(StringMatch::PathPrefix("/".to_owned())),
        },
        method: method.map(|method| StringMatch::Exact(method.to_owned())),
        headers,
        query_params: values(&fields, "queryParams", |_, name| name.to_owned()),
        ..HttpMatch::default()
    })
}

fn path(field: &Field<'_>) -> Option<StringMatch> {
    let fields = field.fields(&["type", "value"], &[], &[])?;
    let types = &[("Exact", PathType::Exact), ("PathPrefix", PathType::Prefix), ("RegularExpression", PathType::Regex)];
    let kind = fields.get("type").map_or(Some(PathType::Prefix), |field| field.choice(types));
    let value = fields.get("value").map_or(Some("/".to_owned()), |field| field.string())?;
    let at = fields.get("value").unwrap_or_else(|| field.clone());
    match kind? {
        PathType::Regex => Some(StringMatch::Regex(value)),
        PathType::Exact => {
            plain_path(&at, &value);
            Some(StringMatch::Exact(value))
        }
        PathType::Prefix => {
            plain_path(&at, &value);
            // A trailing slash means nothing.
            let bare = value.strip_suffix('/').filter(|bare| !bare.is_empty()).unwrap_or(&value);
            Some(StringMatch::PathPrefix(bare.to_owned()))
        }
    }
}

/// A path that some client could ask for after normalization.
fn plain_path(field: &Field<'_>, path: &str) {
    let lower = path.to_ascii_lowercase();
    if !path.starts_with('/') {
        field.error("must begin with `/`");
    } else if let Some(part) = ["//", "/./", "/../", "%2f", "#"].iter().find(|part| lower.contains(**part)) {
        field.error(format!("must not have `{part}` in it"));
    } else if let Some(end) = ["/..", "/."].iter().find(|end| path.ends_with(**end)) {
        field.error(format!("must not end in `{end}`"));
    }
}

/// `headers` or `queryParams`: of several with one name the first counts.
fn values(
    fields: &Fields<'_>,
    list: &str,
    canonical: impl Fn(&Field<'_>, &str) -> String,
) -> BTreeMap<String, StringMatch> {
    let mut found = BTreeMap::new();
    for field in fields.items(list) {
        let Some(given) = field.fields(&["type", "name", "value"], &[], &[]) else { continue };
        let regex = given
            .get("type")
            .map_or(Some(false), |field| field.choice(&[("Exact", false), ("RegularExpression", true)]));
        let (Some(at), value) = (given.require("name"), given.require("value").and_then(|field| field.string())) else {
            continue;
        };
        let (Some(name), Some(value), Some(regex)) = (at.string(), value, regex) else { continue };
        let name = canonical(&at, &name);
        if found.contains_key(&name) {
            at.error(format!("\"{name}\" is given twice"));
            continue;
        }
        found.insert(name, if regex { StringMatch::Regex(value) } else { StringMatch::Exact(value) });
    }
    found
}
