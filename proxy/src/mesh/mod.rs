//! The pure compiler: objects in, one immutable table out. No I/O and no clock, so that `egret check` and
//! `egret explain` use it as it is and a fuzzer can.

mod amend;
pub mod authorization;
mod check;
pub mod cluster;
mod clusters;
mod compile;
mod enrol;
mod findings;
pub mod gateway_api;
mod gateways;
mod guard;
mod guarded;
mod host;
mod imports;
pub mod inbound;
mod index;
pub mod listeners;
mod locality;
mod lookup;
mod matching;
mod names;
mod origination;
mod origins;
mod own_ports;
mod pages;
pub mod paths;
mod peer_authentications;
mod peers;
mod protocol;
mod registry;
pub mod request_match;
pub mod routing;
mod rules;
mod scopes;
pub mod server_tls;
mod sidecars;
pub mod table;
mod termination;
mod unimported;
mod view;
mod virtual_services;
mod volumes;

pub use amend::amend;
pub use authorization::{Attributes, Policies, Verdict};
pub use compile::compile;
pub use enrol::{NETNS, Netns, NodePods, concerns_node, node_pods};
pub use host::{authority_host, canonical, covers};
pub use inbound::*;
pub use index::Index;
pub use listeners::*;
pub use locality::augmented as topology_labels;
pub use matching::RequestHead;
pub use names::CLUSTER_DOMAIN;
pub use origins::Origins;
pub use routing::*;
pub use server_tls::*;
pub use table::*;
pub use unimported::Unimported;
pub use volumes::SYSTEM_BUNDLES;

#[cfg(test)]
mod tests;
