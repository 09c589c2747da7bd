//! The kernel half of egret: cgroup programs that send an enrolled pod's outbound TCP connections to the listener inside
//! that pod, and remember where each was going. Attached once, at the root of the cgroup tree, for all pods.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod object;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod sockops;

/// On the host there is nothing to run; the workspace still builds and lints as a whole.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
