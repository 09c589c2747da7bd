//! How an application comes to see its client's address, and not the pod's own: the agent's connection to it bears the
//! client's (IP_TRANSPARENT), and both of its ends a mark, by which the pod sends the application's answers back to the
//! agent's socket instead of out to the client.
//!
//! Two routes and two rules inside the pod, and one sysctl by which the accepted socket takes over the mark. A pod with
//! CAP_NET_ADMIN can remove them: then no connection to its application comes about, and nothing goes elsewhere.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use rand::RngExt as _;
use socket2::{Protocol, Type};
use tokio::net::TcpSocket;

use super::{
    Namespace, listener_addresses,
    netlink::{self, message},
};
use crate::limits;

/// Of both ends of a connection that bears the client's address.
const MARK: u32 = 15006;
/// The routing table that such connections use.
const TABLE: u32 = 15006;
/// Of the rules: right after the kernel's own table of local addresses, before any that the pod may have.
const PRIORITY: u32 = 1;
/// The index of `lo`, in every namespace.
const LOOPBACK: u32 = 1;
/// Of the network namespace of whoever opens it, wherever that proc is mounted.
const INHERIT_MARK: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";
/// In a container `/proc/sys` is read-only; that of process 1, where it is the machine's (`hostPID`), is not.
const INHERIT_MARK_OF_MACHINE: &str = "/proc/1/root/proc/sys/net/ipv4/tcp_fwmark_accept";

/// Where our end of such a connection has its port. The client's own ports are taken: both connections have the same
/// addresses, and the kernel could not tell an answer on the one from the other's. Clients on Linux have theirs up to 60999.
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

impl Namespace {
    /// Makes [`crate::engine::ports::Sockets::tcp_from`] work for connections to these addresses of the pod. Again: changes
    /// nothing.
    pub fn enable_original_source(&self, own: &[IpAddr]) -> io::Result<()> {
        let (_, v6) = listener_addresses(own);
        self.run(|| {
            add(libc::AF_INET)?;
            // Where IPv6 is off, so are its rules.
            v6.map_or(Ok(()), |_| add(libc::AF_INET6))?;
            inherit_mark("1")
        })?
    }

    /// Takes away what [`Namespace::enable_original_source`] made, if it did. Connections that use it stall.
    pub fn disable_original_source(&self) -> io::Result<()> {
        self.run(|| {
            let v4 = remove(libc::AF_INET)?;
            let v6 = remove(libc::AF_INET6).unwrap_or_else(|error| {
                log::debug!("{}: IPv6 rules cannot be removed, taken as absent: {error}", self.name());
                false
            });
            if v4 || v6 { inherit_mark("0") } else { Ok(()) }
        })?
    }

    /// The namespace whose file has this inode, wherever a name or a process leads to it.
    pub fn find(inode: u32) -> Option<Self> {
        let name = format!("net:[{inode}]");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // proc_pid_mountinfo(5): the fourth field is the root, which of a namespace's file is its name, the fifth the place.
        let mounted = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            (fields.next()? == name).then(|| fields.next().map(str::to_owned))?
        });
        let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(|process| {
            let path = process.ok()?.path().join("ns/net");
            (fs::read_link(&path).ok()? == Path::new(&name)).then(|| path.to_str().map(str::to_owned))?
        });
        mounted.chain(processes).find_map(|path| Self::open(&path).ok())
    }

    /// As [`crate::engine::ports::Sockets::tcp_from`].
    pub(super) fn tcp_as(&self, remote: SocketAddr, client: IpAddr) -> io::Result<TcpSocket> {
        let client = client.to_canonical();
        if matches!(client, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a link-local address belongs to one interface"));
        }
        if client.is_ipv4() != remote.is_ipv4() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it is an address of the other family"));
        }
        let socket = self.socket(remote, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_ip_transparent_v4(true)?;
        socket.set_mark(MARK)?;
        // The pod's own address is then looked up in our table, and the kernel program sees the loopback as the interface by
        // which the connection comes in.
        socket.bind_device(Some(b"lo"))?;
        // Ports are shared between connections to different ports of the application.
        socket.set_reuse_address(true)?;
        let mut attempts = limits::CLIENT_PORT_ATTEMPTS;
        loop {
            let port = rand::rng().random_range(PORTS);
            match socket.bind(&SocketAddr::new(client, port).into()) {
                Ok(()) => return Ok(TcpSocket::from_std_stream(socket.into())),
                // Somebody listens on the port.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 1 => attempts -= 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Says in the namespace that the thread is in whether accepted sockets take over the mark.
fn inherit_mark(value: &str) -> io::Result<()> {
    match fs::write(INHERIT_MARK, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => fs::write(INHERIT_MARK_OF_MACHINE, value),
        result => result,
    }
}

/// What is there already is taken for ours.
fn add(family: i32) -> io::Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    for message in [route(libc::RTM_NEWROUTE, flags, family), rule(libc::RTM_NEWRULE, flags, family)] {
        match ask(&message) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(())
}

/// Whether there was anything.
fn remove(family: i32) -> io::Result<bool> {
    let mut was_there = false;
    for message in [rule(libc::RTM_DELRULE, 0, family), route(libc::RTM_DELROUTE, 0, family)] {
        match ask(&message) {
            Ok(()) => was_there = true,
            // ESRCH: no such route, or no such table.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(was_there)
}

fn ask(message: &[u8]) -> io::Result<()> {
    netlink::ask(libc::NETLINK_ROUTE, message).map(drop)
}

/// `ip rule add fwmark MARK lookup TABLE priority PRIORITY` (rtnetlink(7), `linux/fib_rules.h`).
fn rule(kind: u16, flags: i32, family: i32) -> Vec<u8> {
    const FR_ACT_TO_TBL: u8 = 1;
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    // struct fib_rule_hdr: family, lengths of two prefixes, tos, table, two reserved, action, flags.
    let mut body = vec![family as u8, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    attribute(&mut body, FRA_PRIORITY, PRIORITY);
    attribute(&mut body, FRA_FWMARK, MARK);
    attribute(&mut body, FRA_TABLE, TABLE);
    message(kind, flags, &body)
}

/// `ip route add local default dev lo table TABLE`.
fn route(kind: u16, flags: i32, family: i32) -> Vec<u8> {
    // struct rtmsg: family, lengths of two prefixes, tos, table (an attribute says it), protocol, scope, type, flags.
    let (protocol, scope) = (libc::RTPROT_STATIC, libc::RT_SCOPE_HOST);
    let mut body = vec![family as u8, 0, 0, 0, 0, protocol, scope, libc::RTN_LOCAL, 0, 0, 0, 0];
    attribute(&mut body, libc::RTA_TABLE, TABLE);
    attribute(&mut body, libc::RTA_OIF, LOOPBACK);
    message(kind, flags, &body)
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: u32) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value.to_ne_bytes());
}

#[cfg(test)]
mod tests;
