//! Which pods are enrolled, and the mesh-wide settings.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    findings::Findings,
    table::{OutboundPolicy, Settings, WorkloadId},
};
use crate::api::{Object, Objects, core::Pod, istio::MeshConfig};

/// Names the network namespace of a pod on a single host: a name under /run/netns, or a path.
pub const NETNS: &str = "egret.dev/netns";

/// An enrolled pod, with its network namespace.
pub type Enrolled<'a> = (WorkloadId, &'a str, &'a Arc<Object<Pod>>);

/// The pods that are enrolled.
pub fn enrolled<'a>(objects: &'a Objects, findings: &mut Findings) -> Vec<Enrolled<'a>> {
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
        let id = WorkloadId { namespace: pod.meta.namespace.clone(), name: pod.meta.name.clone() };
        enrolled.push((id, netns, pod));
    }
    enrolled
}

/// The pod's own namespace is the node's, or it asks to be left alone.
fn opted_out(pod: &Object<Pod>) -> bool {
    let says = |key: &str, value: &str| {
        [&pod.meta.annotations, &pod.meta.labels].iter().any(|map| map.get(key).is_some_and(|own| own == value))
    };
    pod.spec.host_network || says("sidecar.istio.io/inject", "false") || says("istio.io/dataplane-mode", "none")
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
