//! System calls that no crate wraps, and the only `unsafe` of the agent. Each function is one call, checked.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use socket2::SockAddr;
use tokio::io::{Interest, unix::AsyncFd};

/// `SO_NETNS_COOKIE` (Linux 5.14): the number by which the kernel programs know a socket's network namespace. It is never
/// given to a second namespace while the machine runs.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Gives memory that is free back to the kernel. A reload has two tables for a moment and frees the old one in pieces all
/// over the heap: glibc by itself would keep them, a third of the whole with 10,000 hosts. Takes some milliseconds.
pub fn release_free_memory() {
    // SAFETY: takes no pointer, and may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Commands of bpf(2), from `linux/bpf.h`.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`.
pub const INET4_CONNECT: u32 = 10;
pub const INET6_CONNECT: u32 = 11;
/// `BPF_F_PREORDER` (Linux 6.15): before the programs of cgroups below, and before those of this cgroup without the flag.
const BPF_F_PREORDER: u32 = 1 << 6;

/// The head of `union bpf_attr` for `BPF_OBJ_GET` and `BPF_OBJ_PIN`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct ObjInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info` of a link to a network namespace.
#[repr(C)]
#[derive(Default)]
struct NetnsLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _padding: u32,
    netns_ino: u32,
    attach_type: u32,
}

/// Opens what is pinned at a path of the BPF file system.
pub fn bpf_obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` is laid out as the kernel expects for this command, its size is told, and `path` outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut attr, size_of::<ObjGet>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call gave us a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Pins a program, map or link at a path of the BPF file system.
pub fn bpf_obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: `attr` is laid out as the kernel expects for this command, its size is told, and `path` outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw mut attr, size_of::<ObjGet>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a program to a cgroup's hook ([`INET4_CONNECT`], [`INET6_CONNECT`]) so that it runs before those of others.
///
/// # Errors
/// `InvalidInput` where the kernel has no such order, and what bpf(2) lists.
pub fn bpf_link_create_first(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: hook,
        flags: BPF_F_PREORDER,
    };
    // SAFETY: `attr` is laid out as the kernel expects for this command, and its size is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut attr, size_of::<LinkCreate>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call gave us a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Swaps the program of a link in place (Linux 5.7): the hook is never without one.
pub fn bpf_link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: `attr` is laid out as the kernel expects for this command, and its size is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw mut attr, size_of::<LinkUpdate>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The inode of the network namespace that a link is attached to; 0: the namespace is gone.
pub fn bpf_link_netns(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = NetnsLinkInfo::default();
    let mut attr = ObjInfo {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<NetnsLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: both structures are laid out as the kernel expects for this command, their sizes are told, and `info` outlives
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<ObjInfo>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(info.netns_ino) }
}

/// Takes a connection that waits at a listener: its socket is non-blocking and closed on exec from its first moment, and the
/// client's address comes along (accept4(2)).
///
/// # Errors
/// `WouldBlock` where none waits, and what accept4(2) lists.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(TcpStream, SocketAddr)> {
    // SAFETY: on success the kernel has written an address of the length that it tells, and the descriptor is a new one that
    // nobody else knows.
    let (accepted, peer) = unsafe {
        SockAddr::try_init(|address, length| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            match libc::accept4(listener.as_raw_fd(), address.cast(), length, flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        })
    }?;
    let peer = peer.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    Ok((accepted.into(), peer))
}

/// A descriptor that tokio watches for input. Must be called within a tokio runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor until it is dropped, which the AsyncFd does itself.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn sockets_of_one_namespace_share_a_cookie() {
        let one = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let two = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = netns_cookie(one.as_fd()).unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(cookie, netns_cookie(two.as_fd()).unwrap());
    }

    #[test]
    fn a_descriptor_that_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(netns_cookie(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn an_accepted_connection_is_non_blocking_and_its_client_known() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(accept(listener.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = accept(listener.as_fd()).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(socket2::SockRef::from(&accepted).nonblocking().unwrap());
        let flags = nix::fcntl::fcntl(&accepted, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, libc::FD_CLOEXEC);
    }

    #[test]
    fn nothing_pinned_is_an_error() {
        assert!(bpf_obj_get(Path::new("/sys/fs/bpf/egret-no-such-pin")).is_err());
        assert!(bpf_obj_get(Path::new("a\0b")).is_err());
    }
}
