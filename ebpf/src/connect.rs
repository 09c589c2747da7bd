//! `connect()` of an enrolled pod: remember the destination in the socket, go to the pod's own listener instead.
//!
//! The hook runs for `connect(2)`, for TCP Fast Open by `sendto`, and again when a socket is reused after `AF_UNSPEC`.

use aya_ebpf::{
    Global,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use core::ptr;
use egret_ebpf::{Address, Counter, Original};

use crate::maps;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// Set at load time where the kernel has `bpf_set_retval` (5.18). A constant to the verifier, so that older kernels never
/// look at the call.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u8> = Global::new(0);

#[cgroup_sock_addr(connect4)]
pub fn egret_connect4(ctx: SockAddrContext) -> i32 {
    let Some(cookie) = cookie_of_tcp(&ctx) else { return ALLOW };
    let enrolment = match maps::enrolment(cookie) {
        Some(enrolment) => enrolment,
        None if !is_undecided(cookie) => return ALLOW,
        None => return not_yet(&ctx, read4(&ctx)),
    };
    let destination = read4(&ctx);
    match capture(&ctx, cookie, destination) {
        Verdict::Allow => ALLOW,
        Verdict::Deny => deny(&ctx, &destination, 0),
        Verdict::Redirect if enrolment.v4 == 0 => deny(&ctx, &destination, ENETUNREACH),
        Verdict::Redirect => {
            // SAFETY: as above; these fields may be written.
            unsafe {
                ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, enrolment.v4);
                ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, enrolment.port);
            }
            redirected(&ctx, &destination)
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn egret_connect6(ctx: SockAddrContext) -> i32 {
    let Some(cookie) = cookie_of_tcp(&ctx) else { return ALLOW };
    let enrolment = match maps::enrolment(cookie) {
        Some(enrolment) => enrolment,
        None if !is_undecided(cookie) => return ALLOW,
        None => {
            let (address, port) = read6(ctx.sock_addr);
            return not_yet(&ctx, Original { address, port, side: Original::CONNECTING });
        }
    };
    let (address, port) = read6(ctx.sock_addr);
    let destination = Original { address, port, side: Original::CONNECTING };
    // An AF_INET6 socket may speak IPv4: then it goes to the IPv4 listener, in the same mapped form.
    let (listener, exists) = if address.is_v4() {
        (Address::v4(enrolment.v4), enrolment.v4 != 0)
    } else {
        (enrolment.v6, enrolment.v6 != Address::default())
    };
    match capture(&ctx, cookie, destination) {
        Verdict::Allow => ALLOW,
        Verdict::Deny => deny(&ctx, &destination, 0),
        Verdict::Redirect if !exists => deny(&ctx, &destination, ENETUNREACH),
        Verdict::Redirect => {
            write6(ctx.sock_addr, listener, enrolment.port);
            redirected(&ctx, &destination)
        }
    }
}

enum Verdict {
    Allow,
    Deny,
    Redirect,
}

/// The namespace of a TCP socket, or nothing.
#[inline(always)]
fn cookie_of_tcp(ctx: &SockAddrContext) -> Option<u64> {
    // SAFETY: the context outlives the program; the helper takes it as it is.
    let (kind, protocol, cookie) = unsafe {
        let raw = ctx.sock_addr;
        (
            ptr::read_volatile(&raw const (*raw).type_),
            ptr::read_volatile(&raw const (*raw).protocol),
            bpf_get_netns_cookie(raw.cast()),
        )
    };
    if kind != SOCK_STREAM || protocol != IPPROTO_TCP {
        return None;
    }
    Some(cookie)
}

#[inline(always)]
fn read4(ctx: &SockAddrContext) -> Original {
    // SAFETY: the context outlives the program. Volatile, as LLVM else merges loads in ways the verifier refuses.
    let (address, port) = unsafe {
        let raw = ctx.sock_addr;
        (ptr::read_volatile(&raw const (*raw).user_ip4), ptr::read_volatile(&raw const (*raw).user_port))
    };
    Original { address: Address::v4(address), port, side: Original::CONNECTING }
}

/// Whether the process that connects is of a pod which the agent has not decided about, or one that has left such a pod's
/// namespace for another that nobody knows.
#[inline(always)]
fn is_undecided(cookie: u64) -> bool {
    // SAFETY: the helper takes a plain number.
    let ancestor = |level: u32| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    match maps::level_of_pods(cookie, ancestor) {
        Some(level) => !maps::is_left_alone(level, ancestor),
        None => false,
    }
}

/// Refused as an enrolled pod's connections are without an agent. What stays inside the pod may.
#[inline(always)]
fn not_yet(ctx: &SockAddrContext, destination: Original) -> i32 {
    if destination.address.is_loopback() { ALLOW } else { deny(ctx, &destination, ECONNREFUSED) }
}

#[inline(always)]
fn capture(ctx: &SockAddrContext, cookie: u64, destination: Original) -> Verdict {
    // SAFETY: the helper takes no argument.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if maps::is_proxy(cgroup) {
        maps::count(Counter::Exempt);
        return Verdict::Allow;
    }
    let socket = socket_of(ctx.sock_addr);
    if maps::is_local(cookie, destination.address) {
        maps::forget(socket);
        return Verdict::Allow;
    }
    if maps::remember(socket, destination) { Verdict::Redirect } else { Verdict::Deny }
}

#[inline(always)]
fn redirected(ctx: &SockAddrContext, destination: &Original) -> i32 {
    maps::count(Counter::Redirected);
    if maps::debug_wanted() {
        let port = u16::from_be(destination.port as u16);
        if destination.address.is_v4() {
            debug!(ctx, "redirected a connection to {:i}:{}", u32::from_be(destination.address.words[3]), port);
        } else {
            debug!(ctx, "redirected a connection to [{:i}]:{}", octets(destination), port);
        }
    }
    ALLOW
}

/// `errno` 0: the kernel's own EPERM.
#[inline(always)]
fn deny(ctx: &SockAddrContext, destination: &Original, errno: i32) -> i32 {
    maps::count(Counter::Denied);
    maps::forget(socket_of(ctx.sock_addr));
    if maps::debug_wanted() {
        let port = u16::from_be(destination.port as u16);
        if destination.address.is_v4() {
            debug!(ctx, "denied a connection to {:i}:{}", u32::from_be(destination.address.words[3]), port);
        } else {
            debug!(ctx, "denied a connection to [{:i}]:{}", octets(destination), port);
        }
    }
    if errno != 0 && HAS_SET_RETVAL.load() != 0 {
        // SAFETY: takes a plain number, and denial stays denial whatever it returns.
        unsafe { bpf_set_retval(-errno) };
    }
    DENY
}

#[inline(always)]
fn octets(destination: &Original) -> [u8; 16] {
    let [a, b, c, d] = destination.address.words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

#[inline(always)]
pub fn socket_of(raw: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: the context outlives the program, and the union has this one member.
    unsafe { (*raw).__bindgen_anon_1.sk }
}

#[inline(always)]
pub fn read6(raw: *mut bpf_sock_addr) -> (Address, u32) {
    // SAFETY: the context outlives the program. Volatile word by word, as LLVM else merges the loads.
    unsafe {
        let words = (&raw const (*raw).user_ip6).cast::<u32>();
        let words = [
            ptr::read_volatile(words),
            ptr::read_volatile(words.add(1)),
            ptr::read_volatile(words.add(2)),
            ptr::read_volatile(words.add(3)),
        ];
        (Address { words }, ptr::read_volatile(&raw const (*raw).user_port))
    }
}

#[inline(always)]
pub fn write6(raw: *mut bpf_sock_addr, address: Address, port: u32) {
    // SAFETY: as in `read6`; these fields may be written.
    unsafe {
        let words = (&raw mut (*raw).user_ip6).cast::<u32>();
        ptr::write_volatile(words, address.words[0]);
        ptr::write_volatile(words.add(1), address.words[1]);
        ptr::write_volatile(words.add(2), address.words[2]);
        ptr::write_volatile(words.add(3), address.words[3]);
        ptr::write_volatile(&raw mut (*raw).user_port, port);
    }
}
