//! What comes to a pod from outside: accepted by the agent on any port, passed on to the application, and everything else
//! as if nothing were there.

use crate::lab::{Lab, run_client};

/// The pod's own server on [`crate::agent::SERVED`] says `outside <client>`, over both families from one socket.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let pod = lab.pod.clone();
    lab.serve(&pod, &["::"]);
    assert_eq!(lab.ask("inbound"), "inbound captured");
    lab
}

const V4: &str = "print(everything(dial('10.77.0.2', PORT)))";
const V6: &str = "print(everything(dial('fd77::2', PORT, socket.AF_INET6)))";

fn from_outside(lab: &Lab, code: &str, port: u16) -> String {
    run_client(&lab.outside, &code.replace("PORT", &port.to_string()))
}

#[test]
fn any_port_is_accepted_and_its_address_kept() {
    let lab = lab();
    for (code, port, expected) in [
        (V4, 1, "inbound 10.77.0.2:1 from 10.77.0.1:"),
        (V4, 65535, "inbound 10.77.0.2:65535 from 10.77.0.1:"),
        (V6, 9999, "inbound [fd77::2]:9999 from [fd77::1]:"),
    ] {
        let answer = from_outside(&lab, code, port);
        assert!(answer.starts_with(expected), "{answer}");
    }
    let second = run_client(&lab.outside, "s = dial('10.77.0.3', 9999)\nprint(s.getpeername(), everything(s))");
    assert!(second.starts_with("('10.77.0.3', 9999) inbound 10.77.0.3:9999 from 10.77.0.1:"), "{second}");
}

/// To the same address, from inside the pod: this connection is not captured again, nor stopped by the egress guard.
#[test]
fn what_was_accepted_can_be_passed_on() {
    let mut lab = lab();
    let answer = from_outside(&lab, V4, 80);
    assert!(answer.starts_with("inbound 10.77.0.2:80 from 10.77.0.1:"), "{answer}");
    assert!(answer.contains(" -> outside [::ffff:10.77.0.2]:"), "{answer}");
    let answer = from_outside(&lab, V6, 80);
    assert!(answer.starts_with("inbound [fd77::2]:80 from [fd77::1]:"), "{answer}");
    assert!(answer.contains(" -> outside [fd77::2]:"), "{answer}");
    // To a second address of the interface the agent's connection comes from the first.
    let answer = from_outside(&lab, "print(everything(dial('10.77.0.3', PORT)))", 80);
    assert!(answer.starts_with("inbound 10.77.0.3:80 from 10.77.0.1:"), "{answer}");
    assert!(answer.contains(" -> outside [::ffff:10.77.0.2]:"), "{answer}");
    let counters = lab.ask("counters");
    assert!(counters.contains("redirected: 0, denied: 0, exempt: 3, guarded: 0"), "{counters}");
}

/// The SYN carries data, and the connection is there before the handshake is over.
#[test]
fn fast_open() {
    let lab = lab();
    let answer = run_client(
        &lab.outside,
        r#"
for family, address in [(socket.AF_INET, "10.77.0.2"), (socket.AF_INET6, "fd77::2")]:
    s = socket.socket(family)
    s.sendto(b"hello", socket.MSG_FASTOPEN, (address, 9999))
    s.shutdown(socket.SHUT_WR)
    print(everything(s), s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5] & 32)"#,
    );
    let lines: Vec<&str> = answer.lines().collect();
    assert!(lines[0].starts_with("inbound 10.77.0.2:9999 from") && lines[0].ends_with(" 32"), "{answer}");
    assert!(lines[1].starts_with("inbound [fd77::2]:9999 from") && lines[1].ends_with(" 32"), "{answer}");
}

/// Many at once from one client, each with its own destination.
#[test]
fn concurrent_connections_keep_apart() {
    let lab = lab();
    let answer = run_client(
        &lab.outside,
        r#"
wrong = []
def one(n):
    port = 20000 + n
    text = everything(dial("10.77.0.2", port))
    if not text.startswith(f"inbound 10.77.0.2:{port} from"): wrong.append((port, text))
for burst in range(5):
    threads = [threading.Thread(target=one, args=(burst * 100 + n,)) for n in range(100)]
    [t.start() for t in threads]
    [t.join() for t in threads]
print(wrong)"#,
    );
    assert_eq!(answer, "[]");
}

#[test]
fn the_pod_talks_to_itself_directly() {
    let lab = lab();
    let answer = lab.client(
        r#"
own = [("127.0.0.1", 2), ("127.7.7.7", 2), ("0.0.0.0", 2), ("10.77.0.2", 2), ("10.77.0.3", 2), ("::1", 10), ("fd77::2", 10), ("::ffff:10.77.0.2", 10), ("::ffff:127.0.0.1", 10)]
for address, family in own:
    text = everything(dial(address, 80, family))
    assert text.startswith("outside "), (address, text)
    try: dial(address, 9999, family)
    except ConnectionRefusedError: continue
    print("something accepted", address)
print("all")"#,
    );
    assert_eq!(answer, "all");
}

#[test]
fn the_pods_own_connections_are_captured_as_before() {
    let mut lab = lab();
    assert!(lab.client("print(everything(dial(V4)))").starts_with("captured 10.77.0.1:80 from 10.77.0.2:"));
    let relayed = lab.client("print(everything(dial(V6, 7, socket.AF_INET6)))");
    assert!(relayed.starts_with("relayed outside [fd77::2]:"), "{relayed}");
    let counters = lab.ask("counters");
    assert!(counters.contains("redirected: 2, denied: 0, exempt: 1, guarded: 0"), "{counters}");
}

/// The outbound listener closes what nobody redirected, as without inbound capture; the inbound one is not to be reached
/// under its own address but as any port.
#[test]
fn the_listeners_themselves() {
    let lab = lab();
    assert_eq!(from_outside(&lab, "print(repr(everything(dial('10.77.0.2', PORT))))", 15001), "''");
    assert!(from_outside(&lab, V4, 15006).starts_with("inbound 10.77.0.2:15006 from 10.77.0.1:"));
    assert_eq!(lab.client("dial('10.77.0.2', 15006)"), "errno ECONNREFUSED");
}

#[test]
fn datagrams_and_pings_are_left_alone() {
    let lab = lab();
    let answer = run_client(
        &lab.outside,
        r#"
open("/proc/sys/net/ipv4/ping_group_range", "w").write("0 0")
for family, address in [(socket.AF_INET, "10.77.0.2"), (socket.AF_INET6, "fd77::2")]:
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((address, 53))
    s.send(b"query")
    print(s.recv(100))
    s.connect((address, 54))
    s.send(b"nobody")
    try: s.recv(100)
    except ConnectionRefusedError: print("refused")
    echo = socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_ICMP if family == 2 else socket.IPPROTO_ICMPV6)
    echo.settimeout(5)
    echo.sendto(struct.pack("!BBHHH4s", 8 if family == 2 else 128, 0, 0, 0, 1, b"ping"), (address, 0))
    print(echo.recv(100)[8:])"#,
    );
    assert_eq!(answer, "b'query'\nrefused\nb'ping'\nb'query'\nrefused\nb'ping'");
}

#[test]
fn let_go_the_pod_is_reached_directly_again() {
    let mut lab = lab();
    assert!(from_outside(&lab, V4, 80).starts_with("inbound"));
    assert_eq!(lab.ask("direct"), "inbound direct");
    assert!(from_outside(&lab, V4, 80).starts_with("outside [::ffff:10.77.0.1]:"));
    assert!(from_outside(&lab, V6, 80).starts_with("outside [fd77::1]:"));
    assert_eq!(from_outside(&lab, V4, 9999), "errno ECONNREFUSED");
}

/// Between the end of the listeners and that of the program there is no gap.
#[test]
fn without_listeners_the_program_lets_everything_pass() {
    let mut lab = lab();
    assert_eq!(lab.ask("deaf"), "deaf");
    assert!(from_outside(&lab, V4, 80).starts_with("outside [::ffff:10.77.0.1]:"));
    assert_eq!(from_outside(&lab, V6, 9999), "errno ECONNREFUSED");
}

#[test]
fn a_killed_agent_leaves_the_application_reachable() {
    let mut lab = lab();
    assert!(from_outside(&lab, V4, 80).starts_with("inbound"));
    lab.kill_agent();
    assert!(from_outside(&lab, V4, 80).starts_with("outside [::ffff:10.77.0.1]:"));
    assert!(from_outside(&lab, V6, 80).starts_with("outside [fd77::1]:"));
    assert_eq!(from_outside(&lab, V4, 9999), "errno ECONNREFUSED");
    lab.start_agent();
    assert_eq!(lab.ask("inbound"), "inbound captured");
    assert!(from_outside(&lab, V4, 80).starts_with("inbound 10.77.0.2:80"));
}

/// A connection that was open before goes on, with the agent's coming and going.
#[test]
fn open_connections_are_not_disturbed() {
    let mut lab = Lab::new();
    let held = r#"
server = socket.create_server(("10.77.0.2", 8081))
server.settimeout(10)
print("listening", flush=True)
peer = server.accept()[0]
for n in range(4):
    peer.sendall(peer.recv(1))
print("whole")"#;
    let client = r#"
for wait in range(50):
    try: s = dial("10.77.0.2", 8081); break
    except ConnectionRefusedError: time.sleep(0.1)
for n in range(4):
    s.sendall(b"x")
    assert s.recv(1) == b"x"
    time.sleep(0.5)
print("whole")"#;
    let (pod, outside) = (lab.pod.clone(), lab.outside.clone());
    let server = std::thread::spawn(move || run_client(&pod, held));
    let client = std::thread::spawn(move || run_client(&outside, client));
    std::thread::sleep(std::time::Duration::from_millis(700));
    lab.ask("inbound");
    std::thread::sleep(std::time::Duration::from_millis(500));
    lab.ask("direct");
    assert_eq!(client.join().unwrap(), "whole");
    assert!(server.join().unwrap().ends_with("whole"));
}
