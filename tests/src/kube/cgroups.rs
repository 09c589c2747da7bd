//! Cgroups of pods, named as the kubelet and the container runtimes name them.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process::until;

/// How long killed processes may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(5);

/// The kubelet's `--cgroup-driver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice/…`
    Systemd,
    /// `kubepods/burstable/pod<uid>/…`
    Cgroupfs,
}

/// What runs the containers, which names their cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// k3s' too.
    Containerd,
    CriO,
}

/// A pod's quality of service, by which its cgroup is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// Where the cgroup2 tree is mounted; on a hybrid system that is not /sys/fs/cgroup.
pub fn root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    });
    found.context("no cgroup2 is mounted here")
}

/// A pod's folder below the kubelet's `--cgroup-root` (Kubernetes `pkg/kubelet/cm/cgroup_manager_linux.go`).
pub fn pod(driver: Driver, class: Class, uid: &str) -> PathBuf {
    let class = match class {
        Class::Guaranteed => None,
        Class::Burstable => Some("burstable"),
        Class::BestEffort => Some("besteffort"),
    };
    let mut path = PathBuf::new();
    match driver {
        Driver::Systemd => {
            path.push("kubepods.slice");
            let mut stem = "kubepods".to_owned();
            if let Some(class) = class {
                stem = format!("kubepods-{class}");
                path.push(format!("{stem}.slice"));
            }
            path.push(format!("{stem}-pod{}.slice", uid.replace('-', "_")));
        }
        Driver::Cgroupfs => {
            path.push("kubepods");
            path.extend(class);
            path.push(format!("pod{uid}"));
        }
    }
    path
}

/// A container's folder within its pod's; `id` is 64 hexadecimal digits.
pub fn container(driver: Driver, runtime: Runtime, id: &str) -> String {
    match (driver, runtime) {
        (Driver::Systemd, Runtime::Containerd) => format!("cri-containerd-{id}.scope"),
        (Driver::Systemd, Runtime::CriO) => format!("crio-{id}.scope"),
        (Driver::Cgroupfs, Runtime::Containerd) => id.to_owned(),
        (Driver::Cgroupfs, Runtime::CriO) => format!("crio-{id}"),
    }
}

/// Kills all processes in a cgroup and below it, and waits until none is left.
pub fn kill(path: &Path) -> Result<()> {
    match std::fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot kill what is in {}", path.display()))?,
    }
    until(&format!("{} to be empty", path.display()), KILL_TIME, || {
        let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
        (!events.contains("populated 1")).then_some(())
    })
}

/// Removes a cgroup without processes, with all below it.
pub fn remove(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the folders of labs that `dead` says are over, with the processes in them.
pub fn sweep(dead: impl Fn(&str) -> bool) {
    let Ok(root) = root() else { return };
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if dead(&entry.file_name().to_string_lossy()) {
            let _ = kill(&entry.path());
            let _ = remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_as_on_a_node() {
        let uid = "a1-b2";
        let of = |driver, class| pod(driver, class, uid).to_string_lossy().into_owned();
        let burstable = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda1_b2.slice";
        assert_eq!(of(Driver::Systemd, Class::Burstable), burstable);
        assert_eq!(of(Driver::Systemd, Class::Guaranteed), "kubepods.slice/kubepods-poda1_b2.slice");
        assert_eq!(of(Driver::Cgroupfs, Class::BestEffort), "kubepods/besteffort/poda1-b2");
        assert_eq!(of(Driver::Cgroupfs, Class::Guaranteed), "kubepods/poda1-b2");
    }
}
