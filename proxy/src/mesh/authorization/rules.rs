//! One AuthorizationPolicy, in the shape in which it is compared.

use smol_str::SmolStr;

use http::{HeaderName, header::HOST};
use serde::Serialize;

use super::matchers::{Matcher, PathPattern, ServiceAccount, Text, Wildcards};
use crate::api::{
    Object,
    security::{AuthorizationPolicy, Condition, Operation, PolicyAction, PolicyRule, Source, network},
};

/// A policy, whatever it is attached to.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    pub namespace: SmolStr,
    pub name: SmolStr,
    pub action: Action,
    /// One that matches is enough.
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    Allow,
    Deny,
    /// Without its authorizer: as DENY.
    Custom,
}

/// One of `from`, one of `to`, and all of `when`; an empty list holds always.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    pub from: Vec<Vec<Term>>,
    pub to: Vec<Vec<Term>>,
    pub when: Vec<Term>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Term {
    /// `notValues` and its like: none of the values.
    pub negated: bool,
    pub matcher: Matcher,
}

/// The trust domain of the mesh, and its other names.
pub struct TrustDomains<'a> {
    pub own: &'a str,
    pub aliases: &'a [String],
}

impl Policy {
    /// None: AUDIT, which decides nothing.
    pub fn new(object: &Object<AuthorizationPolicy>, domains: &TrustDomains<'_>) -> Option<Self> {
        let action = match object.spec.action {
            PolicyAction::Allow => Action::Allow,
            PolicyAction::Deny => Action::Deny,
            PolicyAction::Custom { .. } => Action::Custom,
            PolicyAction::Audit => return None,
        };
        let (namespace, name) = (object.meta.namespace.clone(), object.meta.name.clone());
        let author = Author { namespace: &namespace, domains };
        let rules = object.spec.rules.iter().map(|rule| author.rule(rule)).collect();
        Some(Self { namespace, name, action, rules })
    }

    pub fn asks_paths(&self) -> bool {
        let mut terms = self.rules.iter().flat_map(Rule::terms);
        terms.any(|term| matches!(term.matcher, Matcher::Path(_)))
    }
}

impl Rule {
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

/// What the words of a policy depend on.
struct Author<'a> {
    namespace: &'a str,
    domains: &'a TrustDomains<'a>,
}

impl Author<'_> {
    fn rule(&self, rule: &PolicyRule) -> Rule {
        Rule {
            from: rule.from.iter().map(|source| self.source(source)).collect(),
            to: rule.to.iter().map(operation).collect(),
            when: rule.when.iter().flat_map(|condition| self.condition(condition)).collect(),
        }
    }

    fn source(&self, source: &Source) -> Vec<Term> {
        let nobody = |_: &[String]| Matcher::RequestIdentity;
        let parts = [
            both(&source.principals, &source.not_principals, |list| self.principals(list)),
            both(&source.request_principals, &source.not_request_principals, nobody),
            both(&source.namespaces, &source.not_namespaces, namespaces),
            both(&source.service_accounts, &source.not_service_accounts, |list| self.service_accounts(list)),
            both(&source.ip_blocks, &source.not_ip_blocks, |list| Matcher::SourceIp(list.to_vec())),
            both(&source.remote_ip_blocks, &source.not_remote_ip_blocks, |list| Matcher::RemoteIp(list.to_vec())),
        ];
        parts.into_iter().flatten().collect()
    }

    fn condition(&self, condition: &Condition) -> Vec<Term> {
        both(&condition.values, &condition.not_values, |values| self.keyed(&condition.key, values))
    }

    fn keyed(&self, key: &str, values: &[String]) -> Matcher {
        let networks = || values.iter().filter_map(|value| network(value)).collect();
        match key {
            "source.ip" => Matcher::SourceIp(networks()),
            "remote.ip" => Matcher::RemoteIp(networks()),
            "source.namespace" => namespaces(values),
            "source.principal" => self.principals(values),
            "source.serviceAccount" => self.service_accounts(values),
            "destination.ip" => Matcher::DestinationIp(networks()),
            "destination.port" => Matcher::Port(values.iter().filter_map(|value| value.parse().ok()).collect()),
            "connection.sni" => Matcher::Sni(texts(values)),
            _ if key.starts_with("request.auth.") => Matcher::RequestIdentity,
            _ => match header_of(key) {
                Some(":authority") => Matcher::Header(HOST, texts(values)),
                Some(":method") => Matcher::Method(texts(values)),
                Some(name) => match name.parse::<HeaderName>() {
                    Ok(name) => Matcher::Header(name, texts(values)),
                    Err(_) => Matcher::Unknown,
                },
                None => Matcher::Unknown,
            },
        }
    }

    fn principals(&self, list: &[String]) -> Matcher {
        Matcher::Principal(list.iter().flat_map(|principal| self.domains.all_names(principal)).collect())
    }

    fn service_accounts(&self, list: &[String]) -> Matcher {
        let split = |account: &String| {
            let (namespace, name) = account.split_once('/').unwrap_or((self.namespace, account));
            ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() }
        };
        Matcher::ServiceAccount(list.iter().map(split).collect())
    }
}

impl TrustDomains<'_> {
    /// A principal that names the mesh's own trust domain, whichever name it has for it, under all of them.
    /// `cluster.local` always means the mesh's own (Istio).
    fn all_names(&self, principal: &str) -> Vec<Text> {
        let written = principal.strip_prefix("spiffe://").unwrap_or(principal);
        let whole = written.split('/').count() == 5;
        let own = |domain: &str| {
            domain == "cluster.local" || domain == self.own || self.aliases.iter().any(|alias| alias == domain)
        };
        match written.split_once('/').filter(|(domain, _)| whole && own(domain)) {
            Some((_, rest)) => {
                let names = std::iter::once(self.own).chain(self.aliases.iter().map(String::as_str));
                names.map(|domain| Text::new(&format!("{domain}/{rest}"))).collect()
            }
            None => vec![Text::new(written)],
        }
    }
}

/// The name in `request.headers[name]`.
pub fn header_of(key: &str) -> Option<&str> {
    key.strip_prefix("request.headers[")?.strip_suffix(']')
}

fn operation(operation: &Operation) -> Vec<Term> {
    let ports = |list: &[u16]| Matcher::Port(list.to_vec());
    let paths = |list: &[String]| Matcher::Path(list.iter().filter_map(|path| PathPattern::new(path)).collect());
    let parts = [
        both(&operation.hosts, &operation.not_hosts, |list| Matcher::Host(texts(list))),
        both(&operation.ports, &operation.not_ports, ports),
        both(&operation.methods, &operation.not_methods, |list| Matcher::Method(texts(list))),
        both(&operation.paths, &operation.not_paths, paths),
    ];
    parts.into_iter().flatten().collect()
}

/// What is asked of one attribute: one of `values`, and none of `not_values`.
fn both<T>(values: &[T], not_values: &[T], matcher: impl Fn(&[T]) -> Matcher) -> Vec<Term> {
    let lists = [(false, values), (true, not_values)];
    let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
    given.map(|(negated, list)| Term { negated, matcher: matcher(list) }).collect()
}

fn texts(list: &[String]) -> Vec<Text> {
    list.iter().map(|value| Text::new(value)).collect()
}

fn namespaces(list: &[String]) -> Matcher {
    Matcher::Namespace(list.iter().map(|value| Wildcards::new(value)).collect())
}
