//! File paths in rules are paths inside the workload's pod: found through its volumes and mounts, and through the
//! annotations with which Istio adds volumes to its sidecar.

use super::table::Place;
use crate::{
    api::{
        Object,
        core::{FilesFrom, Pod, Volume, VolumeMount, VolumeSource},
    },
    source::kinds::volumes::{annotated_mounts, annotated_volumes},
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

/// Where a file may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Or why egret does not read it there.
    pub place: Result<Place, String>,
    /// Where there is no such object, another source may have the file. Else the kubelet makes nothing of the volume.
    pub absent_may_pass: bool,
    /// The same where the object lacks the key.
    pub lacking_may_pass: bool,
}

/// Where distributions keep the CA bundle of the system.
pub const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

impl Volumes {
    /// Also gives the annotations that could not be read, with the reason. `host`: what no mount covers is a file of the host,
    /// as on a single host. The authors of a cluster's rules have no say over the files of its nodes, where the agent keeps
    /// the keys of all pods.
    pub fn new(pod: &Object<Pod>, host: bool) -> (Self, Vec<(&'static str, String)>) {
        let mut volumes = Self { namespace: pod.meta.namespace.to_string(), host, ..Self::default() };
        let mut unread = Vec::new();
        let annotation = |name: &'static str| pod.meta.annotations.get(name);
        match annotation(USER_VOLUME).map_or(Ok(Vec::new()), |text| annotated_volumes(text)) {
            Ok(own) => volumes.volumes = own,
            Err(error) => unread.push((USER_VOLUME, error)),
        }
        match annotation(USER_VOLUME_MOUNT).map_or(Ok(Vec::new()), |text| annotated_mounts(text)) {
            Ok(own) => volumes.mounts = own,
            Err(error) => unread.push((USER_VOLUME_MOUNT, error)),
        }
        volumes.volumes.extend(pod.spec.volumes.iter().cloned());
        volumes.mounts.extend(pod.spec.mounts.iter().cloned());
        (volumes, unread)
    }

    /// Of a pod that mounts nothing.
    pub fn none(host: bool) -> Self {
        Self { host, ..Self::default() }
    }

    /// Where the bytes of `path` may be: never empty, and the first that has it counts. An error where a volume covers it that is
    /// neither of Secrets nor of ConfigMaps, or that does not show the file.
    pub fn candidates(&self, path: &str) -> Result<Vec<Candidate>, String> {
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
                return Ok(vec![Candidate { place: Ok(Place::Host), lacking_may_pass: false, absent_may_pass: false }]);
            }
            return Err(format!("{path} is in no Secret or ConfigMap that the pod mounts"));
        };
        let volume = self.volumes.iter().find(|volume| volume.name == mount.name);
        let volume = volume
            .ok_or_else(|| format!("{path} is mounted from the volume {}, which the pod does not have", mount.name))?;
        if volume.sources.is_empty() {
            return Err(format!("{path} is in the volume {}, which is neither a Secret nor a ConfigMap", volume.name));
        }
        let inside = format!("{}{rest}", mount.sub_path.as_deref().unwrap_or_default());
        // Kubernetes keeps the files behind the link `..data`.
        let inside = inside.trim_matches('/');
        let inside = inside.strip_prefix("..data/").unwrap_or(inside);
        // As the kubelet lays one source over the other (`collectData` in pkg/volume/projected).
        let found: Vec<_> =
            volume.sources.iter().rev().filter_map(|source| self.candidate(volume, source, inside)).collect();
        if found.is_empty() {
            Err(format!("{path}: the volume {} does not show this file", volume.name))
        } else {
            Ok(found)
        }
    }

    fn candidate(&self, volume: &Volume, source: &VolumeSource, inside: &str) -> Option<Candidate> {
        let named = source.items.get(inside);
        let by_its_key = source.items.is_empty() && !inside.contains('/');
        let key = named.cloned().or_else(|| by_its_key.then(|| inside.to_owned()));
        let namespace = self.namespace.clone();
        let place = match &source.from {
            FilesFrom::Secret(name) => Ok(Place::Secret { namespace, name: name.clone(), key: key? }),
            FilesFrom::ConfigMap(name) => Ok(Place::ConfigMap { namespace, name: name.clone(), key: key? }),
            FilesFrom::Other(kind) => {
                named?;
                Err(format!("in the volume {} it is a {kind}, neither of a Secret nor of a ConfigMap", volume.name))
            }
        };
        Some(Candidate {
            place,
            absent_may_pass: source.optional,
            lacking_may_pass: source.optional || named.is_none(),
        })
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
