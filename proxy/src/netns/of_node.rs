//! Which of the connections that come to a pod were made in the node's own network namespace.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

use socket2::SockRef;

use super::netlink;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_NOCOOKIE` of `linux/inet_diag.h`: any socket with these addresses.
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// Bytes of a `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;
/// Of `net/tcp_states.h`: ESTABLISHED, and FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, in which one side has closed. Asked for a
/// connection that is not there, the kernel may answer with a listener (`inet_lookup`).
const OPEN: [u8; 4] = [1, 4, 5, 8];

/// Whether a process in the node's network namespace has the other end of an accepted connection. The kernel is asked for a
/// socket with exactly these addresses and ports (sock_diag(7)): that a packet bears an address of the node does not do.
///
/// Must not be called inside [`super::Namespace::run`]. Without `CONFIG_INET_TCP_DIAG`, which `ss` wants as well, nobody has.
///
/// # Errors
/// The kernel cannot be asked.
pub fn is_of_node(accepted: BorrowedFd<'_>) -> io::Result<bool> {
    let accepted = SockRef::from(&accepted);
    let address = |address: io::Result<socket2::SockAddr>| {
        let address = address?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Ok::<_, io::Error>(SocketAddr::new(address.ip().to_canonical(), address.port()))
    };
    let (client, server) = match (address(accepted.peer_addr()), address(accepted.local_addr())) {
        // It has left.
        (Err(error), _) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
        (client, server) => (client?, server?),
    };
    is_open(client, server)
}

/// Whether the namespace of this thread has a connection between these, the first being its own.
fn is_open(own: SocketAddr, other: SocketAddr) -> io::Result<bool> {
    // struct inet_diag_req_v2: family, protocol, two that mean nothing here, states (of no account for a single socket).
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0, 0xff, 0xff, 0xff, 0xff];
    body.extend(socket_id(own, other));
    let answer = match netlink::ask(libc::NETLINK_SOCK_DIAG, &netlink::message(SOCK_DIAG_BY_FAMILY, 0, &body)) {
        Ok(answer) => answer,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
        Err(error) => return Err(error),
    };
    // struct inet_diag_msg: family, state …
    Ok(answer.get(1).is_some_and(|state| OPEN.contains(state)))
}

/// `struct inet_diag_sockid`: both ports and both addresses in network order, the interface (any), and a cookie.
fn socket_id(own: SocketAddr, other: SocketAddr) -> [u8; SOCKET_ID] {
    let mut id = [0; SOCKET_ID];
    id[..2].copy_from_slice(&own.port().to_be_bytes());
    id[2..4].copy_from_slice(&other.port().to_be_bytes());
    for (at, ip) in [(4, own.ip()), (20, other.ip())] {
        match ip {
            IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    id[40..].copy_from_slice(&NO_COOKIE);
    id
}

#[cfg(test)]
mod tests;
