//! What goes between the agent and the command line, as JSON.

use serde::{Deserialize, Serialize};

/// `egret status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// What is awaited, see [`super::AdminState::readiness`].
    pub awaited: Vec<String>,
    /// Downstream connections open now.
    pub connections: u64,
    /// Reloads since the start; the first configuration counts.
    pub generation: u64,
    pub pods: Vec<PodStatus>,
    /// What the kernel half says of itself: `attached`, `adopted from an earlier agent` …
    pub capture: String,
    /// Objects and files refused now, as `egret check` would print them.
    pub rejected: Vec<String>,
    /// Conditions of Gateways and HTTPRoutes of the Gateway API.
    #[serde(default)]
    pub gateway_api: Vec<ConditionRow>,
    /// Why the configuration in force may be behind the cluster's, and since when.
    #[serde(default)]
    pub stale: Vec<String>,
}

/// One condition of one object of the Gateway API, as a controller would write it into its `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionRow {
    /// `HTTPRoute default/cnn`
    pub object: String,
    /// `listener NAME`, `parent KIND NAMESPACE/NAME`; empty for the object itself.
    pub about: String,
    pub condition: String,
    /// `True` or `False`.
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl ConditionRow {
    /// Every condition that the compiler found.
    pub fn all(mesh: &crate::mesh::Mesh) -> Vec<Self> {
        let rows = mesh.statuses.iter().flat_map(|status| {
            status.conditions.iter().map(|condition| Self {
                object: status.object.to_string(),
                about: status.about.to_string(),
                condition: condition.kind.to_owned(),
                status: if condition.status { "True" } else { "False" }.to_owned(),
                reason: condition.reason.to_owned(),
                message: condition.message.clone(),
            })
        });
        rows.collect()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `<namespace>/<pod>`
    pub pod: String,
    pub netns: String,
    pub addresses: Vec<String>,
    /// What becomes of connections from outside: `captured`, `gateway 8080, 8443`, or empty: straight to the application.
    #[serde(default)]
    pub inbound: String,
    /// `enrolled`, or what is in the way.
    pub state: String,
}

/// One row of `proxy-config secret`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRow {
    /// `kubernetes://X`, `kubernetes://X-cacert`, `file-cert:crt~key`, `file-root:ca`; `default` and `ROOTCA` for the mesh.
    pub name: String,
    /// Namespace of the Secret; empty for files on the host.
    pub namespace: String,
    /// `Cert Chain` or `CA`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `ACTIVE`, or why it is not.
    pub status: String,
    /// Within its validity now.
    pub valid: bool,
    /// In decimal.
    pub serial: String,
    /// RFC 3339.
    pub not_after: String,
    pub not_before: String,
    /// For `/certs`: subject and issuer as RFC 4514 has them.
    #[serde(default)]
    pub subject: String,
    #[serde(default)]
    pub issuer: String,
    /// For `/certs`: a mesh certificate has no other name than its SPIFFE identity.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
}

/// One row of `proxy-config listener`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerRow {
    pub addresses: String,
    pub port: u16,
    #[serde(rename = "match")]
    pub matches: String,
    pub destination: String,
}

/// One row of `proxy-config route`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRow {
    pub name: String,
    pub virtual_host: String,
    pub domains: String,
    #[serde(rename = "match")]
    pub matches: String,
    pub virtual_service: String,
}

/// One row of `proxy-config cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRow {
    /// `outbound|80||edition.cnn.com`; the table shows its parts.
    pub name: String,
    pub service: String,
    /// None for clusters that serve any port.
    pub port: Option<u16>,
    pub subset: String,
    pub direction: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub destination_rule: String,
}

/// One row of `proxy-config endpoint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    pub endpoint: String,
    pub status: String,
    pub outlier_check: String,
    pub cluster: String,
}

/// `egret explain`: what a request would get, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub pod: String,
    pub url: String,
    pub steps: Vec<Step>,
    /// One sentence that sums it up.
    pub verdict: String,
}

/// One thing on the way of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `listener`, `route`, `cluster`, `rule`, `tls`, `endpoints` …
    pub what: String,
    pub value: String,
    /// Empty where nothing needs saying.
    pub why: String,
}
