//! `delegate`: the routes of another VirtualService under the match of the one that delegates. One level, merged as Istio
//! merges (`mergeHTTPRoutes`).

use std::sync::Arc;

use super::{
    super::{findings::Findings, names::Visibility},
    HttpRule,
};
use crate::api::{
    Object, Objects,
    virtual_service::{Headers, HttpMatch, HttpRoute, StringMatch, VirtualService},
};

/// The `http` entries of `object`, with delegates in the place of those that delegate.
pub fn http_rules(object: &Arc<Object<VirtualService>>, objects: &Objects, findings: &mut Findings) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for (index, rule) in object.spec.http.iter().enumerate() {
        match found(object, rule, objects) {
            None => rules.push(HttpRule { object: object.clone(), index, merged: None, refused: None }),
            Some(Ok(delegate)) => rules.extend(merged(object, (index, rule), delegate, findings)),
            Some(Err(why)) => {
                let field = format!("spec.http[{index}].delegate");
                findings.error(object, &field, format!("{why}: requests that this route takes are refused"));
                let refused = Some(format!("{}: {field}: {why}", object.id).into());
                rules.push(HttpRule { object: object.clone(), index, merged: None, refused });
            }
        }
    }
    rules
}

/// The VirtualService that `rule` delegates to, or why it cannot. None: it does not delegate.
pub fn found<'a>(
    object: &Object<VirtualService>,
    rule: &HttpRoute,
    objects: &'a Objects,
) -> Option<Result<&'a Arc<Object<VirtualService>>, String>> {
    let delegate = rule.delegate.as_ref()?;
    let own = object.meta.namespace.as_str();
    let namespace = delegate.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(own);
    let name = format!("VirtualService {namespace}/{}", delegate.name);
    let Some(other) = objects.virtual_services.get(namespace, &delegate.name) else {
        return Some(Err(format!("there is no {name}")));
    };
    let visible = Visibility::new(other.spec.export_to.iter().map(String::as_str), &other.meta.namespace);
    Some(if !visible.holds(own) {
        Err(format!("{name} is not exported to namespace {own}"))
    } else if !other.spec.hosts.is_empty() {
        Err(format!("{name} has hosts of its own, a delegate must have none"))
    } else if other.spec.http.iter().any(|rule| rule.delegate.is_some()) {
        Err(format!("{name} delegates further, which only one level may"))
    } else {
        Ok(other)
    })
}

fn merged(
    object: &Object<VirtualService>,
    (index, root): (usize, &HttpRoute),
    delegate: &Arc<Object<VirtualService>>,
    findings: &mut Findings,
) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for (at, rule) in delegate.spec.http.iter().enumerate() {
        match merge(root, rule) {
            Some(merged) => rules.push(HttpRule {
                object: delegate.clone(),
                index: at,
                merged: Some(Box::new(merged)),
                refused: None,
            }),
            None => {
                let message = format!(
                    "not within what {} delegates by spec.http[{index}].match (expressions never are): this route is ignored there",
                    object.id
                );
                findings.warn(delegate, &format!("spec.http[{at}].match"), message);
            }
        }
    }
    rules
}

/// None: the delegate's matches are not within the root's.
fn merge(root: &HttpRoute, rule: &HttpRoute) -> Option<HttpRoute> {
    let mut merged = rule.clone();
    merged.matches = merge_matches(&root.matches, &rule.matches)?;
    merged.name = joined(&root.name, &rule.name);
    merged.rewrite = rule.rewrite.clone().or_else(|| root.rewrite.clone());
    merged.timeout = rule.timeout.or(root.timeout);
    merged.retries = rule.retries.clone().or_else(|| root.retries.clone());
    merged.fault = rule.fault.clone().or_else(|| root.fault.clone());
    merged.cors_policy = rule.cors_policy.clone().or_else(|| root.cors_policy.clone());
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
    if merged.headers == Headers::default() {
        merged.headers = root.headers.clone();
    }
    Some(merged)
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        (name, "") | ("", name) => name.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

fn merge_matches(root: &[HttpMatch], own: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || own.is_empty() {
        return Some(if root.is_empty() { own } else { root }.to_vec());
    }
    let mut merged = Vec::new();
    for own in own {
        let before = merged.len();
        merged.extend(root.iter().filter(|root| within(own, root)).map(|root| merge_match(root, own)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatch, own: &HttpMatch) -> HttpMatch {
    let mut merged = own.clone();
    merged.name = joined(&root.name, &own.name);
    for (merged, root) in [
        (&mut merged.uri, &root.uri),
        (&mut merged.scheme, &root.scheme),
        (&mut merged.method, &root.method),
        (&mut merged.authority, &root.authority),
    ] {
        if merged.is_none() {
            merged.clone_from(root);
        }
    }
    for (merged, root) in [
        (&mut merged.headers, &root.headers),
        (&mut merged.without_headers, &root.without_headers),
        (&mut merged.query_params, &root.query_params),
    ] {
        for (name, text) in root {
            merged.entry(name.clone()).or_insert_with(|| text.clone());
        }
    }
    merged.port = own.port.or(root.port);
    // Of a delegate they do not count (Istio's API says so); the root's decide.
    merged.source_labels.clone_from(&root.source_labels);
    merged.source_namespace.clone_from(&root.source_namespace);
    merged.gateways.clone_from(&root.gateways);
    merged
}

/// Whatever `own` takes, `root` takes too, as far as can be told.
fn within(own: &HttpMatch, root: &HttpMatch) -> bool {
    let texts = [
        (&own.uri, &root.uri),
        (&own.scheme, &root.scheme),
        (&own.method, &root.method),
        (&own.authority, &root.authority),
    ];
    texts.iter().all(|(own, root)| match (own, root) {
        (Some(own), Some(root)) => text_within(own, root),
        _ => true,
    }) && [
        (&own.headers, &root.headers),
        (&own.without_headers, &root.without_headers),
        (&own.query_params, &root.query_params),
    ]
    .iter()
    .all(|(own, root)| own.iter().all(|(name, own)| root.get(name).is_none_or(|root| text_within(own, root))))
        && own.ignore_uri_case == root.ignore_uri_case
        && (own.port.is_none() || root.port.is_none() || own.port == root.port)
}

fn text_within(own: &StringMatch, root: &StringMatch) -> bool {
    match (own, root) {
        (StringMatch::Regex(_), _) | (_, StringMatch::Regex(_)) => false,
        (_, StringMatch::Present) => true,
        (StringMatch::Exact(own), StringMatch::Exact(root)) => own == root,
        (StringMatch::Exact(own) | StringMatch::Prefix(own), StringMatch::Prefix(root)) => own.starts_with(root),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_what() {
        let exact = |text: &str| StringMatch::Exact(text.to_owned());
        let prefix = |text: &str| StringMatch::Prefix(text.to_owned());
        let regex = |text: &str| StringMatch::Regex(text.to_owned());
        for (own, root, want) in [
            (exact("/a"), exact("/a"), true),
            (exact("/b"), exact("/a"), false),
            (prefix("/a"), exact("/a"), false),
            (exact("/a/b"), prefix("/a"), true),
            (prefix("/a/b"), prefix("/a"), true),
            (prefix("/a"), prefix("/a/b"), false),
            (regex("/a"), prefix("/"), false),
            (exact("/a"), regex("/a"), false),
            (exact("x"), StringMatch::Present, true),
            (StringMatch::Present, exact("x"), false),
        ] {
            assert_eq!(text_within(&own, &root), want, "{own:?} in {root:?}");
        }
    }
}
