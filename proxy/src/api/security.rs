//! security.istio.io kinds.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

/// security.istio.io PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// `selector.matchLabels`; empty: every workload of the namespace (of the mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`; None: UNSET, what the next wider policy says.
    pub mode: Option<PeerMode>,
    /// `portLevelMtls`, by the workload's own port; counts only together with a selector.
    pub ports: BTreeMap<u16, Option<PeerMode>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMode {
    Disable,
    Permissive,
    Strict,
}

/// security.istio.io AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `selector.matchLabels`; empty: every workload of the namespace (of the mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `targetRefs`, or the one `targetRef`; excludes `selector`.
    pub targets: Vec<PolicyTarget>,
    pub action: PolicyAction,
    /// One that matches is enough. None at all: ALLOW allows nothing, DENY denies nothing.
    pub rules: Vec<PolicyRule>,
    /// Annotation `istio.io/dry-run: "true"`: told, not enforced.
    pub dry_run: bool,
}

/// What a policy is about instead of workloads: an object of its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTarget {
    pub group: String,
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PolicyAction {
    #[default]
    Allow,
    Deny,
    Audit,
    /// An authorizer of its own, which egret does not ask: what it would decide is denied.
    Custom {
        provider: String,
    },
}

/// One of `rules[]`: all three must hold; an empty list holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
}

/// `from[].source`: every field that is given must hold, one value of it being enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// As written: `cluster.local/ns/default/sa/sleep`, with `*` at either end, or alone.
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    /// `name` or `namespace/name`
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<IpNet>,
    pub not_ip_blocks: Vec<IpNet>,
    pub remote_ip_blocks: Vec<IpNet>,
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// `to[].operation`: as [`Source`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    /// With `*` at either end, or with the templates `{*}` and `{**}`.
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// `when[]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// `request.headers[x]`, `source.ip`, `source.namespace`, `destination.port`, `connection.sni` …
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

/// A single address as the network of its own.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
