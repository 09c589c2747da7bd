//! A Kubernetes API server for tests, and pods as a kubelet makes them.
//!
//! The server lives in the test's process, on threads of its own; what speaks to it cannot tell it from a real one as far as
//! it goes (kube-rs, kubectl and curl do):
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use egret_tests::kube::{ApiServer, Fault, crds};
//!
//! let server = ApiServer::start()?;                         // 127.0.0.1, a free port, HTTPS
//! server.install_crds(crds::ISTIO)?;                         // kinds come and go at run time
//! let kubeconfig = server.kubeconfig("admin")?;              // a file; `admin` may do everything
//! server.apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
//! let token = server.service_account("shop", "egret")?;      // may do what the RBAC objects in the store say
//! let agents = server.kubeconfig_of(&token)?;
//! server.fault(Fault::too_many_requests(1).on("pods").verbs(&["list"]).times(2));
//! server.drop_watches();
//! server.stop();                                             // gone; `resume` brings it back on the same port
//! server.resume()?;
//! assert!(server.requests().iter().all(|seen| seen.code < 500));
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] is what a person with kubectl does, against any server; [`ApiServer`] has one as [`ApiServer::client`].
//! [`Node`] makes pods that are real: cgroups as the kubelet names them, with processes in a network namespace of the lab.

mod api;
mod certificates;
pub(crate) mod cgroups;
mod client;
mod container;
pub mod controller;
pub mod crds;
pub mod gateways;
pub mod host;
mod load;
mod node;
mod server;

pub use api::{Fault, Seen};
pub use cgroups::{Class, Driver, Runtime};
pub use client::Client;
pub use load::Load;
pub use node::{ALONE, ENROLLED, Node, NodePod};
pub use server::ApiServer;
