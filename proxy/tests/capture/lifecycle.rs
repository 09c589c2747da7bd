//! Namespaces and agents that come and go.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{HashMap, MapInfo},
    programs::links::{FdLink, PinnedLink},
};
use egret::capture::{CaptureError, Removed, uninstall};

use crate::lab::{Agent, Lab};

const DIAL: &str = "print(everything(dial(V4)))";

/// Kernel ids of everything pinned.
fn ids(instance: &str) -> Vec<(String, u32)> {
    let folder = format!("/sys/fs/bpf/egret/{instance}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("{folder}/maps")).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.display().to_string(), MapInfo::from_pin(&path).unwrap().id()));
    }
    for entry in std::fs::read_dir(format!("{folder}/links")).unwrap() {
        let path = entry.unwrap().path();
        let link = FdLink::from(PinnedLink::from_pin(&path).unwrap());
        found.push((path.display().to_string(), link.info().unwrap().id()));
    }
    found.sort();
    found
}

#[test]
fn a_released_pod_goes_its_own_way() {
    let mut lab = Lab::new();
    assert!(lab.client(DIAL).starts_with("captured"));
    assert_eq!(lab.ask("release"), "[]");
    assert!(lab.client(DIAL).starts_with("outside 10.77.0.2:"));
}

#[test]
fn a_namespace_removed_and_made_again() {
    let mut lab = Lab::new();
    let old = lab.ask("cookie");
    lab.remove_pod();
    lab.make_pod();
    // Another namespace that bears the same name and addresses: what was enrolled does not count for it.
    assert!(lab.client(DIAL).starts_with("outside 10.77.0.2:"));
    assert_eq!(lab.ask("renew"), "enrolled");
    assert_eq!(lab.agent.as_mut().unwrap().line(), "renewed");
    assert_ne!(lab.ask("cookie"), old);
    assert!(lab.client(DIAL).starts_with("captured 10.77.0.1:80"));
}

#[test]
fn a_killed_agent_means_refused_and_the_next_one_takes_over() {
    let mut lab = Lab::new();
    let cookie = lab.ask("cookie");
    let before = ids(&lab.instance);
    assert_eq!(before.len(), 14, "{before:?}");
    lab.kill_agent();
    for code in [DIAL, "dial(V6, 80, socket.AF_INET6)", "dial('::ffff:' + V4, 80, socket.AF_INET6)"] {
        assert_eq!(lab.client(code), "errno ECONNREFUSED", "{code}");
    }
    assert_eq!(lab.start_agent(), format!("started [{cookie}]"));
    assert_eq!(ids(&lab.instance), before);
    assert_eq!(lab.ask("attached"), "true");
    assert!(lab.client(DIAL).starts_with("captured 10.77.0.1:80"));
    let log = lab.ask("log");
    assert!(log.contains("redirected"), "the programs' messages reach the new agent: {log}");
}

/// Clients without pause while the agent is killed and started three times: captured or refused, never let through.
#[test]
fn no_plain_text_while_agents_change() {
    let mut lab = Lab::new();
    let pod = lab.pod.clone();
    let clients = thread::spawn(move || {
        crate::lab::run_client(
            &pod,
            r#"
seen = {}
until = time.monotonic() + 4
while time.monotonic() < until:
    try: answer = everything(dial(V4)).split()
    except OSError as e: answer = [errno.errorcode.get(e.errno, "timeout")]
    seen[answer[0] if answer else ""] = seen.get(answer[0] if answer else "", 0) + 1
print(sorted(seen), seen.get("captured", 0) > 100)"#,
        )
    });
    let until = Instant::now() + Duration::from_millis(3200);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(300));
        lab.kill_agent();
        thread::sleep(Duration::from_millis(200));
        lab.start_agent();
    }
    let answer = clients.join().unwrap();
    assert!(!answer.contains("outside"), "{answer}");
    assert!(answer.contains("'ECONNREFUSED'") && answer.ends_with("True"), "{answer}");
}

#[test]
fn uninstall_takes_everything_away_but_not_from_under_an_agent() {
    let mut lab = Lab::new();
    let error = uninstall(&lab.instance).unwrap_err();
    assert!(matches!(error, CaptureError::Running { .. }), "{error}");
    assert!(lab.client(DIAL).starts_with("captured"));
    lab.kill_agent();
    assert_eq!(uninstall(&lab.instance).unwrap(), Removed { links: 6, maps: 8, cgroup: true });
    assert!(lab.client(DIAL).starts_with("outside 10.77.0.2:"));
    assert_eq!(uninstall(&lab.instance).unwrap(), Removed::default());
    assert!(!std::path::Path::new(&format!("/sys/fs/bpf/egret/{}", lab.instance)).exists());
}

#[test]
fn uninstall_deals_with_what_is_half_gone() {
    let mut lab = Lab::new();
    lab.kill_agent();
    let folder = format!("/sys/fs/bpf/egret/{}", lab.instance);
    std::fs::remove_file(format!("{folder}/links/sockops")).unwrap();
    std::fs::remove_file(format!("{folder}/maps/PENDING")).unwrap();
    assert_eq!(uninstall(&lab.instance).unwrap(), Removed { links: 5, maps: 7, cgroup: true });
}

/// Programs that read another version's maps could let a pod through; the pod stays refused instead.
#[test]
fn maps_of_another_version_are_not_adopted() {
    let mut lab = Lab::new();
    lab.kill_agent();
    let path = format!("/sys/fs/bpf/egret/{}/maps/PENDING", lab.instance);
    std::fs::remove_file(&path).unwrap();
    HashMap::<_, u32, u32>::create(8, 0).unwrap().pin(&path).unwrap();
    let said = Agent::start(&lab.instance, &lab.pod).line();
    assert!(said.starts_with("error the maps pinned in") && said.contains("PENDING has another shape"), "{said}");
    assert_eq!(lab.client(DIAL), "errno ECONNREFUSED");
}

/// Two instances on one machine, each with its own pod and its own programs.
#[test]
fn agents_live_side_by_side() {
    let (mut one, two) = (Lab::new(), Lab::new());
    assert!(one.client(DIAL).starts_with("captured"));
    assert!(two.client(DIAL).starts_with("captured"));
    one.kill_agent();
    assert_eq!(one.client(DIAL), "errno ECONNREFUSED");
    assert!(two.client(DIAL).starts_with("captured"));
    uninstall(&one.instance).unwrap();
    assert!(two.client(DIAL).starts_with("captured"));
}

/// Nobody without the rights gets further than one sentence.
#[test]
fn without_rights_the_agent_says_so() {
    let output = Command::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "agent::agent_process", "--ignored", "--nocapture"])
        .env(crate::agent::ENVIRONMENT, "egret-no-rights none")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("@error the agent lacks CAP_NET_ADMIN: run it as root"), "{said}");
}
