//! The agent's own cgroup. Its id tells the agent's sockets from the pods': a mark can be forged with CAP_NET_RAW, a
//! process id changes with every restart.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use super::CaptureError;

const FOLDER: &str = "egret";

/// The root of the cgroup2 tree, at which the programs are attached. On hybrid systems it is not `/sys/fs/cgroup`.
pub(super) fn root() -> Result<PathBuf, CaptureError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = find(&mounts);
    // Every cgroup has this file, except the root of them all.
    let whole = mounts.iter().find(|mount| !mount.join("cgroup.events").exists());
    match (whole, mounts.first()) {
        (Some(root), _) => Ok(root.clone()),
        (None, Some(part)) => Err(CaptureError::NotTheRootCgroup(part.clone())),
        (None, None) => Err(CaptureError::NoCgroup2),
    }
}

/// Where cgroup2 is mounted, by proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, `-`,
/// type, source, options. A mount's root is told as seen from this process's cgroup namespace: `/..` is above it.
fn find(mountinfo: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let above = root.split('/').all(|part| part.is_empty() || part == "..");
        // Spaces are written as octal escapes; nobody mounts cgroups on such a path.
        (right.starts_with("cgroup2 ") && above && !point.contains('\\')).then(|| PathBuf::from(point))
    };
    mountinfo.lines().filter_map(mount).collect()
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
    let theirs = Path::new("/proc/1/ns/cgroup");
    let of = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    match (of(theirs), of(Path::new("/proc/thread-self/ns/cgroup"))) {
        (Ok(host), Ok(own)) if host != own => {
            let joined = File::open(theirs).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWCGROUP)?));
            if let Err(error) = joined {
                log::debug!("cannot join the cgroup namespace of process 1: {error}");
            }
        }
        _ => {}
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
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(hybrid), [Path::new("/sys/fs/cgroup/unified")]);
        let part = "35 25 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
        let whole = "36 25 0:30 / /host/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(find(&format!("{part}{whole}")), [Path::new("/host/cgroup")]);
        assert!(find(part).is_empty() && find("gibberish\n").is_empty());
        let mounted_into_a_container = "59 49 0:38 /../.. /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find(mounted_into_a_container), [Path::new("/sys/fs/cgroup")]);
    }

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
