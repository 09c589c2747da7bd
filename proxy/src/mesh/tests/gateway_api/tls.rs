//! Listeners that terminate TLS: certificates, and what clients must show.

use super::*;
use crate::api::gateway::{ServerTls, ServerTlsMode};

/// Secret `web` with a certificate, and CAs in a ConfigMap and a Secret, here and in `other`.
fn credentials() -> String {
    let (secret, config_map) = (super::super::secret, super::super::config_map);
    secret("default", "web", &["tls.crt", "tls.key"])
        + &secret("default", "ca", &["ca.crt"])
        + &secret("other", "ca", &["ca.crt"])
        + &config_map("default", "ca", "ca.crt")
        + &config_map("default", "others", "root.pem")
        + &config_map("other", "ca", "ca.crt")
}

/// A Gateway with one HTTPS listener on port 443, with more in its `tls` and in the Gateway's spec.
fn https(tls: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw}}\nspec: {{gatewayClassName: istio, {spec}\n  listeners: [{{name: e, port: 443, protocol: HTTPS, hostname: a.com, tls: {{certificateRefs: [{{name: web}}]{tls}}}}}]}}\n"
    )
}

fn server_tls(made: &Converted) -> ServerTls {
    let gateway = made.objects.gateways.values().next().expect("a Gateway");
    gateway.spec.servers[0].tls.clone().expect("tls")
}

#[test]
fn clients_must_show_a_certificate_of_a_ca() {
    let config_map = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";
    let secret = "caCertificateRefs: [{group: '', kind: Secret, name: ca}]";
    let listener = |validation: &str| https(&format!(", frontendValidation: {{{validation}}}"), "");
    let whole = |frontend: &str| https("", &format!("tls: {{frontend: {{{frontend}}}}},"));
    let of = |validation: &str| format!("{{validation: {{{validation}}}}}");
    let (mutual, ca) = (Some(ServerTlsMode::Mutual), "configmap://default/ca");
    for (yaml, mode, want) in [
        (listener(config_map), mutual, Some(ca)),
        (listener(secret), mutual, Some("kubernetes-gateway://default/ca")),
        (whole(&format!("default: {}", of(config_map))), mutual, Some(ca)),
        (
            whole(&format!("default: {}, perPort: [{{port: 443, tls: {}}}]", of(secret), of(config_map))),
            mutual,
            Some(ca),
        ),
        // A port that asks for nothing, whatever the others do.
        (
            whole(&format!("default: {}, perPort: [{{port: 443, tls: {{}}}}]", of(config_map))),
            Some(ServerTlsMode::Simple),
            None,
        ),
        (
            whole(&format!("default: {{}}, perPort: [{{port: 8443, tls: {}}}]", of(config_map))),
            Some(ServerTlsMode::Simple),
            None,
        ),
        (listener(&format!("{config_map}, mode: AllowValidOnly")), mutual, Some(ca)),
        (
            listener(&format!("{config_map}, mode: AllowInsecureFallback")),
            Some(ServerTlsMode::OptionalMutual),
            Some(ca),
        ),
    ] {
        let made = converted(&(yaml.clone() + &credentials())).quiet();
        let tls = server_tls(&made);
        assert_eq!((tls.mode, tls.ca_credential.as_deref(), tls.refused), (mode, want, None), "{yaml}");
        assert_eq!(tls.credential_names, ["web"]);
    }
    // Another namespace's, where it says so.
    let far = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca, namespace: other}]";
    let granted = grant(
        "other",
        "{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}",
        "{group: '', kind: ConfigMap}",
    );
    let made = converted(&(listener(far) + &credentials() + &granted)).quiet();
    assert_eq!(server_tls(&made).ca_credential.as_deref(), Some("configmap://other/ca"));
}

#[test]
fn without_its_ca_a_listener_takes_nobody() {
    for (reference, reason, why) in [
        ("{group: '', kind: ConfigMap, name: none}", "InvalidCACertificateRef", "there is no ConfigMap default/none"),
        (
            "{group: '', kind: ConfigMap, name: others}",
            "InvalidCACertificateRef",
            "has no CA certificate (PEM) in key ca.crt",
        ),
        ("{group: '', kind: Secret, name: web}", "InvalidCACertificateRef", "has no CA in key ca.crt"),
        ("{group: '', kind: Service, name: ca}", "InvalidCACertificateKind", "Service ca holds no CA"),
        ("{group: '', kind: ConfigMap, name: ca, namespace: other}", "RefNotPermitted", "no ReferenceGrant"),
    ] {
        let tls = format!(", frontendValidation: {{caCertificateRefs: [{reference}]}}");
        let made = converted(&(https(&tls, "") + &credentials()));
        let field = "spec.listeners[0].tls.frontendValidation.caCertificateRefs[0]";
        assert!(made.said[0].contains(field) && made.said[0].contains(why), "{reference}: {:?}", made.said);
        let tls = server_tls(&made);
        assert_eq!(tls.mode, Some(ServerTlsMode::Mutual), "never less: {reference}");
        assert!(tls.refused.is_some_and(|said| said.contains(why)), "{reference}");
        let conditions = &made.conditions()["gw listener e"];
        assert_eq!(conditions[0], "!Accepted=NoValidCACertificate");
        assert_eq!(conditions[2], format!("!ResolvedRefs={reason}"));
    }
    // At the Gateway it is said at the Gateway.
    let spec =
        "tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: none}]}}}},";
    let made = converted(&(https("", spec) + &credentials()));
    assert!(made.said[0].contains("spec.tls.frontend.default.validation.caCertificateRefs[0]"), "{:?}", made.said);
    assert!(server_tls(&made).refused.is_some());
}

#[test]
fn of_certificates_those_that_there_are_serve() {
    let listeners = |references: &str| {
        gateway("gw", &format!("[{{name: e, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{references}]}}}}]"))
    };
    let made = converted(&(listeners("{name: web}, {name: none}") + &credentials()));
    let tls = server_tls(&made);
    assert_eq!((tls.credential_names, tls.refused), (vec!["web".to_owned()], None));
    assert_eq!(made.conditions()["gw listener e"][2], "!ResolvedRefs=InvalidCertificateRef");
    for (references, why) in [
        ("{name: none}", "there is no Secret default/none"),
        ("{name: ca}", "Secret default/ca lacks tls.crt and tls.key (or cert and key)"),
        ("{name: ca, kind: ConfigMap}", "ConfigMap ca is no Secret"),
    ] {
        let made = converted(&(listeners(references) + &credentials()));
        assert_eq!(server_tls(&made).refused.as_deref(), Some(why));
        assert!(made.said[0].contains("spec.listeners[0].tls.certificateRefs[0]"), "{:?}", made.said);
    }
}

#[test]
fn options_of_istio_count() {
    let options = "options: {gateway.istio.io/tls-terminate-mode: OPTIONAL_MUTUAL, gateway.istio.io/tls-cipher-suites: 'ECDHE-RSA-AES128-GCM-SHA256, ECDHE-ECDSA-AES128-GCM-SHA256'}";
    let made = converted(&(https(&format!(", {options}"), "") + &credentials())).quiet();
    let tls = server_tls(&made);
    assert_eq!(tls.mode, Some(ServerTlsMode::OptionalMutual));
    assert_eq!(tls.cipher_suites, ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"]);
    let labelled = "metadata: {name: gw, labels: {topology.istio.io/network: n}}";
    let listeners = "[{name: x, port: 15443, protocol: TLS, tls: {mode: Passthrough}}]";
    let made = converted(&gateway("gw", listeners).replace("metadata: {name: gw}", labelled)).quiet();
    assert_eq!(server_tls(&made).mode, Some(ServerTlsMode::AutoPassthrough));
}

/// The whole way: a pod that serves such a listener has settings with that CA, or refuses.
#[test]
fn a_pod_serves_the_listener_with_the_ca() {
    use crate::mesh::{ClientCertificates, DownstreamTls, Servers, TrustSource};
    let pod = super::super::pod("default", "gw", "{gateway.networking.k8s.io/gateway-name: gw}");
    let downstream = |ca: &str| {
        let tls = format!(", frontendValidation: {{caCertificateRefs: [{{group: '', kind: ConfigMap, name: {ca}}}]}}");
        let mesh = super::super::mesh(&(https(&tls, "") + &credentials() + &pod));
        let table = mesh.workloads.values().next().and_then(|pod| pod.gateway.clone()).expect("a gateway");
        let listener = table.listeners.values().next().expect("a listener");
        let Servers::Tls(servers) = &listener.serves else { panic!("{listener:?}") };
        servers.get("a.com").expect("a server").tls.clone()
    };
    let DownstreamTls::Terminate(settings) = downstream("ca") else { panic!() };
    let ClientCertificates::Required(trust) = &settings.clients else { panic!("{settings:?}") };
    assert_eq!(trust.ca, TrustSource::ConfigMap { namespace: "default".into(), name: "ca".into() });
    let DownstreamTls::Refuse(reason) = downstream("none") else { panic!() };
    assert!(reason.contains("there is no ConfigMap default/none"), "{reason}");
}
