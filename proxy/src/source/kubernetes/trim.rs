//! What is kept of an object: a Pod is 10 KB as the API server has it, and some hundred bytes of it matter.

mod slice;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::kinds::{Keep, Kind};

/// Holds the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Of other nodes' pods only annotations with these in their names are read.
const READ_ANNOTATIONS: [&str; 2] = ["istio.io/", "egret.dev/"];

#[derive(Debug, Deserialize)]
struct Object<'a> {
    #[serde(default)]
    metadata: Metadata,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_timestamp: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, S, T> {
    api_version: String,
    kind: &'static str,
    metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<S>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<T>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_network: Option<bool>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    volumes: Option<&'a RawValue>,
    #[serde(borrow, default)]
    containers: Vec<Container<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Container<'a>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    ports: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    volume_mounts: Option<&'a RawValue>,
    /// Whether one of `initContainers` stays, and is probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restart_policy: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    liveness_probe: Option<Probe<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    readiness_probe: Option<Probe<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    startup_probe: Option<Probe<'a>>,
}

/// What the kubelet asks over the network; how often is its own affair.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Probe<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    http_get: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    grpc: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct PodStatus<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(rename = "podIP", default, skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    #[serde(borrow, rename = "podIPs", default, skip_serializing_if = "Option::is_none")]
    ips: Option<&'a RawValue>,
}

/// The object in `text` as a document of its own, with its path; without a document it is as good as gone.
///
/// # Errors
/// It is no object of this kind.
pub fn document(kind: &Kind, version: &str, text: &RawValue) -> Result<(PathBuf, Option<Vec<u8>>), serde_json::Error> {
    match kind.keep {
        Keep::Slice => return slice::document(kind, version, text),
        Keep::Whole => return whole(kind, version, text),
        _ => {}
    }
    let Object { mut metadata, spec, data, status } = serde_json::from_str(text.get())?;
    let path = kind.path(metadata.namespace.as_deref(), &metadata.name);
    metadata.annotations.remove(LAST_APPLIED);
    if kind.keep != Keep::Pod {
        metadata.uid = None;
    }
    let api_version = kind.api_version(version);
    let whole =
        Document { api_version, kind: kind.kind, metadata, spec: None::<&RawValue>, data: None, status: None::<()> };
    let bytes = match kind.keep {
        Keep::Metadata | Keep::Slice | Keep::Whole => serde_json::to_vec(&whole)?,
        Keep::Spec => serde_json::to_vec(&Document { spec, ..whole })?,
        Keep::Data => serde_json::to_vec(&Document { data, ..whole })?,
        Keep::Pod | Keep::Endpoint => match pod(kind.keep, whole, spec, status)? {
            Some(bytes) => bytes,
            None => return Ok((path, None)),
        },
    };
    Ok((path, Some(bytes)))
}

fn whole(kind: &Kind, version: &str, text: &RawValue) -> Result<(PathBuf, Option<Vec<u8>>), serde_json::Error> {
    let mut object: Value = serde_json::from_str(text.get())?;
    let Metadata { name, namespace, .. } = Metadata::deserialize(&object["metadata"])?;
    object["apiVersion"] = kind.api_version(version).into();
    object["kind"] = kind.kind.into();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
    }
    Ok((kind.path(namespace.as_deref(), &name), Some(serde_json::to_vec(&object)?)))
}

fn pod(
    keep: Keep,
    whole: Document<'_, &RawValue, ()>,
    spec: Option<&RawValue>,
    status: Option<&RawValue>,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let mut spec: Option<PodSpec<'_>> = spec.map(|spec| serde_json::from_str(spec.get())).transpose()?;
    let status: Option<PodStatus<'_>> = status.map(|status| serde_json::from_str(status.get())).transpose()?;
    let mut metadata = whole.metadata;
    if keep == Keep::Endpoint {
        let phase = status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return Ok(None);
        }
        metadata.annotations.retain(|name, _| READ_ANNOTATIONS.iter().any(|read| name.contains(read)));
        if let Some(spec) = &mut spec {
            spec.volumes = None;
            for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
                *container = Container { ports: container.ports, ..Container::default() };
            }
            spec.init_containers.retain(|container| container.ports.is_some());
        }
    }
    let Document { api_version, kind, data, .. } = whole;
    serde_json::to_vec(&Document { api_version, kind, metadata, spec, data, status }).map(Some)
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub struct Page<'a> {
    #[serde(default)]
    pub metadata: PageMetadata,
    /// Null where Go's slice is nil.
    #[serde(borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PageMetadata {
    pub resource_version: String,
    #[serde(rename = "continue")]
    pub continued: String,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// Of an event's object.
#[derive(Debug, Default, Deserialize)]
pub struct Versioned {
    #[serde(default)]
    pub metadata: Version,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Version {
    pub resource_version: String,
    pub annotations: BTreeMap<String, String>,
}

/// What an API server says where it does not do as it was asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub code: u16,
    pub message: String,
    pub reason: String,
    pub details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    pub retry_after_seconds: Option<u64>,
}

/// A group's resources by version, in aggregated discovery (`/apis`, Kubernetes 1.26) or, where the server has none, the names
/// of the groups alone.
#[derive(Debug, Deserialize)]
pub struct Groups {
    pub kind: String,
    #[serde(default)]
    pub items: Vec<Group>,
}

#[derive(Debug, Deserialize)]
pub struct Group {
    #[serde(default)]
    pub metadata: GroupMetadata,
    #[serde(default)]
    pub versions: Vec<GroupVersion>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GroupMetadata {
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct GroupVersion {
    pub version: String,
    #[serde(default)]
    pub resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
pub struct Resource {
    /// In aggregated discovery.
    #[serde(default)]
    pub resource: String,
    /// In an APIResourceList.
    #[serde(default)]
    pub name: String,
}

/// `/apis/GROUP/VERSION`
#[derive(Debug, Deserialize)]
pub struct ResourceList {
    #[serde(default)]
    pub resources: Vec<Resource>,
}

impl ResourceList {
    #[must_use]
    pub fn names(self) -> BTreeSet<String> {
        self.resources.into_iter().map(|resource| resource.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::kinds, *};

    const POD: &str = r#"{"metadata": {"name": "app", "namespace": "shop", "uid": "u"}, "spec": {"nodeName": "here",
        "containers": [{"name": "c", "image": "i", "livenessProbe": {"httpGet": {"path": "/healthz", "port": "web", "scheme": "HTTP"},
        "periodSeconds": 3}, "readinessProbe": {"exec": {"command": ["x"]}, "failureThreshold": 3},
        "startupProbe": {"grpc": {"port": 9000, "service": ""}}}],
        "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 1}]}]}}"#;

    fn kept(kind: &Kind) -> Value {
        let text: &RawValue = serde_json::from_str(POD).unwrap();
        let (_, bytes) = document(kind, "v1", text).unwrap();
        serde_json::from_slice(&bytes.unwrap()).unwrap()
    }

    /// Its own node's agent alone is asked by the kubelet.
    #[test]
    fn probes_over_the_network_are_kept_of_this_nodes_pods() {
        let own = kept(&kinds::OWN_PODS);
        let container = serde_json::json!({
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "web", "scheme": "HTTP"}},
            "readinessProbe": {},
            "startupProbe": {"grpc": {"port": 9000, "service": ""}},
        });
        assert_eq!(own["spec"]["containers"][0], container);
        let stays = serde_json::json!({"restartPolicy": "Always", "ports": [{"containerPort": 1}]});
        assert_eq!(own["spec"]["initContainers"][0], stays);
        let other = kept(&kinds::OTHER_PODS);
        assert_eq!(other["spec"]["containers"][0], serde_json::json!({}));
        assert_eq!(other["spec"]["initContainers"][0], serde_json::json!({"ports": [{"containerPort": 1}]}));
    }
}
