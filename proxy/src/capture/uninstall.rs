//! Takes away all that outlives the agent. Works on what is half gone, and when no agent ever ran.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use egret_ebpf::maps;

use super::{
    CaptureError, cgroup, inbound,
    pins::{HOOKS, Pins},
};

/// What was there and is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub links: usize,
    pub maps: usize,
    pub cgroup: bool,
}

/// Detaches and removes everything of an instance. Pods that were captured go their own way from then on.
///
/// # Errors
/// An agent of the instance still runs, or a file cannot be removed; what could be removed before is gone.
pub fn uninstall(instance: &str) -> Result<Removed, CaptureError> {
    let pins = Pins::of(instance)?;
    let group = match cgroup::root() {
        Ok(root) => Some(cgroup::of(&root, instance)),
        // No tree, no links in it; pins may still be there.
        Err(CaptureError::NoCgroup2) => None,
        Err(error) => return Err(error),
    };
    let _lock = group.as_deref().map(|group| lock_idle(group, instance)).transpose()?;
    let mut removed = Removed::default();
    // First: without the other programs' map of own addresses, a pod may not know itself any more.
    for cookie in inbound::pinned(&pins)? {
        removed.links += usize::from(inbound::release(&pins, cookie)?);
    }
    for hook in HOOKS.iter().rev() {
        removed.links += usize::from(remove(&pins.link(hook), "detach")?);
    }
    for map in maps::ALL {
        removed.maps += usize::from(remove(&pins.map(map), "remove")?);
    }
    for folder in [pins.inbounds(), pins.links(), pins.maps(), pins.folder().to_owned()] {
        remove_folder(&folder)?;
    }
    if let Some(group) = &group {
        removed.cgroup = remove_folder(group)?;
    }
    // Shared with other instances: gone with the last of them.
    for parent in [Some(pins.folder()), group.as_deref()].into_iter().flatten().filter_map(Path::parent) {
        let _ = fs::remove_dir(parent);
    }
    Ok(removed)
}

/// Locks the cgroup against an agent that starts meanwhile, and makes sure that none is in it.
fn lock_idle(group: &Path, instance: &str) -> Result<Option<File>, CaptureError> {
    let failed = |error| CaptureError::Cgroup { path: group.to_owned(), error };
    let folder = match File::open(group) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    folder.lock().map_err(failed)?;
    match cgroup::processes(group).map_err(failed)?.into_iter().next() {
        Some(process) => Err(CaptureError::Running { instance: instance.to_owned(), process }),
        None => Ok(Some(folder)),
    }
}

pub(super) fn remove(path: &Path, what: &'static str) -> Result<bool, CaptureError> {
    gone(fs::remove_file(path)).map_err(|error| CaptureError::Pin { what, path: path.to_owned(), error })
}

fn remove_folder(path: &Path) -> Result<bool, CaptureError> {
    gone(fs::remove_dir(path)).map_err(|error| CaptureError::Pin { what: "remove", path: path.to_owned(), error })
}

/// Whether it was there.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
