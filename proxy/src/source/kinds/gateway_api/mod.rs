//! gateway.networking.k8s.io kinds, checked as the validation of their CustomResourceDefinitions does.

mod backend_tls;
mod filters;
mod frontend;
mod gateway;
mod grant;
mod matches;
mod route;
mod tls_route;

pub use backend_tls::backend_tls_policy;
pub use gateway::{gateway, gateway_class};
pub use grant::reference_grant;
pub use route::http_route;
pub use tls_route::tls_route;

use super::super::{
    decode::{Field, Fields},
    values,
};
use crate::api::gateway_api::{BackendRef, GROUP, ObjectRef};

/// What a reference means that does not say it.
#[derive(Clone, Copy)]
struct Implied {
    group: &'static str,
    kind: &'static str,
}

const GATEWAY: Implied = Implied { group: GROUP, kind: "Gateway" };
const SERVICE: Implied = Implied { group: "", kind: "Service" };
const SECRET: Implied = Implied { group: "", kind: "Secret" };
const CONFIG_MAP: Implied = Implied { group: "", kind: "ConfigMap" };

/// The group of Istio's kinds, and of the backend kind `Hostname`.
const ISTIO: &str = "networking.istio.io";

/// `group`, `kind`, `namespace` and `name` of a reference.
fn object_ref(fields: &Fields<'_>, implied: Implied) -> Option<ObjectRef> {
    // "" is the core group, and so is not the same as an absent one.
    let group = match fields.get("group") {
        Some(field) => field.string()?,
        None => implied.group.to_owned(),
    };
    let kind = fields.string("kind").unwrap_or_else(|| implied.kind.to_owned());
    let name_field = fields.require("name")?;
    let name = name_field.string()?;
    let host = group == ISTIO && kind == "Hostname";
    if host {
        if let Err(reason) = values::host_pattern(&name) {
            name_field.error(format!("\"{name}\" {reason}"));
        }
    } else if !values::object_name(&name) {
        name_field.error(format!("\"{name}\" is not a name: lower-case letters, digits, `-` and `.`, 253 at most"));
    } else if group.is_empty() && kind == "Service" && name.contains('.') {
        name_field.error("must be the name of a Service, not a host; for a host there is kind Hostname");
    }
    let namespace = fields.get("namespace").and_then(|field| namespace(&field));
    if let (Some(field), true) = (fields.get("namespace"), host) {
        field.error("kind Hostname is of no namespace: leave it out");
    }
    Some(ObjectRef { group, kind, namespace: namespace.map(Into::into), name: name.into() })
}

fn namespace(field: &Field<'_>) -> Option<String> {
    let name = field.string().filter(|name| !name.is_empty())?;
    if !values::dns_label(&name) || !values::object_name(&name) {
        field.error(format!("\"{name}\" is not a name of a namespace"));
        return None;
    }
    Some(name)
}

/// A BackendObjectReference. A Service and a host want a port.
fn backend_ref(fields: &Fields<'_>) -> Option<BackendRef> {
    let object = object_ref(fields, SERVICE)?;
    let port = fields.get("port").and_then(|field| field.port());
    let known = matches!((object.group.as_str(), object.kind.as_str()), ("", "Service") | (ISTIO, "Hostname"));
    if known && fields.get("port").is_none() {
        fields.field.error("`port` is missing");
    }
    Some(BackendRef { object, port })
}

/// A host name, `*.` before it where wildcards are allowed; in lower case.
fn hostname(field: &Field<'_>, wildcard: bool) -> Option<String> {
    let name = field.string()?.to_ascii_lowercase();
    if !wildcard && name.starts_with('*') || name == "*" {
        let hint = if wildcard { "leave it out to mean every host" } else { "it must be one host" };
        field.error(format!("\"{name}\" is no name of a host here: {hint}"));
        return None;
    }
    if let Err(reason) = values::host_pattern(&name) {
        field.error(format!("\"{name}\" {reason}"));
        return None;
    }
    Some(name)
}

/// `name` of a listener or a rule (SectionName, RFC 1123 subdomain).
fn section_name(field: &Field<'_>) -> Option<String> {
    let name = field.string()?;
    if !values::object_name(&name) {
        field.error(format!("\"{name}\" is not a name: lower-case letters, digits, `-` and `.`, 253 at most"));
        return None;
    }
    Some(name)
}

#[cfg(test)]
mod tests;
