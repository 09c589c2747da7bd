//! VirtualServices (and HTTPRoutes in their shape) to routes. What is static (which gateway, which port, whose labels) is
//! decided here, destinations are looked up in what the client sees: the data path finds routes that it only has to try.

mod bound;
mod check;
mod delegates;
mod destinations;
mod gateway;
mod guards;
mod headers;
mod heard;
mod http;
mod matches;
mod mesh;
mod retries;
mod spoken;
mod tunnels;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

pub use self::{
    check::check,
    destinations::Destinations,
    gateway::{GatewayServer, ServerHost, common_hosts, for_gateway},
    heard::Heard,
    http::http_routes,
    mesh::{Placed, Plan, View},
    spoken::{Spoken, every_destination},
    tunnels::{gateway_tcp, gateway_tls},
};
use super::{
    findings::Findings,
    names::{Visibility, object_order, rule_host, selects},
};
use crate::api::{
    Object, Objects,
    virtual_service::{HttpMatch, HttpRoute, VirtualService},
};

/// The reserved gateway: every workload that is not a gateway, for its outbound calls.
pub const MESH: &str = "mesh";

/// Every VirtualService with hosts, in object order: short names resolved, delegates merged.
#[derive(Debug, Default)]
pub struct VirtualServices {
    pub all: Vec<Resolved>,
    /// Every `sourceLabels` that some match asks for, each once, and their index.
    conditions: HashMap<BTreeMap<String, String>, usize>,
    /// Indices in `all` by gateway.
    by_gateway: BTreeMap<String, Vec<usize>>,
}

#[derive(Debug)]
pub struct Resolved {
    pub object: Arc<Object<VirtualService>>,
    /// Full names, in order.
    pub hosts: Vec<String>,
    pub visibility: Visibility,
    pub http: Vec<HttpRule>,
    /// What its matches ask for: indices of [`VirtualServices::conditions`].
    conditions: Vec<usize>,
    /// Some match asks for the caller's namespace.
    pub asks_namespace: bool,
}

/// One entry of `http`.
#[derive(Debug)]
pub struct HttpRule {
    /// Where it is written: the VirtualService itself, or its delegate. Short names in it are of this object's namespace.
    pub object: Arc<Object<VirtualService>>,
    /// Index in `http` of that object.
    pub index: usize,
    /// The delegate's entry merged with the one that delegates; None: as written.
    merged: Option<Box<HttpRoute>>,
    /// It cannot be honoured, and nothing after it may take its requests.
    refused: Option<Arc<str>>,
}

/// Who follows routes: what is static about it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    /// [`MESH`], or the Gateway as `namespace/name`.
    pub gateway: &'a str,
}

/// For whom, on which port and over which services routes are made.
#[derive(Clone, Copy)]
pub struct RouteContext<'a> {
    pub caller: Caller<'a>,
    /// The port dialled; at a gateway `port.number` of the server, not what its listener is bound to.
    pub port: u16,
    pub destinations: &'a dyn Destinations,
}

impl VirtualServices {
    pub fn new(objects: &Objects, findings: &mut Findings) -> Self {
        let mut sorted: Vec<_> = objects.virtual_services.values().collect();
        sorted.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut made = Self::default();
        // Without hosts it is a delegate: nothing of its own.
        for object in sorted.into_iter().filter(|object| !object.spec.hosts.is_empty()) {
            let namespace = &object.meta.namespace;
            for gateway in gateways(&object.spec.gateways, namespace) {
                let bound = made.by_gateway.entry(gateway).or_default();
                if bound.last() != Some(&made.all.len()) {
                    bound.push(made.all.len());
                }
            }
            let http = delegates::http_rules(object, objects, findings);
            let conditions = made.conditions(&object.spec, &http);
            let asks_namespace = sources(&object.spec, &http).any(|(_, namespace)| namespace.is_some());
            made.all.push(Resolved {
                object: object.clone(),
                hosts: object.spec.hosts.iter().map(|host| rule_host(host, namespace)).collect(),
                visibility: Visibility::new(object.spec.export_to.iter().map(String::as_str), namespace),
                asks_namespace,
                http,
                conditions,
            });
        }
        made
    }

    /// Those bound to `gateway` that `namespace` sees, in the order in which they count: as in Istio, what is exported to
    /// its own namespace only comes first, then what names the client's, then what everybody sees.
    pub fn bound(&self, gateway: &str, namespace: &str) -> Vec<usize> {
        let bound = self.by_gateway.get(gateway).map(Vec::as_slice).unwrap_or_default();
        let visible = bound.iter().copied().filter(|at| self.all[*at].visibility.holds(namespace));
        let mut visible: Vec<usize> = visible.collect();
        visible.sort_by_key(|at| {
            let rule = &self.all[*at];
            match &rule.visibility {
                Visibility::Everywhere => 2,
                Visibility::Namespaces(_) if rule.object.meta.namespace == namespace => 0,
                Visibility::Namespaces(_) => 1,
            }
        });
        visible
    }

    /// Those `sourceLabels` that hold for a workload with these labels, by index. Workloads of a namespace for which the
    /// same hold are the same to every route.
    pub fn holding(&self, labels: &BTreeMap<String, String>) -> Vec<usize> {
        let holding = self.conditions.iter().filter(|(wanted, _)| selects(wanted, labels));
        let mut holding: Vec<usize> = holding.map(|(_, at)| *at).collect();
        holding.sort_unstable();
        holding
    }

    fn conditions(&mut self, spec: &VirtualService, http: &[HttpRule]) -> Vec<usize> {
        let mut made = Vec::new();
        for (labels, _) in sources(spec, http).filter(|(labels, _)| !labels.is_empty()) {
            let next = self.conditions.len();
            let at = match self.conditions.get(labels) {
                Some(known) => *known,
                None => *self.conditions.entry(labels.clone()).or_insert(next),
            };
            if !made.contains(&at) {
                made.push(at);
            }
        }
        made
    }
}

impl Resolved {
    /// A route of the Gateway API, which follows other rules in places.
    pub fn is_gateway_api(&self) -> bool {
        self.object.spec.gateway_api
    }
}

/// What all matches ask of their caller.
fn sources<'a>(
    spec: &'a VirtualService,
    http: &'a [HttpRule],
) -> impl Iterator<Item = (&'a BTreeMap<String, String>, Option<&'a str>)> {
    let http = http.iter().flat_map(|rule| &rule.rule().matches);
    let http = http.map(|given| (&given.source_labels, given.source_namespace.as_deref()));
    let tls = spec.tls.iter().flat_map(|rule| rule.matches.iter().map(|given| &given.l4));
    let l4 = tls.chain(spec.tcp.iter().flat_map(|rule| &rule.matches));
    http.chain(l4.map(|given| (&given.source_labels, given.source_namespace.as_deref())))
}

impl HttpRule {
    pub fn rule(&self) -> &HttpRoute {
        self.merged.as_deref().unwrap_or(&self.object.spec.http[self.index])
    }

    /// Path of a field of the entry, for messages.
    fn field(&self, field: &str) -> String {
        format!("spec.http[{}].{field}", self.index)
    }
}

/// Gateways as written to `mesh` and `namespace/name`; none given: `mesh`.
pub fn gateways<'a>(written: &'a [String], namespace: &'a str) -> impl Iterator<Item = String> + 'a {
    let none = written.is_empty().then(|| MESH.to_owned());
    none.into_iter().chain(written.iter().map(move |name| gateway_name(name, namespace)))
}

/// `name` is in `namespace`; `./name` too; `name.namespace.svc.cluster.local` is the old way to say `namespace/name`
/// (Istio `resolveGatewayName`).
pub fn gateway_name(written: &str, namespace: &str) -> String {
    if written == MESH {
        return written.to_owned();
    }
    match (written.split_once('/'), written.split_once('.')) {
        (Some((".", name)), _) => format!("{namespace}/{name}"),
        (Some(_), _) => written.to_owned(),
        (None, Some((name, rest))) => format!("{}/{name}", rest.split('.').next().unwrap_or_default()),
        (None, None) => format!("{namespace}/{written}"),
    }
}

impl Caller<'_> {
    /// The static part of an HTTP match. Where it names gateways, whose labels they are is not asked (Istio
    /// `sourceMatchHTTP`).
    fn may_match(self, rule: &HttpMatch, port: u16, namespace: &str) -> bool {
        if rule.port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        if !rule.gateways.is_empty() {
            return rule.gateways.iter().any(|name| gateway_name(name, namespace) == self.gateway);
        }
        self.bears(&rule.source_labels) && self.is_in(rule.source_namespace.as_deref())
    }

    fn bears(self, labels: &BTreeMap<String, String>) -> bool {
        selects(labels, self.labels)
    }

    fn is_in(self, namespace: Option<&str>) -> bool {
        namespace.is_none_or(|namespace| namespace.is_empty() || namespace == self.namespace)
    }
}
