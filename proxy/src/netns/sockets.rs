//! Sockets made inside a pod: they listen, dial and resolve as the pod would.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
    path::Path,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpSocket, UdpSocket, UnixStream};

use super::Namespace;
use crate::{engine::ports::Sockets, limits};

impl Namespace {
    /// A listening TCP socket of the pod, non-blocking.
    pub fn listener(&self, local: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket(local, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        match local.ip() {
            IpAddr::V4(_) => socket.set_freebind_v4(true)?,
            // Freebind: an address whose duplicate detection is still running can be bound already.
            IpAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        socket.bind(&local.into())?;
        socket.listen(limits::LISTEN_BACKLOG)?;
        Ok(socket.into())
    }

    pub(super) fn socket(&self, address: SocketAddr, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.run(|| Socket::new(Domain::for_address(address), kind.nonblocking(), protocol))?
    }
}

impl Sockets for Namespace {
    fn tcp(&self, remote: SocketAddr) -> io::Result<TcpSocket> {
        let socket = self.socket(remote, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    fn tcp_from(&self, remote: SocketAddr, client: IpAddr) -> io::Result<TcpSocket> {
        self.tcp_as(remote, client)
    }

    fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(local, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&local.into())?;
        UdpSocket::from_std(socket.into())
    }

    fn unix(&self, path: &Path) -> io::Result<UnixStream> {
        // Non-blocking: where the server's queue is full this is an error and not a wait.
        let socket = self.run(|| Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None))??;
        match &self.in_pod {
            None => socket.connect(&SockAddr::unix(path)?)?,
            Some(open) => {
                let file = open.0(path)?;
                socket.connect(&SockAddr::unix(format!("/proc/self/fd/{}", file.as_raw_fd()))?)?;
            }
        }
        UnixStream::from_std(socket.into())
    }
}
