//! Real YAML through the whole reader: what it becomes, and what is said about it, to the line and column.

use std::{path::Path, sync::Arc};

use super::{Parsed, parse_file};
use crate::api::{
    AnyObject,
    istio::{DestinationRule, LoadBalancer, MeshConfig, Resolution, ServiceEntry, TlsMode},
};

/// Istio's task "Egress TLS Origination": the ServiceEntry and the rule, with a pod, its namespace and a secret.
pub const SEED: &str = include_str!("seed.yaml");

fn parse(text: &str) -> Parsed {
    parse_file(Arc::from(Path::new("f.yaml")), text)
}

/// Every finding as `egret check` prints it, without the file.
fn said(parsed: &Parsed) -> Vec<String> {
    let errors = parsed.refused.iter().flat_map(|r| &r.errors);
    let mut all: Vec<_> = errors.chain(&parsed.diagnostics).collect();
    all.sort_by_key(|d| (d.line, d.column));
    all.iter().map(|d| d.to_string().trim_start_matches("f.yaml:").to_owned()).collect()
}

fn service_entry(spec: &str) -> (Option<ServiceEntry>, Vec<String>) {
    let text = format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: s}}\nspec:\n{spec}");
    let parsed = parse(&text);
    let entry = match parsed.objects.first() {
        Some(AnyObject::ServiceEntry(o)) => Some(o.spec.clone()),
        _ => None,
    };
    (entry, said(&parsed))
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

#[test]
fn the_seed_is_read_whole_and_without_complaint() {
    let parsed = parse(SEED);
    assert_eq!(said(&parsed), ["55:7: info: kind ServiceAccount means nothing to the data plane: skipped"]);
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
    assert_eq!(policy.load_balancer, Some(LoadBalancer::RoundRobin));
    let (port, settings) = &policy.port_level_settings[0];
    assert_eq!((*port, settings.tls.as_ref().map(|t| t.mode)), (80, Some(TlsMode::Simple)));
    let AnyObject::Secret(secret) = &parsed.objects[4] else { panic!("{:?}", parsed.objects[4]) };
    assert_eq!(secret.spec.data["tls.crt"], b"certificate");
    assert_eq!(secret.spec.data["tls.key"], b"key", "stringData lies over data");
}

/// The findings that a document must cause, to the line and column (of the spec, which starts on line 5).
type Case = (&'static str, &'static [&'static str]);

#[test]
fn service_entries_are_checked_as_istio_checks_them() {
    let cases: &[Case] = &[
        ("  hosts: [a.b]\n", &[]),
        ("  ports: []\n", &["4:1: error: ServiceEntry default/s: spec: `hosts` is missing"]),
        ("  hosts: []\n", &["4:1: error: ServiceEntry default/s: spec: `hosts` must name at least one host"]),
    ];
    for (spec, expected) in cases {
        assert_eq!(service_entry(spec).1, *expected, "{spec}");
    }
}
