//! One result feeds access log and metrics alike.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use uuid::Uuid;

pub use super::noted::{Kept, Text, UpstreamHost};
use crate::{
    mesh::{Cluster, WorkloadId},
    tls::{ClientCertificate, SessionParameters},
};

/// Envoy's response flags, as far as egret sets them. Several may hold (`UF,URX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flag {
    /// No healthy upstream.
    UH,
    /// Upstream connection failure.
    UF,
    /// Upstream overflow.
    UO,
    /// No route found.
    NR,
    /// Upstream retry limit exceeded.
    URX,
    /// No cluster found.
    NC,
    /// Upstream request timeout.
    UT,
    /// Upstream connection termination (reset or close mid-response).
    UC,
    /// Downstream connection termination.
    DC,
    /// Upstream protocol error.
    UPE,
    /// Downstream protocol error.
    DPE,
    /// Stream idle timeout.
    SI,
    /// Upstream max connection duration reached / duration timeout.
    DT,
    /// Delay injected by a fault.
    DI,
    /// Fault (abort) injected.
    FI,
}

impl Flag {
    /// As `%RESPONSE_FLAGS%` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::UH => "UH",
            Self::UF => "UF",
            Self::UO => "UO",
            Self::NR => "NR",
            Self::URX => "URX",
            Self::NC => "NC",
            Self::UT => "UT",
            Self::UC => "UC",
            Self::DC => "DC",
            Self::UPE => "UPE",
            Self::DPE => "DPE",
            Self::SI => "SI",
            Self::DT => "DT",
            Self::DI => "DI",
            Self::FI => "FI",
        }
    }

    /// As `%RESPONSE_FLAGS_LONG%` has it.
    pub fn long_name(self) -> &'static str {
        match self {
            Self::UH => "NoHealthyUpstream",
            Self::UF => "UpstreamConnectionFailure",
            Self::UO => "UpstreamOverflow",
            Self::NR => "NoRouteFound",
            Self::URX => "UpstreamRetryLimitExceeded",
            Self::NC => "NoClusterFound",
            Self::UT => "UpstreamRequestTimeout",
            Self::UC => "UpstreamConnectionTermination",
            Self::DC => "DownstreamConnectionTermination",
            Self::UPE => "UpstreamProtocolError",
            Self::DPE => "DownstreamProtocolError",
            Self::SI => "StreamIdleTimeout",
            Self::DT => "DurationTimeout",
            Self::DI => "DelayInjected",
            Self::FI => "FaultInjected",
        }
    }
}

/// Whose side of a connection speaks (the label `reporter` of Istio's metrics).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's: what a pod, or a gateway, calls.
    #[default]
    Source,
    /// The server's: what comes to a pod's own ports.
    Destination,
}

/// What happened to one request, or to one connection that was not HTTP.
#[derive(Clone, Debug)]
pub struct Record {
    /// The pod that this speaks of: the client, or on the server's side the server.
    pub workload: Arc<WorkloadId>,
    pub reporter: Reporter,
    pub start: SystemTime,
    pub duration: Duration,
    /// `HTTP/1.1`, `HTTP/2`, `HTTP/1.0`; None for TCP and TLS.
    pub protocol: Option<&'static str>,
    pub method: Option<Text>,
    pub path: Option<Text>,
    pub authority: Option<Text>,
    /// 0: none was sent.
    pub response_code: u16,
    pub flags: Vec<Flag>,
    /// Envoy's details: `via_upstream`, `route_not_found`, `direct_response` …
    pub response_code_details: Option<Text>,
    pub connection_termination_details: Option<String>,
    pub upstream_transport_failure_reason: Option<String>,
    /// Why the client's TLS handshake failed. Shown as `%CONNECTION_TERMINATION_DETAILS%` too, which stands in the default
    /// format.
    pub downstream_transport_failure_reason: Option<String>,
    /// Body bytes from the downstream (HTTP), or all bytes (TCP).
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// First byte sent upstream to first response head.
    pub upstream_service_time: Option<Duration>,
    /// Made here; that of the client's own is among its headers.
    pub request_id: Option<Uuid>,
    pub upstream_host: Option<UpstreamHost>,
    pub upstream_local_address: Option<SocketAddr>,
    pub downstream_local_address: Option<SocketAddr>,
    pub downstream_remote_address: Option<SocketAddr>,
    /// SPIFFE identity that the downstream has proved.
    pub source_identity: Option<Arc<str>>,
    /// The certificate that the downstream has proved to be its own, whoever issued it.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// The downstream's TLS was taken off here.
    pub downstream_tls: bool,
    pub downstream_session: Option<SessionParameters>,
    pub requested_server_name: Option<Arc<str>>,
    pub route_name: Option<Text>,
    pub cluster: Option<Arc<Cluster>>,
    /// Of what is in no table: PassthroughCluster, BlackHoleCluster, one that a route names in vain. See
    /// [`Record::cluster_name`].
    pub cluster_name: Option<Text>,
    /// True where TLS was originated and verified.
    pub upstream_tls: bool,
    /// gRPC status of the trailers (or head), where there is one.
    pub grpc_status: Option<u32>,
    /// The request's Content-Type is one of gRPC's.
    pub grpc: bool,
    /// For `%REQ(…)%` and `%RESP(…)%`: those that [`crate::engine::Sink`] has asked for.
    pub request_headers: Kept,
    pub response_headers: Kept,
}

impl Record {
    /// Name of the cluster, whether a table has it or not.
    pub fn cluster_name(&self) -> Option<&str> {
        self.cluster.as_deref().map(|cluster| cluster.name.as_str()).or(self.cluster_name.as_deref())
    }
}
