//! Wires the parts together: reads configuration, enrols pods, serves, drains.
//! See the design.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// What `egret run` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files and folders, watched.
    pub config: Vec<PathBuf>,
    pub admin: SocketAddr,
    pub state_dir: PathBuf,
    pub drain_timeout: Duration,
}

/// Runs the agent until it is told to stop.
pub fn run(options: Options) -> anyhow::Result<()> {
    let _ = options;
    anyhow::bail!("the agent is not wired yet")
}
