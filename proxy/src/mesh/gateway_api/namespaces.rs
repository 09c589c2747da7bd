//! `allowedRoutes.namespaces`: whose routes a listener takes.

use std::collections::BTreeMap;

use crate::api::{
    Objects,
    gateway_api::{LabelOperator, LabelSelector, RoutesFrom},
};

/// Every namespace bears its own name as this label.
const NAME: &str = "kubernetes.io/metadata.name";

/// The namespaces whose routes a listener takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    All,
    /// May be none.
    These(Vec<String>),
}

impl Allowed {
    pub fn new(from: &RoutesFrom, own: &str, objects: &Objects) -> Self {
        match from {
            RoutesFrom::All => Self::All,
            RoutesFrom::Same => Self::These(vec![own.to_owned()]),
            RoutesFrom::None => Self::These(Vec::new()),
            RoutesFrom::Selector(selector) => Self::These(selected(selector, objects)),
        }
    }

    pub fn holds(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.iter().any(|name| name == namespace),
        }
    }

    /// `hosts` of a server, with the namespaces whose VirtualServices it takes (Istio `buildHostnameMatch`).
    pub fn server_hosts(&self, host: &str) -> Vec<String> {
        match self {
            Self::All => vec![format!("*/{host}")],
            Self::These(names) if names.is_empty() => vec![format!("~/{host}")],
            Self::These(names) => names.iter().map(|namespace| format!("{namespace}/{host}")).collect(),
        }
    }
}

/// Namespaces with such labels. What is in force in a namespace need not come with a document of that namespace: its
/// name is all that is known of it then.
fn selected(selector: &LabelSelector, objects: &Objects) -> Vec<String> {
    let named = objects.http_routes.keys().chain(objects.tls_routes.keys()).map(|(namespace, _)| (namespace, None));
    let given = objects.namespaces.values().map(|object| (object.meta.name.as_str(), Some(&object.meta.labels)));
    let all: BTreeMap<&str, Option<&BTreeMap<String, String>>> = named.chain(given).collect();
    let names = all.into_iter().filter(|(name, labels)| {
        let label = |key: &str| match key {
            NAME => Some(*name),
            key => labels.and_then(|labels| labels.get(key)).map(String::as_str),
        };
        matches(selector, label)
    });
    names.map(|(name, _)| name.to_owned()).collect()
}

fn matches<'a>(selector: &LabelSelector, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    let labels = selector.labels.iter().all(|(key, value)| label(key) == Some(value));
    labels
        && selector.expressions.iter().all(|wanted| {
            let among = |value: &str| wanted.values.iter().any(|other| other == value);
            match (wanted.operator, label(&wanted.key)) {
                (LabelOperator::In, value) => value.is_some_and(among),
                (LabelOperator::NotIn, value) => !value.is_some_and(among),
                (LabelOperator::Exists, value) => value.is_some(),
                (LabelOperator::DoesNotExist, value) => value.is_none(),
            }
        })
}
