//! HTTP and TCP routes as the data path follows them: compiled from VirtualServices and HTTPRoutes, static matches
//! (labels, gateways, ports) decided already, destinations resolved to clusters.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use serde::{Serialize, Serializer};

pub use super::request_match::*;
use super::table::Cluster;
use crate::api::ObjectId;
pub use crate::api::virtual_service::{Abort, PathChange, RedirectPort};

/// The routes of one host on one port.
#[derive(Debug, Serialize)]
pub struct VirtualHost {
    /// As `proxy-config route` shows it: `edition.cnn.com:80`.
    pub name: String,
    /// The first that matches a request is taken; none: 404, `NR route_not_found`.
    pub routes: Routes,
    /// `httpsRedirect`: a plain request is answered 301 to https before any route is looked at.
    pub require_tls: bool,
}

/// One match and what is done with a request that it holds for.
#[derive(Debug, Serialize)]
pub struct Route {
    /// Access log `%ROUTE_NAME%`: the VirtualService's name for it, `default` where no rule speaks, `<ns>.<name>.<rule>`
    /// for an HTTPRoute.
    pub name: Arc<str>,
    /// The VirtualService or HTTPRoute; None: the service's own default.
    pub source: Option<ObjectId>,
    pub matches: RequestMatch,
    pub action: Action,
    pub request_headers: HeaderRules,
    pub response_headers: HeaderRules,
    pub cors: Option<Arc<Cors>>,
    pub fault: Option<Fault>,
}

/// What is done to the headers of a request or response: remove, then set, then add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderRules {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

impl Serialize for HeaderRules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let lines = |list: &[(HeaderName, HeaderValue)]| -> Vec<String> {
            list.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect()
        };
        let mut fields = serializer.serialize_struct("HeaderRules", 3)?;
        fields.serialize_field("set", &lines(&self.set))?;
        fields.serialize_field("add", &lines(&self.add))?;
        fields.serialize_field("remove", &self.remove.iter().map(HeaderName::as_str).collect::<Vec<_>>())?;
        fields.end()
    }
}

#[derive(Debug, Serialize)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Direct(DirectResponse),
    /// The route cannot be honoured (its delegate is missing, its CORS origin is no expression): 503 with the reason.
    Refuse(Arc<str>),
}

#[derive(Debug, Serialize)]
pub struct Forward {
    /// Never empty; one of them gets the request, by weight. Where all weights are 0, none does: 503, `NC`.
    pub destinations: Vec<WeightedDestination>,
    pub rewrite_path: PathChange,
    /// Compiled `PathChange::Regex`.
    pub rewrite_pattern: Option<RewritePattern>,
    /// Host or `:authority` to send instead.
    pub rewrite_authority: Option<String>,
    /// From the last byte of the request to the whole response; None: no limit.
    pub timeout: Option<Duration>,
    pub retries: RetryPolicy,
    pub mirrors: Vec<Mirror>,
}

/// The expression of `uriRegexRewrite` (found anywhere, all occurrences replaced) and its substitution (`\1` as in RE2).
#[derive(Clone, Debug)]
pub struct RewritePattern {
    pub regex: Arc<regex::Regex>,
    /// In the syntax of the `regex` crate (`${1}`).
    pub substitution: String,
}

impl Serialize for RewritePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} -> {}", self.regex.as_str(), self.substitution))
    }
}

#[derive(Debug, Serialize)]
pub struct WeightedDestination {
    pub cluster: ClusterRef,
    pub weight: u32,
    pub request_headers: HeaderRules,
    pub response_headers: HeaderRules,
}

/// A destination of a route.
#[derive(Clone, Debug, Serialize)]
pub enum ClusterRef {
    Known(Arc<Cluster>),
    /// No such service, port or subset: 503, `NC`, with `why` (names the rule and what is missing).
    Unknown {
        name: Arc<str>,
        why: Arc<str>,
    },
    /// Gateway API: the backendRef is invalid, its share gets 500.
    Invalid {
        why: Arc<str>,
    },
}

impl ClusterRef {
    #[must_use]
    pub fn known(&self) -> Option<&Arc<Cluster>> {
        match self {
            Self::Known(cluster) => Some(cluster),
            Self::Unknown { .. } | Self::Invalid { .. } => None,
        }
    }

    /// `outbound|80||edition.cnn.com`; empty for what is invalid.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Known(cluster) => &cluster.name,
            Self::Unknown { name, .. } => name,
            Self::Invalid { .. } => "",
        }
    }
}

/// Envoy's retry policy with Istio's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RetryPolicy {
    /// After the first attempt.
    pub attempts: u32,
    /// None: the route's timeout.
    pub per_try_timeout: Option<Duration>,
    pub conditions: RetryConditions,
    /// Of responses.
    pub status_codes: Vec<u16>,
    /// First pause; doubled each time, at most ten times as long.
    pub pause: Duration,
}

impl Default for RetryPolicy {
    /// Istio: 2 retries on `connect-failure,refused-stream,unavailable,cancelled` (and retriable status codes: none).
    fn default() -> Self {
        let conditions = RetryConditions {
            connect_failure: true,
            refused_stream: true,
            grpc: vec![14, 1],
            ..RetryConditions::default()
        };
        Self {
            attempts: crate::limits::RETRIES,
            per_try_timeout: None,
            conditions,
            status_codes: Vec::new(),
            pause: crate::limits::RETRY_PAUSE,
        }
    }
}

/// Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetryConditions {
    pub connect_failure: bool,
    pub refused_stream: bool,
    /// `5xx`: includes the two above, and no answer at all.
    pub five_xx: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// The connection ended before the response's head, or a read timed out.
    pub reset: bool,
    /// `reset-before-request`
    pub reset_before_request: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// gRPC status codes in the response's head or trailers-only answer (1 cancelled, 4, 8, 13, 14).
    pub grpc: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub struct Mirror {
    pub cluster: ClusterRef,
    /// Of requests, in parts per million.
    pub share: u32,
}

#[derive(Debug, Serialize)]
pub struct Redirect {
    pub path: PathChange,
    pub authority: Option<String>,
    pub port: Option<RedirectPort>,
    pub scheme: Option<String>,
    pub code: u16,
}

#[derive(Debug, Serialize)]
pub struct DirectResponse {
    pub status: u16,
    #[serde(skip)]
    pub body: bytes::Bytes,
}

/// Shares in parts per million.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub delay: Option<(Duration, u32)>,
    #[serde(skip)]
    pub abort: Option<(Abort, u32)>,
}

#[derive(Debug, Serialize)]
pub struct Cors {
    pub allow_origins: Vec<TextMatch>,
    /// Header values, ready to send; empty: the header is left out.
    pub allow_methods: String,
    pub allow_headers: String,
    pub expose_headers: String,
    pub max_age: Option<Duration>,
    pub allow_credentials: bool,
    pub forward_unmatched_preflights: bool,
}

/// Where a raw connection goes: one of several clusters, by weight.
#[derive(Debug, Serialize)]
pub struct TunnelRoute {
    /// The VirtualService (or TLSRoute).
    pub source: Option<ObjectId>,
    /// Never empty. An unknown one: the connection is reset, `NC`.
    pub destinations: Vec<(ClusterRef, u32)>,
}

/// A TLS or TCP route of a VirtualService, with what is left to match at run time.
#[derive(Clone, Debug, Serialize)]
pub struct TunnelMatch {
    /// Destination addresses; empty: any.
    pub subnets: Vec<IpNet>,
    pub route: Arc<TunnelRoute>,
}

/// A route table as Envoy names them: `80`, `http.8080`, `https.443.https-cnn.gateway.istio-system`.
#[derive(Debug, Serialize)]
pub struct RouteTable {
    pub name: String,
    pub hosts: super::table::HostMap<Arc<VirtualHost>>,
}

impl VirtualHost {
    /// The default virtual host of a service: everything to one cluster.
    #[must_use]
    pub fn of_cluster(name: String, cluster: Arc<Cluster>) -> Self {
        Self { name, routes: Routes { given: OnceLock::new(), default: Some(cluster) }, require_tls: false }
    }

    /// The cluster of a default virtual host; None where a VirtualService or HTTPRoute speaks.
    #[must_use]
    pub fn default_cluster(&self) -> Option<&Arc<Cluster>> {
        if let Some(cluster) = self.routes.untouched() {
            return Some(cluster);
        }
        match self.routes.as_slice() {
            [route] if route.source.is_none() => match &route.action {
                Action::Forward(forward) => forward.destinations.first()?.cluster.known(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Every cluster that some route leads to.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let untouched = self.routes.untouched();
        let routes: &[Arc<Route>] = if untouched.is_some() { &[] } else { &self.routes };
        untouched.into_iter().chain(routes.iter().flat_map(|route| route.clusters()))
    }
}

/// The routes of a virtual host. Most hosts of thousands have the default route, which is made for the first request to them: it
/// takes 1 KiB.
#[derive(Debug)]
pub struct Routes {
    given: OnceLock<Vec<Arc<Route>>>,
    /// Where the default route leads, and nobody speaks of others.
    default: Option<Arc<Cluster>>,
}

impl Routes {
    /// Where the default route leads, as long as nobody has asked for it.
    fn untouched(&self) -> Option<&Arc<Cluster>> {
        self.default.as_ref().filter(|_| self.given.get().is_none())
    }

    fn made(&self) -> Vec<Arc<Route>> {
        let route = |cluster: &Arc<Cluster>| {
            static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| "default".into());
            Arc::new(Route::to_cluster(DEFAULT.clone(), cluster.clone()))
        };
        self.default.iter().map(route).collect()
    }
}

impl From<Vec<Arc<Route>>> for Routes {
    fn from(routes: Vec<Arc<Route>>) -> Self {
        Self { given: routes.into(), default: None }
    }
}

impl Deref for Routes {
    type Target = Vec<Arc<Route>>;

    fn deref(&self) -> &Self::Target {
        self.given.get_or_init(|| self.made())
    }
}

impl<'a> IntoIterator for &'a Routes {
    type Item = &'a Arc<Route>;
    type IntoIter = std::slice::Iter<'a, Arc<Route>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl DerefMut for Routes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        if self.given.get().is_none() {
            self.given = self.made().into();
        }
        self.given.get_mut().expect("made just now")
    }
}

impl Serialize for Routes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A dump of everything is no request: what it makes for itself is not kept.
        match self.given.get() {
            Some(given) => given.serialize(serializer),
            None => self.made().serialize(serializer),
        }
    }
}

impl Route {
    #[must_use]
    pub fn to_cluster(name: Arc<str>, cluster: Arc<Cluster>) -> Self {
        let destination = WeightedDestination {
            cluster: ClusterRef::Known(cluster),
            weight: 1,
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
        };
        Self {
            name,
            source: None,
            matches: RequestMatch::default(),
            action: Action::Forward(Box::new(Forward::to(vec![destination]))),
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
            cors: None,
            fault: None,
        }
    }

    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let forward = match &self.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        };
        forward.into_iter().flat_map(|forward| {
            let mirrors = forward.mirrors.iter().map(|mirror| &mirror.cluster);
            forward.destinations.iter().map(|to| &to.cluster).chain(mirrors).filter_map(ClusterRef::known)
        })
    }
}

impl Forward {
    /// To these, with nothing else asked for.
    #[must_use]
    pub fn to(destinations: Vec<WeightedDestination>) -> Self {
        Self {
            destinations,
            rewrite_path: PathChange::Keep,
            rewrite_pattern: None,
            rewrite_authority: None,
            timeout: None,
            retries: RetryPolicy::default(),
            mirrors: Vec::new(),
        }
    }
}
