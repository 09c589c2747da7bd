//! Connections from outside to an enrolled pod's own ports: the kernel's search for a listening socket ends at the agent's
//! listener inside the pod, whatever the port. The accepted socket bears the address that was dialled (`getsockname`).
//!
//! An object of its own, and not a part of the other programs': it is loaded once for each pod, as nothing in its context
//! tells one network namespace from another. While no agent runs, what comes is refused, or goes straight to the
//! application, as the agent said last.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

/// On the host there is nothing to run; the workspace still builds and lints as a whole.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod object;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        Global,
        bindings::{
            BPF_F_NO_PREALLOC,
            sk_action::{SK_DROP, SK_PASS},
        },
        btf_maps::{Array, HashMap, SockMap},
        macros::{btf_map, sk_lookup},
        programs::SkLookupContext,
    };
    use core::ptr;
    use egret_ebpf::{Address, InboundPod, MAX_OWN, OUTBOUND_PORT, OwnKey, inbound};

    const AF_INET: u32 = 2;
    const IPPROTO_TCP: u32 = 6;
    /// The index of `lo`, in every namespace.
    const LOOPBACK: u32 = 1;

    /// The agent's listeners inside the pod. A closed one leaves by itself.
    #[btf_map]
    static LISTENERS: SockMap<{ inbound::LISTENERS }> = SockMap::new();

    /// Among it the cookie of the pod's namespace, which no helper tells here.
    #[btf_map]
    static POD: Array<InboundPod, 1> = Array::new();

    /// The other programs' map of the addresses that pods bear.
    #[btf_map]
    static OWN: HashMap<OwnKey, u32, MAX_OWN, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

    /// A constant to the verifier, so that kernels before 5.17 never look at the field of the context that they lack.
    #[unsafe(no_mangle)]
    static HAS_INGRESS_IFINDEX: Global<u8> = Global::new(0);

    /// SK_PASS means "go on", with the socket assigned or, where none was, with the usual search. SK_DROP: as if nobody
    /// listened.
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
        let Some(pod) = POD.get(0) else { return SK_DROP };
        if is_from_inside(&ctx, pod.cookie, local, remote) {
            return SK_PASS;
        }
        match LISTENERS.redirect_sk_lookup(&ctx, listener, 0) {
            Ok(()) => SK_PASS,
            // The agent is gone, or does not serve this family.
            Err(_) if pod.fail_closed != 0 => SK_DROP,
            Err(_) => SK_PASS,
        }
    }

    /// The agent passes on what it accepted, or the pod talks to itself.
    #[inline(always)]
    fn is_from_inside(ctx: &SkLookupContext, cookie: u64, local: Address, remote: Address) -> bool {
        // How the agent passes on with the client's address, see `netns/original_source.rs`. Nothing from outside comes in
        // by this interface.
        // SAFETY: the context outlives the program.
        if HAS_INGRESS_IFINDEX.load() != 0
            && unsafe { ptr::read_volatile(&raw const (*ctx.lookup).ingress_ifindex) } == LOOPBACK
        {
            return true;
        }
        // The two addresses need not be the same: to a second address of an interface the kernel goes from the first.
        remote.is_loopback() || local == remote || is_own(cookie, remote)
    }

    /// Whether the pod bears an address itself. The interface says nothing of this: for what the pod sends to itself it is
    /// the one that bears the address, and not the loopback. From outside no packet with such a source comes in over IPv4
    /// (martian source), and over IPv6 the answer to it stays in the pod, which resets it: no connection comes about. Only
    /// where the pod's own sysctl allows TCP Fast Open without cookies, the first bytes would be heard.
    #[inline(always)]
    fn is_own(cookie: u64, address: Address) -> bool {
        let key = OwnKey { cookie, address };
        // SAFETY: the value is not read.
        unsafe { OWN.get(&key) }.is_some()
    }
}
