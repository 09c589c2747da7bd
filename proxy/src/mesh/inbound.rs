//! What comes to a pod's own ports: which of them take mesh mTLS, plain text or both, and where the application is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use serde::Serialize;

use super::{
    authorization::Policies,
    cluster::{Cluster, Protocol},
    listeners::DownstreamTls,
    routing::VirtualHost,
    server_tls::ServerTlsSettings,
};
use crate::api::{ObjectId, core::ProbeRequest};

/// The inbound side of one enrolled pod that is no gateway.
#[derive(Debug, Serialize)]
pub struct InboundTable {
    /// By the pod's own port.
    pub modes: Arc<MtlsModes>,
    /// The PeerAuthentications that say so; none: the default, PERMISSIVE.
    pub said_by: Vec<ObjectId>,
    /// Ports that a Service leads to or a `Sidecar` declares, by the pod's own port.
    pub ports: BTreeMap<u16, Arc<InboundPort>>,
    /// All other ports.
    pub any: Arc<InboundPort>,
    pub policies: Arc<Policies>,
    /// What the kubelet asks of the pod, by the pod's own port: neither `modes` nor `policies` speak of that, as in Istio.
    pub probes: BTreeMap<u16, BTreeSet<ProbeRequest>>,
    /// Annotation `sidecar.istio.io/interceptionMode: TPROXY`: the application sees the client's address, not the pod's own.
    pub original_source: bool,
}

impl InboundTable {
    #[must_use]
    pub fn port(&self, port: u16) -> &Arc<InboundPort> {
        self.ports.get(&port).unwrap_or(&self.any)
    }

    /// What this port takes.
    #[must_use]
    pub fn takes(&self, port: u16) -> Takes<'_> {
        match (self.modes.of(port), &self.port(port).tls) {
            (MtlsMode::Strict, _) | (MtlsMode::Disable, Some(DownstreamTls::IstioMutual)) => Takes::MeshMtls,
            (MtlsMode::Disable, Some(DownstreamTls::Terminate(settings))) => Takes::Tls(settings),
            (MtlsMode::Disable, Some(DownstreamTls::Refuse(reason))) => Takes::Nothing(reason),
            (MtlsMode::Permissive, _) => Takes::Anything { mesh_mtls: true },
            (MtlsMode::Disable, None | Some(DownstreamTls::Passthrough)) => Takes::Anything { mesh_mtls: false },
        }
    }

    /// The cluster of this name, e.g. `inbound|8080||`.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        let ports = self.ports.values().chain([&self.any]);
        ports.map(|port| &port.cluster).find(|cluster| cluster.name == name)
    }

    /// Something is forbidden here: while no agent runs, what comes is refused. Else it goes straight to the application.
    #[must_use]
    pub fn fail_closed(&self) -> bool {
        let strict = |mode: &MtlsMode| *mode == MtlsMode::Strict;
        let declared = self.ports.values().any(|port| port.ingress.is_some());
        declared || !self.policies.is_empty() || strict(&self.modes.any) || self.modes.ports.values().any(strict)
    }
}

/// What one of a pod's own ports takes.
#[derive(Clone, Copy, Debug)]
pub enum Takes<'a> {
    /// Nothing else.
    MeshMtls,
    /// Only TLS, with the certificate of a Sidecar's ingress.
    Tls(&'a Arc<ServerTlsSettings>),
    /// Nothing: the ingress cannot be honoured, for this reason.
    Nothing(&'a Arc<str>),
    /// What comes goes on as it is; with `mesh_mtls`, mesh mTLS is taken off.
    Anything { mesh_mtls: bool },
}

/// What PeerAuthentication says of a workload's own ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct MtlsModes {
    pub ports: BTreeMap<u16, MtlsMode>,
    /// Every other port.
    pub any: MtlsMode,
}

impl MtlsModes {
    #[must_use]
    pub fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.any)
    }
}

impl MtlsMode {
    /// As PeerAuthentication writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
            Self::Disable => "DISABLE",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum MtlsMode {
    /// Mesh mTLS and anything else, told apart by the first bytes.
    #[default]
    Permissive,
    /// Mesh mTLS only; everything else is reset.
    Strict,
    /// Never mesh mTLS: what comes goes on as it is, or ends at the `tls` of a Sidecar's ingress.
    Disable,
}

/// One of the pod's own ports.
#[derive(Debug, Serialize)]
pub struct InboundPort {
    /// What is spoken inside mesh mTLS, or in plain text. HTTPS and TLS pass as they are.
    pub protocol: Protocol,
    /// `inbound|<port>||`, or `InboundPassthroughCluster`; [`super::Discovery::Application`].
    pub cluster: Arc<Cluster>,
    /// Every request goes here: one route, `default`, to `cluster`.
    pub host: Arc<VirtualHost>,
    /// `tls` of a Sidecar's ingress; counts where the port's mode is DISABLE.
    pub tls: Option<DownstreamTls>,
    /// The Sidecar that declares the port.
    pub ingress: Option<ObjectId>,
}

impl InboundPort {
    /// Declared to be neither HTTP nor open: nothing inside is looked at.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        matches!(self.protocol, Protocol::Tcp | Protocol::Https | Protocol::Tls)
    }
}

/// Where the application of the pod itself is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Application {
    /// At the address and port that the client dialled.
    Dialled,
    /// At the address that the client dialled (the pod's own), on this port (`defaultEndpoint: 0.0.0.0:PORT`).
    Own(u16),
    Loopback(SocketAddr),
    Unix(PathBuf),
}
