//! Kubernetes core/v1 kinds, as far as the data plane reads them.

use std::collections::BTreeMap;

use serde::Serialize;

/// core/v1 Pod: `spec` and the parts of `status` that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub service_account_name: String,
    pub host_network: bool,
    pub volumes: Vec<Volume>,
    /// Mounts of all containers, in order.
    pub mounts: Vec<VolumeMount>,
    /// Named container ports, for named `targetPort`s.
    pub ports: Vec<ContainerPort>,
    /// What the kubelet asks over HTTP or gRPC, of all containers.
    pub probes: Vec<Probe>,
    /// `status.podIPs`, or `status.podIP`.
    pub ips: Vec<std::net::IpAddr>,
    /// `metadata.uid`, which tells a pod from a later one of the same name; files have none, as a rule.
    pub uid: String,
    /// `spec.nodeName`; empty before it is scheduled, and in files.
    pub node_name: String,
    /// `status.phase` is Succeeded or Failed: nothing of it runs any more, and its address may be another one's.
    pub finished: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    /// What its files are from: one source, or those of a projected volume in their order, of which a later one writes over what an
    /// earlier one wrote. Empty: no source that holds certificates.
    pub sources: Vec<VolumeSource>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSource {
    pub from: FilesFrom,
    /// `items` as path → key; empty means every key under its own name.
    pub items: BTreeMap<String, String>,
    /// What is missing is left out. Without this the kubelet makes nothing of the volume then.
    pub optional: bool,
}

/// Files by key, of the pod's own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesFrom {
    /// `secretName`, or `name` in a projected volume
    Secret(String),
    /// `name` of a ConfigMap
    ConfigMap(String),
    /// What the kubelet makes by itself, as this field of a projected volume says (`serviceAccountToken` …). Its `items` have paths
    /// and no keys.
    Other(&'static str),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub sub_path: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: Option<String>,
    pub port: u16,
}

/// A container's `livenessProbe`, `readinessProbe` or `startupProbe` by `httpGet` or `grpc`. The others ask for nothing that
/// could be refused: `exec` stays inside the container, and `tcpSocket` has its answer once it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The pod's own.
    pub port: u16,
    pub request: ProbeRequest,
    /// Its path in the document, such as `spec.containers[0].livenessProbe.httpGet`.
    pub field: String,
}

/// The one request that a probe consists of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ProbeRequest {
    /// GET for this target in origin-form, query included. `https`: inside TLS; the kubelet checks no certificate.
    HttpGet { https: bool, target: String },
    /// `grpc.health.v1.Health/Check` over HTTP/2 in plain text.
    Grpc,
}

/// core/v1 Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub type_: String,
    /// ClusterIPs; empty for headless and ExternalName, and where nobody assigned one (a file).
    pub cluster_ips: Vec<std::net::IpAddr>,
    /// `clusterIP: None`: clients resolve the name to the pods themselves.
    pub headless: bool,
    pub external_name: Option<String>,
    /// Endpoints that are not ready are used all the same.
    pub publish_not_ready_addresses: bool,
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Option<String>,
    pub app_protocol: Option<String>,
    pub target_port: Option<TargetPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

/// core/v1 Namespace: its labels and annotations are in the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {}

/// core/v1 Secret: `data` decoded, `stringData` laid over it. The type is ignored.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    pub data: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Secret {
    /// Names the keys, never what they hold.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.data.keys()).finish()
    }
}

/// core/v1 ConfigMap, but for the one named `istio`, which holds mesh settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigMap {
    pub data: BTreeMap<String, String>,
}
