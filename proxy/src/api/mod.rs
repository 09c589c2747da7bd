//! Kubernetes, Istio and Gateway API objects as their authors wrote them: typed, with the position of each field kept
//! for messages. Nothing here knows what an object means; that is [`crate::mesh`].

pub mod core;
pub mod discovery;
pub mod gateway;
pub mod gateway_api;
pub mod istio;
pub mod kind;
pub mod meta;
pub mod objects;
pub mod path_template;
pub mod security;
pub mod sidecar;
pub mod virtual_service;

pub use kind::Kind;
pub use meta::{Diagnostic, ObjectId, ObjectMeta, Origin, Positions, Severity, Start, Written};
pub use objects::{AnyObject, Asked, CredentialRef, Object, Objects};
