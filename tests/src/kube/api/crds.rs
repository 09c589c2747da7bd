//! What follows from a write: resources come and go with their definitions, and what is in a namespace goes with it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    kinds::{Check, Id, Kind},
    store::{Key, Object, Store},
};

/// What the controllers of a cluster do at once about a new or changed object.
pub fn created(store: &mut Store, kind: &Kind, object: &Object) {
    match kind.plural.as_str() {
        "customresourcedefinitions" => define(store, kind, object),
        "namespaces" => furnish(store, object["metadata"]["name"].as_str().unwrap_or_default()),
        _ => {}
    }
}

pub fn removed(store: &mut Store, kind: &Kind, object: &Object) {
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match kind.plural.as_str() {
        "customresourcedefinitions" => {
            store.remove_kind(&(name(&object["spec"]["group"]), name(&object["spec"]["names"]["plural"])));
        }
        "namespaces" => {
            let namespace = name(&object["metadata"]["name"]);
            let inside: Vec<(Id, Key)> = store
                .tables
                .iter()
                .flat_map(|(id, table)| table.objects.keys().map(move |key| (id.clone(), key.clone())))
                .filter(|(_, key)| key.0 == namespace)
                .collect();
            for (id, key) in inside {
                store.remove(&id, &key);
            }
        }
        _ => {}
    }
}

/// Serves the resource that a CustomResourceDefinition describes.
fn define(store: &mut Store, kind: &Kind, object: &Object) {
    let (spec, names) = (&object["spec"], &object["spec"]["names"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut versions: Vec<&Value> =
        spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true).collect();
    versions.sort_by_key(|version| priority(version["name"].as_str().unwrap_or_default()));
    let status = versions.iter().any(|version| version["subresources"]["status"].is_object());
    let schemas =
        versions.iter().map(|version| (text(&version["name"]), version["schema"]["openAPIV3Schema"].clone())).collect();
    store.add_kind(Kind {
        group: text(&spec["group"]),
        versions: versions.iter().map(|version| text(&version["name"])).collect(),
        plural: text(&names["plural"]),
        kind: text(&names["kind"]),
        short: names["shortNames"].as_array().into_iter().flatten().map(text).collect(),
        namespaced: spec["scope"] == "Namespaced",
        subresources: if status { vec!["status".to_owned()] } else { Vec::new() },
        check: Check::Schemas(Arc::new(schemas)),
    });
    let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": super::now()});
    if object["status"]["conditions"].is_array() {
        return;
    }
    let mut established = (**object).clone();
    established["status"] = json!({
        "acceptedNames": names,
        "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
        "storedVersions": spec["versions"].as_array().into_iter().flatten()
            .filter(|version| version["storage"] == true).map(|version| version["name"].clone()).collect::<Vec<_>>(),
    });
    store.put(&kind.id(), (String::new(), text(&object["metadata"]["name"])), established);
}

/// Versions by preference: v2, v1, v1beta1, v1alpha3, v1alpha2.
fn priority(version: &str) -> (u8, std::cmp::Reverse<u64>, std::cmp::Reverse<u64>) {
    let number = |text: &str| std::cmp::Reverse(text.parse().unwrap_or(0));
    let rest = version.trim_start_matches('v');
    if let Some((major, minor)) = rest.split_once("beta") {
        (1, number(major), number(minor))
    } else if let Some((major, minor)) = rest.split_once("alpha") {
        (2, number(major), number(minor))
    } else {
        (0, number(rest), number(""))
    }
}

/// What every namespace of a cluster has.
fn furnish(store: &mut Store, namespace: &str) {
    if store.core("serviceaccounts", namespace, "default").is_some() {
        return;
    }
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "uid": super::uid(), "creationTimestamp": super::now()});
    let core = |plural: &str| (String::new(), plural.to_owned());
    let key = |name: &str| (namespace.to_owned(), name.to_owned());
    store.put(&core("serviceaccounts"), key("default"), json!({"metadata": metadata("default")}));
    let authority = store.authority.clone();
    let root = json!({"metadata": metadata("kube-root-ca.crt"), "data": {"ca.crt": authority}});
    store.put(&core("configmaps"), key("kube-root-ca.crt"), root);
}
