//! Who is enrolled in a cluster, by the labels of pods and namespaces.

use super::*;

/// Pod `a` of namespace `shop`, with metadata of both.
fn node(namespace: &str, pod: &str, spec: &str) -> Objects {
    let yaml = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {namespace}}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, uid: u-1, {pod}}}\nspec: {{nodeName: one, {spec}}}\n"
    );
    let mut objects = objects(&yaml);
    objects.node = Some("one".into());
    objects
}

fn is_enrolled(namespace: &str, pod: &str, spec: &str) -> bool {
    let objects = node(namespace, pod, spec);
    let NodePods { enrolled, left_alone } = node_pods(&objects);
    assert_eq!(enrolled.len() + left_alone.len(), 1, "one or the other");
    assert_eq!(compile(&objects, &PodAddresses::new()).workloads.len(), enrolled.len());
    !enrolled.is_empty()
}

#[test]
fn labels_of_namespaces_and_pods() {
    let on = "egret.dev/enroll: \"true\"";
    let off = "egret.dev/enroll: \"false\"";
    let enrolling = ["istio-injection: enabled", "istio.io/dataplane-mode: ambient", on];
    for label in enrolling {
        assert!(is_enrolled(&format!("labels: {{{label}}}"), "", ""), "{label}");
        // The namespace's own no, and each of the pod's.
        assert!(
            !is_enrolled(&format!("labels: {{{label}}}, annotations: {{{off}}}"), "", ""),
            "{label} and {off} on the namespace"
        );
        for no in [
            off,
            "sidecar.istio.io/inject: \"false\"",
            "sidecar.istio.io/inject: \"no\"",
            "istio.io/dataplane-mode: none",
        ] {
            for map in ["labels", "annotations"] {
                assert!(
                    !is_enrolled(&format!("labels: {{{label}}}"), &format!("{map}: {{{no}}}"), ""),
                    "{label} and {no}"
                );
            }
        }
        assert!(!is_enrolled(&format!("labels: {{{label}}}"), "", "hostNetwork: true"), "{label}, host network");
    }
    for label in ["", "istio-injection: disabled", "istio.io/dataplane-mode: none", "istio-injection: \"true\"", off] {
        assert!(!is_enrolled(&format!("labels: {{{label}}}"), "", ""), "{label}");
        // The pod's word wins.
        for yes in [on, "istio.io/dataplane-mode: ambient", "sidecar.istio.io/inject: \"true\""] {
            assert!(is_enrolled(&format!("labels: {{{label}}}"), &format!("labels: {{{yes}}}"), ""), "{label}, {yes}");
            assert!(!is_enrolled(&format!("labels: {{{label}}}"), &format!("labels: {{{yes}}}"), "hostNetwork: true"));
        }
    }
    // An annotation that asks for a sidecar is no label (Istio's selectors read labels only).
    assert!(!is_enrolled("", "annotations: {sidecar.istio.io/inject: \"true\"}", ""));
    // Two words that contradict each other.
    assert!(!is_enrolled("", &format!("labels: {{{on}, sidecar.istio.io/inject: \"false\"}}"), ""));
}

#[test]
fn a_word_that_is_neither_yes_nor_no_is_refused() {
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {egret.dev/enroll: \"yes\"}}\n";
    let parsed = parse_file(Arc::from(Path::new("test.yaml")), yaml);
    assert!(parsed.refused[0].errors[0].message.contains("\"yes\" is not one of \"true\", \"false\""));
}

/// Neither: its cgroup is about to go, and if anything of it runs it has no business with the network.
#[test]
fn pods_that_have_ended_are_neither_enrolled_nor_left_alone() {
    for phase in ["Succeeded", "Failed"] {
        let mut objects = objects(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, uid: u-1, labels: {{egret.dev/enroll: \"true\"}}}}\nspec: {{nodeName: one}}\nstatus: {{phase: {phase}, podIP: 10.1.0.1}}\n"
        ));
        objects.node = Some("one".into());
        assert_eq!(node_pods(&objects), NodePods::default());
        assert!(compile(&objects, &PodAddresses::new()).peers.is_empty(), "its address may be another pod's");
    }
}

const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: here, namespace: shop, uid: u-1}
spec: {nodeName: one, serviceAccountName: cart}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: there, namespace: shop, uid: u-2, labels: {app: web}}
spec: {nodeName: two, serviceAccountName: web}
status: {podIPs: [{ip: 10.1.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: shop, uid: u-3}
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: other, uid: u-4}
spec: {nodeName: one}
status: {podIP: 10.1.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: other, uid: u-5}
spec: {nodeName: two}
status: {podIP: 10.1.0.5}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}
"#;

#[test]
fn pods_of_other_nodes_are_peers() {
    let mut objects = objects(CLUSTER);
    objects.node = Some("one".into());
    let NodePods { enrolled, left_alone } = node_pods(&objects);
    let shown: Vec<_> = enrolled.iter().map(|(id, netns)| format!("{id}: {netns}")).collect();
    assert_eq!(shown, ["shop/here: pod u-1"]);
    assert_eq!(left_alone.into_iter().collect::<Vec<_>>(), ["u-4"]);
    let mesh = compile(&objects, &PodAddresses::new()).quiet();
    assert_eq!(mesh.workloads.len(), 1);
    let mut peers: Vec<_> = mesh.peers.iter().map(|(ip, peer)| format!("{ip} {}", peer.identity)).collect();
    peers.sort();
    assert_eq!(
        peers,
        [
            "10.1.0.1 spiffe://cluster.local/ns/shop/sa/cart",
            "10.1.0.2 spiffe://cluster.local/ns/shop/sa/web",
            "fd00::2 spiffe://cluster.local/ns/shop/sa/web",
        ]
    );
    let web = mesh.of("shop", "here").http(dst("9.9.9.9:80"), "web").cluster();
    assert!(matches!(web.tls, UpstreamTls::Mesh(_)), "mesh mTLS to a pod of another node");
    // Without a node they are what they were.
    objects.node = None;
    assert_eq!(node_pods(&objects), NodePods::default());
    assert!(compile(&objects, &PodAddresses::new()).peers.is_empty());
}

/// Whoever may create pods must not come by another pod's namespace.
#[test]
fn a_pod_cannot_claim_another_ones_namespace() {
    let pod = |name: &str, meta: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{egret.dev/enroll: \"true\"}}, {meta}}}\nspec: {{nodeName: one}}\n"
        )
    };
    let enrolled = |yaml: &str| {
        let mut objects = objects(yaml);
        objects.node = Some("one".into());
        let pods = node_pods(&objects).enrolled.into_iter();
        let said = compile(&objects, &PodAddresses::new()).diagnostics.len();
        (pods.map(|(id, netns)| format!("{} {netns}", id.name)).collect::<Vec<_>>(), said)
    };
    let mirror = |hash: &str| format!("annotations: {{kubernetes.io/config.mirror: \"{hash}\"}}");
    let static_pod = pod("static", &format!("uid: 0a1b-2, {}", mirror("0123456789abcdef")));
    assert_eq!(enrolled(&static_pod), (vec!["static pod 0123456789abcdef".to_owned()], 0));
    let both = static_pod + &pod("thief", &format!("uid: 0a1b-3, {}", mirror("0123456789abcdef")));
    assert_eq!(enrolled(&both), (vec![], 2));
    // Nobody's hash looks like the UID of a pod from the API server.
    let thief = pod("a", "uid: 0a1b-2") + &pod("thief", &format!("uid: 0a1b-3, {}", mirror("0a1b-2")));
    assert_eq!(enrolled(&thief), (vec!["a pod 0a1b-2".to_owned(), "thief pod 0a1b-3".to_owned()], 0));
    let named = pod("a", "uid: 0a1b-2, annotations: {egret.dev/netns: /proc/1/ns/net}");
    assert_eq!(enrolled(&named), (vec!["a pod 0a1b-2".to_owned()], 1));
    assert_eq!(enrolled(&pod("a", "annotations: {}")), (vec![], 1));
}

/// The one that bears it has it, whatever the `status` of another says.
#[test]
fn an_address_that_two_claim_is_the_bearers() {
    let pod = |name: &str, node: &str, made: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: u-{name}, creationTimestamp: \"{made}\", labels: {{egret.dev/enroll: \"true\"}}}}\nspec: {{nodeName: {node}, serviceAccountName: {name}}}\nstatus: {{podIP: 10.1.0.1}}\n"
        )
    };
    let at = |yaml: &str, bears: &[(&str, &str)]| {
        let mut objects = objects(yaml);
        objects.node = Some("one".into());
        let id = |name: &str| WorkloadId { namespace: "default".into(), name: name.into() };
        let bears = bears.iter().map(|(name, address)| (id(name), vec![ip(address)])).collect();
        compile(&objects, &bears).peers[&ip("10.1.0.1")].identity.rsplit('/').next().unwrap().to_owned()
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
    let two = pod("a", "one", new) + &pod("b", "one", old);
    assert_eq!(at(&two, &[]), "a");
    assert_eq!(at(&two, &[("b", "10.1.0.1")]), "b");
    assert_eq!(at(&(pod("a", "one", old) + &pod("b", "two", new)), &[("a", "10.1.0.1")]), "a");
    assert_eq!(at(&(pod("a", "one", old) + &pod("b", "two", new)), &[("a", "10.1.0.9")]), "b");
}

/// What a rule names is looked up in the pod's volumes, and never among the files of the node.
#[test]
fn files_of_the_node_are_out_of_reach() {
    let rule = |path: &str| {
        rule(
            "default",
            "r",
            &format!("{{host: a.com, trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {path}}}}}}}"),
        ) + &entry("default", "e", &format!("{{hosts: [a.com], {HTTP}}}"))
    };
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: u-1, labels: {egret.dev/enroll: \"true\"}}\nspec:\n  nodeName: one\n  volumes: [{name: v, secret: {secretName: s}}]\n  containers: [{name: c, volumeMounts: [{name: v, mountPath: /etc/certs}]}]\n";
    let seen = |path: &str| {
        let mut objects = objects(&(pod.to_owned() + &rule(path) + &secret("default", "s", &["ca.crt"])));
        objects.node = Some("one".into());
        let mesh = compile(&objects, &PodAddresses::new());
        mesh.of("default", "a").http(dst("1.1.1.1:80"), "a.com").short()
    };
    assert_eq!(seen("/etc/certs/ca.crt"), "outbound|80||a.com SIMPLE");
    assert_eq!(seen("/etc/ssl/certs/ca-certificates.crt"), "outbound|80||a.com SIMPLE");
    for path in ["/var/lib/egret/ca.crt", "/etc/certs/../../run/ca.crt", "/etc/certs/other"] {
        assert_eq!(seen(path), "outbound|80||a.com REFUSED", "{path}");
    }
}
