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
mod probes;
mod tls;

const HYPER_ONLY: bool = false;

/// The same tests once more, with hyper at both ends of HTTP/1.1: the two ways must not differ.
#[path = "."]
#[expect(clippy::duplicate_mod, reason = "the same tests on another way through the engine")]
mod on_hyper {
    mod authorization;
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
    mod probes;
    mod tls;

    const HYPER_ONLY: bool = true;
}
