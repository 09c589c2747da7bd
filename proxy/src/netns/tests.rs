//! Against real namespaces: these tests need root, as the product does.

use std::{
    net::SocketAddr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::engine::ports::Sockets;

/// A namespace that is gone when the test is, however it ends.
pub(super) struct Made(pub(super) String);

impl Made {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("egret-u{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        Self(name)
    }

    pub(super) fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", self.0.as_str()];
        all.extend(arguments.split(' '));
        ip(&all);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_missing_namespace_is_named() {
    let error = Namespace::open("egret-no-such-namespace").unwrap_err();
    assert!(matches!(error, NamespaceError::Missing { .. }));
    assert!(error.to_string().contains("/run/netns/egret-no-such-namespace is absent"), "{error}");
}

#[test]
fn a_file_that_is_no_namespace_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Namespace::open(file.path().to_str().unwrap()).unwrap_err();
    assert!(matches!(error, NamespaceError::NotANamespace { .. }), "{error}");
    let error = Namespace::open("/proc/self/ns/ipc").unwrap_err();
    assert!(matches!(error, NamespaceError::NotANamespace { .. }), "{error}");
}

#[test]
fn the_machines_own_namespace_is_refused() {
    let error = Namespace::open("/proc/self/ns/net").unwrap_err();
    assert!(matches!(error, NamespaceError::Host { .. }), "{error}");
}

#[test]
fn what_runs_inside_sees_the_namespace_and_the_thread_comes_back() {
    let made = Made::new();
    let namespace = Namespace::open(&made.0).unwrap();
    let before = socket_cookie().unwrap();
    assert_eq!(namespace.run(socket_cookie).unwrap().unwrap(), namespace.cookie());
    assert_ne!(namespace.cookie(), before);
    assert_eq!(socket_cookie().unwrap(), before);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| namespace.run(|| panic!("inside"))));
    assert!(panicked.is_err());
    assert_eq!(socket_cookie().unwrap(), before);
    assert!(namespace.run(|| namespace.run(|| ())).unwrap().is_err(), "an inner run would lead home too early");
}

#[test]
fn a_namespace_made_again_is_another() {
    let made = Made::new();
    let first = Namespace::open(&made.0).unwrap();
    assert!(first.is_current());
    ip(&["netns", "del", &made.0]);
    assert!(!first.is_current());
    ip(&["netns", "add", &made.0]);
    assert!(!first.is_current());
    let second = Namespace::open(&made.0).unwrap();
    assert!(second.is_current());
    assert_ne!(first.cookie(), second.cookie());
    assert_ne!(first.identity(), second.identity());
}

#[test]
fn addresses_are_what_the_interfaces_bear() {
    let made = Made::new();
    made.ip("link set lo up");
    made.ip("addr add 192.0.2.9/32 dev lo");
    made.ip("link add pod0 type veth peer name pod1");
    made.ip("link set pod0 up");
    made.ip("link set pod1 up");
    made.ip("addr add 10.1.2.3/24 dev pod0");
    made.ip("addr add 10.1.2.4/24 dev pod0");
    made.ip("addr add 2001:db8::5/64 dev pod0 nodad");
    let namespace = Namespace::open(&made.0).unwrap();
    let addresses = namespace.addresses().unwrap();
    let text: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(text[..4], ["10.1.2.3", "10.1.2.4", "2001:db8::5", "192.0.2.9"]);
    assert!(text[4..].iter().all(|address| address.starts_with("fe80:")), "{text:?}");
    let sockets = listener_sockets(&addresses, 15001);
    assert_eq!(sockets, ["10.1.2.3:15001".parse().unwrap(), "[2001:db8::5]:15001".parse::<SocketAddr>().unwrap()]);
}

#[test]
fn a_link_local_address_carries_no_listener() {
    let addresses = ["fe80::1".parse().unwrap()];
    assert_eq!(listener_addresses(&addresses), (None, None));
}

#[tokio::test]
async fn sockets_are_the_pods() {
    let made = Made::new();
    made.ip("link set lo up");
    let namespace = Namespace::open(&made.0).unwrap();
    let listener = namespace.listener("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let address = listener.local_addr().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err(), "the listener must not be on the host's loopback");
    let stream = namespace.tcp(address).unwrap().connect(address).await.unwrap();
    assert!(stream.nodelay().unwrap());
    assert_eq!(listener.accept().await.unwrap().1, stream.local_addr().unwrap());
    let udp = namespace.udp("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(sys::netns_cookie(udp.as_fd()).unwrap(), namespace.cookie());
}

#[test]
fn listeners_come_back_at_once_and_keep_to_their_family() {
    let made = Made::new();
    made.ip("link set lo up");
    let namespace = Namespace::open(&made.0).unwrap();
    let six = namespace.listener("[::]:15001".parse().unwrap()).unwrap();
    let four = namespace.listener("0.0.0.0:15001".parse().unwrap()).unwrap();
    drop((six, four));
    // An address that the pod does not bear yet (IPv6 duplicate detection) can be bound.
    namespace.listener("[2001:db8::5]:15001".parse().unwrap()).unwrap();
    namespace.listener("0.0.0.0:15001".parse().unwrap()).unwrap();
}

#[tokio::test]
async fn unix_sockets_are_reached_by_path() {
    let made = Made::new();
    let namespace = Namespace::open(&made.0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    assert!(namespace.unix(&path).is_err());
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    namespace.unix(&path).unwrap();
    listener.accept().await.unwrap();
}

#[test]
fn resolver_files_of_the_name_come_first() {
    let made = Made::new();
    let files = Namespace::open(&made.0).unwrap().resolver_files();
    let own = Path::new("/etc/netns").join(&made.0);
    assert_eq!(files.resolv_conf, [own.join("resolv.conf"), "/etc/resolv.conf".into()]);
    assert_eq!(files.hosts, [own.join("hosts"), "/etc/hosts".into()]);
}
