//! Pods as endpoints of the services that select them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    super::{
        locality,
        names::selects,
        peers::Peers,
        table::{Peer, WorkloadId},
    },
    Address, Backend, Ports,
};
use crate::api::{Object, Objects, core::Pod};

/// A pod that may be an endpoint.
pub struct AddressedPod<'a> {
    pod: &'a Object<Pod>,
    ips: &'a [IpAddr],
    pub peer: Option<Arc<Peer>>,
    pub labels: Arc<BTreeMap<String, String>>,
    pub locality: Arc<str>,
}

/// The pods of one namespace.
#[derive(Default)]
struct Near<'a> {
    all: Vec<AddressedPod<'a>>,
    /// Indices in `all`, in order, by each label. A selector finds its pods by the rarest of its own, for a namespace may
    /// have thousands of services and pods.
    labelled: HashMap<(&'a str, &'a str), Vec<usize>>,
    named: HashMap<&'a str, usize>,
}

impl<'a> Near<'a> {
    /// Every pod that may bear all of these labels.
    fn candidates(&self, selector: &BTreeMap<String, String>) -> Vec<&AddressedPod<'a>> {
        let labelled = selector.iter().map(|(key, value)| self.labelled.get(&(key.as_str(), value.as_str())));
        match labelled.min_by_key(|pods| pods.map_or(0, Vec::len)) {
            Some(rarest) => rarest.into_iter().flatten().filter_map(|at| self.all.get(*at)).collect(),
            None => self.all.iter().collect(),
        }
    }
}

/// Pods that may be endpoints, with the addresses they bear now.
pub struct PodsByNamespace<'a> {
    pods: HashMap<&'a str, Near<'a>>,
    pub peers: &'a Peers<'a>,
}

impl<'a> PodsByNamespace<'a> {
    pub fn new(objects: &'a Objects, peers: &'a Peers<'a>) -> Self {
        let mut pods: HashMap<&str, Near<'_>> = HashMap::new();
        // The address of a pod that has ended may be another one's by now.
        for pod in objects.pods.values().filter(|pod| !pod.spec.finished) {
            let id = WorkloadId { namespace: pod.meta.namespace.clone(), name: pod.meta.name.clone() };
            let ips = peers.addresses(&id, pod);
            if !ips.is_empty() {
                let near = pods.entry(&pod.meta.namespace).or_default();
                for (key, value) in &pod.meta.labels {
                    near.labelled.entry((key, value)).or_default().push(near.all.len());
                }
                near.named.insert(&pod.meta.name, near.all.len());
                near.all.push(AddressedPod {
                    pod,
                    ips,
                    peer: peers.of_pod(&id).cloned(),
                    labels: Arc::new(pod.meta.labels.clone()),
                    locality: locality::of_pod(&pod.meta.labels),
                });
            }
        }
        Self { pods, peers }
    }

    pub fn named(&self, namespace: &str, name: &str) -> Option<&AddressedPod<'a>> {
        let near = self.pods.get(namespace)?;
        near.all.get(*near.named.get(name)?)
    }

    /// One backend for each pod with these labels; `like` says which of a pod's address families is wanted.
    pub fn backends(&self, namespace: &str, selector: &BTreeMap<String, String>, like: Option<IpAddr>) -> Vec<Backend> {
        let pods = self.pods.get(namespace).map(|near| near.candidates(selector)).unwrap_or_default();
        let chosen = pods.into_iter().filter(|pod| selects(selector, &pod.labels));
        let backends = chosen.filter_map(|AddressedPod { pod, ips, peer, labels, locality }| {
            let wanted = like.and_then(|like| ips.iter().find(|ip| ip.is_ipv4() == like.is_ipv4()));
            let named = pod.spec.ports.iter().filter_map(|port| Some((port.name.clone()?, port.port)));
            Some(Backend {
                address: Address::Ip(*wanted.or(ips.first())?),
                ports: Ports::Container(named.collect()),
                labels: labels.clone(),
                weight: 1,
                locality: locality.clone(),
                peer: peer.clone(),
                used: true,
            })
        });
        backends.collect()
    }
}
