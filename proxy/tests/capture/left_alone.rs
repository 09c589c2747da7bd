//! What capture must not touch, and what it must not let through.

use crate::lab::{Lab, run_client};

#[test]
fn udp() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
for family, address in [(socket.AF_INET, V4), (socket.AF_INET6, V6)]:
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((address, 53))
    s.send(b"query")
    print(s.recv(100), s.getpeername()[:2])
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.sendto(b"query", (address, 53))
    print(s.recvfrom(100)[1][:2])"#,
    );
    assert_eq!(answer, "b'query' ('10.77.0.1', 53)\n('10.77.0.1', 53)\nb'query' ('fd77::1', 53)\n('fd77::1', 53)");
}

#[test]
fn loopback_and_the_pods_own_addresses() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
own = [("127.0.0.1", 2), ("127.7.7.7", 2), ("0.0.0.0", 2), ("10.77.0.2", 2), ("10.77.0.3", 2), ("::1", 10), ("fd77::2", 10), ("::ffff:10.77.0.2", 10), ("::ffff:127.0.0.1", 10)]
server = socket.socket(socket.AF_INET6)
server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind(("::", 8080))
server.listen()
server.settimeout(5)
for address, family in own:
    s = dial(address, 8080, family)
    server.accept()[0].send(b"own")
    assert s.recv(10) == b"own", address
print("all")"#,
    );
    assert_eq!(answer, "all");
}

#[test]
fn a_namespace_that_is_not_enrolled() {
    let mut lab = Lab::new();
    let pod = lab.pod.clone();
    lab.serve(&pod, &["10.77.0.2", "fd77::2"]);
    let answer = run_client(
        &lab.outside,
        "print(everything(dial('10.77.0.2')))\nprint(everything(dial('fd77::2', 80, socket.AF_INET6)))",
    );
    assert!(answer.starts_with("outside 10.77.0.1:") && answer.contains("\noutside [fd77::1]:"), "{answer}");
    assert!(lab.ask("counters").contains("redirected: 0"));
}

/// No destination is known, so the agent closes: nobody can borrow the pod's identity by dialling its listener.
#[test]
fn the_listener_itself() {
    let lab = Lab::new();
    let dialled = "print(repr(everything(dial('10.77.0.2', 15001))))";
    assert_eq!(run_client(&lab.outside, dialled), "''");
    assert_eq!(lab.client(dialled), "''");
    // Also from a port whose own captured connection is over, or was never accepted.
    let answer = lab.client(
        r#"
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.bind(("10.77.0.2", 40500))
s.connect((V4, 80))
s.close()
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("10.77.0.2", 40500))
s.connect(("10.77.0.2", 15001))
print(repr(everything(s)))"#,
    );
    assert_eq!(answer, "''");
}

#[test]
fn the_agents_own_connections_from_the_pod() {
    let mut lab = Lab::new();
    let answer = lab.client("print(everything(dial(V4, 7)))\nprint(everything(dial(V6, 7, socket.AF_INET6)))");
    assert!(
        answer.starts_with("relayed outside 10.77.0.2:") && answer.contains("\nrelayed outside [fd77::2]:"),
        "{answer}"
    );
    let counters = lab.ask("counters");
    assert!(counters.contains("redirected: 2, denied: 0, exempt: 2, guarded: 0"), "{counters}");
}

/// The pod bears no IPv6 address, so there is no listener to send it to: the client is told to try the other family.
#[test]
fn a_family_that_the_pod_does_not_have() {
    let mut lab = Lab::without_agent();
    lab.exec_in_pod(&["ip", "addr", "del", "fd77::2/64", "dev", "eth0"]);
    lab.start_agent();
    assert_eq!(lab.client("dial(V6, 80, socket.AF_INET6)"), "errno ENETUNREACH");
    let answer = lab.client("print(everything(dial(V4)))");
    assert!(answer.starts_with("captured 10.77.0.1:80"), "{answer}");
    let counters = lab.ask("counters");
    assert!(counters.contains("redirected: 1, denied: 1"), "{counters}");
}

/// A SYN written by hand goes round `connect`; the guard drops it, and nothing comes back.
#[test]
fn a_raw_syn_is_dropped_by_the_guard() {
    let mut lab = Lab::new();
    assert_eq!(lab.ask("guard"), "true");
    let raw = r#"
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
def syn(source, destination):
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, 20)
    tcp = struct.pack("!HHIIBBHHH", 40999, 80, 1, 0, 5 << 4, 2, 1024, 0, 0)
    return tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
s.settimeout(0.5)
try:
    s.sendto(syn(MINE, V4), (V4, 0))
    print("sent", len(s.recv(100)) > 0)
except TimeoutError: print("silence")"#;
    assert_eq!(lab.client(&raw.replace("MINE", "'10.77.0.2'")), "errno EPERM");
    let counters = lab.ask("counters");
    assert!(counters.contains("guarded: 1"), "{counters}");
    // The same once the pod is released: it was the guard.
    lab.ask("release");
    assert_eq!(lab.client(&raw.replace("MINE", "'10.77.0.2'")), "sent True");
}
