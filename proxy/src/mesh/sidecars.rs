//! Which Sidecar applies to which pod: one that selects it, else that of its namespace, else that of the root namespace.
//! One at most; several are never merged (Istio `getSidecarScope`). Gateways are under none, which callers see to.

use std::sync::Arc;

use super::{findings::Findings, scopes::Scopes};
use crate::api::{Object, Objects, core::Pod, sidecar::Sidecar};

/// Every Sidecar by the pods that it is for.
#[derive(Debug)]
pub struct Sidecars<'a> {
    scopes: Scopes<'a, Sidecar>,
    /// The root namespace's own default, which is everybody's.
    root: Option<&'a Arc<Object<Sidecar>>>,
}

impl<'a> Sidecars<'a> {
    pub fn new(objects: &'a Objects, root: &str, findings: &mut Findings) -> Self {
        let scopes = Scopes::new(&objects.sidecars, findings);
        scopes.check(objects, findings);
        let root = scopes.all_of(root);
        Self { scopes, root }
    }

    /// The Sidecar that applies to a pod which is no gateway.
    pub fn of(&self, pod: &Object<Pod>) -> Option<&'a Arc<Object<Sidecar>>> {
        let near = self.scopes.selecting(pod).or_else(|| self.scopes.all_of(&pod.meta.namespace));
        near.or(self.root)
    }
}
