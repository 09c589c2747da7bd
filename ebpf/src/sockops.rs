//! Carries the destination from the client's socket to the accepted one, over the loopback handshake between them.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops},
    helpers::generated::bpf_get_netns_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};
use core::ptr;
use egret_ebpf::{Address, Original, PendingKey};

use crate::maps;

const AF_INET: u32 = 2;

#[sock_ops]
pub fn egret_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        // The source port is chosen and the SYN not yet sent: ACTIVE_ESTABLISHED would be too late for TCP Fast Open,
        // where the accepted socket exists before the client's handshake is over.
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let cookie = cookie_of(ctx);
    if maps::enrolment(cookie).is_none() {
        return;
    }
    let (local, _) = ends(ctx.ops);
    // SAFETY: the context outlives the program.
    let port = unsafe { ptr::read_volatile(&raw const (*ctx.ops).local_port) };
    let key = PendingKey { cookie, address: local, port, zero: 0 };
    // SAFETY: as above; null where the kernel has only a request socket.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    match maps::original_of(socket) {
        Some(original) if original.side == Original::CONNECTING => maps::set_pending(&key, &original),
        // Not redirected. A connection that once failed from this very port must not lend it its destination.
        _ => {
            maps::take_pending(&key);
        }
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let cookie = cookie_of(ctx);
    let Some(enrolment) = maps::enrolment(cookie) else { return };
    let (_, remote) = ends(ctx.ops);
    // SAFETY: the context outlives the program.
    let (local_port, remote_port) = unsafe {
        (ptr::read_volatile(&raw const (*ctx.ops).local_port), ptr::read_volatile(&raw const (*ctx.ops).remote_port))
    };
    // The context has the local port in host order, the remote one in network order.
    if local_port != u32::from(u16::from_be(enrolment.port as u16)) {
        return;
    }
    let key = PendingKey { cookie, address: remote, port: u32::from_be(remote_port), zero: 0 };
    let Some(mut original) = maps::take_pending(&key) else { return };
    // SAFETY: as above.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    original.side = Original::ACCEPTED;
    // Where this fails the agent finds no destination and closes the connection.
    let _ = maps::remember(socket, original);
}

#[inline(always)]
fn cookie_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context as it is.
    unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }
}

/// Local and remote address. All fields are read before one is chosen, or LLVM makes one load with a computed offset of
/// them, which the verifier refuses.
#[inline(always)]
fn ends(raw: *mut bpf_sock_ops) -> (Address, Address) {
    // SAFETY: the context outlives the program.
    unsafe {
        let family = ptr::read_volatile(&raw const (*raw).family);
        let local4 = ptr::read_volatile(&raw const (*raw).local_ip4);
        let remote4 = ptr::read_volatile(&raw const (*raw).remote_ip4);
        let local6 = (&raw const (*raw).local_ip6).cast::<u32>();
        let remote6 = (&raw const (*raw).remote_ip6).cast::<u32>();
        let local6 = [
            ptr::read_volatile(local6),
            ptr::read_volatile(local6.add(1)),
            ptr::read_volatile(local6.add(2)),
            ptr::read_volatile(local6.add(3)),
        ];
        let remote6 = [
            ptr::read_volatile(remote6),
            ptr::read_volatile(remote6.add(1)),
            ptr::read_volatile(remote6.add(2)),
            ptr::read_volatile(remote6.add(3)),
        ];
        if family == AF_INET {
            (Address::v4(local4), Address::v4(remote4))
        } else {
            (Address { words: local6 }, Address { words: remote6 })
        }
    }
}
