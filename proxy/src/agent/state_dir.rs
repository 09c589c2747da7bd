//! The folder that tells agents of one machine apart: a lock in it, and the name of what is pinned for it.

use std::{
    fs::{File, TryLockError},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::Context as _;

use crate::capture::DEFAULT_INSTANCE;

/// The state folder's default, and with it the instance that bears no number.
pub const DEFAULT: &str = "/var/lib/egret";

/// The folder, locked. The lock is a flock(2): whoever has a copy of the descriptor holds it.
pub struct StateDir {
    lock: OwnedFd,
}

impl StateDir {
    /// Makes the folder where needed (0700) and locks it; an agent that runs on it already is named.
    pub fn lock(path: &Path) -> anyhow::Result<Self> {
        Self::try_lock(path)?.with_context(|| {
            format!(
                "another egret agent runs on {}: stop it first, take its place with --take-over, or give this one its own \
                 --state-dir",
                path.display()
            )
        })
    }

    /// None: an agent runs on it already.
    pub fn try_lock(path: &Path) -> anyhow::Result<Option<Self>> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the state folder {} (--state-dir)", path.display()))?;
        let file = path.join("agent.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .with_context(|| format!("cannot open {}", file.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { lock: lock.into() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", file.display())),
        }
    }
}

/// Of a lock that another agent held.
impl From<OwnedFd> for StateDir {
    fn from(lock: OwnedFd) -> Self {
        Self { lock }
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// Names the pins and the cgroup of the agent with this state folder: agents with different folders can run side by
/// side, and a restart finds its own.
#[must_use]
pub fn instance(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if path == Path::new(DEFAULT) {
        return DEFAULT_INSTANCE.to_owned();
    }
    // FNV-1a: the same name in every version, and no character that the bpf file system forbids.
    let hash =
        path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_folder_has_its_own_instance() {
        assert_eq!(instance(Path::new("/var/lib/egret")), "default");
        assert_eq!(instance(Path::new("/var/lib/egret/")), "default");
        let other = instance(Path::new("/var/lib/other"));
        assert_eq!(other.len(), 16);
        assert_ne!(other, instance(Path::new("/var/lib/another")));
    }

    #[test]
    fn a_second_agent_on_one_folder_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::lock(&folder.path().join("state")).unwrap();
        let second = StateDir::lock(&folder.path().join("state")).err().unwrap();
        assert!(second.to_string().starts_with("another egret agent runs on"), "{second}");
        drop(first);
        // A process that another test is starting may hold the lock until it runs a program of its own.
        let mut locked = false;
        for _ in 0..200 {
            locked = StateDir::lock(&folder.path().join("state")).is_ok();
            if locked {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(locked);
    }
}
