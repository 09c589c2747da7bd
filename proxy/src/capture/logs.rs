//! Messages of the kernel programs, drained into the agent's log.

use std::{io, os::fd::AsFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::task::JoinHandle;

use crate::sys;

/// Ends when dropped.
pub(super) struct Drain(JoinHandle<()>);

impl Drain {
    /// `None` outside a tokio runtime, or where the kernel has no ring buffers; capture works without.
    pub fn start(ebpf: &mut Ebpf) -> Option<Self> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        match EbpfLogger::init(ebpf) {
            Ok(logger) => Some(Self(runtime.spawn(drain(logger)))),
            Err(error) => {
                log::warn!("messages of the capture programs will not be shown: {error}");
                None
            }
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn drain(mut logger: EbpfLogger<&'static dyn log::Log>) {
    let drained: io::Result<()> = async {
        let watched = sys::readable(logger.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut ready = watched.readable().await?;
            // Cleared first: what comes while the ring is read must wake again.
            ready.clear_ready();
            logger.flush();
        }
    }
    .await;
    if let Err(error) = drained {
        log::warn!("messages of the capture programs are no longer shown: {error}");
    }
}
