//! Which Sidecar applies to which pod.

use super::*;
use crate::{
    api::{
        Object, ObjectId, ObjectMeta,
        meta::{Origin, Positions},
        sidecar::Sidecar,
    },
    mesh::{findings::Findings, sidecars::Sidecars},
};

/// A Sidecar as the reader makes it, created in the order of the names.
pub fn add(objects: &mut Objects, namespace: &str, name: &str, spec: Sidecar) {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let meta = ObjectMeta { name: name.clone(), namespace: namespace.clone(), ..ObjectMeta::default() };
    let origin = Origin {
        file: Arc::from(Path::new("test.yaml")),
        start: (1, 1),
        positions: Arc::new(Positions::default()),
        made_from: Arc::default(),
    };
    let id = ObjectId { kind: "Sidecar", namespace: namespace.clone(), name: name.clone() };
    objects.sidecars.insert((namespace, name), Arc::new(Object { id, meta, spec, origin }));
}

fn selecting(app: &str) -> Sidecar {
    Sidecar { selector: [("app".to_owned(), app.to_owned())].into(), ..Sidecar::default() }
}

fn chosen(objects: &Objects, namespace: &str, name: &str) -> Option<String> {
    let sidecars = Sidecars::new(objects, "istio-system", &mut Findings::default());
    let pod = &objects.pods[&(namespace.to_owned(), name.to_owned())];
    sidecars.of(pod).map(|sidecar| format!("{}/{}", sidecar.meta.namespace, sidecar.meta.name))
}

#[test]
fn the_one_that_selects_goes_before_that_of_the_namespace_and_that_before_the_root() {
    let mut text = String::new();
    for namespace in ["a", "b", "istio-system"] {
        text += &pod(namespace, "web", "{app: web}");
        text += &pod(namespace, "db", "{app: db}");
    }
    let mut objects = objects(&text);
    assert_eq!(chosen(&objects, "a", "web"), None);
    add(&mut objects, "istio-system", "default", Sidecar::default());
    assert_eq!(chosen(&objects, "a", "web").as_deref(), Some("istio-system/default"));
    add(&mut objects, "a", "web", selecting("web"));
    add(&mut objects, "a", "zz-web", selecting("web"));
    assert_eq!(chosen(&objects, "a", "web").as_deref(), Some("a/web"));
    assert_eq!(chosen(&objects, "a", "db").as_deref(), Some("istio-system/default"));
    add(&mut objects, "a", "default", Sidecar::default());
    add(&mut objects, "a", "another", Sidecar::default());
    assert_eq!(chosen(&objects, "a", "web").as_deref(), Some("a/web"));
    assert_eq!(chosen(&objects, "a", "db").as_deref(), Some("a/another"), "the first of two");
    // A selector in the root namespace is about that namespace's own pods.
    add(&mut objects, "istio-system", "web", selecting("web"));
    assert_eq!(chosen(&objects, "b", "web").as_deref(), Some("istio-system/default"));
    assert_eq!(chosen(&objects, "istio-system", "web").as_deref(), Some("istio-system/web"));
    assert_eq!(chosen(&objects, "istio-system", "db").as_deref(), Some("istio-system/default"));
}

#[test]
fn what_never_counts_is_told() {
    let mut objects = objects(&(pod("a", "web", "{app: web}") + &pod("a", "web-2", "{app: web}")));
    add(&mut objects, "a", "first", Sidecar::default());
    add(&mut objects, "a", "second", Sidecar::default());
    add(&mut objects, "a", "web", selecting("web"));
    add(&mut objects, "a", "web-too", selecting("web"));
    add(&mut objects, "a", "nobody", selecting("gone"));
    // No pod of this namespace is told of here.
    add(&mut objects, "elsewhere", "nobody", selecting("gone"));
    let mut findings = Findings::default();
    Sidecars::new(&objects, "istio-system", &mut findings);
    let said: Vec<_> = findings.into_sorted().into_iter().map(|found| found.to_string()).collect();
    assert_eq!(
        said,
        [
            "test.yaml:1:1: warning: Sidecar a/second: spec: Sidecar a/first is for every workload of the namespace already: this one is ignored",
            "test.yaml:1:1: warning: Sidecar a/web-too: spec.workloadSelector: Sidecar a/web selects Pod a/web already: this one is ignored there",
            "test.yaml:1:1: warning: Sidecar a/nobody: spec.workloadSelector: no pod of namespace a bears app=gone",
        ]
    );
}
