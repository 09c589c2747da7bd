//! BackendTLSPolicy.

use super::{
    super::super::decode::{Field, Fields},
    CONFIG_MAP, SERVICE, hostname, object_ref, section_name,
};
use crate::api::gateway_api::{BackendTlsPolicy, BackendTlsTarget};

/// Reads a BackendTLSPolicy.
pub fn backend_tls_policy(root: &Fields<'_>) -> Option<BackendTlsPolicy> {
    let fields = root.require("spec")?.fields(&["targetRefs", "validation", "options"], &[], &[])?;
    let targets = fields.each("targetRefs", target);
    if fields.items("targetRefs").is_empty() {
        fields.field.error("`targetRefs` must have at least one entry");
    }
    if let Some(field) = fields.get("options") {
        field.warn("not honoured");
    }
    let read = &["caCertificateRefs", "wellKnownCACertificates", "hostname", "subjectAltNames"];
    let validation = fields.require("validation")?.fields(read, &[], &[])?;
    let cas = validation.each("caCertificateRefs", |field| {
        object_ref(&field.fields(&["group", "kind", "name"], &[], &[])?, CONFIG_MAP)
    });
    if let Some(second) = validation.items("caCertificateRefs").get(1) {
        second.warn("only the first CA counts, as in Istio: servers of the others are refused");
    }
    let system = validation.get("wellKnownCACertificates");
    if let Some(field) = &system {
        field.choice(&[("System", ())]);
    }
    match (validation.items("caCertificateRefs").is_empty(), system.is_some()) {
        (true, false) => validation.field.error("wants `caCertificateRefs` or `wellKnownCACertificates`"),
        (false, true) => validation.field.error("takes `caCertificateRefs` or `wellKnownCACertificates`, not both"),
        _ => {}
    }
    Some(BackendTlsPolicy {
        targets,
        cas,
        hostname: validation.require("hostname").and_then(|field| hostname(&field, false))?,
        subject_alt_names: validation.each("subjectAltNames", subject_alt_name),
    })
}

fn target(field: &Field<'_>) -> Option<BackendTlsTarget> {
    let fields = field.fields(&["group", "kind", "name", "sectionName"], &[], &[])?;
    Some(BackendTlsTarget {
        object: object_ref(&fields, SERVICE)?,
        section: fields.get("sectionName").and_then(|field| section_name(&field)),
    })
}

fn subject_alt_name(field: &Field<'_>) -> Option<String> {
    let fields = field.fields(&["type", "hostname", "uri"], &[], &[])?;
    let uri = fields.require("type")?.choice(&[("Hostname", false), ("URI", true)])?;
    match uri {
        true => fields.require("uri")?.string(),
        false => hostname(&fields.require("hostname")?, true),
    }
}
