//! The agent's own cgroup. Its id tells the agent's sockets from the pods': a mark can be forged with CAP_NET_RAW, a
//! process id changes with every restart.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use super::{CaptureError, preflight::apart};
use crate::node::{cgroup_mounts, has_pods};

const FOLDER: &str = "egret";

/// The root of the cgroup2 tree, at which the programs are attached. On hybrid systems it is not `/sys/fs/cgroup`.
pub(super) fn root() -> Result<PathBuf, CaptureError> {
    let roots: Vec<PathBuf> =
        cgroup_mounts().into_iter().filter(|mount| mount.cgroup2).map(|mount| mount.path).collect();
    // Every cgroup has this file, except the root of them all. A node of a cluster may be a container itself: what is below
    // its own root is all that it runs.
    let whole = roots.iter().find(|root| !root.join("cgroup.events").exists());
    match whole.or_else(|| roots.iter().find(|root| has_pods(root))) {
        Some(root) => Ok(root.clone()),
        None => Err(roots.into_iter().next().map_or(CaptureError::NoCgroup2, CaptureError::NotTheRootCgroup)),
    }
}

/// Below which cgroup the agent makes its own: its container's, whose limits stay its limits, else the root.
fn base(root: &Path) -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    container(&own).map_or_else(|| root.to_owned(), |path| root.join(path))
}

/// The cgroup2 line of cgroups(7) (`0::/path`), where a kubelet made that cgroup.
fn container(cgroups: &str) -> Option<&str> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    path.contains("kubepods").then_some(path)
}

/// A container has a cgroup namespace of its own as a rule, in which paths begin at its own cgroup. Where process 1 is the
/// host's (hostPID), its namespace shows them whole.
///
/// Of the thread that calls it, and of threads that it starts later.
pub(super) fn join_host_namespace() {
    if !apart("cgroup") {
        return;
    }
    let joined = File::open("/proc/1/ns/cgroup").and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWCGROUP)?));
    if let Err(error) = joined {
        log::debug!("cannot join the cgroup namespace of process 1: {error}");
    }
}

pub(super) fn of(root: &Path, instance: &str) -> PathBuf {
    root.join(FOLDER).join(instance)
}

/// Moves this process, with all its threads, into the instance's cgroup, made where needed.
///
/// Returns the cgroup's id and its folder, locked: who starts or removes an instance holds the lock meanwhile.
pub(super) fn enter(root: &Path, instance: &str) -> Result<(u64, File), CaptureError> {
    let path = of(&base(root), instance);
    let result = (|| {
        fs::create_dir_all(&path)?;
        let folder = File::open(&path)?;
        folder.lock()?;
        // "0" is whoever writes.
        fs::write(path.join("cgroup.procs"), "0")?;
        // The inode is the id (kernfs, on 64-bit machines).
        Ok((folder.metadata()?.ino(), folder))
    })();
    result.map_err(|error| CaptureError::Cgroup { path, error })
}

/// The processes in a cgroup; one that is gone has none.
pub(super) fn processes(path: &Path) -> io::Result<Vec<String>> {
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_in_a_pod_stays_below_its_containers_cgroup() {
        let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f.slice/cri-containerd-ab.scope";
        assert_eq!(container(&format!("12:pids:/x\n0::/{pod}\n")), Some(pod));
        assert_eq!(container("0::/system.slice/egret.service\n"), None);
        assert_eq!(container("0::/\n"), None);
    }

    #[test]
    fn this_machine_has_a_root_cgroup() {
        assert!(root().unwrap().join("cgroup.procs").exists());
    }
}
