//! `getpeername()` tells the client the address it dialled, not the listener's. Programs log it, compare it, put it into
//! certificates' checks; a redirect should not show.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use core::ptr;
use egret_ebpf::Original;

use crate::{
    connect::{socket_of, write6},
    maps,
};

/// The kernel accepts nothing else from these hooks.
const OK: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn egret_peername4(ctx: SockAddrContext) -> i32 {
    if let Some(original) = dialled(&ctx) {
        // SAFETY: the context outlives the program, and these fields may be written.
        unsafe {
            ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, original.address.words[3]);
            ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, original.port);
        }
    }
    OK
}

#[cgroup_sock_addr(getpeername6)]
pub fn egret_peername6(ctx: SockAddrContext) -> i32 {
    if let Some(original) = dialled(&ctx) {
        write6(ctx.sock_addr, original.address, original.port);
    }
    OK
}

/// Only for the client's end: the agent's accepted socket must see the client.
#[inline(always)]
fn dialled(ctx: &SockAddrContext) -> Option<Original> {
    maps::original_of(socket_of(ctx.sock_addr)).filter(|original| original.side == Original::CONNECTING)
}
