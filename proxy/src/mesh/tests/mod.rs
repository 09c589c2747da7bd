//! What objects, written as their authors write them, come to.

mod amend;
mod amend_endpoints;
mod authorization;
mod credentials;
mod egress;
mod enrol;
mod gateway_api;
mod gateways;
mod guards;
mod own_ports;
mod peer_authentication;
mod peers;
mod policies;
mod projected;
mod random;
mod random_inbound;
mod random_routes;
mod random_sidecars;
mod rules;
mod scale;
mod services;
mod sidecar_egress;
mod sidecar_ingress;
mod sidecars;
mod slices;
mod virtual_services;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use super::*;
use crate::{
    api::{Objects, Severity},
    source::documents::parse_file,
};

/// Objects out of YAML text; panics where the text is refused.
fn objects(yaml: &str) -> Objects {
    let parsed = parse_file(Arc::from(Path::new("test.yaml")), yaml);
    assert!(!parsed.not_yaml, "not YAML");
    assert!(parsed.refused.is_empty(), "{:?}", parsed.refused);
    let mut objects = Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    objects
}

fn mesh(yaml: &str) -> Mesh {
    compile(&objects(yaml), &PodAddresses::new())
}

fn pod(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {labels}, annotations: {{egret.dev/netns: {namespace}-{name}}}}}\n"
    )
}

/// A ServiceEntry in `namespace` with this `spec` (flow style).
fn entry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A DestinationRule.
fn rule(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A Sidecar.
fn sidecar(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A Secret whose keys hold nothing of worth.
fn secret(namespace: &str, name: &str, keys: &[&str]) -> String {
    let data: String = keys.iter().map(|key| format!("  {key}: x\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData:\n{data}"
    )
}

/// A ConfigMap with a certificate of no worth under `key`.
fn config_map(namespace: &str, name: &str, key: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata:\n  {key}: '-----BEGIN CERTIFICATE-----'\n"
    )
}

/// One HTTP port 80, resolved by DNS.
const HTTP: &str = "ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";

fn dst(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

impl Mesh {
    fn of(&self, namespace: &str, name: &str) -> &Outbound {
        let id = WorkloadId { namespace: namespace.into(), name: name.into() };
        &self.workloads.get(&id).expect("an enrolled pod").outbound
    }

    /// Diagnostics of a severity, as `field: message`.
    fn said(&self, severity: Severity) -> Vec<String> {
        let of = self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity);
        of.map(|d| format!("{}: {}", d.field, d.message)).collect()
    }

    fn quiet(self) -> Self {
        assert!(self.diagnostics.is_empty(), "{:#?}", self.diagnostics);
        self
    }
}

impl Decision {
    /// One line: the cluster's name with how it is protected, or what happens instead.
    fn short(&self) -> String {
        match self {
            Self::Cluster(cluster) => {
                let tls = match &cluster.tls {
                    UpstreamTls::Plain => "",
                    UpstreamTls::Originate(settings) if settings.identity.is_some() => " MUTUAL",
                    UpstreamTls::Originate(_) => " SIMPLE",
                    UpstreamTls::Mesh(mesh) if mesh.required => " MESH",
                    UpstreamTls::Mesh(_) => "",
                    UpstreamTls::Refuse(_) => " REFUSED",
                };
                format!("{}{tls}", cluster.name)
            }
            Self::Route(route) => {
                let shares = route.destinations.iter().map(|(to, weight)| format!("{} {weight}", to.name()));
                shares.collect::<Vec<_>>().join(", ")
            }
            Self::Passthrough => "passthrough".to_owned(),
            Self::Block => "block".to_owned(),
            Self::Refuse(_) => "refuse".to_owned(),
        }
    }

    fn cluster(&self) -> &Arc<Cluster> {
        match self {
            Self::Cluster(cluster) => cluster,
            other => panic!("no cluster: {other:?}"),
        }
    }
}

impl HttpDecision {
    /// The default route's cluster, or what happens to what has none.
    fn decision(&self) -> Decision {
        match self {
            Self::Host(host) => Decision::Cluster(host.default_cluster().expect("a default route").clone()),
            Self::NotFound => panic!("not found"),
            Self::Unmatched(decision) => decision.clone(),
        }
    }

    fn short(&self) -> String {
        self.decision().short()
    }

    fn cluster(&self) -> Arc<Cluster> {
        self.decision().cluster().clone()
    }
}

#[test]
fn enrolment() {
    let yaml = r#"
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {egret.dev/netns: one}}
spec: {serviceAccountName: sleep}
---
apiVersion: v1
kind: Pod
metadata: {name: b, annotations: {egret.dev/netns: /var/run/netns/one}}
---
apiVersion: v1
kind: Pod
metadata: {name: c, annotations: {egret.dev/netns: three, sidecar.istio.io/inject: "false"}}
---
apiVersion: v1
kind: Pod
metadata: {name: d, labels: {istio.io/dataplane-mode: none}, annotations: {egret.dev/netns: four}}
---
apiVersion: v1
kind: Pod
metadata: {name: e, annotations: {egret.dev/netns: five}}
spec: {hostNetwork: true}
---
apiVersion: v1
kind: Pod
metadata: {name: f}
---
apiVersion: v1
kind: Pod
metadata: {name: g, namespace: other, annotations: {egret.dev/netns: seven}}
"#;
    let mesh = mesh(yaml);
    let names: Vec<String> = mesh.workloads.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["default/a", "other/g"]);
    let first = mesh.workloads.values().next().unwrap();
    assert_eq!((first.service_account.as_str(), first.netns.as_str()), ("sleep", "one"));
    assert_eq!(mesh.diagnostics.len(), 1, "{:?}", mesh.diagnostics);
    let said = mesh.diagnostics[0].to_string();
    assert!(said.starts_with("test.yaml:9:") && said.contains("Pod default/a is in the network namespace"), "{said}");
}

#[test]
fn mesh_settings() {
    let yaml = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: ""
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    rootNamespace: root
    connectTimeout: 3s
"#;
    let text =
        yaml.to_owned() + &pod("default", "a", "{}") + &entry("default", "e", &format!("{{hosts: [a.com], {HTTP}}}"));
    let mesh = mesh(&text).quiet();
    assert_eq!(mesh.settings.access_log_file, None);
    assert_eq!(mesh.settings.root_namespace, "root");
    assert_eq!(mesh.settings.trust_domain, "cluster.local");
    let outbound = mesh.of("default", "a");
    assert_eq!(outbound.http(dst("1.1.1.1:80"), "b.com").short(), "block");
    assert_eq!(outbound.tls(dst("1.1.1.1:443"), Some("b.com")).short(), "block");
    assert_eq!(outbound.tcp(dst("1.1.1.1:1")).short(), "block");
    let cluster = outbound.http(dst("1.1.1.1:80"), "a.com").cluster().clone();
    assert_eq!(cluster.pool.connect_timeout, std::time::Duration::from_secs(3));
    assert_eq!(super::table::Settings::default().access_log_file.as_deref(), Some(Path::new("/dev/stdout")));
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
