//! Real YAML through the whole reader: what it becomes, and what is said about it, to the line and column.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Parsed, parse_file};
use crate::{
    api::{
        AnyObject,
        core::{FilesFrom, VolumeSource},
        istio::{DestinationRule, LoadBalancer, MeshConfig, Resolution, ServiceEntry, TlsMode},
    },
    limits,
};

/// Istio's task "Egress TLS Origination": the ServiceEntry and the rule, with a pod, its namespace and a secret.
pub const SEED: &str = include_str!("seed.yaml");

pub fn parse(text: &str) -> Parsed {
    parse_file(Arc::from(Path::new("f.yaml")), text)
}

/// Every finding as `egret check` prints it, without the file.
pub fn said(parsed: &Parsed) -> Vec<String> {
    let errors = parsed.refused.iter().flat_map(|r| &r.errors);
    let mut all: Vec<_> = errors.chain(&parsed.diagnostics).collect();
    all.sort_by_key(|d| (d.line, d.column));
    all.iter().map(|d| d.to_string().trim_start_matches("f.yaml:").to_owned()).collect()
}

fn rule(spec: &str) -> (Option<DestinationRule>, Vec<String>) {
    let text =
        format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d}}\nspec:\n{spec}");
    let parsed = parse(&text);
    let rule = match parsed.objects.first() {
        Some(AnyObject::DestinationRule(o)) => Some(o.spec.clone()),
        _ => None,
    };
    (rule, said(&parsed))
}

fn mesh(text: &str) -> (Option<MeshConfig>, Vec<String>) {
    let parsed = parse(text);
    let mesh = match parsed.objects.first() {
        Some(AnyObject::MeshConfig(o)) => Some(o.spec.clone()),
        _ => None,
    };
    (mesh, said(&parsed))
}

mod authorization;
mod inbound;
mod routing;
mod service_entry;

#[test]
fn the_seed_is_read_whole_and_without_complaint() {
    let parsed = parse(SEED);
    assert_eq!(said(&parsed), ["55:7: info: kind ServiceAccount means nothing to the data plane: skipped"]);
    let misspelt = parse("apiVersion: networking.istio.io/v1\nkind: VirtualServcie\nmetadata: {name: v}\n");
    assert_eq!(
        said(&misspelt),
        ["2:7: warning: unknown kind VirtualServcie (did you mean `VirtualService`?): skipped"]
    );
    let ids: Vec<_> = parsed.objects.iter().map(|o| o.id().to_string()).collect();
    assert_eq!(
        ids,
        [
            "Namespace mesh-external",
            "Pod default/sleep",
            "ServiceEntry default/edition-cnn-com",
            "DestinationRule default/edition-cnn-com",
            "Secret default/client-credential",
        ]
    );
    let AnyObject::ServiceEntry(entry) = &parsed.objects[2] else { panic!("{:?}", parsed.objects[2]) };
    assert_eq!(entry.spec.hosts, ["edition.cnn.com"]);
    assert_eq!(entry.spec.resolution, Resolution::Dns);
    assert_eq!((entry.spec.ports[0].number, entry.spec.ports[0].target_port), (80, Some(443)));
    assert_eq!(entry.origin.locate("spec.ports[0].targetPort"), (28, 17));
    assert_eq!(entry.origin.locate("spec.ports[0].nothing"), (24, 5), "falls back to what encloses it");
    let AnyObject::DestinationRule(rule) = &parsed.objects[3] else { panic!("{:?}", parsed.objects[3]) };
    let policy = rule.spec.traffic_policy.as_ref().expect("traffic policy");
    assert_eq!(policy.load_balancer.as_ref().map(|balancing| balancing.simple), Some(LoadBalancer::RoundRobin));
    let (port, settings) = &policy.port_level_settings[0];
    assert_eq!((*port, settings.tls.as_ref().map(|t| t.mode)), (80, Some(TlsMode::Simple)));
    let AnyObject::Secret(secret) = &parsed.objects[4] else { panic!("{:?}", parsed.objects[4]) };
    assert_eq!(secret.spec.data["tls.crt"], b"certificate");
    assert_eq!(secret.spec.data["tls.key"], b"key", "stringData lies over data");
}

/// A spec (its first line is line 5 of the document) and the findings that it must cause, without their beginning
/// `error: <object>: spec.`; warnings say so.
type Case = (&'static str, &'static [&'static str]);

/// Runs all cases and names all that differ.
fn each(cases: &[Case], object: &str, read: impl Fn(&str) -> Vec<String>) {
    let mut wrong = String::new();
    for (spec, expected) in cases {
        let found: Vec<_> = read(spec)
            .iter()
            .map(|line| line.replace(&format!("error: {object}: spec"), "").replace(&format!("{object}: spec"), ""))
            .map(|line| line.replacen(" .", " ", 1).replacen(" : ", " ", 1))
            .collect();
        if found != *expected {
            wrong.push_str(&format!("{spec}\n  expected {expected:#?}\n  found {found:#?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn destination_rules_are_checked_as_istio_checks_them() {
    let cases: &[Case] = &[
        ("  host: reviews\n", &[]),
        ("  host: '*.local'\n", &[]),
        ("  subsets: []\n", &["4:1: `host` is missing"]),
        (
            "  host: a..b\n",
            &["5:9: host: \"a..b\" has the label \"\": letters, digits and `-` inside only, 1 to 63 of them"],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {mode: MUTUAL}}\n",
            &[
                "6:24: trafficPolicy.tls: mode MUTUAL wants `clientCertificate`, or `credentialName`",
                "6:24: trafficPolicy.tls: mode MUTUAL wants `privateKey`, or `credentialName`",
            ],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /a, caCrl: /l}}\n",
            &[],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {mode: MUTUAL, credentialName: s, caCertificates: /a}}\n",
            &[
                "6:74: trafficPolicy.tls.caCertificates: `credentialName` is given too: certificates come from one of the two",
            ],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, privateKey: /k}}\n",
            &["6:57: trafficPolicy.tls.privateKey: ISTIO_MUTUAL uses the mesh's own certificates: leave it out"],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {mode: TLS}}\n",
            &["6:31: trafficPolicy.tls.mode: \"TLS\" is not one of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL"],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {sni: x.y}}\n",
            &[
                "6:24: warning: trafficPolicy.tls: `mode` is missing and means DISABLE: no TLS; the other fields do nothing",
            ],
        ),
        (
            "  host: a.b\n  trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [x]}}\n",
            &[
                "6:82: trafficPolicy.tls.subjectAltNames: `insecureSkipVerify` is set: nothing is verified, so leave this out",
            ],
        ),
        (
            "  host: a.b\n  trafficPolicy:\n    portLevelSettings:\n    - tls: {mode: SIMPLE}\n    - port: {number: 70000}\n    - port: {number: 80}\n    - port: {number: 80}\n",
            &[
                "8:7: trafficPolicy.portLevelSettings[0]: `port` is missing",
                "9:22: trafficPolicy.portLevelSettings[1].port.number: must be from 1 to 65535, not 70000",
                "11:22: trafficPolicy.portLevelSettings[3].port.number: port 80 is given twice",
            ],
        ),
        (
            "  host: a.b\n  subsets:\n  - name: v1\n  - name: v1\n",
            &["8:11: subsets[1].name: subset \"v1\" is given twice"],
        ),
        (
            "  host: a.b\n  trafficPolicy:\n    tunnel: {targetHost: a, targetPort: 1}\n    loadBalancer:\n      consistentHash: {useSourceIp: false}\n",
            &[
                "7:5: warning: trafficPolicy.tunnel: not honoured yet",
                "9:37: trafficPolicy.loadBalancer.consistentHash.useSourceIp: false hashes nothing: leave `consistentHash` out",
            ],
        ),
        (
            "  host: a.b\n  trafficPolicy:\n    connectionPool:\n      tcp: {connectTimeout: 10, maxConnections: -1}\n      http: {idleTimeout: 1 hour}\n",
            &[
                "8:29: trafficPolicy.connectionPool.tcp.connectTimeout: must be a duration such as 10s, 1.5s, 100ms or 1h30m, not `10`",
                "8:49: trafficPolicy.connectionPool.tcp.maxConnections: must be from 0 to 2147483647, not -1",
                "9:27: trafficPolicy.connectionPool.http.idleTimeout: must be a duration such as 10s, 1.5s, 100ms or 1h30m, not `1 hour`",
            ],
        ),
    ];
    each(cases, "DestinationRule default/d", |spec| rule(spec).1);
    let (twice, said) =
        rule("  host: a.b\n  trafficPolicy: {tls: {mode: SIMPLE, credentialName: x, credential_name: y}}\n");
    assert!(twice.is_none());
    let object = "DestinationRule default/d: spec.trafficPolicy.tls.credentialName";
    assert_eq!(said, [format!("6:58: error: {object}: given twice, in camelCase and in snake_case")]);
}

#[test]
fn mesh_settings_keep_their_places_inside_the_config_map() {
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n";
    let (read, said) = mesh(&format!(
        "{head}    # comment\n    accessLogFile: \"\"\n    outboundTrafficPolicy:\n      mode: REGISTRY_ONLY\n    tlsDefaults: {{minProtocolVersion: TLSV1_3, \
         ecdhCurves: [X25519]}}\n    trustDomain: td\n"
    ));
    assert_eq!(said, [""; 0]);
    let read = read.expect("read");
    assert_eq!(
        (read.registry_only, read.access_log_file.as_deref(), read.access_log_format),
        (Some(true), Some(""), None)
    );
    assert_eq!((read.tls_min_version.as_deref(), read.trust_domain.as_deref()), (Some("TLSV1_3"), Some("td")));

    let (read, said) =
        mesh(&format!("{head}    enableTracing: true\n    outboundTrafficPolicy:\n      mode: ALLOW\n    nope: 1\n"));
    assert!(read.is_none());
    assert_eq!(
        said,
        [
            "6:5: warning: ConfigMap istio-system/istio: data.mesh.enableTracing: not honoured yet",
            "8:13: error: ConfigMap istio-system/istio: data.mesh.outboundTrafficPolicy.mode: \"ALLOW\" is not one of ALLOW_ANY, REGISTRY_ONLY",
            "9:5: warning: ConfigMap istio-system/istio: data.mesh.nope: unknown field",
        ]
    );
    let (read, said) = mesh(&format!("{head}    a: [\n"));
    assert!(read.is_none());
    assert!(said[0].contains("ConfigMap istio-system/istio: data.mesh: not YAML"), "{said:?}");

    let operator = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: i}\nspec:\n  profile: minimal\n  meshConfig:\n    accessLogEncoding: JSON\n";
    assert_eq!(mesh(operator).0.expect("read").access_log_json, Some(true));
    assert_eq!(parse(operator).objects[0].origin().locate("accessLogEncoding"), (7, 24), "by its own path too");
    let (none, said) = mesh("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\ndata: {mesh: 'a: b'}\n");
    assert!(none.is_none());
    assert_eq!(said, Vec::<String>::new(), "an ordinary ConfigMap");
}

#[test]
fn one_bad_document_costs_only_itself() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkey: [broken\n---\napiVersion: v1\nkind: Namespace\nmetadata: {}\n---\n\
                # only a comment\n---\nkind: Namespace\n---\n- list\n---\noutboundTrafficPolicy: {mode: ALLOW_ANY}\n---\napiVersion: v1\nkind: Namespace\n\
                metadata: {name: Bad_Name}\n---\napiVersion: v2\nkind: Namespace\nmetadata: {name: c}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";
    let parsed = parse(text);
    let ids: Vec<_> = parsed.objects.iter().map(|o| o.id().name.clone()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert!(parsed.not_yaml);
    let refused: Vec<_> = parsed.refused.iter().map(|r| r.id.as_ref().map(|id| id.to_string())).collect();
    assert_eq!(refused, [None, None, None, None, None, None, Some("Namespace c".to_owned())]);
    let said = said(&parsed);
    assert!(said[0].contains("error: not YAML"), "{said:?}");
    assert_eq!(
        said[1..],
        [
            "9:11: error: metadata: `name` is missing",
            "13:1: error: `apiVersion` is missing",
            "15:1: error: not an object: a document is a mapping with `apiVersion`, `kind` and `metadata`",
            "17:1: error: `kind` is missing; mesh settings go into the ConfigMap `istio`, key `mesh`",
            "21:18: error: metadata.name: \"Bad_Name\" is not a name: lower-case letters, digits, `-` and `.`, 253 at most",
            "23:13: error: Namespace c: apiVersion: \"v2\" is not one of v1",
        ]
    );
}

#[test]
fn lists_json_and_kinds_that_are_not_read() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\", \"labels\": \
                {\"x\": \"\\u00e9\\/\"}}},\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"s\"}, \"spec\": {\"ports\": [{\"port\": 0}]}}\n\t]\n}\n";
    let parsed = parse_file(Arc::from(Path::new("f.json")), text);
    assert_eq!(parsed.objects.len(), 1, "{:?}", parsed.refused);
    assert!(format!("{:?}", parsed.objects[0]).contains("é/"));
    assert_eq!(
        parsed.refused[0].errors[0].to_string(),
        "f.json:6:98: error: Service default/s: spec.ports[0].port: must be from 1 to 65535, not 0"
    );
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: b}\n---\n\
                apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {name: v, namespace: n}\n---\napiVersion: serving.knative.dev/v1\nkind: Service\n";
    assert_eq!(
        said(&parse(text)),
        [
            "2:7: info: kind Deployment means nothing to the data plane: skipped",
            "10:7: warning: EnvoyFilter n/v: kind EnvoyFilter is not honoured yet",
            "14:7: info: kind Service means nothing to the data plane: skipped",
        ]
    );
}

#[test]
fn pods_services_and_secrets_are_checked() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    egret.dev/netns: ../x\n    sidecar.istio.io/inject: maybe\n    egret.dev/nets: x\n\
                spec:\n  volumes:\n  - name: v\n    secret: {secretName: s, items: [{key: a, path: b}]}\n  containers:\n  - name: c\n    image: i\n    \
                volumeMounts: [{name: v, mountPath: /etc/x, readOnly: true}]\n    ports: [{containerPort: 99999}]\n  nodeSelektor: {}\nstatus: {podIP: here}\n";
    assert_eq!(
        said(&parse(text)),
        [
            "6:22: error: Pod default/p: metadata.annotations[egret.dev/netns]: \"../x\" is neither the name of a network namespace nor an absolute path",
            "7:30: error: Pod default/p: metadata.annotations[sidecar.istio.io/inject]: \"maybe\" is not one of \"true\", \"false\"",
            "8:21: warning: Pod default/p: metadata.annotations[egret.dev/nets]: annotation egret.dev/nets is not known; there is egret.dev/netns, egret.dev/enroll",
            "17:29: error: Pod default/p: spec.containers[0].ports[0].containerPort: must be from 1 to 65535, not 99999",
            "18:3: warning: Pod default/p: spec.nodeSelektor: unknown field",
            "19:17: error: Pod default/p: status.podIP: \"here\" is not an IP address",
        ]
    );
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {egret.dev/netns: p}}\nspec:\n  volumes: [{name: v, secret: {secretName: s}}, {name: e, emptyDir: {}}]\n  \
                containers: [{name: c, volumeMounts: [{name: v, mountPath: /m, subPath: k}]}]\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n";
    let parsed = parse(text);
    let AnyObject::Pod(pod) = &parsed.objects[0] else { panic!("{parsed:?}") };
    assert_eq!(pod.spec.service_account_name, "default");
    let secret = VolumeSource { from: FilesFrom::Secret("s".to_owned()), items: BTreeMap::new(), optional: false };
    assert_eq!((&pod.spec.volumes[0].sources, &pod.spec.volumes[1].sources), (&vec![secret], &Vec::new()));
    assert_eq!((pod.spec.mounts[0].sub_path.as_deref(), pod.spec.ips.len()), (Some("k"), 2));

    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  tls.crt: |\n    Y2Vy\n    dA==\n  tls.key: 'swordfish?'\n";
    let refused = said(&parse(secret));
    assert!(
        refused[0].starts_with("8:12: error: Secret default/s: data[tls.key]: key tls.key is not base64"),
        "{refused:?}"
    );
    assert!(!refused[0].contains("swordfish"), "a secret is never printed: {refused:?}");
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  clusterIP: None\n  ports:\n  - {port: 80, name: a, targetPort: http}\n  - {port: 81, targetPort: 8081}\n";
    assert_eq!(
        said(&parse(text)),
        ["8:5: error: Service default/s: spec.ports[1]: `name` is missing: a Service with several ports names each"]
    );
}

#[test]
fn config_maps_count_where_they_hold_certificates() {
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca, namespace: n}\n";
    for (what, data, want) in [
        ("CA bundle", "data: {ca.crt: 'x', more: 'y'}\n", Some(2)),
        ("any key with PEM", "data:\n  roots.pem: |\n    -----BEGIN CERTIFICATE-----\n    aa\n", Some(1)),
        ("settings of an application: the key alone", "data: {app.conf: 'x'}\n", Some(1)),
        ("nothing", "", None),
        ("bytes only", "binaryData: {ca.crt: eHg=}\n", None),
    ] {
        let parsed = parse(&format!("{head}{data}"));
        let read = parsed.objects.first().map(|object| match object {
            AnyObject::ConfigMap(object) => object.spec.data.len(),
            other => panic!("{what}: {other:?}"),
        });
        assert_eq!(read, want, "{what}");
        let skipped = "2:7: info: kind ConfigMap means nothing to the data plane: skipped";
        assert_eq!(said(&parsed), want.map_or(vec![skipped], |_| Vec::new()), "{what}");
    }
    let text = format!("{head}data: {{ca.crt: [x]}}\n");
    assert_eq!(said(&parse(&text)), ["4:16: error: ConfigMap n/ca: data[ca.crt]: key ca.crt must be text"]);
}
