//! The application sees its client's address, at a port of the agent's choice.

use std::{process::Command, thread};

use crate::lab::{Lab, run_client};

fn lab() -> Lab {
    let mut lab = Lab::new();
    let pod = lab.pod.clone();
    lab.serve(&pod, &["::"]);
    assert_eq!(lab.ask("strict"), "inbound captured, fail closed");
    assert_eq!(lab.ask("original"), "original source");
    lab
}

fn rules(lab: &Lab) -> String {
    let show = |arguments: &[&str]| {
        let output = Command::new("ip").args(["-n", &lab.pod]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    [show(&["rule"]), show(&["-6", "rule"]), show(&["route", "show", "table", "all"])].concat()
}

#[test]
fn the_clients_address_is_seen_over_both_families() {
    let mut lab = lab();
    let answer = run_client(&lab.outside, "print(everything(dial('10.77.0.2')))");
    assert!(answer.contains(" -> outside [::ffff:10.77.0.1]:6"), "{answer}");
    // To a second address of the interface.
    let answer = run_client(&lab.outside, "print(everything(dial('10.77.0.3')))");
    assert!(answer.contains(" -> outside [::ffff:10.77.0.1]:6"), "{answer}");
    let answer = run_client(&lab.outside, "print(everything(dial('fd77::2', 80, socket.AF_INET6)))");
    assert!(answer.contains(" -> outside [fd77::1]:6"), "{answer}");
    let counters = lab.ask("counters");
    assert!(counters.contains("redirected: 0, denied: 0, exempt: 3, guarded: 0"), "{counters}");
}

#[test]
fn both_directions_end_by_themselves() {
    let lab = lab();
    let pod = lab.pod.clone();
    let server = thread::spawn(move || {
        run_client(
            &pod,
            r#"
for address, family in [("10.77.0.2", socket.AF_INET), ("fd77::2", socket.AF_INET6)]:
    server = socket.create_server((address, 8080), family=family)
    server.settimeout(10)
    peer, client = server.accept()
    text = everything(peer)
    peer.sendall((text * 100000 + client[0]).encode())
    peer.close()
    server.close()
print("whole")"#,
        )
    });
    let answer = run_client(
        &lab.outside,
        r#"
for address, family in [("10.77.0.2", socket.AF_INET), ("fd77::2", socket.AF_INET6)]:
    for wait in range(50):
        try:
            s = dial(address, 8080, family)
            s.sendall(b"hello")
            s.shutdown(socket.SHUT_WR)
            answer = everything(s)
            if answer: break
        except OSError: pass
        time.sleep(0.1)
    print(answer[:10], len(answer), answer[500000:])"#,
    );
    assert_eq!(answer, "hellohello 500009 10.77.0.1\nhellohello 500007 fd77::1");
    assert_eq!(server.join().unwrap(), "whole");
}

/// Many at once from one client, each of its own connections beside the one that the application sees.
#[test]
fn concurrent_connections_keep_apart() {
    let lab = lab();
    let answer = run_client(
        &lab.outside,
        r#"
wrong = []
def one(n):
    try: text = everything(dial("10.77.0.2", 80))
    except OSError as error: text = repr(error)
    if " -> outside [::ffff:10.77.0.1]:6" not in text: wrong.append(text)
for burst in range(4):
    threads = [threading.Thread(target=one, args=(n,)) for n in range(50)]
    [t.start() for t in threads]
    [t.join() for t in threads]
print(wrong)"#,
    );
    assert_eq!(answer, "[]");
}

/// A pod can remove what the agent made in it: then nobody reaches its application, and nothing goes astray.
#[test]
fn without_the_rules_nothing_comes_about() {
    let lab = lab();
    lab.exec_in_pod(&["ip", "rule", "del", "fwmark", "15006"]);
    let code =
        "s = dial('10.77.0.2')\ns.settimeout(2)\ntry: print(s.recv(100))\nexcept socket.timeout: print('nothing')";
    assert_eq!(run_client(&lab.outside, code), "nothing");
}

#[test]
fn nothing_is_left_behind() {
    let mut lab = Lab::new();
    let before = rules(&lab);
    assert_eq!(lab.ask("strict"), "inbound captured, fail closed");
    lab.ask("original");
    assert_ne!(rules(&lab), before);
    assert_eq!(lab.ask("direct"), "inbound direct");
    assert_eq!(rules(&lab), before, "released");
}

#[test]
fn uninstall_removes_the_rules_too() {
    let mut lab = Lab::new();
    let before = rules(&lab);
    assert_eq!(lab.ask("inbound"), "inbound captured");
    lab.ask("original");
    lab.kill_agent();
    assert_ne!(rules(&lab), before);
    egret::capture::uninstall(&lab.instance).unwrap();
    assert_eq!(rules(&lab), before);
    assert_eq!(lab.exec_in_pod(&["sysctl", "-n", "net.ipv4.tcp_fwmark_accept"]), "0");
}
