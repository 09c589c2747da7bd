//! Sockets of the process's own namespace, and original destinations from a table: what tests (and runs without
//! capture) use where a pod's namespace and eBPF stand otherwise.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use parking_lot::Mutex;
use tokio::net::{TcpSocket, UdpSocket, UnixStream};

use super::ports::{OriginalDestination, Sockets};
use crate::netns;

/// Plain sockets, no namespace entered.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSockets;

impl Sockets for HostSockets {
    fn tcp(&self, remote: SocketAddr) -> io::Result<TcpSocket> {
        let socket = if remote.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = std::net::UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    fn unix(&self, path: &Path) -> io::Result<UnixStream> {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }
}

/// Original destinations by the client's address, or one for all.
#[derive(Debug, Default)]
pub struct Destinations {
    by_client: Mutex<HashMap<SocketAddr, SocketAddr>>,
    default: Mutex<Option<SocketAddr>>,
}

impl Destinations {
    /// Every connection was going to `destination`.
    pub fn all(destination: SocketAddr) -> Self {
        Self { by_client: Mutex::default(), default: Mutex::new(Some(destination)) }
    }

    /// The connection of the client at `client` was going to `destination`.
    pub fn insert(&self, client: SocketAddr, destination: SocketAddr) {
        self.by_client.lock().insert(client, destination);
    }
}

impl OriginalDestination for Destinations {
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        let peer = socket2::SockRef::from(&accepted.as_fd()).peer_addr()?.as_socket();
        Ok(peer.and_then(|peer| self.by_client.lock().get(&peer).copied()).or(*self.default.lock()))
    }

    fn inbound_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<SocketAddr> {
        self.original_destination(accepted)?.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    fn is_of_node(&self, accepted: BorrowedFd<'_>) -> io::Result<bool> {
        netns::is_of_node(accepted)
    }
}
