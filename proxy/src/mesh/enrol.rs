//! Which pods are enrolled, and the mesh-wide settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
};

use super::{
    findings::Findings,
    table::{OutboundPolicy, Settings, WorkloadId},
};
use crate::{
    api::{AnyObject, Object, Objects, core::Pod, istio::MeshConfig},
    source::Changed,
};

/// Names the network namespace of a pod on a single host: a name under /run/netns, or a path.
pub const NETNS: &str = "egret.dev/netns";
/// On a pod or its namespace: `true` enrols, `false` leaves alone.
const ENROLL: &str = "egret.dev/enroll";
/// On a pod. What Istio's webhook reads.
const INJECT: &str = "sidecar.istio.io/inject";
/// On a namespace: `enabled`.
const INJECTION: &str = "istio-injection";
/// On a pod or its namespace: `ambient` or `none`.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// On the API server's image of a static pod: the UID that the kubelet knows it by (Kubernetes `ConfigMirrorAnnotationKey`).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Where the network namespace of an enrolled pod is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Netns {
    /// The value of `egret.dev/netns`.
    Named(String),
    /// By the UID under which the kubelet of this node runs the pod.
    OfPod { uid: String },
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::OfPod { uid } => write!(f, "pod {uid}"),
        }
    }
}

/// An enrolled pod.
pub struct Enrolled<'a> {
    pub id: WorkloadId,
    /// None: it is on another node, whose agent serves it.
    pub netns: Option<Netns>,
    pub pod: &'a Arc<Object<Pod>>,
}

/// What an agent has to do with the pods of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePods {
    /// Those that [`super::compile`] enrols: they must be opened first, for the compiler wants their addresses.
    pub enrolled: BTreeMap<WorkloadId, Netns>,
    /// UIDs of the other pods of this node, which go their own way. Of a single host nobody asks.
    pub left_alone: BTreeSet<String>,
}

#[must_use]
pub fn node_pods(objects: &Objects) -> NodePods {
    let enrolled = enrolled(objects, &mut Findings::default());
    let enrolled = enrolled.into_iter().filter_map(|one| Some((one.id, one.netns?))).collect();
    let alone = objects.pods.values().filter(|pod| {
        let here = objects.node.as_deref().is_some_and(|node| pod.spec.node_name == node);
        here && !pod.spec.finished && !by_label(objects, pod)
    });
    NodePods { enrolled, left_alone: alone.map(|pod| uid(pod).to_owned()).filter(|uid| !uid.is_empty()).collect() }
}

/// Whether [`node_pods`] of this node may be others after a change.
#[must_use]
pub fn concerns_node(node: Option<&str>, changed: &Changed) -> bool {
    changed.before.iter().chain(&changed.after).any(|object| match object {
        AnyObject::Pod(pod) => node.is_none_or(|node| pod.spec.node_name == node),
        AnyObject::Namespace(_) => true,
        _ => false,
    })
}

/// The pods that are enrolled.
pub fn enrolled<'a>(objects: &'a Objects, findings: &mut Findings) -> Vec<Enrolled<'a>> {
    match &objects.node {
        None if objects.controllers.is_none() => enrolled_by_name(objects, findings),
        node => enrolled_by_label(objects, node.as_deref(), findings),
    }
}

/// On a single host pods say where they are.
fn enrolled_by_name<'a>(objects: &'a Objects, findings: &mut Findings) -> Vec<Enrolled<'a>> {
    let mut taken: BTreeMap<&str, &Arc<Object<Pod>>> = BTreeMap::new();
    let mut enrolled = Vec::new();
    for pod in objects.pods.values() {
        let Some(netns) = pod.meta.annotations.get(NETNS).map(|name| name.trim()) else { continue };
        let field = format!("metadata.annotations.{NETNS}");
        if netns.is_empty() {
            findings.error(pod, &field, "empty: name a network namespace as `ip netns` does, or give its path");
            continue;
        }
        if opted_out(pod) {
            continue;
        }
        if let Some(first) = taken.get(namespace_name(netns)) {
            let message = format!("{} is in the network namespace {netns} already: this pod is not enrolled", first.id);
            findings.error(pod, &field, message);
            continue;
        }
        taken.insert(namespace_name(netns), pod);
        enrolled.push(Enrolled { id: id(pod), netns: Some(Netns::Named(netns.to_owned())), pod });
    }
    enrolled
}

/// In a cluster labels say who is enrolled, and the kubelet of this node where it is.
fn enrolled_by_label<'a>(objects: &'a Objects, node: Option<&str>, findings: &mut Findings) -> Vec<Enrolled<'a>> {
    let here = |pod: &Object<Pod>| node.is_some_and(|node| pod.spec.node_name == node);
    let mut claims: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in objects.pods.values().filter(|pod| here(pod)) {
        *claims.entry(uid(pod)).or_default() += 1;
    }
    let mut enrolled = Vec::new();
    for pod in objects.pods.values() {
        if pod.meta.annotations.contains_key(NETNS) {
            // Whoever may create pods could name another one's.
            let message = "ignored: in a cluster the kubelet tells where a pod is";
            findings.warn(pod, &format!("metadata.annotations.{NETNS}"), message);
        }
        if !by_label(objects, pod) {
            continue;
        }
        if !here(pod) {
            enrolled.push(Enrolled { id: id(pod), netns: None, pod });
            continue;
        }
        let uid = uid(pod);
        if uid.is_empty() {
            findings.error(pod, "metadata.uid", "missing: without it the pod is not found, and not enrolled");
        } else if claims.get(uid).is_some_and(|claims| *claims > 1) {
            let message = format!("{uid} is the UID of several pods of this node: none of them is enrolled");
            findings.error(pod, "metadata.uid", message);
        } else {
            enrolled.push(Enrolled { id: id(pod), netns: Some(Netns::OfPod { uid: uid.to_owned() }), pod });
        }
    }
    enrolled
}

fn id(pod: &Object<Pod>) -> WorkloadId {
    WorkloadId { namespace: pod.meta.namespace.clone(), name: pod.meta.name.clone() }
}

/// The UID by which the kubelet calls the pod's cgroup. That of a static pod is a hash without dashes; as anybody may write
/// the annotation, nothing that looks like another pod's is believed.
fn uid(pod: &Object<Pod>) -> &str {
    let mirrored = pod.meta.annotations.get(MIRROR).map(String::as_str);
    mirrored.filter(|hash| !hash.is_empty() && hash.bytes().all(|b| b.is_ascii_hexdigit())).unwrap_or(&pod.spec.uid)
}

/// Whether a pod of a cluster is enrolled: its own word first, then that of its namespace. A pod that says both is left alone.
fn by_label(objects: &Objects, pod: &Object<Pod>) -> bool {
    if opted_out(pod) || pod.spec.finished {
        return false;
    }
    let asks = says(pod, ENROLL, &["true"]) || says(pod, DATAPLANE_MODE, &["ambient"]);
    let injected = pod.meta.labels.get(INJECT).is_some_and(|value| YES.contains(&value.as_str()));
    if asks || injected {
        return true;
    }
    let namespace = objects.namespaces.get("", &pod.meta.namespace);
    namespace.is_some_and(|namespace| {
        !says(namespace, ENROLL, &["false"])
            && (says(namespace, ENROLL, &["true"])
                || says(namespace, DATAPLANE_MODE, &["ambient"])
                || says(namespace, INJECTION, &["enabled"]))
    })
}

/// How Istio's webhook writes yes and no.
const YES: [&str; 4] = ["true", "yes", "y", "on"];
const NO: [&str; 4] = ["false", "no", "n", "off"];

/// The pod's own namespace is the node's, or it asks to be left alone.
fn opted_out(pod: &Object<Pod>) -> bool {
    let asks = says(pod, ENROLL, &["false"]) || says(pod, INJECT, &NO) || says(pod, DATAPLANE_MODE, &["none"]);
    pod.spec.host_network || asks
}

/// As label or as annotation.
fn says<S>(object: &Object<S>, key: &str, values: &[&str]) -> bool {
    let maps = [&object.meta.labels, &object.meta.annotations];
    maps.iter().any(|map| map.get(key).is_some_and(|own| values.contains(&own.as_str())))
}

/// A name and the path that `ip netns` keeps it under are the same namespace.
fn namespace_name(netns: &str) -> &str {
    let path = netns.strip_prefix("/var").unwrap_or(netns);
    path.strip_prefix("/run/netns/").unwrap_or(netns)
}

/// The mesh configuration in force: the last one, where there are several.
pub fn mesh_config<'a>(objects: &'a Objects, findings: &mut Findings) -> Option<&'a MeshConfig> {
    let mut all = objects.mesh_configs.values();
    let last = all.next_back()?;
    for other in all {
        findings.warn(other, "", format!("the mesh configuration is taken from {}: this one is ignored", last.id));
    }
    Some(&last.spec)
}

pub fn settings(config: Option<&MeshConfig>) -> Settings {
    let mut settings = Settings::default();
    let Some(config) = config else { return settings };
    if config.registry_only == Some(true) {
        settings.outbound_policy = OutboundPolicy::RegistryOnly;
    }
    if let Some(file) = &config.access_log_file {
        settings.access_log_file = (!file.is_empty()).then(|| PathBuf::from(file));
    }
    settings.access_log_format = config.access_log_format.clone().filter(|format| !format.is_empty());
    settings.access_log_json = config.access_log_json.unwrap_or_default();
    let filled = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    if let Some(namespace) = filled(&config.root_namespace) {
        settings.root_namespace = namespace;
    }
    if let Some(domain) = filled(&config.trust_domain) {
        settings.trust_domain = domain;
    }
    settings.trust_domain_aliases = config.trust_domain_aliases.clone();
    settings.auto_mtls = config.auto_mtls.unwrap_or(true);
    settings.mesh_tls_min_version = filled(&config.mesh_tls_min_version);
    settings
}
