//! Address families that lead nowhere from a pod.

use std::{
    net::SocketAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{limits, mesh::EndpointAddress};

/// Which address families lead nowhere from a pod, learned from the kernel's answer to a connect (ENETUNREACH and
/// its like, given at once, without a packet) and believed for [`limits::FAMILY_UNREACHABLE`].
#[derive(Debug, Default)]
pub struct Families {
    v4_until: AtomicU64,
    v6_until: AtomicU64,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Families {
    fn until(&self, address: SocketAddr) -> &AtomicU64 {
        if address.is_ipv4() { &self.v4_until } else { &self.v6_until }
    }

    /// The kernel had no route for the address.
    pub fn unreachable(&self, address: SocketAddr) {
        let until = START.elapsed() + limits::FAMILY_UNREACHABLE;
        self.until(address).store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// A connection got through: the family is fine, whatever one address's route said.
    pub fn reachable(&self, address: SocketAddr) {
        self.until(address).store(0, Ordering::Relaxed);
    }

    /// False where the family was found to lead nowhere, a short while ago.
    pub fn usable(&self, address: &EndpointAddress) -> bool {
        match address {
            EndpointAddress::Unix(_) => true,
            EndpointAddress::Ip(address) => {
                self.until(*address).load(Ordering::Relaxed) <= START.elapsed().as_millis() as u64
            }
        }
    }
}
