//! Many enrolled namespaces, as far as the kernel's half of egret can tell: entries in its maps.

use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use egret_ebpf::{Address, Enrolment, OwnKey, maps};

/// A cookie that no namespace of this machine gets: the kernel counts up from 1.
const COOKIES: u64 = 1 << 62;

/// Makes the agent of this process believe that so many namespaces more are enrolled, with an address each. The agent itself
/// knows nothing of them; they go with its maps.
pub fn enrol(pid: u32, namespaces: u32) -> Result<()> {
    let mut enrolled: HashMap<_, u64, Enrolment> = open(pid, maps::ENROLLED)?.try_into()?;
    let mut own: HashMap<_, OwnKey, u32> = open(pid, maps::OWN)?.try_into()?;
    for number in 0..namespaces {
        let cookie = COOKIES + u64::from(number);
        let ip = std::net::Ipv4Addr::from(0x0a80_0000 + number);
        enrolled.insert(cookie, Enrolment::new(Some(ip), None, 15_001), 0)?;
        own.insert(OwnKey { cookie, address: Address::from(std::net::IpAddr::from(ip)) }, 0, 0)?;
    }
    Ok(())
}

fn open(pid: u32, name: &str) -> Result<Map> {
    // Pins and cgroup bear the same name.
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let instance = cgroup.lines().find_map(|line| line.split_once("/egret/")).context("an agent without a cgroup")?.1;
    let path = PathBuf::from("/sys/fs/bpf/egret").join(instance).join("maps").join(name);
    Ok(Map::HashMap(MapData::from_pin(&path).with_context(|| path.display().to_string())?))
}
