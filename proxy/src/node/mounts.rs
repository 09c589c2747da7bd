//! Where the cgroup file systems are mounted.

use std::path::PathBuf;

/// One mount of a whole hierarchy, as far as this process's cgroup namespace shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub path: PathBuf,
    /// Else one of version 1.
    pub cgroup2: bool,
}

/// All of them, cgroup2 first: processes are looked for there where it has them.
#[must_use]
pub fn cgroup_mounts() -> Vec<Mount> {
    parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, `-`, type, source, options.
pub(super) fn parse(mountinfo: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
    mounts.sort_by_key(|mount| !mount.cgroup2);
    mounts
}

fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let cgroup2 = match right.split(' ').next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    // A container with a cgroup namespace of its own sees the host's mounts as being above it.
    let whole = root == "/" || root.split('/').skip(1).all(|part| part == "..");
    // Spaces are written as octal escapes; nobody mounts cgroups on such a path.
    (whole && !point.contains('\\')).then(|| Mount { path: PathBuf::from(point), cgroup2 })
}
