//! Another program at the same hook, as Cilium's socket load balancer is one: it sends what dials a Service to an endpoint.

use std::{fs::File, net::Ipv4Addr};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSockAddr},
};

use crate::lab::{Lab, run_client};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egret-ebpf-other"));

/// Attached at the root, for as long as the value lives.
fn attach(service: Ipv4Addr) -> Ebpf {
    let [service, endpoint] = [service, Ipv4Addr::new(10, 77, 0, 1)].map(|ip| u32::from_ne_bytes(ip.octets()));
    let mut loader = EbpfLoader::new();
    loader.override_global("SERVICE", &service, true).override_global("ENDPOINT", &endpoint, true);
    let mut other = loader.load(OBJECT).unwrap();
    let program: &mut CgroupSockAddr = other.program_mut("other_connect4").unwrap().try_into().unwrap();
    program.load().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().map(|line| line.split(' ')).find_map(|mut words| {
        let path = words.nth(1)?;
        (words.next()? == "cgroup2").then_some(path)
    });
    program.attach(File::open(root.unwrap()).unwrap(), CgroupAttachMode::Single).unwrap();
    other
}

/// The pod's rules speak of what it has dialled, whoever was attached first; and for all others, the agent too, the other program
/// does what it is there for.
fn assert_each_does_its_own(lab: &mut Lab, service: Ipv4Addr) {
    let answer = lab.client(&format!("print(everything(dial('{service}')))"));
    assert!(answer.starts_with(&format!("captured {service}:80 from 10.77.0.2:")), "{answer}");
    let answer = lab.client(&format!("print(everything(dial('{service}', 7)))"));
    assert!(answer.starts_with("relayed outside 10.77.0.2:"), "the agent's own: {answer}");
    let answer = run_client(&lab.outside, &format!("print(everything(dial('{service}')))"));
    assert!(answer.starts_with("outside 10.77.0.1:"), "not enrolled: {answer}");
    let counters = lab.ask("counters");
    assert!(counters.contains("denied: 0") && counters.contains("guarded: 0"), "{counters}");
}

#[test]
fn one_that_was_there_before() {
    let service = Ipv4Addr::new(203, 0, 113, 21);
    let _other = attach(service);
    assert_each_does_its_own(&mut Lab::new(), service);
}

#[test]
fn one_that_comes_later() {
    let service = Ipv4Addr::new(203, 0, 113, 22);
    let mut lab = Lab::new();
    let _other = attach(service);
    assert_each_does_its_own(&mut lab, service);
}

/// The agent is gone: what is captured is refused, and the other program opens no way around that.
#[test]
fn it_opens_no_way_around() {
    let service = Ipv4Addr::new(203, 0, 113, 23);
    let _other = attach(service);
    let mut lab = Lab::new();
    lab.kill_agent();
    assert_eq!(lab.client(&format!("dial('{service}')")), "errno ECONNREFUSED");
    assert_eq!(lab.client("dial(V4)"), "errno ECONNREFUSED");
}
