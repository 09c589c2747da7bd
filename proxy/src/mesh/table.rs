//! The compiled table: what the data path asks, by workload, name and port.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use ipnet::IpNet;
use serde::Serialize;
use smol_str::SmolStr;

pub use super::{cluster::*, pages::Names};
use super::{
    inbound::InboundTable,
    listeners::GatewayTable,
    origins::Origins,
    routing::{TunnelMatch, TunnelRoute, VirtualHost},
    unimported::Unimported,
};
use crate::api::{
    Diagnostic, Object, ObjectId,
    gateway_api::{ObjectRef, ParentRef},
    istio::DestinationRule,
};

/// What [`super::compile`] makes of all objects. Immutable; a reload replaces it whole.
#[derive(Debug, Default)]
pub struct Mesh {
    pub settings: Settings,
    /// The enrolled pods: annotation `egret.dev/netns`, not opted out.
    pub workloads: BTreeMap<WorkloadId, Arc<Workload>>,
    /// Findings that need more than one object to see (unknown secret, rule without service, double TLS …).
    pub diagnostics: Vec<Diagnostic>,
    /// Where the services and rules that the tables name were read.
    pub origins: Origins,
    /// Enrolled pods by their addresses, for endpoints that are found only when dialled (headless services).
    pub peers: Arc<HashMap<IpAddr, Arc<Peer>>>,
    /// Conditions of Gateway API objects, for `egret status`.
    pub statuses: Vec<ObjectStatus>,
    /// What [`Self::tls_settings`] answers, once it was asked.
    pub(crate) tls: OnceLock<Vec<Arc<TlsSettings>>>,
}

/// `status` of one Gateway API object, as a controller would write it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectStatus {
    pub object: ObjectId,
    /// The `controllerName` under which a controller writes it. None: it is nobody's to say, as of a route whose Gateway is
    /// not there.
    #[serde(skip)]
    pub controller: Option<&'static str>,
    pub about: About,
    pub conditions: Vec<Condition>,
}

/// What conditions are about. Shown it is empty for the object itself, or `listener <name>`, `parent <kind> <namespace>/<name>`,
/// `target <kind> <name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    Itself,
    Listener {
        name: String,
        /// Kinds of the routes that it takes.
        kinds: Vec<&'static str>,
        attached: usize,
    },
    /// One of a route's `parentRefs`, in this namespace.
    Parent {
        parent: ParentRef,
        namespace: SmolStr,
    },
    /// One of a policy's `targetRefs`.
    Target {
        object: ObjectRef,
        section: Option<String>,
        /// The Gateways whose routes lead to it, with the `controllerName`s of their classes.
        gateways: BTreeSet<(ObjectId, &'static str)>,
    },
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => Ok(()),
            Self::Listener { name, .. } => write!(f, "listener {name}"),
            Self::Parent { parent: ParentRef { object, section, port }, namespace } => {
                write!(f, "parent {} {namespace}/{}", object.kind, object.name)?;
                if let Some(section) = section {
                    write!(f, " section {section}")?;
                }
                port.map_or(Ok(()), |port| write!(f, " port {port}"))
            }
            Self::Target { object, section, .. } => {
                write!(f, "target {} {}", object.kind, object.name)?;
                section.as_ref().map_or(Ok(()), |section| write!(f, " section {section}"))
            }
        }
    }
}

impl Serialize for About {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `Accepted`, `Programmed`, `ResolvedRefs`, `Conflicted` …
    pub kind: &'static str,
    pub status: bool,
    /// As the specification names it: `Accepted`, `InvalidKind`, `RefNotPermitted` …
    pub reason: &'static str,
    pub message: String,
}

/// File and line of an object; line 0: it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    pub file: Arc<Path>,
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// Mesh-wide settings with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    pub outbound_policy: OutboundPolicy,
    /// `None`: access log off. `/dev/stdout` by default.
    pub access_log_file: Option<PathBuf>,
    /// As written in `accessLogFormat`; None: the default text or JSON format.
    pub access_log_format: Option<String>,
    pub access_log_json: bool,
    pub root_namespace: String,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    /// `enableAutoMtls`
    pub auto_mtls: bool,
    /// `meshMTLS.minProtocolVersion`
    pub mesh_tls_min_version: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum OutboundPolicy {
    #[default]
    AllowAny,
    RegistryOnly,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            outbound_policy: OutboundPolicy::AllowAny,
            access_log_file: Some(PathBuf::from("/dev/stdout")),
            access_log_format: None,
            access_log_json: false,
            root_namespace: "istio-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            auto_mtls: true,
            mesh_tls_min_version: None,
        }
    }
}

/// `<namespace>/<pod>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct WorkloadId {
    pub namespace: SmolStr,
    pub name: SmolStr,
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An enrolled pod.
#[derive(Clone, Debug)]
pub struct Workload {
    pub id: WorkloadId,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    /// Value of `egret.dev/netns`: a name under /run/netns, or a path.
    pub netns: String,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
    pub identity: Arc<str>,
    /// Its own locality (`region/zone/subzone`); empty where nothing says.
    pub locality: Arc<str>,
    /// Shared between workloads that see the same services under the same rules.
    pub outbound: Arc<Outbound>,
    /// Some: a Gateway selects it. Its inbound connections come to these listeners only.
    pub gateway: Option<Arc<GatewayTable>>,
    /// What happens to connections from outside to the pod's own ports; None: they are not captured (gateway pods).
    pub inbound: Option<Arc<InboundTable>>,
}

/// What a workload's outbound connections are matched against. A workload for which some rules differ from its
/// namespace's has a small table of its own over the shared one (`base`): look things up with the methods, which know
/// both, not in the fields.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outbound {
    pub policy: OutboundPolicy,
    pub ports: BTreeMap<u16, PortTable>,
    /// Every cluster that `ports` leads to, and subset clusters, by name: `outbound|80||edition.cnn.com`.
    pub clusters: Names<Arc<Cluster>>,
    /// Hosts that a TLS rule names (on all ports or some). Consulted when nothing in `ports` matched: what a rule wants
    /// encrypted is refused, never passed through in the clear.
    pub guards: Guards,
    /// The ports of every service that the client sees, by its full name; of a layer, those of `base`. What destinations
    /// of routes are resolved with.
    #[serde(skip)]
    pub services: Names<Vec<u16>>,
    /// Clusters of `base` that are not in force here: subsets of rules that others took the place of.
    #[serde(skip)]
    pub hidden: HashSet<String>,
    /// A Sidecar narrows what is in this table: why a host that others know is unknown here.
    #[serde(skip)]
    pub unimported: Option<Arc<Unimported>>,
    /// What lies beneath: asked for what this table does not have. Never nested deeper.
    #[serde(skip)]
    pub base: Option<Arc<Outbound>>,
}

/// Destinations that must not get plain text.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Guards {
    /// Rules of the client's own namespace: where one of these matches, it decides. Shared within the namespace.
    pub own: Arc<HostMap<Guard>>,
    /// Of a layer: in place of those of `own` under the same pattern, as rules with a workloadSelector want it.
    pub selected: HostMap<Guard>,
    /// Rules of each other namespace that the client sees: one that guards is enough.
    pub others: Arc<Vec<NamespaceGuards>>,
    /// Under a Sidecar: hosts of other namespaces' services whose rules name no host.
    pub names: Arc<HostMap<Guard>>,
    /// Virtual addresses of guarded hosts, for connections that bear no name.
    pub addresses: Arc<AddressMap<Vec<GuardedAddress>>>,
    /// Under a Sidecar: where raw connections would have met a service that encrypts them, were it imported. What is more
    /// specific here than the service that takes the connection is refused.
    pub raw: Arc<AddressMap<Vec<GuardedAddress>>>,
}

/// What the rules of one namespace forbid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespaceGuards {
    pub namespace: Arc<str>,
    pub hosts: HostMap<Guard>,
}

/// What is forbidden towards an address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuardedAddress {
    /// The service, the same in all tables of one compilation.
    #[serde(skip)]
    pub service: usize,
    /// In a layer it may forbid nothing, which then goes before what the shared table has of the service.
    #[serde(flatten)]
    pub guard: Guard,
}

/// Why plain text for a host or address is refused where no service matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// None: every port. Some: the ports with a port-level TLS rule; empty where the rule wants no TLS, so that it ends
    /// the search for wider rules.
    pub ports: Option<Vec<u16>>,
    /// Ports that a port-level setting takes out again.
    pub except: Vec<u16>,
    pub reason: Reason,
}

/// The rule for whose sake plain text is refused. In words, for the client and the log, it names the rule and what is missing:
/// they are made when something is refused, for of thousands of guards most never do. None: nothing is refused.
#[derive(Clone, Debug, Default)]
pub struct Reason(pub Option<Arc<Object<DestinationRule>>>);

impl Reason {
    fn said_by(&self) -> Option<(&ObjectId, &str)> {
        self.0.as_ref().map(|rule| (&rule.id, rule.spec.host.as_str()))
    }
}

impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        self.said_by() == other.said_by()
    }
}

impl Eq for Reason {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((rule, host)) = self.said_by() else { return Ok(()) };
        write!(
            f,
            "{rule} asks for TLS to {host}, and no service that this workload sees takes this as HTTP to encrypt it: plain text is refused"
        )
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The services of one port.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PortTable {
    /// By Host: services whose protocol on this port is HTTP, HTTP2, GRPC or open, and hosts of VirtualServices.
    pub http: HostMap<Arc<VirtualHost>>,
    /// By SNI: `tls` routes of VirtualServices, looked at before `tls`; the first whose subnets hold.
    pub tls_routes: HostMap<Vec<TunnelMatch>>,
    /// `tcp` routes of VirtualServices, by the address dialled; looked at before `tcp`. The first whose subnets hold.
    pub tcp_routes: Vec<TunnelMatch>,
    /// Of a layer: these two are all, and those of the table beneath do not count.
    #[serde(skip)]
    pub routes_are_all: bool,
    /// By SNI: services whose protocol is HTTPS, TLS or open. Declared TCP with TLS inside is not among them.
    pub tls: HostMap<Arc<Cluster>>,
    /// By destination address: HTTPS and TLS services with addresses, for a hello whose SNI matches none.
    pub tls_addresses: AddressMap<Arc<Cluster>>,
    /// By destination address: TCP (and open) services with `addresses` or static endpoints.
    pub tcp: AddressMap<Arc<Cluster>>,
    /// The TCP service without addresses: takes what nothing else takes.
    pub tcp_any: Option<Arc<Cluster>>,
}

impl PortTable {
    /// No service is left, and no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let names = self.http.is_empty() && self.tls_routes.is_empty() && self.tls.is_empty();
        let addresses = self.tcp_routes.is_empty() && self.tls_addresses.is_empty() && self.tcp.is_empty();
        names && addresses && self.tcp_any.is_none()
    }
}

/// What to do with a connection.
#[derive(Clone, Debug)]
pub enum Decision {
    Cluster(Arc<Cluster>),
    /// One of several clusters, by weight: a VirtualService says so.
    Route(Arc<TunnelRoute>),
    /// To the address dialled, untouched: cluster `PassthroughCluster`, route `allow_any`.
    Passthrough,
    /// REGISTRY_ONLY: HTTP 502 with an empty body, else reset. Cluster `BlackHoleCluster`, route `block_all`.
    Block,
    /// A TLS rule names the destination and cannot be honoured: 503 with the reason, else reset.
    Refuse(Arc<str>),
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum HttpDecision {
    /// Its routes decide.
    Host(Arc<VirtualHost>),
    /// A gateway has no such host: 404, `NR route_not_found`.
    NotFound,
    /// No service of this name: what happens to connections that bear none.
    Unmatched(Decision),
}

/// What must be read of a connection before it can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// Declared TCP at this address: decide at once with [`Outbound::tcp`], no byte waited for.
    None,
    /// Read and tell TLS, HTTP and the rest apart; a silent client counts as TCP after the sniff timeout.
    Sniff,
}

/// Addresses and networks to values: the longest prefix wins, the first of equals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressMap<T> {
    /// Single addresses.
    pub single: HashMap<IpAddr, T>,
    /// Networks, the longest prefix first.
    pub networks: Vec<(IpNet, T)>,
}

impl<T> Default for AddressMap<T> {
    fn default() -> Self {
        Self { single: HashMap::new(), networks: Vec::new() }
    }
}

/// Names to values: exact > longest suffix wildcard > `*`. Case-insensitive; a trailing dot matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostMap<T> {
    pub exact: Names<T>,
    /// Suffix with its dot (`.foo.com` for `*.foo.com`): matches any deeper name, not `foo.com`.
    pub suffix: Names<T>,
    pub any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: Names::default(), suffix: Names::default(), any: None }
    }
}

/// The listener addresses a workload's own pod bears, as far as pure code must know them.
pub type PodAddresses = BTreeMap<WorkloadId, Vec<IpAddr>>;
