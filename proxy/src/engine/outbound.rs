//! Connections captured on their way out of a pod: where was it going, what does it speak, what does the table say.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    Engine,
    accept::{Arrival, ConnectionInfo},
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

pub(super) async fn arrived(engine: Arc<Engine>, pod: Arc<Pod>, mut stream: TcpStream, peer: SocketAddr) {
    let original = match pod.capture.original_destination(stream.as_fd()) {
        Ok(Some(original)) => original,
        Ok(None) => return log::debug!("{}: {peer} dialled the listener itself; closed", pod.id),
        Err(error) => {
            log::warn!("{}: where {peer} was going cannot be told: {error}; closed", pod.id);
            return reset_on_close(&stream);
        }
    };
    let info = ConnectionInfo::new(Arrival::Outbound, original, peer);
    let original = info.original;
    let unknown = || log::debug!("{}: not in the table (any more); connection to {original} reset", pod.id);
    let mut snapshot = engine.snapshot();
    let Some(mut outbound) = snapshot.outbound(&pod.id) else {
        unknown();
        return reset_on_close(&stream);
    };
    if pod.is_listener(original) {
        log::warn!("{}: {peer} wants {original}, which is the proxy's own listener; reset", pod.id);
        return reset_on_close(&stream);
    }
    if outbound.first_bytes(original) == FirstBytes::None {
        let raw = Raw { client: plain(stream), info, tls: false, connected: None };
        return raw::serve(&engine, &snapshot, &pod, raw, outbound.tcp(original)).await;
    }
    let mut connected = None;
    let (kind, first) = loop {
        match sniff::sniff(&mut stream, Expect::Anything, limits::SNIFF_SILENCE).await {
            Ok((Kind::Silent, _)) => {}
            Ok(sniffed) => break sniffed,
            Err(error) => return log::debug!("{}: {peer} before its first bytes: {error}", pod.id),
        }
        let decision = raw::settle(outbound.tcp(original));
        let spoke = silent::first_to_speak(&engine, &snapshot, &pod, &stream, &info, &decision).await;
        let now = engine.snapshot();
        if !Arc::ptr_eq(&now, &snapshot) && !matches!(spoke, First::Nobody) {
            // It has been silent through a reload: it is treated as if it came now.
            let Some(table) = now.outbound(&pod.id) else {
                unknown();
                return reset_on_close(&stream);
            };
            (snapshot, outbound, connected) = (now, table, None);
            continue;
        }
        match spoke {
            First::Client(upstream) => connected = upstream.map(Ok),
            First::Server(connected) => {
                let connected = Some(connected);
                let raw = Raw { client: plain(stream), info, tls: false, connected };
                return raw::serve(&engine, &snapshot, &pod, raw, decision).await;
            }
            First::Nobody => {
                let raw = Raw { client: plain(stream), info, tls: false, connected: None };
                return match decision {
                    Decision::Block | Decision::Refuse(_) | Decision::Route(_) => {
                        raw::serve(&engine, &snapshot, &pod, raw, decision).await
                    }
                    Decision::Cluster(ref cluster) if silent::denied(&snapshot, &pod, &raw.info, cluster) => {
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
            Box::pin(http::serve(engine, pod, ClientIo::plain(first, stream), info)).await;
        }
        Kind::Tls(hello) => {
            let decision = outbound.tls(original, hello.sni.as_deref());
            let info = ConnectionInfo { sni: hello.sni.map(Arc::from), ..info };
            let raw = Raw { client: ClientIo::plain(first, stream), info, tls: true, connected: None };
            raw::serve(&engine, &snapshot, &pod, raw, decision).await;
        }
        // What might still become a request does not pass where a rule wants requests encrypted.
        Kind::Stalled { tls } if tls || outbound.wants_tls_on(original.port()) => {
            let raw = Raw { client: ClientIo::plain(first, stream), info, tls, connected: None };
            raw::refuse(&engine, &pod, raw, Flag::DPE, "first_bytes_incomplete");
        }
        Kind::Other | Kind::Silent | Kind::Stalled { .. } => {
            let raw = Raw { client: ClientIo::plain(first, stream), info, tls: false, connected };
            raw::serve(&engine, &snapshot, &pod, raw, outbound.tcp(original)).await;
        }
    }
}

/// A client of which nothing was read.
fn plain(stream: TcpStream) -> ClientIo {
    ClientIo::plain(Bytes::new(), stream)
}
