//! From the cgroup of a pod to its network namespace: through the oldest of its processes.
//!
//! That is the sandbox's own (`pause`) as a rule, or the first container's. A later one may have gone into a namespace of its
//! own making; the pod's is where it began.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

use crate::{
    engine::resolve::ResolverFiles,
    limits,
    netns::{Identity, Namespace, NamespaceError, OpenInPod},
};

/// Folders below that of a pod: container, and what an init system inside makes.
const DEPTH: usize = 6;

/// Why a pod's namespace is not known.
#[derive(Debug, thiserror::Error)]
pub enum Absent {
    #[error("waiting for the kubelet to create it")]
    NoCgroup,
    #[error("waiting for its first process")]
    NoProcess,
    /// A process of the container runtime that has yet to enter the pod; or a pod of the host's network.
    #[error("waiting for a process in a network namespace of its own")]
    NotInside,
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// Where the network namespace of a pod was found.
#[derive(Debug)]
pub struct Sandbox {
    folders: Vec<PathBuf>,
    /// A process that is in the namespace, when last looked at.
    process: u32,
}

/// What became of a pod's sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    /// This process is in it.
    Held(u32),
    /// The pod has no process in any namespace of its own: between two containers, some runtimes keep none.
    Quiet,
    /// Its processes are in another one: it was made again.
    Another,
}

impl Sandbox {
    pub(super) fn find(folders: &[PathBuf]) -> Result<(Namespace, Self), Absent> {
        let mut why = Absent::NoProcess;
        for process in processes(folders) {
            match open(process, folders) {
                Some(Ok(namespace)) => return Ok((namespace, Self { folders: folders.to_owned(), process })),
                // The runtime's own process comes first, and goes inside, or starts one that does.
                Some(Err(NamespaceError::Host { .. })) => why = Absent::NotInside,
                Some(Err(error)) => why = error.into(),
                None => {}
            }
        }
        Err(why)
    }

    /// Whether the pod still lives in this namespace. False: its sandbox was made again, in another one. That the cgroup is
    /// gone, and with it the pod, is known elsewhere. Costs one `stat`, as long as the process lives.
    pub fn is_current(&mut self, identity: Identity) -> bool {
        if self::identity(self.process) == Some(identity) {
            return true;
        }
        match now(&self.folders, identity) {
            Now::Held(process) => {
                self.process = process;
                true
            }
            Now::Quiet => true,
            Now::Another => false,
        }
    }

    /// The pod's own: all its containers have the same `resolv.conf`, and all but `pause` the `hosts` of the kubelet.
    #[must_use]
    pub fn resolver_files(&self) -> ResolverFiles {
        let folders = self.folders.clone();
        let open = move |file: &str| of_containers(&folders).find_map(|process| etc(process, file));
        ResolverFiles { in_pod: Some(Arc::new(open)), ..ResolverFiles::default() }
    }
}

/// Processes whose files are those of the pod's containers: `pause` comes last.
fn of_containers(folders: &[PathBuf]) -> impl Iterator<Item = u32> {
    let mut processes = processes(folders);
    if processes.len() > 1 {
        processes.rotate_left(1);
    }
    processes.into_iter().take(limits::POD_FILE_PROCESSES)
}

/// What bears the path in the first container that has it.
fn open_in(folders: &[PathBuf], path: &Path) -> io::Result<File> {
    let found = of_containers(folders).find_map(|process| inside(root(process)?.as_fd(), path, OFlag::O_PATH));
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no container of the pod has {}", path.display()))
    })
}

fn now(folders: &[PathBuf], own: Identity) -> Now {
    let mut now = Now::Quiet;
    let host = identity(std::process::id());
    for process in processes(folders) {
        match identity(process) {
            Some(found) if found == own => return Now::Held(process),
            found if found.is_some() && found != host => now = Now::Another,
            _ => {}
        }
    }
    now
}

fn identity(process: u32) -> Option<Identity> {
    fs::metadata(format!("/proc/{process}/ns/net")).ok().map(|metadata| Identity::of(&metadata))
}

/// The processes of a pod, the oldest first. A process whose number this process's namespace does not have is left out.
fn processes(folders: &[PathBuf]) -> Vec<u32> {
    let mut found = Vec::new();
    for folder in folders {
        collect(folder, DEPTH, &mut found);
        // The other hierarchies have the same.
        if !found.is_empty() {
            break;
        }
    }
    let aged = found.into_iter().filter_map(|process| {
        let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
        Some((started(&String::from_utf8_lossy(&stat))?, process))
    });
    let mut aged: Vec<_> = aged.collect();
    aged.sort_unstable();
    aged.into_iter().map(|(_, process)| process).collect()
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<u32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let processes = text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|process| *process != 0);
    found.extend(processes.take(limits::POD_PROCESSES.saturating_sub(found.len())));
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth - 1, found);
        }
    }
}

/// When a process started, in clock ticks since boot (proc_pid_stat(5), field 22; the second field is a name that may hold
/// anything, in parentheses).
fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The namespace of a process, which must be one of the pod's after it was opened: its number may be another process's by
/// then. None: it is gone.
fn open(process: u32, folders: &[PathBuf]) -> Option<Result<Namespace, NamespaceError>> {
    // Of this very process: what is looked up through it fails once the process is gone.
    let folder = File::open(format!("/proc/{process}")).ok()?;
    let inside = |what: &str| PathBuf::from(format!("/proc/self/fd/{}/{what}", folder.as_raw_fd()));
    let file = File::open(inside("ns/net")).ok()?;
    let named = fs::read_link(inside("ns/net")).ok()?.to_string_lossy().into_owned();
    if !processes(folders).contains(&process) {
        return None;
    }
    fs::read(inside("stat")).ok()?;
    let folders = folders.to_owned();
    Some(Namespace::of_file(file, named, OpenInPod(Box::new(move |path| open_in(&folders, path)))))
}

/// A file of `/etc` as a process sees it. The pod may have put anything there: links lead nowhere but inside, and what is no
/// ordinary file is left.
fn etc(process: u32, file: &str) -> Option<File> {
    let file = inside(root(process)?.as_fd(), &Path::new("etc").join(file), OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

fn root(process: u32) -> Option<File> {
    File::open(format!("/proc/{process}/root")).ok()
}

fn inside(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Option<File> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(Mode::empty()).resolve(resolve);
    openat2(root, path, how).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_found_whatever_its_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        for name in ["sleep", "a b", ") S 1 (", "((", "x) 1 2 3"] {
            assert_eq!(started(&format!("77 ({name}) {tail}")), Some(4242), "{name}");
        }
        assert_eq!(started("77 (sleep) S 1"), None);
        assert_eq!(started(""), None);
    }

    #[test]
    fn files_of_a_process_are_opened_inside_its_root() {
        assert!(etc(std::process::id(), "hosts").is_some());
        assert!(etc(std::process::id(), "no-such-file").is_none());
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let place = |name: &str| root.path().join("etc").join(name);
        std::fs::write(place("own"), "own").unwrap();
        // Leads to the folder's own file, not to that of the machine.
        std::os::unix::fs::symlink("/etc/own", place("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", place("out")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", place("up")).unwrap();
        let folder = File::open(root.path()).unwrap();
        let read = |name: &str| {
            std::io::read_to_string(inside(folder.as_fd(), &Path::new("etc").join(name), OFlag::O_RDONLY)?).ok()
        };
        assert_eq!(read("link").as_deref(), Some("own"));
        assert_eq!((read("out"), read("up")), (None, None));
    }
}
