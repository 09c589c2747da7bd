//! Where an instance keeps what outlives the agent.

use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};

use super::CaptureError;

pub(super) const BPFFS: &str = "/sys/fs/bpf";
const FOLDER: &str = "egret";

/// Hooks in the order in which they are attached; `connect4` last, so that nothing is redirected before the rest can
/// deal with it. Removed in the opposite order.
pub(super) const HOOKS: [&str; 6] = ["sockops", "getpeername4", "getpeername6", "guard", "connect6", "connect4"];

#[derive(Clone, Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    pub fn of(instance: &str) -> Result<Self, CaptureError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if instance.is_empty() || instance.len() > 63 || instance.starts_with('.') || !instance.chars().all(fits) {
            return Err(CaptureError::Instance(instance.to_owned()));
        }
        Ok(Self { folder: Path::new(BPFFS).join(FOLDER).join(instance) })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn maps(&self) -> PathBuf {
        self.folder.join("maps")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.folder.join("links")
    }

    pub fn link(&self, hook: &str) -> PathBuf {
        self.links().join(hook)
    }

    /// Links of the programs that capture what comes to pods, each named by the cookie of the pod's namespace.
    pub fn inbounds(&self) -> PathBuf {
        self.folder.join("inbound")
    }

    pub fn inbound(&self, cookie: u64) -> PathBuf {
        self.inbounds().join(cookie.to_string())
    }

    /// The id of the program that the pinned link of a hook runs.
    pub fn linked_program(&self, hook: &str) -> Option<u32> {
        let link = PinnedLink::from_pin(self.link(hook)).ok()?;
        Some(FdLink::from(link).info().ok()?.program_id())
    }

    pub fn create(&self) -> Result<(), CaptureError> {
        for path in [self.maps(), self.links(), self.inbounds()] {
            std::fs::create_dir_all(&path).map_err(|error| CaptureError::Pin { what: "create", path, error })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_name_is_one_folder() {
        assert_eq!(
            Pins::of("node-1.a_b").unwrap().link("connect4"),
            Path::new("/sys/fs/bpf/egret/node-1.a_b/links/connect4")
        );
        for name in ["", "..", ".x", "a/b", "a b", "é", &"x".repeat(64)] {
            assert!(matches!(Pins::of(name), Err(CaptureError::Instance(_))), "{name}");
        }
    }
}
