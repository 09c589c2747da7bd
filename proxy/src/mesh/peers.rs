//! Who the workloads of the mesh are to those who call them: the SPIFFE identity, and whether every port takes mesh mTLS.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    enrol::Enrolled,
    gateways::Gateways,
    inbound::MtlsModes,
    peer_authentications::PeerAuthentications,
    table::{Peer, PodAddresses, WorkloadId},
};
use crate::api::{Object, core::Pod};

/// Every enrolled pod as its callers see it.
pub struct Peers<'a> {
    /// Those with an address, by each of them.
    pub by_address: HashMap<IpAddr, Arc<Peer>>,
    by_pod: HashMap<WorkloadId, Arc<Peer>>,
    bears: &'a PodAddresses,
    trust_domain: &'a str,
}

impl<'a> Peers<'a> {
    pub fn new(
        enrolled: &[Enrolled<'_>],
        gateways: &Gateways<'_>,
        authentications: &PeerAuthentications<'_>,
        bears: &'a PodAddresses,
        trust_domain: &'a str,
    ) -> Self {
        let mut peers = Self { by_address: HashMap::new(), by_pod: HashMap::new(), bears, trust_domain };
        // Most pods take the same.
        let mut shared: HashSet<Arc<MtlsModes>> = HashSet::new();
        let mut share = |modes: MtlsModes| match shared.get(&modes) {
            Some(known) => known.clone(),
            None => {
                let modes = Arc::new(modes);
                shared.insert(modes.clone());
                modes
            }
        };
        let mut enrolled: Vec<_> = enrolled.iter().collect();
        // Where two claim one address, the one whose namespace bears it has it, else the younger pod: the `status` of a pod
        // that is going away may name an address that is another's by now.
        enrolled.sort_by_key(|one| {
            (bears.get(&one.id).is_some_and(|own| !own.is_empty()), &one.pod.meta.creation_timestamp)
        });
        for Enrolled { id, pod, .. } in enrolled {
            let identity = identity(trust_domain, &id.namespace, service_account(pod));
            let captured = gateways.of(id).is_empty().then(|| share(authentications.of(pod).modes));
            let peer = Arc::new(Peer { identity, captured });
            let addresses = peers.addresses(id, pod).iter().map(IpAddr::to_canonical);
            peers.by_address.extend(addresses.map(|address| (address, peer.clone())));
            peers.by_pod.insert(id.clone(), peer);
        }
        peers
    }

    /// The addresses of a pod: those its namespace bears, else those of its `status`.
    pub fn addresses<'p>(&self, id: &WorkloadId, pod: &'p Object<Pod>) -> &'p [IpAddr]
    where
        'a: 'p,
    {
        self.bears.get(id).filter(|own| !own.is_empty()).unwrap_or(&pod.spec.ips)
    }

    pub fn of_pod(&self, id: &WorkloadId) -> Option<&Arc<Peer>> {
        self.by_pod.get(id)
    }

    /// What the ports of a captured pod take.
    pub fn modes(&self, id: &WorkloadId) -> Arc<MtlsModes> {
        self.of_pod(id).and_then(|peer| peer.captured.clone()).unwrap_or_default()
    }

    /// The enrolled pod that bears this address.
    pub fn at(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.by_address.get(&address.to_canonical())
    }

    /// A workload that egret does not serve and that has an identity of the mesh all the same (`serviceAccount` of a
    /// WorkloadEntry): mesh mTLS only where a rule asks for it.
    pub fn outside(&self, namespace: &str, service_account: &str) -> Arc<Peer> {
        Arc::new(Peer { identity: identity(self.trust_domain, namespace, service_account), captured: None })
    }

    /// True where auto mTLS may find somebody to talk to.
    pub fn any_captured(&self) -> bool {
        self.by_pod.values().any(|peer| peer.captured.is_some())
    }
}

/// The SPIFFE identity of a service account (Istio `spiffe.MustGenSpiffeURI`).
pub fn identity(trust_domain: &str, namespace: &str, service_account: &str) -> Arc<str> {
    Arc::from(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"))
}

pub fn service_account(pod: &Object<Pod>) -> &str {
    match pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    }
}
