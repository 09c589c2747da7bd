//! `tls` of a listener to that of a server (Istio `buildTLS`).

use super::{backends::Grants, key, status::Fault};
use crate::api::{
    Objects,
    gateway::{ServerTls, ServerTlsMode},
    gateway_api::{ListenerTls, ObjectRef},
};

const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// `credentialName` that means the pod's own SPIFFE certificate (Istio `BuiltinGatewaySecretTypeURI`).
const BUILTIN: &str = "builtin://";

/// The settings, and what is wrong with their references: the index in `certificateRefs` with each.
pub fn server_tls(
    tls: &ListenerTls,
    namespace: &str,
    objects: &Objects,
    grants: &Grants<'_>,
) -> (ServerTls, Vec<(usize, Fault)>) {
    let mut made = ServerTls::default();
    if tls.passthrough {
        made.mode = Some(ServerTlsMode::Passthrough);
        return (made, Vec::new());
    }
    let mode = match tls.options.get(TERMINATE_MODE).map(String::as_str) {
        Some("MUTUAL") => ServerTlsMode::Mutual,
        Some("OPTIONAL_MUTUAL") => ServerTlsMode::OptionalMutual,
        Some("ISTIO_MUTUAL") => ServerTlsMode::IstioMutual,
        _ => ServerTlsMode::Simple,
    };
    made.mode = Some(mode);
    if mode == ServerTlsMode::IstioMutual {
        return (made, Vec::new());
    }
    if tls.options.get(TERMINATE_MODE).is_some_and(|mode| mode == "ISTIO_SIMPLE") {
        made.credential_names.push(BUILTIN.to_owned());
        return (made, Vec::new());
    }
    let mut faults = Vec::new();
    for (at, reference) in tls.certificates.iter().enumerate() {
        match credential(reference, namespace, objects, grants) {
            Ok(name) => made.credential_names.push(name),
            Err(fault) => faults.push((at, fault)),
        }
    }
    (made, faults)
}

fn credential(reference: &ObjectRef, own: &str, objects: &Objects, grants: &Grants<'_>) -> Result<String, Fault> {
    let ObjectRef { group, kind, name, .. } = reference;
    if !group.is_empty() || kind != "Secret" {
        return Err(Fault::new("InvalidCertificateRef", format!("{kind} {name} is no Secret")));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(own);
    if namespace != own && !grants.allow(("Gateway", own), ("", "Secret", namespace, name)) {
        let why = format!("no ReferenceGrant lets a Gateway of namespace {own} use Secret {namespace}/{name}");
        return Err(Fault::new("RefNotPermitted", why));
    }
    if !objects.secrets.contains_key(&key(namespace, name)) {
        return Err(Fault::new("InvalidCertificateRef", format!("there is no Secret {namespace}/{name}")));
    }
    Ok(if namespace == own { name.clone() } else { format!("kubernetes-gateway://{namespace}/{name}") })
}
