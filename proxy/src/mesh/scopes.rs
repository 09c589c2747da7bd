//! Objects that are for workloads: those that a selector names, all of a namespace, or all of the mesh.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    findings::Findings,
    names::{object_order, selects, words},
};
use crate::api::{Kind, Object, Objects, core::Pod, security::PeerAuthentication, sidecar::Sidecar};

/// An object of which one at most applies at each width, the oldest; several are never merged.
pub trait Scoped {
    /// The field that holds the selector.
    const SELECTOR: &'static str;

    /// Labels of the pods that it is for; empty: all of its namespace, or of the mesh where that is the root namespace.
    fn selector(&self) -> &BTreeMap<String, String>;
}

impl Scoped for PeerAuthentication {
    const SELECTOR: &'static str = "spec.selector";

    fn selector(&self) -> &BTreeMap<String, String> {
        &self.selector
    }
}

impl Scoped for Sidecar {
    const SELECTOR: &'static str = "spec.workloadSelector";

    fn selector(&self) -> &BTreeMap<String, String> {
        &self.selector
    }
}

/// Every object of one kind, by whom it is for.
#[derive(Debug)]
pub struct Scopes<'a, S> {
    namespaces: BTreeMap<&'a str, OfNamespace<'a, S>>,
}

#[derive(Debug)]
struct OfNamespace<'a, S> {
    /// With a selector, in object order.
    selecting: Vec<&'a Arc<Object<S>>>,
    /// Without: the first of the namespace.
    all: Option<&'a Arc<Object<S>>>,
}

impl<'a, S: Scoped> Scopes<'a, S> {
    pub fn new(kind: &'a Kind<S>, findings: &mut Findings) -> Self {
        let mut sorted: Vec<_> = kind.values().collect();
        sorted.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut namespaces: BTreeMap<&str, OfNamespace<'_, S>> = BTreeMap::new();
        for object in sorted {
            let nothing = || OfNamespace { selecting: Vec::new(), all: None };
            let here = namespaces.entry(&object.meta.namespace).or_insert_with(nothing);
            if !object.spec.selector().is_empty() {
                here.selecting.push(object);
            } else if let Some(first) = here.all {
                let message =
                    format!("{} is for every workload of the namespace already: this one is ignored", first.id);
                findings.warn(object, "spec", message);
            } else {
                here.all = Some(object);
            }
        }
        Self { namespaces }
    }

    /// The one for every workload of a namespace.
    pub fn all_of(&self, namespace: &str) -> Option<&'a Arc<Object<S>>> {
        self.namespaces.get(namespace)?.all
    }

    /// The one that selects this pod.
    pub fn selecting(&self, pod: &Object<Pod>) -> Option<&'a Arc<Object<S>>> {
        self.namespaces.get(pod.meta.namespace.as_str())?.selected(pod).next()
    }

    /// Those of a namespace that select pods.
    pub fn selectors(&self, namespace: &str) -> &[&'a Arc<Object<S>>] {
        self.namespaces.get(namespace).map(|here| here.selecting.as_slice()).unwrap_or_default()
    }

    /// Selectors that select nothing, or what another one selects already.
    pub fn check(&self, objects: &Objects, findings: &mut Findings) {
        for (namespace, here) in self.namespaces.iter().filter(|(_, here)| !here.selecting.is_empty()) {
            let pods: Vec<_> = objects.pods.of_namespace(namespace).collect();
            let mut told = HashSet::new();
            for pod in &pods {
                let mut selected = here.selected(pod);
                let Some(first) = selected.next() else { continue };
                for other in selected.filter(|other| told.insert((&first.id, &other.id))) {
                    let message = format!("{} selects {} already: this one is ignored there", first.id, pod.id);
                    findings.warn(other, S::SELECTOR, message);
                }
            }
            // Where no pod is told of at all, they are told of elsewhere.
            for object in here.selecting.iter().filter(|_| !pods.is_empty()) {
                let selector = object.spec.selector();
                if !pods.iter().any(|pod| selects(selector, &pod.meta.labels)) {
                    let message = format!("no pod of namespace {namespace} bears {}", words(selector));
                    findings.warn(object, S::SELECTOR, message);
                }
            }
        }
    }
}

impl<'a, S: Scoped> OfNamespace<'a, S> {
    fn selected(&self, pod: &Object<Pod>) -> impl Iterator<Item = &'a Arc<Object<S>>> {
        self.selecting.iter().copied().filter(|object| selects(object.spec.selector(), &pod.meta.labels))
    }
}
