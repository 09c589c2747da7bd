//! What capture needs from the machine, looked at before anything is changed, so that the first thing missing is named.

use std::{fs::File, os::unix::fs::MetadataExt, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{CaptureError, pins::BPFFS};

/// `bpf_get_netns_cookie` in sockops and `SO_NETNS_COOKIE` exist since 5.14; 5.15 is the long-term kernel after it.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Bit numbers and names, from `linux/capability.h`: namespaces, mounts and BPF (who has the first needs no CAP_BPF, see
/// `bpf_token_capable`); routes, marks and transparent sockets.
const CAPABILITIES: [(u32, &str); 2] = [(21, "CAP_SYS_ADMIN"), (12, "CAP_NET_ADMIN")];

pub(super) fn check() -> Result<(), CaptureError> {
    capabilities(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())?;
    kernel(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())?;
    bpffs(Path::new(BPFFS))
}

fn capabilities(status: &str) -> Result<(), CaptureError> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(CaptureError::Capabilities(missing.join(", "))) }
}

fn kernel(release: &str) -> Result<(), CaptureError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // What cannot be read is not refused: the verifier has the last word.
    if version.0 != 0 && version < OLDEST_KERNEL {
        return Err(CaptureError::Kernel { found: release.trim().to_owned() });
    }
    Ok(())
}

/// Whether this thread has a namespace of this kind that is not the one of process 1. False, too, where that cannot be seen.
pub(super) fn apart(kind: &str) -> bool {
    let of =
        |process: &str| std::fs::metadata(format!("/proc/{process}/ns/{kind}")).map(|file| (file.dev(), file.ino()));
    matches!((of("1"), of("thread-self")), (Ok(theirs), Ok(own)) if theirs != own)
}

/// Mounts the BPF file system where it is not. A container's own mount would end with it, and with the mount what is pinned:
/// pods would be let out in plain text when the agent ends.
fn bpffs(path: &Path) -> Result<(), CaptureError> {
    let failed = |error: std::io::Error| CaptureError::NoBpffs { path: path.to_owned(), error };
    // Two agents that start together must not mount two, one upon the other.
    let lock = path.parent().map(File::open).transpose().map_err(failed)?;
    if let Some(lock) = &lock {
        lock.lock().map_err(failed)?;
    }
    if statfs(path).map_err(|error| failed(error.into()))?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    if apart("mnt") {
        return Err(CaptureError::OwnBpffs(path.to_owned()));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700")).map_err(|error| failed(error.into()))?;
    log::info!("mounted the BPF file system at {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        capabilities("Name:\tegret\nCapEff:\t000001ffffffffff\n").unwrap();
        let error = capabilities("CapEff:\t0000000000000000\n").unwrap_err().to_string();
        assert!(error.contains("CAP_SYS_ADMIN, CAP_NET_ADMIN"), "{error}");
        let error = capabilities("CapEff:\t000001ffffdfffff\n").unwrap_err().to_string();
        assert!(error.contains("lacks CAP_SYS_ADMIN:"), "{error}");
    }

    #[test]
    fn old_kernels_are_named() {
        kernel("6.18.44-fc-v669\n").unwrap();
        kernel("5.15.0-91-generic\n").unwrap();
        for old in ["5.14.21", "4.19.0-27-amd64"] {
            assert!(kernel(old).unwrap_err().to_string().contains(old));
        }
    }

    #[test]
    fn a_place_that_is_no_folder_is_an_error() {
        assert!(bpffs(Path::new("/sys/egret-no-such-folder")).unwrap_err().to_string().contains("mount -t bpf"));
    }
}
