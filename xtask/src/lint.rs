//! Everything that reads the code without running it. No network is needed once dependencies are fetched.

use anyhow::{Result, bail};

use crate::steps::cargo;

/// Name and cargo arguments of each lint.
pub const LINTS: &[(&str, &[&str])] = &[
    ("formatting", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    // Advisories need the network; licences, duplicates and origins do not.
    ("dependencies", &["deny", "--offline", "check", "licenses", "bans", "sources"]),
];

/// All lints, also after one has failed.
pub fn run() -> Result<()> {
    let failed: Vec<_> = LINTS.iter().filter(|(_, args)| cargo(args).is_err()).map(|(name, _)| *name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("lints failed: {}", failed.join(", "))
}
