//! Which Sidecar applies to which pod: one that selects it, else that of its namespace, else that of the root namespace.
//! One at most; several are never merged (Istio `getSidecarScope`). Gateways are under none, which callers see to.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    findings::Findings,
    names::{object_order, selects, words},
};
use crate::api::{Object, Objects, core::Pod, sidecar::Sidecar};

/// Every Sidecar by the pods that it is for.
#[derive(Debug, Default)]
pub struct Sidecars<'a> {
    namespaces: BTreeMap<&'a str, OfNamespace<'a>>,
    /// The root namespace's own default, which is everybody's.
    root: Option<&'a Arc<Object<Sidecar>>>,
}

#[derive(Debug, Default)]
struct OfNamespace<'a> {
    /// With a workloadSelector, in object order.
    selecting: Vec<&'a Arc<Object<Sidecar>>>,
    /// Without: the first of the namespace.
    default: Option<&'a Arc<Object<Sidecar>>>,
}

impl<'a> Sidecars<'a> {
    pub fn new(objects: &'a Objects, root: &str, findings: &mut Findings) -> Self {
        let mut sorted: Vec<_> = objects.sidecars.values().collect();
        sorted.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut made = Self::default();
        for sidecar in sorted {
            let here = made.namespaces.entry(&sidecar.meta.namespace).or_default();
            if !sidecar.spec.selector.is_empty() {
                here.selecting.push(sidecar);
            } else if let Some(first) = here.default {
                let message =
                    format!("{} is for every workload of the namespace already: this one is ignored", first.id);
                findings.warn(sidecar, "spec", message);
            } else {
                here.default = Some(sidecar);
            }
        }
        made.root = made.namespaces.get(root).and_then(|here| here.default);
        made.check(objects, findings);
        made
    }

    /// The Sidecar that applies to a pod which is no gateway.
    pub fn of(&self, pod: &Object<Pod>) -> Option<&'a Arc<Object<Sidecar>>> {
        let here = self.namespaces.get(pod.meta.namespace.as_str());
        let selecting = here.and_then(|here| here.selected(pod).next());
        selecting.or_else(|| here?.default).or(self.root)
    }

    /// Selectors that select nothing, or what another Sidecar selects already.
    fn check(&self, objects: &Objects, findings: &mut Findings) {
        for (namespace, here) in self.namespaces.iter().filter(|(_, here)| !here.selecting.is_empty()) {
            let (first, last) = ((*namespace).to_owned(), format!("{namespace}\0"));
            let pods: Vec<_> = objects.pods.range((first, String::new())..(last, String::new())).collect();
            let mut told = HashSet::new();
            for (_, pod) in &pods {
                let mut selected = here.selected(pod);
                let Some(first) = selected.next() else { continue };
                for other in selected.filter(|other| told.insert((&first.id, &other.id))) {
                    let message = format!("{} selects {} already: this one is ignored there", first.id, pod.id);
                    findings.warn(other, "spec.workloadSelector", message);
                }
            }
            // Where no pod is told of at all, they are told of elsewhere.
            for sidecar in here.selecting.iter().filter(|_| !pods.is_empty()) {
                let selector = &sidecar.spec.selector;
                if !pods.iter().any(|(_, pod)| selects(selector, &pod.meta.labels)) {
                    let message = format!("no pod of namespace {namespace} bears {}", words(selector));
                    findings.warn(sidecar, "spec.workloadSelector", message);
                }
            }
        }
    }
}

impl<'a> OfNamespace<'a> {
    fn selected(&self, pod: &Object<Pod>) -> impl Iterator<Item = &'a Arc<Object<Sidecar>>> {
        self.selecting.iter().copied().filter(|sidecar| selects(&sidecar.spec.selector, &pod.meta.labels))
    }
}
