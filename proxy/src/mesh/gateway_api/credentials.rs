//! Certificates and CAs that Gateways and BackendTLSPolicies refer to: whether they are there, and whether they may be used.

use super::{key, status::Fault, tls::References};
use crate::api::{core::Secret, gateway_api::ObjectRef, istio::CaSource};

/// The `credentialName` of a server's certificate.
pub fn certificate(reference: &ObjectRef, references: References<'_>) -> Result<String, Fault> {
    let ObjectRef { group, kind, name, .. } = reference;
    let invalid = |why: String| Err(Fault::new("InvalidCertificateRef", why));
    if !group.is_empty() || kind != "Secret" {
        return invalid(format!("{kind} {name} is no Secret"));
    }
    let namespace = references.permitted(reference, "Gateway")?;
    // Its Secrets are for the node that serves it.
    if !references.here {
        return Ok(credential_name(namespace, name, references));
    }
    let Some(secret) = references.objects.secret(namespace, name) else {
        return invalid(format!("there is no Secret {namespace}/{name}"));
    };
    let pairs = [["cert", "key"], ["tls.crt", "tls.key"]];
    if !pairs.iter().any(|pair| pair.iter().all(|key| filled(&secret.spec, key))) {
        return invalid(format!("Secret {namespace}/{name} lacks tls.crt and tls.key (or cert and key)"));
    }
    Ok(credential_name(namespace, name, references))
}

fn credential_name(namespace: &str, name: &str, references: References<'_>) -> String {
    match namespace == references.namespace {
        true => name.to_owned(),
        false => format!("kubernetes-gateway://{namespace}/{name}"),
    }
}

/// The CA that a reference of an object of `kind` means.
pub fn authority(reference: &ObjectRef, kind: &str, references: References<'_>) -> Result<CaSource, Fault> {
    let invalid = |why: String| Err(Fault::new("InvalidCACertificateRef", why));
    let ObjectRef { group, kind: wanted, name, .. } = reference;
    if !group.is_empty() || !matches!(wanted.as_str(), "ConfigMap" | "Secret") {
        let why = format!("{wanted} {name} holds no CA: a ConfigMap does, or a Secret");
        return Err(Fault::new(if kind == "Gateway" { "InvalidCACertificateKind" } else { "InvalidKind" }, why));
    }
    let namespace = references.permitted(reference, kind)?;
    let at = key(namespace, name);
    let what = format!("{wanted} {namespace}/{name}");
    let (namespace, name) = at;
    if !references.here {
        return Ok(match wanted.as_str() {
            "ConfigMap" => CaSource::ConfigMap { namespace, name },
            _ => CaSource::Secret { namespace, name },
        });
    }
    if wanted == "ConfigMap" {
        return match references.objects.config_map(&namespace, &name).map(|object| object.spec.data.get("ca.crt")) {
            // Where it has neither, it is skipped where objects are read.
            None => invalid(format!("there is no {what} with a CA in key ca.crt")),
            Some(Some(text)) if text.contains("-----BEGIN CERTIFICATE-----") => {
                Ok(CaSource::ConfigMap { namespace, name })
            }
            Some(_) => invalid(format!("{what} has no CA certificate (PEM) in key ca.crt")),
        };
    }
    match references.objects.secret(&namespace, &name) {
        None => invalid(format!("there is no {what}")),
        Some(object) if ["cacert", "ca.crt"].iter().any(|key| filled(&object.spec, key)) => {
            Ok(CaSource::Secret { namespace, name })
        }
        Some(_) => invalid(format!("{what} has no CA in key ca.crt (or cacert)")),
    }
}

impl<'a> References<'a> {
    /// The namespace of what an object of `kind` refers to, where it may.
    fn permitted(self, reference: &'a ObjectRef, kind: &str) -> Result<&'a str, Fault> {
        let own = self.namespace;
        let namespace = reference.namespace.as_deref().unwrap_or(own);
        let (wanted, name) = (reference.kind.as_str(), reference.name.as_str());
        if namespace == own || self.grants.allow((kind, own), ("", wanted, namespace, name)) {
            return Ok(namespace);
        }
        let why = format!("no ReferenceGrant lets a {kind} of namespace {own} use {wanted} {namespace}/{name}");
        Err(Fault::new("RefNotPermitted", why))
    }
}

fn filled(secret: &Secret, key: &str) -> bool {
    secret.data.get(key).is_some_and(|value| !value.is_empty())
}
