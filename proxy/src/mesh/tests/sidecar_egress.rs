//! What a Sidecar lets its workloads reach.

use super::{sidecars::add, *};
use crate::api::sidecar::Sidecar;

fn compiled(objects: &Objects) -> Mesh {
    compile(objects, &PodAddresses::new())
}

#[test]
fn its_outbound_traffic_policy_goes_before_that_of_the_mesh() {
    let mut text = entry("a", "e", &format!("{{hosts: [a.com], {HTTP}}}"));
    for (namespace, name) in [("a", "web"), ("a", "db"), ("b", "web"), ("c", "web")] {
        text += &pod(namespace, name, &format!("{{app: {name}}}"));
    }
    let policy = |registry_only| Sidecar { registry_only, ..Sidecar::default() };
    for (mesh_policy, other) in [("ALLOW_ANY", "REGISTRY_ONLY"), ("REGISTRY_ONLY", "ALLOW_ANY")] {
        let config = format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: 'outboundTrafficPolicy: {{mode: {mesh_policy}}}'}}\n"
        );
        let mut objects = objects(&(text.clone() + &config));
        let selector = [("app".to_owned(), "web".to_owned())].into();
        add(&mut objects, "a", "web", Sidecar { selector, ..policy(Some(other == "REGISTRY_ONLY")) });
        add(&mut objects, "b", "default", policy(None));
        let mesh = compiled(&objects);
        let asked = |namespace, pod| mesh.of(namespace, pod).http(dst("1.1.1.1:80"), "b.com").short();
        let word = |policy: &str| if policy == "ALLOW_ANY" { "passthrough" } else { "block" };
        assert_eq!(asked("a", "web"), word(other));
        for (namespace, pod) in [("a", "db"), ("b", "web"), ("c", "web")] {
            assert_eq!(asked(namespace, pod), word(mesh_policy), "{namespace}/{pod}");
        }
        let at_a = mesh.of("a", "web").http(dst("1.1.1.1:80"), "a.com");
        assert_eq!(at_a.short(), "outbound|80||a.com");
        assert!(Arc::ptr_eq(&at_a.cluster(), &mesh.of("c", "web").http(dst("1.1.1.1:80"), "a.com").cluster()));
    }
}
