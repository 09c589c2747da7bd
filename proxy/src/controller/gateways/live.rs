//! Objects as the API server has them, with all that is written back or compared: UIDs, generations, statuses.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Content, FileChange, MANAGED_BY, ObjectId, gateway_api::GATEWAY};
use crate::source::kubernetes::object_path;

/// Kinds that nothing is compiled from.
const ONLY_HERE: [&str; 2] = ["Deployment", "ServiceAccount"];
const KINDS: [&str; 6] = ["GatewayClass", GATEWAY, "HTTPRoute", "TLSRoute", "BackendTLSPolicy", "Service"];

#[derive(Default)]
pub struct Live(BTreeMap<PathBuf, Value>);

impl Live {
    /// Takes note of what has changed; hands back what is to be compiled.
    pub fn read(&mut self, changes: Vec<FileChange>) -> Vec<FileChange> {
        let mut rest = Vec::new();
        for change in changes {
            let kind = change.path.iter().nth(1).and_then(|kind| kind.to_str()).unwrap_or_default();
            let only_here = ONLY_HERE.contains(&kind);
            if only_here || KINDS.contains(&kind) {
                let object = match &change.content {
                    Some(Content::Object(json)) => serde_json::from_slice(json).ok(),
                    _ => None,
                };
                match object {
                    Some(object) => drop(self.0.insert(change.path.clone(), object)),
                    None => drop(self.0.remove(&change.path)),
                }
            }
            if !only_here {
                rest.push(change);
            }
        }
        rest
    }

    pub fn at(&self, path: &Path) -> Option<&Value> {
        self.0.get(path)
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.at(&object_path(kind, namespace, name))
    }

    pub fn find(&self, id: &ObjectId) -> Option<&Value> {
        self.get(id.kind, &id.namespace, &id.name)
    }

    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let below = object_path(kind, "", "");
        self.0.range(below.clone()..).take_while(move |(path, _)| path.starts_with(&below)).map(|(_, object)| object)
    }

    /// What this controller has made.
    pub fn made(&self) -> impl Iterator<Item = &Value> {
        let kinds = ["Service"].into_iter().chain(ONLY_HERE);
        kinds.flat_map(|kind| self.of_kind(kind)).filter(|object| {
            let (label, value) = MANAGED_BY;
            object["metadata"]["labels"][label] == value && owner(object).is_some()
        })
    }

    /// The Gateway that owns it is there and stays: otherwise the garbage collector takes it.
    pub fn owner_lives(&self, object: &Value) -> bool {
        let Some((name, uid)) = owner(object) else { return false };
        let gateway = self.get(GATEWAY, text(&object["metadata"]["namespace"]), name);
        gateway
            .map(|gateway| &gateway["metadata"])
            .is_some_and(|metadata| text(&metadata["uid"]) == uid && metadata["deletionTimestamp"].is_null())
    }
}

/// Name and UID of the Gateway that controls an object.
fn owner(object: &Value) -> Option<(&str, &str)> {
    let mut owners = object["metadata"]["ownerReferences"].as_array()?.iter();
    let owner = owners.find(|owner| owner["kind"] == "Gateway" && owner["controller"] == true)?;
    Some((owner["name"].as_str()?, owner["uid"].as_str()?))
}

pub fn same_owner(one: &Value, other: &Value) -> bool {
    owner(one).is_some() && owner(one) == owner(other)
}

/// Empty where it is no text.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub fn path(object: &Value) -> PathBuf {
    object_path(text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

pub fn id(kind: &'static str, object: &Value) -> ObjectId {
    ObjectId::new(kind, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

/// `Deployment shop/gateway-egret`
pub fn shown(object: &Value) -> String {
    let metadata = &object["metadata"];
    let (kind, namespace, name) = (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}
