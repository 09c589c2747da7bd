//! Connections captured on their way out of a pod: where was it going, what does it speak, what does the table say.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    Engine,
    accept::{self, Arrival, ConnectionInfo, Rest},
    http,
    pod::Pod,
    raw::{self, Raw},
    silent::{self, First},
    sniff::{self, Expect, Kind},
    stream::{ClientIo, reset_on_close},
};
use crate::{
    limits,
    mesh::{Decision, FirstBytes},
    telemetry::record::Flag,
};

/// Finds out what the connection is; what follows is to be run. None: it has ended.
pub(super) async fn arrived(
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Option<Rest> {
    let original = match pod.capture.original_destination(stream.as_fd()) {
        Ok(Some(original)) => original,
        Ok(None) => {
            log::debug!("{}: {peer} dialled the listener itself; closed", pod.id);
            return None;
        }
        Err(error) => {
            log::warn!("{}: where {peer} was going cannot be told: {error}; closed", pod.id);
            reset_on_close(&stream);
            return None;
        }
    };
    let info = ConnectionInfo::new(Arrival::Outbound, original, peer);
    let original = info.original;
    let unknown = || log::debug!("{}: not in the table (any more); connection to {original} reset", pod.id);
    let mut snapshot = engine.snapshot();
    let Some(mut outbound) = snapshot.outbound(&pod.id) else {
        unknown();
        reset_on_close(&stream);
        return None;
    };
    if pod.is_listener(original) {
        log::warn!("{}: {peer} wants {original}, which is the proxy's own listener; reset", pod.id);
        reset_on_close(&stream);
        return None;
    }
    if outbound.first_bytes(original) == FirstBytes::None {
        let raw = Raw { client: plain(stream), info, tls: false, connected: None };
        let decision = outbound.tcp(original);
        return Some(accept::raw(engine, snapshot, pod, raw, decision));
    }
    let mut connected = None;
    let (kind, first) = loop {
        match sniff::sniff(&mut stream, Expect::Anything, limits::SNIFF_SILENCE).await {
            Ok((Kind::Silent, _)) => {}
            Ok(sniffed) => break sniffed,
            Err(error) => {
                log::debug!("{}: {peer} before its first bytes: {error}", pod.id);
                return None;
            }
        }
        let decision = raw::settle(outbound.tcp(original));
        let spoke = silent::first_to_speak(&engine, &snapshot, &pod, &stream, &info, &decision).await;
        let now = engine.snapshot();
        if !Arc::ptr_eq(&now, &snapshot) && !matches!(spoke, First::Nobody) {
            // It has been silent through a reload: it is treated as if it came now.
            let Some(table) = now.outbound(&pod.id) else {
                unknown();
                reset_on_close(&stream);
                return None;
            };
            (snapshot, outbound, connected) = (now, table, None);
            continue;
        }
        match spoke {
            First::Client(upstream) => connected = upstream.map(Ok),
            First::Server(connected) => {
                let connected = Some(connected);
                let raw = Raw { client: plain(stream), info, tls: false, connected };
                return Some(accept::raw(engine, snapshot, pod, raw, decision));
            }
            First::Nobody => {
                let raw = Raw { client: plain(stream), info, tls: false, connected: None };
                let told = match &decision {
                    Decision::Block | Decision::Refuse(_) | Decision::Route(_) => true,
                    Decision::Cluster(cluster) => silent::denied(&snapshot, &pod, &raw.info, cluster),
                    Decision::Passthrough => false,
                };
                if told {
                    return Some(accept::raw(engine, snapshot, pod, raw, decision));
                }
                raw::refuse(&engine, &pod, raw, Flag::SI, "idle_timeout");
                return None;
            }
        }
    };
    match kind {
        Kind::Http1 | Kind::Http2 => {
            // HTTP asks the table anew for each request.
            let info = ConnectionInfo { h2: kind == Kind::Http2, ..info };
            Some(http::serve(engine, pod, ClientIo::plain(first, stream), info))
        }
        Kind::Tls(hello) => {
            let decision = outbound.tls(original, hello.sni.as_deref());
            let info = ConnectionInfo { sni: hello.sni.map(Arc::from), ..info };
            let raw = Raw { client: ClientIo::plain(first, stream), info, tls: true, connected: None };
            Some(accept::raw(engine, snapshot, pod, raw, decision))
        }
        // What might still become a request does not pass where a rule wants requests encrypted.
        Kind::Stalled { tls } if tls || outbound.wants_tls_on(original.port()) => {
            let raw = Raw { client: ClientIo::plain(first, stream), info, tls, connected: None };
            raw::refuse(&engine, &pod, raw, Flag::DPE, "first_bytes_incomplete");
            None
        }
        Kind::Other | Kind::Silent | Kind::Stalled { .. } => {
            let raw = Raw { client: ClientIo::plain(first, stream), info, tls: false, connected };
            let decision = outbound.tcp(original);
            Some(accept::raw(engine, snapshot, pod, raw, decision))
        }
    }
}

/// A client of which nothing was read.
fn plain(stream: TcpStream) -> ClientIo {
    ClientIo::plain(Bytes::new(), stream)
}
