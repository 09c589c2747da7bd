//! The agent's own cgroup. Its id tells the agent's sockets from the pods': a mark can be forged with CAP_NET_RAW, a
//! process id changes with every restart.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::CaptureError;

const FOLDER: &str = "egret";

/// The root of the cgroup2 tree, at which the programs are attached. On hybrid systems it is not `/sys/fs/cgroup`.
pub(super) fn root() -> Result<PathBuf, CaptureError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = find(&mounts).ok_or(CaptureError::NoCgroup2)?;
    // Every cgroup has this file, except the root of them all.
    if root.join("cgroup.events").exists() {
        return Err(CaptureError::NotTheRootCgroup(root));
    }
    Ok(root)
}

/// proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source, options.
fn find(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // Spaces are written as octal escapes; nobody mounts cgroups on such a path.
        (right.starts_with("cgroup2 ") && root == "/" && !point.contains('\\')).then(|| PathBuf::from(point))
    })
}

pub(super) fn of(root: &Path, instance: &str) -> PathBuf {
    root.join(FOLDER).join(instance)
}

/// Moves this process, with all its threads, into the instance's cgroup, made where needed.
///
/// Returns the cgroup's id and its folder, locked: who starts or removes an instance holds the lock meanwhile.
pub(super) fn enter(root: &Path, instance: &str) -> Result<(u64, File), CaptureError> {
    let path = of(root, instance);
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
        assert_eq!(find(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        let part = "35 25 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
        let whole = "36 25 0:30 / /host/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(find(&format!("{part}{whole}")).unwrap(), Path::new("/host/cgroup"));
        assert_eq!(find(part), None);
        assert_eq!(find("gibberish\n"), None);
    }

    #[test]
    fn this_machine_has_a_root_cgroup() {
        assert!(root().unwrap().join("cgroup.procs").exists());
    }
}
