//! What the engine needs from the kernel half. `capture` and `netns` implement it; tests without privileges do too.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

/// Sockets as a pod would make them.
pub trait Sockets: Send + Sync + 'static {
    /// A non-blocking TCP socket of the pod for dialling an address of `remote`'s family, with TCP_NODELAY.
    fn tcp(&self, remote: SocketAddr) -> io::Result<tokio::net::TcpSocket>;
    /// As [`Sockets::tcp`], for dialling the pod's own address `remote`; the application there sees the address `client`, at a
    /// port of the socket's own. `connect` may say that the address is in use (`AddrNotAvailable`): then try another socket.
    ///
    /// # Errors
    /// Not to be had for this client, or at all.
    fn tcp_from(&self, remote: SocketAddr, client: IpAddr) -> io::Result<tokio::net::TcpSocket> {
        let _ = (remote, client);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// A non-blocking UDP socket of the pod bound to `local` (the pod's DNS queries).
    fn udp(&self, local: SocketAddr) -> io::Result<tokio::net::UdpSocket>;
    /// A stream socket of the pod connected to a path of its files (`unix://` endpoints); on a single host, of the machine's.
    fn unix(&self, path: &std::path::Path) -> io::Result<tokio::net::UnixStream>;
}

/// Where an accepted connection was going before it was captured, or steered to the inbound listener.
pub trait OriginalDestination: Send + Sync + 'static {
    /// `None`: nobody redirected it, somebody dialled the listener itself; close it.
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>>;
    /// The port of the pod's own that a connection at the inbound listener was for. The kernel hands such a connection over
    /// with its address unchanged.
    fn inbound_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<SocketAddr> {
        let local = socket2::SockRef::from(&accepted).local_addr()?;
        local.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }
    /// Whether a process in the node's own network namespace made a connection that came to the inbound listener: the kubelet
    /// is one. Nobody else can pass for it, whatever address it bears: a socket with both ends must be there.
    fn is_of_node(&self, accepted: BorrowedFd<'_>) -> io::Result<bool>;
}
