//! From an endpoint to an upstream HTTP connection: pooled, or dialled and spoken to in the right version.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::InspectReader;

use super::{
    Connection,
    h1::client::Conn,
    pool::{Key, Lease, Meta, Pools, Sender, Wanted},
};
use crate::{
    engine::{
        Snapshot,
        accept::Arrival,
        balance::Counted,
        dial::{self, DialError, Picked, Target},
        stream::UpstreamIo,
    },
    limits,
    mesh::{Discovery, Pool, Protocol, UpstreamTls},
};

/// What the request wants of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// The client speaks h2; decides where the service leaves it open.
    pub client_h2: bool,
    /// An upgrade is asked for, which only HTTP/1.1 can do.
    pub upgrade: bool,
    /// It can do with a connection of our own: there is no body, and no upgrade is asked for.
    pub plain: bool,
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
    let context = dial::context(snapshot, &of.pod, target.cluster, &picked.endpoint)?;
    let name = context.as_deref().map(|context| context.name_text(dial::upstream_name(target)));
    let name = name.transpose().map_err(dial::refused)?;
    let wanted = Wanted {
        cluster: &target.cluster.name,
        address: &picked.endpoint.address,
        context_id: context.as_ref().map_or(0, |context| context.id),
        name: name.as_deref(),
        client: target.client,
    };
    let pool = &target.cluster.pool;
    // ALPN may choose h2 where the service does not say it: then the connection is found as h2, too.
    let may_h2 = !wants.upgrade && (wants.client_h2 || !pool.use_client_protocol);
    let offers_h2 = matches!(&target.cluster.tls, UpstreamTls::Originate(tls) if tls.alpn.iter().any(|p| p == "h2"));
    let h2 = h2(of, target, wants);
    let other = (offers_h2 && may_h2).then_some(!h2);
    if let Some(lease) = pooled(of, &wanted, h2, other, wants, pool).await {
        return Ok(lease);
    }
    // Boxed: most requests find a connection, and need no room for handshakes.
    Box::pin(opened(of, snapshot, target, picked, &wanted, (h2, other, may_h2), wants)).await
}

/// A new connection, or the next one that becomes free.
async fn opened(
    of: &Connection,
    snapshot: &Snapshot,
    target: &Target<'_>,
    picked: &Picked,
    wanted: &Wanted<'_>,
    (h2, other, may_h2): (bool, Option<bool>, bool),
    wants: Wants,
) -> Result<Lease, DialError> {
    let pools = &of.pod.http;
    let pool = &target.cluster.pool;
    let deadline = tokio::time::Instant::now() + pool.connect_timeout;
    let mut pending = None;
    loop {
        let freed = pools.freed();
        if let Some(lease) = pooled(of, wanted, h2, other, wants, pool).await {
            return Ok(lease);
        }
        match dial::dial(&of.engine, snapshot, &of.pod, target, picked, may_h2).await {
            Ok(upstream) => return establish(of, snapshot, target, upstream, h2, wants).await,
            Err(DialError::Overflow(limit)) => {
                pools.evict(&target.cluster.name);
                if pending.is_none() {
                    pending = of.pod.cluster(target.cluster).pending(pool);
                }
                if pending.is_none() || tokio::time::timeout_at(deadline, freed.wait()).await.is_err() {
                    return Err(DialError::Overflow(limit));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A connection from the pool, of the kind `h2` or else of the `other`. One of our own becomes hyper's where the request is
/// not for it.
async fn pooled(
    of: &Connection,
    wanted: &Wanted<'_>,
    h2: bool,
    other: Option<bool>,
    wants: Wants,
    pool: &Pool,
) -> Option<Lease> {
    let pools = &of.pod.http;
    loop {
        let mut lease = pools.checkout(wanted, h2, wants.plain).await;
        if let (None, Some(other)) = (&lease, other) {
            lease = pools.checkout(wanted, other, wants.plain).await;
        }
        let mut lease = lease?;
        if wants.plain {
            return Some(lease);
        }
        let Some(conn) = lease.take_own() else { return Some(lease) };
        if let Some((io, guard)) = conn.into_parts()
            && let Ok(sender) = Box::pin(http1(of, lease.meta.clone(), io, guard, pool)).await
        {
            lease.put(sender);
            return Some(lease);
        }
    }
}

async fn establish(
    of: &Connection,
    snapshot: &Snapshot,
    target: &Target<'_>,
    upstream: dial::Upstream,
    h2: bool,
    wants: Wants,
) -> Result<Lease, DialError> {
    let pool = &target.cluster.pool;
    let pools = &of.pod.http;
    let text = dial::address_text(&upstream.address);
    let key = Key {
        cluster: target.cluster.name.clone(),
        address: upstream.address,
        tls: upstream.key,
        client: target.client,
    };
    let meta = Meta::new(key, upstream.local, upstream.tls, snapshot.generation, pool);
    // A connection that broke before a byte came has answered nothing.
    let failed =
        |error: hyper::Error| DialError::Connect { address: text.clone(), source: Arc::new(io::Error::other(error)) };
    let (io, guard) = (upstream.io, upstream.guard);
    let sender = if upstream.h2 || h2 {
        http2(of, meta.clone(), io, guard, pool).await.map_err(failed)?
    } else if wants.plain && of.engine.own_http1() {
        pools.ended_by(&of.pod.closed, of.engine.draining());
        Sender::Own(Conn::new(io, guard))
    } else {
        http1(of, meta.clone(), io, guard, pool).await.map_err(failed)?
    };
    Ok(pools.add(sender, meta))
}

/// Speaks h2 on a new connection.
async fn http2(
    of: &Connection,
    meta: Arc<Meta>,
    io: UpstreamIo,
    guard: Counted,
    pool: &Pool,
) -> Result<Sender, hyper::Error> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(limits::HEAD_BYTES as u32)
        .initial_stream_window_size(limits::H2_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .handshake(counted(io, &meta))
        .await?;
    drive(of, meta, connection, guard, pool);
    Ok(Sender::H2(sender))
}

/// Has hyper speak HTTP/1.1.
async fn http1(
    of: &Connection,
    meta: Arc<Meta>,
    io: UpstreamIo,
    guard: Counted,
    pool: &Pool,
) -> Result<Sender, hyper::Error> {
    let builder = http1::Builder::new().max_headers(limits::HEAD_FIELDS).handshake(counted(io, &meta));
    let (sender, connection) = builder.await?;
    drive(of, meta, connection.with_upgrades(), guard, pool);
    Ok(Sender::H1(sender))
}

fn counted(io: UpstreamIo, meta: &Meta) -> TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    let read = meta.read.clone();
    TokioIo::new(InspectReader::new(io, move |bytes: &[u8]| {
        read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }))
}

fn drive<C>(of: &Connection, meta: Arc<Meta>, connection: C, guard: Counted, pool: &Pool)
where
    C: Future<Output: Send> + Send + 'static,
{
    let (weak, closed, draining) = (of.pod.http.downgrade(), of.pod.closed.clone(), of.engine.draining().clone());
    let driven = Pools::drive(weak, meta, connection, pool.http_idle_timeout, closed, draining);
    tokio::spawn(async move { (driven.await, drop(guard)) });
}
