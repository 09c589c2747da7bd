//! Against the kernel, without privileges: all that counts is which sockets there are.

use std::net::{TcpListener, TcpStream};

use super::*;

/// Both ends are here; what an agent asks about has the second one in a pod.
#[test]
fn a_connection_of_this_namespace_is_found_by_all_that_it_is() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(at).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (own, other) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(is_open(own, other).unwrap(), "{own} {other}");
        assert!(is_of_node(std::os::fd::AsFd::as_fd(&accepted)).unwrap(), "{own} {other}");
        let port = |of: SocketAddr, port| SocketAddr::new(of.ip(), port);
        assert!(!is_open(port(own, 1), other).unwrap() && !is_open(own, port(other, 1)).unwrap());
        // Nor by the address alone, at a port on which somebody listens: the kernel answers with the listener.
        assert!(!is_open(other, port(own, 1)).unwrap());
        let elsewhere: SocketAddr = if own.is_ipv4() { "192.0.2.1:1" } else { "[2001:db8::1]:1" }.parse().unwrap();
        assert!(!is_open(other, elsewhere).unwrap() && !is_open(elsewhere, own).unwrap());
    }
}

/// curl and others use one kind of socket for both families.
#[test]
fn a_socket_of_ipv6_that_speaks_ipv4_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let _client = TcpStream::connect(mapped).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    assert!(is_of_node(std::os::fd::AsFd::as_fd(&accepted)).unwrap(), "{peer}");
}

#[test]
fn a_connection_that_has_ended_is_nobodys() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let server = listener.local_addr().unwrap();
    // A half that is closed is still the client's, who may wait for the answer.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(is_open(peer, server).unwrap());
    socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    assert!(!is_open(peer, server).unwrap());
    drop(accepted);
}
