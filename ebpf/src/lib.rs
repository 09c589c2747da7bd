//! The types that the kernel programs and the agent share: keys and values of the maps, laid out as C would.
//!
//! Addresses are always 16 bytes, IPv4 in its v4-mapped form, as four words in network byte order: this is how the
//! kernel's contexts show them, so the programs compare words and convert nothing.
#![no_std]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version of everything below. Pinned maps outlive the agent, and a new agent adopts only maps of its own layout.
pub const LAYOUT: u32 = 2;

/// The names of the pinned maps, as in the object file.
pub mod maps {
    pub const ENROLLED: &str = "ENROLLED";
    pub const OWN: &str = "OWN";
    pub const ORIGINAL_DST: &str = "ORIGINAL_DST";
    pub const PENDING: &str = "PENDING";
    pub const CONFIG: &str = "CONFIG";
    pub const COUNTERS: &str = "COUNTERS";
    pub const NODE: &str = "NODE";
    pub const LEFT_ALONE: &str = "LEFT_ALONE";
    /// All of them.
    pub const ALL: [&str; 8] = [ENROLLED, OWN, ORIGINAL_DST, PENDING, CONFIG, COUNTERS, NODE, LEFT_ALONE];
}

/// The object that is loaded for each pod, see `inbound.rs`.
pub mod inbound {
    pub const PROGRAM: &str = "egret_inbound";
    /// Set at load time where the kernel tells the interface that a connection comes in by (5.17).
    pub const HAS_INGRESS_IFINDEX: &str = "HAS_INGRESS_IFINDEX";
    /// Which pod it is, and what becomes of it while nobody listens: one [`super::InboundPod`].
    pub const POD: &str = "POD";
    /// The agent's listeners, with an index for each family.
    pub const SOCKETS: &str = "LISTENERS";
    pub const LISTENERS: usize = 2;
    pub const V4: u32 = 0;
    pub const V6: u32 = 1;
}

/// The port of the in-pod outbound listener (Istio's own number for it). Connections to it are never captured inbound.
pub const OUTBOUND_PORT: u16 = 15001;

/// Pods of one node that may be enrolled at a time. Kubernetes supports 110 by default and some run 500.
pub const MAX_ENROLLED: usize = 16_384;
/// Addresses that enrolled pods may bear in all.
pub const MAX_OWN: usize = 65_536;
/// Redirected connections whose handshake is under way. Each lives for a loopback round trip; one forgotten (refused by
/// the listener) stays until it is the least recently used. An evicted one is closed by the agent, never let through.
pub const MAX_PENDING: usize = 65_536;

/// Pods of one node that may be left alone at a time, as `MAX_ENROLLED`.
pub const MAX_LEFT_ALONE: usize = 16_384;
/// Folders of a node below which its pods are: one, and a second where the kubelet's cgroup driver was changed.
pub const MAX_KUBEPODS: usize = 2;
/// How far from the root of the tree such a folder is looked for where its level is not known.
pub const KUBEPODS_LEVELS: u32 = 8;

/// An address as the programs see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    pub words: [u32; 4],
}

impl Address {
    /// The third word of every v4-mapped address.
    pub const MAPPED: u32 = 0xffff_u32.to_be();

    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self { words: [0, 0, Self::MAPPED, address] }
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == Self::MAPPED
    }

    /// `127.0.0.0/8`, `::1`, and the unspecified addresses, which the kernel takes for loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words;
        if self.is_v4() {
            return d == 0 || u32::from_be(d) >> 24 == 127;
        }
        a == 0 && b == 0 && c == 0 && (d == 0 || d == 1u32.to_be())
    }

    pub fn to_ip(&self) -> IpAddr {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(bytes).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Self { words }
    }
}

/// Value of `ENROLLED`: where a pod's connections are sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// Address of the IPv4 listener, network byte order; 0: the pod has none.
    pub v4: u32,
    /// Port of both listeners, network byte order in the low half.
    pub port: u32,
    /// Address of the IPv6 listener; all zeros: the pod has none.
    pub v6: Address,
}

impl Enrolment {
    pub fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, port: u16) -> Self {
        Self {
            v4: v4.map_or(0, |v4| u32::from_ne_bytes(v4.octets())),
            port: u32::from(port.to_be()),
            v6: v6.map_or(Address::default(), |v6| IpAddr::V6(v6).into()),
        }
    }
}

/// Key of `OWN`: an address that an enrolled pod bears itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnKey {
    pub cookie: u64,
    pub address: Address,
}

/// The one value of `POD`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboundPod {
    /// The cookie of its namespace.
    pub cookie: u64,
    /// Not 0: what comes while no agent listens is refused. 0: it goes straight to the application.
    pub fail_closed: u32,
    pub zero: u32,
}

/// Value of `ORIGINAL_DST` (for each socket) and `PENDING`: where the client wanted to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    pub address: Address,
    /// Network byte order in the low half.
    pub port: u32,
    /// [`Original::CONNECTING`] or [`Original::ACCEPTED`]: both ends of the connection hold one of these, and only the
    /// client's may change what `getpeername` says.
    pub side: u32,
}

impl Original {
    pub const CONNECTING: u32 = 1;
    pub const ACCEPTED: u32 = 2;

    pub fn to_socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address.to_ip(), u16::from_be(self.port as u16))
    }
}

/// Key of `PENDING`: the client's end of a connection to the listener, which both ends know.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingKey {
    pub cookie: u64,
    pub address: Address,
    /// Host byte order.
    pub port: u32,
    pub zero: u32,
}

/// The one value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Sockets of processes in this cgroup are never captured; 0: nobody is exempt.
    pub proxy_cgroup: u64,
    /// The same for the agent before, which ends what it has under way; 0: there is none.
    pub former_cgroup: u64,
    /// Not 0: say every redirect and denial through aya-log.
    pub debug: u32,
    /// [`LAYOUT`] of the agent that made the maps.
    pub layout: u32,
}

/// The one value of `NODE`: all zeros on a single host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Cookie of the machine's own network namespace, whose sockets are let through whoever's they are.
    pub host: u64,
    /// Those that are there come first.
    pub kubepods: [Kubepods; MAX_KUBEPODS],
}

/// A cgroup below which pods are: directly, or one level further down.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kubepods {
    /// 0: there is none.
    pub cgroup: u64,
    /// Distance from the root of the tree; 0: not known.
    pub level: u32,
    pub zero: u32,
}

/// Index into `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Connections sent to a pod's listener.
    Redirected = 0,
    /// Connections refused because they could not be captured.
    Denied = 1,
    /// Connections of the agent's own sockets inside pods.
    Exempt = 2,
    /// SYNs of enrolled pods that got around the redirect and were dropped by the egress guard.
    Guarded = 3,
}

impl Counter {
    pub const COUNT: usize = 4;
}

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($name:ty),*) => {$(
            // SAFETY: `repr(C)`, integers only, no padding, and every bit pattern is a value.
            unsafe impl aya::Pod for $name {}
        )*};
    }
    pod!(Address, Enrolment, OwnKey, InboundPod, Original, PendingKey, Config, Node, Kubepods);
}

// The kernel hashes keys byte by byte: padding would make equal keys differ.
const _: () = assert!(size_of::<OwnKey>() == 24);
const _: () = assert!(size_of::<PendingKey>() == 32);
const _: () = assert!(size_of::<Enrolment>() == 24);
const _: () = assert!(size_of::<Original>() == 24);
const _: () = assert!(size_of::<Config>() == 24);
const _: () = assert!(size_of::<InboundPod>() == 16);
const _: () = assert!(size_of::<Node>() == 40);

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["10.1.2.3", "2001:db8::7", "::1", "0.0.0.0"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).to_ip(), ip);
        }
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(Address::from(mapped), Address::from("10.1.2.3".parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn loopback_covers_what_never_leaves_the_pod() {
        for text in ["127.0.0.1", "127.8.9.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(Address::from(text.parse::<IpAddr>().unwrap()).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "10.0.0.127", "::2", "::ffff:10.0.0.1", "1::1", "0.0.0.1"] {
            let loopback = Address::from(text.parse::<IpAddr>().unwrap()).is_loopback();
            assert!(!loopback, "{text}");
        }
    }
}
