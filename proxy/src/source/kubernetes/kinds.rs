//! What is watched in a cluster, and what of each object is kept.

use std::path::PathBuf;

use crate::api::gateway_api;

/// One kind, as the API server names it.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    /// Versions that our readers know, the best one first.
    pub versions: &'static [&'static str],
    pub plural: &'static str,
    pub kind: &'static str,
    pub keep: Keep,
}

/// Which part of an object is kept. Of `metadata` it is always the same: who it is, labels, annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Metadata,
    Spec,
    /// `data`
    Data,
    /// What matters of a pod of this node: `spec` with its volumes, addresses and phase.
    Pod,
    /// The same of other nodes' pods, without volumes and foreign annotations; those that have ended are left out.
    Endpoint,
    /// Addresses, ports, conditions and pods of a Service's slice.
    Slice,
    /// All but `managedFields` and kubectl's copy: for those who write it.
    Whole,
}

const CORE: &[&str] = &["v1"];
const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];
const GATEWAY: &[&str] = &["v1", "v1beta1"];
const BACKEND_TLS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const TLS_ROUTE: &[&str] = &["v1", "v1beta1", "v1alpha3", "v1alpha2"];

const fn core(plural: &'static str, kind: &'static str, keep: Keep) -> Kind {
    Kind { group: "", versions: CORE, plural, kind, keep }
}

const fn istio(plural: &'static str, kind: &'static str) -> Kind {
    Kind { group: "networking.istio.io", versions: ISTIO, plural, kind, keep: Keep::Spec }
}

const fn security(plural: &'static str, kind: &'static str) -> Kind {
    Kind { group: "security.istio.io", versions: SECURITY, plural, kind, keep: Keep::Spec }
}

const fn gateway(plural: &'static str, kind: &'static str, versions: &'static [&'static str]) -> Kind {
    Kind { group: "gateway.networking.k8s.io", versions, plural, kind, keep: Keep::Spec }
}

/// Pods of this node.
pub static OWN_PODS: Kind = core("pods", "Pod", Keep::Pod);
/// Pods of all other nodes.
pub static OTHER_PODS: Kind = core("pods", "Pod", Keep::Endpoint);
pub static SECRETS: Kind = core("secrets", "Secret", Keep::Data);
pub static CONFIG_MAPS: Kind = core("configmaps", "ConfigMap", Keep::Data);

/// Watched as a whole.
pub static WHOLE: [Kind; 16] = [
    core("services", "Service", Keep::Spec),
    Kind {
        group: "discovery.k8s.io",
        versions: CORE,
        plural: "endpointslices",
        kind: "EndpointSlice",
        keep: Keep::Slice,
    },
    core("namespaces", "Namespace", Keep::Metadata),
    istio("destinationrules", "DestinationRule"),
    istio("gateways", "Gateway"),
    istio("serviceentries", "ServiceEntry"),
    istio("sidecars", "Sidecar"),
    istio("virtualservices", "VirtualService"),
    security("authorizationpolicies", "AuthorizationPolicy"),
    security("peerauthentications", "PeerAuthentication"),
    gateway("backendtlspolicies", "BackendTLSPolicy", BACKEND_TLS),
    gateway("gatewayclasses", "GatewayClass", GATEWAY),
    gateway("gateways", "Gateway", GATEWAY),
    gateway("httproutes", "HTTPRoute", GATEWAY),
    gateway("referencegrants", "ReferenceGrant", GATEWAY),
    gateway("tlsroutes", "TLSRoute", TLS_ROUTE),
];

/// What the controller of Gateways watches in the whole cluster. It writes the status of most of these.
pub static REPORTED: [Kind; 9] = [
    core("services", "Service", Keep::Whole),
    core("namespaces", "Namespace", Keep::Metadata),
    istio("serviceentries", "ServiceEntry"),
    Kind { keep: Keep::Whole, ..gateway("gatewayclasses", "GatewayClass", GATEWAY) },
    Kind { keep: Keep::Whole, ..gateway("gateways", "Gateway", GATEWAY) },
    Kind { keep: Keep::Whole, ..gateway("httproutes", "HTTPRoute", GATEWAY) },
    Kind { keep: Keep::Whole, ..gateway("tlsroutes", "TLSRoute", TLS_ROUTE) },
    Kind { keep: Keep::Whole, ..gateway("backendtlspolicies", "BackendTLSPolicy", BACKEND_TLS) },
    gateway("referencegrants", "ReferenceGrant", GATEWAY),
];
/// What it makes for Gateways, besides Services.
pub static MADE: [Kind; 2] = [
    Kind { group: "apps", versions: CORE, plural: "deployments", kind: "Deployment", keep: Keep::Whole },
    core("serviceaccounts", "ServiceAccount", Keep::Whole),
];

impl Kind {
    /// `destinationrules.networking.istio.io`, as RBAC and kubectl name it.
    #[must_use]
    pub fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// The collection, of one namespace or of all.
    #[must_use]
    pub fn url(&self, version: &str, namespace: Option<&str>) -> String {
        let root = match self.group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        match namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// What stands for a file's path: `kubernetes/DestinationRule/shop/db`. Two groups have a Gateway: Istio's bears the short
    /// name, as in Istio's own messages.
    #[must_use]
    pub fn path(&self, namespace: Option<&str>, name: &str) -> PathBuf {
        let kind = match (self.group, self.kind) {
            (gateway_api::GROUP, "Gateway") => gateway_api::GATEWAY,
            (_, kind) => kind,
        };
        object_path(kind, namespace.unwrap_or_default(), name)
    }
}

/// See [`Kind::path`]; `kind` as [`crate::api::ObjectId`] has it. What is empty is left out.
#[must_use]
pub fn object_path(kind: &str, namespace: &str, name: &str) -> PathBuf {
    let parts = [kind, namespace, name].into_iter().filter(|part| !part.is_empty());
    std::iter::once("kubernetes").chain(parts).collect()
}
