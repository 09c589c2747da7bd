//! discovery.k8s.io: where the endpoints of a Service are and how they do, as the cluster's own controllers say.

use std::net::IpAddr;

/// Label of a slice: the Service of its namespace whose endpoints it holds.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// TCP ports, the same for all endpoints.
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlicePort {
    /// That of the Service's port; empty where the Service has one without a name.
    pub name: String,
    /// None: the Service's own number.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses, all of which mean the same (`addresses`).
    pub address: IpAddr,
    /// `conditions.ready`; absent: yes.
    pub ready: bool,
    /// `conditions.serving`; absent: as `ready`.
    pub serving: bool,
    pub terminating: bool,
    /// `targetRef` of kind Pod: namespace and name.
    pub pod: Option<(String, String)>,
}
