//! From an endpoint to an upstream HTTP connection: pooled, or dialled and spoken to in the right version.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::io::InspectReader;

use super::{
    Connection,
    pool::{Key, Lease, Meta, Pools, Sender},
};
use crate::{
    engine::{
        Snapshot,
        accept::Arrival,
        dial::{self, DialError, Picked, Target},
    },
    limits,
    mesh::{Discovery, Protocol, UpstreamTls},
};

/// What the request wants of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// The client speaks h2; decides where the service leaves it open.
    pub client_h2: bool,
    /// An upgrade is asked for, which only HTTP/1.1 can do.
    pub upgrade: bool,
}

/// Whether to speak h2 where ALPN has not said so.
fn h2(of: &Connection, target: &Target<'_>, wants: Wants) -> bool {
    let application = matches!(target.cluster.discovery, Discovery::Application(_));
    let open = match target.cluster.protocol {
        // What a pod's own port is declared to speak is all that its application understands.
        Protocol::Http2 | Protocol::Grpc if application => true,
        _ if target.cluster.pool.use_client_protocol => wants.client_h2,
        Protocol::Http2 | Protocol::Grpc => true,
        // A gateway offers h2 to every client, so what the client took says nothing of the service.
        Protocol::Auto => wants.client_h2 && !matches!(of.info.arrival, Arrival::Gateway { .. }),
        _ => target.cluster.pool.h2_upgrade,
    };
    open && !wants.upgrade
}

/// A connection to what was picked. Waits for a free one where `maxConnections` are open.
pub async fn connection(
    of: &Connection,
    snapshot: &Snapshot,
    target: &Target<'_>,
    picked: &Picked,
    wants: Wants,
) -> Result<Lease, DialError> {
    let tls = dial::tls_key(snapshot, &of.pod, target, &picked.endpoint)?;
    let key = Key {
        cluster: target.cluster.name.clone(),
        address: picked.endpoint.address.clone(),
        tls,
        client: target.client,
    };
    let pools = &of.pod.http;
    let pool = &target.cluster.pool;
    // ALPN may choose h2 where the service does not say it: then the connection is found as h2, too.
    let may_h2 = !wants.upgrade && (wants.client_h2 || !pool.use_client_protocol);
    let offers_h2 = matches!(&target.cluster.tls, UpstreamTls::Originate(tls) if tls.alpn.iter().any(|p| p == "h2"));
    let either = offers_h2 && may_h2;
    let deadline = tokio::time::Instant::now() + pool.connect_timeout;
    let mut pending = None;
    loop {
        let freed = pools.freed();
        let h2 = h2(of, target, wants);
        if let Some(lease) = pools.checkout(&key, h2).await {
            return Ok(lease);
        }
        if either && let Some(lease) = pools.checkout(&key, !h2).await {
            return Ok(lease);
        }
        match dial::dial(&of.engine, snapshot, &of.pod, target, picked, may_h2).await {
            Ok(upstream) => return establish(of, snapshot, target, key, upstream, h2).await,
            Err(DialError::Overflow(limit)) => {
                pools.evict(&target.cluster.name);
                if pending.is_none() {
                    pending = of.pod.cluster(target.cluster).pending(pool);
                }
                if pending.is_none() || tokio::time::timeout_at(deadline, freed).await.is_err() {
                    return Err(DialError::Overflow(limit));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

async fn establish(
    of: &Connection,
    snapshot: &Snapshot,
    target: &Target<'_>,
    key: Key,
    upstream: dial::Upstream,
    h2: bool,
) -> Result<Lease, DialError> {
    let pool = &target.cluster.pool;
    let pools = &of.pod.http;
    let read = Arc::new(AtomicU64::new(0));
    let key = Key { address: upstream.address.clone(), tls: upstream.key.clone(), ..key };
    let text = dial::address_text(&upstream.address);
    let meta = Meta::new(key, upstream.local, upstream.tls, read.clone(), snapshot.generation, pool);
    let failed =
        |error: hyper::Error| DialError::Connect { address: text.clone(), source: Arc::new(io::Error::other(error)) };
    // A connection that broke before a byte came has answered nothing.
    let count = move |bytes: &[u8]| {
        read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    };
    let io = TokioIo::new(InspectReader::new(upstream.io, count));
    let (weak, closed, idle, guard) =
        (pools.downgrade(), of.pod.closed.clone(), pool.http_idle_timeout, upstream.guard);
    let draining = of.engine.draining().clone();
    let sender = if upstream.h2 || h2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(limits::HEAD_BYTES as u32)
            .initial_stream_window_size(limits::H2_WINDOW)
            .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
            .handshake(io)
            .await
            .map_err(failed)?;
        let driven = Pools::drive(weak, meta.clone(), connection, idle, closed, draining);
        tokio::spawn(async move { (driven.await, drop(guard)) });
        Sender::H2(sender)
    } else {
        let (sender, connection) =
            http1::Builder::new().max_headers(limits::HEAD_FIELDS).handshake(io).await.map_err(failed)?;
        let driven = Pools::drive(weak, meta.clone(), connection.with_upgrades(), idle, closed, draining);
        tokio::spawn(async move { (driven.await, drop(guard)) });
        Sender::H1(sender)
    };
    Ok(pools.add(sender, meta))
}
