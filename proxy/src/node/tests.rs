//! Folders as kubelets make them, in a made tree; and a pod of a real process.

use std::{fs, process::Command};

use super::{mounts::parse, *};
use crate::netns::Identity;

const UID: &str = "0a1b2c3d-4444-5555-6666-777788889999";
const SYSTEMD: &str = "0a1b2c3d_4444_5555_6666_777788889999";

fn node(top: &Path, cgroup2: bool, below: &str) -> Node {
    Node::of_mounts(vec![Mount { path: top.to_owned(), cgroup2 }], below)
}

/// The pods found below a tree with these folders, as UID and folder.
fn found(folders: &[&str], below: &str) -> Vec<(String, String)> {
    let tree = tempfile::tempdir().unwrap();
    for folder in folders {
        fs::create_dir_all(tree.path().join(folder)).unwrap();
    }
    let node = node(tree.path(), true, below);
    let relative = |path: &PathBuf| path.strip_prefix(tree.path()).unwrap().display().to_string();
    let all =
        node.pods.iter().flat_map(|(uid, found)| found.paths.iter().map(move |path| (uid.clone(), relative(path))));
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

#[test]
fn pods_are_found_however_the_kubelet_names_their_cgroups() {
    for (folder, what) in [
        (format!("kubepods/pod{UID}"), "cgroupfs, guaranteed"),
        (format!("kubepods/burstable/pod{UID}"), "cgroupfs, burstable"),
        (format!("kubepods/besteffort/pod{UID}"), "cgroupfs, best effort"),
        (format!("kubepods.slice/kubepods-pod{SYSTEMD}.slice"), "systemd, guaranteed"),
        (
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice"),
            "systemd, burstable",
        ),
        (
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice"),
            "systemd, best effort",
        ),
        (
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SYSTEMD}.slice"
            ),
            "kind",
        ),
        (format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SYSTEMD}.slice"), "kind, guaranteed"),
        (format!("kubelet/kubepods/burstable/pod{UID}"), "kind with cgroupfs"),
        (format!("system.slice/k3s.service/kubepods/besteffort/pod{UID}"), "below a service"),
    ] {
        let container = format!("{folder}/cri-containerd-0123.scope");
        assert_eq!(found(&[&container], ""), [(UID.to_owned(), folder.clone())], "{what}");
    }
}

#[test]
fn the_uid_of_a_static_pod_is_a_hash() {
    let hash = "0123456789abcdef0123456789abcdef";
    for folder in [
        format!("kubepods/burstable/pod{hash}"),
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice"),
    ] {
        assert_eq!(found(&[&folder], ""), [(hash.to_owned(), folder.clone())]);
    }
}

#[test]
fn what_is_no_pod_is_none() {
    let folders = [
        "kubepods/burstable/crio-0123.scope",
        "kubepods/pod",
        "kubepods/podinfo.slice-not/x",
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod.slice",
        "kubepods.slice/other-pod1234.slice",
        "user.slice/pod1234",
        "machine.slice/libpod-1234.scope",
    ];
    assert_eq!(found(&folders, ""), [("info.slice-not".to_owned(), "kubepods/podinfo.slice-not".to_owned())]);
}

/// A node that runs another cluster in containers.
#[test]
fn the_pods_of_clusters_in_containers_are_left_out() {
    let own = format!("kubepods.slice/kubepods-pod{SYSTEMD}.slice");
    let nested = "docker/0123/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod99.slice";
    assert_eq!(found(&[&own, nested], ""), [(UID.to_owned(), own.clone())]);
    // A kubelet whose root is told.
    let told = format!("one/kubepods/pod{UID}");
    assert_eq!(found(&[&told, "kubepods/pod99"], "/one"), [(UID.to_owned(), told.clone())]);
}

#[test]
fn mounts_of_whole_hierarchies() {
    let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                  32 31 0:29 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids\n\
                  41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";
    let shown = |text: &str| -> Vec<String> {
        parse(text).iter().map(|mount| format!("{} {}", mount.path.display(), mount.cgroup2)).collect()
    };
    assert_eq!(shown(hybrid), ["/sys/fs/cgroup/unified true", "/sys/fs/cgroup/pids false"]);
    let part = "35 25 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
    // From within a cgroup namespace the host's mount is above.
    let above = "36 25 0:30 /../../.. /host/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
    assert_eq!(shown(&format!("{part}{above}")), ["/host/cgroup true"]);
    assert!(shown(part).is_empty() && shown("gibberish\n").is_empty());
}

#[test]
fn levels_are_told_where_they_can_be_seen() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("kubelet.slice/kubelet-kubepods.slice")).unwrap();
    let level = |tree: &Path| node(tree, true, "").kubepods()[0].level;
    assert_eq!(level(tree.path()), Some(2));
    // As every cgroup has but the root of all.
    fs::write(tree.path().join("cgroup.events"), "").unwrap();
    assert_eq!(level(tree.path()), None);
    assert_eq!(node(tree.path(), false, "").kubepods(), [], "a hierarchy of version 1");
}

#[test]
fn folders_come_and_go() {
    let tree = tempfile::tempdir().unwrap();
    let mut node = node(tree.path(), true, "");
    assert!(!node.refresh());
    let pod = tree.path().join(format!("kubepods/burstable/pod{UID}"));
    fs::create_dir_all(&pod).unwrap();
    assert!(node.refresh() && !node.refresh());
    assert!(node.has(UID) && node.is_starting(UID));
    assert_eq!(node.cgroup(UID), Some(fs::metadata(&pod).unwrap().ino()));
    assert!(matches!(node.find(UID), Err(Absent::NoProcess)));
    assert!(matches!(node.find("other"), Err(Absent::NoCgroup)));
    fs::remove_dir(&pod).unwrap();
    assert!(node.refresh());
    assert!(!node.has(UID) && !node.is_starting(UID));
}

#[tokio::test]
async fn folders_that_come_and_go_wake() {
    let tree = tempfile::tempdir().unwrap();
    let mut node = node(tree.path(), true, "");
    let limit = Duration::from_secs(5);
    for folder in ["kubepods", "kubepods/burstable", "kubepods/burstable/podx"] {
        fs::create_dir(tree.path().join(folder)).unwrap();
        tokio::time::timeout(limit, node.woken(false)).await.expect(folder);
        node.refresh();
    }
    assert!(node.has("x"));
    fs::remove_dir(tree.path().join("kubepods/burstable/podx")).unwrap();
    tokio::time::timeout(limit, node.woken(false)).await.expect("removal");
    node.refresh();
    assert!(!node.has("x"));
    tokio::time::timeout(limit, node.woken(true)).await.expect("it is time to look again");
}

/// A process in a network namespace of its own, named in a made `cgroup.procs`.
struct Process(std::process::Child);

impl Process {
    fn inside() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let own = Identity::of(&fs::metadata("/proc/self/ns/net").unwrap());
        let apart = |pid: u32| {
            let there = fs::metadata(format!("/proc/{pid}/ns/net")).ok();
            there.is_some_and(|there| Identity::of(&there) != own)
        };
        while !apart(child.id()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_sandbox_lives_as_long_as_a_process_is_in_it() {
    let tree = tempfile::tempdir().unwrap();
    let container = tree.path().join(format!("kubepods/pod{UID}/0123"));
    fs::create_dir_all(&container).unwrap();
    let procs = |ids: &[u32]| {
        let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
        fs::write(container.join("cgroup.procs"), text).unwrap();
    };
    let node = node(tree.path(), true, "");
    procs(&[0]);
    assert!(matches!(node.find(UID), Err(Absent::NoProcess)), "a process that cannot be seen from here");
    // The container runtime's own process, before it goes inside.
    procs(&[std::process::id()]);
    assert!(matches!(node.find(UID), Err(Absent::NotInside)));

    let pause = Process::inside();
    let entered = Command::new("nsenter")
        .args([&format!("--net=/proc/{}/ns/net", pause.id()), "sleep", "60"])
        .spawn()
        .map(Process)
        .unwrap();
    while identity_of(entered.id()) != identity_of(pause.id()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let apart = Process::inside();
    // The oldest counts, wherever its number stands.
    procs(&[apart.id(), entered.id(), std::process::id(), pause.id()]);
    // The harness itself is older, and in the machine's namespace.
    let (namespace, mut sandbox) = node.find(UID).unwrap();
    let own = namespace.identity();
    assert_eq!(Some(own), identity_of(pause.id()));
    assert!(sandbox.is_current(own));
    drop(pause);
    assert!(sandbox.is_current(own), "another container goes on");
    procs(&[]);
    drop(entered);
    assert!(sandbox.is_current(own), "between two containers");
    procs(&[std::process::id()]);
    assert!(sandbox.is_current(own), "a process on its way inside");
    procs(&[apart.id()]);
    assert!(!sandbox.is_current(own), "made again");
    assert_eq!(Some(node.find(UID).unwrap().0.identity()), identity_of(apart.id()));
}

fn identity_of(process: u32) -> Option<Identity> {
    fs::metadata(format!("/proc/{process}/ns/net")).ok().map(|metadata| Identity::of(&metadata))
}
