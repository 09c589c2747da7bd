//! Connections from outside to a pod's own ports. Mesh mTLS is taken off (PERMISSIVE), everything else goes on to the
//! application as it is.
//!
//! The application is dialled at once, while the client's first bytes are looked at: a port on which nobody listens is
//! refused without delay, and an application that speaks first is heard.

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc};

use bytes::Bytes;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Engine,
    accept::{Arrival, ConnectionInfo},
    client_hello::ClientHello,
    copy::Limits,
    dial::DialError,
    pod::Pod,
    raw::{self, Opened, Raw},
    silent::{self, Spoke},
    sniff::{self, Expect, Kind, Prefixed},
    stream::{ClientIo, Socket, UpstreamIo, reset_on_close},
    terminate,
};
use crate::{
    limits,
    telemetry::record::{Flag, Record},
};

pub(super) async fn arrived(
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    mut stream: TcpStream,
    peer: SocketAddr,
    own_port: u16,
) {
    let to = match pod.capture.inbound_destination(stream.as_fd()) {
        Ok(to) => unmapped(to),
        Err(error) => {
            log::warn!("{}: where {peer} was going cannot be told: {error}; closed", pod.id);
            return reset_on_close(&stream);
        }
    };
    let info = ConnectionInfo::new(Arrival::Inbound, to, peer);
    let Some(workload) = engine.snapshot().mesh.workloads.get(&pod.id).cloned() else {
        log::debug!("{}: not in the table (any more); connection to {to} reset", pod.id);
        return reset_on_close(&stream);
    };
    // Dialling it would lead back here.
    if to.port() == own_port || pod.is_listener(to) {
        log::debug!("{}: {peer} dialled the proxy's own listener at {to}; reset", pod.id);
        return reset_on_close(&stream);
    }
    let mut record = raw::record(&pod, &info);
    record.cluster_name = Some(format!("inbound|{}||", to.port()));
    record.upstream_host = Some(to.to_string());
    let dialled = async { dial(&pod, to).await.map_err(Failed::Dial) };
    let first = async { sniff::sniff(&mut stream, Expect::Tls, limits::SNIFF_SILENCE).await.map_err(Failed::Client) };
    let (app, (kind, first)) = match tokio::try_join!(dialled, first) {
        Ok(both) => both,
        Err(failed) => return failed.end(&engine, stream, info, record),
    };
    record.upstream_local_address = app.local_addr().ok();
    let mut app = UpstreamIo::Plain(Socket::Tcp(app));
    let (kind, first, said) = match kind {
        Kind::Silent => match silent::first_of(&stream, &mut app, limits::IDLE_TIMEOUT).await {
            Spoke::Server(said) => (Kind::Other, Bytes::new(), said),
            Spoke::Client => match sniff::sniff(&mut stream, Expect::Tls, limits::HEAD_TIME).await {
                Ok((kind, first)) => (kind, first, Bytes::new()),
                Err(error) => return Failed::Client(error).end(&engine, stream, info, record),
            },
            Spoke::Nobody => return Failed::Idle.end(&engine, stream, info, record),
        },
        kind => (kind, first, Bytes::new()),
    };
    let mut coming = Coming { stream: Prefixed::new(first, stream), info, record };
    if let Kind::Tls(hello) = kind {
        coming.named(&hello);
        if workload.inbound.is_some() && is_mesh(&hello) {
            return Box::pin(mesh(&engine, &pod, coming, app)).await;
        }
    }
    let Coming { stream, info, record } = coming;
    let _opened = Opened::new(&engine, &record);
    let raw = Raw { client: ClientIo::Plain(stream), info, tls: false, connected: None };
    raw::carry(&engine, raw, Prefixed::new(said, app), LIMITS, record).await;
}

/// As long as a tunnel may be idle anywhere.
const LIMITS: Limits = Limits { idle: limits::IDLE_TIMEOUT, until: None };

/// What ended a connection before it began.
enum Failed {
    Dial(DialError),
    Client(io::Error),
    /// Neither side said a word.
    Idle,
}

impl Failed {
    fn end(self, engine: &Engine, stream: TcpStream, info: ConnectionInfo, mut record: Record) {
        match self {
            Self::Dial(error) => {
                log::debug!("{}: {error}", record.workload);
                record.flags.push(error.flag());
                record.upstream_transport_failure_reason = error.reason();
            }
            Self::Client(error) => {
                log::debug!("{}: {} before its first bytes: {error}", record.workload, info.peer);
                record.flags.push(Flag::DC);
            }
            Self::Idle => {
                record.flags.push(Flag::SI);
                record.connection_termination_details = Some("idle_timeout".to_owned());
            }
        }
        let raw = Raw { client: ClientIo::plain(Bytes::new(), stream), info, tls: false, connected: None };
        raw::reset(engine, raw, record);
    }
}

/// A connection whose first bytes were seen.
struct Coming {
    stream: Prefixed<TcpStream>,
    info: ConnectionInfo,
    record: Record,
}

impl Coming {
    fn named(&mut self, hello: &ClientHello) {
        self.record.requested_server_name.clone_from(&hello.sni);
        self.info.sni = hello.sni.as_deref().map(Arc::from);
    }
}

/// Mesh mTLS offers protocols that nothing else does: `istio`, `istio-peer-exchange`, `istio-http/1.1`, `istio-h2` …
fn is_mesh(hello: &ClientHello) -> bool {
    hello.alpn.iter().any(|protocol| protocol.starts_with("istio"))
}

/// Takes mesh mTLS off; the application gets what is inside.
async fn mesh(engine: &Arc<Engine>, pod: &Pod, coming: Coming, app: UpstreamIo) {
    let Coming { stream, mut info, mut record } = coming;
    let context = match engine.snapshot().mesh_server(&pod.id) {
        Ok(context) => context,
        Err(why) => return terminate::refuse(engine, ClientIo::Plain(stream), info, record, &why),
    };
    let failed = record.clone();
    let Some(stream) = terminate::take_off(engine, &context, stream, &mut info, failed).await else { return };
    record.source_identity.clone_from(&info.identity);
    record.downstream_tls = true;
    let _opened = Opened::new(engine, &record);
    let raw = Raw { client: ClientIo::tls(Bytes::new(), stream), info, tls: false, connected: None };
    raw::carry(engine, raw, Prefixed::new(Bytes::new(), app), LIMITS, record).await;
}

/// To the application at the address that the client dialled. From that same address, by which the kernel knows a connection
/// that was passed on from one that arrives, and steers only the latter here.
async fn dial(pod: &Pod, to: SocketAddr) -> Result<TcpStream, DialError> {
    let attempt = async {
        let socket = pod.sockets.tcp(to)?;
        // The port is chosen at connect, so that it need only be free towards this destination.
        if let Err(error) = nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true) {
            log::debug!("{}: IP_BIND_ADDRESS_NO_PORT: {error}", pod.id);
        }
        let mut from = to;
        from.set_port(0);
        socket.bind(from)?;
        let stream = socket.connect(to).await?;
        not_itself(&stream)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match timeout(limits::CONNECT_TIMEOUT, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(DialError::Connect { address: to.to_string(), source: Arc::new(error) }),
        Err(_) => Err(DialError::Timeout { address: to.to_string() }),
    }
}

/// Where nobody listens on a port from which connections are made, the kernel may choose that very port for ours: it then
/// is connected with itself, and a stranger would get back what it sends.
fn not_itself(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// A v4-mapped address as IPv4; a link-local one keeps its interface.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().map_or(address, |v4| (v4, v6.port()).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_connected_with_itself_is_no_application() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        let stream = socket.connect(own).await.unwrap();
        assert_eq!(not_itself(&stream).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        not_itself(&stream).unwrap();
    }
}
