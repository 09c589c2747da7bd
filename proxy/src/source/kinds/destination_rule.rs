//! networking.istio.io DestinationRule, checked as Istio's own validation does.

use super::{
    super::{
        decode::{Field, Fields},
        values,
    },
    service_entry::export_to,
    traffic_policy::{connection_pool, load_balancer, outlier_detection},
};
use crate::api::istio::{ClientTls, DestinationRule, Subset, TlsMode, TrafficPolicy};

const POLICY_LATER: &[&str] = &["tunnel", "proxyProtocol", "retryBudget"];
const MODES: &[(&str, TlsMode)] = &[
    ("DISABLE", TlsMode::Disable),
    ("SIMPLE", TlsMode::Simple),
    ("MUTUAL", TlsMode::Mutual),
    ("ISTIO_MUTUAL", TlsMode::IstioMutual),
];

/// Reads a DestinationRule.
pub fn destination_rule(root: &Fields<'_>) -> Option<DestinationRule> {
    let read = &["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"];
    let fields = root.require("spec")?.fields(read, &[], &[])?;
    let host = fields.require("host")?;
    let name = host.string()?;
    if let Err(reason) = values::host_pattern(&name) {
        host.error(format!("\"{name}\" {reason}"));
    }
    let mut subsets: Vec<Subset> = Vec::new();
    for field in fields.items("subsets") {
        let Some(given) = field.fields(&["name", "labels", "trafficPolicy"], &[], &[]) else { continue };
        let Some((at, name)) = given.require("name").and_then(|f| f.string().map(|name| (f, name))) else { continue };
        if !values::dns_label(&name) {
            at.error(format!("\"{name}\" is not a subset name: letters, digits and `-`, 63 at most"));
        }
        if subsets.iter().any(|subset| subset.name == name) {
            at.error(format!("subset \"{name}\" is given twice"));
        }
        let traffic_policy = given.get("trafficPolicy").and_then(|f| traffic_policy(&f));
        subsets.push(Subset { name, labels: given.string_map("labels"), traffic_policy });
    }
    Some(DestinationRule {
        host: name.to_ascii_lowercase().into(),
        traffic_policy: fields.get("trafficPolicy").and_then(|f| traffic_policy(&f)),
        subsets,
        export_to: export_to(&fields),
        workload_selector: fields
            .get("workloadSelector")
            .and_then(|f| Some(f.fields(&["matchLabels"], &[], &[])?.string_map("matchLabels"))),
    })
}

fn traffic_policy(field: &Field<'_>) -> Option<TrafficPolicy> {
    let read = &["loadBalancer", "connectionPool", "outlierDetection", "tls", "portLevelSettings"];
    let fields = field.fields(read, &[], POLICY_LATER)?;
    let mut policy = settings(&fields);
    for field in fields.items("portLevelSettings") {
        let read = &["port", "loadBalancer", "connectionPool", "outlierDetection", "tls"];
        let Some(fields) = field.fields(read, &[], &[]) else { continue };
        let Some(number) = fields.require("port").and_then(|f| f.fields(&["number"], &[], &[])?.require("number"))
        else {
            continue;
        };
        // The settings are read all the same, so that their mistakes are named in the same run.
        let settings = settings(&fields);
        let Some(port) = number.port() else { continue };
        if policy.port_level_settings.iter().any(|(known, _)| *known == port) {
            number.error(format!("port {port} is given twice"));
        }
        policy.port_level_settings.push((port, settings));
    }
    policy.port_level_settings.shrink_to_fit();
    Some(policy)
}

/// The settings that a policy and its port levels have in common.
fn settings(fields: &Fields<'_>) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: fields.get("loadBalancer").and_then(|f| load_balancer(&f)).map(Box::new),
        connection_pool: fields.get("connectionPool").and_then(|f| connection_pool(&f)).map(Box::new),
        outlier_detection: fields.get("outlierDetection").and_then(|f| outlier_detection(&f)).map(Box::new),
        tls: fields.get("tls").and_then(|f| client_tls(&f)).map(Box::new),
        port_level_settings: Vec::new(),
    }
}

fn client_tls(field: &Field<'_>) -> Option<ClientTls> {
    let read = &[
        "mode",
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "caCrl",
        "credentialName",
        "subjectAltNames",
        "sni",
        "insecureSkipVerify",
    ];
    let fields = field.fields(read, &[], &[])?;
    let mode = match fields.get("mode") {
        // An unknown mode must not read as DISABLE: the error refuses the whole object.
        Some(field) => field.choice(MODES)?,
        None => TlsMode::Disable,
    };
    let tls = ClientTls {
        mode,
        client_certificate: fields.string("clientCertificate"),
        private_key: fields.string("privateKey"),
        ca_certificates: fields.string("caCertificates"),
        ca_crl: fields.string("caCrl"),
        credential_name: fields.string("credentialName"),
        subject_alt_names: fields.strings("subjectAltNames"),
        sni: fields.string("sni"),
        insecure_skip_verify: fields.get("insecureSkipVerify").and_then(|f| f.boolean()).unwrap_or_default(),
        ..ClientTls::default()
    };
    check_tls(&tls, &fields);
    Some(tls)
}

fn check_tls(tls: &ClientTls, fields: &Fields<'_>) {
    let refuse = |name: &str, message: &str| {
        if let Some(field) = fields.get(name) {
            field.error(message);
        }
    };
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("caCrl", &tls.ca_crl),
    ];
    let given = || files.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name);
    match tls.mode {
        TlsMode::Disable => {
            if fields.get("mode").is_none()
                && (given().next().is_some() || tls.credential_name.is_some() || tls.sni.is_some())
            {
                fields.field.warn("`mode` is missing and means DISABLE: no TLS; the other fields do nothing");
            }
        }
        TlsMode::IstioMutual => {
            let message = "ISTIO_MUTUAL uses the mesh's own certificates: leave it out";
            given().for_each(|name| refuse(name, message));
            refuse("credentialName", message);
        }
        TlsMode::Simple | TlsMode::Mutual => {
            if tls.credential_name.is_some() {
                given().for_each(|name| {
                    refuse(name, "`credentialName` is given too: certificates come from one of the two")
                });
            } else if tls.mode == TlsMode::Mutual {
                for (name, value) in &files[..2] {
                    if value.is_none() {
                        fields.field.error(format!("mode MUTUAL wants `{name}`, or `credentialName`"));
                    }
                }
            } else {
                for (name, _) in files[..2].iter().filter(|(_, value)| value.is_some()) {
                    if let Some(field) = fields.get(name) {
                        field.warn("mode SIMPLE presents no certificate: this does nothing");
                    }
                }
            }
        }
    }
    if tls.insecure_skip_verify {
        let message = "`insecureSkipVerify` is set: nothing is verified, so leave this out";
        refuse("caCertificates", message);
        refuse("subjectAltNames", message);
    }
    for field in fields.items("subjectAltNames").iter().filter(|f| f.node.text() == Some("")) {
        field.error("is empty");
    }
    let bearable = |sni: &str| {
        sni.len() <= 253 && sni.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    if let (Some(field), Some(sni)) = (fields.get("sni"), tls.sni.as_deref().filter(|sni| !bearable(sni))) {
        field.error(format!("\"{}\" is not a name that a ClientHello can bear", sni.escape_debug()));
    }
}
