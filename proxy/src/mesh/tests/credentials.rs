//! Certificates, keys and CAs: where they come from, and what is refused for want of them.

use super::*;

fn world(rules: &str, secrets: &str, pod: &str) -> Mesh {
    let service = "{hosts: [x.com], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, {number: 81, name: h2, protocol: HTTP2}], resolution: DNS, subjectAltNames: [alt.com]}";
    mesh(&format!("{pod}{}{rules}{secrets}", entry("a", "e", service)))
}

fn tls(mesh: &Mesh) -> UpstreamTls {
    mesh.of("a", "p").http(dst("9.9.9.9:80"), "x.com").cluster().tls.clone()
}

const SELECTOR: &str = "workloadSelector: {matchLabels: {app: p}}";

#[test]
fn credential_names() {
    let (full, ca) = (&["tls.crt", "tls.key", "ca.crt"][..], &["ca.crt"][..]);
    let pair = &["tls.crt", "tls.key"][..];
    for (what, mode, secrets, want) in [
        ("whole", "MUTUAL", vec![("c", full)], None),
        ("generic keys", "MUTUAL", vec![("c", &["cert", "key", "cacert"][..])], None),
        ("CA beside", "MUTUAL", vec![("c", pair), ("c-cacert", ca)], None),
        ("CA only, SIMPLE", "SIMPLE", vec![("c", ca)], None),
        ("CA only beside, SIMPLE", "SIMPLE", vec![("c-cacert", &["cacert"][..])], None),
        ("missing", "MUTUAL", vec![], Some("Secret a/c does not exist")),
        ("missing, CA there", "MUTUAL", vec![("c-cacert", ca)], Some("Secret a/c does not exist")),
        ("no CA", "MUTUAL", vec![("c", pair)], Some("no CA to check the server with")),
        ("no CA, SIMPLE", "SIMPLE", vec![("c", pair)], Some("no CA to check the server with")),
        ("no key", "MUTUAL", vec![("c", &["tls.crt", "ca.crt"][..])], Some("lacks tls.crt and tls.key")),
        ("mixed keys", "MUTUAL", vec![("c", &["tls.crt", "key", "ca.crt"][..])], Some("lacks tls.crt and tls.key")),
    ] {
        let rule = rule(
            "a",
            "r",
            &format!(
                "{{host: x.com, {SELECTOR}, trafficPolicy: {{tls: {{mode: {mode}, credentialName: c, sni: s.com}}}}}}"
            ),
        );
        let secrets: String = secrets.iter().map(|(name, keys)| secret("a", name, keys)).collect();
        // The Secret of another namespace is nobody's.
        let mesh = world(&rule, &(secrets + &secret("b", "c", full)), &pod("a", "p", "{app: p}"));
        match (tls(&mesh), want) {
            (UpstreamTls::Originate(tls), None) => {
                assert_eq!(tls.identity.is_some(), mode == "MUTUAL", "{what}");
                assert_eq!(
                    tls.trust,
                    TrustSource::Secret { namespace: "a".to_owned(), name: "c".to_owned() },
                    "{what}"
                );
                assert_eq!(tls.sni.as_deref(), Some("s.com"));
                assert_eq!(tls.subject_alt_names, ["alt.com"]);
                assert_eq!(tls.alpn, ["http/1.1"]);
                assert!(mesh.diagnostics.is_empty(), "{what}: {:?}", mesh.diagnostics);
            }
            (UpstreamTls::Refuse(reason), Some(want)) => {
                assert!(reason.contains(want), "{what}: {reason}");
                let said = mesh.said(Severity::Error);
                assert!(
                    said.len() == 1 && said[0].starts_with("spec.trafficPolicy.tls.credentialName: "),
                    "{what}: {said:?}"
                );
            }
            (got, _) => panic!("{what}: {got:?}"),
        }
    }
}

#[test]
fn without_a_selector_the_credential_counts_and_the_difference_is_said() {
    let rule = rule("a", "r", "{host: x.com, trafficPolicy: {tls: {mode: MUTUAL, credentialName: c}}}");
    let secrets = secret("a", "c", &["tls.crt", "tls.key", "ca.crt"]);
    let mesh = world(&rule, &secrets, &(pod("a", "p", "{}") + &pod("b", "p", "{}")));
    assert!(matches!(tls(&mesh), UpstreamTls::Originate(_)));
    // A client elsewhere has no such Secret: refused, not plain.
    assert_eq!(mesh.of("b", "p").http(dst("9.9.9.9:80"), "x.com").short(), "outbound|80||x.com REFUSED");
    assert!(mesh.said(Severity::Warning)[0].contains("Istio ignores this rule"), "{:?}", mesh.diagnostics);
}

#[test]
fn modes_and_protocols() {
    let settings = |tls: &str, port: u16| {
        let rule = rule(
            "a",
            "r",
            &format!(
                "{{host: x.com, trafficPolicy: {{tls: {tls}, connectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}}}}}}}"
            ),
        );
        let mesh = world(&rule, "", &pod("a", "p", "{}"));
        mesh.of("a", "p").http(dst(&format!("9.9.9.9:{port}")), "x.com").cluster().tls.clone()
    };
    let UpstreamTls::Originate(tls) = settings("{mode: SIMPLE, subjectAltNames: [own.com]}", 80) else { panic!() };
    assert_eq!(tls.alpn, ["h2", "http/1.1"]);
    assert_eq!(tls.trust, TrustSource::System);
    assert_eq!(tls.subject_alt_names, ["own.com"]);
    assert!(!tls.insecure_skip_verify);
    let UpstreamTls::Originate(tls) = settings("{mode: SIMPLE}", 81) else { panic!() };
    assert_eq!(tls.alpn, ["h2", "http/1.1"]);
    assert_eq!(settings("{mode: DISABLE}", 80), UpstreamTls::Plain);
}

const FILES: &str = "{host: x.com, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /etc/certs/tls.crt, privateKey: /etc/certs/tls.key, caCertificates: /etc/ca/ca.crt}}}";

fn pod_with(annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: a, annotations: {{egret.dev/netns: p{annotations}}}}}\nspec: {spec}\n"
    )
}

#[test]
fn files_through_volumes() {
    let keys = ["tls.crt", "tls.key"];
    let in_secret =
        |name: &str, key: &str| Place::Secret { namespace: "a".to_owned(), name: name.to_owned(), key: key.to_owned() };
    let annotations = r#", sidecar.istio.io/userVolume: '[{"name":"c","secret":{"secretName":"s"}}]', sidecar.istio.io/userVolumeMount: '[{"name":"c","mountPath":"/etc/certs","readonly":true}]'"#;
    let map = r#", sidecar.istio.io/userVolume: '{"c":{"secret":{"secretName":"s"}}}', sidecar.istio.io/userVolumeMount: '{"c":{"mountPath":"/etc/certs/"}}'"#;
    let mounted = "{containers: [{name: c, volumeMounts: [{name: v, mountPath: /etc/certs}, {name: w, mountPath: /etc}]}], volumes: [{name: v, secret: {secretName: s}}, {name: w, emptyDir: {}}]}";
    let items = "{containers: [{name: c, volumeMounts: [{name: v, mountPath: /etc/certs}]}], volumes: [{name: v, secret: {secretName: s, items: [{key: one, path: tls.crt}, {key: two, path: tls.key}]}}]}";
    let ca_mounted = "{containers: [{name: c, volumeMounts: [{name: v, mountPath: /etc/certs}, {name: w, mountPath: /etc/ca}]}], volumes: [{name: v, secret: {secretName: s}}, {name: w, configMap: {name: cm, items: [{key: root, path: ca.crt}]}}]}";
    let in_config_map =
        |name: &str, key: &str| Place::ConfigMap { namespace: "a".into(), name: name.into(), key: key.into() };
    let secrets = secret("a", "s", &keys);
    for (what, pod, secrets, want) in [
        ("annotations", pod_with(annotations, "{}"), secrets.clone(), Ok((in_secret("s", "tls.crt"), Place::Host))),
        ("as a map", pod_with(map, "{}"), secrets.clone(), Ok((in_secret("s", "tls.crt"), Place::Host))),
        ("host", pod_with("", "{}"), String::new(), Ok((Place::Host, Place::Host))),
        ("items", pod_with("", items), secret("a", "s", &["one", "two"]), Ok((in_secret("s", "one"), Place::Host))),
        (
            "CA in no Secret",
            pod_with("", mounted),
            secrets.clone(),
            Err("/etc/ca/ca.crt is in the volume w, which is neither a Secret nor a ConfigMap"),
        ),
        (
            "CA in a ConfigMap",
            pod_with("", ca_mounted),
            secrets.clone() + &config_map("a", "cm", "root"),
            Ok((in_secret("s", "tls.crt"), in_config_map("cm", "root"))),
        ),
        ("no ConfigMap", pod_with("", ca_mounted), secrets.clone(), Err("ConfigMap a/cm does not exist")),
        (
            "no key of it",
            pod_with("", ca_mounted),
            secrets.clone() + &config_map("a", "cm", "ca.crt"),
            Err("/etc/ca/ca.crt: ConfigMap a/cm has no key root"),
        ),
        ("no Secret", pod_with(annotations, "{}"), String::new(), Err("Secret a/s does not exist")),
        ("no key", pod_with(annotations, "{}"), secret("a", "s", &["tls.crt"]), Err("Secret a/s has no key tls.key")),
        ("no item", pod_with("", items), secret("a", "s", &keys), Err("has no key one")),
    ] {
        let mesh = world(&rule("a", "r", FILES), &secrets, &pod);
        match (tls(&mesh), want) {
            (UpstreamTls::Originate(tls), Ok((certificate, ca))) => {
                let Some(IdentitySource::Files { certificate: got, .. }) = &tls.identity else { panic!("{what}") };
                assert_eq!(got.place, certificate, "{what}");
                assert_eq!(got.path, "/etc/certs/tls.crt");
                let TrustSource::File(got) = &tls.trust else { panic!("{what}") };
                assert_eq!(got.place, ca, "{what}");
            }
            (UpstreamTls::Refuse(reason), Err(want)) => assert!(reason.contains(want), "{what}: {reason}"),
            (got, want) => panic!("{what}: {got:?} instead of {want:?}"),
        }
    }
}

#[test]
fn the_same_path_means_another_secret_in_another_pod() {
    let pod = |name: &str, secret: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, annotations: {{egret.dev/netns: {name}}}}}\nspec: {{containers: [{{name: c, volumeMounts: [{{name: v, mountPath: /etc/certs}}]}}], volumes: [{{name: v, secret: {{secretName: {secret}}}}}]}}\n"
        )
    };
    let keys = ["tls.crt", "tls.key"];
    let secrets = secret("a", "one", &keys) + &secret("a", "two", &keys);
    let mesh = world(&rule("a", "r", FILES), &secrets, &(pod("p", "one") + &pod("q", "two") + &pod("r", "two")));
    let identity = |name| match &mesh.of("a", name).http(dst("9.9.9.9:80"), "x.com").cluster().tls {
        UpstreamTls::Originate(tls) => tls.identity.clone(),
        other => panic!("{other:?}"),
    };
    assert_ne!(identity("p"), identity("q"));
    assert_eq!(identity("q"), identity("r"));
    assert_eq!(
        mesh.tls_settings().len(),
        2 + 2,
        "each identity once for each ALPN list; the shared table's own is unused"
    );
}
