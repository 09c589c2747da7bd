//! EndpointSlices as what a Service's endpoints are.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{Address, Backend, PodsByNamespace, PortNumbers, Ports};
use crate::{
    api::{
        Object, Objects,
        core::Service,
        discovery::{EndpointSlice, SERVICE_NAME, SliceEndpoint},
    },
    mesh::findings::Findings,
};

/// Slices by namespace and Service.
pub struct Slices<'a> {
    by_service: HashMap<(&'a str, &'a str), Vec<&'a Object<EndpointSlice>>>,
    /// Whoever wrote them has written the pods too, all at once.
    by_hand: bool,
}

impl<'a> Slices<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        let mut by_service: HashMap<_, Vec<_>> = HashMap::new();
        for slice in objects.endpoint_slices.values() {
            if let Some(service) = slice.meta.labels.get(SERVICE_NAME) {
                by_service.entry((slice.meta.namespace.as_str(), service.as_str())).or_default().push(&**slice);
            }
        }
        Self { by_service, by_hand: objects.node.is_none() }
    }

    /// A backend for each endpoint of a Service; None where nobody keeps slices for it. `like` says which address family is
    /// wanted.
    ///
    /// Those that are not ready stay known, by address, but are not used; those that are about to end only where no other is
    /// ready (as kube-proxy does).
    pub fn backends(
        &self,
        service: &Object<Service>,
        like: Option<IpAddr>,
        pods: &PodsByNamespace<'_>,
        findings: &mut Findings,
    ) -> Option<Vec<Backend>> {
        let slices = self.by_service.get(&(service.meta.namespace.as_str(), service.meta.name.as_str()))?;
        // An endpoint may be in two slices for a moment, and may then be ready in one of them only.
        let mut found: BTreeMap<(IpAddr, Arc<PortNumbers>), (State, Backend)> = BTreeMap::new();
        for slice in slices {
            let ports = slice.spec.ports.iter().map(|port| (port.name.clone(), port.port)).collect();
            let ports: Arc<PortNumbers> = Arc::new(ports);
            for (index, endpoint) in slice.spec.endpoints.iter().enumerate() {
                if like.is_some_and(|like| like.is_ipv4() != endpoint.address.is_ipv4()) {
                    continue;
                }
                let Some(backend) = self.backend(endpoint, &ports, pods) else {
                    if self.by_hand {
                        let field = format!("endpoints[{index}].targetRef.name");
                        findings.warn(slice, &field, "there is no such Pod: this endpoint is ignored");
                    }
                    continue;
                };
                let state = State::of(endpoint, service.spec.publish_not_ready_addresses);
                let known = found.entry((endpoint.address, ports.clone())).or_insert((state, backend));
                known.0 = known.0.max(state);
            }
        }
        let best = found.values().map(|(state, _)| *state).max().unwrap_or(State::Unready);
        let backends = found.into_values().map(|(state, backend)| {
            let used = state == best && state != State::Unready;
            Backend { used, ..backend }
        });
        Some(backends.collect())
    }

    /// None: the Pod that it is of is not known, or not yet, and so neither is how to speak to it.
    fn backend(
        &self,
        endpoint: &SliceEndpoint,
        ports: &Arc<PortNumbers>,
        pods: &PodsByNamespace<'_>,
    ) -> Option<Backend> {
        let address = Backend::new(Address::Ip(endpoint.address), 1);
        let ports = Ports::Listed(ports.clone());
        Some(match &endpoint.pod {
            Some((namespace, name)) => {
                let pod = pods.named(namespace, name)?;
                let (labels, locality, peer) = (pod.labels.clone(), pod.locality.clone(), pod.peer.clone());
                Backend { ports, labels, locality, peer, ..address }
            }
            // A pod of the mesh may be listed by its address alone.
            None => Backend { ports, peer: pods.peers.at(endpoint.address).cloned(), ..address },
        })
    }
}

/// From worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Unready,
    /// About to end, and serving until then.
    Ending,
    Ready,
}

impl State {
    fn of(endpoint: &SliceEndpoint, publish_not_ready: bool) -> Self {
        match endpoint {
            SliceEndpoint { terminating: true, serving, .. } if *serving => Self::Ending,
            SliceEndpoint { terminating: true, .. } => Self::Unready,
            SliceEndpoint { ready, .. } if *ready || publish_not_ready => Self::Ready,
            _ => Self::Unready,
        }
    }
}
