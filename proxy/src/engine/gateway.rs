//! Connections to a gateway's listeners. What a listener speaks is declared, never guessed; which of its TLS servers is
//! meant, the client's hello says.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Engine, Snapshot,
    accept::{self, Arrival, ConnectionInfo, Rest},
    http,
    misdirected::Terminated,
    pod::Pod,
    raw::{self, Raw},
    sniff::{self, Expect, Kind, Prefixed},
    stream::{ClientIo, reset_on_close},
    terminate,
};
use crate::{
    limits,
    mesh::{Behind, Decision, DownstreamTls, ListenerId, Servers, TlsServers, TunnelRoute},
    telemetry::record::Flag,
};

/// Finds out what the connection is; what follows is to be run. None: it has ended.
pub(super) async fn arrived(
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    id: ListenerId,
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<Rest> {
    let original = match stream.local_addr() {
        Ok(original) => original,
        Err(error) => {
            log::debug!("{}: {peer} at {id:?}: {error}", pod.id);
            return None;
        }
    };
    let info = ConnectionInfo::new(Arrival::Gateway { listener: id, server: None }, original, peer);
    let snapshot = engine.snapshot();
    let workload = snapshot.mesh.workloads.get(&pod.id);
    let gateway = workload.and_then(|workload| workload.gateway.as_ref());
    let Some(listener) = gateway.and_then(|gateway| gateway.listeners.get(&id)).cloned() else {
        log::debug!("{}: the listener at {original} is not in the table any more; connection reset", pod.id);
        reset_on_close(&stream);
        return None;
    };
    match &listener.serves {
        Servers::Http(_) => {
            // HTTP asks the table anew for each request.
            drop((snapshot, listener));
            plain_http(engine, pod, stream, info).await
        }
        Servers::Tcp(route) => {
            let client = ClientIo::plain(Bytes::new(), stream);
            tunnel(engine, snapshot, pod, (client, false), info, route.as_ref())
        }
        Servers::Tls(servers) => Box::pin(tls(engine, snapshot, pod, stream, info, servers)).await,
    }
}

async fn plain_http(engine: Arc<Engine>, pod: Arc<Pod>, mut stream: TcpStream, info: ConnectionInfo) -> Option<Rest> {
    let (h2, first) = version(&engine, &mut stream).await?;
    let info = ConnectionInfo { h2, ..info };
    Some(http::serve(engine, pod, ClientIo::plain(first, stream), info))
}

/// Takes TLS off, where a server is meant.
async fn tls(
    engine: Arc<Engine>,
    snapshot: Arc<Snapshot>,
    pod: Arc<Pod>,
    mut stream: TcpStream,
    mut info: ConnectionInfo,
    servers: &TlsServers,
) -> Option<Rest> {
    let (kind, first) = match sniff::sniff(&mut stream, Expect::Tls, limits::HANDSHAKE_TIME).await {
        Ok(sniffed) => sniffed,
        Err(error) => {
            log::debug!("{}: {} before its first bytes: {error}", pod.id, info.peer);
            return None;
        }
    };
    if first.is_empty() {
        log::debug!("{}: {} sent nothing; closed", pod.id, info.peer);
        return None;
    }
    let client = |stream| Prefixed::new(first.clone(), stream);
    let Kind::Tls(hello) = kind else {
        let record = raw::record(&pod, &info);
        terminate::no_hello(&engine, client(stream), &first, info, record).await;
        return None;
    };
    info.sni = hello.sni.map(Arc::from);
    // Without a name only the server of every name can be meant.
    let server = info.sni.as_deref().map_or(servers.any.as_ref(), |sni| servers.get(sni));
    let mut record = raw::record(&pod, &info);
    let Some(server) = server else {
        record.flags.push(Flag::NR);
        record.response_code_details = Some("filter_chain_not_found".into());
        let raw = Raw { client: ClientIo::Plain(client(stream)), info, tls: true, connected: None };
        raw::reset(&engine, raw, record);
        return None;
    };
    let Arrival::Gateway { listener, .. } = info.arrival else { return None };
    info.arrival = Arrival::Gateway { listener, server: Some(server.name.clone()) };
    let context = match &server.tls {
        DownstreamTls::Refuse(reason) => Err(reason.to_string()),
        DownstreamTls::IstioMutual => snapshot.mesh_server(&pod.id),
        DownstreamTls::Terminate(settings) => snapshot.server(settings),
        DownstreamTls::Passthrough => {
            let Behind::Tunnel(route) = &server.serves else { return None };
            return tunnel(engine, snapshot, pod, (ClientIo::Plain(client(stream)), true), info, route.as_ref());
        }
    };
    let context = match context {
        Ok(context) => context,
        Err(why) => {
            terminate::refuse(&engine, ClientIo::Plain(client(stream)), info, record, &why);
            return None;
        }
    };
    let stream = terminate::take_off(&engine, &context, client(stream), &mut info, record).await?;
    info.terminated = Some(Arc::new(Terminated { server: server.clone(), context }));
    let mut client = ClientIo::tls(Bytes::new(), stream);
    match &server.serves {
        Behind::Tunnel(route) => tunnel(engine, snapshot, pod, (client, false), info, route.as_ref()),
        Behind::Http(_) => {
            drop(snapshot);
            let Some((h2, first)) = version(&engine, &mut client).await else {
                let _ = client.shutdown().await;
                return None;
            };
            let info = ConnectionInfo { h2, ..info };
            client.put_back(first);
            Some(http::serve(engine, pod, client, info))
        }
    }
}

/// Tells h2 from HTTP/1 by the first bytes, and nothing from either; a client may be as long idle before its first request
/// as after it. None: there will be no request.
async fn version<S: AsyncRead + Unpin>(engine: &Engine, stream: &mut S) -> Option<(bool, Bytes)> {
    let sniffed = tokio::select! {
        biased;
        sniffed = sniff::sniff(stream, Expect::Http, limits::IDLE_TIMEOUT) => sniffed,
        () = engine.ending(false).cancelled() => return None,
    };
    match sniffed {
        Ok((_, first)) if first.is_empty() => None,
        Ok((kind, first)) => Some((kind == Kind::Http2, first)),
        Err(error) => {
            log::debug!("a client before its first request: {error}");
            None
        }
    }
}

/// Bytes as they are, with whether they are the client's own TLS. The upstream is dialled at once: it may be the one that speaks first.
fn tunnel(
    engine: Arc<Engine>,
    snapshot: Arc<Snapshot>,
    pod: Arc<Pod>,
    (client, tls): (ClientIo, bool),
    info: ConnectionInfo,
    route: Option<&Arc<TunnelRoute>>,
) -> Option<Rest> {
    let raw = Raw { client, info, tls, connected: None };
    match route {
        Some(route) => Some(accept::raw(engine, snapshot, pod, raw, Decision::Route(route.clone()))),
        None => {
            raw::refuse(&engine, &pod, raw, Flag::NR, "route_not_found");
            None
        }
    }
}
