//! A pod in which something is forbidden: while no agent accepts, what comes from outside is refused, and never reaches the
//! application.

use std::{fs, thread, time::Duration};

use egret::capture::{Removed, uninstall};

use crate::lab::{Lab, run_client};

const V4: &str = "print(everything(dial('10.77.0.2')))";
const V6: &str = "print(everything(dial('fd77::2', 80, socket.AF_INET6)))";

/// As in `inbound`, but closed.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let pod = lab.pod.clone();
    lab.serve(&pod, &["::"]);
    strict(&mut lab);
    lab
}

fn strict(lab: &mut Lab) {
    assert_eq!(lab.ask("strict"), "inbound captured, fail closed");
}

fn pins(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(format!("/sys/fs/bpf/egret/{}/inbound", lab.instance)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn assert_served(lab: &Lab) {
    for code in [V4, V6] {
        let answer = run_client(&lab.outside, code);
        assert!(answer.starts_with("inbound ") && answer.contains(" -> outside "), "{answer}");
    }
}

fn assert_refused(lab: &Lab) {
    for code in [V4, V6, "dial('10.77.0.3')", "dial('10.77.0.2', 9999)", "dial('fd77::2', 22, socket.AF_INET6)"] {
        assert_eq!(run_client(&lab.outside, code), "errno ECONNREFUSED", "{code}");
    }
    // The pod itself is not what is forbidden.
    assert!(lab.client("print(everything(dial('127.0.0.1')))").starts_with("outside "));
    assert!(lab.client("print(everything(dial('10.77.0.2')))").starts_with("outside "));
    assert!(lab.client("print(everything(dial('fd77::2', 80, socket.AF_INET6)))").starts_with("outside "));
}

#[test]
fn a_killed_agent_leaves_the_pod_refused_and_the_next_serves_it() {
    let mut lab = lab();
    let cookie = lab.ask("cookie");
    assert_served(&lab);
    lab.kill_agent();
    assert_refused(&lab);
    assert_eq!(lab.start_agent(), format!("started [{cookie}]"));
    // Not yet captured by the new one: what the earlier agent left still holds.
    assert_refused(&lab);
    strict(&mut lab);
    assert_served(&lab);
    assert_eq!(pins(&lab), [cookie]);
    lab.kill_agent();
    assert_refused(&lab);
}

/// What is no longer forbidden when the next agent comes is no longer refused after it.
#[test]
fn the_next_agent_may_want_it_open() {
    let mut lab = lab();
    lab.kill_agent();
    assert_refused(&lab);
    lab.start_agent();
    assert_eq!(lab.ask("inbound"), "inbound captured");
    assert_served(&lab);
    lab.kill_agent();
    assert!(run_client(&lab.outside, V4).starts_with("outside [::ffff:10.77.0.1]:"));
}

#[test]
fn refused_between_the_end_of_the_listeners_and_that_of_the_agent() {
    let mut lab = lab();
    assert_eq!(lab.ask("stop"), "stopped");
    assert_refused(&lab);
    lab.kill_agent();
    assert_refused(&lab);
}

/// Also where the agent did not see its listeners end.
#[test]
fn listeners_that_are_gone_mean_refused() {
    let mut lab = lab();
    assert_eq!(lab.ask("deaf"), "deaf");
    assert_refused(&lab);
}

#[test]
fn datagrams_are_left_alone() {
    let mut lab = lab();
    lab.kill_agent();
    let answer = run_client(
        &lab.outside,
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(5)\ns.sendto(b'query', ('10.77.0.2', 53))\nprint(s.recv(100))",
    );
    assert_eq!(answer, "b'query'");
}

/// The pod dials out as before, whose answers come from outside too.
#[test]
fn what_the_pod_dials_is_not_refused() {
    let lab = lab();
    let relayed = lab.client("print(everything(dial(V4, 7)))");
    assert!(relayed.starts_with("relayed outside 10.77.0.2:"), "{relayed}");
}

#[test]
fn let_go_the_pod_is_reached_directly_again() {
    let mut lab = lab();
    assert_eq!(lab.ask("direct"), "inbound direct");
    assert!(run_client(&lab.outside, V4).starts_with("outside [::ffff:10.77.0.1]:"));
    assert_eq!(pins(&lab), [""; 0]);
    lab.kill_agent();
    assert!(run_client(&lab.outside, V4).starts_with("outside [::ffff:10.77.0.1]:"));
}

#[test]
fn a_released_pod_that_an_earlier_agent_left() {
    let mut lab = lab();
    lab.kill_agent();
    lab.start_agent();
    assert_eq!(lab.ask("release"), "[]");
    assert!(run_client(&lab.outside, V4).starts_with("outside [::ffff:10.77.0.1]:"));
}

#[test]
fn uninstall_opens_the_pod() {
    let mut lab = lab();
    lab.kill_agent();
    assert_refused(&lab);
    assert_eq!(uninstall(&lab.instance).unwrap(), Removed { links: 7, maps: 8, cgroup: true });
    assert!(run_client(&lab.outside, V4).starts_with("outside [::ffff:10.77.0.1]:"));
    assert!(run_client(&lab.outside, V6).starts_with("outside [fd77::1]:"));
    assert!(!fs::exists(format!("/sys/fs/bpf/egret/{}", lab.instance)).unwrap());
}

/// With the namespace its program is gone; the pin is found by the next agent, and the new namespace of that name is nobody's.
#[test]
fn a_namespace_removed_while_no_agent_runs_leaves_nothing() {
    let mut lab = lab();
    let old = lab.ask("cookie");
    lab.kill_agent();
    lab.remove_pod();
    assert_eq!(pins(&lab), [old.as_str()]);
    lab.make_pod();
    // The servers of the old namespace are still there, and with them the namespace: they must end first.
    let pod = lab.pod.clone();
    lab.stop_servers();
    lab.serve(&pod, &["::"]);
    assert!(run_client(&lab.outside, V4).starts_with("outside [::ffff:10.77.0.1]:"));
    let mut left = pins(&lab);
    for _ in 0..50 {
        lab.start_agent();
        left = pins(&lab);
        if left.is_empty() {
            break;
        }
        // The kernel ends namespaces in its own time.
        lab.kill_agent();
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(left, [""; 0]);
    assert_ne!(lab.ask("cookie"), old);
    strict(&mut lab);
    assert!(run_client(&lab.outside, V4).starts_with("inbound 10.77.0.2:80"));
}

/// Clients without pause while what is forbidden changes and agents are killed: once closed, nothing reaches the application
/// but through an agent, and what is open is not cut.
#[test]
fn mode_changes_and_restarts_under_load() {
    let mut lab = lab();
    let (outside, pod) = (lab.outside.clone(), lab.pod.clone());
    let held = thread::spawn(move || {
        run_client(
            &pod,
            r#"
server = socket.create_server(("10.77.0.2", 8080))
server.settimeout(10)
peer = server.accept()[0]
peer.settimeout(10)
for n in range(8): peer.sendall(peer.recv(1))
print("whole")"#,
        )
    });
    let holding = lab.outside.clone();
    let holder = thread::spawn(move || {
        run_client(
            &holding,
            r#"
for wait in range(50):
    try:
        s = dial("10.77.0.2", 8080)
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        break
    except (ConnectionRefusedError, ConnectionResetError, AssertionError): time.sleep(0.1)
for n in range(7):
    s.sendall(b"x")
    assert s.recv(1) == b"x"
    time.sleep(0.2)
print("whole")"#,
        )
    });
    thread::sleep(Duration::from_millis(500));
    for _ in 0..3 {
        assert_eq!(lab.ask("open"), "open");
        thread::sleep(Duration::from_millis(200));
        assert_eq!(lab.ask("closed"), "closed");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(holder.join().unwrap(), "whole");
    assert_eq!(held.join().unwrap(), "whole");
    let clients = thread::spawn(move || {
        run_client(
            &outside,
            r#"
seen = {}
until = time.monotonic() + 4
while time.monotonic() < until:
    for address, family in [("10.77.0.2", socket.AF_INET), ("fd77::2", socket.AF_INET6)]:
        try: answer = everything(dial(address, 80, family)).split()
        except OSError as e: answer = [errno.errorcode.get(e.errno, "timeout")]
        seen[answer[0] if answer else ""] = seen.get(answer[0] if answer else "", 0) + 1
print(sorted(seen), seen.get("inbound", 0) > 50)"#,
        )
    });
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(400));
        lab.kill_agent();
        thread::sleep(Duration::from_millis(200));
        lab.start_agent();
        strict(&mut lab);
    }
    let answer = clients.join().unwrap();
    assert!(!answer.contains("outside"), "{answer}");
    assert!(answer.contains("'ECONNREFUSED'") && answer.ends_with("True"), "{answer}");
}

/// From outside with the pod's own address as the source: the kernel drops it (IPv4), or keeps the answer in the pod (IPv6).
/// No connection comes about, and the application hears nothing.
#[test]
fn a_forged_own_address_gets_nowhere() {
    let lab = lab();
    let (pod, outside) = (lab.pod.clone(), lab.outside.clone());
    let application = thread::spawn(move || {
        run_client(
            &pod,
            r#"
four, six = socket.create_server(("10.77.0.2", 9000)), socket.create_server(("fd77::2", 9000), family=socket.AF_INET6)
ready = select.select([four, six], [], [], 5)[0]
print(len(ready))"#,
        )
    });
    thread::sleep(Duration::from_millis(700));
    let said = run_client(
        &outside,
        r#"
def checksum(data):
    if len(data) % 2: data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def tcp(source, to, flags, sequence, acknowledged, pseudo):
    head = struct.pack("!HHIIBBHHH", source, to, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0)
    return head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
four, six = socket.inet_aton("10.77.0.2"), socket.inet_pton(socket.AF_INET6, "fd77::2")
# The neighbour's address, from the kernel's own table.
dial("10.77.0.2", 80).close()
import subprocess
neighbour = subprocess.run(["ip", "neigh", "show", "10.77.0.2"], capture_output=True, text=True).stdout.split()
peer = bytes.fromhex(neighbour[neighbour.index("lladdr") + 1].replace(":", ""))
link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
link.settimeout(1)
def v4(source, port):
    segment = tcp(port, 9000, 2, 7, 0, source + four + struct.pack("!BBH", 0, 6, 20))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, source, four)
    link.sendto(head[:10] + struct.pack("!H", checksum(head)) + head[12:] + segment, ("eth0", 0x800, 0, 0, peer))
def v6(source, port):
    segment = tcp(port, 9000, 2, 7, 0, source + six + struct.pack("!IHBB", 20, 0, 0, 6))
    link.sendto(struct.pack("!IHBB16s16s", 6 << 28, 20, 6, 64, source, six) + segment, ("eth0", 0x86dd, 0, 0, peer))
def answers():
    seen, until = 0, time.monotonic() + 0.5
    while time.monotonic() < until:
        packet = link.recv(2048) if select.select([link], [], [], 0.5)[0] else b""
        head = packet[20:] if packet[:1] == b"\x45" else packet[40:]
        seen += head[:2] == struct.pack("!H", 9000)
    return seen
for n in range(5): v4(four, 40000 + n); v6(six, 40000 + n)
print("answers", answers())
# The same with the client's own address, to know that such packets would be answered: by the agent.
v4(socket.inet_aton(V4), 40000); print(answers() > 0)
v6(socket.inet_pton(socket.AF_INET6, V6), 40000); print(answers() > 0)"#,
    );
    assert_eq!(application.join().unwrap(), "0");
    assert_eq!(said, "answers 0\nTrue\nTrue");
}
