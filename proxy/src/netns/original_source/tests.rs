//! Against real namespaces: these tests need root, as the product does.

use std::process::Command;

use super::*;
use crate::netns::tests::Made;

fn show(made: &Made) -> Vec<String> {
    let show = |arguments: &[&str]| {
        let output = Command::new("ip").args(["-n", &made.0]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // A table that never had a route is an error, and empty.
    vec![
        show(&["rule"]),
        show(&["-6", "rule"]),
        show(&["route", "show", "table", "15006"]),
        show(&["-6", "route", "show", "table", "15006"]),
    ]
}

fn inherits(made: &Made) -> String {
    let namespace = Namespace::open(&made.0).unwrap();
    namespace.run(|| fs::read_to_string(INHERIT_MARK)).unwrap().unwrap().trim().to_owned()
}

#[test]
fn rules_and_routes_come_and_go() {
    let made = Made::new();
    made.ip("link set lo up");
    let before = show(&made);
    let namespace = Namespace::open(&made.0).unwrap();
    let own = ["10.7.7.7".parse().unwrap(), "fd77::7".parse().unwrap()];
    // Twice: what an earlier agent left is adopted.
    for _ in 0..2 {
        namespace.enable_original_source(&own).unwrap();
    }
    let rule = "1:\tfrom all fwmark 0x3a9e lookup 15006";
    let [v4, v6, route4, route6] = show(&made).try_into().unwrap();
    for rules in [&v4, &v6] {
        assert_eq!(rules.lines().filter(|line| *line == rule).count(), 1, "{rules}");
    }
    assert_eq!(route4.lines().collect::<Vec<_>>(), ["local default dev lo proto static scope host "]);
    assert!(route6.starts_with("local default dev lo proto static") && route6.lines().count() == 1, "{route6}");
    assert_eq!(inherits(&made), "1");
    for _ in 0..2 {
        namespace.disable_original_source().unwrap();
    }
    assert_eq!(show(&made), before);
    assert_eq!(inherits(&made), "0");
}

#[test]
fn what_is_not_ours_stays() {
    let made = Made::new();
    let namespace = Namespace::open(&made.0).unwrap();
    namespace.run(|| fs::write(INHERIT_MARK, "1")).unwrap().unwrap();
    made.ip("rule add fwmark 7 lookup 77");
    let before = show(&made);
    namespace.disable_original_source().unwrap();
    assert_eq!(show(&made), before);
    assert_eq!(inherits(&made), "1", "somebody else wants it");
}

#[test]
fn a_namespace_is_found_by_its_inode() {
    let made = Made::new();
    let identity = Namespace::open(&made.0).unwrap().identity();
    let found = Namespace::find(u32::try_from(identity.inode).unwrap()).unwrap();
    assert_eq!(found.identity(), identity);
    assert!(Namespace::find(1).is_none());
}

/// Also one that listens on loopback, as behind a Sidecar's `defaultEndpoint`.
#[tokio::test]
async fn an_application_on_loopback_sees_its_client() {
    let made = Made::new();
    made.ip("link set lo up");
    let namespace = Namespace::open(&made.0).unwrap();
    namespace.enable_original_source(&["fd77::7".parse().unwrap()]).unwrap();
    for (local, client) in [("127.0.0.1:80", "10.9.9.9"), ("[::1]:80", "2001:db8::9")] {
        let (local, client): (SocketAddr, IpAddr) = (local.parse().unwrap(), client.parse().unwrap());
        let listener = tokio::net::TcpListener::from_std(namespace.listener(local).unwrap()).unwrap();
        let connecting = namespace.tcp_as(local, client).unwrap().connect(local);
        let wait = tokio::time::timeout(std::time::Duration::from_secs(5), async {
            tokio::join!(connecting, listener.accept())
        });
        let (connected, accepted) = wait.await.unwrap();
        assert_eq!(accepted.unwrap().1, connected.unwrap().local_addr().unwrap());
    }
    for (local, client) in [("127.0.0.1:80", "2001:db8::9"), ("[::1]:80", "fe80::1"), ("[::1]:80", "10.9.9.9")] {
        let error = namespace.tcp_as(local.parse().unwrap(), client.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{client}");
    }
}
