//! The egress guard: a second line behind the redirect.
//!
//! A pod with CAP_NET_ADMIN can rewrite the way to its listener, one with CAP_NET_RAW can write SYNs by hand. What opens
//! a TCP connection from an enrolled pod to an address outside it must be the agent's own socket; else it is dropped. So is
//! what opens one from a pod that was just created, before the agent has decided about it.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::ptr;
use egret_ebpf::Counter;

use crate::maps;

const PASS: i32 = 1;
const DROP: i32 = 0;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Extension headers that may stand before TCP; more than an honest stack ever sends.
const MAX_EXTENSIONS: usize = 4;
/// No packet is so long, so nothing can be read there.
const BEYOND: usize = 0xffff;
/// The index of `lo`, in every namespace.
const LOOPBACK: u32 = 1;

#[cgroup_skb(egress)]
pub fn egret_guard(ctx: SkBuffContext) -> i32 {
    // SAFETY: the helper takes the context as it is.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.skb.skb.cast()) };
    // SAFETY: as above. Ancestors of the socket's cgroup, which is the one its process was in when it made it.
    let ancestor = |level: u32| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level as i32) };
    let unknown = match maps::enrolment(cookie) {
        Some(_) => None,
        None => match maps::level_of_pods(cookie, ancestor) {
            None => return PASS,
            level => level,
        },
    };
    // What leaves by the loopback device stays in the pod. This is asked of the packet and not of its destination, for a
    // pod with CAP_NET_ADMIN can route an address of its own to the outside.
    // SAFETY: the context outlives the program.
    if unsafe { ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) } == LOOPBACK || !opens(&ctx) {
        return PASS;
    }
    if unknown.is_some_and(|level| maps::is_left_alone(level, ancestor)) {
        return PASS;
    }
    // SAFETY: as above.
    if maps::is_proxy(unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }) {
        return PASS;
    }
    maps::count(Counter::Guarded);
    DROP
}

/// Whether a packet opens a TCP connection. TCP whose flags cannot be read (a fragment cut short) counts as such: nobody
/// honest sends it. A later fragment does not, as its first was seen here too.
#[inline(always)]
fn opens(ctx: &SkBuffContext) -> bool {
    match tcp_header(ctx) {
        Some(at) => ctx.load::<u8>(at + 13).map_or(true, |flags| flags & (SYN | ACK) == SYN),
        None => false,
    }
}

/// Where the TCP header begins, in the first fragment of a TCP packet.
#[inline(always)]
fn tcp_header(ctx: &SkBuffContext) -> Option<usize> {
    let first: u8 = ctx.load(0).ok()?;
    if first >> 4 == 4 {
        let protocol: u8 = ctx.load(9).ok()?;
        let fragment: u16 = ctx.load(6).ok()?;
        let concerned = protocol == TCP && u16::from_be(fragment) & 0x1fff == 0;
        return concerned.then_some(usize::from(first & 0x0f) * 4);
    }
    let mut next: u8 = ctx.load(6).ok()?;
    let mut at = 40usize;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            TCP => return Some(at),
            // Hop-by-hop, routing, destination options: length in units of 8 bytes, the first not counted.
            0 | 43 | 60 => {
                let header: [u8; 2] = ctx.load(at).ok()?;
                next = header[0];
                at += (usize::from(header[1]) + 1) * 8;
            }
            // Fragment: only the first carries the TCP header.
            44 => {
                let header: [u8; 4] = ctx.load(at).ok()?;
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return None;
                }
                next = header[0];
                at += 8;
            }
            _ => return None,
        }
    }
    // More headers than that: taken for TCP whose flags lie beyond the packet's end.
    Some(BEYOND)
}
