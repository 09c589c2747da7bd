//! File paths in rules are paths inside the workload's pod: found through its volumes and mounts, and through the
//! annotations with which Istio adds volumes to its sidecar.

use serde_json::Value;

use super::table::Place;
use crate::api::{
    Object,
    core::{Pod, Volume, VolumeMount, VolumeSource},
};

const USER_VOLUME: &str = "sidecar.istio.io/userVolume";
const USER_VOLUME_MOUNT: &str = "sidecar.istio.io/userVolumeMount";

/// The mounts of one pod that may hold certificates.
#[derive(Debug, Default)]
pub struct Volumes {
    namespace: String,
    volumes: Vec<Volume>,
    /// Those of the sidecar annotations first: rules name what the proxy would see.
    mounts: Vec<VolumeMount>,
    /// What no mount covers is a file of the host.
    host: bool,
}

/// Where distributions keep the CA bundle of the system.
pub const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

impl Volumes {
    /// Also gives the annotations that could not be read, with the reason. `host`: what no mount covers is a file of the host,
    /// as on a single host. The authors of a cluster's rules have no say over the files of its nodes, where the agent keeps
    /// the keys of all pods.
    pub fn new(pod: &Object<Pod>, host: bool) -> (Self, Vec<(&'static str, String)>) {
        let mut volumes = Self { namespace: pod.meta.namespace.clone(), host, ..Self::default() };
        let mut unread = Vec::new();
        let mut annotation = |name: &'static str| {
            let items = items(pod.meta.annotations.get(name)?);
            items.map_err(|error| unread.push((name, error))).ok()
        };
        for (name, body) in annotation(USER_VOLUME).unwrap_or_default() {
            volumes.volumes.push(volume(name, &body));
        }
        for (name, body) in annotation(USER_VOLUME_MOUNT).unwrap_or_default() {
            let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_owned);
            if let Some(mount_path) = text("mountPath") {
                volumes.mounts.push(VolumeMount { name, mount_path, sub_path: text("subPath") });
            }
        }
        volumes.volumes.extend(pod.spec.volumes.iter().cloned());
        volumes.mounts.extend(pod.spec.mounts.iter().cloned());
        (volumes, unread)
    }

    /// Of a pod that mounts nothing.
    pub fn none(host: bool) -> Self {
        Self { host, ..Self::default() }
    }

    /// Where the bytes of `path` are. An error where a volume covers it that is neither a Secret nor a ConfigMap, or that
    /// lacks the file.
    pub fn place(&self, path: &str) -> Result<Place, String> {
        let path = normal(path);
        let mut best: Option<(usize, &VolumeMount, &str)> = None;
        for mount in &self.mounts {
            let root = mount.mount_path.trim_end_matches('/');
            let Some(rest) = path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
                continue;
            };
            if best.is_none_or(|(length, ..)| root.len() > length) {
                best = Some((root.len(), mount, rest));
            }
        }
        let Some((_, mount, rest)) = best else {
            if self.host || SYSTEM_BUNDLES.contains(&&*path) {
                return Ok(Place::Host);
            }
            return Err(format!("{path} is in no Secret or ConfigMap that the pod mounts"));
        };
        let volume = self.volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume
            .ok_or_else(|| format!("{path} is mounted from the volume {}, which the pod does not have", mount.name))?;
        let Some(source) = &volume.source else {
            return Err(format!("{path} is in the volume {}, which is neither a Secret nor a ConfigMap", volume.name));
        };
        let inside = format!("{}{rest}", mount.sub_path.as_deref().unwrap_or_default());
        // Kubernetes keeps the files behind the link `..data`.
        let inside = inside.trim_matches('/');
        let inside = inside.strip_prefix("..data/").unwrap_or(inside);
        let key = if volume.items.is_empty() {
            Some(inside.to_owned())
        } else {
            volume.items.iter().find(|(_, path)| path.trim_start_matches("./") == inside).map(|(key, _)| key.clone())
        };
        let key = key.ok_or_else(|| format!("{path}: the volume {} does not show this file", volume.name))?;
        let namespace = self.namespace.clone();
        Ok(match source.clone() {
            VolumeSource::Secret(name) => Place::Secret { namespace, name, key },
            VolumeSource::ConfigMap(name) => Place::ConfigMap { namespace, name, key },
        })
    }
}

/// Volumes and mounts are given as a list of objects with names, or as an object of such objects by name.
fn items(text: &str) -> Result<Vec<(String, Value)>, String> {
    match serde_json::from_str(text).map_err(|error| error.to_string())? {
        Value::Array(list) => {
            Ok(list.into_iter().filter_map(|item| Some((item.get("name")?.as_str()?.to_owned(), item))).collect())
        }
        Value::Object(map) => Ok(map.into_iter().collect()),
        _ => Err("neither a list nor an object".to_owned()),
    }
}

fn volume(name: String, body: &Value) -> Volume {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let (secret, config_map) = (body.get("secret"), body.get("configMap"));
    let items = secret.or(config_map).and_then(|given| given.get("items")).and_then(Value::as_array);
    let from_secret = secret.and_then(|secret| text(secret, "secretName")).map(VolumeSource::Secret);
    let from_config_map = || config_map.and_then(|given| text(given, "name")).map(VolumeSource::ConfigMap);
    Volume {
        name,
        source: from_secret.or_else(from_config_map),
        items: items.into_iter().flatten().filter_map(|item| Some((text(item, "key")?, text(item, "path")?))).collect(),
    }
}

/// Without `.`, `..` and double slashes, so that a path cannot seem to lie in a mount that it leaves again. `..data`
/// is an ordinary name.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
