//! From the in-pod listener to a decision: where was it going, what does it speak, what does the table say.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};

use super::{
    Engine, http,
    pod::Pod,
    raw::{self, Raw},
    silent::{self, First},
    sniff::{self, Kind, Prefixed},
    stream::reset_on_close,
};
use crate::{
    limits,
    mesh::{Decision, FirstBytes, ListenerId},
    telemetry::record::Flag,
};

/// How a downstream connection came to the engine; decides which table it is matched against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Captured on its way out of the pod.
    Outbound,
    /// At a gateway's listener; `server` names the TLS server that did the handshake.
    Gateway { listener: ListenerId, server: Option<Arc<str>> },
    /// From outside, to a port of the pod's own.
    Inbound,
}

/// What a listener is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Connections captured on their way out of the pod.
    Outbound,
    /// A listener of the pod's gateway, bound to an address of its own.
    Gateway(ListenerId),
    /// Connections to the pod's own ports, steered here: the accepted socket's own address is where they were going.
    Inbound,
}

/// What is known of a downstream connection before its first request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub arrival: Arrival,
    /// SPIFFE identity of the client, where mesh mTLS has proved it.
    pub identity: Option<Arc<str>>,
    /// The client spoke TLS, which was taken off here.
    pub tls: bool,
    /// The server name of the client's hello, whether its TLS was taken off or is passed on.
    pub sni: Option<Arc<str>>,
    /// The address the client dialled, before capture (a gateway's: the listener's own); v4-mapped addresses as IPv4.
    pub original: SocketAddr,
    /// The client's own address.
    pub peer: SocketAddr,
    /// The HTTP/2 preface was seen (prior knowledge); else HTTP/1.
    pub h2: bool,
    pub start: SystemTime,
    pub started: Instant,
}

/// Accepts until the engine drains or the pod is unenrolled.
pub(super) async fn run(engine: Arc<Engine>, listener: std::net::TcpListener, pod: Arc<Pod>, role: Role) {
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => return log::error!("{}: the listener cannot be used: {error}", pod.id),
    };
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = engine.draining().cancelled() => return,
            () = pod.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if failing {
                    log::info!("{}: accepting connections again", pod.id);
                    failing = false;
                }
                tokio::spawn(connection(engine.clone(), pod.clone(), role, stream, peer));
            }
            // What accept(2) says of a connection that is gone already; the listener is fine.
            Err(error) if of_the_connection(&error) => log::debug!("{}: accept: {error}", pod.id),
            Err(error) => {
                if !failing {
                    log::error!("{}: cannot accept connections: {error}; trying on (see `ulimit -n`)", pod.id);
                    failing = true;
                }
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// accept(2), "Error handling": network errors already pending on the new socket.
fn of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}

async fn connection(engine: Arc<Engine>, pod: Arc<Pod>, role: Role, stream: TcpStream, peer: SocketAddr) {
    let _in_flight = engine.enter();
    if role != Role::Outbound {
        log::debug!("{}: {peer}: nothing is served at {role:?} yet", pod.id);
        return reset_on_close(&stream);
    }
    let closed = pod.closed.clone();
    tokio::select! {
        biased;
        () = closed.cancelled() => {}
        () = decide(engine.clone(), pod, stream, peer) => {}
    }
}

async fn decide(engine: Arc<Engine>, pod: Arc<Pod>, mut stream: TcpStream, peer: SocketAddr) {
    let original = match pod.capture.original_destination(stream.as_fd()) {
        Ok(Some(original)) => canonical(original),
        Ok(None) => return log::debug!("{}: {peer} dialled the listener itself; closed", pod.id),
        Err(error) => {
            log::warn!("{}: where {peer} was going cannot be told: {error}; closed", pod.id);
            return reset_on_close(&stream);
        }
    };
    let info = ConnectionInfo {
        arrival: Arrival::Outbound,
        identity: None,
        tls: false,
        sni: None,
        original,
        peer: canonical(peer),
        h2: false,
        start: SystemTime::now(),
        started: Instant::now(),
    };
    let snapshot = engine.snapshot();
    let Some(outbound) = snapshot.outbound(&pod.id) else {
        log::debug!("{}: not in the table (any more); connection to {original} reset", pod.id);
        return reset_on_close(&stream);
    };
    if pod.is_listener(original) {
        log::warn!("{}: {peer} wants {original}, which is the proxy's own listener; reset", pod.id);
        return reset_on_close(&stream);
    }
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("{}: TCP_NODELAY: {error}", pod.id);
    }
    if outbound.first_bytes(original) == FirstBytes::None {
        let raw = Raw { stream, first: Bytes::new(), info, sni: None, tls: false, connected: None };
        return raw::serve(&engine, &snapshot, &pod, raw, outbound.tcp(original)).await;
    }
    let mut connected = None;
    let (kind, first) = loop {
        match sniff::sniff(&mut stream, limits::SNIFF_SILENCE).await {
            Ok((Kind::Silent, _)) => {}
            Ok(sniffed) => break sniffed,
            Err(error) => return log::debug!("{}: {peer} before its first bytes: {error}", pod.id),
        }
        let decision = raw::settle(outbound.tcp(original));
        match silent::first_to_speak(&engine, &snapshot, &pod, &stream, &info, &decision).await {
            First::Client(upstream) => connected = upstream.map(Ok),
            First::Server(connected) => {
                let connected = Some(connected);
                let raw = Raw { stream, first: Bytes::new(), info, sni: None, tls: false, connected };
                return raw::serve(&engine, &snapshot, &pod, raw, decision).await;
            }
            First::Nobody => {
                let raw = Raw { stream, first: Bytes::new(), info, sni: None, tls: false, connected: None };
                return match decision {
                    Decision::Block | Decision::Refuse(_) | Decision::Route(_) => {
                        raw::serve(&engine, &snapshot, &pod, raw, decision).await
                    }
                    _ => raw::refuse(&engine, &pod, raw, Flag::SI, "idle_timeout"),
                };
            }
        }
    };
    match kind {
        Kind::Http1 | Kind::Http2 => {
            // HTTP asks the table anew for each request.
            drop((snapshot, outbound, connected));
            let info = ConnectionInfo { h2: kind == Kind::Http2, ..info };
            Box::pin(http::serve(engine, pod, Prefixed::new(first, stream), info)).await;
        }
        Kind::Tls(hello) => {
            let decision = outbound.tls(original, hello.sni.as_deref());
            let raw = Raw { stream, first, info, sni: hello.sni, tls: true, connected: None };
            raw::serve(&engine, &snapshot, &pod, raw, decision).await;
        }
        // What might still become a request does not pass where a rule wants requests encrypted.
        Kind::Stalled { tls } if tls || outbound.wants_tls_on(original.port()) => {
            let raw = Raw { stream, first, info, sni: None, tls, connected: None };
            raw::refuse(&engine, &pod, raw, Flag::DPE, "first_bytes_incomplete");
        }
        Kind::Other | Kind::Silent | Kind::Stalled { .. } => {
            let raw = Raw { stream, first, info, sni: None, tls: false, connected };
            raw::serve(&engine, &snapshot, &pod, raw, outbound.tcp(original)).await;
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
