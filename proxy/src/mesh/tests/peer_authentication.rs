//! What PeerAuthentication makes of pods' ports.

use super::*;

/// A PeerAuthentication.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// `any`, then the ports that differ; who says so.
fn of(mesh: &Mesh, namespace: &str, name: &str) -> (String, String) {
    let id = WorkloadId { namespace: namespace.into(), name: name.into() };
    let table = mesh.workloads[&id].inbound.as_ref().expect("captured");
    let ports = table.modes.ports.iter().map(|(port, mode)| format!(" {port} {}", mode.name()));
    let said_by: Vec<_> = table.said_by.iter().map(|id| format!("{}/{}", id.namespace, id.name)).collect();
    (std::iter::once(table.modes.any.name().to_owned()).chain(ports).collect(), said_by.join(" "))
}

#[test]
fn the_narrowest_policy_that_says_something_counts() {
    let (root, shop) = ("istio-system", "shop");
    let own = |spec: &str| policy(shop, "own", &format!("{{selector: {{matchLabels: {{app: web}}}}, {spec}}}"));
    for (policies, want, by) in [
        (String::new(), "PERMISSIVE", ""),
        (policy(root, "mesh", "{mtls: {mode: STRICT}}"), "STRICT", "istio-system/mesh"),
        (policy(root, "mesh", "{mtls: {mode: UNSET}}"), "PERMISSIVE", ""),
        (
            policy(root, "mesh", "{mtls: {mode: STRICT}}") + &policy(shop, "all", "{mtls: {mode: DISABLE}}"),
            "DISABLE",
            "shop/all",
        ),
        (policy(root, "mesh", "{mtls: {mode: STRICT}}") + &policy(shop, "all", "{}"), "STRICT", "istio-system/mesh"),
        (policy("other", "all", "{mtls: {mode: STRICT}}"), "PERMISSIVE", ""),
        (policy(shop, "all", "{mtls: {mode: STRICT}}") + &own("mtls: {mode: PERMISSIVE}"), "PERMISSIVE", "shop/own"),
        (
            policy(shop, "all", "{mtls: {mode: STRICT}}")
                + &own("portLevelMtls: {9080: {mode: DISABLE}, 9081: {}, 9082: {mode: STRICT}}"),
            "STRICT 9080 DISABLE",
            "shop/own shop/all",
        ),
        (
            policy(root, "mesh", "{mtls: {mode: STRICT}}")
                + &own("mtls: {mode: UNSET}, portLevelMtls: {80: {mode: PERMISSIVE}}"),
            "STRICT 80 PERMISSIVE",
            "shop/own istio-system/mesh",
        ),
        (own("mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: STRICT}}"), "DISABLE 80 STRICT", "shop/own"),
    ] {
        let mesh = mesh(&(pod(shop, "web", "{app: web}") + &policies)).quiet();
        assert_eq!(of(&mesh, shop, "web"), (want.to_owned(), by.to_owned()), "{policies}");
    }
}

#[test]
fn of_several_the_oldest_counts() {
    let dated = |name: &str, date: &str, spec: &str| {
        policy("shop", name, spec)
            .replace("namespace: shop}", &format!("namespace: shop, creationTimestamp: \"{date}\"}}"))
    };
    let web = pod("shop", "web", "{app: web, tier: front}");
    let by_name = mesh(
        &(web.clone()
            + &policy("shop", "b", "{mtls: {mode: STRICT}}")
            + &policy("shop", "a", "{mtls: {mode: DISABLE}}")),
    );
    assert_eq!(of(&by_name, "shop", "web").0, "DISABLE");
    assert_eq!(
        by_name.said(Severity::Warning),
        ["spec: PeerAuthentication shop/a is for every workload of the namespace already: this one is ignored"]
    );
    let by_age = mesh(
        &(web.clone()
            + &dated("a", "2026-02-01T00:00:00Z", "{mtls: {mode: DISABLE}}")
            + &dated("b", "2026-01-01T00:00:00Z", "{mtls: {mode: STRICT}}")),
    );
    assert_eq!(of(&by_age, "shop", "web").0, "STRICT");
    let selecting = mesh(
        &(web
            + &policy("shop", "one", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}")
            + &policy("shop", "two", "{selector: {matchLabels: {tier: front}}, mtls: {mode: DISABLE}}")
            + &policy("shop", "typo", "{selector: {matchLabels: {app: wbe}}, mtls: {mode: DISABLE}}")),
    );
    assert_eq!(of(&selecting, "shop", "web").0, "STRICT");
    assert_eq!(
        selecting.said(Severity::Warning),
        [
            "spec.selector: PeerAuthentication shop/one selects Pod shop/web already: this one is ignored there",
            "spec.selector: no pod of namespace shop bears app=wbe",
        ]
    );
}

#[test]
fn in_the_root_namespace_a_selector_selects_nobody() {
    let text = pod("shop", "web", "{app: web}")
        + &pod("istio-system", "own", "{app: web}")
        + &policy("istio-system", "one", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}")
        + &policy("istio-system", "mesh", "{mtls: {mode: DISABLE}}");
    let mesh = mesh(&text);
    assert_eq!(of(&mesh, "shop", "web").0, "DISABLE");
    assert_eq!(of(&mesh, "istio-system", "own").0, "DISABLE");
    assert_eq!(
        mesh.said(Severity::Warning),
        ["spec.selector: in the root namespace a selector selects nobody, as in Istio: this one is ignored"]
    );
}

const SERVED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080, name: http}, {port: 443, targetPort: 9443, name: tcp-own}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {egret.dev/netns: web}}
status: {podIP: 10.1.0.1}
"#;

/// Callers know what each port takes.
#[test]
fn auto_mtls_goes_by_the_port() {
    let strict = policy(
        "shop",
        "own",
        "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {9443: {mode: DISABLE}}}",
    );
    let mesh = mesh(&(SERVED.to_owned() + &pod("client", "c", "{}") + &strict)).quiet();
    let outbound = mesh.of("client", "c");
    let tls = |port: u16| &outbound.cluster(&format!("outbound|{port}||web.shop.svc.cluster.local")).unwrap().tls;
    assert!(matches!(tls(80), UpstreamTls::Mesh(mesh) if !mesh.required), "{:?}", tls(80));
    assert_eq!(tls(443), &UpstreamTls::Plain);
    let peer = &mesh.peers[&ip("10.1.0.1")];
    assert_eq!((peer.takes_mtls(8080), peer.takes_mtls(9443)), (true, false));
    // Both sides have the very same.
    let table = mesh.workloads[&WorkloadId { namespace: "shop".into(), name: "web".into() }].inbound.clone().unwrap();
    assert!(Arc::ptr_eq(&table.modes, peer.captured.as_ref().unwrap()));
    assert!(table.fail_closed());
}

#[test]
fn rules_that_send_what_is_not_taken() {
    let said = |policies: &str, rules: &str| {
        mesh(&(SERVED.to_owned() + &pod("client", "c", "{}") + policies + rules)).said(Severity::Warning)
    };
    let strict = policy("shop", "all", "{mtls: {mode: STRICT}}");
    let off = policy("shop", "all", "{mtls: {mode: DISABLE}}");
    let of = |mode: &str| {
        rule("client", "r", &format!("{{host: web.shop.svc.cluster.local, trafficPolicy: {{tls: {{mode: {mode}}}}}}}"))
    };
    let reset = |port: u16| {
        format!(
            "spec.trafficPolicy.tls.mode: pods behind port {port} of Service shop/web take mesh mTLS only (PeerAuthentication STRICT): what this sends is reset there"
        )
    };
    assert_eq!(said(&strict, &of("DISABLE")), [reset(443), reset(80)]);
    assert_eq!(said(&strict, &of("SIMPLE")), [reset(443), reset(80)]);
    assert_eq!(said(&strict, &of("ISTIO_MUTUAL")), [""; 0]);
    assert_eq!(said(&off, &of("DISABLE")), [""; 0]);
    let fails = said(&off, &of("ISTIO_MUTUAL"));
    assert_eq!(fails.len(), 2);
    assert!(
        fails[0].ends_with("take no mesh mTLS (PeerAuthentication DISABLE): this handshake fails there"),
        "{fails:?}"
    );
    let permissive = policy("shop", "all", "{mtls: {mode: PERMISSIVE}}");
    for mode in ["DISABLE", "ISTIO_MUTUAL"] {
        assert_eq!(said(&permissive, &of(mode)), [""; 0]);
    }
    // Port by port, and in a subset.
    let by_port = rule(
        "client",
        "r",
        "{host: web.shop.svc.cluster.local, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}",
    );
    assert_eq!(
        said(&strict, &by_port),
        [reset(80).replace("spec.trafficPolicy", "spec.trafficPolicy.portLevelSettings[0]")]
    );
    let subset = rule(
        "client",
        "r",
        "{host: web.shop.svc.cluster.local, subsets: [{name: s, labels: {app: web}, trafficPolicy: {tls: {mode: DISABLE}}}]}",
    );
    assert_eq!(
        said(&strict, &subset),
        [443, 80].map(|port| reset(port).replace("spec.trafficPolicy", "spec.subsets[0].trafficPolicy"))
    );
}

/// What every second author gets wrong: a service's port where the pod's own is meant.
#[test]
fn the_port_of_a_service_is_no_port_of_the_pod() {
    let own = |port: u16| {
        let spec = format!("{{selector: {{matchLabels: {{app: web}}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}");
        mesh(&(SERVED.to_owned() + &policy("shop", "own", &spec))).said(Severity::Warning)
    };
    assert_eq!(
        own(443),
        [
            "spec.portLevelMtls.443: 443 is the port of Service shop/web, which leads to port 9443 of Pod shop/web: this goes by the pod's own ports"
        ]
    );
    assert_eq!(own(9443), [""; 0]);
    assert_eq!(own(1234), [""; 0], "a port of the pod that no service leads to");
}
