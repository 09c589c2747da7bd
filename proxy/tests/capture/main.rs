//! Capture against the real kernel: real sockets in real network namespaces, as root.
//!
//! The agent's half runs in a child process, because starting capture moves the whole process into the cgroup that is
//! exempt; clients are children of the test process, which stays outside it.

mod agent;
mod clients;
mod inbound;
mod inbound_closed;
mod lab;
mod left_alone;
mod lifecycle;
mod original_source;
mod other_programs;
