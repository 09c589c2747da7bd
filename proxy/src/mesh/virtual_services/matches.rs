//! What requests a route takes.

use std::collections::BTreeMap;

use http::HeaderName;

use super::super::routing::{Pattern, RequestMatch, TextMatch};
use crate::api::virtual_service::{HttpMatch, StringMatch};

/// What is wrong in a field (relative to the match), and what it means.
pub type Problem = (String, String);

/// The part of a match that requests decide. What cannot be compiled is left out and told: the route must refuse then,
/// for it matches more than was meant.
pub fn request_match(rule: &HttpMatch, problems: &mut Vec<Problem>) -> RequestMatch {
    let mut one = |field: &str, text: &Option<StringMatch>| {
        let text = text.as_ref()?;
        text_match(text).map_err(|why| problems.push((field.to_owned(), why))).ok()
    };
    RequestMatch {
        path: one("uri", &rule.uri),
        ignore_path_case: rule.ignore_uri_case,
        scheme: one("scheme", &rule.scheme),
        method: one("method", &rule.method),
        authority: one("authority", &rule.authority),
        headers: headers("headers", &rule.headers, problems),
        without_headers: headers("withoutHeaders", &rule.without_headers, problems),
        query: query(&rule.query_params, problems),
    }
}

fn headers(
    field: &str,
    rules: &BTreeMap<String, StringMatch>,
    problems: &mut Vec<Problem>,
) -> Vec<(HeaderName, TextMatch)> {
    let made = rules.iter().filter_map(|(name, text)| {
        let name_made = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            if name.starts_with('@') {
                format!("{name}: claims of a JWT are not read")
            } else {
                format!("{name} is no header name")
            }
        });
        let made = name_made.and_then(|name| Ok((name, value_match(text)?)));
        made.map_err(|why| problems.push((format!("{field}.{name}"), why))).ok()
    });
    made.collect()
}

fn query(rules: &BTreeMap<String, StringMatch>, problems: &mut Vec<Problem>) -> Vec<(String, TextMatch)> {
    let made = rules.iter().filter_map(|(name, text)| {
        let made = value_match(text).map_err(|why| problems.push((format!("queryParams.{name}"), why)));
        Some((name.clone(), made.ok()?))
    });
    made.collect()
}

/// Of headers and parameters the regex `*`, which is none, means any value (Istio `canBeConvertedToPresentMatch`).
fn value_match(text: &StringMatch) -> Result<TextMatch, String> {
    match text {
        StringMatch::Regex(expression) if expression == "*" => Ok(TextMatch::Present),
        text => text_match(text),
    }
}

pub fn text_match(text: &StringMatch) -> Result<TextMatch, String> {
    Ok(match text {
        StringMatch::Exact(text) => TextMatch::Exact(text.clone()),
        StringMatch::Prefix(text) => TextMatch::Prefix(text.clone()),
        StringMatch::PathPrefix(text) => TextMatch::PathPrefix(text.trim_end_matches('/').to_owned()),
        StringMatch::Regex(expression) => {
            TextMatch::Regex(Pattern::new(expression).map_err(|why| format!("{expression} is no expression: {why}"))?)
        }
        StringMatch::Present => TextMatch::Present,
    })
}

impl RequestMatch {
    /// No request gets past it (Istio `IsCatchAllRoute`).
    pub(in crate::mesh) fn takes_all(&self) -> bool {
        let path = match &self.path {
            None | Some(TextMatch::Present) => true,
            Some(TextMatch::Prefix(prefix)) => prefix.is_empty() || prefix == "/",
            Some(TextMatch::PathPrefix(prefix)) => prefix.is_empty(),
            Some(TextMatch::Regex(pattern)) => pattern.as_str() == ".*",
            Some(TextMatch::Exact(_)) => false,
        };
        path && self.scheme.is_none()
            && self.method.is_none()
            && self.authority.is_none()
            && self.headers.is_empty()
            && self.without_headers.is_empty()
            && self.query.is_empty()
    }
}
