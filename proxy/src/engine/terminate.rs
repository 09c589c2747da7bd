//! TLS taken off a downstream connection: the handshake within its time, and a failure told once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::{
    Engine,
    accept::{Arrival, ConnectionInfo},
    copy::Carried,
    raw::{self, Raw},
    sniff::Prefixed,
    stream::ClientIo,
};
use crate::{
    limits,
    telemetry::record::{Flag, Record},
    tls::{ServerContext, SessionParameters, alert, client_fault, peer_certificate, peer_identity},
};

/// Does the handshake; `info` then knows the client. None: it failed, `record` tells why and is written.
pub(super) async fn take_off(
    engine: &Engine,
    context: &ServerContext,
    stream: Prefixed<TcpStream>,
    info: &mut ConnectionInfo,
    mut record: Record,
) -> Option<TlsStream<Prefixed<TcpStream>>> {
    let begun = Instant::now();
    // A gateway's clients have come to shake hands; to a port that takes plain text too, one may have come for other things.
    let spent = match info.arrival {
        Arrival::Gateway { .. } => info.started.elapsed(),
        Arrival::Outbound | Arrival::Inbound => Duration::ZERO,
    };
    let handshake = timeout(limits::HANDSHAKE_TIME.saturating_sub(spent), context.accept(stream)).await;
    let (why, stream) = match handshake {
        Ok(Ok(stream)) => {
            engine.sink().handshake_accepted(&record.workload, Ok(()), begun.elapsed());
            info.tls = true;
            info.session = SessionParameters::of(stream.get_ref().1);
            info.certificate = peer_certificate(stream.get_ref().1).map(Arc::new);
            if context.is_mesh() {
                info.identity = peer_identity(stream.get_ref().1);
            }
            return Some(stream);
        }
        Ok(Err((error, stream))) => (client_fault(&error), stream),
        Err(_) => ("the client did not finish the TLS handshake in time".to_owned(), None),
    };
    engine.sink().handshake_accepted(&record.workload, Err(&why), begun.elapsed());
    log::debug!("{}: {}: {why}", record.workload, info.peer);
    record.flags.push(Flag::DPE);
    record.downstream_transport_failure_reason = Some(format!("TLS_error: {why}"));
    raw::finish(engine, record, info.started, Carried::default());
    if let Some(stream) = stream {
        linger(stream).await;
    }
    None
}

/// Ends a connection before its handshake: there is nothing to do it with.
pub(super) fn refuse(engine: &Engine, client: ClientIo, info: ConnectionInfo, mut record: Record, why: &str) {
    // The reason was said at the reload, and is in the access log: whoever calls must not fill the agent's own.
    log::debug!("{}: TLS connection to {} refused: {why}", record.workload, info.original);
    record.flags.push(Flag::NR);
    record.downstream_transport_failure_reason = Some(format!("TLS_error: {why}"));
    raw::reset(engine, Raw { client, info, tls: true, connected: None }, record);
}

/// Ends a connection on which a ClientHello was due: with an alert where what came (`first`, which the stream bears too) is TLS
/// at all, else with a reset.
pub(super) async fn no_hello(
    engine: &Engine,
    mut stream: Prefixed<TcpStream>,
    first: &[u8],
    info: ConnectionInfo,
    mut record: Record,
) {
    let Some((alert, why)) = alert(first) else {
        record.response_code_details = Some("filter_chain_not_found".into());
        record.flags.push(Flag::NR);
        let raw = Raw { client: ClientIo::Plain(stream), info, tls: true, connected: None };
        return raw::reset(engine, raw, record);
    };
    record.flags.push(Flag::DPE);
    record.downstream_transport_failure_reason = Some(format!("TLS_error: {why}"));
    raw::finish(engine, record, info.started, Carried::default());
    if stream.write_all(&alert).await.is_ok() {
        linger(stream).await;
    }
}

/// Lets the alert arrive: closing with unread bytes makes the kernel send a reset, which would overtake it.
async fn linger(mut stream: Prefixed<TcpStream>) {
    let rest = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut scratch = [0; 1024];
        let mut left = limits::LINGER_BYTES;
        while let Ok(count @ 1..) = stream.read(&mut scratch).await {
            left = left.saturating_sub(count);
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(limits::LINGER_TIME, rest).await;
}
