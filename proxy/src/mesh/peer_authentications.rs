//! What a workload's own ports take: the PeerAuthentication that selects it, else its namespace's, else the mesh's
//! (Istio `ComposePeerAuthentication`).

use std::sync::Arc;

use super::{
    findings::Findings,
    inbound::{MtlsMode, MtlsModes},
    scopes::Scopes,
};
use crate::api::{
    Object, ObjectId, Objects,
    core::Pod,
    security::{PeerAuthentication, PeerMode},
};

/// Every PeerAuthentication by whom it is for.
pub struct PeerAuthentications<'a> {
    scopes: Scopes<'a, PeerAuthentication>,
    root: &'a str,
}

/// What is said of one workload.
#[derive(Debug, Default)]
pub struct Said {
    pub modes: MtlsModes,
    /// By whom, those about single ports first; nobody: PERMISSIVE by default.
    pub by: Vec<ObjectId>,
}

impl<'a> PeerAuthentications<'a> {
    pub fn new(objects: &'a Objects, root: &'a str, findings: &mut Findings) -> Self {
        let scopes = Scopes::new(&objects.peer_authentications, findings);
        scopes.check(objects, findings);
        for object in scopes.selectors(root) {
            let message = "in the root namespace a selector selects nobody, as in Istio: this one is ignored";
            findings.warn(object, "spec.selector", message);
        }
        Self { scopes, root }
    }

    /// The one that selects the pod.
    pub fn selecting(&self, pod: &Object<Pod>) -> Option<&'a Arc<Object<PeerAuthentication>>> {
        self.scopes.selecting(pod).filter(|_| pod.meta.namespace != self.root)
    }

    pub fn of(&self, pod: &Object<Pod>) -> Said {
        let own = self.selecting(pod);
        // Of the root namespace's own pods both are the same.
        let wider = [self.scopes.all_of(&pod.meta.namespace), self.scopes.all_of(self.root)];
        let mut said = Said::default();
        let decides = own
            .into_iter()
            .chain(wider.into_iter().flatten())
            .find_map(|object| Some((mode(object.spec.mode?), object)));
        if let Some((mode, object)) = decides {
            said.modes.any = mode;
            said.by.push(object.id.clone());
        }
        if let Some(object) = own {
            // A port whose mode is UNSET, or the same as that of all others, is none of its own.
            let ports = object.spec.ports.iter().filter_map(|(port, mode)| Some((*port, self::mode((*mode)?))));
            let any = said.modes.any;
            said.modes.ports = ports.filter(|(_, mode)| *mode != any).collect();
            if !said.modes.ports.is_empty() && !said.by.contains(&object.id) {
                said.by.insert(0, object.id.clone());
            }
        }
        said
    }
}

fn mode(mode: PeerMode) -> MtlsMode {
    match mode {
        PeerMode::Disable => MtlsMode::Disable,
        PeerMode::Permissive => MtlsMode::Permissive,
        PeerMode::Strict => MtlsMode::Strict,
    }
}
