//! How the kubelet names the cgroups of pods.
//!
//! With the cgroupfs driver `kubepods/burstable/pod<uid>`; with the systemd driver
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`, each name bearing those above it, and the
//! dashes of the UID written as underscores (Kubernetes `pkg/kubelet/cm/cgroup_manager_linux.go`). Guaranteed pods are
//! directly in the first folder. All of that may be below the kubelet's `--cgroup-root`, as in kind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Mount;

/// How deep the folder of all pods may lie: `kubelet.slice/kubelet-kubepods.slice` in kind, some more below a service.
const DEPTH: usize = 4;
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// The folder of all pods, in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub path: PathBuf,
    pub cgroup2: bool,
    /// How far it is from the hierarchy's root; None: not to be seen from here.
    pub level: Option<u32>,
}

/// The folders of all pods that are nearest to the top of a hierarchy: those further down are of clusters in containers.
pub fn roots(mount: &Mount, below: &str) -> Vec<Root> {
    let mut level = vec![mount.path.join(below)];
    // Every cgroup has this file, except the root of them all.
    let nested = mount.path.join("cgroup.events").exists();
    let depth = |path: &Path| path.strip_prefix(&mount.path).map_or(0, |rest| rest.components().count());
    for _ in 0..=DEPTH {
        let (found, others): (Vec<_>, Vec<_>) =
            level.iter().flat_map(|path| folders(path)).partition(|path| name(path).is_some_and(holds_pods));
        if !found.is_empty() {
            let root =
                |path: PathBuf| Root { level: (!nested).then(|| depth(&path) as u32), cgroup2: mount.cgroup2, path };
            return found.into_iter().map(root).collect();
        }
        level = others;
    }
    Vec::new()
}

/// Whether pods are run below this cgroup, which need not be the root of all.
#[must_use]
pub fn has_pods(path: &Path) -> bool {
    !roots(&Mount { path: path.to_owned(), cgroup2: true }, "").is_empty()
}

fn holds_pods(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

impl Root {
    /// The folders in which those of pods appear; some may not be there yet.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut all = vec![self.path.clone()];
        all.extend(CLASSES.iter().map(|class| match self.stem() {
            Some(stem) => self.path.join(format!("{stem}-{class}.slice")),
            None => self.path.join(class),
        }));
        all
    }

    /// The UID and the folder of each pod.
    pub fn pods(&self) -> Vec<(String, PathBuf)> {
        let found = self.folders().into_iter().flat_map(|path| folders(&path));
        found.filter_map(|path| Some((uid(name(&path)?, self.stem())?, path))).collect()
    }

    /// What the names of the systemd driver begin with: `kubepods`, or `kubelet-kubepods`.
    fn stem(&self) -> Option<&str> {
        name(&self.path)?.strip_suffix(".slice")
    }
}

/// Of a pod's folder.
fn uid(name: &str, stem: Option<&str>) -> Option<String> {
    let Some(stem) = stem else { return name.strip_prefix("pod").filter(|uid| !uid.is_empty()).map(str::to_owned) };
    let rest = name.strip_suffix(".slice")?.strip_prefix(stem)?;
    let rest = CLASSES.iter().find_map(|class| rest.strip_prefix('-')?.strip_prefix(class)).unwrap_or(rest);
    rest.strip_prefix("-pod").filter(|uid| !uid.is_empty()).map(|uid| uid.replace('_', "-"))
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
