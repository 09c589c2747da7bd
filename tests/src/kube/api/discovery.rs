//! What the server says about itself: version, groups, resources, and the least of an OpenAPI document.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    body::{Answer, json as answer, text},
    kinds::Kind,
    store::Store,
};

/// Answers to paths outside of the resources; None for one that is not known.
pub fn page(store: &Store, path: &str) -> Option<Answer> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    Some(match parts[..] {
        ["version"] => answer(
            200,
            &json!({
                "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "2025-04-23T13:00:00Z", "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
            }),
        ),
        ["readyz" | "livez" | "healthz"] => text(200, "ok"),
        [] => answer(200, &json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/readyz", "/version"]})),
        ["api"] => answer(200, &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let groups: Vec<_> = groups(store).iter().map(|(name, versions)| group(name, versions)).collect();
            answer(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let groups = groups(store);
            let mut found = group(name, groups.get(name)?);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            answer(200, &found)
        }
        ["api", "v1"] => answer(200, &resources(store, "", "v1")?),
        ["apis", group, version] => answer(200, &resources(store, group, version)?),
        ["openapi", "v3"] => answer(200, &open_api_index(store)),
        ["openapi", "v3", "api", version] => answer(200, &open_api(store, "", version)),
        ["openapi", "v3", "apis", group, version] => answer(200, &open_api(store, group, version)),
        _ => return None,
    })
}

/// Groups other than the core one, with their versions, the preferred one first.
fn groups(store: &Store) -> BTreeMap<&str, Vec<&str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in sorted(store).filter(|kind| !kind.group.is_empty()) {
        let versions = groups.entry(&kind.group).or_default();
        for version in &kind.versions {
            if !versions.contains(&version.as_str()) {
                versions.push(version);
            }
        }
    }
    for (group, extra) in VIRTUAL.iter().map(|(group, ..)| (*group, "v1")) {
        groups.entry(group).or_insert_with(|| vec![extra]);
    }
    groups
}

/// Resources that only take questions, `(group, plural, kind)`.
const VIRTUAL: &[(&str, &str, &str)] = &[
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
    ("authentication.k8s.io", "tokenreviews", "TokenReview"),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
];

fn sorted(store: &Store) -> impl Iterator<Item = &Kind> {
    let mut kinds: Vec<&Kind> = store.tables.values().map(|table| &*table.kind).collect();
    kinds.sort_by(|one, other| (&one.group, &one.plural).cmp(&(&other.group, &other.plural)));
    kinds.into_iter()
}

fn group(name: &str, versions: &[&str]) -> Value {
    let told = |version: &str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let all: Vec<_> = versions.iter().map(|version| told(version)).collect();
    json!({"name": name, "versions": all, "preferredVersion": versions.first().map(|version| told(version))})
}

fn resources(store: &Store, group: &str, version: &str) -> Option<Value> {
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut found = Vec::new();
    let served = |kind: &&Kind| kind.group == group && kind.versions.iter().any(|served| served == version);
    for kind in sorted(store).filter(served) {
        found.push(json!({
            "name": kind.plural, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": all, "shortNames": kind.short, "storageVersionHash": "",
        }));
        for sub in &kind.subresources {
            let (name, verbs) = (format!("{}/{sub}", kind.plural), ["get", "patch", "update"]);
            found.push(json!({"name": name, "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind, "verbs": verbs}));
        }
    }
    for (_, plural, kind) in VIRTUAL.iter().filter(|(of, ..)| *of == group && version == "v1") {
        found.push(json!({"name": plural, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["create"]}));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!found.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": found}),
    )
}

fn open_api_index(store: &Store) -> Value {
    let mut paths = BTreeSet::new();
    for kind in sorted(store) {
        for version in &kind.versions {
            paths.insert(if kind.group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{}/{version}", kind.group)
            });
        }
    }
    let paths: serde_json::Map<_, _> = paths
        .into_iter()
        .map(|path| (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}")})))
        .collect();
    json!({"paths": paths})
}

/// Enough for kubectl to learn that the server validates fields itself.
fn open_api(store: &Store, group: &str, version: &str) -> Value {
    let mut paths = serde_json::Map::new();
    let mut schemas = serde_json::Map::new();
    for kind in sorted(store).filter(|kind| kind.group == group) {
        let gvk = json!({"group": group, "version": version, "kind": kind.kind});
        let base = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let path = if kind.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}/{{name}}", kind.plural)
        } else {
            format!("{base}/{}/{{name}}", kind.plural)
        };
        let parameters = json!([{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]);
        paths.insert(
            path,
            json!({"patch": {"parameters": parameters, "x-kubernetes-group-version-kind": gvk, "responses": {}}}),
        );
        let name = format!("{}.{version}.{}", group.replace('.', "-"), kind.kind);
        schemas.insert(name, json!({"type": "object", "x-kubernetes-group-version-kind": [gvk]}));
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.33.0"}, "paths": paths, "components": {"schemas": schemas}})
}
