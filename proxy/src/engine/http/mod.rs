//! HTTP proxying.

use std::sync::Arc;

use super::{Engine, accept::ConnectionInfo, pod::Pod, sniff::Prefixed};

/// Upstream connections that wait for the next request, for one pod.
#[derive(Default)]
pub struct Pools {}

/// Serves the HTTP connection to its end.
pub async fn serve(engine: Arc<Engine>, pod: Arc<Pod>, io: Prefixed<tokio::net::TcpStream>, info: ConnectionInfo) {
    drop((engine, pod, io, info));
}
