//! Istio's standard labels, as the side that reports knows them.

use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};

use crate::{
    mesh::{Cluster, Mesh, Workload, WorkloadId},
    telemetry::record::Flag,
};

const UNKNOWN: &str = "unknown";

/// The labels that speak of the pod that reports: the client, or at its own ports the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    workload: String,
    namespace: String,
    app: String,
    version: String,
    canonical_service: String,
    canonical_revision: String,
    /// Its SPIFFE identity; empty where it is not known.
    identity: Arc<str>,
}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.workload.hash(state);
        self.namespace.hash(state);
    }
}

/// The source labels of each pod.
pub type Sources = HashMap<WorkloadId, Arc<Source>>;

impl Source {
    /// Istio derives these from the pod's labels in just this order of preference.
    pub fn of(workload: &Workload) -> Self {
        let label = |names: &[&str]| {
            names.iter().find_map(|name| workload.labels.get(*name)).filter(|value| !value.is_empty()).cloned()
        };
        let unknown = || UNKNOWN.to_owned();
        Self {
            workload: workload.id.name.to_string(),
            namespace: workload.id.namespace.to_string(),
            app: label(&["app", "app.kubernetes.io/name"]).unwrap_or_else(unknown),
            version: label(&["version", "app.kubernetes.io/version"]).unwrap_or_else(unknown),
            canonical_service: label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
                .unwrap_or_else(|| workload.id.name.to_string()),
            canonical_revision: label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
                .unwrap_or_else(|| "latest".to_owned()),
            identity: workload.identity.clone(),
        }
    }

    pub fn table(mesh: &Mesh) -> Sources {
        mesh.workloads.iter().map(|(id, workload)| (id.clone(), Arc::new(Self::of(workload)))).collect()
    }

    /// For a pod of which only the name is known.
    pub fn named(id: &WorkloadId) -> Self {
        Self {
            workload: id.name.to_string(),
            namespace: id.namespace.to_string(),
            app: UNKNOWN.to_owned(),
            version: UNKNOWN.to_owned(),
            canonical_service: id.name.to_string(),
            canonical_revision: "latest".to_owned(),
            identity: Arc::default(),
        }
    }

    /// What is counted once there are too many series.
    pub fn overflow() -> Self {
        let unknown = || UNKNOWN.to_owned();
        Self {
            workload: unknown(),
            namespace: unknown(),
            app: unknown(),
            version: unknown(),
            canonical_service: unknown(),
            canonical_revision: unknown(),
            identity: Arc::default(),
        }
    }

    pub fn id(&self) -> WorkloadId {
        WorkloadId { namespace: self.namespace.as_str().into(), name: self.workload.as_str().into() }
    }
}

/// The labels that speak of the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    service: String,
    name: String,
    namespace: String,
}

impl Destination {
    /// A service of the mesh's table, or a cluster for what no service matches. Names that the client chose are
    /// never a label: they would make as many series as it likes.
    pub fn new(cluster: Option<&Cluster>, cluster_name: &str) -> Self {
        match cluster.filter(|cluster| !cluster.host.is_empty()) {
            Some(cluster) => Self {
                service: cluster.host.to_string(),
                // A Service is shown by its short name, a ServiceEntry by its host, as in Istio.
                name: if cluster.service.kind == "Service" {
                    cluster.service.name.to_string()
                } else {
                    cluster.host.to_string()
                },
                namespace: cluster.service.namespace.to_string(),
            },
            None => {
                let name = unnamed(cluster_name).to_owned();
                Self { service: UNKNOWN.to_owned(), name, namespace: UNKNOWN.to_owned() }
            }
        }
    }
}

/// How a cluster that is no service's is called.
pub fn unnamed(cluster_name: &str) -> &'static str {
    let known = ["PassthroughCluster", "BlackHoleCluster", "InboundPassthroughCluster"];
    known.into_iter().find(|known| *known == cluster_name).unwrap_or(UNKNOWN)
}

/// The labels that the server's side has of a client. An identity is one that our CA has given out, so there are no more
/// than service accounts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Proved by mesh mTLS; None: plain text, or TLS that was passed on.
    pub principal: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    Http,
    Grpc,
    Tcp,
}

/// A set of flags that prints alike however it was gathered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flags(Vec<Flag>);

impl Flags {
    pub fn new(flags: &[Flag]) -> Self {
        let mut flags = flags.to_vec();
        flags.sort_unstable();
        flags.dedup();
        Self(flags)
    }

    fn label(&self) -> String {
        if self.0.is_empty() {
            return "-".to_owned();
        }
        self.0.iter().map(|flag| flag.name()).collect::<Vec<_>>().join(",")
    }
}

/// One series: what a request or connection is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    pub source: Arc<Source>,
    /// Some: `source` is the server and this is who called it. None: `source` is the client.
    pub caller: Option<Caller>,
    pub destination: Destination,
    pub protocol: RequestProtocol,
    /// None for TCP, which has no such label.
    pub response_code: Option<u16>,
    pub grpc_status: Option<u32>,
    pub flags: Flags,
}

impl Labels {
    /// Codes and statuses are a peer's to choose: what no RFC has is one label.
    fn code(&self) -> Option<String> {
        self.response_code.map(|code| match code {
            0 | 100..=599 => code.to_string(),
            _ => UNKNOWN.to_owned(),
        })
    }

    fn grpc(&self) -> String {
        match (self.protocol, self.grpc_status) {
            (RequestProtocol::Grpc, Some(status @ 0..=16)) => status.to_string(),
            (RequestProtocol::Grpc, Some(_)) => UNKNOWN.to_owned(),
            _ => String::new(),
        }
    }

    /// Brings what prints alike to one value, so that no two series bear the same labels.
    #[must_use]
    pub fn normal(mut self) -> Self {
        if self.response_code.is_some_and(|code| !matches!(code, 0 | 100..=599)) {
            self.response_code = Some(u16::MAX);
        }
        self.grpc_status = match (self.protocol, self.grpc_status) {
            (RequestProtocol::Grpc, Some(status)) => Some(status.min(17)),
            _ => None,
        };
        self
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
            RequestProtocol::Tcp => "tcp",
        };
        let flags = self.flags.label();
        let mut pair = |key: &'static str, value: &str| (key, value).encode(encoder.encode_label());
        let known = Pod::known(&self.source);
        let (source, destination) = match &self.caller {
            None => (known, Pod::UNKNOWN),
            // Each has proved to the other who it is, or neither has.
            Some(Caller { principal: None }) => (Pod::UNKNOWN, known),
            Some(Caller { principal: Some(client) }) => {
                let own = Some(&*self.source.identity).filter(|own| !own.is_empty());
                (Pod { principal: client, ..Pod::UNKNOWN }, Pod { principal: own.unwrap_or(UNKNOWN), ..known })
            }
        };
        pair("reporter", if self.caller.is_none() { "source" } else { "destination" })?;
        pair("source_workload", source.workload)?;
        pair("source_canonical_service", source.canonical_service)?;
        pair("source_canonical_revision", source.canonical_revision)?;
        pair("source_workload_namespace", source.namespace)?;
        pair("source_principal", source.principal)?;
        pair("source_app", source.app)?;
        pair("source_version", source.version)?;
        pair("source_cluster", source.cluster)?;
        pair("destination_workload", destination.workload)?;
        pair("destination_workload_namespace", destination.namespace)?;
        pair("destination_principal", destination.principal)?;
        pair("destination_app", destination.app)?;
        pair("destination_version", destination.version)?;
        pair("destination_service", &self.destination.service)?;
        pair("destination_canonical_service", destination.canonical_service)?;
        pair("destination_canonical_revision", destination.canonical_revision)?;
        pair("destination_service_name", &self.destination.name)?;
        pair("destination_service_namespace", &self.destination.namespace)?;
        pair("destination_cluster", destination.cluster)?;
        pair("request_protocol", protocol)?;
        if let Some(code) = self.code() {
            pair("response_code", &code)?;
            pair("grpc_response_status", &self.grpc())?;
        }
        pair("response_flags", &flags)?;
        // Only the server's side knows, says Istio, and prints `unknown` on the client's.
        let policy = match &self.caller {
            None => UNKNOWN,
            Some(Caller { principal: None }) => "none",
            Some(Caller { principal: Some(_) }) => "mutual_tls",
        };
        pair("connection_security_policy", policy)
    }
}

/// One side's labels, in Istio's words.
struct Pod<'a> {
    workload: &'a str,
    namespace: &'a str,
    app: &'a str,
    version: &'a str,
    canonical_service: &'a str,
    canonical_revision: &'a str,
    principal: &'a str,
    cluster: &'a str,
}

impl<'a> Pod<'a> {
    const UNKNOWN: Pod<'static> = Pod {
        workload: UNKNOWN,
        namespace: UNKNOWN,
        app: UNKNOWN,
        version: UNKNOWN,
        canonical_service: UNKNOWN,
        canonical_revision: UNKNOWN,
        principal: UNKNOWN,
        cluster: UNKNOWN,
    };

    fn known(source: &'a Source) -> Self {
        Self {
            workload: &source.workload,
            namespace: &source.namespace,
            app: &source.app,
            version: &source.version,
            canonical_service: &source.canonical_service,
            canonical_revision: &source.canonical_revision,
            principal: UNKNOWN,
            cluster: "Kubernetes",
        }
    }
}
