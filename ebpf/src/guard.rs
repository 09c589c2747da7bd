//! The egress guard: a second line behind the redirect.
//!
//! A pod with CAP_NET_ADMIN can rewrite the way to its listener, one with CAP_NET_RAW can write SYNs by hand. What opens
//! a TCP connection from an enrolled pod to an address outside it must be the agent's own socket; else it is dropped.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use egret_ebpf::{Address, Counter};

use crate::maps;

const PASS: i32 = 1;
const DROP: i32 = 0;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Extension headers that may stand before TCP; more than an honest stack ever sends.
const MAX_EXTENSIONS: usize = 4;

#[cgroup_skb(egress)]
pub fn egret_guard(ctx: SkBuffContext) -> i32 {
    // SAFETY: the helper takes the context as it is.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.skb.skb.cast()) };
    if maps::enrolment(cookie).is_none() {
        return PASS;
    }
    let Some((destination, flags)) = opening(&ctx) else { return PASS };
    let opens = match flags {
        Some(flags) => flags & (SYN | ACK) == SYN,
        // TCP whose flags cannot be read (a fragment cut short): nobody honest sends it.
        None => true,
    };
    if !opens || maps::is_local(cookie, destination) {
        return PASS;
    }
    // SAFETY: as above. The cgroup of the socket, which is the one its process was in when it made it.
    if unsafe { bpf_skb_cgroup_id(ctx.skb.skb) } == maps::proxy_cgroup() {
        return PASS;
    }
    maps::count(Counter::Guarded);
    DROP
}

/// Destination and TCP flags of a packet; `None` where it is not TCP or a later fragment.
#[inline(always)]
fn opening(ctx: &SkBuffContext) -> Option<(Address, Option<u8>)> {
    let first: u8 = ctx.load(0).ok()?;
    if first >> 4 == 4 {
        let protocol: u8 = ctx.load(9).ok()?;
        let fragment: u16 = ctx.load(6).ok()?;
        if protocol != TCP || u16::from_be(fragment) & 0x1fff != 0 {
            return None;
        }
        let destination: u32 = ctx.load(16).ok()?;
        let header = usize::from(first & 0x0f) * 4;
        return Some((Address::v4(destination), ctx.load(header + 13).ok()));
    }
    let words: [u32; 4] = ctx.load(24).ok()?;
    let destination = Address { words };
    let mut next: u8 = ctx.load(6).ok()?;
    let mut at = 40usize;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            TCP => return Some((destination, ctx.load(at + 13).ok())),
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
    Some((destination, None))
}
