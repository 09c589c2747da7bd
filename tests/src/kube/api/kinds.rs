//! The kinds that the server knows from the start, and what a kind is.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1 as apps, certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling,
};
use serde_json::Value;

/// What tells whether an object's fields are of the right types.
#[derive(Clone)]
pub enum Check {
    /// Built in: a type of the Kubernetes API decides.
    Type(fn(&Value) -> Result<(), String>),
    /// A custom resource: the OpenAPI schema of each version.
    Schemas(Arc<Vec<(String, Value)>>),
}

/// One resource of the API.
#[derive(Clone)]
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    /// Those served, the preferred one first.
    pub versions: Vec<String>,
    pub plural: String,
    pub kind: String,
    pub short: Vec<String>,
    pub namespaced: bool,
    /// `status` among them where the status is written apart from the rest.
    pub subresources: Vec<String>,
    pub check: Check,
}

impl Kind {
    #[must_use]
    pub fn id(&self) -> Id {
        (self.group.clone(), self.plural.clone())
    }

    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `pods`, `leases.coordination.k8s.io`: as messages have it.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    #[must_use]
    pub fn custom(&self) -> bool {
        matches!(self.check, Check::Schemas(_))
    }

    #[must_use]
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|name| name == "status")
    }

    /// Objects of custom resources, workloads and the like count changes of their spec; most of the core group do not.
    #[must_use]
    pub fn counts_generations(&self) -> bool {
        self.custom() || matches!(self.group.as_str(), "apps" | "policy") || self.plural == "pods"
    }
}

/// Group and plural.
pub type Id = (String, String);

fn typed<T: serde::de::DeserializeOwned>(object: &Value) -> Result<(), String> {
    T::deserialize(object).map(drop).map_err(|error| error.to_string())
}

fn kind(
    group: &str,
    plural: &str,
    kind: &str,
    short: &[&str],
    namespaced: bool,
    subresources: &[&str],
    check: fn(&Value) -> Result<(), String>,
) -> Kind {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Kind {
        group: group.to_owned(),
        versions: vec!["v1".to_owned()],
        plural: plural.to_owned(),
        kind: kind.to_owned(),
        short: owned(short),
        namespaced,
        subresources: owned(subresources),
        check: Check::Type(check),
    }
}

/// The kinds that are there without a CustomResourceDefinition, all at v1.
#[must_use]
pub fn built_in() -> Vec<Kind> {
    const STATUS: &[&str] = &["status"];
    let csr = &["status", "approval"];
    vec![
        kind("", "namespaces", "Namespace", &["ns"], false, STATUS, typed::<core::Namespace>),
        kind("", "nodes", "Node", &["no"], false, STATUS, typed::<core::Node>),
        kind("", "pods", "Pod", &["po"], true, &["status", "proxy", "binding"], typed::<core::Pod>),
        kind("", "services", "Service", &["svc"], true, STATUS, typed::<core::Service>),
        kind("", "secrets", "Secret", &[], true, &[], typed::<core::Secret>),
        kind("", "configmaps", "ConfigMap", &["cm"], true, &[], typed::<core::ConfigMap>),
        kind("", "serviceaccounts", "ServiceAccount", &["sa"], true, &["token"], typed::<core::ServiceAccount>),
        kind("", "events", "Event", &["ev"], true, &[], typed::<core::Event>),
        kind("", "endpoints", "Endpoints", &["ep"], true, &[], typed::<core::Endpoints>),
        kind("discovery.k8s.io", "endpointslices", "EndpointSlice", &[], true, &[], typed::<discovery::EndpointSlice>),
        kind("apps", "deployments", "Deployment", &["deploy"], true, STATUS, typed::<apps::Deployment>),
        kind("apps", "daemonsets", "DaemonSet", &["ds"], true, STATUS, typed::<apps::DaemonSet>),
        kind("coordination.k8s.io", "leases", "Lease", &[], true, &[], typed::<coordination::Lease>),
        kind(
            "certificates.k8s.io",
            "certificatesigningrequests",
            "CertificateSigningRequest",
            &["csr"],
            false,
            csr,
            typed::<certificates::CertificateSigningRequest>,
        ),
        kind(
            "policy",
            "poddisruptionbudgets",
            "PodDisruptionBudget",
            &["pdb"],
            true,
            STATUS,
            typed::<policy::PodDisruptionBudget>,
        ),
        kind(
            "scheduling.k8s.io",
            "priorityclasses",
            "PriorityClass",
            &["pc"],
            false,
            &[],
            typed::<scheduling::PriorityClass>,
        ),
        kind("rbac.authorization.k8s.io", "roles", "Role", &[], true, &[], typed::<rbac::Role>),
        kind("rbac.authorization.k8s.io", "rolebindings", "RoleBinding", &[], true, &[], typed::<rbac::RoleBinding>),
        kind("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", &[], false, &[], typed::<rbac::ClusterRole>),
        kind(
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
            "ClusterRoleBinding",
            &[],
            false,
            &[],
            typed::<rbac::ClusterRoleBinding>,
        ),
        kind(
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            &["crd", "crds"],
            false,
            STATUS,
            typed::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>,
        ),
    ]
}
