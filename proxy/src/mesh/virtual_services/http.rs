//! HTTP routes of one VirtualService, as one client on one port follows them.

use std::sync::Arc;

use http::{HeaderValue, header::HOST};

use super::{
    super::{
        findings::Findings,
        host::is_authority,
        routing::{
            Action, ClusterRef, Cors, DirectResponse, Fault, Forward, HeaderRules, Mirror, PathChange, Redirect,
            RedirectPort, RequestMatch, RewritePattern, Route, WeightedDestination,
        },
    },
    HttpRule, Resolved, RouteContext, headers,
    matches::{request_match, text_match},
    retries,
};
use crate::api::{
    Severity,
    virtual_service::{CorsPolicy, Headers, HttpMatch, HttpRoute, Redirect as RedirectRule},
};

/// The routes in order, one for each match that this client may meet. Ends with the first that takes every request, for
/// nothing gets past it. Empty: the VirtualService has nothing to say here.
pub fn http_routes(service: &Resolved, context: &RouteContext<'_>, findings: &mut Findings) -> Vec<Arc<Route>> {
    let mut routes = Vec::new();
    for rule in &service.http {
        let matches = &rule.rule().matches;
        let none = matches.is_empty().then_some(None);
        let given = matches
            .iter()
            .enumerate()
            .filter(|(_, given)| context.caller.may_match(given, context.port, &rule.object.meta.namespace));
        for given in none.into_iter().chain(given.map(Some)) {
            let route = Maker { service, rule, context, findings, refused: None }.route(given);
            let last = route.matches.takes_all();
            routes.push(Arc::new(route));
            if last {
                return routes;
            }
        }
    }
    routes
}

/// Tells what is wrong in the routes themselves, whoever may use them.
pub fn check_routes(service: &Resolved, context: &RouteContext<'_>, findings: &mut Findings) {
    for rule in &service.http {
        Maker { service, rule, context, findings, refused: None }.route(None);
    }
}

struct Maker<'a> {
    service: &'a Resolved,
    rule: &'a HttpRule,
    context: &'a RouteContext<'a>,
    findings: &'a mut Findings,
    /// Why the route must refuse: something in it cannot be honoured.
    refused: Option<Arc<str>>,
}

impl Maker<'_> {
    fn route(mut self, given: Option<(usize, &HttpMatch)>) -> Route {
        let rule = self.rule.rule();
        let mut name = rule.name.clone();
        let mut matches = RequestMatch::default();
        if let Some((at, given)) = given {
            if !given.name.is_empty() {
                name = format!("{name}.{}", given.name);
            }
            let mut problems = Vec::new();
            matches = request_match(given, &mut problems);
            for (field, why) in problems {
                self.refuse(&format!("match[{at}].{field}"), &why);
            }
        }
        let (request_headers, response_headers, authority) = self.headers("headers", &rule.headers);
        let cors = rule.cors_policy.as_ref().map(|policy| Arc::new(self.cors(policy)));
        let action = match &self.rule.refused {
            Some(why) => Action::Refuse(why.clone()),
            None => self.action(rule, authority),
        };
        Route {
            name: name.into(),
            source: Some(rule.source.clone().unwrap_or_else(|| self.service.object.id.clone())),
            matches,
            action: self.refused.map_or(action, Action::Refuse),
            request_headers,
            response_headers,
            cors,
            fault: rule.fault.as_ref().map(|fault| Fault { delay: fault.delay, abort: fault.abort }),
        }
    }

    fn action(&mut self, rule: &HttpRoute, authority: Option<String>) -> Action {
        if let Some(redirect) = &rule.redirect {
            return self.redirect(redirect);
        }
        if let Some(direct) = &rule.direct_response {
            return Action::Direct(DirectResponse { status: direct.status, body: direct.body.clone().into() });
        }
        self.forward(rule, authority)
    }

    fn redirect(&mut self, rule: &RedirectRule) -> Action {
        if !matches!(rule.code, 301 | 302 | 303 | 307 | 308) {
            self.refuse("redirect.redirectCode", &format!("{} is no redirect", rule.code));
        }
        // The port that was asked for is static here: at a gateway it is not what the listener is bound to.
        let port = rule.port.map(|port| match port {
            RedirectPort::Request => RedirectPort::Number(self.context.port),
            other => other,
        });
        let authority = rule.authority.clone().filter(|authority| !authority.is_empty());
        let authority = self.authority("redirect.authority", authority);
        Action::Redirect(Redirect {
            path: rule.path.clone(),
            authority,
            port,
            scheme: rule.scheme.clone().filter(|scheme| !scheme.is_empty()),
            code: rule.code,
        })
    }

    fn forward(&mut self, rule: &HttpRoute, authority: Option<String>) -> Action {
        let mut rewrite_authority = authority;
        let (mut rewrite_path, mut rewrite_pattern) = (PathChange::Keep, None);
        if let Some(rewrite) = &rule.rewrite {
            let given = rewrite.authority.clone().filter(|authority| !authority.is_empty());
            rewrite_authority = self.authority("rewrite.authority", given).or(rewrite_authority);
            rewrite_path = rewrite.path.clone();
            if let PathChange::Regex { pattern, substitution } = &rewrite.path {
                match rewrite_rule(pattern, substitution) {
                    Ok(made) => rewrite_pattern = Some(made),
                    Err(why) => self.refuse("rewrite.uriRegexRewrite", &why),
                }
            }
        }
        let (retries, remarks) = retries::policy(rule.retries.as_ref());
        for (field, remark) in remarks {
            self.warn(&format!("retries.{field}"), remark);
        }
        let (destinations, authority) = self.destinations(rule);
        let mirrors = rule.mirrors.iter().filter(|mirror| mirror.percentage > 0).map(|mirror| Mirror {
            cluster: self.context.resolve(&mirror.destination, &self.rule.object),
            share: mirror.percentage,
        });
        Action::Forward(Box::new(Forward {
            destinations,
            rewrite_path,
            rewrite_pattern,
            rewrite_authority: rewrite_authority.or(authority),
            timeout: rule.timeout.filter(|timeout| !timeout.is_zero()),
            retries,
            mirrors: mirrors.collect(),
        }))
    }

    /// Never empty; and the authority that the only one asks for.
    fn destinations(&mut self, rule: &HttpRoute) -> (Vec<WeightedDestination>, Option<String>) {
        let single = rule.route.len() == 1;
        let weighted = rule.route.iter().any(|to| to.weight > 0);
        let mut destinations = Vec::new();
        let mut only = None;
        for (at, to) in rule.route.iter().enumerate() {
            if to.weight == 0 && weighted {
                continue;
            }
            let field = format!("route[{at}].headers");
            let (mut request_headers, response_headers, authority) = self.headers(&field, &to.headers);
            match authority {
                Some(authority) if single => only = Some(authority),
                // Stands where that of the whole route is not given.
                Some(authority) => match HeaderValue::from_str(&authority) {
                    Ok(host) => request_headers.set.push((HOST, host)),
                    Err(_) => self.refuse(&format!("{field}.request"), &format!("{authority} is no header value")),
                },
                None => {}
            }
            let cluster = match &to.invalid {
                Some(why) => ClusterRef::Invalid { why: why.as_str().into() },
                None => self.context.resolve(&to.destination, &self.rule.object),
            };
            let weight = if single { 1 } else { to.weight };
            destinations.push(WeightedDestination { cluster, weight, request_headers, response_headers });
        }
        if destinations.is_empty() {
            let why: Arc<str> = format!("{}: the route has no destination", self.rule.object.id).into();
            if !self.service.is_gateway_api() {
                self.refuse("route", "no destination");
            }
            destinations.push(WeightedDestination {
                cluster: ClusterRef::Invalid { why },
                weight: 1,
                request_headers: HeaderRules::default(),
                response_headers: HeaderRules::default(),
            });
        }
        (destinations, only)
    }

    fn headers(&mut self, field: &str, rules: &Headers) -> (HeaderRules, HeaderRules, Option<String>) {
        let request = headers::header_rules(&rules.request, true);
        let response = headers::header_rules(&rules.response, false);
        let authority = self.authority(&format!("{field}.request"), request.authority);
        let mut rules =
            [("request", request.refused, request.remarks), ("response", response.refused, response.remarks)];
        for (side, refused, remarks) in &mut rules {
            for (place, why) in refused.drain(..) {
                self.refuse(&format!("{field}.{side}.{place}"), &why);
            }
            for (place, remark) in remarks.drain(..) {
                self.warn(&format!("{field}.{side}.{place}"), remark);
            }
        }
        (request.rules, response.rules, authority)
    }

    /// What a rule has for Host; what no Host can be would send a request by a name other than the one it is secured for.
    fn authority(&mut self, field: &str, given: Option<String>) -> Option<String> {
        let given = given?;
        if is_authority(&given) {
            return Some(given);
        }
        self.refuse(field, &format!("{given:?} is no host name with or without a port"));
        None
    }

    fn cors(&mut self, policy: &CorsPolicy) -> Cors {
        let mut allow_origins = Vec::new();
        for (at, origin) in policy.allow_origins.iter().enumerate() {
            match text_match(origin) {
                Ok(origin) => allow_origins.push(origin),
                Err(why) => self.refuse(&format!("corsPolicy.allowOrigins[{at}]"), &why),
            }
        }
        Cors {
            allow_origins,
            allow_methods: policy.allow_methods.join(","),
            allow_headers: policy.allow_headers.join(","),
            expose_headers: policy.expose_headers.join(","),
            max_age: policy.max_age,
            allow_credentials: policy.allow_credentials == Some(true),
            forward_unmatched_preflights: !policy.ignore_unmatched_preflights,
        }
    }

    /// An error, for which the route refuses what it matches: dropping it would let another route have the requests.
    fn refuse(&mut self, field: &str, why: &str) {
        let field = self.rule.field(field);
        self.findings.error(&self.rule.object, &field, format!("{why}: requests that this route takes are refused"));
        let reason = || format!("{}: {field}: {why}", self.rule.object.id).into();
        self.refused.get_or_insert_with(reason);
    }

    fn warn(&mut self, field: &str, message: String) {
        self.findings.add(&self.rule.object, Severity::Warning, &self.rule.field(field), message);
    }
}

/// RE2 expression and substitution (`\1`) to those of the `regex` crate (`${1}`).
fn rewrite_rule(pattern: &str, substitution: &str) -> Result<RewritePattern, String> {
    let regex = regex::Regex::new(pattern).map_err(|error| {
        let why = error.to_string();
        format!("{pattern} is no expression: {}", why.lines().last().unwrap_or_default().trim())
    })?;
    let mut made = String::new();
    let mut text = substitution.chars();
    while let Some(next) = text.next() {
        match next {
            '$' => made.push_str("$$"),
            '\\' => match text.next() {
                Some('\\') => made.push('\\'),
                Some(digit) if digit.to_digit(10).is_some_and(|group| (group as usize) < regex.captures_len()) => {
                    made.extend(["${", digit.encode_utf8(&mut [0; 4]), "}"]);
                }
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!("\\{other} in {substitution} is no group of {pattern}"));
                }
            },
            other => made.push(other),
        }
    }
    Ok(RewritePattern { regex: Arc::new(regex), substitution: made })
}
