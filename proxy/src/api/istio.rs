//! networking.istio.io kinds and the mesh configuration, as far as they are honoured. Every field that Istio has and
//! egret does not honour is a warning from [`crate::source`], never silence.

use std::{collections::BTreeMap, time::Duration};

/// networking.istio.io ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    pub hosts: Vec<String>,
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
    pub name: String,
    /// As written; see semantics: `appProtocol` > name prefix > `protocol`.
    pub protocol: String,
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
    pub host: String,
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
    pub load_balancer: Option<LoadBalancer>,
    pub connection_pool: Option<ConnectionPool>,
    pub tls: Option<ClientTls>,
    /// Each replaces the four settings above as a whole for its port.
    pub port_level_settings: Vec<(u16, TrafficPolicy)>,
}

/// `loadBalancer.simple`; the other forms come with their own issue and are a warning until then.
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
}
