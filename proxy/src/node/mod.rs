//! The pods that the kubelet of this node runs: found by their cgroups, and from there by their processes.
//!
//! The kubelet names a pod's cgroup after its UID, whatever runs the containers. A folder that comes or goes wakes whoever
//! waits ([`Node::woken`]); that a first process comes does not, so while one is awaited it is looked for often.

mod mounts;
mod pod;
mod tree;

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::{Instant, sleep};

use self::tree::Root;
pub use self::{
    mounts::{Mount, cgroup_mounts},
    pod::{Absent, Sandbox},
    tree::has_pods,
};
use crate::{limits, netns::Namespace};

/// Bytes of events taken at once; what they say is not looked at.
const BUFFER: usize = 4 * 1024;

/// How an agent of a cluster knows its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `spec.nodeName` of its pods.
    pub name: String,
    /// The kubelet's `--cgroup-root`. Empty: wherever the pods are.
    pub cgroup_root: String,
}

/// Where the cgroups of pods are in the cgroup2 tree, as the kernel programs want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kubepods {
    pub cgroup: u64,
    /// How far from the root of the tree; None: that cannot be seen from here (a node that is a container itself).
    pub level: Option<u32>,
}

/// The folders of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Folders {
    /// One in each hierarchy that has it.
    paths: Vec<PathBuf>,
    /// The id of the cgroup in the cgroup2 tree.
    cgroup: Option<u64>,
}

pub struct Node {
    mounts: Vec<Mount>,
    below: String,
    roots: Vec<Root>,
    pods: HashMap<String, Folders>,
    /// When a folder was seen first.
    seen: HashMap<String, Instant>,
    events: Option<EventStream<Vec<u8>>>,
}

impl Node {
    /// Within a tokio runtime folders that come and go wake; else, and where inotify cannot be had, whoever looks finds them.
    #[must_use]
    pub fn new(cgroup_root: &str) -> Self {
        Self::of_mounts(cgroup_mounts(), cgroup_root)
    }

    fn of_mounts(mounts: Vec<Mount>, cgroup_root: &str) -> Self {
        let events = tokio::runtime::Handle::try_current().ok().and_then(|_| {
            let events = Inotify::init().and_then(|inotify| inotify.into_event_stream(vec![0; BUFFER]));
            events.inspect_err(|error| log::warn!("inotify cannot be had ({error}): pods are found later")).ok()
        });
        let mut node = Self {
            mounts,
            below: cgroup_root.trim_matches('/').to_owned(),
            roots: Vec::new(),
            pods: HashMap::new(),
            seen: HashMap::new(),
            events,
        };
        node.refresh();
        node
    }

    /// Looks at the folders again; true where some came or went.
    pub fn refresh(&mut self) -> bool {
        let before = self.roots.len();
        self.roots.retain(|root| root.path.is_dir());
        if self.roots.is_empty() {
            let found = self.mounts.iter().flat_map(|mount| tree::roots(mount, &self.below));
            self.roots = found.collect();
        }
        // Before the look: what comes after it wakes.
        self.watch();
        let mut pods: HashMap<String, Folders> = HashMap::new();
        for root in &self.roots {
            for (uid, path) in root.pods() {
                let folders = pods.entry(uid).or_default();
                if root.cgroup2 {
                    folders.cgroup = std::fs::metadata(&path).ok().map(|metadata| metadata.ino());
                }
                folders.paths.push(path);
            }
        }
        self.seen.retain(|uid, _| pods.contains_key(uid));
        for uid in pods.keys() {
            self.seen.entry(uid.clone()).or_insert_with(Instant::now);
        }
        let changed = self.roots.len() != before || pods != self.pods;
        self.pods = pods;
        changed
    }

    /// Again each time: a folder that goes takes its watch with it, and one that is watched already stays so.
    fn watch(&self) {
        let Some(events) = &self.events else { return };
        let mut watches = events.watches();
        let mut wanted: HashSet<PathBuf> = self.roots.iter().flat_map(Root::folders).collect();
        if self.roots.is_empty() {
            wanted.extend(self.mounts.iter().map(|mount| mount.path.join(&self.below)));
        }
        for path in &wanted {
            // A class of pods may not have a folder yet.
            if let Err(error) = watches.add(path, WatchMask::CREATE | WatchMask::DELETE | WatchMask::DELETE_SELF)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::debug!("{} cannot be watched: {error}", path.display());
            }
        }
    }

    /// Returns when folders came or went, or, where a pod is `awaited`, when it is time to look for it again.
    pub async fn woken(&mut self, awaited: bool) {
        let again = async { if awaited { sleep(limits::POD_START_CHECK).await } else { std::future::pending().await } };
        let events = async {
            match &mut self.events {
                // A stream that fails is one that never wakes; the regular look goes on.
                Some(events) => match events.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = again => {}
            () = events => {
                // One `mkdir` of a container runtime is followed by others.
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Whether a pod was created a short while ago, so that its first process is about to come.
    #[must_use]
    pub fn is_starting(&self, uid: &str) -> bool {
        self.seen.get(uid).is_some_and(|seen| seen.elapsed() < limits::POD_START_TIME)
    }

    /// The id of a pod's cgroup in the cgroup2 tree.
    #[must_use]
    pub fn cgroup(&self, uid: &str) -> Option<u64> {
        self.pods.get(uid)?.cgroup
    }

    /// Those of all pods.
    #[must_use]
    pub fn cgroups(&self) -> HashSet<u64> {
        self.pods.values().filter_map(|folders| folders.cgroup).collect()
    }

    /// Whether the pod's cgroup is still there.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The network namespace of a pod.
    ///
    /// # Errors
    /// What is awaited: its cgroup, its first process, a namespace of its own.
    pub fn find(&self, uid: &str) -> Result<(Namespace, Sandbox), Absent> {
        let folders = self.pods.get(uid).ok_or(Absent::NoCgroup)?;
        Sandbox::find(&folders.paths)
    }

    /// Where pods are in the cgroup2 tree. Empty: nowhere, or not yet.
    #[must_use]
    pub fn kubepods(&self) -> Vec<Kubepods> {
        let roots = self.roots.iter().filter(|root| root.cgroup2);
        roots.filter_map(|root| Some(Kubepods { cgroup: id(&root.path).ok()?, level: root.level })).collect()
    }

    /// The folders below which pods are, in all hierarchies.
    #[must_use]
    pub fn roots(&self) -> Vec<&Path> {
        self.roots.iter().map(|root| root.path.as_path()).collect()
    }
}

/// The inode is the id (kernfs, on 64-bit machines).
fn id(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.ino())
}

#[cfg(test)]
mod tests;
