//! BackendTLSPolicies: what they make of calls to their targets, whatever DestinationRules say.

use super::*;
use crate::mesh::{PodAddresses, TlsSettings, TrustSource, UpstreamTls, compile};

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

const CA: &str = "validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], hostname: s.example.com}";
const TARGET: &str = "targetRefs: [{group: '', kind: Service, name: s}]";

/// Services `s` and a pod each in `default` and `far`, with the CA.
fn world(more: &str) -> String {
    service("default", "s")
        + &super::super::config_map("default", "ca", "ca.crt")
        + &super::super::pod("default", "p", "{app: p}")
        + &super::super::pod("default", "s", "{app: s}")
        + &super::super::pod("far", "q", "{app: q}")
        + more
}

/// TLS from a pod to the Service on a port.
fn tls(yaml: &str, (namespace, name): (&str, &str), port: u16) -> UpstreamTls {
    let mesh = super::super::mesh(yaml);
    let to = super::super::dst(&format!("10.0.0.1:{port}"));
    mesh.of(namespace, name).http(to, "s.default").cluster().tls.clone()
}

fn originates(tls: UpstreamTls) -> TlsSettings {
    match tls {
        UpstreamTls::Originate(settings) => (*settings).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_to_a_service_get_tls_with_the_policy_s_ca() {
    let yaml = world(&policy("b", &format!("{{{TARGET}, {CA}}}")));
    for (pod, port) in [(("default", "p"), 80), (("default", "p"), 81), (("far", "q"), 80)] {
        let settings = originates(tls(&yaml, pod, port));
        assert_eq!(settings.trust, TrustSource::ConfigMap { namespace: "default".into(), name: "ca".into() });
        assert_eq!(
            (settings.sni.as_deref(), settings.subject_alt_names.clone()),
            (Some("s.example.com"), vec!["s.example.com".to_owned()])
        );
    }
    let made = converted(&yaml).quiet();
    assert_eq!(made.conditions()["b target Service s"], ["Accepted=Accepted", "ResolvedRefs=ResolvedRefs"]);
    assert_eq!(super::super::mesh(&yaml).quiet().workloads.len(), 3);
    let system = "validation: {wellKnownCACertificates: System, hostname: h.com, subjectAltNames: [{type: URI, uri: 'spiffe://x/y'}, {type: Hostname, hostname: n.com}]}";
    let settings = originates(tls(&world(&policy("b", &format!("{{{TARGET}, {system}}}"))), ("far", "q"), 80));
    assert_eq!(
        (settings.trust.clone(), settings.subject_alt_names.clone()),
        (TrustSource::System, vec!["spiffe://x/y".to_owned(), "n.com".to_owned()])
    );
}

#[test]
fn a_section_is_one_port() {
    let target = "targetRefs: [{group: '', kind: Service, name: s, sectionName: http-b}]";
    let yaml = world(&policy("b", &format!("{{{target}, {CA}}}")));
    assert!(matches!(tls(&yaml, ("far", "q"), 80), UpstreamTls::Plain | UpstreamTls::Mesh(_)));
    originates(tls(&yaml, ("far", "q"), 81));
    let bad = world(&policy("b", &format!("{{{}, {CA}}}", target.replace("http-b", "none"))));
    assert_eq!(converted(&bad).conditions()["b target Service s section none"][0], "!Accepted=TargetNotFound");
}

#[test]
fn without_its_ca_nothing_is_sent() {
    for (reference, reason) in [
        ("{group: '', kind: ConfigMap, name: none}", "InvalidCACertificateRef"),
        ("{group: '', kind: Service, name: s}", "InvalidKind"),
    ] {
        let ca = CA.replace("{group: '', kind: ConfigMap, name: ca}", reference);
        let yaml = world(&policy("b", &format!("{{{TARGET}, {ca}}}")));
        assert!(matches!(tls(&yaml, ("far", "q"), 80), UpstreamTls::Refuse(_)), "{reference}");
        let made = converted(&yaml);
        let field = "BackendTLSPolicy default/b: spec.validation.caCertificateRefs[0]";
        assert!(made.said.len() == 1 && made.said[0].contains(field), "{:?}", made.said);
        let want = ["!Accepted=NoValidCACertificate".to_owned(), format!("!ResolvedRefs={reason}")];
        assert_eq!(made.conditions()["b target Service s"], want);
    }
}

#[test]
fn no_rule_of_an_author_s_leads_to_plain_text() {
    let host = "s.default.svc.cluster.local";
    for (namespace, spec) in [
        ("default", format!("{{host: {host}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}}}")),
        ("default", format!("{{host: {host}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}")),
        (
            "default",
            format!(
                "{{host: {host}, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {{mode: DISABLE}}}}]}}}}"
            ),
        ),
        ("default", "{host: '*.default.svc.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}}".to_owned()),
        ("far", format!("{{host: {host}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}")),
        ("far", "{host: '*', trafficPolicy: {loadBalancer: {simple: RANDOM}}}".to_owned()),
        (
            "far",
            format!(
                "{{host: {host}, workloadSelector: {{matchLabels: {{app: q}}}}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}"
            ),
        ),
        (
            "far",
            format!(
                "{{host: {host}, workloadSelector: {{matchLabels: {{app: z}}}}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}"
            ),
        ),
        ("default", format!("{{host: {host}, exportTo: ['.'], trafficPolicy: {{tls: {{mode: DISABLE}}}}}}")),
    ] {
        let rule = super::super::rule(namespace, "r", &spec);
        let yaml = world(&(policy("b", &format!("{{{TARGET}, {CA}}}")) + &rule));
        for pod in [("default", "p"), ("far", "q")] {
            originates(tls(&yaml, pod, 80));
        }
    }
    // TLS of an author's own stays.
    let rule = super::super::rule(
        "default",
        "r",
        &format!("{{host: {host}, trafficPolicy: {{tls: {{mode: SIMPLE, sni: own.com}}}}}}"),
    );
    let yaml = world(&(policy("b", &format!("{{{TARGET}, {CA}}}")) + &rule));
    assert_eq!(originates(tls(&yaml, ("far", "q"), 80)).sni.as_deref(), Some("own.com"));
}

#[test]
fn of_two_for_one_target_the_first_counts() {
    let second = policy("c", &format!("{{{TARGET}, {}}}", CA.replace("s.example.com", "c.example.com")));
    let yaml = world(&(policy("b", &format!("{{{TARGET}, {CA}}}")) + &second));
    assert_eq!(originates(tls(&yaml, ("far", "q"), 80)).sni.as_deref(), Some("s.example.com"));
    let made = converted(&yaml);
    assert_eq!(made.conditions()["c target Service s"][0], "!Accepted=Conflicted");
    assert!(made.said[0].contains("BackendTLSPolicy default/c: spec.targetRefs[0]"), "{:?}", made.said);
}

#[test]
fn a_node_without_enrolled_pods_asks_for_no_ca() {
    let on_node = |labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: here, uid: u-1, labels: {labels}}}\nspec: {{nodeName: one}}\n"
        )
    };
    let asked = |labels: &str| {
        let yaml = service("default", "s") + &policy("p", &format!("{{{TARGET}, {CA}}}")) + &on_node(labels);
        let mut objects = super::super::objects(&yaml);
        objects.node = Some("one".into());
        let _ = compile(&objects, &PodAddresses::new());
        objects.asked.take().into_iter().map(|asked| asked.name).collect::<Vec<_>>()
    };
    assert_eq!(asked("{egret.dev/enroll: 'false'}"), Vec::<String>::new());
    assert_eq!(asked("{egret.dev/enroll: 'true'}"), ["ca"]);
}
