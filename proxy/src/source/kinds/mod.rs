//! One reader for each kind: a document's tree to a typed spec, checked as the kind's own validation does.

pub mod core;
pub mod destination_rule;
pub mod endpoint_slice;
pub mod gateway;
pub mod gateway_api;
pub mod mesh_config;
pub mod meta;
mod probes;
pub mod security;
pub mod service_entry;
pub mod sidecar;
pub mod traffic_policy;
pub mod virtual_service;
pub mod volumes;
