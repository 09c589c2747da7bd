//! networking.istio.io VirtualService. HTTPRoutes of the Gateway API are brought into this shape too, so that one
//! compiler makes routes of both; what only they can say is marked as such.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;

use super::ObjectId;

/// networking.istio.io VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualService {
    pub hosts: Vec<String>,
    /// As written: `mesh`, `name` or `namespace/name`. Empty means `mesh`.
    pub gateways: Vec<String>,
    pub http: Vec<HttpRoute>,
    pub tls: Vec<TlsRoute>,
    pub tcp: Vec<TcpRoute>,
    pub export_to: Vec<String>,
    /// Made from HTTPRoutes: no port-80 rule. In the mesh one of the client's own namespace goes before all others.
    pub gateway_api: bool,
}

/// `http[]`: exactly one of `route`, `redirect`, `direct_response` and `delegate` says what is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRoute {
    pub name: String,
    /// The HTTPRoute that it comes from, where the VirtualService is made of several; None: the object itself.
    pub source: Option<ObjectId>,
    /// One of them is enough; empty matches every request.
    pub matches: Vec<HttpMatch>,
    pub route: Vec<HttpDestination>,
    pub redirect: Option<Redirect>,
    pub direct_response: Option<DirectResponse>,
    pub delegate: Option<Delegate>,
    pub rewrite: Option<Rewrite>,
    /// None: no limit.
    pub timeout: Option<Duration>,
    pub retries: Option<Retries>,
    pub fault: Option<Fault>,
    /// `mirrors`, or `mirror` with its percentage.
    pub mirrors: Vec<Mirror>,
    pub cors_policy: Option<CorsPolicy>,
    pub headers: Headers,
}

/// HTTPMatchRequest: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    pub name: String,
    pub uri: Option<StringMatch>,
    pub ignore_uri_case: bool,
    pub scheme: Option<StringMatch>,
    pub method: Option<StringMatch>,
    pub authority: Option<StringMatch>,
    /// Names in lower case.
    pub headers: BTreeMap<String, StringMatch>,
    pub without_headers: BTreeMap<String, StringMatch>,
    pub query_params: BTreeMap<String, StringMatch>,
    pub port: Option<u16>,
    /// As written; empty: those of the VirtualService.
    pub gateways: Vec<String>,
    pub source_labels: BTreeMap<String, String>,
    pub source_namespace: Option<String>,
}

/// StringMatch of Istio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    Exact(String),
    /// A raw string prefix.
    Prefix(String),
    /// Gateway API `PathPrefix`: by path element, `/a` matches `/a` and `/a/b`, not `/ab`.
    PathPrefix(String),
    /// RE2, the whole value.
    Regex(String),
    /// Any value, as long as there is one: an empty match (`headers: {x: {}}`).
    Present,
}

/// `host`, short or full, with `subset` and `port.number`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    pub host: String,
    pub subset: Option<String>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpDestination {
    pub destination: Destination,
    /// 0 with several destinations: gets nothing. A single destination takes all whatever its weight.
    pub weight: u32,
    pub headers: Headers,
    /// Gateway API: the backendRef is not allowed or leads nowhere; its share gets 500 with this reason.
    pub invalid: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    pub request: HeaderOperations,
    pub response: HeaderOperations,
}

/// In the order of application: remove, set, add (Envoy removes last; a name in two of them is refused by the reader).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
    pub remove: Vec<String>,
}

impl HeaderOperations {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    pub path: PathChange,
    pub authority: Option<String>,
    pub port: Option<RedirectPort>,
    pub scheme: Option<String>,
    /// 301 by default (HTTPRoute: 302).
    pub code: u16,
}

/// What becomes of the path (with its query, unless the new one has one).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum PathChange {
    #[default]
    Keep,
    /// VirtualService `redirect.uri`, HTTPRoute `ReplaceFullPath`: all of it.
    Full(String),
    /// VirtualService `rewrite.uri`, HTTPRoute `ReplacePrefixMatch`: the matched prefix, or all where the match was no prefix.
    Prefix(String),
    /// VirtualService `rewrite.uriRegexRewrite`.
    Regex { pattern: String, substitution: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum RedirectPort {
    Number(u16),
    /// FROM_PROTOCOL_DEFAULT
    ProtocolDefault,
    /// FROM_REQUEST_PORT
    Request,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delegate {
    pub name: String,
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub path: PathChange,
    pub authority: Option<String>,
}

/// HTTPRetry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// Retries after the first attempt; 0 disables.
    pub attempts: u32,
    pub per_try_timeout: Option<Duration>,
    /// Conditions and status codes as written, split at commas; empty: the default ones.
    pub retry_on: Vec<String>,
    pub backoff: Option<Duration>,
    pub ignore_previous_hosts: Option<bool>,
}

/// HTTPFaultInjection; percentages in parts per million, so that equal values are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub delay: Option<(Duration, PartsPerMillion)>,
    pub abort: Option<(Abort, PartsPerMillion)>,
}

/// Of requests: 1,000,000 is all of them.
pub type PartsPerMillion = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Http(u16),
    /// A gRPC status code.
    Grpc(u32),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    pub destination: Destination,
    pub percentage: PartsPerMillion,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsPolicy {
    pub allow_origins: Vec<StringMatch>,
    pub allow_methods: Vec<String>,
    pub allow_headers: Vec<String>,
    pub expose_headers: Vec<String>,
    pub max_age: Option<Duration>,
    pub allow_credentials: Option<bool>,
    /// `unmatchedPreflights: IGNORE`: a preflight that matches nothing is answered here, not forwarded.
    pub ignore_unmatched_preflights: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsRoute {
    pub matches: Vec<TlsMatch>,
    pub route: Vec<TcpDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsMatch {
    pub sni_hosts: Vec<String>,
    pub l4: L4Match,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpRoute {
    /// One of them is enough; empty matches every connection.
    pub matches: Vec<L4Match>,
    pub route: Vec<TcpDestination>,
}

/// L4MatchAttributes: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct L4Match {
    pub destination_subnets: Vec<IpNet>,
    pub port: Option<u16>,
    pub source_labels: BTreeMap<String, String>,
    pub gateways: Vec<String>,
    pub source_namespace: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpDestination {
    pub destination: Destination,
    pub weight: u32,
    /// A backend of the Gateway API that leads nowhere, and why: its share of the connections is reset.
    pub invalid: Option<String>,
}
