//! The CustomResourceDefinitions of Istio and of the Gateway API, as far as tests use their fields.
//!
//! Each definition bears a schema with the types and words of its fields, in a short notation: `string`, `int`, `bool`,
//! `int-or-string`, `any`, words of an enumeration between bars, `[item]`, `{field: …}`, and `{"*": value}` for maps. Fields
//! that are not listed are let through.

use serde_json::{Value, json};

/// One CustomResourceDefinition.
#[derive(Clone, Copy, Debug)]
pub struct Crd {
    pub group: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    /// Served versions; the first is the one stored.
    pub versions: &'static [&'static str],
    pub namespaced: bool,
    /// The schema of `spec`, as YAML in the notation above.
    schema: &'static str,
    /// The same of `status`.
    status: &'static str,
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
const ROUTE_STATUS: &str = include_str!("crds/route-status.yaml");
const ISTIO_NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];

const fn crd(
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    versions: &'static [&'static str],
    schema: &'static str,
) -> Crd {
    Crd { group, plural, kind, versions, namespaced: true, schema, status: "{}" }
}

/// networking.istio.io and security.istio.io.
pub const ISTIO: &[Crd] = &[
    crd(NETWORKING, "serviceentries", "ServiceEntry", ISTIO_NETWORKING, include_str!("crds/serviceentry.yaml")),
    crd(NETWORKING, "workloadentries", "WorkloadEntry", ISTIO_NETWORKING, include_str!("crds/workloadentry.yaml")),
    crd(NETWORKING, "destinationrules", "DestinationRule", ISTIO_NETWORKING, include_str!("crds/destinationrule.yaml")),
    crd(NETWORKING, "virtualservices", "VirtualService", ISTIO_NETWORKING, include_str!("crds/virtualservice.yaml")),
    crd(NETWORKING, "gateways", "Gateway", ISTIO_NETWORKING, include_str!("crds/gateway.yaml")),
    crd(NETWORKING, "sidecars", "Sidecar", ISTIO_NETWORKING, include_str!("crds/sidecar.yaml")),
    crd(
        SECURITY,
        "peerauthentications",
        "PeerAuthentication",
        &["v1", "v1beta1"],
        include_str!("crds/peerauthentication.yaml"),
    ),
    crd(
        SECURITY,
        "authorizationpolicies",
        "AuthorizationPolicy",
        &["v1", "v1beta1"],
        include_str!("crds/authorizationpolicy.yaml"),
    ),
];

/// gateway.networking.k8s.io.
pub const GATEWAY: &[Crd] = &[
    Crd {
        namespaced: false,
        status: include_str!("crds/gatewayclass-status.yaml"),
        ..crd(GATEWAY_API, "gatewayclasses", "GatewayClass", &["v1", "v1beta1"], include_str!("crds/gatewayclass.yaml"))
    },
    Crd {
        status: include_str!("crds/k8s-gateway-status.yaml"),
        ..crd(GATEWAY_API, "gateways", "Gateway", &["v1", "v1beta1"], include_str!("crds/k8s-gateway.yaml"))
    },
    Crd {
        status: ROUTE_STATUS,
        ..crd(GATEWAY_API, "httproutes", "HTTPRoute", &["v1", "v1beta1"], include_str!("crds/httproute.yaml"))
    },
    Crd {
        status: ROUTE_STATUS,
        ..crd(GATEWAY_API, "tlsroutes", "TLSRoute", &["v1", "v1alpha3", "v1alpha2"], include_str!("crds/tlsroute.yaml"))
    },
    Crd {
        status: include_str!("crds/backendtlspolicy-status.yaml"),
        ..crd(
            GATEWAY_API,
            "backendtlspolicies",
            "BackendTLSPolicy",
            &["v1", "v1alpha3"],
            include_str!("crds/backendtlspolicy.yaml"),
        )
    },
    crd(GATEWAY_API, "referencegrants", "ReferenceGrant", &["v1beta1"], include_str!("crds/referencegrant.yaml")),
];

/// Both.
#[must_use]
pub fn all() -> Vec<Crd> {
    [ISTIO, GATEWAY].concat()
}

/// The one of this kind in [`ISTIO`] or [`GATEWAY`].
#[must_use]
pub fn of(group: &str, kind: &str) -> Option<Crd> {
    all().into_iter().find(|crd| crd.group == group && crd.kind == kind)
}

impl Crd {
    /// `serviceentries.networking.istio.io`
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// The object to create.
    #[must_use]
    pub fn definition(&self) -> Value {
        let read = |text: &str| {
            let read = serde_saphyr::from_str::<Value>(text).map(|short| schema(&short));
            read.unwrap_or_else(|error| panic!("the schema of {} is no YAML: {error}", self.name()))
        };
        let (spec, status) = (read(self.schema), read(self.status));
        let versions: Vec<_> = self
            .versions
            .iter()
            .enumerate()
            .map(|(number, version)| {
                json!({
                    "name": version, "served": true, "storage": number == 0, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": spec, "status": status},
                    }},
                })
            })
            .collect();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name(), "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"}},
            "spec": {
                "group": self.group, "scope": if self.namespaced { "Namespaced" } else { "Cluster" }, "versions": versions,
                "names": {
                    "kind": self.kind, "listKind": format!("{}List", self.kind), "plural": self.plural,
                    "singular": self.kind.to_lowercase(),
                },
            },
        })
    }
}

/// From the short notation to OpenAPI.
fn schema(short: &Value) -> Value {
    match short {
        Value::String(word) => match word.as_str() {
            "string" => json!({"type": "string"}),
            "int" => json!({"type": "integer"}),
            "bool" => json!({"type": "boolean"}),
            "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
            words if words.contains('|') => json!({"type": "string", "enum": words.split('|').collect::<Vec<_>>()}),
            _ => json!({"x-kubernetes-preserve-unknown-fields": true}),
        },
        Value::Array(item) => json!({"type": "array", "items": schema(&item[0])}),
        Value::Object(fields) => match fields.get("*") {
            Some(value) => json!({"type": "object", "additionalProperties": schema(value)}),
            None => {
                let required: Vec<_> = fields.keys().filter_map(|field| field.strip_suffix('!')).collect();
                let properties: serde_json::Map<_, _> = fields
                    .iter()
                    .map(|(field, below)| (field.trim_end_matches('!').to_owned(), schema(below)))
                    .collect();
                let mut object =
                    json!({"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": true});
                if !required.is_empty() {
                    object["required"] = json!(required);
                }
                object
            }
        },
        _ => json!({"x-kubernetes-preserve-unknown-fields": true}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_can_be_made() {
        for crd in all() {
            let made = crd.definition();
            assert_eq!(made["spec"]["names"]["kind"], crd.kind);
            let first = &made["spec"]["versions"][0];
            assert!(first["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].is_object(), "{crd:?}");
        }
    }
}
