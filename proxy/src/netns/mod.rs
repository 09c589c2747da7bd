//! Network namespaces of pods: entering one just long enough to make sockets there.
//!
//! A socket keeps the namespace it was born in, so one process listens and dials inside every pod. While a
//! [`Namespace`] or any socket made in it is open, the kernel keeps the namespace alive, also after its name is gone:
//! [`Namespace::is_current`] tells, and whoever holds one asks from time to time.

mod addresses;
mod netlink;
mod of_node;
mod original_source;
mod sockets;

use std::{
    cell::Cell,
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

use nix::sched::{CloneFlags, setns};

pub use addresses::{listener_addresses, listener_sockets};
pub use of_node::is_of_node;

use crate::{engine::resolve::ResolverFiles, sys};

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";
/// Where `ip netns exec` finds files that replace those of `/etc`, for each name.
const NAMED_ETC: &str = "/etc/netns";

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Nothing bears the name.
    #[error(
        "network namespace `{name}` does not exist ({path} is absent): create it, or correct the annotation egret.dev/netns"
    )]
    Missing { name: String, path: PathBuf },
    /// The path leads to something else: an ordinary file, or what `ip netns add` leaves when it fails half-way.
    #[error("{path} is not a network namespace")]
    NotANamespace { path: PathBuf },
    /// To capture the machine's own namespace would capture every host process, the agent's neighbours included.
    #[error("`{name}` is the network namespace of the machine itself, which is never captured")]
    Host { name: String },
    /// The kernel refused.
    #[error("cannot {what} network namespace `{name}`: {error}")]
    System { what: &'static str, name: String, error: io::Error },
}

/// What the kernel calls a namespace: device and inode of its file. Unique among namespaces that are alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

type Open = dyn Fn(&Path) -> io::Result<File> + Send + Sync;

/// Opens what bears a path in a pod, as a reference only (`O_PATH`).
pub struct OpenInPod(pub Box<Open>);

impl fmt::Debug for OpenInPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenInPod")
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    identity: Identity,
    cookie: u64,
    name: String,
    /// By which it was opened, where it has a lasting one.
    path: Option<PathBuf>,
    /// Of a pod that has files of its own.
    in_pod: Option<OpenInPod>,
}

impl Namespace {
    /// Opens a namespace by its name under `/run/netns`, or by a path (anything with a slash).
    pub fn open(name_or_path: &str) -> Result<Self, NamespaceError> {
        let name = name_or_path.to_owned();
        let path = if name.contains('/') { PathBuf::from(&name) } else { Path::new(NAMED).join(&name) };
        let system = |what| {
            let name = name.clone();
            move |error| NamespaceError::System { what, name, error }
        };
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NamespaceError::Missing { name: name.clone(), path: path.clone() },
            _ => system("open")(error),
        })?;
        Self::new(file, name, Some(path))
    }

    /// Takes a namespace that somebody has opened already: that of a pod's process. It has no name to be found by again.
    pub fn of_file(file: File, name: String, in_pod: OpenInPod) -> Result<Self, NamespaceError> {
        Ok(Self { in_pod: Some(in_pod), ..Self::new(file, name, None)? })
    }

    fn new(file: File, name: String, path: Option<PathBuf>) -> Result<Self, NamespaceError> {
        let system = |what| {
            let name = name.clone();
            move |error| NamespaceError::System { what, name, error }
        };
        let identity = Identity::of(&file.metadata().map_err(system("inspect"))?);
        let home = Home::get().map_err(system("find the way back from"))?;
        if identity == home.identity {
            return Err(NamespaceError::Host { name });
        }
        let mut namespace = Self { file, identity, cookie: 0, name, path, in_pod: None };
        namespace.cookie = match namespace.run(socket_cookie) {
            Ok(Ok(cookie)) => cookie,
            Ok(Err(error)) => return Err(NamespaceError::System { what: "identify", name: namespace.name, error }),
            // EINVAL: the descriptor is of no namespace, or of one of another kind.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let path = namespace.path.unwrap_or_else(|| namespace.name.into());
                return Err(NamespaceError::NotANamespace { path });
            }
            Err(error) => return Err(NamespaceError::System { what: "enter", name: namespace.name, error }),
        };
        Ok(namespace)
    }

    /// The name or path it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// By which the kernel programs know it; never given to another namespace while the machine runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the name still leads to this namespace. False: removed, or removed and made again; then close it and what
    /// was made in it, or the kernel keeps the old one alive. One that has no path is its owner's to look after. Costs one
    /// `stat`.
    pub fn is_current(&self) -> bool {
        let found =
            |path: &PathBuf| std::fs::metadata(path).is_ok_and(|metadata| Identity::of(&metadata) == self.identity);
        self.path.as_ref().is_none_or(found)
    }

    /// Runs something inside the namespace, on this thread. It must not await, and must not call `run` again.
    ///
    /// # Errors
    /// The namespace could not be entered; then nothing was run.
    ///
    /// A thread that cannot come back would go on to serve other pods from this one, so then the process ends.
    pub fn run<T>(&self, inside: impl FnOnce() -> T) -> io::Result<T> {
        let _way_back = WayBack::enter(self)?;
        Ok(inside())
    }

    /// The resolver's files as `ip netns exec` would show them: those of the name where they exist, else the host's.
    pub fn resolver_files(&self) -> ResolverFiles {
        let of_name = self.path.as_ref().and_then(|path| path.strip_prefix(NAMED).ok());
        let of_name = of_name.map(|name| Path::new(NAMED_ETC).join(name));
        let places = |file: &str| {
            of_name.iter().map(PathBuf::as_path).chain([Path::new("/etc")]).map(|at| at.join(file)).collect()
        };
        ResolverFiles { resolv_conf: places("resolv.conf"), hosts: places("hosts"), ..ResolverFiles::default() }
    }
}

/// Cookie of the machine's own namespace, in which the agent runs.
pub fn host_cookie() -> io::Result<u64> {
    Home::get()?;
    socket_cookie()
}

/// Cookie of the namespace that the calling thread is in.
fn socket_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    sys::netns_cookie(socket.as_fd())
}

/// The namespace that all threads of the agent live in.
struct Home {
    file: File,
    identity: Identity,
}

impl Home {
    fn get() -> io::Result<&'static Self> {
        static HOME: OnceLock<Home> = OnceLock::new();
        if let Some(home) = HOME.get() {
            return Ok(home);
        }
        // First asked before the first thread enters a pod, so this thread is at home.
        let file = File::open("/proc/thread-self/ns/net")?;
        let identity = Identity::of(&file.metadata()?);
        Ok(HOME.get_or_init(|| Self { file, identity }))
    }
}

thread_local! {
    /// Whether this thread is inside a pod: leaving an inner `run` would bring it home too early.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Brings the thread home when dropped, also when what ran inside panicked.
struct WayBack(&'static Home);

impl WayBack {
    fn enter(namespace: &Namespace) -> io::Result<Self> {
        if INSIDE.get() {
            return Err(io::Error::other("this thread is already inside a network namespace"));
        }
        let home = Home::get()?;
        setns(&namespace.file, CloneFlags::CLONE_NEWNET)?;
        INSIDE.set(true);
        Ok(Self(home))
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0.file, CloneFlags::CLONE_NEWNET) {
            log::error!(
                "a thread cannot leave a pod's network namespace ({error}): the agent ends rather than mix pods"
            );
            std::process::abort();
        }
        INSIDE.set(false);
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests;
