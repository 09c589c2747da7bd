//! One enrolled pod at run time. It outlives reloads: counters, resolver cache and pools go on, the table changes.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::{
    accept::{Arrival, ConnectionInfo},
    balance::{ClusterState, Families},
    http,
    ports::{OriginalDestination, Sockets},
    resolve::Resolver,
};
use crate::mesh::{Cluster, EndpointAddress, WorkloadId};

/// One enrolled pod.
pub struct Pod {
    pub id: Arc<WorkloadId>,
    pub sockets: Arc<dyn Sockets>,
    pub capture: Arc<dyn OriginalDestination>,
    pub resolver: Resolver,
    /// The in-pod listener's port: never dialled by the agent itself.
    pub listener_port: u16,
    /// Cancelled at unenrolment: everything of this pod ends, so that its namespace is let go.
    pub closed: CancellationToken,
    /// Upstream HTTP connections of this pod; never shared with another's.
    pub http: http::Pools,
    /// Which address families lead anywhere from here.
    pub(super) families: Families,
    own_addresses: RwLock<Vec<IpAddr>>,
    original_source: AtomicBool,
    /// 0: there is none.
    inbound_port: AtomicU16,
    /// Ports of its gateway's listeners, also of former ones.
    gateway_ports: RwLock<BTreeSet<u16>>,
    clusters: Mutex<HashMap<String, Arc<ClusterState>>>,
}

impl Pod {
    pub fn new(
        id: Arc<WorkloadId>,
        sockets: Arc<dyn Sockets>,
        capture: Arc<dyn OriginalDestination>,
        resolver: Resolver,
        own_addresses: Vec<IpAddr>,
        listener_port: u16,
    ) -> Self {
        Self {
            id,
            sockets,
            capture,
            resolver,
            listener_port,
            closed: CancellationToken::new(),
            http: http::Pools::default(),
            families: Families::default(),
            own_addresses: RwLock::new(own_addresses),
            original_source: AtomicBool::new(false),
            inbound_port: AtomicU16::new(0),
            gateway_ports: RwLock::default(),
            clusters: Mutex::default(),
        }
    }

    /// The addresses the namespace's interfaces bear.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        self.own_addresses.read().clone()
    }

    /// Takes note that the namespace's addresses have changed.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        *self.own_addresses.write() = addresses;
    }

    /// Whether the application sees its clients' addresses ([`Sockets::tcp_from`] works) and not the pod's own.
    pub fn original_source(&self) -> bool {
        self.original_source.load(Relaxed)
    }

    /// Whose address the application is to see at the other end of a connection that came to it; None: the pod's own.
    pub(super) fn shown_client(&self, info: &ConnectionInfo) -> Option<IpAddr> {
        (info.arrival == Arrival::Inbound && self.original_source()).then(|| info.peer.ip())
    }

    /// Takes note of it.
    pub fn set_original_source(&self, original_source: bool) {
        self.original_source.store(original_source, Relaxed);
    }

    /// Whether the namespace's interfaces bear this address.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.own_addresses.read().contains(&ip.to_canonical())
    }

    /// True where dialling `to` from this pod would reach the agent's own listener, for what leaves or for what comes.
    pub fn is_listener(&self, to: SocketAddr) -> bool {
        let inbound = self.inbound_port.load(Relaxed);
        (to.port() == self.listener_port || to.port() == inbound) && self.leads_here(to.ip())
    }

    /// Takes note of the listener for what comes to the pod's own ports.
    pub(super) fn opens_inbound(&self, port: u16) {
        self.inbound_port.store(port, Relaxed);
    }

    /// Takes note of a gateway's listener.
    pub(super) fn opens_gateway(&self, port: u16) {
        self.gateway_ports.write().insert(port);
    }

    /// True where dialling `to` from this pod would reach its own gateway.
    pub(super) fn is_gateway(&self, to: SocketAddr) -> bool {
        self.gateway_ports.read().contains(&to.port()) && self.leads_here(to.ip())
    }

    fn leads_here(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_loopback() || ip.is_unspecified() || self.is_own(ip)
    }

    /// Counters of a cluster, made at first sight. Kept by name, so that a reload does not forget what is open.
    pub fn cluster(&self, cluster: &Cluster) -> Arc<ClusterState> {
        let mut clusters = self.clusters.lock();
        if let Some(state) = clusters.get(&cluster.name) {
            return state.clone();
        }
        let state = Arc::new(ClusterState::default());
        clusters.insert(cluster.name.clone(), state.clone());
        state
    }

    /// True while `outlierDetection` keeps the endpoint of the cluster of this name out.
    pub fn is_ejected(&self, cluster: &str, address: &EndpointAddress) -> bool {
        self.clusters.lock().get(cluster).is_some_and(|state| state.is_ejected(address))
    }

    /// Forgets the counters of clusters that `known` denies and nothing uses any more; called after a reload.
    pub fn forget_clusters(&self, known: impl Fn(&str) -> bool) {
        self.clusters.lock().retain(|name, state| known(name) || Arc::strong_count(state) > 1);
    }
}
