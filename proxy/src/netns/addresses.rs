//! The addresses that a pod's interfaces bear.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use super::Namespace;

impl Namespace {
    /// All addresses of interfaces that are up, best first: global ones, then those on the loopback interface (addresses
    /// of services that are announced by routing), link-local ones last. 127.0.0.0/8 and ::1 are left out.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        // The iterator holds what the kernel answered, so only the question has to be put inside.
        let answer = self.run(getifaddrs)??;
        let mut found: Vec<(u8, IpAddr)> = Vec::new();
        for interface in answer {
            let Some(address) = interface.address else { continue };
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => continue,
            };
            if ip.is_loopback() || !interface.flags.contains(InterfaceFlags::IFF_UP) {
                continue;
            }
            let on_loopback = interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            found.push((if is_link_local(ip) { 2 } else { u8::from(on_loopback) }, ip));
        }
        // Stable: among equals the kernel's order, in which an interface's primary address comes first.
        found.sort_by_key(|(rank, _)| *rank);
        let mut addresses: Vec<IpAddr> = Vec::with_capacity(found.len());
        for (_, ip) in found {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        Ok(addresses)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Where a pod's listeners belong: its first IPv4 and its first IPv6 address. A link-local IPv6 address is none: a
/// redirected `connect` cannot name the interface that it would need.
pub fn listener_addresses(addresses: &[IpAddr]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let v4 = addresses.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
    let v6 = addresses.iter().find_map(|ip| match ip {
        IpAddr::V6(v6) if !v6.is_unicast_link_local() => Some(*v6),
        _ => None,
    });
    (v4, v6)
}

/// [`listener_addresses`] with a port: what to give to [`Namespace::listener`], one each.
pub fn listener_sockets(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let (v4, v6) = listener_addresses(addresses);
    let ips = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
    ips.map(|ip| SocketAddr::new(ip, port)).collect()
}
