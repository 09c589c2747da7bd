//! What an agent holds of its pods, counted: that nothing is left over shows in these.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use egret_ebpf::{Enrolment, OwnKey, maps};

use crate::Agent;

/// Counted at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// All descriptors of the process, sockets inside pods among them.
    pub descriptors: usize,
    /// Those of them that are network namespaces of pods.
    pub namespaces: usize,
    /// Entries of the maps `ENROLLED`, `OWN` and `LEFT_ALONE`. (`PENDING` forgets by itself what is old.)
    pub enrolled: usize,
    pub own_addresses: usize,
    pub left_alone: usize,
    /// Pinned links of the programs that capture what comes to pods.
    pub inbound: usize,
}

impl Held {
    pub fn by(agent: &Agent) -> Result<Self> {
        let own = fs::read_link("/proc/self/ns/net")?;
        let open = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?;
        let targets: Vec<_> = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
        let foreign = |target: &&PathBuf| target.to_string_lossy().starts_with("net:") && **target != own;
        let pins = pins(agent)?;
        Ok(Self {
            descriptors: targets.len(),
            namespaces: targets.iter().filter(foreign).count(),
            enrolled: entries::<u64, Enrolment>(&pins, maps::ENROLLED)?,
            own_addresses: entries::<OwnKey, u32>(&pins, maps::OWN)?,
            left_alone: entries::<u64, u32>(&pins, maps::LEFT_ALONE)?,
            inbound: fs::read_dir(pins.join("inbound"))?.count(),
        })
    }
}

/// What of it outlives an agent is in one folder, which is named as its cgroup.
fn pins(agent: &Agent) -> Result<PathBuf> {
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", agent.pid()))?;
    let instance = cgroup.lines().find_map(|line| line.split_once("/egret/")).context("an agent without a cgroup")?.1;
    Ok(Path::new("/sys/fs/bpf/egret").join(instance))
}

fn entries<K: Pod, V: Pod>(pins: &Path, name: &str) -> Result<usize> {
    let map = Map::HashMap(MapData::from_pin(pins.join("maps").join(name))?);
    Ok(HashMap::<_, K, V>::try_from(map)?.keys().count())
}
