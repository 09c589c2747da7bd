//! Connections from outside to an enrolled pod's own ports: the kernel's search for a listening socket ends at the agent's
//! listener inside the pod, whatever the port. The accepted socket bears the address that was dialled (`getsockname`).
//!
//! An object of its own, and not a part of the other programs': it is loaded once for each pod, as nothing in its context
//! tells one network namespace from another. It is never pinned. While no agent runs, what comes goes straight to the
//! application.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

/// On the host there is nothing to run; the workspace still builds and lints as a whole.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        bindings::{BPF_F_NO_PREALLOC, sk_action::SK_PASS},
        btf_maps::{Array, HashMap, SockMap},
        macros::{btf_map, sk_lookup},
        programs::SkLookupContext,
    };
    use core::ptr;
    use egret_ebpf::{Address, MAX_OWN, OUTBOUND_PORT, OwnKey, inbound};

    const AF_INET: u32 = 2;
    const IPPROTO_TCP: u32 = 6;

    /// The agent's listeners inside the pod. A closed one leaves by itself.
    #[btf_map]
    static LISTENERS: SockMap<{ inbound::LISTENERS }> = SockMap::new();

    /// The cookie of the pod's namespace, which no helper tells here.
    #[btf_map]
    static COOKIE: Array<u64, 1> = Array::new();

    /// The other programs' map of the addresses that pods bear.
    #[btf_map]
    static OWN: HashMap<OwnKey, u32, MAX_OWN, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

    /// Always SK_PASS: it means "go on", with the socket assigned or, where none was, with the usual search.
    #[sk_lookup]
    fn egret_inbound(ctx: SkLookupContext) -> u32 {
        let raw = ctx.lookup;
        // SAFETY: the context outlives the program. Volatile, and all before anything is chosen, as LLVM else merges loads
        // in ways the verifier refuses.
        let (family, protocol, port, local4, remote4, local6, remote6) = unsafe {
            let local6 = (&raw const (*raw).local_ip6).cast::<u32>();
            let remote6 = (&raw const (*raw).remote_ip6).cast::<u32>();
            (
                ptr::read_volatile(&raw const (*raw).family),
                ptr::read_volatile(&raw const (*raw).protocol),
                ptr::read_volatile(&raw const (*raw).local_port),
                ptr::read_volatile(&raw const (*raw).local_ip4),
                ptr::read_volatile(&raw const (*raw).remote_ip4),
                [
                    ptr::read_volatile(local6),
                    ptr::read_volatile(local6.add(1)),
                    ptr::read_volatile(local6.add(2)),
                    ptr::read_volatile(local6.add(3)),
                ],
                [
                    ptr::read_volatile(remote6),
                    ptr::read_volatile(remote6.add(1)),
                    ptr::read_volatile(remote6.add(2)),
                    ptr::read_volatile(remote6.add(3)),
                ],
            )
        };
        // The local port is in host byte order. Captured outbound connections have a listener of their own.
        if protocol != IPPROTO_TCP || port == OUTBOUND_PORT as u32 {
            return SK_PASS;
        }
        let (local, remote, listener) = if family == AF_INET {
            (Address::v4(local4), Address::v4(remote4), inbound::V4)
        } else {
            (Address { words: local6 }, Address { words: remote6 }, inbound::V6)
        };
        if remote.is_loopback() || local == remote || is_own(remote) {
            return SK_PASS;
        }
        // Fails where the agent is gone.
        let _ = LISTENERS.redirect_sk_lookup(&ctx, listener, 0);
        SK_PASS
    }

    /// The pod talks to itself, or the agent passes on what it accepted. From outside no packet with such a source comes in
    /// over IPv4 (martian source), and over IPv6 no answer to it ever gets out.
    ///
    /// The two addresses need not be the same: to a second address of an interface the kernel goes from the first.
    #[inline(always)]
    fn is_own(address: Address) -> bool {
        let Some(cookie) = COOKIE.get(0) else { return false };
        let key = OwnKey { cookie: *cookie, address };
        // SAFETY: the value is not read.
        unsafe { OWN.get(&key) }.is_some()
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    // The helpers are for GPL-compatible programs; this declares the object to be dual licensed.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
