//! Gateways: which pods serve them, and the listeners that this gives each pod.

mod check;
mod destinations;
mod listeners;
mod placement;
mod tls;

use std::{collections::HashMap, sync::Arc};

pub use self::{
    check::check,
    destinations::AtGateway,
    listeners::{Site, table},
    tls::{Shared, share},
};

use super::{
    enrol::Enrolled,
    findings::Findings,
    names::{object_order, selects, words},
    table::WorkloadId,
};
use crate::api::{Object, Objects, gateway::Gateway};

/// The Gateways that select each enrolled pod, in object order.
#[derive(Debug, Default)]
pub struct Gateways<'a> {
    by_pod: HashMap<WorkloadId, Vec<&'a Arc<Object<Gateway>>>>,
}

impl<'a> Gateways<'a> {
    pub fn new(objects: &'a Objects, enrolled: &[Enrolled<'_>], findings: &mut Findings) -> Self {
        let mut sorted: Vec<_> = objects.gateways.values().collect();
        sorted.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut used = vec![false; sorted.len()];
        let mut by_pod = HashMap::new();
        for Enrolled { id, pod, .. } in enrolled {
            let selector = |gateway: &Object<Gateway>| {
                let near = gateway.spec.pods_of.as_ref().is_none_or(|namespace| *namespace == id.namespace);
                near && selects(&gateway.spec.selector, &pod.meta.labels)
            };
            let chosen: Vec<_> = sorted.iter().enumerate().filter(|(_, gateway)| selector(gateway)).collect();
            // Without a selector a Gateway is for all gateways (Istio), which does not make one of every pod.
            if chosen.iter().all(|(_, gateway)| gateway.spec.selector.is_empty()) {
                continue;
            }
            chosen.iter().for_each(|(index, _)| used[*index] = true);
            by_pod.insert(id.clone(), chosen.into_iter().map(|(_, gateway)| *gateway).collect());
        }
        for (gateway, _) in sorted.iter().zip(used).filter(|(_, used)| !used) {
            let message =
                format!("no enrolled pod bears {}: nobody serves this Gateway", words(&gateway.spec.selector));
            findings.warn(gateway, "spec.selector", message);
        }
        Self { by_pod }
    }

    /// Empty: the pod is no gateway.
    pub fn of(&self, id: &WorkloadId) -> &[&'a Arc<Object<Gateway>>] {
        self.by_pod.get(id).map(Vec::as_slice).unwrap_or_default()
    }
}
