//! Names to addresses, as the pod would resolve them.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use super::ports::Sockets;

/// Where a pod's resolver configuration is. Of each list the first file that exists counts, so that a namespace
/// without its own falls back to the host's, as `ip netns exec` has it.
#[derive(Clone, Debug, Default)]
pub struct ResolverFiles {
    pub resolv_conf: Vec<PathBuf>,
    pub hosts: Vec<PathBuf>,
    /// The port of the name servers instead of 53, which resolv.conf has no word for (tests).
    pub port: Option<u16>,
}

impl ResolverFiles {
    /// The files of a named namespace on a single host (ip-netns(8)): `/etc/netns/NAME/`, else the host's.
    pub fn netns(name: &str) -> Self {
        let files =
            |file: &str| vec![PathBuf::from(format!("/etc/netns/{name}/{file}")), format!("/etc/{file}").into()];
        Self { resolv_conf: files("resolv.conf"), hosts: files("hosts"), port: None }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist, or has no address.
    #[error("{0} does not resolve: no such name")]
    NoSuchName(String),
    /// No server answered, or none usefully.
    #[error("{name} does not resolve: {reason}")]
    Failed { name: String, reason: Arc<str> },
}

/// A pod's resolver.
pub struct Resolver {
    sockets: Arc<dyn Sockets>,
    files: ResolverFiles,
}

impl Resolver {
    pub fn new(sockets: Arc<dyn Sockets>, files: ResolverFiles) -> Self {
        Self { sockets, files }
    }

    /// Every address of `name` (A and AAAA), in the order of the answer; never empty.
    pub async fn lookup(&self, name: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        let _ = (&self.sockets, &self.files);
        Err(ResolveError::NoSuchName(name.to_owned()))
    }
}
