//! Accepting connections, and what is known of each before its first byte.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{io::unix::AsyncFd, net::TcpStream};

use super::{
    Engine, InFlight, Snapshot, gateway, inbound,
    misdirected::Terminated,
    outbound,
    pod::Pod,
    probes::Probing,
    raw::{self, Raw},
    woken::when_woken,
};
use crate::{
    limits,
    mesh::{Decision, ListenerId, ServerTlsSettings},
    sys,
    tls::{ClientCertificate, SessionParameters},
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
    /// The certificate that the client has proved to be its own, whoever issued it.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The client spoke TLS, which was taken off here.
    pub tls: bool,
    /// What it and we agreed on.
    pub session: Option<SessionParameters>,
    /// What took it off, at a gateway.
    pub terminated: Option<Arc<Terminated>>,
    /// What took TLS off at a Sidecar's ingress.
    pub ingress: Option<Arc<ServerTlsSettings>>,
    /// The server name of the client's hello, whether its TLS was taken off or is passed on.
    pub sni: Option<Arc<str>>,
    /// The address the client dialled, before capture (a gateway's: the listener's own); v4-mapped addresses as IPv4.
    pub original: SocketAddr,
    /// The client's own address.
    pub peer: SocketAddr,
    /// The HTTP/2 preface was seen (prior knowledge); else HTTP/1.
    pub h2: bool,
    /// The kubelet's.
    pub probing: Probing,
    pub start: SystemTime,
    pub started: Instant,
}

impl ConnectionInfo {
    pub fn new(arrival: Arrival, original: SocketAddr, peer: SocketAddr) -> Self {
        Self {
            arrival,
            identity: None,
            certificate: None,
            tls: false,
            session: None,
            ingress: None,
            terminated: None,
            sni: None,
            original: canonical(original),
            peer: canonical(peer),
            h2: false,
            probing: Probing::No,
            start: SystemTime::now(),
            started: Instant::now(),
        }
    }
}

/// Accepts until the engine drains or the pod is unenrolled.
pub(super) async fn run(engine: Arc<Engine>, listener: std::net::TcpListener, pod: Arc<Pod>, role: Role) {
    let port = listener.local_addr().map_or(0, |local| local.port());
    let listener = match watched(listener, role) {
        Ok(listener) => listener,
        Err(error) => return log::error!("{}: the listener cannot be used: {error}", pod.id),
    };
    match role {
        Role::Outbound => {}
        Role::Gateway(_) => pod.opens_gateway(port),
        Role::Inbound => pod.opens_inbound(port),
    }
    let ending = engine.ending(matches!(role, Role::Outbound));
    let mut failing = false;
    loop {
        let ready = tokio::select! {
            biased;
            () = ending.cancelled() => return,
            () = pod.closed.cancelled() => return,
            ready = listener.readable() => ready,
        };
        let mut ready = match ready {
            Ok(ready) => ready,
            Err(error) => return log::error!("{}: the listener cannot be watched: {error}", pod.id),
        };
        let mut taken = 0;
        while let Ok(accepted) = ready.try_io(|listener| sys::accept(listener.as_fd())) {
            match accepted {
                Ok(accepted) => {
                    if failing {
                        log::info!("{}: accepting connections again", pod.id);
                        failing = false;
                    }
                    spawn(&engine, &pod, role, port, accepted);
                }
                // What accept(2) says of a connection that is gone already; the listener is fine.
                Err(error) if of_the_connection(&error) => log::debug!("{}: accept: {error}", pod.id),
                Err(error) => {
                    if !failing {
                        log::error!("{}: cannot accept connections: {error}; trying on (see `ulimit -n`)", pod.id);
                        failing = true;
                    }
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    break;
                }
            }
            taken += 1;
            if taken == limits::ACCEPT_ROUND {
                // More may wait; those that were taken get their turn first.
                tokio::task::yield_now().await;
                break;
            }
        }
    }
}

fn watched(listener: std::net::TcpListener, role: Role) -> io::Result<AsyncFd<OwnedFd>> {
    listener.set_nonblocking(true)?;
    let socket = SockRef::from(&listener);
    // Accepted sockets inherit it (tcp(7) does not say so; Linux copies the listening socket).
    socket.set_tcp_nodelay(true)?;
    // A pod that goes takes its wire along, so that its last word may be lost. To the pod's own application there is none.
    if !matches!(role, Role::Outbound) {
        let probes = TcpKeepalive::new()
            .with_time(limits::PEER_SILENCE)
            .with_interval(limits::PEER_PROBE)
            .with_retries(limits::PEER_PROBES);
        socket.set_tcp_keepalive(&probes)?;
    }
    sys::readable(listener.into())
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

/// A connection on its way from the accept loop to the worker that serves it.
struct Accepted {
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    role: Role,
    /// The listener's.
    port: u16,
    stream: std::net::TcpStream,
    peer: SocketAddr,
}

fn spawn(engine: &Arc<Engine>, pod: &Arc<Pod>, role: Role, port: u16, at: (std::net::TcpStream, SocketAddr)) {
    // Counted from its first moment on: a drain must not miss it.
    let in_flight = if matches!(role, Role::Outbound) { engine.enter_outbound() } else { engine.enter() };
    let (stream, peer) = at;
    let accepted = Accepted { engine: engine.clone(), pod: pod.clone(), role, port, stream, peer };
    // Boxed: it is large, and gone before the rest begins.
    let first: First = Box::pin(arrived(accepted));
    engine.workers.spawn_connection(connection(first, pod.clone(), in_flight));
}

/// Finds out what a connection is.
type First = Pin<Box<dyn Future<Output = Option<Rest>> + Send>>;
/// What a connection turned out to be, to its end. Apart from what found that out: connections are many, and most idle.
pub(super) type Rest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The rest of a connection that carries bytes.
pub(super) fn raw(engine: Arc<Engine>, snapshot: Arc<Snapshot>, pod: Arc<Pod>, raw: Raw, decision: Decision) -> Rest {
    Box::pin(async move { raw::serve(&engine, &snapshot, &pod, raw, decision).await })
}

async fn connection(first: First, pod: Arc<Pod>, _in_flight: InFlight) {
    let served = async {
        if let Some(rest) = first.await {
            rest.await;
        }
    };
    tokio::select! {
        biased;
        () = when_woken(pod.closed.cancelled()) => {}
        () = served => {}
    }
}

async fn arrived(accepted: Accepted) -> Option<Rest> {
    let Accepted { engine, pod, role, port, stream, peer } = accepted;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            log::error!("{}: a connection cannot be watched: {error}", pod.id);
            return None;
        }
    };
    match role {
        Role::Outbound => outbound::arrived(engine, pod, stream, peer).await,
        // Boxed: what is largest would be the size of all.
        Role::Gateway(id) => Box::pin(gateway::arrived(engine, pod, id, stream, peer)).await,
        Role::Inbound => Box::pin(inbound::arrived(engine, pod, stream, peer, port)).await,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[tokio::test]
    async fn peers_elsewhere_are_asked_whether_they_live() {
        for (role, asked) in [(Role::Inbound, true), (Role::Outbound, false)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            let listener = watched(listener, role).unwrap();
            let _client = std::net::TcpStream::connect(at).unwrap();
            let (accepted, _) = sys::accept(listener.get_ref().as_fd()).unwrap();
            let accepted = SockRef::from(&accepted);
            assert!(accepted.tcp_nodelay().unwrap());
            assert_eq!(accepted.keepalive().unwrap(), asked, "{role:?}");
            assert_eq!(accepted.tcp_keepalive_time().unwrap() == limits::PEER_SILENCE, asked, "{role:?}");
        }
    }

    /// What a connection may still become costs one that is HTTP nothing: all of its way once had room in the task, 9 KiB.
    #[test]
    fn the_task_of_a_connection_is_small() {
        let task = size(|(first, pod, in_flight)| connection(first, pod, in_flight));
        let info = size_of::<ConnectionInfo>();
        assert!(
            task <= 448 && info <= 384,
            "{task} bytes, {info} of what is known, for as long as the connection lasts"
        );
        let first = [
            size(arrived),
            size(|(engine, pod, id, stream, peer)| gateway::arrived(engine, pod, id, stream, peer)),
            size(|(engine, pod, stream, peer, port)| inbound::arrived(engine, pod, stream, peer, port)),
        ];
        assert!(first.iter().all(|size| *size <= 4096), "{first:?} bytes until it is known what it is");
    }
}
