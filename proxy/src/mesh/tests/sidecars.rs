//! Which Sidecar applies to which pod.

use super::*;
use crate::mesh::{findings::Findings, sidecars::Sidecars};

const ALL: &str = "{egress: [{hosts: ['*/*']}]}";

fn chosen(yaml: &str, namespace: &str, name: &str) -> Option<String> {
    let objects = objects(yaml);
    let sidecars = Sidecars::new(&objects, "istio-system", &mut Findings::default());
    let pod = objects.pods.get(namespace, name).unwrap();
    sidecars.of(pod).map(|sidecar| format!("{}/{}", sidecar.meta.namespace, sidecar.meta.name))
}

/// For the workloads that bear `app`.
fn selecting(namespace: &str, name: &str, app: &str) -> String {
    let spec = format!("{{workloadSelector: {{labels: {{app: {app}}}}}, egress: [{{hosts: ['*/*']}}]}}");
    sidecar(namespace, name, &spec)
}

#[test]
fn the_one_that_selects_goes_before_that_of_the_namespace_and_that_before_the_root() {
    let mut text = String::new();
    for namespace in ["a", "b", "istio-system"] {
        text += &pod(namespace, "web", "{app: web}");
        text += &pod(namespace, "db", "{app: db}");
    }
    assert_eq!(chosen(&text, "a", "web"), None);
    text += &sidecar("istio-system", "default", ALL);
    assert_eq!(chosen(&text, "a", "web").as_deref(), Some("istio-system/default"));
    text += &selecting("a", "web", "web");
    text += &selecting("a", "zz-web", "web");
    assert_eq!(chosen(&text, "a", "web").as_deref(), Some("a/web"));
    assert_eq!(chosen(&text, "a", "db").as_deref(), Some("istio-system/default"));
    text += &sidecar("a", "default", ALL);
    text += &sidecar("a", "another", ALL);
    assert_eq!(chosen(&text, "a", "web").as_deref(), Some("a/web"));
    assert_eq!(chosen(&text, "a", "db").as_deref(), Some("a/another"), "the first of two");
    // A selector in the root namespace is about that namespace's own pods.
    text += &selecting("istio-system", "web", "web");
    assert_eq!(chosen(&text, "b", "web").as_deref(), Some("istio-system/default"));
    assert_eq!(chosen(&text, "istio-system", "web").as_deref(), Some("istio-system/web"));
    assert_eq!(chosen(&text, "istio-system", "db").as_deref(), Some("istio-system/default"));
}

#[test]
fn what_never_counts_is_told() {
    let mut text = pod("a", "web", "{app: web}") + &pod("a", "web-2", "{app: web}");
    for name in ["first", "second"] {
        text += &sidecar("a", name, ALL);
    }
    for (namespace, name, app) in [("a", "web", "web"), ("a", "web-too", "web"), ("a", "nobody", "gone")] {
        text += &selecting(namespace, name, app);
    }
    // No pod of this namespace is told of here.
    text += &selecting("elsewhere", "nobody", "gone");
    let mut findings = Findings::default();
    Sidecars::new(&objects(&text), "istio-system", &mut findings);
    let said: Vec<_> = findings.into_sorted().into_iter().map(|found| found.to_string()).collect();
    assert_eq!(
        said,
        [
            "test.yaml:18:7: warning: Sidecar a/second: spec: Sidecar a/first is for every workload of the namespace already: this one is ignored",
            "test.yaml:28:26: warning: Sidecar a/web-too: spec.workloadSelector: Sidecar a/web selects Pod a/web already: this one is ignored there",
            "test.yaml:33:26: warning: Sidecar a/nobody: spec.workloadSelector: no pod of namespace a bears app=gone",
        ]
    );
}
