//! CertificateSigningRequests: who may approve and sign, and what may still change.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{
    failure::Failure,
    kinds::Kind,
    rbac::{self, Question},
    store::Store,
    users::User,
};

/// The DER of a base64 field that holds a PEM block of this type.
pub fn pem(field: &Value, label: &str) -> Option<Vec<u8>> {
    let text = String::from_utf8(BASE64_STANDARD.decode(field.as_str()?).ok()?).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    BASE64_STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

/// The new state after a write to `approval` or `status`: the verbs on the signer, and the rules of the conditions.
pub fn change(
    store: &Store,
    kind: &Kind,
    user: &User,
    old: &Value,
    sent: &Value,
    subresource: &str,
) -> Result<Value, Failure> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    let invalid = |field: &str, why: &str| Failure::invalid(kind, name, &[(field.to_owned(), why.to_owned())]);
    let mut new = old.clone();
    let conditions = |object: &Value, decisions_too: bool| -> Vec<Value> {
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|one| decisions_too || !matches!(one["type"].as_str(), Some("Approved" | "Denied")))
            .collect()
    };
    let has = |object: &Value, wanted: &str| conditions(object, true).iter().any(|one| one["type"] == wanted);
    for decision in ["Approved", "Denied"] {
        if has(old, decision) && !has(sent, decision) && subresource == "approval" {
            return Err(invalid(
                "status.conditions",
                &format!("Forbidden: updates may not remove a condition of type \"{decision}\""),
            ));
        }
    }
    if subresource == "approval" {
        demand(store, user, "approve", old)?;
        if has(sent, "Approved") && has(sent, "Denied") {
            return Err(invalid(
                "status.conditions",
                "Invalid value: Approved and Denied conditions are mutually exclusive",
            ));
        }
        new["status"]["conditions"] = sent["status"]["conditions"].clone();
        return Ok(new);
    }
    let certificate = &sent["status"]["certificate"];
    if old["status"]["certificate"] != *certificate || has(old, "Failed") != has(sent, "Failed") {
        demand(store, user, "sign", old)?;
    }
    if !old["status"]["certificate"].is_null() && old["status"]["certificate"] != *certificate {
        return Err(invalid(
            "status.certificate",
            "Forbidden: updates may not set certificate content to a different value",
        ));
    }
    if !certificate.is_null() && pem(certificate, "CERTIFICATE").is_none() {
        return Err(invalid("status.certificate", "Invalid value: must contain at least one CERTIFICATE PEM block"));
    }
    let mut kept = conditions(old, true);
    kept.retain(|one| matches!(one["type"].as_str(), Some("Approved" | "Denied")));
    kept.extend(conditions(sent, false));
    new["status"] = sent["status"].clone();
    new["status"]["conditions"] = kept.into();
    Ok(new)
}

/// The verb `approve` or `sign` on this signer, or on all of its domain.
fn demand(store: &Store, user: &User, verb: &'static str, request: &Value) -> Result<(), Failure> {
    let signer = request["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    let question =
        |name| Question { verb, group: "certificates.k8s.io", resource: "signers".into(), namespace: "", name };
    if [signer, &domain].into_iter().any(|name| rbac::allowed(store, user, &question(name))) {
        return Ok(());
    }
    let what = if verb == "sign" { "sign" } else { "approve" };
    Err(Failure::new(403, "Forbidden", format!("user not permitted to {what} requests with signerName \"{signer}\"")))
}
