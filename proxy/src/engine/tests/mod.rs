//! The engine whole, over real loopback sockets: a client, the in-pod listener, real upstreams. What capture would
//! know is told by a table ([`super::host_sockets::Destinations`]).

pub mod authorization;
mod gateway;
mod gateway_tls;
mod inbound;
mod inbound_http;
mod inbound_ingress;
mod inbound_modes;
mod lab;
mod limits_and_ends;
mod mesh_mtls;
mod paths;
mod tls;
