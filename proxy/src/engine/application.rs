//! The way to a pod's own application, for what has come to the pod.
//!
//! The kernel steers to us what arrives, and must tell from it what we pass on: our connection comes from the very address
//! that it dials, or it bears the client's address and a mark (see [`super::ports::Sockets::tcp_from`]).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use tokio::net::{TcpSocket, TcpStream};

use super::pod::Pod;
use crate::{limits, mesh::Keepalive};

/// Connects to the application at `to`; with `client`, it sees that address at the other end, where that can be had.
pub async fn connect(
    pod: &Pod,
    to: SocketAddr,
    client: Option<IpAddr>,
    keepalive: Option<&Keepalive>,
) -> io::Result<TcpStream> {
    let mut client = client;
    for attempt in 1.. {
        let socket = application_socket(pod, to, &mut client)?;
        if let Some(keepalive) = keepalive {
            super::dial::keep_alive(&socket, keepalive)?;
        }
        match socket.connect(to).await {
            Ok(stream) => {
                not_itself(&stream)?;
                return Ok(stream);
            }
            // The port that was drawn leads to that address already.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && client.is_some() => {
                client = client.filter(|_| attempt < limits::CLIENT_PORT_ATTEMPTS);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrNotAvailable.into())
}

/// A socket to the pod's own application, bound. `client` is taken away where its address cannot be borne.
fn application_socket(pod: &Pod, to: SocketAddr, client: &mut Option<IpAddr>) -> io::Result<TcpSocket> {
    if let Some(address) = *client {
        match pod.sockets.tcp_from(to, address) {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                log::debug!("{}: the application at {to} does not see {address}: {error}", pod.id);
                *client = None;
            }
        }
    }
    let socket = pod.sockets.tcp(to)?;
    // The port is chosen at connect, so that it need only be free towards this destination.
    if let Err(error) = nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true) {
        log::debug!("{}: IP_BIND_ADDRESS_NO_PORT: {error}", pod.id);
    }
    let mut from = to;
    from.set_port(0);
    socket.bind(from)?;
    Ok(socket)
}

/// Where nobody listens on a port from which connections are made, the kernel may choose that very port for ours: it then
/// is connected with itself, and a stranger would get back what it sends.
fn not_itself(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_connected_with_itself_is_no_application() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        let stream = socket.connect(own).await.unwrap();
        assert_eq!(not_itself(&stream).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        not_itself(&stream).unwrap();
    }
}
