//! Why capture cannot start or change: each one sentence that says what to do.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The name would not be one folder.
    #[error("the instance name `{0}` must be 1 to 63 letters, digits, `-`, `_` or `.`, and not begin with a dot")]
    Instance(String),
    /// Not root, or a container without the rights.
    #[error("the agent lacks {0}: run it as root on the host, or in a privileged container")]
    Capabilities(String),
    #[error("Linux {found} is too old for capture: 5.15 or later is needed")]
    Kernel { found: String },
    #[error(
        "no cgroup2 file system is mounted, to which the capture programs attach: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    )]
    NoCgroup2,
    /// A container that sees its own part of the tree: programs there would miss every pod.
    #[error(
        "the cgroup2 file system at {0} is not the machine's root: give the container the host's /sys/fs/cgroup and cgroup namespace"
    )]
    NotTheRootCgroup(PathBuf),
    #[error(
        "no BPF file system is mounted at {path} and mounting one failed ({error}): mount it (mount -t bpf bpf {path})"
    )]
    NoBpffs { path: PathBuf, error: io::Error },
    /// Of a container: what it mounts goes with it, and then pods would not be refused any more.
    #[error(
        "no BPF file system is mounted on the machine at {0}: mount it there, not in a container (mount -t bpf bpf {0})"
    )]
    OwnBpffs(PathBuf),
    #[error("cannot enter the agent's own cgroup {path}: {error}")]
    Cgroup { path: PathBuf, error: io::Error },
    /// Left by an agent of another version.
    #[error(
        "the maps pinned in {path} were made by another version of egret ({what}): stop the pods that it captures, or let them go with `egret uninstall`, and start again"
    )]
    OtherVersion { path: PathBuf, what: String },
    #[error("cannot {what} {path}: {error}")]
    Pin { what: &'static str, path: PathBuf, error: io::Error },
    #[error("the kernel did not load the capture programs: {0}")]
    Load(#[from] EbpfError),
    #[error("the kernel did not load or attach the capture program {program}: {error}")]
    Program { program: &'static str, error: Box<ProgramError> },
    /// Another program holds the hook and lets nobody beside it (attached without BPF_F_ALLOW_MULTI).
    #[error(
        "another program at the root cgroup's {0} hook lets no second one beside it: detach it (see `bpftool cgroup tree`)"
    )]
    HookTaken(&'static str),
    #[error("cannot swap the capture program {program} in place: {error}")]
    Swap { program: &'static str, error: io::Error },
    #[error("the capture object has no {0}: the agent was built wrongly")]
    Object(&'static str),
    #[error("cannot {what}: {error}")]
    Map { what: &'static str, error: Box<MapError> },
    #[error("cannot tell where a pod's inbound listener is bound: {error}")]
    Listener { error: io::Error },
    #[error("network namespace `{namespace}` bears no address to listen on: give its interface one")]
    NoAddress { namespace: String },
    #[error("cannot identify the machine's own network namespace: {error}")]
    Home { error: io::Error },
    #[error("an agent is still running as instance `{instance}` (process {process}): stop it first")]
    Running { instance: String, process: String },
}

impl CaptureError {
    pub(super) fn map(what: &'static str, error: MapError) -> Self {
        Self::Map { what, error: Box::new(error) }
    }
}
