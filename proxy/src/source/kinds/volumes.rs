//! Volumes and mounts of a Pod, and those of the annotations with which Istio adds some to its sidecar.

use std::collections::BTreeMap;

use super::super::{
    decode::{Dialect, Field, Fields, Findings},
    json,
    yaml::Value,
};
use crate::api::{
    Severity,
    core::{FilesFrom, Volume, VolumeMount, VolumeSource},
};

/// An item of `spec.volumes`.
pub fn volume(field: &Field<'_>) -> Option<Volume> {
    let name = name_of(field)?;
    Some(Volume { name, sources: sources(field)? })
}

/// An item of `volumeMounts`.
pub fn mount(field: &Field<'_>) -> Option<VolumeMount> {
    mount_of(name_of(field)?, field)
}

fn name_of(field: &Field<'_>) -> Option<String> {
    let name = named(field, "name");
    if name.is_none() {
        field.error("`name` is missing");
    }
    name?.string()
}

/// `sidecar.istio.io/userVolume`: a list of volumes, or an object of volumes by name.
///
/// # Errors
/// What cannot be read, with its field.
pub fn annotated_volumes(text: &str) -> Result<Vec<Volume>, String> {
    annotated(text, |name, field| Some(Volume { name, sources: sources(field)? }))
}

/// `sidecar.istio.io/userVolumeMount`, in the same two forms.
///
/// # Errors
/// What cannot be read, with its field.
pub fn annotated_mounts(text: &str) -> Result<Vec<VolumeMount>, String> {
    annotated(text, mount_of)
}

fn annotated<T>(text: &str, read: impl Fn(String, &Field<'_>) -> Option<T>) -> Result<Vec<T>, String> {
    let tree = json::read(text.as_bytes()).map_err(|error| error.to_string())?;
    let findings = Findings::default();
    let root = Field::root(&tree, "", Dialect::Kubernetes, &findings);
    let made = match &tree.value {
        Value::List(_) => {
            let items = root.items();
            let items = items.iter().filter_map(|item| Some((named(item, "name")?.string()?, item)));
            items.filter_map(|(name, item)| read(name, item)).collect()
        }
        Value::Map(_) => root.entries().into_iter().filter_map(|(name, item)| read(name.to_owned(), &item)).collect(),
        _ => return Err("neither a list nor an object".to_owned()),
    };
    match findings.take().into_iter().find(|finding| finding.severity == Severity::Error) {
        Some(finding) => Err(format!("{}: {}", finding.field, finding.message)),
        None => Ok(made),
    }
}

fn mount_of(name: String, field: &Field<'_>) -> Option<VolumeMount> {
    let ignored = &["name", "readOnly", "recursiveReadOnly", "mountPropagation"];
    let fields = field.fields(&["mountPath", "subPath"], ignored, &["subPathExpr"])?;
    let mount_path = fields.require("mountPath")?.string()?;
    Some(VolumeMount { name, mount_path, sub_path: fields.string("subPath") })
}

fn named<'a>(field: &Field<'a>, name: &str) -> Option<Field<'a>> {
    field.entries().into_iter().find(|(key, f)| *key == name && !f.node.is_null()).map(|(_, f)| f)
}

/// Where a volume's files are from; none where it is of a type that holds no certificates.
fn sources(field: &Field<'_>) -> Option<Vec<VolumeSource>> {
    let (secret, config_map) = (named(field, "secret"), named(field, "configMap"));
    if let Some(secret) = secret {
        return Some(vec![by_keys(&secret, "secretName", FilesFrom::Secret)?]);
    }
    if let Some(config_map) = config_map {
        return Some(vec![by_keys(&config_map, "name", FilesFrom::ConfigMap)?]);
    }
    let Some(projected) = named(field, "projected") else { return Some(Vec::new()) };
    let listed = projected.fields(&["sources"], &["defaultMode"], &[])?.items("sources");
    Some(listed.iter().filter_map(projection).collect())
}

/// One of `projected.sources`.
fn projection(field: &Field<'_>) -> Option<VolumeSource> {
    const KINDS: &[&str] =
        &["secret", "configMap", "serviceAccountToken", "downwardAPI", "clusterTrustBundle", "podCertificate"];
    let fields = field.fields(KINDS, &[], &[])?;
    if let Some(secret) = fields.get("secret") {
        return by_keys(&secret, "name", FilesFrom::Secret);
    }
    if let Some(config_map) = fields.get("configMap") {
        return by_keys(&config_map, "name", FilesFrom::ConfigMap);
    }
    let (kind, given) = KINDS.iter().find_map(|kind| Some((*kind, fields.get(kind)?)))?;
    let paths: Vec<Field<'_>> = match kind {
        "downwardAPI" => {
            let items = named(&given, "items").map(|items| items.items()).unwrap_or_default();
            items.iter().filter_map(|item| named(item, "path")).collect()
        }
        _ => {
            let paths = ["path", "keyPath", "certificateChainPath", "credentialBundlePath"];
            paths.iter().filter_map(|name| named(&given, name)).collect()
        }
    };
    let items = paths.iter().filter_map(|path| Some((relative(&path.string()?), String::new()))).collect();
    Some(VolumeSource { from: FilesFrom::Other(kind), items, optional: false })
}

/// A Secret or a ConfigMap, whose keys are files.
fn by_keys(field: &Field<'_>, name: &str, made: impl Fn(String) -> FilesFrom) -> Option<VolumeSource> {
    let fields = field.fields(&[name, "items", "optional"], &["defaultMode"], &[])?;
    let from = made(fields.require(name)?.string()?);
    let optional = fields.get("optional").and_then(|f| f.boolean()).unwrap_or_default();
    Some(VolumeSource { from, items: items(&fields), optional })
}

fn items(fields: &Fields<'_>) -> BTreeMap<String, String> {
    let read = |item: &Field<'_>| {
        let item = item.fields(&["key", "path"], &["mode"], &[])?;
        let (key, path) = (item.require("key"), item.require("path"));
        Some((relative(&path?.string()?), key?.string()?))
    };
    fields.items("items").iter().filter_map(read).collect()
}

fn relative(path: &str) -> String {
    path.trim_start_matches("./").to_owned()
}
