//! Whether a connection or request is allowed.
//!
//! Where a request can be read in several ways, a DENY rule matches if one of them matches, and an ALLOW rule only if the
//! reading that counts does.

use std::{borrow::Cow, cell::OnceCell, net::IpAddr};

use http::{HeaderName, header::HOST};
use ipnet::IpNet;

use super::{
    super::{
        host::authority_host,
        matching::RequestHead,
        paths::{InvalidPath, normal},
    },
    Attributes, InForce, Policies, Verdict,
    matchers::{Matcher, PathPattern, Text},
    rules::{Action, Policy, Rule, Term},
};

impl Policies {
    /// CUSTOM and DENY first, then ALLOW: where there is any ALLOW policy, one of them must match.
    #[must_use]
    pub fn check(&self, of: &Attributes<'_>) -> Verdict {
        if !self.dry_run.is_empty() && log::log_enabled!(log::Level::Debug) {
            self.tell(of);
        }
        let path = NormalPath::default();
        for Applied { policy, ports } in self.deny.iter().filter_map(|in_force| in_force.at(of)) {
            if let Some(rule) = policy.matching(of, ports, &path) {
                return Verdict::Denied(policy.details(rule));
            }
        }
        let mut any = false;
        for applied in self.allow.iter().filter_map(|in_force| in_force.at(of)) {
            if applied.policy.matching(of, applied.ports, &path).is_some() {
                return Verdict::Allowed;
            }
            any = true;
        }
        if any { Verdict::Denied("rbac_access_denied_matched_policy[none]".to_owned()) } else { Verdict::Allowed }
    }

    /// What policies that are only tried out would have done.
    fn tell(&self, of: &Attributes<'_>) {
        let source = of.principal.map_or_else(|| of.source.to_string(), str::to_owned);
        let path = NormalPath::default();
        for applied in self.dry_run.iter().filter_map(|in_force| in_force.at(of)) {
            let (policy, rule) = (applied.policy, applied.policy.matching(of, applied.ports, &path));
            let would = match (policy.action, rule) {
                (Action::Allow, Some(_)) => "would allow",
                (Action::Allow, None) => "would not allow",
                (Action::Deny | Action::Custom, Some(_)) => "would deny",
                (Action::Deny | Action::Custom, None) => continue,
            };
            let to = of.destination;
            log::debug!("dry run: AuthorizationPolicy {}/{} {would} {source} to {to}", policy.namespace, policy.name);
        }
    }
}

/// A policy that counts for a connection, and the ports that this has by it.
struct Applied<'a> {
    policy: &'a Policy,
    ports: Ports<'a>,
}

#[derive(Clone, Copy)]
enum Ports<'a> {
    Dialled(u16),
    /// Those of the Service that lead to the port dialled.
    OfService(&'a [u16]),
}

impl Ports<'_> {
    fn any_of(self, list: &[u16]) -> bool {
        match self {
            Self::Dialled(port) => list.contains(&port),
            Self::OfService(ports) => ports.iter().any(|port| list.contains(port)),
        }
    }
}

impl InForce {
    /// None: it does not count on this port.
    fn at(&self, of: &Attributes<'_>) -> Option<Applied<'_>> {
        let port = of.destination.port();
        let ports = match &self.service_ports {
            None => Ports::Dialled(port),
            Some(ports) => Ports::OfService(ports.get(&port)?),
        };
        Some(Applied { policy: &self.policy, ports })
    }
}

impl Policy {
    /// Which of the rules matches.
    fn matching<'r>(&self, of: &Attributes<'r>, ports: Ports<'_>, path: &NormalPath<'r>) -> Option<usize> {
        let allows = self.action == Action::Allow;
        self.rules.iter().position(|rule| rule.matches(&View { of, ports, allows, path }))
    }

    fn details(&self, rule: usize) -> String {
        format!("rbac_access_denied_matched_policy[ns[{}]-policy[{}]-rule[{rule}]]", self.namespace, self.name)
    }
}

impl Rule {
    fn matches(&self, view: &View<'_, '_>) -> bool {
        // As in Istio: all of an ALLOW rule goes where a part of it means nothing, while a DENY rule does without the part.
        if view.allows && self.terms().any(|term| view.means_nothing(&term.matcher)) {
            return false;
        }
        let all = |terms: &[Term]| terms.iter().all(|term| view.holds(term));
        let any = |lists: &[Vec<Term>]| lists.is_empty() || lists.iter().any(|terms| all(terms));
        any(&self.from) && any(&self.to) && all(&self.when)
    }
}

/// What is known, and which kind of rule wants to know.
struct View<'a, 'r> {
    of: &'a Attributes<'r>,
    ports: Ports<'a>,
    allows: bool,
    path: &'a NormalPath<'r>,
}

/// The path of the request in normal form, made once however many matchers ask for it.
type NormalPath<'r> = OnceCell<Result<Cow<'r, str>, InvalidPath>>;

impl View<'_, '_> {
    fn means_nothing(&self, matcher: &Matcher) -> bool {
        matches!(matcher, Matcher::Unknown) || (self.of.request.is_none() && matcher.of_requests())
    }

    fn holds(&self, term: &Term) -> bool {
        if self.means_nothing(&term.matcher) {
            return true;
        }
        // Doubt denies: it makes a DENY rule match and an ALLOW rule not, and under a negation the other way round.
        let in_doubt = self.allows == term.negated;
        self.matches(&term.matcher, in_doubt) != term.negated
    }

    fn matches(&self, matcher: &Matcher, in_doubt: bool) -> bool {
        let of = self.of;
        match matcher {
            Matcher::Principal(list) => of.principal.is_some_and(|id| any(list, bare(id))),
            Matcher::Namespace(list) => {
                let owner = of.principal.and_then(owner);
                owner.is_some_and(|(namespace, _)| list.iter().any(|wanted| wanted.matches(namespace)))
            }
            Matcher::ServiceAccount(list) => {
                let owner = of.principal.and_then(owner);
                owner.is_some_and(|owner| list.iter().any(|wanted| (&*wanted.namespace, &*wanted.name) == owner))
            }
            Matcher::SourceIp(list) => within(list, of.source),
            Matcher::RemoteIp(list) => within(list, of.remote),
            Matcher::DestinationIp(_) if of.destination.ip().is_unspecified() => in_doubt,
            Matcher::DestinationIp(list) => within(list, of.destination.ip()),
            Matcher::Port(list) => self.ports.any_of(list),
            Matcher::Sni(list) => of.sni.is_some_and(|sni| list.iter().any(|wanted| wanted.matches_any_case(sni))),
            Matcher::Path(list) => of.request.is_some_and(|request| {
                path(list, request.path, self.path.get_or_init(|| normal(request.path)), in_doubt)
            }),
            Matcher::Host(_) | Matcher::Method(_) | Matcher::Header(..) => {
                of.request.is_some_and(|request| asked(request, matcher, in_doubt))
            }
            Matcher::RequestIdentity => false,
            Matcher::Unknown => in_doubt,
        }
    }
}

/// What is asked of requests alone.
fn asked(request: &RequestHead<'_>, matcher: &Matcher, in_doubt: bool) -> bool {
    match matcher {
        Matcher::Host(list) => host(list, request.authority),
        Matcher::Method(list) => any(list, request.method),
        Matcher::Header(name, list) if *name == HOST => host(list, request.authority),
        Matcher::Header(name, list) => header(list, request, name, in_doubt),
        _ => false,
    }
}

fn any(list: &[Text], text: &str) -> bool {
    list.iter().any(|wanted| wanted.matches(text))
}

fn within(list: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    list.iter().any(|network| network.contains(&address))
}

fn bare(identity: &str) -> &str {
    identity.strip_prefix("spiffe://").unwrap_or(identity)
}

/// Namespace and service account of `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
fn owner(identity: &str) -> Option<(&str, &str)> {
    let mut parts = bare(identity).split('/').skip(1);
    let (ns, namespace, sa, account) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (ns == "ns" && sa == "sa").then_some((namespace, account))
}

/// With its port or without: servers do not tell these apart, nor a name from the same with a dot behind it.
fn host(list: &[Text], authority: &str) -> bool {
    let host = authority_host(authority);
    let bare = host.strip_suffix('.').unwrap_or(host);
    list.iter().any(|wanted| wanted.matches_any_case(authority) || wanted.matches_any_case(bare))
}

/// In normal form; in doubt as it came, too, and with repeated slashes as one, for there are servers that take them so
/// (Istio's `pathNormalization: MERGE_SLASHES`). One that has no normal form is, in doubt, any path.
fn path(list: &[PathPattern], path: &str, normal: &Result<Cow<'_, str>, InvalidPath>, in_doubt: bool) -> bool {
    let any = |path: &str| list.iter().any(|wanted| wanted.matches(path));
    match normal {
        Ok(normal) => {
            any(normal)
                || (in_doubt && ((*normal != path && any(path)) || one_slash(normal).is_some_and(|one| any(&one))))
        }
        Err(_) => in_doubt,
    }
}

/// With each run of slashes as one; None where there is none.
fn one_slash(path: &str) -> Option<String> {
    path.contains("//").then(|| {
        let mut merged = String::with_capacity(path.len());
        for letter in path.chars() {
            if letter != '/' || !merged.ends_with('/') {
                merged.push(letter);
            }
        }
        merged
    })
}

/// All lines of it as one; in doubt each line by itself, too.
fn header(list: &[Text], request: &RequestHead<'_>, name: &HeaderName, in_doubt: bool) -> bool {
    let Some(value) = request.header(name) else { return false };
    let matches = |value: &str| list.iter().any(|wanted| matches!(wanted, Text::Present) || wanted.matches(value));
    let mut lines = request.headers.get_all(name).iter();
    matches(&value) || (in_doubt && lines.any(|line| matches(&String::from_utf8_lossy(line.as_bytes()))))
}
