//! What an image of egret holds: the program, the libraries that it is linked with, and the CAs that everybody trusts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::run;

/// The image's entry point.
pub const ENTRYPOINT: &str = "/usr/bin/egret";
/// Where a Linux program without configuration looks for the CAs that everybody trusts.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The system calls that a container may make with its capabilities, where nobody says otherwise: podman's profile, which is that
/// of containerd and CRI-O but for details (`seccompProfile: {type: RuntimeDefault}`).
pub const SECCOMP: &str = "/usr/share/containers/seccomp.json";

/// Lays out the image's file system in the folder `tree`: the program without what only debuggers read, and the rest as this
/// machine has it.
pub fn lay(binary: &Path, tree: &Path) -> Result<()> {
    let program = place(ENTRYPOINT.as_ref(), tree)?;
    run("strip", &["--strip-debug", "-o", &program.to_string_lossy(), &binary.to_string_lossy()])?;
    for file in libraries(binary)?.into_iter().chain([PathBuf::from(CA_BUNDLE)]) {
        let to = place(&file, tree)?;
        std::fs::copy(&file, to).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}

/// Where a file is in the tree; its folder is made.
fn place(file: &Path, tree: &Path) -> Result<PathBuf> {
    let to = tree.join(file.strip_prefix("/").context("a file of an image without a full path")?);
    std::fs::create_dir_all(to.parent().unwrap_or(tree))?;
    Ok(to)
}

/// The shared libraries that a program is linked with, and the loader: lines of `ldd` are `name => path (address)`, or
/// `path (address)` for the loader.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let text = run("ldd", &[&binary.to_string_lossy()])?;
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
