//! A lab of network namespaces, in which the real agent is driven by real programs.
//!
//! A [`Lab`] is an "outside" namespace (router, DNS server, web servers, a capture of the wire) and any number of pods,
//! each a namespace of its own that reaches the outside through one veth pair. The agent runs where it runs in
//! production, in the host's namespaces; only the clients run inside the pods. Nothing in a lab touches an address of
//! the host, so labs run side by side, and everything a lab made goes with it, also on a panic: what a killed test
//! process left behind is swept away by the next lab.

mod agent;
pub mod bench;
mod held;
pub mod image;
#[cfg(feature = "kube")]
pub mod kube;
mod lab;
mod netns;
pub mod objects;
mod outside;
mod pki;
mod pod;
mod process;
mod python;
mod steady;
mod wire;

pub use agent::{Agent, agent_binary, egret};
pub use held::Held;
pub use lab::{Backends, Lab, sweep};
pub use netns::Netns;
pub use outside::{Hit, names};
pub use pki::{CLIENT_DN, Pki};
pub use pod::{Pod, Reply};
pub use process::{Daemon, is_root, line, read, run, run_in, until};
pub use python::{REQUIREMENTS, environment as python_environment, python};
pub use steady::under_load;
pub use wire::Wire;
