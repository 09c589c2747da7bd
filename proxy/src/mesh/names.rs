//! Small rules that many kinds share: who sees an object, what a short name means, whose labels match, which object
//! comes first.

use std::{cmp::Ordering, collections::BTreeMap};

use super::host::canonical;
use crate::api::ObjectMeta;

/// The DNS domain of Kubernetes Services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// `exportTo` of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visibility {
    Everywhere,
    Namespaces(Vec<String>),
}

impl Visibility {
    /// `.` is the object's own namespace, `*` all, `~` none; an empty list is all.
    pub fn new<'a>(export_to: impl Iterator<Item = &'a str>, namespace: &str) -> Self {
        let listed: Vec<&str> = export_to.map(str::trim).filter(|entry| !entry.is_empty()).collect();
        if listed.is_empty() || listed.contains(&"*") {
            return Self::Everywhere;
        }
        let names = listed.into_iter().filter(|entry| *entry != "~");
        Self::Namespaces(names.map(|entry| if entry == "." { namespace } else { entry }.to_owned()).collect())
    }

    pub fn holds(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Namespaces(names) => names.iter().any(|name| name == namespace),
        }
    }
}

/// A host as a rule in `namespace` means it: a name without a dot is a Service of that namespace.
pub fn rule_host(host: &str, namespace: &str) -> String {
    let host = canonical(host);
    if host.contains(['.', '*', ':']) { host.into_owned() } else { service_host(&host, namespace) }
}

/// The full name of a Kubernetes Service.
pub fn service_host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// `app=web,version=v1`, as `kubectl get -l` takes it.
pub fn words(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Whether `labels` bear all that `selector` asks for.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// creationTimestamp, then name, then namespace.
pub fn object_order(a: &ObjectMeta, b: &ObjectMeta) -> Ordering {
    (&a.creation_timestamp, &a.name, &a.namespace).cmp(&(&b.creation_timestamp, &b.name, &b.namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_to() {
        for (list, client, want) in [
            (&[][..], "b", true),
            (&["*"], "b", true),
            (&["."], "b", false),
            (&["."], "a", true),
            (&["~"], "a", false),
            (&["b", "."], "b", true),
            (&["b"], "a", false),
            (&["b", "*"], "c", true),
        ] {
            assert_eq!(Visibility::new(list.iter().copied(), "a").holds(client), want, "{list:?} {client}");
        }
    }

    #[test]
    fn short_names() {
        assert_eq!(rule_host("Web", "shop"), "web.shop.svc.cluster.local");
        assert_eq!(rule_host("web.shop", "x"), "web.shop");
        assert_eq!(rule_host("*", "x"), "*");
    }
}
