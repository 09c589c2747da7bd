//! From the in-pod listener to a decision.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{Engine, pod::Pod};

/// What is known of a downstream connection before its first request.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionInfo {
    /// The address the client dialled, before capture.
    pub original: SocketAddr,
    /// The client's own address.
    pub peer: SocketAddr,
    /// The HTTP/2 preface was seen (prior knowledge); else HTTP/1.
    pub h2: bool,
    pub start: SystemTime,
    pub started: Instant,
}

pub(super) async fn run(engine: Arc<Engine>, listener: std::net::TcpListener, pod: Arc<Pod>) {
    drop((engine, listener, pod));
}
