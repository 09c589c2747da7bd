//! The egress gateways of Istio's own documents, as a whole: both hops of a request, and nothing to complain of.

use super::*;
use crate::mesh::{Behind, GatewayTable, ListenerId, Servers};

fn gateway_of<'a>(mesh: &'a Mesh, namespace: &str, name: &str) -> &'a GatewayTable {
    let id = WorkloadId { namespace: namespace.into(), name: name.into() };
    mesh.workloads[&id].gateway.as_deref().expect("a gateway")
}

fn clusters(decision: &HttpDecision) -> Vec<String> {
    let HttpDecision::Host(host) = decision else { panic!("{decision:?}") };
    host.clusters().map(|cluster| cluster.name.clone()).collect()
}

/// What the only TLS server on the port is called, and its tables.
fn behind(table: &GatewayTable, port: u16, sni: &str) -> String {
    let Servers::Tls(servers) = &table.listeners[&ListenerId { bind: None, port }].serves else { panic!("no TLS") };
    let server = servers.get(sni).expect("a server");
    assert!(matches!(server.serves, Behind::Http(_)));
    server.name.to_string()
}

const ORIGINATION: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
spec:
  selector: {istio: egressgateway}
  ports: [{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]
---
apiVersion: v1
kind: Pod
metadata: {name: istio-egressgateway, namespace: istio-system, labels: {istio: egressgateway}, annotations: {egret.dev/netns: egress}}
spec: {serviceAccountName: istio-egressgateway-service-account}
status: {podIP: 10.1.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: curl, namespace: default, labels: {app: curl}, annotations: {egret.dev/netns: curl}}
status: {podIP: 10.1.0.1}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cnn}
spec:
  hosts: [edition.cnn.com]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: istio-egressgateway}
spec:
  selector: {istio: egressgateway}
  servers:
  - port: {number: 80, name: https-port-for-tls-origination, protocol: HTTPS}
    hosts: [edition.cnn.com]
    tls: {mode: ISTIO_MUTUAL}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egressgateway-for-cnn}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
  - name: cnn
    trafficPolicy:
      loadBalancer: {simple: ROUND_ROBIN}
      portLevelSettings:
      - port: {number: 80}
        tls: {mode: ISTIO_MUTUAL, sni: edition.cnn.com}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: direct-cnn-through-egress-gateway}
spec:
  hosts: [edition.cnn.com]
  gateways: [istio-egressgateway, mesh]
  http:
  - match: [{gateways: [mesh], port: 80}]
    route:
    - destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: cnn, port: {number: 80}}
      weight: 100
  - match: [{gateways: [istio-egressgateway], port: 80}]
    route:
    - destination: {host: edition.cnn.com, port: {number: 443}}
      weight: 100
"#;

#[test]
fn a_secret_that_a_gateway_lacks_is_missing_there_only() {
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: istio-system}\nspec:\n  host: edition.cnn.com\n  trafficPolicy: {tls: {mode: MUTUAL, credentialName: client-credential}}\n";
    let mesh = mesh(&(ORIGINATION.to_owned() + rule));
    for (severity, namespace) in [(Severity::Error, "istio-system"), (Severity::Info, "default")] {
        let said = mesh.said(severity);
        assert_eq!(said.len(), 1, "{:#?}", mesh.diagnostics);
        assert!(said[0].contains(&format!("Secret {namespace}/client-credential does not exist")), "{said:?}");
    }
}

#[test]
fn an_egress_gateway_that_originates_tls() {
    let simple = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: originate-tls-for-edition-cnn-com}\nspec:\n  host: edition.cnn.com\n  trafficPolicy:\n    loadBalancer: {simple: ROUND_ROBIN}\n    portLevelSettings:\n    - port: {number: 443}\n      tls: {mode: SIMPLE}\n";
    let mutual = simple
        .replace("{mode: SIMPLE}", "{mode: MUTUAL, credentialName: client-credential, sni: edition.cnn.com}")
        .replace("com}\nspec", "com, namespace: istio-system}\nspec")
        + &secret("istio-system", "client-credential", &["tls.crt", "tls.key", "ca.crt"]);
    for (what, rule, identity) in [("SIMPLE", simple.to_owned(), None), ("MUTUAL", mutual, Some("client-credential"))] {
        let mesh = mesh(&(ORIGINATION.to_owned() + &rule));
        assert!(mesh.said(Severity::Error).is_empty(), "{:#?}", mesh.diagnostics);
        // The rule of the root namespace is the pod's too, who has no such Secret: to be known, and no mistake.
        assert!(mesh.said(Severity::Warning).is_empty(), "{:#?}", mesh.diagnostics);
        assert_eq!(mesh.said(Severity::Info).len(), usize::from(identity.is_some()), "{:#?}", mesh.diagnostics);
        // The pod: to the gateway, with mesh mTLS by the rule's server name, and its identity known.
        let outbound = mesh.of("default", "curl");
        let first = outbound.http(dst("9.9.9.9:80"), "edition.cnn.com");
        assert_eq!(clusters(&first), ["outbound|80|cnn|istio-egressgateway.istio-system.svc.cluster.local"], "{what}");
        let HttpDecision::Host(host) = &first else { panic!() };
        let cluster = host.clusters().next().unwrap();
        let UpstreamTls::Mesh(tls) = &cluster.tls else { panic!("{:?}", cluster.tls) };
        assert!(tls.required && tls.sni == "edition.cnn.com", "{tls:?}");
        let Discovery::Static(list) = &cluster.discovery else { panic!() };
        assert_eq!(list[0].address, EndpointAddress::Ip(dst("10.1.0.9:8080")));
        let peer = list[0].peer.as_ref().unwrap();
        assert_eq!(&*peer.identity, "spiffe://cluster.local/ns/istio-system/sa/istio-egressgateway-service-account");
        assert!(peer.captured.is_none());
        // The gateway: mesh mTLS on the Service's target port, then out with TLS.
        let table = gateway_of(&mesh, "istio-system", "istio-egressgateway");
        assert_eq!(table.listeners.len(), 1);
        let server = behind(table, 8080, "edition.cnn.com");
        assert_eq!(server, "https.80.https-port-for-tls-origination.istio-egressgateway.default");
        let second = table.http(ListenerId { bind: None, port: 8080 }, Some(&server), "edition.cnn.com");
        assert_eq!(clusters(&second), ["outbound|443||edition.cnn.com"], "{what}");
        let HttpDecision::Host(host) = &second else { panic!() };
        let UpstreamTls::Originate(tls) = &host.clusters().next().unwrap().tls else { panic!() };
        let wanted =
            identity.map(|name| IdentitySource::Secret { namespace: "istio-system".to_owned(), name: name.to_owned() });
        assert_eq!(tls.identity, wanted, "{what}");
        // Plain calls past the gateway are what they were: 443 is the application's own TLS.
        assert!(
            outbound
                .tls(dst("9.9.9.9:443"), Some("edition.cnn.com"))
                .short()
                .starts_with("outbound|443||edition.cnn.com")
        );
    }
}

/// One of two gateways with a certificate of its own behind the same paths.
fn edge(version: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: egress-{version}, namespace: istio-system, labels: {{istio: egressgateway, version: {version}}}, annotations: {{egret.dev/netns: egress-{version}}}}}
spec:
  containers: [{{name: c, volumeMounts: [{{name: certs, mountPath: /etc/istio/egressgateway-certs}}, {{name: ca, mountPath: /etc/istio/egressgateway-ca-certs}}]}}]
  volumes: [{{name: certs, secret: {{secretName: certs-{version}}}}}, {{name: ca, secret: {{secretName: ca}}}}]
status: {{podIP: 10.1.0.{}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: sleep-{version}, labels: {{app: sleep, version: {version}}}, annotations: {{egret.dev/netns: sleep-{version}}}}}
",
        &version[1..]
    ) + &secret("istio-system", &format!("certs-{version}"), &["tls.crt", "tls.key"])
}

const TWO: &str = r#"
---
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
spec:
  selector: {istio: egressgateway}
  ports: [{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: nginx}
spec:
  hosts: [nginx.external.svc.cluster.local]
  ports: [{number: 443, name: https, protocol: HTTPS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress}
spec:
  selector: {istio: egressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [nginx.external.svc.cluster.local], tls: {mode: ISTIO_MUTUAL}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egress}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: ISTIO_MUTUAL, sni: nginx.external.svc.cluster.local}}]}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: nginx}
spec:
  hosts: [nginx.external.svc.cluster.local]
  gateways: [egress, mesh]
  http:
  - match: [{gateways: [egress], port: 443}]
    route: [{destination: {host: nginx.external.svc.cluster.local, port: {number: 443}}}]
  - match: [{sourceLabels: {version: v1}, port: 80}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: v1, port: {number: 443}}}]
  - match: [{sourceLabels: {version: v2}, port: 80}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: v2, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: originate, namespace: istio-system}
spec:
  host: nginx.external.svc.cluster.local
  trafficPolicy:
    portLevelSettings:
    - port: {number: 443}
      tls:
        mode: MUTUAL
        clientCertificate: /etc/istio/egressgateway-certs/tls.crt
        privateKey: /etc/istio/egressgateway-certs/tls.key
        caCertificates: /etc/istio/egressgateway-ca-certs/ca.crt
"#;

#[test]
fn two_egress_gateways_each_with_its_own_certificate() {
    let mesh = mesh(&(TWO.to_owned() + &edge("v1") + &edge("v2") + &secret("istio-system", "ca", &["ca.crt"]))).quiet();
    let host = "nginx.external.svc.cluster.local";
    for (version, address) in [("v1", "10.1.0.1:8443"), ("v2", "10.1.0.2:8443")] {
        // Port 80 is no port of the service: the VirtualService alone serves it there.
        let first = mesh.of("default", &format!("sleep-{version}")).http(dst("1.1.1.1:80"), host);
        assert_eq!(
            clusters(&first),
            [format!("outbound|443|{version}|istio-egressgateway.istio-system.svc.cluster.local")]
        );
        let HttpDecision::Host(found) = &first else { panic!() };
        let cluster = found.clusters().next().unwrap();
        let Discovery::Static(list) = &cluster.discovery else { panic!() };
        assert_eq!(list.iter().map(|to| to.address.clone()).collect::<Vec<_>>(), [EndpointAddress::Ip(dst(address))]);
        assert!(matches!(&cluster.tls, UpstreamTls::Mesh(tls) if tls.required));

        let table = gateway_of(&mesh, "istio-system", &format!("egress-{version}"));
        let server = behind(table, 8443, host);
        let second = table.http(ListenerId { bind: None, port: 8443 }, Some(&server), host);
        assert_eq!(clusters(&second), [format!("outbound|443||{host}")]);
        let HttpDecision::Host(found) = &second else { panic!() };
        let UpstreamTls::Originate(tls) = &found.clusters().next().unwrap().tls else { panic!() };
        let Some(IdentitySource::Files { certificate, .. }) = &tls.identity else { panic!() };
        let place = Place::Secret {
            namespace: "istio-system".to_owned(),
            name: format!("certs-{version}"),
            key: "tls.crt".to_owned(),
        };
        assert_eq!(certificate.place, place);
    }
}
