//! One upstream service on one port: where it is, how its endpoints are chosen, and what protects the way to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use smol_str::SmolStr;

use serde::Serialize;

use super::{
    authorization::Policies,
    inbound::{Application, MtlsMode, MtlsModes},
};
use crate::{api::ObjectId, limits};

/// One upstream service on one port, with the policy that applies to it for this workload.
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// `outbound|<port>|<subset>|<host>`
    pub name: String,
    pub host: SmolStr,
    pub port: u16,
    pub subset: String,
    pub protocol: Protocol,
    pub discovery: Discovery,
    pub load_balancer: LoadBalancer,
    /// `consistentHash`: goes before `load_balancer`.
    pub hash: Option<Box<ConsistentHash>>,
    /// None: localities are not looked at.
    pub locality: Option<Box<LocalitySetting>>,
    pub warmup: Option<Box<Warmup>>,
    pub outlier: Option<Box<OutlierDetection>>,
    /// Shared by all clusters that have the same.
    pub pool: Arc<Pool>,
    pub tls: UpstreamTls,
    pub mesh_external: bool,
    /// The object that defines the service (ServiceEntry or Service).
    pub service: ObjectId,
    /// The DestinationRule that applies, for `proxy-config cluster` and `egret explain`.
    pub destination_rule: Option<ObjectId>,
    /// AuthorizationPolicies about the service (`targetRefs`), enforced where calls leave for it.
    pub policies: Option<Arc<Policies>>,
}

impl Cluster {
    /// The endpoint at this address, as far as the objects tell of it.
    #[must_use]
    pub fn endpoint(&self, address: &EndpointAddress) -> Endpoint {
        let listed = match &self.discovery {
            Discovery::Static(endpoints) => endpoints.iter().find(|endpoint| endpoint.address == *address),
            _ => None,
        };
        listed.cloned().unwrap_or_else(|| Endpoint::new(address.clone(), 1))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    Https,
    Tls,
    Tcp,
    /// Not declared: sniffed.
    Auto,
}

/// How the addresses of a cluster are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Discovery {
    Static(Vec<Endpoint>),
    /// Each name resolved as the pod would. `one_at_a_time`: DNS_ROUND_ROBIN, the first address of each answer.
    Dns {
        targets: Vec<DnsTarget>,
        one_at_a_time: bool,
    },
    /// The address that the client dialled, on `port` where given (resolution NONE, `targetPort`).
    OriginalDestination {
        port: Option<u16>,
    },
    /// The Host or SNI asked for, resolved (DYNAMIC_DNS).
    Dynamic {
        port: u16,
    },
    /// The pod's own application, for what comes to it from outside.
    Application(Application),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    pub address: EndpointAddress,
    /// At least 1.
    pub weight: u32,
    /// `region/zone/subzone`; empty where nothing says.
    pub locality: Arc<str>,
    /// The labels of its pod or WorkloadEntry, where a rule asks for them (`failoverPriority`); else none.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Who it is in the mesh; None: outside.
    pub peer: Option<Arc<Peer>>,
}

impl Endpoint {
    /// An endpoint outside the mesh, of no known place.
    #[must_use]
    pub fn new(address: EndpointAddress, weight: u32) -> Self {
        Self { address, weight, locality: Self::no_locality(), labels: Self::no_labels(), peer: None }
    }

    /// No known locality. Endpoints are made by the thousand, and anew for each request where names are resolved: what is
    /// empty is shared, not allocated.
    #[must_use]
    pub fn no_locality() -> Arc<str> {
        static NOWHERE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));
        NOWHERE.clone()
    }

    /// No labels, shared likewise.
    #[must_use]
    pub fn no_labels() -> Arc<BTreeMap<String, String>> {
        static NO_LABELS: LazyLock<Arc<BTreeMap<String, String>>> = LazyLock::new(Arc::default);
        NO_LABELS.clone()
    }
}

/// A workload of the mesh, as those who call it see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Peer {
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
    pub identity: Arc<str>,
    /// Its inbound is captured, and this is what its ports take: auto mTLS counts. None: no enrolled pod, or a gateway's,
    /// which take it where their servers say so and are called with it where a DestinationRule says ISTIO_MUTUAL.
    pub captured: Option<Arc<MtlsModes>>,
}

impl Peer {
    /// Auto mTLS to this port of its own.
    #[must_use]
    pub fn takes_mtls(&self, port: u16) -> bool {
        self.captured.as_ref().is_some_and(|modes| modes.of(port) != MtlsMode::Disable)
    }
}

impl Endpoint {
    /// Who it is, where auto mTLS counts towards it.
    #[must_use]
    pub fn mtls_peer(&self) -> Option<&Arc<Peer>> {
        let EndpointAddress::Ip(address) = &self.address else { return None };
        self.peer.as_ref().filter(|peer| peer.takes_mtls(address.port()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum EndpointAddress {
    Ip(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DnsTarget {
    /// A DNS name, or an IP address as text.
    pub name: String,
    pub port: u16,
    pub weight: u32,
}

pub use crate::api::istio::{
    ConsistentHash, HashKey, HashRing, Keepalive, LoadBalancer, LocalitySetting, OutlierDetection, Warmup,
};

/// `connectionPool` with defaults filled in. `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Pool {
    pub connect_timeout: Duration,
    pub max_connections: Option<u32>,
    pub max_pending_requests: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
    pub max_retries: Option<u32>,
    pub max_connection_duration: Option<Duration>,
    pub http_idle_timeout: Duration,
    pub tcp_idle_timeout: Duration,
    /// Offer h2 upstream for a port that is plain HTTP (`h2UpgradePolicy: UPGRADE`).
    pub h2_upgrade: bool,
    /// h2 upstream exactly where the client speaks it.
    pub use_client_protocol: bool,
    /// Of one h2 connection upstream.
    pub max_concurrent_streams: Option<u32>,
    pub tcp_keepalive: Option<Keepalive>,
}

impl Default for Pool {
    /// The limits of a cluster of which no rule speaks.
    fn default() -> Self {
        Self {
            connect_timeout: limits::CONNECT_TIMEOUT,
            max_connections: None,
            max_pending_requests: None,
            max_requests: None,
            max_requests_per_connection: None,
            max_retries: None,
            max_connection_duration: None,
            http_idle_timeout: limits::IDLE_TIMEOUT,
            tcp_idle_timeout: limits::IDLE_TIMEOUT,
            h2_upgrade: false,
            use_client_protocol: false,
            max_concurrent_streams: None,
            tcp_keepalive: None,
        }
    }
}

/// What a cluster does about TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum UpstreamTls {
    /// No rule, or DISABLE.
    Plain,
    Originate(Arc<TlsSettings>),
    /// ISTIO_MUTUAL, or auto mTLS.
    Mesh(Arc<MeshTls>),
    /// The rule cannot be honoured, for a reason that the objects alone tell: refuse, 503.
    Refuse(Arc<str>),
}

/// What a rule says of TLS. Most rules of a mesh differ in the server's name at most, so the rest is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TlsSettings {
    /// Fixed SNI of the rule. None: the Host asked for (HTTP), or the service's host (TCP), none for an IP.
    pub sni: Option<String>,
    #[serde(flatten)]
    pub context: Arc<TlsContextSettings>,
}

impl std::ops::Deref for TlsSettings {
    type Target = TlsContextSettings;

    fn deref(&self) -> &TlsContextSettings {
        &self.context
    }
}

#[cfg(test)]
impl std::ops::DerefMut for TlsSettings {
    fn deref_mut(&mut self) -> &mut TlsContextSettings {
        Arc::make_mut(&mut self.context)
    }
}

/// Everything that decides a TLS client context. Equal settings share one context (and one session store).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TlsContextSettings {
    /// Exact names one of which the peer must bear; empty: the SNI sent (or the IP, for a request to an IP).
    pub subject_alt_names: Vec<String>,
    pub insecure_skip_verify: bool,
    /// MUTUAL: the certificate presented.
    pub identity: Option<IdentitySource>,
    pub trust: TrustSource,
    pub crl: Option<Material>,
    /// Offered in this order; empty: no ALPN.
    pub alpn: Vec<String>,
    /// `tlsDefaults`.
    pub min_version: Option<String>,
    pub cipher_suites: Vec<String>,
    pub curves: Vec<String>,
}

/// Mesh mTLS towards the endpoints of a cluster, with the workload's own SPIFFE certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MeshTls {
    /// A rule says ISTIO_MUTUAL: every endpoint gets it. Else auto mTLS: those whose [`Peer::captured`] is true get it, the
    /// others plain text.
    pub required: bool,
    /// `outbound_.<port>_.<subset>_.<host>` unless the rule has its own.
    pub sni: String,
    /// SPIFFE identities one of which the peer must bear (`subjectAltNames`). Empty: that of the endpoint dialled; where it is
    /// not known, any of the trust domain.
    pub subject_alt_names: Vec<String>,
}

/// Certificate chain and private key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum IdentitySource {
    /// A Secret as Istio reads it (`cert`+`key` before `tls.crt`+`tls.key`). Shown as `kubernetes://<name>`.
    Secret { namespace: String, name: String },
    /// `clientCertificate` and `privateKey`. Shown as `file-cert:<crt>~<key>`.
    Files { certificate: Material, key: Material },
}

/// What upstream certificates are checked against.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum TrustSource {
    /// The system's bundle; X.509 v1 and CN-only leaves are not accepted.
    System,
    /// CA (and CRL) of the Secret `<name>-cacert`, else of `<name>`. Shown as `kubernetes://<name>-cacert`.
    Secret { namespace: String, name: String },
    /// Key `ca.crt` of this ConfigMap. Shown as `configmap://<namespace>/<name>`.
    ConfigMap { namespace: String, name: String },
    /// `caCertificates`. Shown as `file-root:<path>`.
    File(Material),
}

/// A file that a rule names, found through the workload's volumes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Material {
    /// The path as the rule has it.
    pub path: String,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Place {
    /// No volume covers the path: a path on the host.
    Host,
    /// A volume covers it: this key of this Secret.
    Secret { namespace: String, name: String, key: String },
    /// … or of this ConfigMap.
    ConfigMap { namespace: String, name: String, key: String },
}
