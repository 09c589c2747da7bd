//! Not egret's, and not in its binary: in tests it stands for another program at the same hook. Like Cilium's socket load
//! balancer it sends what dials a Service's address to an endpoint's.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod object;

#[cfg(target_arch = "bpf")]
mod kernel {
    use core::ptr;

    use aya_ebpf::{Global, macros::cgroup_sock_addr, programs::SockAddrContext};

    /// IPv4 addresses in network byte order, set at load time.
    #[unsafe(no_mangle)]
    static SERVICE: Global<u32> = Global::new(0);
    #[unsafe(no_mangle)]
    static ENDPOINT: Global<u32> = Global::new(0);

    #[cgroup_sock_addr(connect4)]
    pub fn other_connect4(ctx: SockAddrContext) -> i32 {
        // SAFETY: the context outlives the program, and this field may be read and written.
        unsafe {
            let address = &raw mut (*ctx.sock_addr).user_ip4;
            if ptr::read_volatile(address) == SERVICE.load() {
                ptr::write_volatile(address, ENDPOINT.load());
            }
        }
        1
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
