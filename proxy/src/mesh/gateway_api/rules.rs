//! Rules of an HTTPRoute to routes of a VirtualService, one for each match, with their rank among others
//! (Istio `convertHTTPRoute`, `sortHTTPRoutes`).

use super::{super::findings::Findings, backends::Backends, status::Fault, written};
use crate::{
    api::{
        Object, Written,
        gateway_api::{HttpRoute as Spec, HttpRule},
        virtual_service::{
            DirectResponse, HttpDestination, HttpMatch, HttpRoute, Mirror, PathChange, Retries, StringMatch,
        },
    },
    limits,
};

/// One rule under one of its matches.
#[derive(Clone, Debug)]
pub struct Made {
    pub route: HttpRoute,
    pub rank: Rank,
    /// Fields, relative to the entry of `http`, and what they were made from.
    pub fields: Vec<(String, Written)>,
}

/// Greater goes first: exact paths, then prefixes, then expressions; the longer path; a method; more headers; more query
/// parameters (GEP 1426 and the HTTPRouteRule reference). Between equals the older route, then the earlier rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    path: u8,
    length: usize,
    method: bool,
    headers: usize,
    query: usize,
}

impl Rank {
    fn new(given: &HttpMatch) -> Self {
        let (path, length) = match &given.uri {
            Some(StringMatch::Exact(path)) => (3, path.len()),
            Some(StringMatch::PathPrefix(path) | StringMatch::Prefix(path)) => (2, path.len()),
            Some(StringMatch::Regex(path)) => (1, path.len()),
            Some(StringMatch::Present) | None => (0, 0),
        };
        let (headers, query) = (given.headers.len(), given.query_params.len());
        Self { path, length, method: given.method.is_some(), headers, query }
    }
}

/// What conditions routes are made under.
pub struct Maker<'a> {
    pub object: &'a Object<Spec>,
    pub backends: &'a Backends<'a>,
    /// Whether backends of other namespaces want a ReferenceGrant. Istio asks for none in the mesh.
    pub granted: bool,
}

impl Maker<'_> {
    /// All rules, in order; `faults` gets what is wrong with their backends.
    pub fn routes(&self, faults: &mut Vec<Fault>, findings: &mut Findings) -> Vec<Made> {
        let mut made = Vec::new();
        for (at, rule) in self.object.spec.rules.iter().enumerate() {
            let (route, fields) = self.route(at, rule, faults, findings);
            let every = HttpMatch { uri: Some(StringMatch::PathPrefix("/".to_owned())), ..HttpMatch::default() };
            let matches = if rule.matches.is_empty() { std::slice::from_ref(&every) } else { &rule.matches };
            for (index, given) in matches.iter().enumerate() {
                let mut fields = fields.clone();
                for (field, other) in [("", ""), (".uri", ".path"), (".queryParams", ".queryParams")] {
                    let other = self.written(at, &format!(".matches[{index}]{other}"));
                    fields.push((format!(".match[0]{field}"), other));
                }
                let mut route = HttpRoute { matches: vec![given.clone()], ..route.clone() };
                keep_root_slash(given, &mut route);
                made.push(Made { route, rank: Rank::new(given), fields });
            }
        }
        made
    }

    /// The rule without its matches.
    fn route(
        &self,
        at: usize,
        rule: &HttpRule,
        faults: &mut Vec<Fault>,
        findings: &mut Findings,
    ) -> (HttpRoute, Vec<(String, Written)>) {
        let meta = &self.object.meta;
        let mut fields = vec![
            (String::new(), self.written(at, "")),
            (".headers".to_owned(), self.written(at, ".filters")),
            (".redirect".to_owned(), self.written(at, ".filters")),
            (".rewrite".to_owned(), self.written(at, ".filters")),
            (".timeout".to_owned(), self.written(at, ".timeouts.request")),
            (".retries".to_owned(), self.written(at, ".retry")),
            (".retries.perTryTimeout".to_owned(), self.written(at, ".timeouts.backendRequest")),
        ];
        let mut route = HttpRoute {
            name: rule.name.clone().unwrap_or_else(|| format!("{}.{}.{at}", meta.namespace, meta.name)),
            source: Some(self.object.id.clone()),
            redirect: rule.redirect.clone(),
            rewrite: rule.rewrite.clone(),
            timeout: rule.request_timeout,
            retries: retries(rule),
            headers: rule.headers.clone(),
            ..HttpRoute::default()
        };
        for filter in &rule.mirrors {
            let field = format!(".filters[{}].requestMirror.backendRef", filter.filter);
            match self.backends.destination(&filter.backend, (self.object.id.kind, &meta.namespace), self.granted) {
                Ok(destination) => {
                    fields.push((format!(".mirrors[{}]", route.mirrors.len()), self.written(at, &field)));
                    route.mirrors.push(Mirror { destination, percentage: filter.share });
                }
                Err(fault) => {
                    let message = format!("{}: nothing is mirrored to it", fault.message);
                    findings.error(self.object, &format!("spec.rules[{at}]{field}"), message);
                    faults.push(fault);
                }
            }
        }
        for (index, backend) in rule.backends.iter().enumerate() {
            let field = format!(".backendRefs[{index}]");
            let (destination, invalid) =
                match self.backends.destination(&backend.backend, (self.object.id.kind, &meta.namespace), self.granted)
                {
                    Ok(destination) => (destination, None),
                    Err(fault) => {
                        let message = format!("{}: its share of the requests gets 500", fault.message);
                        findings.error(self.object, &format!("spec.rules[{at}]{field}"), message);
                        let why = format!("{}: spec.rules[{at}]{field}: {}", self.object.id, fault.message);
                        faults.push(fault);
                        (Default::default(), Some(why))
                    }
                };
            let to = format!(".route[{index}]");
            fields.push((format!("{to}.destination.host"), self.written(at, &format!("{field}.name"))));
            fields.push((format!("{to}.destination"), self.written(at, &field)));
            fields.push((format!("{to}.headers"), self.written(at, &format!("{field}.filters"))));
            fields.push((to, self.written(at, &field)));
            let (weight, headers) = (backend.weight, backend.headers.clone());
            route.route.push(HttpDestination { destination, weight, headers, invalid });
        }
        if route.redirect.is_none() && route.route.iter().all(|to| to.weight == 0) {
            // As the specification wants it where nothing may get the request.
            route.route.clear();
            route.direct_response = Some(DirectResponse { status: 500, body: Vec::new() });
        }
        (route, fields)
    }

    fn written(&self, rule: usize, field: &str) -> Written {
        written(self.object, format!("spec.rules[{rule}]{field}"))
    }
}

/// A prefix that is no more than `/` has the slash after which the rest of the path begins.
fn keep_root_slash(given: &HttpMatch, route: &mut HttpRoute) {
    if given.uri != Some(StringMatch::PathPrefix("/".to_owned())) {
        return;
    }
    let changes = [
        route.rewrite.as_mut().map(|rewrite| &mut rewrite.path),
        route.redirect.as_mut().map(|redirect| &mut redirect.path),
    ];
    for change in changes.into_iter().flatten() {
        if let PathChange::Prefix(prefix) = change {
            prefix.push('/');
        }
    }
}

/// None: the default ones. As Istio does, `retry` adds its codes to the conditions of the default policy.
fn retries(rule: &HttpRule) -> Option<Retries> {
    if rule.retry.is_none() && rule.backend_timeout.is_none() {
        return None;
    }
    let mut retries =
        Retries { attempts: limits::RETRIES, per_try_timeout: rule.backend_timeout, ..Retries::default() };
    if let Some(retry) = &rule.retry {
        retries.attempts = retry.attempts.unwrap_or(limits::RETRIES);
        retries.backoff = retry.backoff;
        let conditions = ["connect-failure", "refused-stream", "unavailable", "cancelled"].map(str::to_owned);
        retries.retry_on = conditions.into_iter().chain(retry.codes.iter().map(ToString::to_string)).collect();
    }
    Some(retries)
}
