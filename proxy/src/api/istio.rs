//! networking.istio.io kinds and the mesh configuration, as far as they are honoured. Every field that Istio has and
//! egret does not honour is a warning from [`crate::source`], never silence.

use std::{collections::BTreeMap, fmt, time::Duration};

use smol_str::SmolStr;

/// networking.istio.io ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    pub hosts: Vec<SmolStr>,
    /// Virtual addresses, single or CIDR.
    pub addresses: Vec<ipnet::IpNet>,
    pub ports: Vec<Port>,
    pub location: Location,
    pub resolution: Resolution,
    pub endpoints: Vec<WorkloadEntry>,
    /// `workloadSelector.labels`; pods and WorkloadEntries of the namespace. None where absent.
    pub workload_selector: Option<BTreeMap<String, String>>,
    pub export_to: Vec<String>,
    pub subject_alt_names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub name: SmolStr,
    /// As written; see semantics: `appProtocol` > name prefix > `protocol`.
    pub protocol: SmolStr,
    pub target_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

/// An endpoint of a ServiceEntry (Istio WorkloadEntry).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// An IP address, a DNS name, or `unix:///path`.
    pub address: String,
    pub ports: BTreeMap<String, u16>,
    pub labels: BTreeMap<String, String>,
    pub network: String,
    pub locality: String,
    /// 0 means 1, as in Istio.
    pub weight: u32,
    pub service_account: String,
}

/// networking.istio.io DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationRule {
    pub host: SmolStr,
    pub traffic_policy: Option<TrafficPolicy>,
    pub subsets: Vec<Subset>,
    pub export_to: Vec<String>,
    /// `workloadSelector.matchLabels`; None where absent.
    pub workload_selector: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subset {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub traffic_policy: Option<TrafficPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    // Each is large, and given by some of many rules and levels only.
    pub load_balancer: Option<Box<LoadBalancing>>,
    pub connection_pool: Option<Box<ConnectionPool>>,
    pub outlier_detection: Option<Box<OutlierDetection>>,
    pub tls: Option<Box<ClientTls>>,
    /// Each replaces the settings above as a whole for its port.
    pub port_level_settings: Vec<(u16, TrafficPolicy)>,
}

/// DestinationRule `loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// `simple`; LEAST_REQUEST where `consistent_hash` is given too.
    pub simple: LoadBalancer,
    pub consistent_hash: Option<ConsistentHash>,
    /// None: the mesh's (`meshConfig.localityLbSetting`).
    pub locality: Option<LocalitySetting>,
    pub warmup: Option<Warmup>,
}

/// `loadBalancer.consistentHash`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct ConsistentHash {
    pub key: HashKey,
    pub ring: HashRing,
}

/// What of a request is hashed. A request that lacks it goes to an endpoint at random.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum HashKey {
    /// `httpHeaderName`
    Header(String),
    /// `httpCookie`; with a `ttl`, one is made where the request has none (zero: a session cookie).
    Cookie { name: String, path: Option<String>, ttl: Option<Duration> },
    /// `useSourceIp`
    SourceIp,
    /// `httpQueryParameterName`
    Query(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum HashRing {
    /// `minimumRingSize`, 1024 by default.
    Ring { minimum: u64 },
    /// `tableSize`, 65537 by default.
    Maglev { table: u64 },
}

/// `localityLbSetting`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct LocalitySetting {
    /// None: true where outlierDetection is given (Istio's default).
    pub enabled: Option<bool>,
    /// `from` locality to weights of `to` localities (percent, 100 together).
    pub distribute: Vec<(String, Vec<(String, u32)>)>,
    /// `from` region to `to` region.
    pub failover: Vec<(String, String)>,
    /// Labels, compared in order: `key` or `key=value`.
    pub failover_priority: Vec<String>,
}

/// `loadBalancer.warmup` (or `warmupDurationSecs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Warmup {
    pub duration: Duration,
    /// Percent of its weight that a new endpoint begins with; 10 by default.
    pub minimum_percent: u32,
    /// `aggression`, in thousandths; 1000 (linear) by default.
    pub aggression_thousandths: u32,
}

/// `outlierDetection`, defaults filled in by the reader (Istio's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct OutlierDetection {
    /// `consecutive5xxErrors`, 5 by default; None: 0, never.
    pub consecutive_5xx: Option<u32>,
    /// `consecutiveGatewayErrors` (502, 503, 504 and connection failures); None: never.
    pub consecutive_gateway: Option<u32>,
    /// `splitExternalLocalOriginErrors` with `consecutiveLocalOriginFailures`; None: not split.
    pub consecutive_local_origin: Option<u32>,
    /// 10 s by default.
    pub interval: Duration,
    /// Times the number of ejections so far; 30 s by default.
    pub base_ejection_time: Duration,
    /// Percent of the endpoints that may be ejected at a time; 10 by default, and always at least one.
    pub max_ejection_percent: u32,
    /// Percent; where fewer are healthy, all are used ("panic"). 0 by default in Istio: never.
    pub min_health_percent: u32,
}

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum LoadBalancer {
    #[default]
    LeastRequest,
    RoundRobin,
    Random,
    Passthrough,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPool {
    pub tcp_max_connections: Option<u32>,
    pub tcp_connect_timeout: Option<Duration>,
    pub tcp_idle_timeout: Option<Duration>,
    pub tcp_max_connection_duration: Option<Duration>,
    pub http1_max_pending_requests: Option<u32>,
    pub http2_max_requests: Option<u32>,
    pub http_max_requests_per_connection: Option<u32>,
    pub http_max_retries: Option<u32>,
    pub http_idle_timeout: Option<Duration>,
    /// `h2UpgradePolicy`: UPGRADE true, DO_NOT_UPGRADE false, DEFAULT None.
    pub http_h2_upgrade: Option<bool>,
    /// `useClientProtocol`: h2 upstream exactly where the client speaks it.
    pub http_use_client_protocol: bool,
    /// `maxConcurrentStreams` of one h2 connection upstream.
    pub http_max_concurrent_streams: Option<u32>,
    pub tcp_keepalive: Option<Keepalive>,
}

/// `tcpKeepalive`; None: the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Keepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// DestinationRule `tls` (ClientTLSSettings).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    pub mode: TlsMode,
    pub client_certificate: Option<String>,
    pub private_key: Option<String>,
    pub ca_certificates: Option<String>,
    pub ca_crl: Option<String>,
    pub credential_name: Option<String>,
    pub subject_alt_names: Vec<String>,
    pub sni: Option<String>,
    pub insecure_skip_verify: bool,
    /// Made from a BackendTLSPolicy: its CA, wherever the client is.
    pub ca: Option<CaSource>,
    /// … which is not there, and why: nothing is sent.
    pub refused: Option<String>,
}

/// Where a CA is that an object of the Gateway API refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaSource {
    /// Key `ca.crt`.
    ConfigMap {
        namespace: String,
        name: String,
    },
    Secret {
        namespace: String,
        name: String,
    },
}

impl fmt::Display for CaSource {
    /// As a `caCertCredentialName`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigMap { namespace, name } => write!(f, "configmap://{namespace}/{name}"),
            Self::Secret { namespace, name } => write!(f, "kubernetes-gateway://{namespace}/{name}"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// Mesh configuration (ConfigMap `istio` key `mesh`, or IstioOperator `spec.meshConfig`). None: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    /// `outboundTrafficPolicy.mode`: true for REGISTRY_ONLY.
    pub registry_only: Option<bool>,
    pub access_log_file: Option<String>,
    pub access_log_format: Option<String>,
    /// `accessLogEncoding`: true for JSON.
    pub access_log_json: Option<bool>,
    pub root_namespace: Option<String>,
    pub trust_domain: Option<String>,
    pub connect_timeout: Option<Duration>,
    /// `tlsDefaults.minProtocolVersion`: `TLSV1_2` or `TLSV1_3`.
    pub tls_min_version: Option<String>,
    /// `tlsDefaults.cipherSuites`, names as OpenSSL and Envoy write them.
    pub tls_cipher_suites: Vec<String>,
    /// `tlsDefaults.ecdhCurves`, e.g. `P-256`, `X25519`, `X25519MLKEM768`.
    pub tls_curves: Vec<String>,
    /// `enableAutoMtls`; true by default.
    pub auto_mtls: Option<bool>,
    /// `meshMTLS.minProtocolVersion`: `TLSV1_2` or `TLSV1_3`.
    pub mesh_tls_min_version: Option<String>,
    /// `localityLbSetting`
    pub locality: Option<LocalitySetting>,
    /// `defaultHttpRetryPolicy`
    pub default_retries: Option<super::virtual_service::Retries>,
    /// `trustDomainAliases`
    pub trust_domain_aliases: Vec<String>,
}
