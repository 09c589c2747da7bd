//! Programs of the tests that are Python packages: httpbin, sslyze, tlslite-ng, in an environment of their own.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// What is in the environment, as pip reads it.
pub const REQUIREMENTS: &str = include_str!("../requirements.txt");

/// The environment's folder, which `cargo xtask setup` makes.
#[must_use]
pub fn environment() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("lab-python")
}

/// The environment's Python.
pub fn python() -> Result<PathBuf> {
    let python = environment().join("bin/python");
    ensure!(python.exists(), "{} is missing: `cargo xtask setup` makes it", python.display());
    Ok(python)
}
