//! Ports that a Sidecar declares, and TLS that ends there.

use super::*;

/// A pod with certificates on a volume of its sidecar, a service that leads to it, and how its ports take mesh mTLS.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations:
    egret.dev/netns: web
    sidecar.istio.io/userVolume: '{"tls": {"secret": {"secretName": "certs", "optional": true}}}'
    sidecar.istio.io/userVolumeMount: '{"tls": {"mountPath": "/etc/certs", "readOnly": true}}'
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 9080, name: http}, {port: 81, targetPort: 9999, name: http-other}]}
---
apiVersion: v1
kind: Secret
metadata: {name: certs, namespace: shop}
stringData: {tls.crt: x, tls.key: x, ca.crt: x}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {"9080": {mode: DISABLE}}}
"#;

fn world(spec: &str) -> Mesh {
    mesh(&format!(
        "{POD}---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
    ))
}

fn table(mesh: &Mesh) -> &Arc<InboundTable> {
    mesh.workloads[&WorkloadId { namespace: "shop".into(), name: "web".into() }].inbound.as_ref().unwrap()
}

fn application(port: &InboundPort) -> Application {
    match &port.cluster.discovery {
        Discovery::Application(application) => application.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sidecar_says_which_ports_there_are_and_where_they_lead() {
    let mesh = world(
        "{ingress: [{port: {number: 9080, protocol: HTTP}, defaultEndpoint: '127.0.0.1:80'}, {port: {number: 9081, protocol: TCP}, defaultEndpoint: '0.0.0.0:81', connectionPool: {tcp: {maxConnections: 2}}}, {port: {number: 9082}, defaultEndpoint: 'unix:///run/app.sock', bind: 10.1.0.1}, {port: {number: 9083, protocol: GRPC}}], inboundConnectionPool: {tcp: {maxConnections: 5}, http: {http2MaxRequests: 3}}}",
    )
    .quiet();
    let table = table(&mesh);
    let shown: Vec<_> = table
        .ports
        .iter()
        .map(|(port, to)| {
            assert_eq!(to.cluster.name, format!("inbound|{port}||"));
            assert_eq!(to.ingress.as_ref().unwrap().to_string(), "Sidecar shop/web");
            (*port, to.protocol, application(to), to.cluster.pool.max_connections, to.cluster.pool.max_requests)
        })
        .collect();
    assert_eq!(
        shown,
        [
            (9080, Protocol::Http, Application::Loopback(dst("127.0.0.1:80")), Some(5), Some(3)),
            (9081, Protocol::Tcp, Application::Own(81), Some(2), None),
            (9082, Protocol::Auto, Application::Unix("/run/app.sock".into()), Some(5), Some(3)),
            (9083, Protocol::Grpc, Application::Dialled, Some(5), Some(3)),
        ],
        "and none that only a Service leads to"
    );
    assert!(table.fail_closed(), "9080 would lead elsewhere without an agent");
}

/// A port of the Sidecar with this `tls`.
fn terminated(port: u16, protocol: &str, tls: &str) -> Mesh {
    world(&format!(
        "{{ingress: [{{port: {{number: {port}, protocol: {protocol}}}, defaultEndpoint: '0.0.0.0:80', tls: {tls}}}]}}"
    ))
}

const FILES: &str = "serverCertificate: /etc/certs/tls.crt, privateKey: /etc/certs/tls.key";

#[test]
fn tls_ends_where_mesh_mtls_is_not_spoken() {
    let mutual = format!("{{mode: MUTUAL, {FILES}, caCertificates: /etc/certs/ca.crt}}");
    let mesh = terminated(9080, "HTTPS", &mutual).quiet();
    let port = table(&mesh).port(9080);
    assert_eq!(port.protocol, Protocol::Http, "what is inside");
    let settings = port.tls.as_ref().and_then(DownstreamTls::settings).expect("terminated");
    assert_eq!(settings.alpn, ["h2", "http/1.1"]);
    let key = |key: &str| Place::Secret { namespace: "shop".to_owned(), name: "certs".to_owned(), key: key.to_owned() };
    let file = |name: &str| Material { path: format!("/etc/certs/{name}"), place: key(name) };
    assert_eq!(settings.identities, [IdentitySource::Files { certificate: file("tls.crt"), key: file("tls.key") }]);
    let ClientCertificates::Required(trust) = &settings.clients else { panic!("{:?}", settings.clients) };
    assert_eq!(trust.ca, TrustSource::File(file("ca.crt")));
    assert_eq!(mesh.server_tls_settings().len(), 1);

    let mesh = terminated(9080, "TLS", "{mode: SIMPLE, credentialName: certs}").quiet();
    let port = table(&mesh).port(9080);
    assert_eq!(port.protocol, Protocol::Tcp);
    let settings = port.tls.as_ref().and_then(DownstreamTls::settings).expect("terminated");
    assert!(settings.alpn.is_empty() && settings.clients == ClientCertificates::None);
    let secret = IdentitySource::Secret { namespace: "shop".to_owned(), name: "certs".to_owned() };
    assert_eq!(settings.identities, [secret]);

    // Without `tls` the application ends it.
    let mesh = world("{ingress: [{port: {number: 9080, protocol: HTTPS}}]}").quiet();
    assert_eq!((table(&mesh).port(9080).protocol, &table(&mesh).port(9080).tls), (Protocol::Https, &None));
}

#[test]
fn tls_does_nothing_under_mesh_mtls_and_that_is_said() {
    let mesh = terminated(9081, "HTTPS", &format!("{{mode: SIMPLE, {FILES}}}"));
    assert_eq!(table(&mesh).port(9081).tls, None);
    assert_eq!(table(&mesh).port(9081).protocol, Protocol::Http, "inside mesh mTLS");
    assert_eq!(
        mesh.said(Severity::Warning),
        [
            "spec.ingress[0].tls: does nothing: mesh mTLS is STRICT on port 9081 of Pod shop/web, and counts. A PeerAuthentication with `portLevelMtls` 9081: DISABLE lets this one count"
        ]
    );
}

#[test]
fn what_cannot_be_honoured_refuses_connections() {
    for (tls, want) in [
        ("{mode: SIMPLE}", "serverCertificate: the server's certificate is missing, and so is credentialName"),
        (&*format!("{{mode: MUTUAL, {FILES}}}"), "caCertificates: there is no CA to check clients with"),
        ("{mode: SIMPLE, credentialName: nope}", "credentialName: Secret shop/nope does not exist"),
        (
            "{mode: SIMPLE, serverCertificate: /etc/certs/other.crt, privateKey: /etc/certs/tls.key}",
            "serverCertificate: /etc/certs/other.crt: Secret shop/certs has no key other.crt",
        ),
    ] {
        let mesh = terminated(9080, "HTTPS", tls);
        let Some(DownstreamTls::Refuse(reason)) = &table(&mesh).port(9080).tls else { panic!("{tls}") };
        assert_eq!(**reason, *format!("Sidecar shop/web: spec.ingress[0].tls.{want}"));
        let said = mesh.said(Severity::Error);
        assert_eq!(said, [format!("spec.ingress[0].tls.{want}: connections to port 9080 of pods in shop are refused")]);
    }
}

#[test]
fn what_a_sidecar_says_in_vain() {
    let mesh = world(
        "{ingress: [{port: {number: 9080, protocol: HTTP}, bind: 10.9.9.9}, {port: {number: 9081, protocol: UDP}}]}",
    );
    assert_eq!(
        mesh.said(Severity::Warning),
        [
            "spec.ingress[0].bind: 10.9.9.9 is no address of Pod shop/web: the port is served on all that it has",
            "spec.ingress[1].port.protocol: UDP is not captured: this port is left alone",
        ]
    );
    assert_eq!(table(&mesh).ports.keys().copied().collect::<Vec<_>>(), [9080]);
}

/// Istio's task "Ingress Sidecar TLS Termination", but for its deployments.
const SEED: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: test, labels: {istio-injection: enabled}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: test
spec:
  mtls:
    mode: STRICT
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: disable-peer-auth-for-external-mtls-port
  namespace: test
spec:
  selector:
    matchLabels:
      app: httpbin
  mtls:
    mode: STRICT
  portLevelMtls:
    9080:
      mode: DISABLE
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: httpbin
  namespace: test
---
apiVersion: v1
kind: Service
metadata:
  name: httpbin
  namespace: test
  labels:
    app: httpbin
    service: httpbin
spec:
  ports:
  - port: 8443
    name: https
    targetPort: 9080
  - port: 8080
    name: http
    targetPort: 9081
  selector:
    app: httpbin
---
apiVersion: v1
kind: Pod
metadata:
  name: httpbin
  namespace: test
  labels:
    app: httpbin
    version: v1
  annotations:
    egret.dev/netns: httpbin
    sidecar.istio.io/userVolume: '{"tls-secret":{"secret":{"secretName":"httpbin-mtls-termination-cacert","optional":true}},"tls-ca-certs":{"secret":{"secretName":"httpbin-mtls-termination","optional":true}}}'
    sidecar.istio.io/userVolumeMount: '{"tls-secret":{"mountPath":"/etc/istio/tls-certs/","readOnly":true},"tls-ca-certs":{"mountPath":"/etc/istio/tls-ca-certs/","readOnly":true}}'
spec:
  serviceAccountName: httpbin
  containers:
  - image: docker.io/kong/httpbin
    imagePullPolicy: IfNotPresent
    name: httpbin
    ports:
    - containerPort: 80
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: ingress-sidecar
  namespace: test
spec:
  workloadSelector:
    labels:
      app: httpbin
      version: v1
  ingress:
  - port:
      number: 9080
      protocol: HTTPS
      name: external
    defaultEndpoint: 0.0.0.0:80
    tls:
      mode: MUTUAL
      privateKey: "/etc/istio/tls-certs/tls.key"
      serverCertificate: "/etc/istio/tls-certs/tls.crt"
      caCertificates: "/etc/istio/tls-ca-certs/ca.crt"
  - port:
      number: 9081
      protocol: HTTP
      name: internal
    defaultEndpoint: 0.0.0.0:80
---
apiVersion: v1
kind: Secret
metadata: {name: httpbin-mtls-termination-cacert, namespace: test}
stringData: {tls.key: x, tls.crt: x}
---
apiVersion: v1
kind: Secret
metadata: {name: httpbin-mtls-termination, namespace: test}
stringData: {ca.crt: x}
---
apiVersion: v1
kind: Pod
metadata: {name: internal-client, namespace: test, annotations: {egret.dev/netns: internal}}
"#;

#[test]
fn istios_ingress_sidecar_task() {
    let objects = {
        let parsed = parse_file(Arc::from(Path::new("test.yaml")), SEED);
        let said: Vec<_> = parsed.diagnostics.iter().filter(|d| d.severity != Severity::Info).collect();
        assert!(parsed.refused.is_empty() && said.is_empty(), "{said:?} {:?}", parsed.refused);
        let mut objects = Objects::default();
        parsed.objects.into_iter().for_each(|object| objects.insert(object));
        objects
    };
    let id = |name: &str| WorkloadId { namespace: "test".into(), name: name.into() };
    let addresses =
        PodAddresses::from([(id("httpbin"), vec![ip("10.1.0.1")]), (id("internal-client"), vec![ip("10.1.0.2")])]);
    let mesh = compile(&objects, &addresses).quiet();
    let table = mesh.workloads[&id("httpbin")].inbound.as_ref().unwrap();
    let (external, internal) = (table.port(9080), table.port(9081));
    assert_eq!(
        (table.modes.of(9080), table.modes.of(9081), table.modes.of(80)),
        (MtlsMode::Disable, MtlsMode::Strict, MtlsMode::Strict)
    );
    assert_eq!((external.protocol, internal.protocol), (Protocol::Http, Protocol::Http));
    assert_eq!((application(external), application(internal)), (Application::Own(80), Application::Own(80)));
    assert!(external.tls.as_ref().and_then(DownstreamTls::settings).is_some() && internal.tls.is_none());
    // From inside: mesh mTLS to 8080, and the application's own TLS to 8443 as it is.
    let outbound = mesh.of("test", "internal-client");
    let cluster = |port: u16| outbound.cluster(&format!("outbound|{port}||httpbin.test.svc.cluster.local")).unwrap();
    assert!(matches!(&cluster(8080).tls, UpstreamTls::Mesh(mesh) if !mesh.required));
    assert_eq!(cluster(8443).tls, UpstreamTls::Plain);
}
