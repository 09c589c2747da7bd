//! TLS servers of Gateways: settings out of every mode, and what is passed on untouched.

use super::*;
use crate::mesh::{ClientCertificates, ServerTlsSettings, TrustSource};

/// What the pod of [`EDGE`] holds: two certificates, one of them with a CA beside it, one with it inside, and files of another.
fn secrets() -> String {
    secret("edge", "web", &["tls.crt", "tls.key"])
        + &secret("edge", "web-cacert", &["ca.crt"])
        + &secret("edge", "ecdsa", &["cert", "key", "cacert"])
        + &secret("edge", "bare", &["tls.crt", "tls.key"])
        + &secret("edge", "half", &["tls.crt"])
        + &secret("other", "far", &["tls.crt", "tls.key"])
}

/// One server for edition.cnn.com on port 443 with this `tls`.
fn served(protocol: &str, tls: &str) -> Mesh {
    world(&server(443, protocol, &format!(", tls: {tls}")), &(forward() + &originates() + &secrets()))
}

fn downstream(mesh: &Mesh) -> &DownstreamTls {
    let Servers::Tls(servers) = &table(mesh).listeners[&at(8443)].serves else { panic!() };
    &servers.get("edition.cnn.com").unwrap().tls
}

fn settings(mesh: &Mesh) -> &Arc<ServerTlsSettings> {
    downstream(mesh).settings().unwrap_or_else(|| panic!("{:?}", downstream(mesh)))
}

fn in_secret(name: &str) -> IdentitySource {
    IdentitySource::Secret { namespace: "edge".to_owned(), name: name.to_owned() }
}

#[test]
fn certificates_come_from_secrets_of_the_gateway_pod() {
    let simple = served("HTTPS", "{mode: SIMPLE, credentialName: web}").quiet();
    let made = settings(&simple);
    assert_eq!((made.identities.as_slice(), &made.clients), ([in_secret("web")].as_slice(), &ClientCertificates::None));
    assert_eq!(made.alpn, ["h2", "http/1.1"]);
    assert_eq!(shown(&simple), ["8443 edition.cnn.com terminate https.443.p443.gw.edge"]);
    let both = served("HTTPS", "{mode: SIMPLE, credentialNames: ['kubernetes://web', ecdsa]}").quiet();
    assert_eq!(settings(&both).identities, [in_secret("web"), in_secret("ecdsa")]);
    // Of what is inside TLS nothing is known.
    let raw = served("TLS", "{mode: SIMPLE, credentialName: web}");
    assert!(settings(&raw).alpn.is_empty());
    assert_eq!(shown(&raw), ["8443 edition.cnn.com terminate -"]);
}

#[test]
fn clients_are_checked_with_the_ca_of_the_secret() {
    for (tls, ca) in [
        ("{mode: MUTUAL, credentialName: web}", "web"),
        ("{mode: OPTIONAL_MUTUAL, credentialName: ecdsa}", "ecdsa"),
        ("{mode: MUTUAL, credentialNames: [bare, web]}", "web"),
    ] {
        let mesh = served("HTTPS", tls).quiet();
        let trust = match (&settings(&mesh).clients, tls.contains("OPTIONAL")) {
            (ClientCertificates::Required(trust), false) | (ClientCertificates::Optional(trust), true) => trust,
            other => panic!("{tls}: {other:?}"),
        };
        assert_eq!(trust.ca, TrustSource::Secret { namespace: "edge".to_owned(), name: ca.to_owned() });
    }
    let digest = "AA:".repeat(31) + "bB";
    let tls = format!(
        "{{mode: MUTUAL, credentialName: web, subjectAltNames: [a.example], verifyCertificateSpki: ['{}'], verifyCertificateHash: ['{digest}'], minProtocolVersion: TLSV1_2, maxProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]}}",
        "A".repeat(43) + "="
    );
    let mesh = served("HTTPS", &tls).quiet();
    let made = settings(&mesh);
    let ClientCertificates::Required(trust) = &made.clients else { panic!() };
    assert_eq!(trust.subject_alt_names, ["a.example"]);
    assert_eq!((trust.spki.len(), trust.hashes.as_slice()), (1, ["aa".repeat(31) + "bb"].as_slice()));
    assert_eq!((made.min_version.as_deref(), made.max_version.as_deref()), (Some("TLSV1_2"), Some("TLSV1_3")));
    assert_eq!(made.cipher_suites, ["ECDHE-RSA-AES128-GCM-SHA256"]);
}

#[test]
fn files_are_those_of_the_gateway_pod() {
    let tls = "{mode: MUTUAL, serverCertificate: /etc/certs/tls.crt, privateKey: /etc/certs/tls.key, caCertificates: /etc/host/ca.pem, caCrl: /etc/host/crl.pem}";
    let text = text(&server(443, "HTTPS", &format!(", tls: {tls}")), &(forward() + &originates() + &secrets())).replace(
        "spec: {containers: [{name: c, ",
        "spec: {volumes: [{name: v, secret: {secretName: web}}], containers: [{name: c, volumeMounts: [{name: v, mountPath: /etc/certs}], ",
    );
    let mesh = mesh(&text).quiet();
    let made = settings(&mesh);
    let [IdentitySource::Files { certificate, key }] = made.identities.as_slice() else { panic!("{made:?}") };
    let inside = |name: &str| super::super::super::table::Place::Secret {
        namespace: "edge".to_owned(),
        name: "web".to_owned(),
        key: name.to_owned(),
    };
    assert_eq!((&certificate.place, &key.place), (&inside("tls.crt"), &inside("tls.key")));
    let ClientCertificates::Required(trust) = &made.clients else { panic!() };
    assert!(matches!(&trust.ca, TrustSource::File(material) if material.path == "/etc/host/ca.pem"));
    assert_eq!(trust.crl.as_ref().unwrap().path, "/etc/host/crl.pem");
}

#[test]
fn pods_share_settings() {
    let again = EDGE.split("---\n").nth(1).unwrap().replace("edge-1", "edge-2");
    let servers = server(443, "HTTPS", ", tls: {mode: SIMPLE, credentialName: web}");
    let mesh = world(&servers, &(secrets() + "---\n" + &again));
    let found: Vec<_> = mesh
        .workloads
        .values()
        .filter_map(|pod| pod.gateway.as_ref()?.tls_servers().next().map(|(_, settings)| settings.clone()))
        .collect();
    assert_eq!(found.len(), 2);
    assert!(Arc::ptr_eq(&found[0], &found[1]));
    assert_eq!(mesh.server_tls_settings().len(), 1);
}

#[test]
fn what_cannot_be_honoured_is_refused_and_said() {
    for (tls, field, part) in [
        ("{mode: SIMPLE}", "serverCertificate", "credentialName"),
        ("{mode: SIMPLE, serverCertificate: /a}", "privateKey", "missing"),
        ("{mode: SIMPLE, credentialName: none}", "credentialName", "Secret edge/none does not exist"),
        ("{mode: SIMPLE, credentialNames: [web, none]}", "credentialNames", "Secret edge/none does not exist"),
        ("{mode: SIMPLE, credentialName: half}", "credentialName", "lacks tls.crt and tls.key"),
        ("{mode: SIMPLE, credentialName: other/far}", "credentialName", "own namespace"),
        ("{mode: SIMPLE, credentialName: 'kubernetes-gateway://other/far'}", "credentialName", "Gateway API"),
        ("{mode: SIMPLE, credentialName: 'builtin://'}", "credentialName", "not honoured"),
        ("{mode: MUTUAL, credentialName: none}", "credentialName", "Secret edge/none does not exist"),
        ("{mode: MUTUAL, credentialName: bare}", "credentialName", "bare-cacert"),
        ("{mode: MUTUAL, serverCertificate: /a, privateKey: /b}", "caCertificates", "no CA"),
        ("{mode: MUTUAL, serverCertificate: /a, privateKey: /b, caCertificates: system}", "caCertificates", "no CA"),
        ("{mode: SIMPLE, credentialName: web, serverCertificate: /a, privateKey: /b}", "serverCertificate", "exclude"),
        ("{mode: MUTUAL, credentialName: web, caCrl: /c}", "caCrl", "ca.crl"),
        ("{mode: SIMPLE, serverCertificate: /a, privateKey: /b, caCrl: /c}", "caCrl", "MUTUAL"),
        ("{mode: SIMPLE, credentialName: web, maxProtocolVersion: TLSV1_1}", "maxProtocolVersion", "too old"),
        (
            "{mode: SIMPLE, credentialName: web, minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2}",
            "minProtocolVersion",
            "above",
        ),
        ("{mode: SIMPLE, credentialName: web, cipherSuites: [AES128-SHA]}", "cipherSuites", "ECDHE-RSA-AES256-GCM"),
        ("{mode: MUTUAL, credentialName: web, verifyCertificateSpki: [x]}", "verifyCertificateSpki", "base64"),
        ("{mode: MUTUAL, credentialName: web, verifyCertificateHash: [abc]}", "verifyCertificateHash", "hex"),
        ("{mode: ISTIO_MUTUAL, subjectAltNames: [x]}", "subjectAltNames", "ISTIO_MUTUAL"),
    ] {
        let mesh = served("HTTPS", tls);
        let DownstreamTls::Refuse(why) = downstream(&mesh) else { panic!("{tls}") };
        assert!(why.starts_with("Gateway edge/gw: ") && why.contains(part), "{tls}: {why}");
        let said = mesh.said(Severity::Error);
        let at = format!("spec.servers[0].tls.{field}: ");
        assert!(said.len() == 1 && said[0].starts_with(&at) && said[0].contains(part), "{tls}: {said:?}");
        assert!(mesh.server_tls_settings().is_empty());
    }
}

#[test]
fn fields_without_a_meaning_are_said() {
    for (tls, fields) in [
        (
            "{mode: SIMPLE, credentialName: web, caCertificates: /c, subjectAltNames: [x]}",
            "caCertificates subjectAltNames",
        ),
        ("{mode: MUTUAL, credentialName: web, caCertificates: /c}", "caCertificates"),
        ("{mode: ISTIO_MUTUAL, cipherSuites: [x]}", "cipherSuites"),
        (
            "{mode: PASSTHROUGH, credentialName: web, minProtocolVersion: TLSV1_2}",
            "credentialName minProtocolVersion hosts",
        ),
    ] {
        let mesh = served("HTTPS", tls);
        assert!(mesh.said(Severity::Error).is_empty(), "{tls}: {:?}", mesh.diagnostics);
        let mut said = mesh.said(Severity::Warning);
        said.retain(|line| line.starts_with("spec.servers"));
        let mut wanted: Vec<&str> = fields.split(' ').collect();
        wanted.retain(|field| !said.iter().any(|line| line.contains(&format!("{field}: "))));
        assert!(wanted.is_empty() && said.len() == fields.split(' ').count(), "{tls}: {said:?}");
    }
}

fn tls_route(namespace: &str, hosts: &str, spec: &str) -> String {
    virtual_service(namespace, "v", &format!("{{hosts: [{hosts}], gateways: [edge/gw], tls: [{spec}]}}"))
}

const TO: &str = "route: [{destination: {host: edition.cnn.com, port: {number: 443}}}]";

#[test]
fn what_is_passed_through_goes_by_server_name() {
    let cluster = "outbound|443||edition.cnn.com 1";
    for (hosts, matched, want) in [
        ("edition.cnn.com", "{sniHosts: [edition.cnn.com]}", format!("edition.cnn.com passthrough {cluster}")),
        (
            "edition.cnn.com",
            "{sniHosts: [Edition.CNN.com], port: 443}",
            format!("edition.cnn.com passthrough {cluster}"),
        ),
        ("'*.cnn.com'", "{sniHosts: ['*.cnn.com']}", format!("*.cnn.com passthrough {cluster}")),
        // Of what the route names, the server lets in only what its hosts cover.
        ("a.cnn.com", "{sniHosts: ['*.cnn.com']}", format!("a.cnn.com passthrough {cluster}")),
        ("default/edition.cnn.com", "{sniHosts: [edition.cnn.com]}", format!("edition.cnn.com passthrough {cluster}")),
        ("shop/edition.cnn.com", "{sniHosts: [edition.cnn.com]}", String::new()),
        ("b.com", "{sniHosts: [edition.cnn.com]}", String::new()),
        ("edition.cnn.com", "{sniHosts: [edition.cnn.com], port: 444}", String::new()),
        ("edition.cnn.com", "{sniHosts: [edition.cnn.com], gateways: [edge/else]}", String::new()),
    ] {
        for protocol in ["TLS", "HTTPS"] {
            let servers = format!(
                "{{port: {{number: 443, name: p443, protocol: {protocol}}}, hosts: [{hosts}], tls: {{mode: PASSTHROUGH}}}}"
            );
            let route = tls_route("default", "'*.cnn.com'", &format!("{{match: [{matched}], {TO}}}"));
            let mesh = world(&servers, &route);
            assert_eq!(shown(&mesh), [format!("8443 {want}")], "{hosts} {matched}");
            let said = mesh.said(Severity::Warning);
            let vain = said.iter().any(|line| line.starts_with("spec.servers[0].hosts: no `tls` route"));
            assert_eq!(vain, want.is_empty(), "{hosts} {matched}: {said:?}");
        }
    }
    // As in Istio, only port and Gateway of a match count.
    let more = "{sniHosts: [edition.cnn.com], sourceLabels: {a: b}, destinationSubnets: [10.0.0.0/8]}";
    let servers = server(443, "TLS", ", tls: {mode: PASSTHROUGH}");
    let mesh = world(&servers, &tls_route("default", "edition.cnn.com", &format!("{{match: [{more}], {TO}}}")));
    assert_eq!(shown(&mesh), [format!("8443 edition.cnn.com passthrough {cluster}")]);
    let said = mesh.said(Severity::Warning);
    assert!(said.len() == 2 && said.iter().all(|line| line.contains("does not count at a gateway")), "{said:?}");
}

#[test]
fn a_host_whose_tls_is_taken_off_is_not_passed_on() {
    let pass = "{port: {number: 443, name: pass, protocol: TLS}, hosts: ['*.cnn.com'], tls: {mode: PASSTHROUGH}}";
    let end = server(443, "HTTPS", ", tls: {mode: SIMPLE, credentialName: web}");
    let route = tls_route(
        "default",
        "'*.cnn.com'",
        &format!("{{match: [{{sniHosts: [edition.cnn.com, '*.cnn.com']}}], {TO}}}"),
    );
    let cluster = "outbound|443||edition.cnn.com 1";
    let want = format!("8443 *.cnn.com passthrough {cluster}, edition.cnn.com terminate https.443.p443.gw.edge");
    for servers in [format!("{pass}, {end}"), format!("{end}, {pass}")] {
        assert_eq!(shown(&world(&servers, &(route.clone() + &secrets()))), [want.as_str()], "{servers}");
    }
}

#[test]
fn services_are_passed_on_by_the_names_of_mesh_mtls() {
    let web = r#"
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.96.0.9, ports: [{port: 80, name: http, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, version: v1}, annotations: {egret.dev/netns: web}}
status: {podIP: 10.1.0.1}
"#
    .to_owned()
        + &rule(
            "shop",
            "web",
            "{host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}, subsets: [{name: v1, labels: {version: v1}}]}",
        );
    let auto = |hosts: &str| {
        format!(
            "{{port: {{number: 443, name: tls, protocol: TLS}}, hosts: [{hosts}], tls: {{mode: AUTO_PASSTHROUGH}}}}"
        )
    };
    let host = "web.shop.svc.cluster.local";
    let mesh = world(&auto("'*.shop.svc.cluster.local'"), &web).quiet();
    let name = |subset: &str| format!("outbound_.80_.{subset}_.{host}");
    let row = |subset: &str| format!("{} passthrough {} 1", name(subset), name(subset));
    assert_eq!(shown(&mesh), [format!("8443 {}, {}", row(""), row("v1"))]);
    let to = table(&mesh).clusters().find(|cluster| cluster.subset == "v1").unwrap();
    // The mTLS inside is between the caller and the service.
    assert_eq!((&to.tls, to.protocol), (&UpstreamTls::Plain, Protocol::Tcp));
    let Discovery::Static(endpoints) = &to.discovery else { panic!("{to:?}") };
    assert_eq!(endpoints[0].address, EndpointAddress::Ip(dst("10.1.0.1:8080")));
    // What lies outside of the mesh speaks no mTLS of ours; other hosts are not let in.
    assert_eq!(shown(&world(&auto("edition.cnn.com, '*.else.svc.cluster.local'"), &web)), ["8443 "]);
}

#[test]
fn a_ca_of_its_own_goes_before_that_of_the_certificate_s_secret() {
    let tls = |ca: &str| format!("{{mode: MUTUAL, credentialName: web, caCertCredentialName: '{ca}'}}");
    let config_map = super::super::config_map;
    let more = secret("edge", "ca", &["ca.crt"])
        + &config_map("edge", "bundle", "ca.crt")
        + &config_map("other", "far", "ca.crt");
    let mesh = |ca: &str| {
        let servers = server(443, "HTTPS", &format!(", tls: {}", tls(ca)));
        world(&servers, &(forward() + &originates() + &secrets() + &more))
    };
    let (namespace, name) = ("edge".to_owned(), "bundle".to_owned());
    let bundle = TrustSource::ConfigMap { namespace: namespace.clone(), name };
    for (ca, want) in [
        ("ca", TrustSource::Secret { namespace, name: "ca".to_owned() }),
        ("bundle", bundle.clone()),
        ("configmap://edge/bundle", bundle),
    ] {
        let mesh = mesh(ca).quiet();
        let ClientCertificates::Required(trust) = &settings(&mesh).clients else { panic!("{ca}") };
        assert_eq!(trust.ca, want, "{ca}");
    }
    for (ca, why) in [
        ("none", "there is no Secret or ConfigMap edge/none with a CA in key ca.crt"),
        ("configmap://edge/ca", "there is no ConfigMap edge/ca with a CA in key ca.crt"),
        ("kubernetes-gateway://edge/bundle", "there is no Secret edge/bundle with a CA in key ca.crt"),
        ("configmap://other/far", "only a Gateway of the Gateway API may use a CA of another namespace"),
    ] {
        let mesh = mesh(ca);
        assert!(matches!(downstream(&mesh), DownstreamTls::Refuse(reason) if reason.contains(why)), "{ca}");
        assert!(mesh.said(Severity::Error)[0].contains("tls.caCertCredentialName"), "{ca}");
    }
}
