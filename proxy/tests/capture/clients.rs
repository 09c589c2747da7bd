//! Every way a client may connect: captured, with the right destination, and none the wiser.

use crate::lab::Lab;

#[test]
fn ipv4() {
    let lab = Lab::new();
    let answer = lab.client("s = dial(V4)\nprint(s.getpeername(), everything(s))");
    assert!(answer.starts_with("('10.77.0.1', 80) captured 10.77.0.1:80 from 10.77.0.2:"), "{answer}");
}

#[test]
fn ipv6() {
    let lab = Lab::new();
    let answer = lab.client("s = dial(V6, 443, socket.AF_INET6)\nprint(s.getpeername(), everything(s))");
    assert!(answer.starts_with("('fd77::1', 443, 0, 0) captured [fd77::1]:443 from [fd77::2]:"), "{answer}");
}

#[test]
fn ipv4_over_an_ipv6_socket() {
    let lab = Lab::new();
    let answer = lab.client("s = dial('::ffff:' + V4, 80, socket.AF_INET6)\nprint(s.getpeername(), everything(s))");
    assert!(answer.starts_with("('::ffff:10.77.0.1', 80, 0, 0) captured 10.77.0.1:80 from 10.77.0.2:"), "{answer}");
}

#[test]
fn a_destination_that_does_not_exist() {
    let lab = Lab::new();
    let answer = lab.client("print(everything(dial('203.0.113.9', 9999)))");
    // There is no route to it: the pod's routes are the agent's concern now.
    assert!(answer.starts_with("captured 203.0.113.9:9999 from "), "{answer}");
}

#[test]
fn non_blocking() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
s = socket.socket()
s.setblocking(False)
print(errno.errorcode[s.connect_ex((V4, 80))])
print(select.select([], [s], [], 5)[1] == [s], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
print(everything(s))"#,
    );
    assert!(answer.starts_with("EINPROGRESS\nTrue 0\ncaptured 10.77.0.1:80"), "{answer}");
}

/// The SYN carries data (`TCPI_OPT_SYN_DATA`), so the accepted socket exists before the client's handshake is over.
#[test]
fn fast_open_by_sendto() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
for family, address in [(socket.AF_INET, V4), (socket.AF_INET6, V6)]:
    s = socket.socket(family)
    print(s.sendto(b"hello", socket.MSG_FASTOPEN, (address, 80)))
    s.shutdown(socket.SHUT_WR)
    print(everything(s), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5] & 32)"#,
    );
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!((lines[0], lines[2]), ("5", "5"), "{answer}");
    assert!(lines[1].starts_with("captured 10.77.0.1:80") && lines[1].ends_with(" 32"), "{answer}");
    assert!(lines[3].starts_with("captured [fd77::1]:80") && lines[3].ends_with(" 32"), "{answer}");
}

#[test]
fn fast_open_by_socket_option() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, 30, 1)
s.connect((V4, 81))
s.send(b"hello")
s.shutdown(socket.SHUT_WR)
print(everything(s), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5] & 32)"#,
    );
    assert!(answer.starts_with("captured 10.77.0.1:81") && answer.ends_with(" 32"), "{answer}");
}

#[test]
fn bound_to_a_source_address() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
s = socket.socket()
s.bind(("10.77.0.3", 40123))
s.connect((V4, 80))
print(s.getsockname(), everything(s))"#,
    );
    assert_eq!(answer, "('10.77.0.3', 40123) captured 10.77.0.1:80 from 10.77.0.3:40123");
}

#[test]
fn bound_to_a_device() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
for family, address in [(socket.AF_INET, V4), (socket.AF_INET6, V6)]:
    s = socket.socket(family)
    s.settimeout(5)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    s.connect((address, 80))
    print(everything(s))"#,
    );
    let lines: Vec<&str> = answer.lines().collect();
    assert!(lines[0].starts_with("captured 10.77.0.1:80 from 10.77.0.2:"), "{answer}");
    assert!(lines[1].starts_with("captured [fd77::1]:80 from [fd77::2]:"), "{answer}");
}

/// One socket, three destinations: the second must not inherit the first, nor the third, which is not captured, any.
#[test]
fn connected_again_after_af_unspec() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.connect((V4, 80))
print(libc.connect(s.fileno(), bytes(16), 16))
s.connect((V4, 81))
print(s.getpeername())
libc.connect(s.fileno(), bytes(16), 16)
server = socket.create_server(("127.0.0.1", 0))
s.connect(server.getsockname())
print(s.getpeername() == server.getsockname())
libc.connect(s.fileno(), bytes(16), 16)
s.connect((V4, 443))
print(everything(s))"#,
    );
    assert!(answer.starts_with("0\n('10.77.0.1', 81)\nTrue\ncaptured 10.77.0.1:443"), "{answer}");
}

/// MPTCP makes its TCP sockets itself, in the kernel.
#[test]
fn multipath_tcp() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.connect((V4, 80))
print(everything(s))"#,
    );
    assert!(answer.starts_with("captured 10.77.0.1:80 from 10.77.0.2:"), "{answer}");
}

/// Many at once: each accepted socket finds its own destination, none another's.
#[test]
fn concurrent_connections_keep_apart() {
    let lab = Lab::new();
    let answer = lab.client(
        r#"
wrong = []
def one(n):
    port = 10000 + n
    text = everything(dial(V4, port))
    if not text.startswith(f"captured 10.77.0.1:{port} from"): wrong.append((port, text))
for burst in range(5):
    threads = [threading.Thread(target=one, args=(burst * 100 + n,)) for n in range(100)]
    [t.start() for t in threads]
    [t.join() for t in threads]
print(wrong)"#,
    );
    assert_eq!(answer, "[]");
}

#[test]
fn messages_of_the_programs_reach_the_log() {
    let mut lab = Lab::new();
    lab.client("everything(dial(V4))\neverything(dial(V6, 443, socket.AF_INET6))");
    let log = lab.ask("log");
    assert!(log.contains("DEBUG egret_ebpf::connect redirected a connection to 10.77.0.1:80"), "{log}");
    assert!(log.contains("redirected a connection to [fd77::1]:443"), "{log}");
}
